//! Extended attributes behind an inode (`struct erofs_xattr_ibody_header` and
//! `struct erofs_xattr_entry`).

use std::collections::BTreeMap;

use super::ErofsError;

/// The header's size in bytes.
const HEADER: usize = 12;

/// Prefixes that the format stores as numbers, `EROFS_XATTR_INDEX_*`.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// The bytes behind the inode; empty where there are no attributes. Attributes of
/// other families cannot be set on Linux either and are left out.
pub(super) fn encode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, ErofsError> {
    let mut bytes = vec![0; HEADER];
    for (name, value) in xattrs {
        let refused = || ErofsError::Xattr(String::from_utf8_lossy(name).into_owned());
        let Some((index, rest)) = cut_prefix(name) else {
            continue;
        };
        let name_length = u8::try_from(rest.len()).map_err(|_| refused())?;
        let value_length = u16::try_from(value.len()).map_err(|_| refused())?;
        bytes.extend([name_length, index]);
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        count(bytes.len()).ok_or_else(refused)?;
    }
    if bytes.len() == HEADER {
        bytes.clear();
    }
    Ok(bytes)
}

/// `i_xattr_icount` for that many bytes.
pub(super) fn count(bytes: usize) -> Option<u16> {
    match bytes.checked_sub(HEADER) {
        None => Some(0),
        Some(entries) => u16::try_from(entries / 4 + 1).ok(),
    }
}

fn cut_prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        // The ACLs are whole names, the others need one more part.
        (rest.is_empty() == matches!(index, 2 | 3)).then_some((index, rest))
    })
}
