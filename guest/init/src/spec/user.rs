//! Whose process it is, as an OCI image says it.

use std::str::FromStr;

/// `user`, `uid`, `user:group` or `uid:gid`; each part may be a name or a
/// number (OCI image configuration, `config.User`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserSpec {
    /// `0` where the text was empty.
    pub(crate) user: String,
    pub(crate) group: Option<String>,
}

impl FromStr for UserSpec {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // These end a field or a record of passwd(5), so no name has them.
        if text.contains(|c: char| c.is_control() || c == ',') {
            return Err(());
        }
        let (user, group) = match text.split_once(':') {
            None => (text, None),
            Some((user, group)) => (user, Some(group)),
        };
        if group.is_some_and(|group| group.is_empty() || group.contains(':')) {
            return Err(());
        }
        Ok(Self {
            user: if user.is_empty() { "0" } else { user }.to_owned(),
            group: group.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_four_forms_and_the_empty_one() {
        for (text, user, group) in [
            ("", "0", None),
            ("www", "www", None),
            ("1000", "1000", None),
            ("www:adm", "www", Some("adm")),
            (":5", "0", Some("5")),
        ] {
            let spec: UserSpec = text.parse().unwrap();
            assert_eq!((spec.user.as_str(), spec.group.as_deref()), (user, group));
        }
        for bad in ["a:", "a:b:c", "a\nb", "a,b", ":"] {
            assert!(bad.parse::<UserSpec>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_part_ever_holds_a_separator(text in "(?s).{0,20}") {
            if let Ok(spec) = text.parse::<UserSpec>() {
                let whole = format!("{}{}", spec.user, spec.group.unwrap_or_default());
                prop_assert!(!whole.contains([':', '\n', ',']));
            }
        }
    }
}
