//! KVM's interrupt controllers and eventfds: the one owner of the routing table.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_PIT_SPEAKER_DUMMY,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_pit_config,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::layout;
use crate::pci::msix::{Message, MessageRoutes};
use crate::virtio_pci::Doorbells;

/// Pins of the IO-APIC; routes of messages are numbered from here.
const PINS: u32 = 24;
/// The most routes that KVM takes (`KVM_MAX_IRQ_ROUTES`).
const MAX_ROUTES: u32 = 4096;

/// Why the interrupt controllers could not be made.
#[derive(Debug, thiserror::Error)]
#[error("interrupt controllers: {doing}: {source}")]
pub(crate) struct IrqChipError {
    doing: &'static str,
    source: kvm_ioctls::Error,
}

/// The interrupt controllers of a VM: PIC, IO-APIC, local APICs, and messages.
pub(crate) struct IrqChip {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

struct Table {
    next: u32,
    messages: BTreeMap<u32, Message>,
}

impl IrqChip {
    /// Creates them; before any vCPU. A machine whose APIC timers cannot follow
    /// the TSC also gets a PIT, without which kernels could not calibrate them.
    pub(crate) fn new(vm: Arc<VmFd>, with_pit: bool) -> Result<Self, IrqChipError> {
        let failed = |doing| move |source| IrqChipError { doing, source };
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(failed("placing KVM's identity map"))?;
        vm.set_tss_address(tss)
            .map_err(failed("placing KVM's task state"))?;
        vm.create_irq_chip().map_err(failed("creating them"))?;
        if with_pit {
            vm.create_pit2(kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..kvm_pit_config::default()
            })
            .map_err(failed("creating a timer"))?;
        }
        let chip = Self {
            vm,
            table: Mutex::new(Table {
                next: PINS,
                messages: BTreeMap::new(),
            }),
        };
        chip.set_routes(&BTreeMap::new())
            .map_err(failed("routing the IO-APIC's pins"))?;
        Ok(chip)
    }

    /// From now on, `event` is an edge at a pin of the IO-APIC.
    pub(crate) fn connect_pin(&self, pin: u32, event: &EventFd) -> Result<(), IrqChipError> {
        self.vm
            .register_irqfd(event, pin)
            .map_err(|source| IrqChipError {
                doing: "connecting an eventfd to the IO-APIC",
                source,
            })
    }

    /// KVM takes the table as a whole.
    fn set_routes(&self, messages: &BTreeMap<u32, Message>) -> Result<(), kvm_ioctls::Error> {
        let mut entries: Vec<kvm_irq_routing_entry> = (0..PINS).map(pin_entry).collect();
        entries.extend(
            messages
                .iter()
                .map(|(route, message)| message_entry(*route, *message)),
        );
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::ENOSPC))?;
        self.vm.set_gsi_routing(&table)
    }
}

impl MessageRoutes for IrqChip {
    fn allocate(&self) -> io::Result<u32> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.next >= MAX_ROUTES {
            return Err(io::Error::other("KVM has no interrupt routes left"));
        }
        table.next += 1;
        Ok(table.next - 1)
    }

    fn connect(&self, route: u32, event: &EventFd, message: Message) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // A route that is no longer connected stays in the table until it is used
        // again: KVM waits for all vCPUs at each change of it.
        let old = table.messages.insert(route, message);
        if old != Some(message)
            && let Err(e) = self.set_routes(&table.messages)
        {
            table.messages.remove(&route);
            return Err(e.into());
        }
        Ok(self.vm.register_irqfd(event, route)?)
    }

    fn disconnect(&self, route: u32, event: &EventFd) {
        if let Err(e) = self.vm.unregister_irqfd(event, route) {
            tracing::debug!("disconnecting interrupt route {route}: {e}");
        }
    }
}

impl Doorbells for IrqChip {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        Ok(self
            .vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?)
    }

    fn disconnect(&self, address: u64, event: &EventFd) {
        let address = IoEventAddress::Mmio(address);
        if let Err(e) = self.vm.unregister_ioevent(event, &address, NoDatamatch) {
            tracing::debug!("disconnecting the doorbell at {address:?}: {e}");
        }
    }
}

fn pin_entry(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            },
        },
        ..kvm_irq_routing_entry::default()
    }
}

fn message_entry(route: u32, message: Message) -> kvm_irq_routing_entry {
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    kvm_irq_routing_entry {
        gsi: route,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([a, b, c, d]),
                address_hi: u32::from_le_bytes([e, f, g, h]),
                data: message.data,
                ..kvm_irq_routing_msi::default()
            },
        },
        ..kvm_irq_routing_entry::default()
    }
}
