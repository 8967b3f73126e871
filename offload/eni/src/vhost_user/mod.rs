//! Serves an ENI's device over vhost-user: its socket, the frontend's messages
//! and the two rings, all on one thread that sleeps in one `poll`.
//!
//! Not the crate vhost-user-backend: it needs three threads a device, leaks a
//! descriptor a connection, and, as the message loop is its own, leaves no way
//! to serve QEMU's net frontend (see [`early`]).

mod early;
mod ring;
mod server;
mod session;

pub(crate) use server::Server;
