//! Hosts and what they have.

/// An amount of what hosts have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// How many pods, whatever their size.
    pub pods: u32,
}

impl Capacity {
    /// What is left after `used`; nothing where more is used than there is (the
    /// host has shrunk).
    #[must_use]
    pub fn minus(self, used: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(used.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(used.memory_bytes),
            pods: self.pods.saturating_sub(used.pods),
        }
    }
}

/// A host as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Unique.
    pub name: String,
    /// Where it stands.
    pub zone: String,
    /// All that pods may use of it.
    pub capacity: Capacity,
}

/// A host as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// As registered.
    pub spec: HostSpec,
    /// What no pod has.
    pub free: Capacity,
    /// Pods placed on it.
    pub pods: u32,
    /// Whether it takes pods.
    pub ready: bool,
}

/// Why a host cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// It has pods, and their zone would change with it.
    #[error("host `{host}` has {pods} pods in zone `{zone}`: it cannot move to another zone")]
    ZoneInUse {
        /// The host.
        host: String,
        /// Where it is.
        zone: String,
        /// How many pods it has.
        pods: u32,
    },
    /// Nobody has registered it.
    #[error("no host `{0}`")]
    Unknown(String),
}
