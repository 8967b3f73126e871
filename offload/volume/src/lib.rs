//! Disks of a pod and their vhost-user-blk backend.
//!
//! [`BlockDevice`] serves one file as a virtio-blk disk; [`ScratchStore`] keeps
//! the writable disks; [`VolumeProvider`] is what a card asks for a pod's
//! volumes, and [`VhostUserVolumes`] answers on a machine without a card's
//! PCI functions.

mod block;
mod error;
mod ext4;
mod provider;
mod scratch;
mod sparse;

pub use block::{BlockDevice, Disk, SERIAL_BYTES};
pub use error::VolumeError;
pub use provider::{
    HeldVolume, VhostUserVolumes, VolumeHandle, VolumeKind, VolumeProvider, VolumeSpec,
};
pub use scratch::{SCRATCH_BYTES, ScratchStore};
