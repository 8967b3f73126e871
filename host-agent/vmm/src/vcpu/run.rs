//! The loop of one virtual processor.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::pci::bus::PciBus;
use crate::ports::{Ports, Request};
use crate::steps;
use crate::vcpu::kick::Kickable;

/// Why a guest no longer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It asked for a reset or to be powered off.
    Reset,
    /// Triple fault.
    Fault,
    /// KVM gave up; the reason.
    Failed(String),
    /// The machine was told to stop.
    Stopped,
}

/// What all processors of a machine count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Exits to user space.
    pub(crate) exits: AtomicU64,
    /// When the first processor was about to enter the guest, in microseconds
    /// since the Unix epoch; 0: not yet.
    pub(crate) first_run_us: AtomicI64,
    /// Set to end the loops.
    pub(crate) stop: AtomicBool,
}

/// Runs the processor until the guest ends or [`Counters::stop`] is set and the
/// thread kicked.
pub(crate) fn run(vcpu: &mut VcpuFd, ports: &Ports, pci: &PciBus, counters: &Counters) -> Ending {
    let _kickable = Kickable::new(vcpu);
    let _ = counters.first_run_us.compare_exchange(
        0,
        steps::now_us(),
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    loop {
        if counters.stop.load(Ordering::Acquire) {
            return Ending::Stopped;
        }
        let exit = vcpu.run();
        counters.exits.fetch_add(1, Ordering::Relaxed);
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => match ports.write(port, data) {
                None => {}
                Some(Request::Reset) => return Ending::Reset,
            },
            Ok(VcpuExit::IoIn(port, data)) => ports.read(port, data),
            Ok(VcpuExit::MmioWrite(address, data)) => pci.memory_write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => pci.memory_read(address, data),
            Ok(VcpuExit::Shutdown) => return Ending::Fault,
            // All kinds (shutdown, reset, crash) are the guest's own wish to end.
            Ok(VcpuExit::SystemEvent(..)) => return Ending::Reset,
            Ok(VcpuExit::Intr) => vcpu.set_kvm_immediate_exit(0),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Ending::Failed(format!(
                    "the processor refused to enter the guest: reason {reason:#x} on CPU {cpu}"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                return Ending::Failed("KVM could not emulate an instruction".to_owned());
            }
            Ok(other) => return Ending::Failed(format!("unexpected KVM exit {other:?}")),
            Err(e) if e.errno() == libc::EINTR => vcpu.set_kvm_immediate_exit(0),
            // A processor that waits to be started, or lost its memory for a moment.
            Err(e) if e.errno() == libc::EAGAIN => {}
            Err(e) => return Ending::Failed(format!("KVM_RUN: {e}")),
        }
    }
}
