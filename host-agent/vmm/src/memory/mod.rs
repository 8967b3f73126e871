//! Guest RAM. With the profile DIRECT it is one sealed memfd, mapped here and by the
//! backends that serve the guest. With DENSE it is private to this process, a view of
//! a template's in a clone, but for the DMA window: a memfd that backends map.

pub(crate) mod layout;
pub(crate) mod memfd;
pub(crate) mod plan;
mod region;
mod resident;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use crate::memory::memfd::UnfitMemory;
pub(crate) use crate::memory::plan::{Profile, RamPlan};
use crate::memory::region::{Backing, Region};

/// Why guest RAM could not be made, filled or given back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("creating a memfd of {bytes} bytes for guest RAM: {source}")]
    Memfd { bytes: u64, source: nix::Error },
    #[error("mapping {bytes} bytes of guest RAM: {source}")]
    Map { bytes: u64, source: io::Error },
    #[error("memory descriptor: {0}")]
    Unfit(#[from] UnfitMemory),
    #[error("copying the template's memory: {0}")]
    Copy(io::Error),
    #[error("giving KVM the RAM at {guest:#x}: {source}")]
    Register {
        guest: u64,
        source: kvm_ioctls::Error,
    },
    #[error("writing {bytes} bytes to guest RAM at {guest:#x}: {reason}")]
    Write {
        guest: u64,
        bytes: u64,
        reason: String,
    },
    #[error("giving back {bytes} bytes of guest RAM at {guest:#x}: {reason}")]
    GiveBack {
        guest: u64,
        bytes: u64,
        reason: String,
    },
    #[error("looking for pages of zeros in guest RAM: {0}")]
    Punch(io::Error),
}

/// One contiguous piece of guest RAM, as KVM is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Guest-physical address.
    pub(crate) guest: u64,
    /// Bytes.
    pub(crate) bytes: u64,
    /// Address in this process.
    pub(crate) host: u64,
}

impl Mapping {
    /// The address in this process of `bytes` at `guest`; `None` unless all of them
    /// lie here.
    fn address(&self, guest: u64, bytes: u64) -> Option<u64> {
        let end = guest.checked_add(bytes)?;
        (guest >= self.guest && end <= self.guest + self.bytes)
            .then(|| self.host + (guest - self.guest))
    }
}

/// One contiguous piece of guest RAM that backends are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SharedMapping {
    pub(crate) at: Mapping,
    /// Where it begins in the memfd, in bytes.
    pub(crate) offset: u64,
    /// The memfd. It holds nothing that backends must not see.
    pub(crate) fd: RawFd,
}

/// Guest RAM.
pub(crate) struct GuestRam {
    plan: RamPlan,
    mappings: Vec<Mapping>,
    shared: Vec<SharedMapping>,
    /// What the memory is, but for the window, where it is shared.
    file: Option<File>,
    /// Kept for its descriptor in `shared`.
    _window: Option<File>,
    /// In the order of `mappings`.
    regions: Vec<Region>,
}

impl GuestRam {
    /// RAM of a machine that boots by itself: all zero, none of it resident yet.
    pub(crate) fn new(plan: RamPlan) -> Result<Self, MemoryError> {
        match plan.profile {
            Profile::Direct => Self::on_memfd(plan, create_memfd(plan.bytes)?),
            Profile::Dense { .. } => {
                let ram = Self::build(plan, None, |_| Backing::Anonymous)?;
                // A kernel that boots touches most of what it touches in one place:
                // some fifteen faults and entries of nested page tables instead of
                // six thousand.
                for region in &ram.regions {
                    region.prefer_huge_pages();
                }
                Ok(ram)
            }
        }
    }

    /// RAM of a machine that becomes a template: `memory`, but for the window.
    pub(crate) fn template(plan: RamPlan, memory: File) -> Result<Self, MemoryError> {
        memfd::check_writable(&memory, plan.bytes)?;
        let bytes = plan.bytes;
        memfd::fix_size(&memory).map_err(|source| MemoryError::Memfd { bytes, source })?;
        Self::on_memfd(plan, memory)
    }

