//! Serves a virtio device over vhost-user: the socket, the messages of the
//! frontend, guest memory and the vrings. What the device does with its
//! requests is a [`Device`].
//!
//! One thread serves one device: it waits on the socket, the kicks and the
//! device's own wake-up in a single `poll`, so nothing needs a lock, memory and
//! rings change only between two requests, and an idle device costs one
//! sleeping thread. (The crate vhost-user-backend was not taken: it runs three
//! threads a device, leaks a descriptor a connection, cannot serve QEMU's network
//! frontend (see `early`), and has no place for in-flight tracking or IOTLB
//! messages.)
//!
//! Neither side is trusted. A frontend that breaks the protocol loses its
//! connection; a guest that breaks a ring loses that ring. The process goes on.

mod chain;
mod device;
#[cfg(feature = "test-driver")]
pub mod driver;
mod early;
mod frontend;
#[cfg(feature = "test-driver")]
pub mod qemu;
mod quota;
mod serve;
mod server;
mod used;
mod vring;

pub use chain::{Buffers, ChainError, Segments};
pub use device::{Device, MAX_QUEUE_SIZE, RingError, SharedMemory};
pub use quota::LogQuota;
pub use server::{ServeError, Server};
pub use used::Used;
pub use vring::{Chain, Vring};
