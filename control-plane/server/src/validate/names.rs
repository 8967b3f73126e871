//! Names that become host names, directory names and labels.

use longship_proto::Failure;

/// Checks a DNS label (RFC 1123): what namespaces, pods, containers, zones, hosts
/// and VPCs are called.
///
/// # Errors
/// `INVALID` at `field`.
pub(crate) fn dns_label(field: &str, name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::invalid(field, "must not be empty"));
    }
    if name.len() > 63 {
        return Err(Failure::invalid(
            field,
            format!("has {} characters; at most 63", name.len()),
        ));
    }
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.bytes().all(allowed) || name.starts_with('-') || name.ends_with('-') {
        return Err(Failure::invalid(
            field,
            format!(
                "`{}` is no DNS label: lower-case letters, digits and `-`, beginning and \
                 ending with a letter or digit",
                shown(name)
            ),
        ));
    }
    Ok(())
}

/// Whether that is a DNS subdomain as Kubernetes has it (RFC 1123): labels with dots
/// between, 253 characters together.
pub(super) fn is_dns_subdomain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(allowed)
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// The namespace that was given, or `default`.
///
/// # Errors
/// `INVALID` at `field`.
pub(crate) fn namespace_or_default(field: &str, namespace: String) -> Result<String, Failure> {
    if namespace.is_empty() {
        return Ok("default".into());
    }
    dns_label(field, &namespace)?;
    Ok(namespace)
}

/// A part of what somebody sent, short and harmless enough for a message.
pub(crate) fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let ellipsis = if short.len() < text.len() { "…" } else { "" };
    format!("{}{ellipsis}", short.escape_debug())
}
