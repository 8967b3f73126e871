//! What cards ask for, checked as a whole before anything is done.

use std::path::PathBuf;

use longship_framed::error::Failure;
use longship_framed::vmm::DeviceType;
use longship_proto::agent::v1 as wire;

use crate::shape::{Profile, Shape};

/// Pages of this size back a guest, so its memory is a multiple of them.
const MEMORY_UNIT: u64 = 2 << 20;
/// Less does not hold a Linux guest and its containers.
const MEMORY_MIN: u64 = 64 << 20;
const VCPUS_MAX: u32 = 64;
/// The kernel accepts no less CPU time than a millisecond in a period of a hundred.
const CPU_MILLIS_MIN: u32 = 10;
/// As many as a PCI bus has room for, with some to spare.
const DEVICES_MAX: usize = 16;
/// Longest path of a UNIX socket (unix(7), `sun_path` without its NUL).
const SOCKET_PATH_MAX: usize = 107;

/// A sandbox's name: 1 to 64 characters of `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SandboxId(String);

impl SandboxId {
    /// # Errors
    /// `Invalid` at `id`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let valid = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(valid) {
            return Err(Failure::invalid(
                "id",
                "must be 1 to 64 characters of a-z, 0-9 and -",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for SandboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sandbox to prepare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) id: SandboxId,
    pub(crate) generation: u64,
    pub(crate) shape: Shape,
    /// Thousandths of a CPU.
    pub(crate) cpu_millis: Option<u32>,
}

impl Spec {
    /// # Errors
    /// `Invalid` at the first field that is wrong.
    pub(crate) fn parse(request: &wire::PrepareSandboxRequest) -> Result<Self, Failure> {
        let id = SandboxId::parse(&request.id)?;
        if !(1..=VCPUS_MAX).contains(&request.vcpus) {
            return Err(Failure::invalid(
                "vcpus",
                format!("must be 1 to {VCPUS_MAX}, not {}", request.vcpus),
            ));
        }
        if request.memory_bytes < MEMORY_MIN {
            return Err(Failure::invalid(
                "memory_bytes",
                format!(
                    "must be at least {MEMORY_MIN} (64 MiB), not {}",
                    request.memory_bytes
                ),
            ));
        }
        if !request.memory_bytes.is_multiple_of(MEMORY_UNIT) {
            return Err(Failure::invalid(
                "memory_bytes",
                format!("must be a multiple of 2 MiB, not {}", request.memory_bytes),
            ));
        }
        let cpu_millis = match request.cpu_millis {
            0 => None,
            millis if millis < CPU_MILLIS_MIN => {
                return Err(Failure::invalid(
                    "cpu_millis",
                    format!("must be 0 (no limit) or at least {CPU_MILLIS_MIN}, not {millis}"),
                ));
            }
            millis => Some(millis),
        };
        let profile = Profile::from_wire(request.profile)
            .ok_or_else(|| Failure::invalid("profile", "is unknown to this version"))?;
        Ok(Self {
            id,
            generation: request.generation,
            shape: Shape {
                vcpus: request.vcpus,
                memory_bytes: request.memory_bytes,
                profile,
            },
            cpu_millis,
        })
    }
}

/// A device to attach, served by a vhost-user backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) kind: DeviceType,
    /// Where the backend listens.
    pub(crate) socket: PathBuf,
    /// The field that named it, for a failure.
    pub(crate) field: String,
}

/// # Errors
/// `Invalid` at the first device that is wrong.
pub(crate) fn parse_devices(handles: &[wire::DeviceHandle]) -> Result<Vec<Device>, Failure> {
    if handles.len() > DEVICES_MAX {
        return Err(Failure::invalid(
            "devices",
            format!("at most {DEVICES_MAX} fit, not {}", handles.len()),
        ));
    }
    handles
        .iter()
        .enumerate()
        .map(|(index, handle)| parse_device(index, handle))
        .collect()
}

