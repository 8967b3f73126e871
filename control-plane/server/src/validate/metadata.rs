//! Labels and annotations, by Kubernetes' rules.

use std::collections::HashMap;

use longship_proto::Failure;

use super::names::{is_dns_subdomain, shown};

/// Kubernetes has no limit but that of the object's size; schedulers and watches pay
/// for each label.
pub(super) const MAX_LABELS: usize = 64;
/// Keys and values together, in bytes.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

/// Checks labels that a pod is to have.
///
/// # Errors
/// `INVALID` at `field`, or at `field[KEY]`.
pub(crate) fn labels(field: &str, labels: &HashMap<String, String>) -> Result<(), Failure> {
    if labels.len() > MAX_LABELS {
        return Err(Failure::invalid(
            field,
            format!("has {} labels; at most {MAX_LABELS}", labels.len()),
        ));
    }
    for (key, value) in labels {
        let field = || format!("{field}[{}]", shown(key));
        label_key(field, key)?;
        label_value(field, value)?;
    }
    Ok(())
}

/// Checks annotations that a pod is to have.
///
/// # Errors
/// `INVALID` at `field`, or at `field[KEY]`.
pub(crate) fn annotations(
    field: &str,
    annotations: &HashMap<String, String>,
) -> Result<(), Failure> {
    let bytes = annotations.iter().fold(0_usize, |sum, (key, value)| {
        sum.saturating_add(key.len()).saturating_add(value.len())
    });
    if bytes > MAX_ANNOTATION_BYTES {
        return Err(Failure::invalid(
            field,
            format!("have {bytes} bytes together; at most {MAX_ANNOTATION_BYTES}"),
        ));
    }
    for key in annotations.keys() {
        annotation_key(|| format!("{field}[{}]", shown(key)), key)?;
    }
    Ok(())
}

const NAME_RULE: &str = "at most 63 letters, digits, `-`, `_` and `.`, beginning and ending \
                         with a letter or digit";

fn is_name(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Checks a label's key: `[prefix/]name`, the prefix a DNS subdomain.
pub(crate) fn label_key(field: impl Fn() -> String, key: &str) -> Result<(), Failure> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if !is_name(name) || !prefix.is_none_or(is_dns_subdomain) {
        return Err(Failure::invalid(
            field(),
            format!(
                "`{}` is no key: an optional DNS name and `/`, then {NAME_RULE}",
                shown(key)
            ),
        ));
    }
    Ok(())
}

/// As a label's, but the prefix may be in capitals too.
pub(crate) fn annotation_key(field: impl Fn() -> String, key: &str) -> Result<(), Failure> {
    label_key(field, &key.to_ascii_lowercase())
}

/// Checks a label's value: nothing, or a name.
pub(crate) fn label_value(field: impl Fn() -> String, value: &str) -> Result<(), Failure> {
    if value.is_empty() || is_name(value) {
        return Ok(());
    }
    Err(Failure::invalid(
        field(),
        format!("`{}` is no label value: {NAME_RULE}", shown(value)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_what_kubernetes_takes() {
        let key = |key: &str| label_key(|| "l".into(), key).is_ok();
        let value = |value: &str| label_value(|| "l".into(), value).is_ok();
        let annotation = |key: &str| annotation_key(|| "a".into(), key).is_ok();
        let (long, longer) = ("a".repeat(63), "a".repeat(64));
        let prefix = vec!["a".repeat(62); 4].join(".");
        for good in ["a", "A_b.c-9", "example.com/a", "1.2/x", &long] {
            assert!(key(good) && annotation(good), "{good}");
        }
        assert!(key(&format!("{prefix}/x")) && !key(&format!("{prefix}abc/x")));
        // A label of the prefix may be longer than a DNS label: so it is in Kubernetes.
        assert!(key(&format!("{longer}.com/x")));
        for bad in [
            "", "/a", "a/", "a/b/c", "-a", "a-", "a b", "ü", "a..b/c", "-a.b/c", &longer,
        ] {
            assert!(!key(bad) && !annotation(bad), "{bad}");
        }
        assert!(!key("Example.com/a") && annotation("Example.com/a"));
        for good in ["", "a", "1.0_x-y", &long] {
            assert!(value(good), "{good}");
        }
        for bad in ["-", "a b", "a/b", ".a", &longer] {
            assert!(!value(bad), "{bad}");
        }
    }

    #[test]
    fn annotations_have_256_kib_together() {
        let of = |bytes: usize| HashMap::from([("abcd".to_owned(), "x".repeat(bytes))]);
        assert_eq!(annotations("a", &of((256 << 10) - 4)), Ok(()));
        assert_eq!(
            annotations("a", &of((256 << 10) - 3)).unwrap_err().field,
            "a"
        );
    }
}
