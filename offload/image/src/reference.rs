//! Image references, normalised as Docker does, and OCI layouts on disk.
//!
//! Pure: nothing is opened or asked. The grammar is that of the OCI distribution
//! spec and of Docker's `distribution/reference`.

use std::fmt;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use longship_framed::error::Failure;

use crate::digest::{Digest, DigestError};

/// The longest reference that is looked at, in bytes.
const MAX_REFERENCE: usize = 4096;
/// The longest repository name with its registry, in bytes.
const MAX_NAME: usize = 255;
/// The longest tag, in bytes.
const MAX_TAG: usize = 128;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A repository of a registry.
    Registry(RegistryReference),
    /// A directory with an OCI image layout.
    Layout(LayoutReference),
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// `host` or `host:port`, as in the reference: `docker.io`, not Docker's API host.
    pub registry: String,
    /// E.g. `library/busybox`.
    pub repository: String,
    /// Which of the repository's manifests.
    pub selector: Selector,
}

/// An image in an OCI image layout on disk: `oci:/abs/dir`, `oci:/abs/dir:tag`
/// or `oci:/abs/dir@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutReference {
    /// The layout's directory, absolute.
    pub directory: PathBuf,
    /// Which of its manifests; absent: the only one.
    pub selector: Option<Selector>,
}

/// A manifest by its name or by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// May point elsewhere tomorrow.
    Tag(String),
    /// Always the same bytes. A tag beside a digest says nothing more and is dropped.
    Digest(Digest),
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {reference:?}: {problem}")]
pub struct ReferenceError {
    reference: String,
    problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {MAX_REFERENCE} bytes")]
    TooLong,
    #[error("the registry {0:?} is no host name or address with an optional port")]
    Registry(String),
    #[error("the repository {0:?} is not made of lower-case letters, digits and single separators")]
    Repository(String),
    #[error("registry and repository are longer than {MAX_NAME} bytes")]
    NameTooLong,
    #[error(
        "the tag {0:?} is not 1 to {MAX_TAG} letters, digits, '_', '.', '-', beginning with neither '.' nor '-'"
    )]
    Tag(String),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("an OCI layout needs an absolute directory without '..': oci:/dir[:tag]")]
    Directory,
}

/// Checks that `reference` can name an image, without looking for it.
///
/// # Errors
/// [`ReferenceError`] says what is wrong with which part.
pub fn validate_reference(reference: &str) -> Result<(), ReferenceError> {
    reference.parse::<Reference>().map(drop)
}

impl ReferenceError {
    /// The reason in CamelCase, the same for all of these.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "InvalidReference"
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Failure::invalid("", error.to_string())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|problem| ReferenceError {
            reference: text.chars().take(200).collect(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<Reference, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.len() > MAX_REFERENCE {
        return Err(Problem::TooLong);
    }
    if let Some(layout) = text.strip_prefix("oci:") {
        return parse_layout(layout).map(Reference::Layout);
    }
    let (name, tag, digest) = split_selector(text)?;
    let selector = match (tag, digest) {
        (_, Some(digest)) => Selector::Digest(digest),
        (Some(tag), None) => Selector::Tag(tag),
        (None, None) => Selector::Tag("latest".to_owned()),
    };
    let (registry, repository) = split_registry(name);
    if !is_registry(registry) {
        return Err(Problem::Registry(registry.to_owned()));
    }
    if !is_repository(repository) {
        return Err(Problem::Repository(repository.to_owned()));
    }
    let repository = if registry == "docker.io" && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(Problem::NameTooLong);
    }
    Ok(Reference::Registry(RegistryReference {
        registry: registry.to_owned(),
        repository,
        selector,
    }))
}

fn parse_layout(text: &str) -> Result<LayoutReference, Problem> {
    let (directory, tag, digest) = split_selector(text)?;
    let directory = PathBuf::from(directory);
    let climbs = directory
        .components()
        .any(|part| part == Component::ParentDir);
    if !directory.is_absolute() || climbs || directory.to_string_lossy().contains('\0') {
        return Err(Problem::Directory);
    }
    Ok(LayoutReference {
        directory,
        selector: digest.map(Selector::Digest).or(tag.map(Selector::Tag)),
    })
}

/// Cuts `name[:tag][@digest]`.
fn split_selector(text: &str) -> Result<(&str, Option<String>, Option<Digest>), Problem> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse()?)),
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => {
            if !is_tag(tag) {
                return Err(Problem::Tag(tag.to_owned()));
            }
            Ok((name, Some(tag.to_owned()), digest))
        }
        _ => Ok((rest, None, digest)),
    }
}