fn parse_device(index: usize, handle: &wire::DeviceHandle) -> Result<Device, Failure> {
    let field = format!("devices[{index}]");
    match &handle.handle {
        None => Err(Failure::invalid(field, "names no device")),
        Some(wire::device_handle::Handle::Vfio(_)) => Err(Failure::invalid(
            format!("{field}.vfio"),
            "VFIO devices are not supported yet",
        )),
        Some(wire::device_handle::Handle::VhostUser(device)) => {
            let kind = match device.r#type() {
                wire::DeviceType::Net => DeviceType::Net,
                wire::DeviceType::Block => DeviceType::Block,
                wire::DeviceType::Vsock => DeviceType::Vsock,
                wire::DeviceType::Unspecified => {
                    return Err(Failure::invalid(
                        format!("{field}.vhost_user.type"),
                        "must be net, block or vsock",
                    ));
                }
            };
            let field = format!("{field}.vhost_user.socket");
            if !device.socket.starts_with('/') || device.socket.contains('\0') {
                return Err(Failure::invalid(field, "must be an absolute path"));
            }
            if device.socket.len() > SOCKET_PATH_MAX {
                return Err(Failure::invalid(
                    field,
                    format!("must be at most {SOCKET_PATH_MAX} bytes long"),
                ));
            }
            Ok(Device {
                kind,
                socket: PathBuf::from(&device.socket),
                field,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use longship_framed::error::Class;
    use proptest::prelude::*;

    use super::*;

    fn good() -> wire::PrepareSandboxRequest {
        wire::PrepareSandboxRequest {
            id: "pod-1".into(),
            generation: 3,
            vcpus: 2,
            memory_bytes: 128 << 20,
            cpu_millis: 500,
            profile: 0,
        }
    }

    #[test]
    fn a_good_request_becomes_a_spec() {
        let spec = Spec::parse(&good()).unwrap();
        assert_eq!(spec.cpu_millis, Some(500));
        let unlimited = wire::PrepareSandboxRequest {
            cpu_millis: 0,
            ..good()
        };
        assert_eq!(Spec::parse(&unlimited).unwrap().cpu_millis, None);
    }

    #[test]
    fn each_wrong_field_is_named() {
        let wrong: [(&str, wire::PrepareSandboxRequest); 9] = [
            (
                "id",
                wire::PrepareSandboxRequest {
                    id: String::new(),
                    ..good()
                },
            ),
            (
                "id",
                wire::PrepareSandboxRequest {
                    id: "../x".into(),
                    ..good()
                },
            ),
            (
                "id",
                wire::PrepareSandboxRequest {
                    id: "a".repeat(65),
                    ..good()
                },
            ),
            ("vcpus", wire::PrepareSandboxRequest { vcpus: 0, ..good() }),
            (
                "vcpus",
                wire::PrepareSandboxRequest {
                    vcpus: 65,
                    ..good()
                },
            ),
            (
                "memory_bytes",
                wire::PrepareSandboxRequest {
                    memory_bytes: 62 << 20,
                    ..good()
                },
            ),
            (
                "memory_bytes",
                wire::PrepareSandboxRequest {
                    memory_bytes: 65 << 20,
                    ..good()
                },
            ),
            (
                "cpu_millis",
                wire::PrepareSandboxRequest {
                    cpu_millis: 9,
                    ..good()
                },
            ),
            (
                "profile",
                wire::PrepareSandboxRequest {
                    profile: 7,
                    ..good()
                },
            ),
        ];
        for (field, request) in wrong {
            let failure = Spec::parse(&request).unwrap_err();
            assert_eq!(
                (failure.class(), failure.field.as_str()),
                (Class::Invalid, field)
            );
        }
    }

    fn vhost_user(kind: wire::DeviceType, socket: &str) -> wire::DeviceHandle {
        wire::DeviceHandle {
            handle: Some(wire::device_handle::Handle::VhostUser(wire::VhostUser {
                r#type: kind.into(),
                socket: socket.into(),
            })),
        }
    }

    #[test]
    fn each_wrong_device_is_named_with_its_index() {
        let good = vhost_user(wire::DeviceType::Net, "/run/net.sock");
        let vfio = wire::DeviceHandle {
            handle: Some(wire::device_handle::Handle::Vfio(wire::Vfio {
                pci_address: "0000:01:00.0".into(),
            })),
        };
        let long = format!("/{}", "s".repeat(107));
        for (field, wrong) in [
            ("devices[1]", wire::DeviceHandle { handle: None }),
            ("devices[1].vfio", vfio),
            (
                "devices[1].vhost_user.type",
                vhost_user(wire::DeviceType::Unspecified, "/s"),
            ),
            (
                "devices[1].vhost_user.socket",
                vhost_user(wire::DeviceType::Block, "s"),
            ),
            (
                "devices[1].vhost_user.socket",
                vhost_user(wire::DeviceType::Block, &long),
            ),
        ] {
            let failure = parse_devices(&[good.clone(), wrong]).unwrap_err();
            assert_eq!(failure.field, field, "{failure}");
        }
        assert_eq!(parse_devices(&[good]).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn every_id_that_is_accepted_is_a_plain_word(text in ".{0,70}") {
            if let Ok(id) = SandboxId::parse(&text) {
                let id = id.to_string();
                let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
                prop_assert!((1..=64).contains(&id.len()) && id.chars().all(plain), "{}", id);
            }
        }
    }
}
