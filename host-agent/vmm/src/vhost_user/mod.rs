//! vhost-user, the frontend's side: what a backend offers, the guest's memory
//! for it, its rings. The data path is the backend's and the guest's alone.
//!
//! The protocol: <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>.

mod deadline;
pub(crate) mod device_type;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::vhost_user::deadline::within;
use crate::vhost_user::device_type::DeviceType;
use crate::virtio_pci::{Backend, BackendError, DeviceModel, Vring};

/// How long a backend may take to be attached, to start or to stop. The agent's
/// request waits for the first, a vCPU for the others.
const LIMIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Protocol features that are used where the backend has them.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG);

/// Why a backend cannot serve a device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("preparing the socket of the {kind} backend: {source}")]
    Socket {
        kind: &'static str,
        source: std::io::Error,
    },
    #[error("{kind} backend: {doing}: {source}")]
    Backend {
        kind: &'static str,
        doing: &'static str,
        source: vhost::Error,
    },
    #[error("{kind} backend: it {lacks}")]
    Unfit {
        kind: &'static str,
        lacks: &'static str,
    },
}

/// A connected backend that has been told of the guest's memory.
pub(crate) struct VhostUser {
    frontend: Frontend,
    /// The connection, to end it.
    socket: UnixStream,
    /// Queues that it serves; the driver may see more.
    queues: u16,
    /// Whether its rings wait to be enabled.
    gated: bool,
    /// Rings that it has been given.
    started: Vec<u16>,
}

impl VhostUser {
    /// Negotiates with the backend at the other end of `socket`, and gives it the
    /// guest's memory. What it offers to the driver comes with it.
    pub(crate) fn connect(
        socket: UnixStream,
        kind: DeviceType,
        ram: &GuestRam,
    ) -> Result<(Self, DeviceModel), AttachError> {
        let failed = |source| AttachError::Socket {
            kind: kind.name(),
            source,
        };
        let connection = socket.try_clone().map_err(failed)?;
        within(LIMIT, &connection, || Self::negotiate(socket, kind, ram)).map_err(failed)?
    }

    fn negotiate(
        socket: UnixStream,
        kind: DeviceType,
        ram: &GuestRam,
    ) -> Result<(Self, DeviceModel), AttachError> {
        let name = kind.name();
        let unfit = |lacks| AttachError::Unfit { kind: name, lacks };
        let asking = |doing| {
            move |source| AttachError::Backend {
                kind: name,
                doing,
                source,
            }
        };
        let count = kind.queue_sizes().len() as u64;
        let shared = socket.try_clone();
        let shared = shared.map_err(|source| AttachError::Socket { kind: name, source })?;
        let mut frontend = Frontend::from_stream(shared, count);
        frontend.set_owner().map_err(asking("taking it"))?;
        let offered = frontend
            .get_features()
            .map_err(asking("asking for its features"))?;
        if offered & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(unfit("does not offer VIRTIO_F_VERSION_1"));
        }
        let gated = offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        let protocol = if gated {
            agree_on_protocol(&mut frontend).map_err(asking("agreeing on protocol features"))?
        } else {
            VhostUserProtocolFeatures::empty()
        };
        let mut queues = kind.served_queues();
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let has = frontend
                .get_queue_num()
                .map_err(asking("asking for its queues"))?;
            if has < u64::from(queues) {
                return Err(unfit("has too few queues"));
            }
            queues = u16::try_from(has.min(count)).unwrap_or(queues);
        }
        let with_config = protocol.contains(VhostUserProtocolFeatures::CONFIG);
        let config = match (with_config, kind.needs_config()) {
            (true, _) => read_config(&mut frontend, kind.config_len())
                .map_err(asking("reading its configuration"))?,
            (false, true) => return Err(unfit("has no configuration to read")),
            (false, false) => Vec::new(),
        };
        frontend
            .set_mem_table(&regions(ram))
            .map_err(asking("giving it the guest's memory"))?;
        let model = DeviceModel {
            id: kind.id(),
            class: kind.class(),
            features: offered & kind.features(with_config),
            queue_sizes: kind.queue_sizes(),
            config,
        };
        let backend = Self {
            frontend,
            socket,
            queues,
            gated,
            started: Vec::new(),
        };
        Ok((backend, model))
    }

    /// Does `work` with the frontend, which may take [`LIMIT`].
    fn ask<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Frontend) -> Result<T, vhost::Error>,
    ) -> Result<T, BackendError> {
        let began = Instant::now();
        let failed = |reason: String| BackendError {
            doing: doing.to_owned(),
            reason,
            silent: began.elapsed() >= LIMIT,
        };
        let frontend = &mut self.frontend;
        within(LIMIT, &self.socket, || work(frontend))
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))
    }
}

