//! What tells one machine from another before anybody's devices are attached. Machines
//! of one shape can stand in for each other: they share a template and a warm pool.

use longship_framed::vmm::MemoryProfile;
use longship_proto::agent::v1 as wire;

const MIB: u64 = 1 << 20;

/// Who can reach a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Profile {
    /// RAM is private, or a private view of a template's; all DMA goes through a
    /// window.
    Dense,
    /// All RAM is shared with the backends.
    Direct,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) vcpus: u32,
    /// Guest memory in bytes.
    pub(crate) memory_bytes: u64,
    pub(crate) profile: Profile,
}

impl Shape {
    /// Size of the DMA window in bytes; 0 where there is none. What is in flight at one
    /// time has to fit, and that grows with the guest.
    pub(crate) fn dma_window_bytes(self) -> u64 {
        match (self.profile, self.memory_bytes / MIB) {
            (Profile::Direct, _) => 0,
            (Profile::Dense, 0..=512) => 4 * MIB,
            (Profile::Dense, 513..=4096) => 8 * MIB,
            (Profile::Dense, _) => 16 * MIB,
        }
    }
}

impl Profile {
    /// As the VMM's protocol says it.
    pub(crate) fn to_vmm(self) -> MemoryProfile {
        match self {
            Self::Dense => MemoryProfile::Dense,
            Self::Direct => MemoryProfile::Direct,
        }
    }

    /// As cards say it; `None` for a profile that this version does not know.
    pub(crate) fn from_wire(number: i32) -> Option<Self> {
        match wire::MemoryProfile::try_from(number).ok()? {
            wire::MemoryProfile::Unspecified | wire::MemoryProfile::Dense => Some(Self::Dense),
            wire::MemoryProfile::Direct => Some(Self::Direct),
        }
    }

    /// As cards are told it.
    pub(crate) fn to_wire(self) -> wire::MemoryProfile {
        match self {
            Self::Dense => wire::MemoryProfile::Dense,
            Self::Direct => wire::MemoryProfile::Direct,
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let profile = match self.profile {
            Profile::Dense => "dense",
            Profile::Direct => "direct",
        };
        write!(
            f,
            "{} vCPU, {} MiB, {profile}",
            self.vcpus,
            self.memory_bytes / MIB
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_the_guest() {
        let window = |profile, mib: u64| {
            let shape = Shape {
                vcpus: 1,
                memory_bytes: mib * MIB,
                profile,
            };
            shape.dma_window_bytes() / MIB
        };
        assert_eq!(window(Profile::Dense, 64), 4);
        assert_eq!(window(Profile::Dense, 512), 4);
        assert_eq!(window(Profile::Dense, 514), 8);
        assert_eq!(window(Profile::Dense, 4096), 8);
        assert_eq!(window(Profile::Dense, 4098), 16);
        assert_eq!(window(Profile::Direct, 4098), 0);
    }

    #[test]
    fn dense_is_what_nobody_has_to_ask_for() {
        assert_eq!(Profile::from_wire(0), Some(Profile::Dense));
        for profile in [Profile::Dense, Profile::Direct] {
            assert_eq!(Profile::from_wire(profile.to_wire().into()), Some(profile));
        }
        assert_eq!(Profile::from_wire(99), None);
    }
}
