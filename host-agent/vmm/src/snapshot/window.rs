//! The DMA window of a machine that stands still.

use crate::memory::GuestRam;

/// Where the first word of it is, counted in bytes from its start, that is not zero: a
/// clone begins with an empty one. None is to be expected, since DMA takes a device.
pub(crate) fn first_used(ram: &GuestRam) -> Option<u64> {
    let window = ram.plan().window()?;
    let bytes = window.end - window.start;
    let place = ram.shared_address(window.start, bytes);
    let (Some(address), Ok(bytes)) = (
        place.and_then(|host| usize::try_from(host).ok()),
        usize::try_from(bytes),
    ) else {
        return Some(0);
    };
    let words = std::ptr::with_exposed_provenance::<u64>(address);
    let word = (0..bytes / size_of::<u64>()).find(|at| {
        // SAFETY: all of the window is mapped, page-aligned, for as long as `ram` lives.
        // A backend that somebody else gave it to could write to it at the same time, so
        // each word is read once, volatile, and none is referred to.
        unsafe { words.add(*at).read_volatile() != 0 }
    })?;
    Some((word * size_of::<u64>()) as u64)
}
