//! Where each structure of the transport lies in BAR 0, and the capabilities that
//! say so (virtio 1.2, 4.1.4).

use std::ops::Range;

use crate::pci::config_space::ConfigSpace;

/// The structures, a page each.
pub(crate) const COMMON: Range<u64> = 0x0000..0x1000;
pub(crate) const ISR: Range<u64> = 0x1000..0x2000;
pub(crate) const DEVICE: Range<u64> = 0x2000..0x3000;
pub(crate) const NOTIFY: Range<u64> = 0x3000..0x4000;
pub(crate) const MSIX_TABLE: Range<u64> = 0x4000..0x5000;
pub(crate) const MSIX_PENDING: Range<u64> = 0x5000..0x6000;

/// Bytes between the doorbells of two queues (`notify_off_multiplier`).
pub(crate) const DOORBELL: u64 = 4;

/// Capability ids: vendor-specific and MSI-X.
const VENDOR: u8 = 0x09;
const MSIX: u8 = 0x11;
/// Types of virtio's capabilities.
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;
/// Bits of MSI-X message control that the guest may write: enable, mask all.
const MSIX_WRITABLE: [u8; 2] = [0, 0xC0];

/// Where in configuration space the capabilities are that act on writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// Message control of MSI-X.
    pub(crate) msix_control: usize,
    /// The capability that reaches BAR 0 through configuration space.
    pub(crate) window: usize,
}

/// Adds all capabilities of a device with `vectors` vectors.
pub(crate) fn add_to(space: &mut ConfigSpace, vectors: u16) -> Places {
    add(space, TYPE_COMMON, COMMON, &[], &[]);
    let multiplier = u32::try_from(DOORBELL).unwrap_or(0).to_le_bytes();
    add(space, TYPE_NOTIFY, NOTIFY, &multiplier, &[]);
    add(space, TYPE_ISR, ISR, &[], &[]);
    add(space, TYPE_DEVICE, DEVICE, &[], &[]);
    // BAR, offset, length and data are the driver's (4.1.4.9).
    let mut writable = [0xFF; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = add(space, TYPE_PCI, 0..0, &[0; 4], &writable);

    let mut body = Vec::with_capacity(10);
    body.extend_from_slice(&vectors.saturating_sub(1).to_le_bytes());
    body.extend_from_slice(&low_half(MSIX_TABLE.start));
    body.extend_from_slice(&low_half(MSIX_PENDING.start));
    let msix = space.add_capability(MSIX, &body, &MSIX_WRITABLE);
    Places {
        msix_control: msix + 2,
        window,
    }
}

/// Adds one `virtio_pci_cap` with what follows it.
fn add(space: &mut ConfigSpace, kind: u8, at: Range<u64>, rest: &[u8], writable: &[u8]) -> usize {
    let len = u8::try_from(16 + rest.len()).unwrap_or(u8::MAX);
    let mut body = vec![len, kind, 0, 0, 0, 0];
    body.extend_from_slice(&low_half(at.start));
    body.extend_from_slice(&low_half(at.end - at.start));
    body.extend_from_slice(rest);
    space.add_capability(VENDOR, &body, writable)
}

fn low_half(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}
