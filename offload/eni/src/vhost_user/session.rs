//! The frontend's messages: what they change in memory, rings and features.

use std::fs::File;
use std::io;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostUserError, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::ring::Ring;
use crate::net::{Device, Memory};

/// Where the guest receives and transmits (virtio 1.2 §5.1.2).
pub(super) const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// A region of guest memory and where the frontend has it mapped itself: ring
/// addresses come in the frontend's own.
#[derive(Clone, Copy, Debug)]
struct Region {
    frontend: u64,
    guest: u64,
    len: u64,
}

/// A device, and what its frontend has set up.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) device: Device,
    pub(super) rings: [Ring; 2],
    memory: Memory,
    regions: Vec<Region>,
    features: u64,
}

impl Session {
    pub(super) fn new(device: Device) -> std::result::Result<Self, virtio_queue::Error> {
        Ok(Self {
            device,
            rings: [Ring::new()?, Ring::new()?],
            memory: Memory::new(),
            regions: Vec::new(),
            features: 0,
        })
    }

    /// Whether SET_FEATURES has come.
    pub(super) fn has_features(&self) -> bool {
        self.features != 0
    }

    /// Moves packets in both directions, a batch each at most.
    pub(super) fn work(&mut self) {
        let Self {
            device,
            rings,
            memory,
            features,
            ..
        } = self;
        let name = device.name();
        rings[RECEIVE].turn(name, |queue| device.receive(queue, memory, *features));
        rings[TRANSMIT].turn(name, |queue| device.transmit(queue, memory));
    }

    /// Forgets the frontend: its memory is unmapped, its descriptors closed.
    pub(super) fn disconnect(&mut self) {
        for ring in &mut self.rings {
            ring.stop();
            ring.set_enabled(false);
        }
        self.memory = Memory::new();
        self.regions = Vec::new();
        self.features = 0;
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(refused)?;
        self.rings
            .get_mut(index)
            .ok_or(VhostUserError::InvalidParam)
    }

    /// Guest physical address of one in the frontend's own address space.
    fn guest_address(&self, frontend: u64) -> Result<u64> {
        let found = self.regions.iter().find_map(|region| {
            let offset = frontend.checked_sub(region.frontend)?;
            let within = offset < region.len;
            within.then(|| region.guest.checked_add(offset)).flatten()
        });
        found.ok_or(VhostUserError::InvalidParam)
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(VhostUserError::InvalidOperation(what))
}

fn refused(e: impl std::error::Error + Send + Sync + 'static) -> VhostUserError {
    VhostUserError::ReqHandlerError(io::Error::other(e))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated; frontends that still send it mean GET_VRING_BASE of all rings.
    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for ring in &mut self.rings {
            ring.stop();
            ring.set_enabled(false);
        }
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(Device::features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !Device::features() != 0 {
            return Err(VhostUserError::InvalidParam);
        }
        self.device.accept(features).map_err(refused)?;
        self.features = features;
        // Without protocol features there is no SET_VRING_ENABLE, and rings
        // start enabled (vhost-user, "Ring states").
        let enable = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &mut self.rings {
            ring.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            if enable {
                ring.set_enabled(true);
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::with_capacity(table.len());
        let mut regions = Vec::with_capacity(table.len());
        for (region, file) in table.iter().zip(files) {
            let mapping = region.mmap_region(file)?;
            let guest = GuestAddress(region.guest_phys_addr);
            let mapping = GuestRegionMmap::new(mapping, guest);
            mapped.push(mapping.ok_or(VhostUserError::InvalidParam)?);
            regions.push(Region {
                frontend: region.user_addr,
                guest: region.guest_phys_addr,
                len: region.memory_size,
            });
        }
        self.memory = Memory::from_regions(mapped).map_err(refused)?;
        self.regions = regions;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(refused)?;
        self.ring(index)?.set_size(size).map_err(refused)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptors = self.guest_address(descriptor)?;
        let available = self.guest_address(available)?;
        let used = self.guest_address(used)?;
        let ring = self.ring(index)?;
        ring.set_addresses(descriptors, available, used)
            .map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(refused)?;
        self.ring(index)?.set_position(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let position = self.ring(index)?.stop();
        Ok(VhostUserVringState::new(index, u32::from(position)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.rings.get_mut(usize::from(index));
        let ring = ring.ok_or(VhostUserError::InvalidParam)?;
        ring.start(fd, &self.memory).map_err(refused)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.set_call(fd);
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        // A broken ring is logged.
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        u64::try_from(self.rings.len()).map_err(refused)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        Ok(())
    }

    /// Behind the last field that is offered everything is 0: a frontend may
    /// know of newer fields.
    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let offset = usize::try_from(offset).map_err(refused)?;
        let size = usize::try_from(size).map_err(refused)?;
        let fields = self.device.config().iter().copied();
        let space = fields.chain(std::iter::repeat(0));
        Ok(space.skip(offset).take(size).collect())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported("the configuration space is read-only")
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported("this is no GPU")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported("there are no shared objects")
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported("in-flight tracking was not offered")
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported("in-flight tracking was not offered")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported("memory slots were not offered")
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unsupported("memory slots were not offered")
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported("memory slots were not offered")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported("device state was not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("device state was not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("there are no shared memory regions")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported("dirty logging was not offered")
    }
}
