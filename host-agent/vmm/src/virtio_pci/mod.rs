//! Virtio over PCI, modern only (virtio 1.2, 4.1): the transport, without its
//! rings. What the driver says goes to a [`Backend`]; the rest is eventfds.

mod capabilities;
mod common_config;
mod queue;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::notices::{Notice, Notices};
use crate::pci::PciFunction;
use crate::pci::bus::BAR_BYTES;
use crate::pci::config_space::{ConfigSpace, Identity};
use crate::pci::msix::{MessageRoutes, Msix};
use crate::vcpu::Ending;
use crate::virtio_pci::capabilities::{
    COMMON, DEVICE, DOORBELL, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, Places,
};
use crate::virtio_pci::common_config::{CommonConfig, Effect};
pub(crate) use crate::virtio_pci::queue::Rings;

/// Vendor of all virtio devices, and the first device id of modern ones.
const VENDOR: u16 = 0x1AF4;
const FIRST_DEVICE: u16 = 0x1040;
/// The driver asks the platform where a device can reach memory (virtio 1.2, 6). It
/// is offered where that is a window only. No backend hears of it: what it is told
/// are addresses in memory that it has, and none that need translation.
const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;
/// The configuration bit of the ISR status.
const ISR_CONFIG: u8 = 2;

/// What a device is, told by its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceModel {
    /// Virtio device type.
    pub(crate) id: u16,
    /// PCI class.
    pub(crate) class: [u8; 3],
    /// Features on offer.
    pub(crate) features: u64,
    /// Largest size of each queue.
    pub(crate) queue_sizes: Vec<u16>,
    /// The device-specific configuration.
    pub(crate) config: Vec<u8>,
}

/// One queue that is handed to a backend.
pub(crate) struct Vring<'a> {
    /// Number of the queue.
    pub(crate) index: u16,
    /// Number of descriptors.
    pub(crate) size: u16,
    /// Where the rings are.
    pub(crate) rings: Rings,
    /// Written by the driver.
    pub(crate) kick: &'a EventFd,
    /// Written by the backend.
    pub(crate) call: &'a EventFd,
}

/// Who serves the queues.
pub(crate) trait Backend: Send {
    /// Starts serving `vrings`, with `features` agreed on.
    fn start(&mut self, features: u64, vrings: &[Vring<'_>]) -> Result<(), BackendError>;
    /// From now on, `queue` interrupts by `call`.
    fn set_call(&mut self, queue: u16, call: &EventFd) -> Result<(), BackendError>;
    /// Stops serving all queues: no ring is touched after this.
    fn stop(&mut self) -> Result<(), BackendError>;
}

/// A backend did not do as asked.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub(crate) struct BackendError {
    /// What was asked.
    pub(crate) doing: String,
    /// What it said.
    pub(crate) reason: String,
    /// It said nothing for too long, and nobody knows what it does: it may still
    /// work on the rings.
    pub(crate) silent: bool,
}

/// Something that turns a guest's write to an address into an eventfd's.
pub(crate) trait Doorbells: Send + Sync {
    /// From now on, writes to `address` write `event` and nobody else hears of them.
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Undoes [`Doorbells::connect`].
    fn disconnect(&self, address: u64, event: &EventFd);
}

/// What a device is wired to.
#[derive(Clone)]
pub(crate) struct Wiring {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) routes: Arc<dyn MessageRoutes>,
    pub(crate) doorbells: Arc<dyn Doorbells>,
    pub(crate) notices: Arc<Notices>,
}

/// A virtio device on the bus.
pub(crate) struct VirtioPci {
    space: ConfigSpace,
    places: Places,
    common: CommonConfig,
    msix: Msix,
    isr: u8,
    config: Vec<u8>,
    kicks: Vec<EventFd>,
    /// Interrupts of queues without a vector end here.
    silent: EventFd,
    running: bool,
    /// Where doorbells are connected, by queue.
    connected: Vec<(u64, u16)>,
    ram: Arc<GuestRam>,
    doorbells: Arc<dyn Doorbells>,
    notices: Arc<Notices>,
    backend: Box<dyn Backend>,
}

