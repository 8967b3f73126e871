//! ENIs on the real kernel, with a vhost-user frontend of our own. Needs root
//! and `ip` (iproute2).

#![allow(clippy::unwrap_used)]

mod driver;
mod frontend;
mod host;
mod network;
