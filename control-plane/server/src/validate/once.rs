//! Keys that make it harmless to ask for new pods twice.

use longship_proto::Failure;
use prost::Message;
use sha2::{Digest, Sha256};

use super::pod::NewPod;

const MAX_KEY: usize = 64;

/// A key, and what was asked for with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Once {
    pub(crate) key: String,
    /// Of the request as it was checked, its defaults filled in.
    pub(crate) hash: [u8; 32],
}

/// Checks a key; `None` where none was given. `more` is what the request says beside its
/// pods.
///
/// # Errors
/// `INVALID` at `idempotency_key`.
pub(crate) fn once<'a>(
    key: String,
    more: &str,
    pods: impl IntoIterator<Item = &'a NewPod>,
) -> Result<Option<Once>, Failure> {
    if key.is_empty() {
        return Ok(None);
    }
    if key.len() > MAX_KEY || !key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(Failure::invalid(
            "idempotency_key",
            format!("must be at most {MAX_KEY} printable ASCII characters"),
        ));
    }
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    };
    add(more.as_bytes());
    for pod in pods {
        add(pod.metadata.namespace.as_bytes());
        add(pod.metadata.name.as_bytes());
        // A map's order is no part of what was asked for.
        for map in [&pod.metadata.labels, &pod.metadata.annotations] {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_unstable();
            add(&pairs.len().to_le_bytes());
            for (key, value) in pairs {
                add(key.as_bytes());
                add(value.as_bytes());
            }
        }
        add(&pod.spec.encode_to_vec());
    }
    let hash = hash.finalize().into();
    Ok(Some(Once { key, hash }))
}
