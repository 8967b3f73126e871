//! Memory for guests.

use std::fs;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::check::Check;

/// Below this much free memory not even the smallest pod fits well.
const LEAST_FREE: u64 = 256 << 20;

/// Guest memory is a memfd each, shared with the backends that serve the guest.
pub(crate) fn check_memfd() -> Check {
    const NAME: &str = "memfd";
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(c"longship-probe", flags) {
        Ok(_) => Check::ok(NAME, "can be made and sealed"),
        Err(error) => Check::fail(
            NAME,
            format!("memfd_create: {error}"),
            "use a kernel with CONFIG_MEMFD_CREATE",
        ),
    }
}

pub(crate) fn check_free_memory() -> Check {
    const NAME: &str = "memory";
    let Some(free) = free_memory() else {
        return Check::fail(NAME, "/proc/meminfo has no MemAvailable", "mount /proc");
    };
    let finding = format!("{} MiB free", free >> 20);
    if free < LEAST_FREE {
        let remedy = format!("free at least {} MiB for pods", LEAST_FREE >> 20);
        Check::warn(NAME, finding, remedy)
    } else {
        Check::ok(NAME, finding)
    }
}

/// The host's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All that the kernel manages.
    pub total: u64,
    /// What can be had now without swapping.
    pub available: u64,
}

/// The host's memory now; `None` where the kernel does not say.
#[must_use]
pub fn memory() -> Option<Memory> {
    parse(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// Memory that can be had now without swapping, in bytes; `None` where the kernel
/// does not say.
#[must_use]
pub fn free_memory() -> Option<u64> {
    Some(memory()?.available)
}

/// The same, from the text of /proc/meminfo.
fn parse(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory {
        total: bytes("MemTotal:")?,
        available: bytes("MemAvailable:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:  49152 kB\nMemAvailable:   24576 kB\n";
        let expected = Memory {
            total: 48 << 20,
            available: 24 << 20,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
        let absurd = "MemTotal: 1 kB\nMemAvailable: 99999999999999999999 kB\n";
        assert_eq!(parse(absurd), None);
    }
}
