//! Access tokens: what lets a client talk to a card about one pod.
//!
//! The control plane signs, the card verifies with the key it got when it
//! registered. A token is `base64url(payload) "." base64url(HMAC-SHA-256)`, both
//! without padding; the payload is an [`AccessToken`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use longship_framed::error::Failure;
use prost::Message;
use sha2::Sha256;

use crate::control::v1::AccessToken;

/// Longer tokens are refused unread, in bytes.
pub const MAX_TOKEN: usize = 1024;

/// Why a token does not open anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token at all.
    #[error("the access token is malformed")]
    Malformed,
    /// It was not signed with this key, or changed since.
    #[error("the access token's signature is wrong")]
    Signature,
    /// Its time is over.
    #[error("the access token has expired")]
    Expired,
    /// It was made for another pod.
    #[error("the access token is for another pod")]
    OtherPod,
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Failure::denied(error.to_string())
    }
}

/// The key of one host's card, made of the control plane's: with it the card checks
/// tokens of its own pods, and can make none for another's.
#[must_use]
pub fn host_key(key: &[u8], host: &str) -> Vec<u8> {
    let label = [b"longship card ", host.as_bytes()].concat();
    mac(key, &label).finalize().into_bytes().to_vec()
}

/// The token that says `payload`, signed with `key`.
#[must_use]
pub fn sign(key: &[u8], payload: &AccessToken) -> String {
    let bytes = payload.encode_to_vec();
    let signature = mac(key, &bytes).finalize().into_bytes();
    format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(signature)
    )
}

/// Checks that `token` was signed with `key`, is for the pod `pod_uid`, and still
/// holds at `now_us` (microseconds since the Unix epoch).
///
/// # Errors
/// Any [`TokenError`]. The signature is checked before anything in the payload.
pub fn verify(key: &[u8], token: &str, pod_uid: &str, now_us: i64) -> Result<(), TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Malformed);
    }
    let (payload, signature) = token.split_once('.').ok_or(TokenError::Malformed)?;
    let payload = decode(payload)?;
    mac(key, &payload)
        .verify_slice(&decode(signature)?)
        .map_err(|_| TokenError::Signature)?;
    let payload = AccessToken::decode(&payload[..]).map_err(|_| TokenError::Malformed)?;
    if payload.pod_uid != pod_uid {
        return Err(TokenError::OtherPod);
    }
    if payload.expires_us <= now_us {
        return Err(TokenError::Expired);
    }
    Ok(())
}

fn decode(text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| TokenError::Malformed)
}

fn mac(key: &[u8], bytes: &[u8]) -> Hmac<Sha256> {
    // HMAC takes a key of any length (RFC 2104); hmac's signature covers ciphers too.
    #[allow(clippy::expect_used)]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key length");
    mac.update(bytes);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"a key of the control plane";

    fn token() -> String {
        sign(
            KEY,
            &AccessToken {
                pod_uid: "pod-1".into(),
                expires_us: 1_000,
            },
        )
    }

    #[test]
    fn a_token_opens_its_own_pod_until_it_expires() {
        assert_eq!(verify(KEY, &token(), "pod-1", 999), Ok(()));
        assert_eq!(
            verify(KEY, &token(), "pod-1", 1_000),
            Err(TokenError::Expired)
        );
        assert_eq!(
            verify(KEY, &token(), "pod-2", 999),
            Err(TokenError::OtherPod)
        );
        assert_eq!(
            verify(b"another key", &token(), "pod-1", 999),
            Err(TokenError::Signature)
        );
    }

    #[test]
    fn each_host_has_a_key_of_its_own() {
        let (one, two) = (host_key(KEY, "host-1"), host_key(KEY, "host-2"));
        assert_ne!(one, two);
        assert_ne!(one, KEY);
        assert_eq!(one, host_key(KEY, "host-1"));
    }

    #[test]
    fn a_token_changed_in_any_place_is_refused() {
        let token = token();
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(KEY, &changed, "pod-1", 0).is_err(), "{changed}");
        }
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        for text in ["", ".", "a", "a.b.c", "=.=", &"a".repeat(MAX_TOKEN + 1)] {
            let refused = verify(KEY, text, "pod-1", 0);
            assert!(
                matches!(refused, Err(TokenError::Malformed | TokenError::Signature)),
                "{text}: {refused:?}"
            );
        }
    }
}
