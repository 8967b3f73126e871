//! Page tokens: where a listing goes on. Clients hand them back unread.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use longship_proto::Failure;
use prost::Message;
use sha2::{Digest, Sha256};

/// The longest token, in bytes.
const MAX_BYTES: usize = 2048;

/// Where a listing goes on.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Place {
    /// After this key.
    #[prost(string, tag = "1")]
    pub after: String,
    /// Of the store, at the first page.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Begins the hash of what was asked.
    #[prost(fixed64, tag = "3")]
    pub asked: u64,
}

/// A short hash of what a listing asks for.
fn hash(asked: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for part in asked {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The token of what comes after `after`.
pub(crate) fn token(asked: &[&str], after: &str, version: u64) -> String {
    let place = Place {
        after: after.to_owned(),
        version,
        asked: hash(asked),
    };
    BASE64.encode(place.encode_to_vec())
}

/// Where to go on; `None` without a token.
///
/// # Errors
/// `INVALID` at `page_token`, where it is none, or one of another request.
pub(crate) fn place(asked: &[&str], token: &str) -> Result<Option<Place>, Failure> {
    let refused = |what| Failure::invalid("page_token", what);
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = (token.len() <= MAX_BYTES).then(|| BASE64.decode(token).ok());
    let place = bytes
        .flatten()
        .and_then(|bytes| Place::decode(&bytes[..]).ok());
    let place = place.ok_or_else(|| refused("is no token that an answer had"))?;
    if place.asked != hash(asked) {
        return Err(refused(
            "is of another request: only the limit may change between pages",
        ));
    }
    Ok(Some(place))
}

/// How many are wanted on a page.
///
/// # Errors
/// `INVALID` at `limit`.
pub(crate) fn limit(limit: u32) -> Result<usize, Failure> {
    const USUAL: usize = 500;
    const MOST: u32 = 5000;
    match limit {
        0 => Ok(USUAL),
        1..=MOST => usize::try_from(limit).map_err(|e| Failure::invalid("limit", e.to_string())),
        _ => Err(Failure::invalid(
            "limit",
            format!("is {limit}; at most {MOST}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_the_request_that_it_was_given_for() {
        let given = token(&["ns", "app=web"], "ns/a", 7);
        let place = place(&["ns", "app=web"], &given).unwrap().unwrap();
        assert_eq!((place.after.as_str(), place.version), ("ns/a", 7));
        assert_eq!(super::place(&["x"], ""), Ok(None));
        for (asked, token) in [
            (["ns", "app=db"], given.as_str()),
            (["nsa", "pp=web"], &given),
            (["ns", "app=web"], "garbage!"),
            (["ns", "app=web"], "AAAA"),
            (["ns", "app=web"], &"A".repeat(5000)),
        ] {
            assert_eq!(super::place(&asked, token).unwrap_err().field, "page_token");
        }
    }

    #[test]
    fn pages_have_bounds() {
        assert_eq!(
            (limit(0), limit(1), limit(5000)),
            (Ok(500), Ok(1), Ok(5000))
        );
        assert_eq!(limit(5001).unwrap_err().field, "limit");
    }
}