impl Backend for VhostUser {
    fn start(&mut self, features: u64, vrings: &[Vring<'_>]) -> Result<(), BackendError> {
        let mut acked = features;
        if self.gated {
            acked |= VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        }
        let (gated, queues) = (self.gated, self.queues);
        let given = vrings.iter().filter(|vring| vring.index < queues);
        self.started = given.clone().map(|vring| vring.index).collect();
        let started = self.ask("starting its rings", |frontend| {
            frontend.set_features(acked)?;
            for vring in given {
                start_ring(frontend, vring, gated)?;
            }
            Ok(())
        });
        if started.is_err() {
            let _ = self.stop();
        }
        started
    }

    fn set_call(&mut self, queue: u16, call: &EventFd) -> Result<(), BackendError> {
        if !self.started.contains(&queue) {
            return Ok(());
        }
        self.ask("changing a ring's interrupt", |frontend| {
            frontend.set_vring_call(queue.into(), call)
        })
    }

    fn stop(&mut self) -> Result<(), BackendError> {
        let (gated, started) = (self.gated, std::mem::take(&mut self.started));
        self.ask("stopping its rings", |frontend| {
            stop_rings(frontend, &started, gated)
        })
    }
}

fn start_ring(frontend: &mut Frontend, vring: &Vring<'_>, gated: bool) -> Result<(), vhost::Error> {
    let index = usize::from(vring.index);
    frontend.set_vring_num(index, vring.size)?;
    frontend.set_vring_base(index, 0)?;
    frontend.set_vring_addr(
        index,
        &VringConfigData {
            queue_max_size: vring.size,
            queue_size: vring.size,
            flags: 0,
            desc_table_addr: vring.rings.descriptors,
            used_ring_addr: vring.rings.device,
            avail_ring_addr: vring.rings.driver,
            log_addr: None,
        },
    )?;
    // The kick starts the ring: what it needs comes before.
    frontend.set_vring_call(index, vring.call)?;
    frontend.set_vring_kick(index, vring.kick)?;
    if gated {
        frontend.set_vring_enable(index, true)?;
    }
    Ok(())
}

fn stop_rings(frontend: &mut Frontend, started: &[u16], gated: bool) -> Result<(), vhost::Error> {
    // All are disabled before any is stopped: none works while others do not.
    if gated {
        for index in started {
            frontend.set_vring_enable((*index).into(), false)?;
        }
    }
    for index in started {
        frontend.get_vring_base((*index).into())?;
    }
    Ok(())
}

/// Agrees on what both sides know. Where the backend can, it acknowledges every
/// message from here on, so that its failures are noticed.
fn agree_on_protocol(frontend: &mut Frontend) -> Result<VhostUserProtocolFeatures, vhost::Error> {
    let agreed = frontend.get_protocol_features()? & PROTOCOL;
    frontend.set_protocol_features(agreed)?;
    if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(agreed)
}

fn read_config(frontend: &mut Frontend, len: u32) -> Result<Vec<u8>, vhost::Error> {
    let room = vec![0; usize::try_from(len).unwrap_or(0)];
    let (_, config) = frontend.get_config(0, len, VhostUserConfigFlags::empty(), &room)?;
    Ok(config)
}

/// The memory that the guest shares, as backends want to hear of it.
fn regions(ram: &GuestRam) -> Vec<VhostUserMemoryRegionInfo> {
    ram.shared()
        .iter()
        .map(|shared| VhostUserMemoryRegionInfo {
            guest_phys_addr: shared.at.guest,
            memory_size: shared.at.bytes,
            userspace_addr: shared.at.host,
            mmap_offset: shared.offset,
            mmap_handle: shared.fd,
        })
        .collect()
}

#[cfg(test)]
mod tests;
