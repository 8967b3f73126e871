//! The frontend's messages: what they change in memory, rings and features.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, Error as VhostUserError, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::device::{Device, SharedMemory};
use crate::vring::{RingAddresses, Vring};

/// A region of guest memory and where the frontend has it mapped itself: ring
/// addresses come in the frontend's own.
#[derive(Clone, Copy, Debug)]
struct Region {
    frontend: u64,
    guest: u64,
    len: u64,
}

/// The state of a device that a frontend may change.
pub(crate) struct FrontendState<D> {
    pub(crate) device: D,
    pub(crate) rings: Vec<Vring>,
    pub(crate) memory: SharedMemory,
    regions: Vec<Region>,
    features: u64,
    /// A channel for requests of ours, of which there are none.
    requests: Option<Backend>,
}

impl<D: Device> FrontendState<D> {
    pub(crate) fn new(device: D) -> std::result::Result<Self, virtio_queue::Error> {
        let rings = (0..device.queue_count())
            .map(|_| Vring::new())
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            device,
            rings,
            memory: SharedMemory::new(),
            regions: Vec::new(),
            features: 0,
            requests: None,
        })
    }

    /// Forgets the frontend: its memory is unmapped, its descriptors closed.
    pub(crate) fn disconnect(&mut self) {
        for ring in &mut self.rings {
            ring.stop();
            ring.set_error(None);
            ring.set_enabled(false);
        }
        self.memory = SharedMemory::new();
        self.regions.clear();
        self.features = 0;
        self.requests = None;
        self.device.reset();
    }

    /// Whether SET_FEATURES has come.
    pub(crate) fn has_features(&self) -> bool {
        self.features != 0
    }

    /// With VIRTIO_F_ACCESS_PLATFORM the guest's kernel decides what memory a device
    /// is given (virtio 1.2 §6.1), and may keep it to the one window that is shared.
    /// Addresses are guest-physical as without: a frontend that translates them
    /// (an IOMMU) would need IOTLB messages, which are not offered.
    fn offered(&self) -> u64 {
        self.device.features()
            | (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_F_ACCESS_PLATFORM)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn ring(&mut self, index: u32) -> Result<&mut Vring> {
        usize::try_from(index)
            .ok()
            .and_then(|i| self.rings.get_mut(i))
            .ok_or(VhostUserError::InvalidParam)
    }

    /// Guest physical address of one in the frontend's own address space.
    fn guest_address(&self, frontend: u64) -> Result<u64> {
        self.regions
            .iter()
            .find_map(|r| {
                let offset = frontend.checked_sub(r.frontend).filter(|o| *o < r.len)?;
                r.guest.checked_add(offset)
            })
            .ok_or(VhostUserError::InvalidParam)
    }
}

/// The most guest memory that one frontend may share, in bytes. What is mapped costs
/// address space, which all devices of this process share.
const MAX_SHARED: u64 = 1 << 40;

/// Checks that touching a region can never end this process, and with it the disks of
/// all other pods: the file reaches to the region's end, nobody can cut it short, and
/// its pages come from memory that does not run out where huge pages would.
fn check_region(region: &VhostUserMemoryRegion, file: &File) -> Result<()> {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    if !seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK)) {
        return unsupported("guest memory that could shrink: it must be a sealed memfd");
    }
    let kind = fstatfs(file).map_err(refused)?.filesystem_type();
    if kind != TMPFS_MAGIC {
        return unsupported("guest memory of huge pages, which may be missing when touched");
    }
    let len = file.metadata().map_err(refused)?.len();
    let end = region.mmap_offset.checked_add(region.memory_size);
    if end.is_none_or(|end| end > len) {
        return unsupported("guest memory that reaches beyond its file");
    }
    Ok(())
}

/// Checks what a table asks for in all.
fn check_total(table: &[VhostUserMemoryRegion]) -> Result<()> {
    let total = table
        .iter()
        .try_fold(0_u64, |sum, region| sum.checked_add(region.memory_size));
    match total {
        Some(total) if total <= MAX_SHARED => Ok(()),
        _ => unsupported("more guest memory than one frontend may share"),
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(VhostUserError::InvalidOperation(what))
}

fn refused(e: impl std::error::Error + Send + Sync + 'static) -> VhostUserError {
    VhostUserError::ReqHandlerError(io::Error::other(e))
}

impl<D: Device> VhostUserBackendReqHandlerMut for FrontendState<D> {
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
        self.features = 0;
        self.device.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(VhostUserError::InvalidParam);
        }
        self.device.negotiated(features).map_err(refused)?;
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
        check_total(table)?;
        for (region, file) in table.iter().zip(files) {
            check_region(region, &file)?;
            mapped.push(
                GuestRegionMmap::new(
                    region.mmap_region(file)?,
                    GuestAddress(region.guest_phys_addr),
                )
                .ok_or(VhostUserError::InvalidParam)?,
            );
            regions.push(Region {
                frontend: region.user_addr,
                guest: region.guest_phys_addr,
                len: region.memory_size,
            });
        }
        self.memory = SharedMemory::from_regions(mapped).map_err(refused)?;
        self.regions = regions;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| VhostUserError::InvalidParam)?;
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
        let at = RingAddresses {
            descriptors: self.guest_address(descriptor)?,
            available: self.guest_address(available)?,
            used: self.guest_address(used)?,
        };
        self.ring(index)?.set_addresses(at).map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| VhostUserError::InvalidParam)?;
        self.ring(index)?.set_next_available(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        ring.stop();
        Ok(VhostUserVringState::new(
            index,
            u32::from(ring.next_available()),
        ))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self
            .rings
            .get_mut(usize::from(index))
            .ok_or(VhostUserError::InvalidParam)?;
        ring.start(fd, &self.memory).map_err(refused)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_call(fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_error(fd);
        Ok(())
    }

    /// BACKEND_REQ, a channel on which a backend could ask for translated addresses, is
    /// never used; but QEMU wants it of whoever offers VIRTIO_F_ACCESS_PLATFORM.
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
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

    /// Behind the end of the configuration space everything is 0: a frontend
    /// may know of newer fields.
    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let offset = usize::try_from(offset).map_err(refused)?;
        let size = usize::try_from(size).map_err(refused)?;
        let config = self.device.config().iter().copied();
        Ok(config
            .chain(std::iter::repeat(0))
            .skip(offset)
            .take(size)
            .collect())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported("the configuration space is read-only")
    }

    /// Kept, as its end would tell the frontend that something is wrong.
    fn set_backend_req_fd(&mut self, channel: Backend) {
        self.requests = Some(channel);
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