    /// RAM of a clone: what `memory`, a template's, holds. DENSE: a private view of
    /// it, with a window of zeros. DIRECT: a copy.
    pub(crate) fn clone_of(plan: RamPlan, memory: File) -> Result<Self, MemoryError> {
        memfd::check_sealed(&memory, plan.bytes)?;
        match plan.profile {
            Profile::Dense { .. } => {
                Self::build(plan, None, |offset| Backing::Private(&memory, offset))
            }
            Profile::Direct => {
                let own = create_memfd(plan.bytes)?;
                resident::copy(&memory, &own, plan.bytes).map_err(MemoryError::Copy)?;
                Self::on_memfd(plan, own)
            }
        }
    }

    fn on_memfd(plan: RamPlan, file: File) -> Result<Self, MemoryError> {
        let view = file.try_clone().map_err(|source| MemoryError::Map {
            bytes: plan.bytes,
            source,
        })?;
        Self::build(plan, Some(file), |offset| Backing::Shared(&view, offset))
    }

    /// Maps what `backing` says for each offset in the whole, and the window over it.
    fn build<'a>(
        plan: RamPlan,
        file: Option<File>,
        backing: impl Fn(u64) -> Backing<'a>,
    ) -> Result<Self, MemoryError> {
        let mut ram = Self {
            plan,
            mappings: Vec::new(),
            shared: Vec::new(),
            file,
            _window: None,
            regions: Vec::new(),
        };
        let mut offset = 0;
        for range in layout::ram_ranges(plan.bytes) {
            let bytes = range.end - range.start;
            let region = Region::map(bytes, &backing(offset))
                .map_err(|source| MemoryError::Map { bytes, source })?;
            let at = Mapping {
                guest: range.start,
                bytes,
                host: region.start(),
            };
            ram.mappings.push(at);
            ram.regions.push(region);
            if let (Profile::Direct, Some(file)) = (plan.profile, &ram.file) {
                let fd = file.as_raw_fd();
                ram.shared.push(SharedMapping { at, offset, fd });
            }
            offset += bytes;
        }
        ram.open_window()?;
        Ok(ram)
    }

    /// Puts the window, a fresh memfd, into its place.
    fn open_window(&mut self) -> Result<(), MemoryError> {
        let (Some(window), Some(region)) = (self.plan.window(), self.regions.first()) else {
            return Ok(());
        };
        let bytes = window.end - window.start;
        let file = memfd::create(c"dma-window", bytes)
            .map_err(|source| MemoryError::Memfd { bytes, source })?;
        // The first piece of RAM begins at 0, and the window lies in it.
        region
            .replace(window.start, bytes, &Backing::Shared(&file, 0))
            .map_err(|source| MemoryError::Map { bytes, source })?;
        self.shared.push(SharedMapping {
            at: Mapping {
                guest: window.start,
                bytes,
                host: region.start() + window.start,
            },
            offset: 0,
            fd: file.as_raw_fd(),
        });
        self._window = Some(file);
        Ok(())
    }

    /// What it was made as.
    pub(crate) fn plan(&self) -> RamPlan {
        self.plan
    }

    /// All pieces, in ascending guest-physical order: KVM's memory slots.
    #[cfg(test)]
    pub(crate) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// What backends are told of: all of it, or the window.
    pub(crate) fn shared(&self) -> &[SharedMapping] {
        &self.shared
    }

    /// Tells KVM of this RAM. `self` must live as long as `vm` runs.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, mapping) in (0..).zip(&self.mappings) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: mapping.guest,
                memory_size: mapping.bytes,
                userspace_addr: mapping.host,
            };
            // SAFETY: the range is one live mapping of ours, and stays mapped for as
            // long as the VM exists: the machine owns both and drops the RAM last.
            unsafe { vm.set_user_memory_region(region) }.map_err(|source| {
                MemoryError::Register {
                    guest: mapping.guest,
                    source,
                }
            })?;
        }
        Ok(())
    }

    /// The address in this process of `bytes` at `guest`, which a backend can reach
    /// too; `None` unless all of them are shared with backends, in one piece.
    pub(crate) fn shared_address(&self, guest: u64, bytes: u64) -> Option<u64> {
        self.shared
            .iter()
            .find_map(|shared| shared.at.address(guest, bytes))
    }

    /// The address in this process of `bytes` at `guest`; `None` unless all of them
    /// are RAM, in one piece.
    fn address(&self, guest: u64, bytes: u64) -> Option<u64> {
        self.mappings
            .iter()
            .find_map(|mapping| mapping.address(guest, bytes))
    }

    /// Where in the memfd of all RAM `bytes` at `guest` lie; `None` where they do not,
    /// or where there is none.
    fn place_in_file(&self, guest: u64, bytes: u64) -> Option<(&File, u64)> {
        let file = self.file.as_ref()?;
        if self.plan.touches_window(guest, bytes) {
            return None;
        }
        let mut offset = 0;
        for mapping in &self.mappings {
            if mapping.address(guest, bytes).is_some() {
                return Some((file, offset + (guest - mapping.guest)));
            }
            offset += mapping.bytes;
        }
        None
    }

    /// Copies `bytes` to `guest`. The guest does not run yet.
    pub(crate) fn write(&self, guest: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let len = bytes.len() as u64;
        let to = self.pointer(guest, len)?;
        // SAFETY: `pointer` has checked that all of the range is mapped, writable
        // memory of ours, to which there are no references.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn pointer(&self, guest: u64, bytes: u64) -> Result<*mut u8, MemoryError> {
        self.address(guest, bytes)
            .and_then(|host| usize::try_from(host).ok())
            .map(ptr::with_exposed_provenance_mut)
            .ok_or_else(|| MemoryError::Write {
                guest,
                bytes,
                reason: "this is not RAM".to_owned(),
            })
    }

    /// Copies `bytes` of `file` from `offset` to `guest`; into a memfd without a fault
    /// for each page of the mapping here. The guest does not run yet.
    pub(crate) fn load(
        &self,
        guest: u64,
        file: &File,
        offset: u64,
        bytes: u64,
    ) -> Result<(), MemoryError> {
        let copied = if let Some((own, start)) = self.place_in_file(guest, bytes) {
            resident::send(file, offset, own, start, bytes)
        } else {
            let to = self.pointer(guest, bytes)?;
            // SAFETY: `pointer` has checked that all of the range is mapped, writable
            // memory of ours, to which there are no references.
            unsafe { resident::read_to(file, offset, to, bytes) }
        };
        copied.map_err(|e| MemoryError::Write {
            guest,
            bytes,
            reason: e.to_string(),
        })
    }

    /// Gives `bytes` at `guest`, whole pages, back to the host: what the guest finds
    /// there from now on is undefined (zeros, or what the template had). Refused
    /// where they are not RAM in one piece or lie in the window. Returns how many
    /// bytes were given back.
    ///
    /// Safe while the guest runs.
    pub(crate) fn give_back(&self, guest: u64, bytes: u64) -> Result<u64, MemoryError> {
        let failed = |reason: String| MemoryError::GiveBack {
            guest,
            bytes,
            reason,
        };
        if !guest.is_multiple_of(layout::PAGE) || !bytes.is_multiple_of(layout::PAGE) {
            return Err(failed("these are no whole pages".to_owned()));
        }
        let host = self
            .address(guest, bytes)
            .ok_or_else(|| failed("this is not RAM".to_owned()))?;
        if self.plan.touches_window(guest, bytes) {
            return Err(failed("this is the DMA window".to_owned()));
        }
        if bytes == 0 {
            return Ok(0);
        }
        match self.place_in_file(guest, bytes) {
            Some((file, start)) => resident::punch(file, start, bytes),
            // SAFETY: the range is mapped private memory of ours, and nobody relies on
            // its content: the guest has just given it up.
            None => unsafe { resident::discard(host, bytes) },
        }
        .map_err(|e| failed(e.to_string()))?;
        Ok(bytes)
    }

    /// Makes holes of the pages that are all zero, in a machine that stands still.
    /// Only memory that is a memfd has any; returns how many bytes that were.
    pub(crate) fn punch_zero_pages(&self) -> Result<u64, MemoryError> {
        match &self.file {
            Some(file) => resident::punch_zeros(file, self.plan.bytes).map_err(MemoryError::Punch),
            None => Ok(0),
        }
    }
}

fn create_memfd(bytes: u64) -> Result<File, MemoryError> {
    memfd::create(c"guest-ram", bytes).map_err(|source| MemoryError::Memfd { bytes, source })
}

#[cfg(test)]
mod tests;
