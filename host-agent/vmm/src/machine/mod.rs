//! One machine: what it is made of, and its life.

mod spec;

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{Cap, VcpuFd};
use longship_framed::error::Failure;
use longship_framed::vmm::Stats;
use vmm_sys_util::eventfd::EventFd;

use crate::irqchip::{IrqChip, IrqChipError};
use crate::memory::{GuestRam, MemoryError};
use crate::pci::bus::PciBus;
use crate::ports::{Ports, SERIAL_IRQ};
use crate::serial::SerialPort;
use crate::steps::Steps;
use crate::vcpu::{self, Counters, Ending, Processors, VcpuError, kick};
use crate::vhost_user::device_type::DeviceType;
use crate::vhost_user::{AttachError, VhostUser};
use crate::virtio_pci::{VirtioPci, Wiring};

pub(crate) use crate::machine::spec::MachineSpec;

/// Stack of a vCPU's thread in bytes; what is not touched costs nothing.
const VCPU_STACK: usize = 256 << 10;

/// Why a machine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("creating a VM: {0}")]
    Vm(kvm_ioctls::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    IrqChip(#[from] IrqChipError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error("creating an eventfd: {0}")]
    Event(std::io::Error),
    #[error("preparing the signal that stops vCPUs: {0}")]
    Signal(kvm_ioctls::Error),
    #[error("starting a vCPU's thread: {0}")]
    Thread(std::io::Error),
    #[error("the machine runs: devices are attached before boot")]
    Running,
    #[error("the machine runs already")]
    Booted,
    #[error("the PCI bus has no place for another device")]
    BusFull,
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("preparing a device: {0}")]
    Device(std::io::Error),
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        let message = error.to_string();
        match error {
            MachineError::Running | MachineError::Booted => Self::conflict(message),
            MachineError::BusFull => Self::exhausted(message),
            MachineError::Attach(AttachError::Unfit { .. }) => Self::invalid("socket", message),
            MachineError::Attach(_) => Self::unavailable(message),
            _ => Self::internal(message),
        }
    }
}

/// Where a machine's end is announced.
pub(crate) struct Ended {
    event: EventFd,
    ending: Mutex<Option<Ending>>,
}

impl Ended {
    /// Nothing has ended yet.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            ending: Mutex::new(None),
        })
    }

    /// Readable from the machine's end on.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// How it ended, if it has.
    pub(crate) fn get(&self) -> Option<Ending> {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.clone()
    }

    /// The first vCPU to end tells for all.
    fn announce(&self, ending: Ending) {
        let mut first = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(ending);
            let _ = self.event.write(1);
        }
    }
}

/// A machine, from its creation to its end.
pub(crate) struct Machine {
    /// Until they run, each in its thread.
    vcpus: Vec<VcpuFd>,
    threads: Vec<JoinHandle<()>>,
    booted: bool,
    counters: Arc<Counters>,
    ended: Arc<Ended>,
    serial: Arc<SerialPort>,
    ports: Arc<Ports>,
    pci: Arc<PciBus>,
    wiring: Wiring,
}

impl Machine {
    /// Creates the machine and loads its kernel. It has no devices yet and does
    /// not run.
    pub(crate) fn create(
        spec: MachineSpec,
        ended: Arc<Ended>,
        steps: &mut Steps,
    ) -> Result<Self, MachineError> {
        kick::install_handler().map_err(MachineError::Signal)?;
        let tsc_deadline = spec.kvm.check_extension(Cap::TscDeadlineTimer);
        let (vm, irqchip) = steps.measure("vm", || {
            let vm = Arc::new(spec.kvm.create_vm().map_err(MachineError::Vm)?);
            let irqchip = IrqChip::new(Arc::clone(&vm), !tsc_deadline)?;
            Ok::<_, MachineError>((vm, Arc::new(irqchip)))
        })?;
        let ram = steps.measure("memory", || {
            let ram = match spec.template {
                Some(memory) => GuestRam::template(spec.memory, memory)?,
                None => GuestRam::new(spec.memory)?,
            };
            ram.register(&vm)?;
            Ok::<_, MemoryError>(Arc::new(ram))
        })?;
        steps.measure("kernel", || {
            spec.boot.load_kernel(&ram)?;
            spec.boot.write_tables(&ram)
        })?;
        steps.measure("initramfs", || spec.boot.load_initramfs(&ram))?;
        let vcpus = steps.measure("vcpus", || {
            vcpu::create(
                &vm,
                &Processors {
                    supported: &spec.supported,
                    count: spec.vcpus,
                    tsc_deadline,
                    entry: spec.boot.entry(),
                },
            )
        })?;
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map(Arc::new)
            .map_err(MachineError::Event)?;
        irqchip.connect_pin(SERIAL_IRQ, &irq)?;
        let serial = Arc::new(SerialPort::new(irq, spec.console));
        let pci = Arc::new(PciBus::new());
        Ok(Self {
            vcpus,
            threads: Vec::new(),
            booted: false,
            counters: Arc::default(),
            ended,
            ports: Arc::new(Ports::new(Arc::clone(&serial), Arc::clone(&pci))),
            serial,
            pci,
            wiring: Wiring {
                ram,
                routes: Arc::<IrqChip>::clone(&irqchip),
                doorbells: irqchip,
            },
        })
    }

    /// Adds a device whose backend is at the other end of `socket`.
    pub(crate) fn attach(
        &mut self,
        kind: DeviceType,
        socket: UnixStream,
        steps: &mut Steps,
    ) -> Result<(), MachineError> {
        if self.booted {
            return Err(MachineError::Running);
        }
        let base = self.pci.next_bar().ok_or(MachineError::BusFull)?;
        steps.measure(kind.name(), || {
            let (backend, model) = VhostUser::connect(socket, kind, &self.wiring.ram)?;
            let device = VirtioPci::new(model, base, &self.wiring, Box::new(backend))
                .map_err(MachineError::Device)?;
            self.pci.add(Box::new(device));
            Ok(())
        })
    }

    /// Lets the processors run.
    pub(crate) fn boot(&mut self, steps: &mut Steps) -> Result<(), MachineError> {
        if std::mem::replace(&mut self.booted, true) {
            return Err(MachineError::Booted);
        }
        let vcpus = std::mem::take(&mut self.vcpus);
        steps.measure("start", || {
            for (id, vcpu) in vcpus.into_iter().enumerate() {
                let thread = self.start(id, vcpu).map_err(MachineError::Thread)?;
                self.threads.push(thread);
            }
            Ok(())
        })
    }

    fn start(&self, id: usize, mut vcpu: VcpuFd) -> std::io::Result<JoinHandle<()>> {
        let (ports, pci) = (Arc::clone(&self.ports), Arc::clone(&self.pci));
        let (counters, ended) = (Arc::clone(&self.counters), Arc::clone(&self.ended));
        std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(VCPU_STACK)
            .spawn(move || ended.announce(vcpu::run(&mut vcpu, &ports, &pci, &counters)))
    }

    /// What it has done so far.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            exits: self.counters.exits.load(Ordering::Relaxed),
            first_run_us: self.counters.first_run_us.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }

    /// Stops the processors and writes out what the guest has printed.
    pub(crate) fn stop(&mut self) {
        self.counters.stop.store(true, Ordering::Release);
        for thread in &self.threads {
            kick::kick(thread);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU's thread panicked");
            }
        }
        self.serial.flush();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}
