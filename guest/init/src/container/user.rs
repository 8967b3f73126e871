//! Who a process is, from the image's own passwd(5) and group(5).

use crate::spec::UserSpec;

/// The numbers that the kernel knows, and the home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups; none where a group was asked for by name.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// What is wrong with the user that was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UserError {
    /// It is no number and not in /etc/passwd.
    #[error("no user {0:?} in the image's /etc/passwd")]
    NoUser(String),
    /// It is no number and not in /etc/group.
    #[error("no group {0:?} in the image's /etc/group")]
    NoGroup(String),
}

/// A record of passwd(5).
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A record of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Looks the user up, by name first, then as a number.
///
/// # Errors
/// [`UserError`].
pub(super) fn identity(spec: &UserSpec, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let number = number(&spec.user);
    let record = users(passwd)
        .find(|user| user.name == spec.user)
        .or_else(|| users(passwd).find(|user| Some(user.uid) == number));
    let uid = record
        .as_ref()
        .map(|user| user.uid)
        .or(number)
        .ok_or_else(|| UserError::NoUser(spec.user.clone()))?;
    let home = record.as_ref().map_or("/", |user| user.home);
    let (gid, groups) = match &spec.group {
        Some(name) => (group_id(name, group)?, Vec::new()),
        None => {
            let gid = record.as_ref().map_or(0, |user| user.gid);
            let mut ids = Vec::new();
            if let Some(user) = &record {
                let listed = |group: &Group<'_>| group.members.split(',').any(|m| m == user.name);
                ids.extend(groups(group).filter(listed).map(|group| group.gid));
            }
            (gid, ids)
        }
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home: if home.is_empty() { "/" } else { home }.to_owned(),
    })
}

fn group_id(name: &str, text: &str) -> Result<u32, UserError> {
    groups(text)
        .find(|group| group.name == name)
        .map(|group| group.gid)
        .or_else(|| number(name))
        .ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

/// A user's or group's number. The largest means "leave as it is" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n != u32::MAX)
}

/// The records of passwd(5); lines that are none are passed over.
fn users(text: &str) -> impl Iterator<Item = User<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let (_, home) = (fields.next()?, fields.next()?);
        Some(User {
            name,
            uid: number(uid)?,
            gid: number(gid)?,
            home,
        })
    })
}

/// The records of group(5); lines that are none are passed over.
fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group {
            name,
            gid: number(gid)?,
            members: fields.next().unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken:x:1\n\
        www:x:33:33:www:/var/www:/sbin/nologin\n1000:x:5:6::/num:\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:syslog,www\ntape:x:26:www\nlp:x:7:wwwx\n";

    fn who(spec: &str) -> Result<Identity, UserError> {
        identity(&spec.parse().unwrap(), PASSWD, GROUP)
    }

    fn id(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Identity, UserError> {
        Ok(Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        })
    }

    #[test]
    fn every_form_of_user() {
        assert_eq!(who(""), id(0, 0, &[], "/root"));
        assert_eq!(who("www"), id(33, 33, &[4, 26], "/var/www"));
        assert_eq!(who("33"), id(33, 33, &[4, 26], "/var/www"));
        assert_eq!(who("www:adm"), id(33, 4, &[], "/var/www"));
        assert_eq!(who("33:12"), id(33, 12, &[], "/var/www"));
        assert_eq!(who("77"), id(77, 0, &[], "/"));
        assert_eq!(who("77:78"), id(77, 78, &[], "/"));
        assert_eq!(
            who("1000"),
            id(5, 6, &[], "/num"),
            "a name of digits is a name"
        );
    }

    #[test]
    fn the_unknown_is_refused_by_name() {
        assert_eq!(who("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(who("broken"), Err(UserError::NoUser("broken".into())));
        assert_eq!(who("www:wheel"), Err(UserError::NoGroup("wheel".into())));
        assert_eq!(
            who("4294967295"),
            Err(UserError::NoUser("4294967295".into()))
        );
        assert_eq!(who("+1"), Err(UserError::NoUser("+1".into())));
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic_and_never_change_a_number(
            passwd in "(?s).{0,80}", group in "(?s)([a-z0-9:,\n]{0,80})", uid in 0..u32::MAX,
        ) {
            let spec = format!("{uid}:{uid}").parse().unwrap();
            if let Ok(who) = identity(&spec, &passwd, &group) {
                let named = users(&passwd).any(|u| u.name == uid.to_string());
                prop_assert!(who.uid == uid || named);
            }
        }

        #[test]
        fn records_are_read_back(
            name in "[a-z_][a-z0-9_-]{0,10}", uid in 0..u32::MAX, gid in 0..u32::MAX, home in "/[a-z/]{0,9}",
        ) {
            let passwd = format!("root:x:0:0::/root:/bin/sh\n{name}:x:{uid}:{gid}::{home}:/bin/sh\n");
            prop_assume!(name != "root");
            let who = identity(&name.parse().unwrap(), &passwd, "").unwrap();
            prop_assert_eq!(who, Identity { uid, gid, groups: vec![], home });
        }
    }
}
