//! A virtual bare-metal host with a true KVM, without hardware.

fn main() {}
