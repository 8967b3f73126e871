//! One machine: what it is made of, and its life.

mod restore;
mod spec;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use longship_framed::error::Failure;
use longship_framed::vmm::Stats;
use vmm_sys_util::eventfd::EventFd;

use crate::irqchip::{IrqChip, IrqChipError};
use crate::machine_ports::{Kind, MachinePorts};
use crate::memory::{GuestRam, MemoryError};
use crate::notices::Notices;
use crate::pci::bus::PciBus;
use crate::ports::{Ports, SERIAL_IRQ};
use crate::serial::SerialPort;
use crate::snapshot::{self, BoardState, MachineState, SnapshotError, Still};
use crate::steps::Steps;
use crate::vcpu::{self, Counters, Order, Processors, Surroundings, VcpuError, kick};
use crate::vhost_user::device_type::DeviceType;
use crate::vhost_user::{AttachError, VhostUser};
use crate::virtio_pci::{VirtioPci, Wiring};

pub(crate) use crate::machine::restore::RestoreSpec;
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
    #[error(transparent)]
    State(#[from] SnapshotError),
    #[error("the machine runs: devices are attached before boot")]
    Running,
    #[error("the machine runs already")]
    Booted,
    #[error("the machine has parked: it does not run again")]
    Parked,
    #[error("the machine has not parked: only what stands still can be written")]
    NotParked,
    #[error("the machine is to become a template: it has no devices")]
    Template,
    #[error("the guest has used its DMA window at offset {offset:#x}: that would be lost")]
    WindowUsed { offset: u64 },
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
            MachineError::Running
            | MachineError::Booted
            | MachineError::Parked
            | MachineError::NotParked
            | MachineError::Template
            | MachineError::WindowUsed { .. } => Self::conflict(message),
            MachineError::State(e) => e.into(),
            MachineError::BusFull => Self::exhausted(message),
            MachineError::Attach(AttachError::Unfit { .. }) => Self::invalid("socket", message),
            MachineError::Attach(_) => Self::unavailable(message),
            _ => Self::internal(message),
        }
    }
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not run yet, or not since it was cloned.
    Waiting,
    Running,
    /// Its processors have come back from their threads, for ever.
    Parked,
}

/// A machine, from its creation to its end.
pub(crate) struct Machine {
    /// While they do not run, each in its thread.
    vcpus: Vec<VcpuFd>,
    threads: Vec<JoinHandle<VcpuFd>>,
    stage: Stage,
    counters: Arc<Counters>,
    notices: Arc<Notices>,
    serial: Arc<SerialPort>,
    ports: Arc<Ports>,
    own_ports: Arc<MachinePorts>,
    pci: Arc<PciBus>,
    wiring: Wiring,
    vm: Arc<VmFd>,
    with_pit: bool,
    /// Where the machine becomes a template.
    template: Option<Original>,
}

/// What is needed again when the state of a machine is written.
struct Original {
    /// Tells which MSRs there are.
    kvm: Kvm,
    /// CPUID of each processor.
    cpuid: Vec<Vec<kvm_cpuid_entry2>>,
}

/// What a machine is put together from.
struct Parts {
    kind: Kind,
    template: Option<Original>,
    vm: Arc<VmFd>,
    with_pit: bool,
    irqchip: Arc<IrqChip>,
    ram: Arc<GuestRam>,
    vcpus: Vec<VcpuFd>,
    console: Option<File>,
    /// Of a clone.
    board: Option<BoardState>,
}

impl Machine {
    /// Creates the machine and loads its kernel. It has no devices yet and does
    /// not run.
    pub(crate) fn create(
        spec: MachineSpec,
        notices: Arc<Notices>,
        steps: &mut Steps,
    ) -> Result<Self, MachineError> {
        kick::install_handler().map_err(MachineError::Signal)?;
        let tsc_deadline = spec.kvm.check_extension(Cap::TscDeadlineTimer);
        let (vm, irqchip) = steps.measure("vm", || {
            let vm = Arc::new(spec.kvm.create_vm().map_err(MachineError::Vm)?);
            let irqchip = IrqChip::new(Arc::clone(&vm), !tsc_deadline)?;
            Ok::<_, MachineError>((vm, Arc::new(irqchip)))
        })?;
        let processors = Processors {
            supported: &spec.supported,
            count: spec.vcpus,
            tsc_deadline,
            entry: spec.boot.entry(),
        };
        let (kind, template) = match spec.template {
            None => (Kind::Ordinary, None),
            Some(_) => {
                let cpuid = (0..spec.vcpus).map(|id| processors.cpuid(id)).collect();
                let kvm = spec.kvm;
                (Kind::Template, Some(Original { kvm, cpuid }))
            }
        };
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
        let vcpus = steps.measure("vcpus", || vcpu::create(&vm, &processors))?;
        Self::assemble(
            Parts {
                kind,
                template,
                vm,
                with_pit: !tsc_deadline,
                irqchip,
                ram,
                vcpus,
                console: spec.console,
                board: None,
            },
            notices,
        )
    }

