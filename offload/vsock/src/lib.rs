//! The control channel of a pod: a vhost-user-vsock backend (virtio 1.2 §5.10)
//! whose other end is tokio streams in this process.
//!
//! Two worlds meet in one table of connections: the device's thread, which
//! moves packets between the rings and the table, and tokio's tasks, which read
//! and write a [`VsockStream`]'s buffers there. Neither waits for the other:
//! the table's lock is held for one copy at most, a task that can go no further
//! leaves its waker, and a task that has something for the guest writes an
//! eventfd. Every buffer is bounded by the credit that the guest is given.

mod connection;
mod device;
mod error;
mod packet;
mod stream;
mod table;

pub use connection::BUFFER_BYTES;
pub use device::{Incoming, VsockDevice};
pub use error::VsockError;
pub use stream::VsockStream;
pub use table::MAX_CONNECTIONS;
