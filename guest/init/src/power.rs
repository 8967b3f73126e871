//! The machine's end.

use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{pause, sync};

/// Writes what is dirty to the disks and ends the machine. There is no ACPI to
/// power off with: the VMM takes the reset (`reboot=k`) for the end.
pub(crate) fn off() -> ! {
    sync();
    // Returns only where it fails.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        pause();
    }
}
