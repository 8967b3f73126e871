//! Why a request was refused or has to wait, in words for whoever asked.

use std::fmt;

use crate::flavor::Flavor;
use crate::placement::{PodId, SANDBOX_OVERHEAD_BYTES};
use crate::quantity::{bytes_text, cpus_text};

/// The request can never be met as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No host is in that zone.
    #[error("no zone `{zone}`: {}", known_text("zones", known))]
    UnknownZone {
        /// The zone asked for.
        zone: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// The table has no such flavor.
    #[error("no flavor `{flavor}`: {}", known_text("flavors", known))]
    UnknownFlavor {
        /// The flavor asked for.
        flavor: String,
        /// Those that exist, the smallest first.
        known: Vec<String>,
    },
    /// The flavor asked for has less than the resources asked for.
    #[error(
        "flavor `{}` has {} and {}, less than the {} and {} asked for",
        flavor.name, cpus_text(flavor.cpu_millis), bytes_text(flavor.memory_bytes),
        cpus_text(*cpu_millis), bytes_text(*memory_bytes)
    )]
    FlavorTooSmall {
        /// The flavor asked for.
        flavor: Flavor,
        /// CPU asked for, in thousandths.
        cpu_millis: u32,
        /// Memory asked for, in bytes.
        memory_bytes: u64,
    },
    /// No flavor is large enough.
    #[error(
        "no flavor has {} and {}: the largest is `{largest}`",
        cpus_text(*cpu_millis), bytes_text(*memory_bytes)
    )]
    TooLarge {
        /// CPU asked for, in thousandths.
        cpu_millis: u32,
        /// Memory asked for, in bytes.
        memory_bytes: u64,
        /// Name of the largest flavor.
        largest: String,
    },
}

fn known_text(what: &str, known: &[String]) -> String {
    if known.is_empty() {
        return format!("there are no {what} yet");
    }
    format!("the {what} are {}", known.join(", "))
}

/// There is no room now; there may be later. `zone` is the zone asked for, `None`
/// where any would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Nobody has registered a host.
    NoHost,
    /// Hosts exist, but none can take a pod now.
    NoneReady {
        /// The zone asked for.
        zone: Option<String>,
        /// How many hosts there are.
        hosts: usize,
    },
    /// No host has the CPU.
    Cpu {
        /// The zone asked for.
        zone: Option<String>,
        /// Wanted, in thousandths of a CPU.
        need_millis: u32,
        /// The most that any host has free, rounded down to the step.
        largest_millis: u32,
    },
    /// No host has the memory.
    Memory {
        /// The zone asked for.
        zone: Option<String>,
        /// Wanted in bytes, without the sandbox's overhead.
        need_bytes: u64,
        /// The most that any host has free.
        largest_bytes: u64,
    },
    /// Some hosts have the CPU, others the memory, none has both.
    Both {
        /// The zone asked for.
        zone: Option<String>,
        /// Wanted, in thousandths of a CPU.
        need_millis: u32,
        /// Wanted in bytes, without the sandbox's overhead.
        need_bytes: u64,
    },
    /// Every host runs as many pods as it may.
    Pods {
        /// The zone asked for.
        zone: Option<String>,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |zone: &Option<String>| match zone {
            Some(zone) => format!(" in zone {zone}"),
            None => String::new(),
        };
        match self {
            Self::NoHost => f.write_str("no host has registered yet"),
            Self::NoneReady { zone, hosts: 1 } => {
                write!(f, "the only host{} is unreachable", place(zone))
            }
            Self::NoneReady { zone, hosts } => {
                write!(f, "all {hosts} hosts{} are unreachable", place(zone))
            }
            Self::Cpu {
                zone,
                need_millis,
                largest_millis,
            } => write!(
                f,
                "no host{} has {} free: the largest gap is {}",
                place(zone),
                cpus_text(*need_millis),
                cpus_text(*largest_millis)
            ),
            Self::Memory {
                zone,
                need_bytes,
                largest_bytes,
            } => write!(
                f,
                "no host{} has {} of memory free (and {} for the sandbox itself): \
                 the largest gap is {}",
                place(zone),
                bytes_text(*need_bytes),
                bytes_text(SANDBOX_OVERHEAD_BYTES),
                bytes_text(*largest_bytes)
            ),
            Self::Both {
                zone,
                need_millis,
                need_bytes,
            } => write!(
                f,
                "no host{} has both {} and {} of memory free",
                place(zone),
                cpus_text(*need_millis),
                bytes_text(*need_bytes)
            ),
            Self::Pods { zone } => {
                write!(f, "every host{} runs as many pods as it may", place(zone))
            }
        }
    }
}

/// Why no place was reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Never.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not now.
    #[error("{0}")]
    Wait(Wait),
    /// The pod has its place already.
    #[error("pod {pod} is already placed on {host}")]
    AlreadyPlaced {
        /// The pod.
        pod: PodId,
        /// Where it is.
        host: String,
    },
}
