//! Labels and annotations, by Kubernetes' rules.

use std::collections::HashMap;

use longship_proto::Failure;

use super::names::shown;

const MAX_LABELS: usize = 64;
const MAX_ANNOTATION_BYTES: usize = 64 << 10;

pub(super) fn labels(labels: &HashMap<String, String>) -> Result<(), Failure> {
    if labels.len() > MAX_LABELS {
        return Err(Failure::invalid(
            "metadata.labels",
            format!("has {} labels; at most {MAX_LABELS}", labels.len()),
        ));
    }
    for (key, value) in labels {
        let field = format!("metadata.labels[{}]", shown(key));
        qualified_key(&field, key)?;
        if !value.is_empty() && !is_name(value) {
            return Err(Failure::invalid(
                field,
                format!("`{}` is no label value: {NAME_RULE}", shown(value)),
            ));
        }
    }
    Ok(())
}

pub(super) fn annotations(annotations: &HashMap<String, String>) -> Result<(), Failure> {
    let mut bytes: usize = 0;
    for (key, value) in annotations {
        qualified_key(&format!("metadata.annotations[{}]", shown(key)), key)?;
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
    }
    if bytes > MAX_ANNOTATION_BYTES {
        return Err(Failure::invalid(
            "metadata.annotations",
            format!("have {bytes} bytes together; at most {MAX_ANNOTATION_BYTES}"),
        ));
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

/// `[prefix/]name`, the prefix a DNS name.
fn qualified_key(field: &str, key: &str) -> Result<(), Failure> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_dns_name = |prefix: &str| {
        prefix.len() <= 253
            && prefix
                .split('.')
                .all(|label| super::dns_label("", label).is_ok())
    };
    if !is_name(name) || !prefix.is_none_or(is_dns_name) {
        return Err(Failure::invalid(
            field,
            format!(
                "`{}` is no key: an optional DNS name and `/`, then {NAME_RULE}",
                shown(key)
            ),
        ));
    }
    Ok(())
}
