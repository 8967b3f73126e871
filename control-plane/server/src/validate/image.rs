//! Syntax of image references.

use longship_proto::Failure;

use super::names::shown;

const MAX_REFERENCE: usize = 512;

/// Checks `[host[:port]/]path[:tag][@digest]` (the grammar of the OCI distribution
/// specification) or `oci:/dir[:tag]`. Whether there is such an image only the card
/// can tell.
pub(super) fn reference(field: &str, image: &str) -> Result<(), Failure> {
    if image.is_empty() {
        return Err(Failure::invalid(field, "must not be empty"));
    }
    if image.len() > MAX_REFERENCE {
        return Err(Failure::invalid(
            field,
            format!("has {} bytes; at most {MAX_REFERENCE}", image.len()),
        ));
    }
    let checked = match image.strip_prefix("oci:") {
        Some(layout) => oci_layout(layout),
        None => registry(image),
    };
    checked.map_err(|what| {
        Failure::invalid(
            field,
            format!("`{}` is no image reference: {what}", shown(image)),
        )
    })
}

fn oci_layout(layout: &str) -> Result<(), &'static str> {
    let (dir, tag) = match layout.rsplit_once(':') {
        Some((dir, tag)) => (dir, Some(tag)),
        None => (layout, None),
    };
    if !dir.starts_with('/') {
        return Err("the directory after `oci:` must be absolute");
    }
    if dir.chars().any(char::is_control) || dir.split('/').any(|part| part == "..") {
        return Err("the directory must not have `..` or control characters in it");
    }
    match tag {
        Some(tag) if !is_tag(tag) => Err(TAG_RULE),
        _ => Ok(()),
    }
}

fn registry(image: &str) -> Result<(), &'static str> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest must be `sha256:` and 64 lower-case hex digits");
    }
    // A colon after the last slash begins the tag; before it, a port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.get(last..).and_then(|tail| tail.split_once(':')) {
        Some((tail, tag)) => (rest.get(..last + tail.len()).unwrap_or(rest), Some(tag)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(TAG_RULE);
    }
    // The first part is a host if it looks like one; `a/b` is a path only.
    let path = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            if !is_host(host) {
                return Err("the registry must be a host name or address, with an optional port");
            }
            path
        }
        _ => name,
    };
    if path.split('/').all(is_path_part) {
        Ok(())
    } else {
        Err(
            "each part of the path must be lower-case letters and digits, separated by \
             `.`, `_`, `__` or `-`",
        )
    }
}

const TAG_RULE: &str = "the tag must be at most 128 letters, digits, `_`, `.` and `-`, not \
                        beginning with `.` or `-`";

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.split('.').all(part)
        && port.is_none_or(|port| port.parse().is_ok_and(|port: u16| port > 0))
}

/// `[a-z0-9]+([._]|__|-+ [a-z0-9]+)*`
fn is_path_part(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = part.split(word).filter(|between| !between.is_empty());
    part.starts_with(word)
        && part.ends_with(word)
        && separators.into_iter().all(|between| {
            matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_all_forms_are_taken() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for image in [
            "nginx",
            "library/nginx:1.27",
            "docker.io/library/nginx:1.27-alpine",
            "127.0.0.1:5000/hello:latest",
            "localhost/hello",
            "localhost:5000/a/b-c/d__e.f:V1_0",
            "oci:/srv/images/hello",
            "oci:/srv/images/hello:v1",
            &format!("registry.example.com/app@{digest}"),
            &format!("registry.example.com/app:1@{digest}"),
        ] {
            assert_eq!(reference("image", image), Ok(()), "{image}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_field() {
        for image in [
            "",
            "Nginx",
            "nginx:",
            "nginx:.x",
            "nginx@sha256:12",
            "nginx@md5:0",
            "/nginx",
            "a//b",
            "a/b/",
            "http://host/a",
            "host:99999/a",
            "host:port/a",
            "-a.b/c",
            "a..b/c",
            "a b",
            "a.-b",
            "oci:images/hello",
            "oci:/srv/../etc",
            "oci:/srv/a:b c",
            "ümlaut",
            &"a".repeat(MAX_REFERENCE + 1),
        ] {
            let refused = reference("spec.image", image).unwrap_err();
            assert_eq!(refused.field, "spec.image", "{image}");
        }
    }
}
