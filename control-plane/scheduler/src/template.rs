//! What pods ask for: everything that a decision depends on, so that pods made from
//! one template are alike to the scheduler.

use crate::policy::Policy;
use crate::selector::{Labels, Selector};

/// What a pod asks for. Pods with equal templates share what is worked out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PodTemplate {
    /// Whose pod it is. Selectors see the pods of this tenant only.
    pub tenant: String,
    /// What selectors match.
    pub labels: Labels,
    /// Thousandths of a CPU; 0: no wish.
    pub cpu_millis: u32,
    /// Bytes; 0: no wish.
    pub memory_bytes: u64,
    /// GPUs.
    pub gpus: u32,
    /// Elastic network interfaces; every pod has one at least.
    pub enis: u32,
    /// Disks.
    pub disks: u32,
    /// Only flavors of this family; `None`: any that suits. Not with `flavors`.
    pub family: Option<String>,
    /// Exactly one of these, the first that has room; empty: the smallest that holds
    /// the resources.
    pub flavors: Vec<String>,
    /// Where.
    pub zones: Zones,
    /// What is given up first where there is a choice of both.
    pub fallback: Fallback,
    /// With which pods it may share a zone or a host.
    pub constraints: Vec<Constraint>,
    /// How it is paid for, and how firm its place is.
    pub class: Class,
    /// Of two pods of one tenant and class the higher goes first.
    pub priority: i32,
    /// Whether others may be evicted for it, where there is no room else.
    pub preempts: bool,
    /// Instead of the fleet's policy.
    pub policy: Option<Policy>,
}

/// Zones a pod may be in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Zones {
    /// Every one.
    #[default]
    Any,
    /// One of these, whichever suits the policy best.
    AnyOf(Vec<String>),
    /// The first of these that has room.
    InOrder(Vec<String>),
}

impl Zones {
    /// Those that are named.
    #[must_use]
    pub fn named(&self) -> &[String] {
        match self {
            Self::Any => &[],
            Self::AnyOf(zones) | Self::InOrder(zones) => zones,
        }
    }
}

/// The order of attempts over flavors and zones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// The first flavor in every zone, then the next flavor.
    #[default]
    ZonesFirst,
    /// Every flavor in the first zone, then the next zone.
    FlavorsFirst,
}

/// How firm a pod's place is. Of two classes the greater is never evicted for the
/// lesser.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// May be evicted for any pod of another class.
    Spot,
    /// Keeps its place, but for a more important pod of its own tenant.
    #[default]
    OnDemand,
    /// Draws on its tenant's capacity reservations; without one that suits it is
    /// placed as [`Class::OnDemand`] is.
    Reserved,
}

/// What counts as "together".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topology {
    /// On one host.
    Host,
    /// In one zone.
    Zone,
}

/// With which pods of its tenant a pod is placed together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Constraint {
    /// Which pods are meant.
    pub selector: Selector,
    /// What counts as together.
    pub topology: Topology,
    /// What is wanted.
    pub rule: Rule,
    /// Whether it must be met; else it is given up where it cannot be.
    pub required: bool,
}

/// What is wanted of pods that a selector means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// At least one of them is there. Where there is none anywhere and the pod is
    /// meant itself, it may be the first.
    With,
    /// None of them is there; where required, none comes later either.
    Apart,
    /// No place has more than so many more of them than the place with the fewest.
    Spread {
        /// At least 1.
        max_skew: u32,
    },
}
