//! What a card says of itself and its host.

use std::collections::BTreeSet;

use longship_proto::Failure;
use longship_proto::control::v1::Register;

use super::names::{dns_label, shown};
use crate::records::HostRecord;

/// More pods than any host can have.
const MAX_HELD: usize = 100_000;

/// A registration whose every field has been checked.
#[derive(Debug, Clone)]
pub(crate) struct ValidRegister {
    /// The host's name.
    pub(crate) host: String,
    /// What the card says of it.
    pub(crate) record: HostRecord,
    /// Uids of the pods that the card holds.
    pub(crate) held: BTreeSet<String>,
}

/// Checks a registration.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn register(register: Register) -> Result<ValidRegister, Failure> {
    dns_label("register.host", &register.host)?;
    dns_label("register.zone", &register.zone)?;
    if !register.family.is_empty() {
        dns_label("register.family", &register.family)?;
    }
    let capacity = register
        .capacity
        .ok_or_else(|| Failure::invalid("register.capacity", "must be given"))?;
    for (name, is_zero) in [
        ("cpu_millis", capacity.cpu_millis == 0),
        ("memory_bytes", capacity.memory_bytes == 0),
        ("pods", capacity.pods == 0),
    ] {
        if is_zero {
            return Err(Failure::invalid(
                format!("register.capacity.{name}"),
                "must not be 0",
            ));
        }
    }
    let endpoint = register.endpoint;
    let uri: Result<tonic::transport::Uri, _> = endpoint.parse();
    let scheme = uri.as_ref().ok().and_then(|uri| uri.scheme_str());
    if !matches!(scheme, Some("http" | "https")) {
        return Err(Failure::invalid(
            "register.endpoint",
            format!(
                "`{}` is no address like `http://HOST:PORT`",
                shown(&endpoint)
            ),
        ));
    }
    if register.held.len() > MAX_HELD {
        return Err(Failure::invalid(
            "register.held",
            format!("has {} pods; at most {MAX_HELD}", register.held.len()),
        ));
    }
    Ok(ValidRegister {
        host: register.host,
        record: HostRecord {
            zone: register.zone,
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            pods: capacity.pods,
            endpoint,
            family: register.family,
            enis: capacity.enis,
            disks: capacity.disks,
            gpus: capacity.gpus,
            ..HostRecord::default()
        },
        held: register.held.into_iter().map(|held| held.uid).collect(),
    })
}
