//! Why a host cannot be changed.

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