impl VirtioPci {
    /// A device of `model` with its BAR at `base`.
    pub(crate) fn new(
        model: DeviceModel,
        base: u32,
        wiring: &Wiring,
        backend: Box<dyn Backend>,
    ) -> io::Result<Self> {
        let device = FIRST_DEVICE + model.id;
        let mut space = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device,
            subsystem_vendor: VENDOR,
            subsystem: device,
            revision: 1,
            class: model.class,
        });
        space.set_memory_bar(base, BAR_BYTES);
        let queues = u16::try_from(model.queue_sizes.len()).unwrap_or(u16::MAX);
        // One a queue, one for configuration changes.
        let msix = Msix::new(queues.saturating_add(1), Arc::clone(&wiring.routes))?;
        let places = capabilities::add_to(&mut space, msix.count());
        let mut features = model.features & !ACCESS_PLATFORM;
        if wiring.ram.plan().window().is_some() {
            features |= ACCESS_PLATFORM;
        }
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            space,
            places,
            common: CommonConfig::new(features, &model.queue_sizes, msix.count()),
            msix,
            isr: 0,
            config: model.config,
            kicks: (0..queues).map(|_| event()).collect::<io::Result<_>>()?,
            silent: event()?,
            running: false,
            connected: Vec::new(),
            ram: Arc::clone(&wiring.ram),
            doorbells: Arc::clone(&wiring.doorbells),
            notices: Arc::clone(&wiring.notices),
            backend,
        })
    }

    /// Gives the enabled queues to the backend; a driver that set them up wrongly,
    /// or a backend that fails, ends in a device that needs a reset.
    fn start(&mut self) {
        match self.try_start() {
            Ok(()) => {
                self.running = true;
                self.place_doorbells();
            }
            Err(reason) => {
                tracing::debug!("starting a virtio device: {reason}");
                if self.common.fail() {
                    self.config_changed();
                }
            }
        }
    }

    fn try_start(&mut self) -> Result<(), String> {
        let mut vrings = Vec::new();
        for (index, (queue, kick)) in (0..).zip(self.common.queues().iter().zip(&self.kicks)) {
            if !queue.enabled {
                continue;
            }
            let rings = queue.locate(index, &self.ram).map_err(|e| e.to_string())?;
            vrings.push(Vring {
                index,
                size: queue.size,
                rings,
                kick,
                call: self.msix.event(queue.vector).unwrap_or(&self.silent),
            });
        }
        let features = self.common.features() & !ACCESS_PLATFORM;
        let started = self.backend.start(features, &vrings);
        started.map_err(|e| {
            self.end_if_silent(&e);
            e.to_string()
        })
    }

    /// Ends the machine where a backend may go on writing to memory that the guest
    /// takes for its own again.
    fn end_if_silent(&self, error: &BackendError) {
        if error.silent {
            let reason =
                format!("a device no longer answers, but may use the guest's memory: {error}");
            self.notices.tell(Notice::Ended(Ending::Failed(reason)));
        }
    }

    /// Takes the queues back.
    fn stop(&mut self) {
        self.isr = 0;
        if !std::mem::take(&mut self.running) {
            return;
        }
        self.place_doorbells();
        // A backend that is gone touches no ring, and will refuse the next start.
        if let Err(e) = self.backend.stop() {
            tracing::debug!("stopping a virtio device: {e}");
            self.end_if_silent(&e);
        }
        for kick in &self.kicks {
            let _ = kick.read();
        }
        self.msix.drain();
    }

    /// Connects the doorbells where the BAR is now, or disconnects them where it
    /// is not decoded or nothing runs.
    fn place_doorbells(&mut self) {
        for (address, queue) in std::mem::take(&mut self.connected) {
            if let Some(kick) = self.kicks.get(usize::from(queue)) {
                self.doorbells.disconnect(address, kick);
            }
        }
        let Some(base) = self.space.memory_base().filter(|_| self.running) else {
            return;
        };
        for (index, (queue, kick)) in (0..).zip(self.common.queues().iter().zip(&self.kicks)) {
            let address = base + NOTIFY.start + u64::from(index) * DOORBELL;
            if !queue.enabled {
                continue;
            }
            match self.doorbells.connect(address, kick) {
                Ok(()) => self.connected.push((address, index)),
                // The guest has put two BARs in one place: it rings there in vain.
                Err(e) => tracing::debug!("connecting the doorbell at {address:#x}: {e}"),
            }
        }
    }

    /// A doorbell that no eventfd took: rung in the moment of its start, or in a
    /// way that KVM does not recognise.
    fn ring(&self, offset: u64) {
        let kick = usize::try_from(offset / DOORBELL)
            .ok()
            .and_then(|queue| self.kicks.get(queue));
        if let Some(kick) = kick.filter(|_| self.running) {
            let _ = kick.write(1);
        }
    }

    /// Tells the driver that its configuration has changed.
    fn config_changed(&mut self) {
        self.isr |= ISR_CONFIG;
        if let Some(event) = self.msix.event(self.common.config_vector()) {
            let _ = event.write(1);
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        match self.common.write(offset, data) {
            Effect::Nothing => {}
            Effect::Start => self.start(),
            Effect::Stop => self.stop(),
            Effect::Vector { queue } => self.change_vector(queue),
        }
    }

    fn change_vector(&mut self, index: u16) {
        let queue = self.common.queues().get(usize::from(index));
        let Some(queue) = queue.filter(|queue| self.running && queue.enabled) else {
            return;
        };
        let call = self.msix.event(queue.vector).unwrap_or(&self.silent);
        if let Err(e) = self.backend.set_call(index, call) {
            tracing::debug!("changing the vector of queue {index}: {e}");
        }
    }

    /// Whether an access to configuration space reaches the data of the window.
    fn in_window(&self, offset: u8) -> bool {
        let data = self.places.window + 16;
        (data..data + 4).contains(&usize::from(offset))
    }

    /// Offset and length in BAR 0 that the window shows; `None` where the driver
    /// has set nothing sensible.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.places.window;
        let offset = u32::from_le_bytes(self.space.array(at + 8));
        let length = u32::from_le_bytes(self.space.array(at + 12));
        let sensible = self.space.byte(at + 4) == 0
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && offset < BAR_BYTES;
        sensible.then_some((offset.into(), usize::try_from(length).unwrap_or(0)))
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        if self.in_window(offset)
            && let Some((at, len)) = self.window()
        {
            let mut bytes = [0; 4];
            if let Some(part) = bytes.get_mut(..len) {
                self.memory_read(at, part);
            }
            self.space.put(self.places.window + 16, &bytes);
        }
        self.space.read(offset, data);
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        let base = self.space.memory_base();
        let control = self.space.array::<2>(self.places.msix_control);
        self.space.write(offset, data);
        let new_control = self.space.array(self.places.msix_control);
        if new_control != control {
            self.msix.set_control(u16::from_le_bytes(new_control));
        }
        if self.running && self.space.memory_base() != base {
            self.place_doorbells();
        }
        if self.in_window(offset)
            && let Some((at, len)) = self.window()
        {
            let bytes = self.space.array::<4>(self.places.window + 16);
            self.memory_write(at, bytes.get(..len).unwrap_or_default());
        }
    }

    fn memory_base(&self) -> Option<u64> {
        self.space.memory_base()
    }

    fn memory_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            o if COMMON.contains(&o) => self.common.read(o, data),
            o if ISR.contains(&o) => {
                if let Some(byte) = data.first_mut() {
                    *byte = std::mem::take(&mut self.isr);
                }
            }
            o if DEVICE.contains(&o) => {
                let at = usize::try_from(o - DEVICE.start).unwrap_or(usize::MAX);
                for (to, from) in data.iter_mut().zip(self.config.iter().skip(at)) {
                    *to = *from;
                }
            }
            o if MSIX_TABLE.contains(&o) => self.msix.read_table(o - MSIX_TABLE.start, data),
            o if MSIX_PENDING.contains(&o) => self.msix.read_pending(o - MSIX_PENDING.start, data),
            _ => {}
        }
    }

    fn memory_write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            o if COMMON.contains(&o) => self.write_common(o, data),
            o if NOTIFY.contains(&o) => self.ring(o - NOTIFY.start),
            o if MSIX_TABLE.contains(&o) => self.msix.write_table(o - MSIX_TABLE.start, data),
            // No device here has configuration that its driver may write.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
