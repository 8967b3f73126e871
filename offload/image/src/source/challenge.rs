//! `WWW-Authenticate: Bearer …` (RFC 6750, and the distribution spec's token flow).

use std::collections::HashMap;

/// Where a token is to be had, and for what.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// None where the header asks for something else than a bearer token.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut values = parse_parameters(parameters)?;
        Some(Self {
            realm: values.remove("realm")?,
            service: values.remove("service"),
            scope: values.remove("scope"),
        })
    }
}

/// `name=token` or `name="quoted"`, separated by commas.
fn parse_parameters(text: &str) -> Option<HashMap<String, String>> {
    let mut values = HashMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => cut_quoted(quoted)?,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                let (value, after) = after.split_at(end);
                (value.trim().to_owned(), after)
            }
        };
        values.insert(name.trim().to_ascii_lowercase(), value);
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some(values)
}

/// The text up to the closing quote, and what is behind it.
fn cut_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_challenge_is_understood() {
        let header = r#"Bearer realm="https://auth.example/token",service="r.example", scope="repository:a/b:pull,push""#;
        let challenge = Challenge::parse(header).unwrap();
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(challenge.service.as_deref(), Some("r.example"));
        assert_eq!(challenge.scope.as_deref(), Some("repository:a/b:pull,push"));
        let bare = Challenge::parse("bearer realm=http://x/y").unwrap();
        assert_eq!(bare.realm, "http://x/y");
    }

    #[test]
    fn other_challenges_are_not() {
        for header in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer realm=\"x",
            "Bearer service=\"x\"",
        ] {
            assert_eq!(Challenge::parse(header), None, "{header}");
        }
    }
}
