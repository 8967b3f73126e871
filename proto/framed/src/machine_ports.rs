//! The machine's own ports: what a guest's kernel and init say to their VMM without
//! any device. They are there in every machine of Longship's VMM; elsewhere
//! [`SIGNATURE`] is not read at [`COMMAND`].
//!
//! Whoever has I/O privilege in the guest reaches them, so the VMM takes all of it as
//! hostile. Accesses are of 32 bits; where a port has more to tell, it is read or
//! written by one string instruction (`rep insd`, `rep outsd`), which is one exit.

/// Read: [`SIGNATURE`]. Written: [`ALIVE`] or [`PARK`].
pub const COMMAND: u16 = 0x2F00;
/// Read: [`IS_TEMPLATE`] and [`IS_CLONE`].
pub const KIND: u16 = 0x2F04;
/// Read: fresh random bytes of the host, as many as are asked for.
pub const ENTROPY: u16 = 0x2F08;
/// Read, 8 bytes by one string instruction: the host's time of day in nanoseconds
/// since the Unix epoch.
pub const TIME: u16 = 0x2F0C;
/// Written: pairs of (page frame number, pages), ranges of 4096-byte pages that the
/// guest does not use and whose content it gives up.
pub const UNUSED: u16 = 0x2F10;
/// Ports from [`COMMAND`] on.
pub const COUNT: u16 = 0x14;

/// `LSHP` as a little-endian word.
pub const SIGNATURE: u32 = u32::from_le_bytes(*b"LSHP");

/// Init has begun, or goes on in a clone.
pub const ALIVE: u32 = 1;
/// Init is ready to be cloned. The instruction ends in each clone.
pub const PARK: u32 = 2;

/// The machine is to become a template: init parks before it looks for a device.
pub const IS_TEMPLATE: u32 = 1;
/// The machine was made from a template.
pub const IS_CLONE: u32 = 2;
