//! One microVM: KVM, memory, a PCI bus, vhost-user frontends.
//!
//! One process a pod. It opens nothing itself: every descriptor comes from the
//! agent, over a socketpair (`longship.vmm.v1`), and what the guest reads and
//! writes never passes through it: a queue's doorbell is an eventfd that the
//! backend waits on (`KVM_IOEVENTFD`), an interrupt is one that the backend
//! writes (`KVM_IRQFD`).
//!
//! The guest is hostile from its first instruction. What it reaches here is
//! `ports`, `machine_ports`, `pci` and `virtio_pci`; nothing there trusts an offset, a
//! size, a value or an address.
//!
//! Reading order: `control` → `machine` → `memory`, `boot`, `vcpu`, `snapshot` →
//! `pci` → `virtio_pci` → `vhost_user`.

mod boot;
mod control;
mod irqchip;
mod machine;
mod machine_ports;
mod memory;
mod notices;
mod pci;
mod ports;
mod serial;
mod snapshot;
mod steps;
mod vcpu;
mod vhost_user;
mod virtio_pci;

pub use control::{End, ServeError, serve};
