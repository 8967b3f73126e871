//! Why a request was refused, in words for whoever asked.

use crate::flavor::{Flavor, MAX_GPUS};
use crate::levels::{MAX_DISKS, MAX_ENIS};
use crate::placement::PodId;
use crate::quantity::{bytes_text, cpus_text};
use crate::tenant::Limited;

/// The request can never be met as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
        "flavor `{}` has {}, less than the {} asked for",
        flavor.name,
        size_text(flavor.cpu_millis, flavor.memory_bytes, flavor.gpus),
        size_text(*cpu_millis, *memory_bytes, *gpus)
    )]
    FlavorTooSmall {
        /// The flavor asked for.
        flavor: Flavor,
        /// CPU asked for, in thousandths.
        cpu_millis: u32,
        /// Memory asked for, in bytes.
        memory_bytes: u64,
        /// GPUs asked for.
        gpus: u32,
    },
    /// No flavor is large enough.
    #[error(
        "no flavor has {}: the largest is `{largest}`",
        size_text(*cpu_millis, *memory_bytes, *gpus)
    )]
    TooLarge {
        /// CPU asked for, in thousandths.
        cpu_millis: u32,
        /// Memory asked for, in bytes.
        memory_bytes: u64,
        /// GPUs asked for.
        gpus: u32,
        /// Name of the largest flavor.
        largest: String,
    },
    /// No flavor is of that family.
    #[error("no flavor is of the family `{0}`")]
    UnknownFamily(String),
    /// A family beside named flavors, which have theirs.
    #[error("a family and flavors cannot both be asked for")]
    FamilyAndFlavors,
    /// More ENIs than a pod may have.
    #[error("{0} ENIs: a pod may have {MAX_ENIS}")]
    Enis(u32),
    /// More disks than a pod may have.
    #[error("{0} disks: a pod may have {MAX_DISKS}")]
    Disks(u32),
    /// More GPUs than a pod may have.
    #[error("{0} GPUs: a pod may have {MAX_GPUS}")]
    Gpus(u32),
    /// A list of zones with none in it.
    #[error("the list of zones is empty")]
    NoZones,
    /// A spread that nothing could meet.
    #[error("a spread's largest skew must be 1 at least")]
    Skew,
}

pub(crate) fn size_text(cpu_millis: u32, memory_bytes: u64, gpus: u32) -> String {
    let text = format!("{} and {}", cpus_text(cpu_millis), bytes_text(memory_bytes));
    match gpus {
        0 => text,
        1 => format!("{text} and 1 GPU"),
        gpus => format!("{text} and {gpus} GPUs"),
    }
}

fn known_text(what: &str, known: &[String]) -> String {
    if known.is_empty() {
        return format!("there are no {what} yet");
    }
    format!("the {what} are {}", known.join(", "))
}

/// A tenant's limit that a pod would exceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tenant `{tenant}` may have {} and has {}", self.amount(*limit), self.amount(*held))]
pub struct LimitReached {
    /// The tenant.
    pub tenant: String,
    /// What is limited.
    pub what: Limited,
    /// The most it may have.
    pub limit: u64,
    /// What it has.
    pub held: u64,
}

impl LimitReached {
    fn amount(&self, amount: u64) -> String {
        match self.what {
            Limited::Pods => format!("{amount} pods"),
            Limited::Cpu => cpus_text(u32::try_from(amount).unwrap_or(u32::MAX)),
            Limited::Memory => format!("{} of memory", bytes_text(amount)),
            Limited::Enis => format!("{amount} ENIs"),
            Limited::Gpus => format!("{amount} GPUs"),
        }
    }
}

/// Why the fleet reserved no place. To have no room says no more than that, since
/// more would have to be counted: `Fleet::explain` does, for whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// Never as it is.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not while the tenant holds what it holds.
    #[error(transparent)]
    Limit(#[from] LimitReached),
    /// Not now.
    #[error("there is no room now")]
    NoRoom,
    /// The pod has its place already.
    #[error("pod {pod} is already placed on {host}")]
    AlreadyPlaced {
        /// The pod.
        pod: PodId,
        /// Where it is.
        host: String,
    },
}