    /// Makes the machine that its template was when it parked. It has no devices yet
    /// and does not run.
    pub(crate) fn restore(
        spec: RestoreSpec,
        notices: Arc<Notices>,
        steps: &mut Steps,
    ) -> Result<Self, MachineError> {
        kick::install_handler().map_err(MachineError::Signal)?;
        let state = spec.state;
        let with_pit = state.has_pit();
        let (vm, irqchip) = steps.measure("vm", || {
            let vm = Arc::new(spec.kvm.create_vm().map_err(MachineError::Vm)?);
            let irqchip = IrqChip::new(Arc::clone(&vm), with_pit)?;
            Ok::<_, MachineError>((vm, Arc::new(irqchip)))
        })?;
        let ram = steps.measure("memory", || {
            let ram = GuestRam::clone_of(state.ram, spec.memory)?;
            ram.register(&vm)?;
            Ok::<_, MemoryError>(Arc::new(ram))
        })?;
        let vcpus = steps.measure("vcpus", || state.apply(&vm))?;
        Self::assemble(
            Parts {
                kind: Kind::Clone,
                template: None,
                vm,
                with_pit,
                irqchip,
                ram,
                vcpus,
                console: spec.console,
                board: Some(state.board),
            },
            notices,
        )
    }

    fn assemble(parts: Parts, notices: Arc<Notices>) -> Result<Self, MachineError> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map(Arc::new)
            .map_err(MachineError::Event)?;
        parts.irqchip.connect_pin(SERIAL_IRQ, &irq)?;
        let pci = Arc::new(PciBus::new());
        let serial = match &parts.board {
            None => SerialPort::new(irq, parts.console),
            Some(board) => {
                board.put_back(&pci);
                SerialPort::restored(irq, parts.console, &board.serial)
                    .map_err(MachineError::Event)?
            }
        };
        let serial = Arc::new(serial);
        let own_ports = Arc::new(MachinePorts::new(
            parts.kind,
            Arc::clone(&parts.ram),
            Arc::clone(&notices),
        ));
        Ok(Self {
            vcpus: parts.vcpus,
            threads: Vec::new(),
            stage: Stage::Waiting,
            counters: Arc::default(),
            ports: Arc::new(Ports::new(
                Arc::clone(&serial),
                Arc::clone(&pci),
                Arc::clone(&own_ports),
            )),
            own_ports,
            serial,
            pci,
            wiring: Wiring {
                ram: parts.ram,
                routes: Arc::<IrqChip>::clone(&parts.irqchip),
                doorbells: parts.irqchip,
                notices: Arc::clone(&notices),
            },
            notices,
            vm: parts.vm,
            with_pit: parts.with_pit,
            template: parts.template,
        })
    }

    /// Adds a device whose backend is at the other end of `socket`.
    pub(crate) fn attach(
        &mut self,
        kind: DeviceType,
        socket: UnixStream,
        steps: &mut Steps,
    ) -> Result<(), MachineError> {
        match self.stage {
            Stage::Waiting if self.template.is_some() => return Err(MachineError::Template),
            Stage::Waiting => {}
            Stage::Running => return Err(MachineError::Running),
            Stage::Parked => return Err(MachineError::Parked),
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
        match self.stage {
            Stage::Waiting => self.stage = Stage::Running,
            Stage::Running => return Err(MachineError::Booted),
            Stage::Parked => return Err(MachineError::Parked),
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

    fn start(&self, id: usize, mut vcpu: VcpuFd) -> std::io::Result<JoinHandle<VcpuFd>> {
        let (ports, pci) = (Arc::clone(&self.ports), Arc::clone(&self.pci));
        let (counters, notices) = (Arc::clone(&self.counters), Arc::clone(&self.notices));
        std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(VCPU_STACK)
            .spawn(move || {
                let around = Surroundings {
                    ports: &ports,
                    pci: &pci,
                    notices: &notices,
                };
                vcpu::run(&mut vcpu, &around, &counters);
                vcpu
            })
    }

    /// Stops all processors between two instructions, because the guest wants to be
    /// cloned.
    pub(crate) fn park(&mut self) {
        self.vcpus = self.call_back(Order::Park);
        self.stage = Stage::Parked;
        self.serial.flush();
    }

    /// Writes the state of the parked machine to `file`, and makes holes in its
    /// memory where that is all zero.
    pub(crate) fn snapshot(&self, file: &File, steps: &mut Steps) -> Result<(), MachineError> {
        let template = self.template.as_ref();
        let Some(original) = template.filter(|_| self.stage == Stage::Parked) else {
            return Err(MachineError::NotParked);
        };
        let ram = &self.wiring.ram;
        if let Some(offset) = snapshot::first_used_of_window(ram) {
            return Err(MachineError::WindowUsed { offset });
        }
        steps.measure("state", || {
            let state = MachineState::capture(&Still {
                kvm: &original.kvm,
                vm: &self.vm,
                with_pit: self.with_pit,
                vcpus: &self.vcpus,
                cpuid: original.cpuid.clone(),
                ram: ram.plan(),
                serial: &self.serial,
                pci: &self.pci,
            })?;
            state.save(file)
        })?;
        steps.measure("holes", || ram.punch_zero_pages())?;
        Ok(())
    }

    /// What it has done so far.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            exits: self.counters.exits.load(Ordering::Relaxed),
            first_run_us: self.counters.first_run_us.load(Ordering::Relaxed),
            alive_us: self.own_ports.alive_us(),
            reclaimed_bytes: self.own_ports.reclaimed(),
        }
    }

    /// Stops the processors and writes out what the guest has printed.
    pub(crate) fn stop(&mut self) {
        drop(self.call_back(Order::Stop));
        self.serial.flush();
    }

    /// Gets the processors out of their threads.
    fn call_back(&mut self, order: Order) -> Vec<VcpuFd> {
        self.counters.give(order);
        for thread in &self.threads {
            kick::kick(thread);
        }
        let mut vcpus = Vec::with_capacity(self.threads.len());
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(vcpu) => vcpus.push(vcpu),
                Err(_) => tracing::error!("a vCPU's thread panicked"),
            }
        }
        vcpus
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}
