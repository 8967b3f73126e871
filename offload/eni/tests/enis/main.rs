//! ENIs on the real kernel: namespaces, bridges and TAPs as root, a vhost-user
//! frontend of our own, and QEMU with Linux guests as a third party's.
//!
//! Needs root, `ip` (iproute2), and for the guests `qemu-system-x86_64`,
//! busybox-static and the guest kernel.

#![allow(clippy::unwrap_used)]

mod driver;
mod frontend;
mod host;
mod network;
mod qemu;