/// The first component is a registry where it looks like a host: it has a dot or
/// a port, or is `localhost`. Else the registry is Docker's.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
            let host = if host == "index.docker.io" {
                "docker.io"
            } else {
                host
            };
            (host, rest)
        }
        _ => ("docker.io", name),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
    });
    let host_fits = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || c == b'-')
        }),
    };
    port_fits && host_fits
}

fn is_repository(text: &str) -> bool {
    text.split('/').all(is_repository_component)
}

/// Runs of lower-case letters and digits, with `.`, `_`, `__` or dashes between.
fn is_repository_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut rest = component;
    loop {
        let after = rest.trim_start_matches(alphanumeric);
        if after.len() == rest.len() {
            return false;
        }
        if after.is_empty() {
            return true;
        }
        rest = after.trim_start_matches(|c: char| !alphanumeric(c));
        let separator = &after[..after.len() - rest.len()];
        let known = matches!(separator, "." | "_" | "__") || separator.bytes().all(|c| c == b'-');
        if !known {
            return false;
        }
    }
}

fn is_tag(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout(reference) => reference.fmt(f),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.selector)
    }
}

impl fmt::Display for LayoutReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.directory.display())?;
        match &self.selector {
            Some(selector) => selector.fmt(f),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn normal(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn references_are_normalised_as_docker_does() {
        for (text, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b_c:X", "127.0.0.1:5000/a/b_c:X"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("ghcr.io/a/b-c__d.e", "ghcr.io/a/b-c__d.e:latest"),
            ("oci:/srv/images", "oci:/srv/images"),
            ("oci:/srv/images:v1", "oci:/srv/images:v1"),
        ] {
            assert_eq!(normal(text), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_takes_the_place_of_a_tag() {
        let expected = format!("docker.io/library/app@{DIGEST}");
        assert_eq!(normal(&format!("app@{DIGEST}")), expected);
        assert_eq!(normal(&format!("app:v1@{DIGEST}")), expected);
        let layout = format!("oci:/srv/images@{DIGEST}");
        assert_eq!(normal(&layout), layout);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_part_at_fault() {
        for (text, part) in [
            ("", "empty"),
            ("Busybox", "repository"),
            ("a//b", "repository"),
            ("a/../b", "repository"),
            ("a._b", "repository"),
            ("a/b-", "repository"),
            ("app:", "tag"),
            ("app:-x", "tag"),
            ("app@sha256:12", "digest"),
            ("host.example:99999/app", "registry"),
            ("-bad.example/app", "registry"),
            ("https://host.example/app", "registry"),
            ("oci:relative/dir", "absolute"),
            ("oci:/a/../../b", "absolute"),
            ("oci:", "absolute"),
        ] {
            let refused = validate_reference(text).unwrap_err().to_string();
            assert!(refused.contains(part), "{text}: {refused}");
        }
        assert!(validate_reference(&format!("app:{}", "t".repeat(129))).is_err());
        assert!(validate_reference(&"a".repeat(5000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_normalised_for_good(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }

        #[test]
        fn a_normal_reference_stays_as_it_is(
            host in "[a-z][a-z0-9]{0,8}\\.example(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3}|/)[a-z0-9]{1,8}){0,4}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let text = format!("{host}/{path}:{tag}");
            prop_assert_eq!(normal(&text), text);
        }
    }
}
