//! One microVM: KVM, memory, a PCI bus, vhost-user frontends.

fn main() {}
