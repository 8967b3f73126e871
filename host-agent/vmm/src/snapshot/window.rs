//! The DMA window of a machine that stands still.

use crate::memory::GuestRam;

/// Whether all of it is zero, or there is none: a clone begins with an empty one.
/// Nothing else is to be expected, since DMA takes a device.
pub(crate) fn is_unused(ram: &GuestRam) -> bool {
    let Some(window) = ram.plan().window() else {
        return true;
    };
    let bytes = window.end - window.start;
    let place = ram.shared_address(window.start, bytes);
    let (Some(address), Ok(bytes)) = (
        place.and_then(|host| usize::try_from(host).ok()),
        usize::try_from(bytes),
    ) else {
        return false;
    };
    let words = std::ptr::with_exposed_provenance::<u64>(address);
    // SAFETY: all of the window is mapped, page-aligned, for as long as `ram` lives.
    // A backend that somebody else gave it to could write to it at the same time, so
    // each word is read once, volatile, and none is referred to.
    (0..bytes / size_of::<u64>()).all(|at| unsafe { words.add(at).read_volatile() } == 0)
}
