//! The loop of one virtual processor.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::notices::{Notice, Notices};
use crate::pci::bus::PciBus;
use crate::ports::{Ports, Request};
use crate::steps;
use crate::vcpu::kick::Kickable;

/// The most exits that the rest of one instruction can take: a string instruction
/// makes one an element, and is interrupted between two of them.
const MAX_REST: usize = 64;

/// Why a guest no longer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It asked for a reset or to be powered off.
    Reset,
    /// Triple fault.
    Fault,
    /// KVM gave up; the reason.
    Failed(String),
}

/// What all processors of a machine are told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Order {
    /// To run.
    Run,
    /// To stop between two instructions.
    Park,
    /// To stop as they are.
    Stop,
}

/// What all processors of a machine count together, and are told.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Exits to user space.
    pub(crate) exits: AtomicU64,
    /// When the first processor was about to enter the guest, in microseconds
    /// since the Unix epoch; 0: not yet.
    pub(crate) first_run_us: AtomicI64,
    order: AtomicU8,
}

impl Counters {
    /// Tells the processors what to do; those in the guest must be kicked.
    pub(crate) fn give(&self, order: Order) {
        self.order.store(order as u8, Ordering::Release);
    }

    fn order(&self) -> Order {
        const RUN: u8 = Order::Run as u8;
        const PARK: u8 = Order::Park as u8;
        match self.order.load(Ordering::Acquire) {
            RUN => Order::Run,
            PARK => Order::Park,
            _ => Order::Stop,
        }
    }
}

/// What a guest's accesses reach.
pub(crate) struct Surroundings<'a> {
    pub(crate) ports: &'a Ports,
    pub(crate) pci: &'a PciBus,
    pub(crate) notices: &'a Notices,
}

/// What one stay in the guest came to.
enum Stay {
    /// An access, which has been served.
    Served,
    /// A signal.
    Interrupted,
    /// The guest asks to be parked.
    Park,
    /// The guest's end.
    Ended(Ending),
}

/// Runs the processor until the guest ends or parks, or an order was given and the
/// thread kicked.
pub(crate) fn run(vcpu: &mut VcpuFd, around: &Surroundings<'_>, counters: &Counters) {
    let _kickable = Kickable::new(vcpu);
    let _ = counters.first_run_us.compare_exchange(
        0,
        steps::now_us(),
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    loop {
        match counters.order() {
            Order::Run => {}
            Order::Park => return rest(vcpu, around, counters),
            Order::Stop => return,
        }
        match stay(vcpu, around, counters) {
            Stay::Served => {}
            Stay::Interrupted => vcpu.set_kvm_immediate_exit(0),
            Stay::Park => {
                rest(vcpu, around, counters);
                return around.notices.tell(Notice::Parking);
            }
            Stay::Ended(ending) => return around.notices.tell(Notice::Ended(ending)),
        }
    }
}

/// Lets the instruction end whose access was served last, and begins no other: KVM
/// finishes it at the next entry (`KVM_RUN`, "the kernel side will first finish
/// incomplete operations").
fn rest(vcpu: &mut VcpuFd, around: &Surroundings<'_>, counters: &Counters) {
    for _ in 0..MAX_REST {
        vcpu.set_kvm_immediate_exit(1);
        match stay(vcpu, around, counters) {
            Stay::Served | Stay::Park => {}
            Stay::Interrupted => return vcpu.set_kvm_immediate_exit(0),
            Stay::Ended(ending) => return around.notices.tell(Notice::Ended(ending)),
        }
    }
    let reason = "a processor did not come to rest for parking";
    around
        .notices
        .tell(Notice::Ended(Ending::Failed(reason.to_owned())));
}

/// Enters the guest once and serves what it left for.
fn stay(vcpu: &mut VcpuFd, around: &Surroundings<'_>, counters: &Counters) -> Stay {
    let exit = vcpu.run();
    counters.exits.fetch_add(1, Ordering::Relaxed);
    let request = match exit {
        Ok(VcpuExit::IoOut(port, data)) => around.ports.write(port, data),
        Ok(VcpuExit::IoIn(port, data)) => around.ports.read(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => {
            around.pci.memory_write(address, data);
            None
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            around.pci.memory_read(address, data);
            None
        }
        Ok(VcpuExit::Intr) => return Stay::Interrupted,
        Ok(VcpuExit::Shutdown) => return Stay::Ended(Ending::Fault),
        // All kinds (shutdown, reset, crash) are the guest's own wish to end.
        Ok(VcpuExit::SystemEvent(..)) => return Stay::Ended(Ending::Reset),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return failed(format!(
                "the processor refused to enter the guest: reason {reason:#x} on CPU {cpu}"
            ));
        }
        Ok(VcpuExit::InternalError) => {
            return failed("KVM could not emulate an instruction".to_owned());
        }
        Ok(other) => return failed(format!("unexpected KVM exit {other:?}")),
        Err(e) if e.errno() == libc::EINTR => return Stay::Interrupted,
        // A processor that waits to be started, or lost its memory for a moment.
        Err(e) if e.errno() == libc::EAGAIN => None,
        Err(e) => return failed(format!("KVM_RUN: {e}")),
    };
    match request {
        None => Stay::Served,
        Some(Request::Park) => Stay::Park,
        Some(Request::Reset) => Stay::Ended(Ending::Reset),
        Some(Request::End(reason)) => failed(reason.to_owned()),
    }
}

fn failed(reason: String) -> Stay {
    Stay::Ended(Ending::Failed(reason))
}
