//! What a card asks for a pod's volumes, and the answer over vhost-user.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::block::{BlockDevice, Disk};
use crate::error::VolumeError;
use crate::scratch::{ScratchStore, check_id, check_size};

/// A volume that a pod needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Unique on this host: 1 to 128 characters of `a-zA-Z0-9-_.`, no `.` at
    /// either end.
    pub id: String,
    /// Where it is to be served.
    pub socket: PathBuf,
    /// What it is.
    pub kind: VolumeKind,
    /// Serial by which the guest finds it, 1 to 20 bytes.
    pub serial: String,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A converted image, read-only, shared by all pods that use it.
    Image {
        /// The image's disk.
        disk: PathBuf,
    },
    /// An empty ext4 of the pod's own.
    Scratch {
        /// Its size.
        bytes: u64,
    },
}

/// How a volume is handed to a VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VolumeHandle {
    /// A vhost-user-blk backend listens there.
    VhostUser {
        /// The backend's socket.
        socket: PathBuf,
    },
}

/// A volume that a provider holds something for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldVolume {
    /// The volume.
    pub id: String,
    /// How to reach it; `None` where only its data is there, from before this
    /// process started: prepare it again, or release it.
    pub handle: Option<VolumeHandle>,
}

/// Hands disks to pods. Calls may block on the disk; repeating one is harmless.
pub trait VolumeProvider: Send + Sync {
    /// Makes the volume available to a VMM. The same spec again gives the same
    /// handle; data that a scratch volume of this id already has stays.
    ///
    /// # Errors
    /// [`VolumeError`]; nothing new is held then.
    fn prepare(&self, spec: &VolumeSpec) -> Result<VolumeHandle, VolumeError>;

    /// Takes the volume away and forgets what a scratch volume holds. An
    /// unknown id is no error.
    ///
    /// # Errors
    /// [`VolumeError`]; try again.
    fn release(&self, id: &str) -> Result<(), VolumeError>;

    /// All volumes that something is held for.
    ///
    /// # Errors
    /// [`VolumeError`].
    fn list(&self) -> Result<Vec<HeldVolume>, VolumeError>;
}

/// Volumes served by this process over vhost-user.
#[derive(Debug)]
pub struct VhostUserVolumes {
    scratch: ScratchStore,
    state: Mutex<State>,
    /// An id has become free.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    served: BTreeMap<String, Served>,
    /// Ids that a call is working on.
    busy: BTreeSet<String>,
}

/// The sole right to work on one id; calls for others go on meanwhile.
struct Claim<'a> {
    volumes: &'a VhostUserVolumes,
    id: &'a str,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.volumes.state().busy.remove(self.id);
        self.volumes.freed.notify_all();
    }
}

#[derive(Debug)]
struct Served {
    spec: VolumeSpec,
    device: BlockDevice,
}

impl Served {
    fn handle(&self) -> VolumeHandle {
        VolumeHandle::VhostUser {
            socket: self.device.socket().to_owned(),
        }
    }
}

impl VhostUserVolumes {
    /// Serves image disks, and scratch disks out of `scratch`.
    pub fn new(scratch: ScratchStore) -> Self {
        Self {
            scratch,
            state: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Gets ready for scratch disks of a size; blocks as long as `mkfs.ext4` takes. See
    /// [`ScratchStore::format_ahead`].
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn format_ahead(&self, bytes: u64) -> Result<(), VolumeError> {
        self.scratch.format_ahead(bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other call works on `id`.
    fn claim<'a>(&'a self, id: &'a str) -> Claim<'a> {
        let mut state = self.state();
        while !state.busy.insert(id.to_owned()) {
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Claim { volumes: self, id }
    }

    fn open(&self, kind: &VolumeKind, id: &str) -> Result<File, VolumeError> {
        match kind {
            VolumeKind::Image { disk } => File::open(disk).map_err(|source| VolumeError::Image {
                path: disk.clone(),
                source,
            }),
            VolumeKind::Scratch { bytes } => {
                let path = self.scratch.create(id, *bytes)?;
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .map_err(|source| VolumeError::Store {
                        doing: "opening",
                        path,
                        source,
                    })
            }
        }
    }

    fn holds_data(&self, spec: &VolumeSpec) -> Result<bool, VolumeError> {
        Ok(matches!(spec.kind, VolumeKind::Scratch { .. }) && self.scratch.contains(&spec.id)?)
    }
}

impl VolumeProvider for VhostUserVolumes {
    fn prepare(&self, spec: &VolumeSpec) -> Result<VolumeHandle, VolumeError> {
        check_id(&spec.id)?;
        crate::block::check_serial(&spec.serial)?;
        if let VolumeKind::Scratch { bytes } = spec.kind {
            check_size(bytes)?;
        }
        let _claim = self.claim(&spec.id);
        if let Some(there) = self.state().served.get(&spec.id) {
            return match there.spec.difference(spec) {
                None => Ok(there.handle()),
                Some(what) => Err(VolumeError::Conflict {
                    id: spec.id.clone(),
                    what,
                }),
            };
        }
        let had_data = self.holds_data(spec)?;
        let served = self
            .open(&spec.kind, &spec.id)
            .and_then(|file| {
                let disk = Disk {
                    file,
                    read_only: matches!(spec.kind, VolumeKind::Image { .. }),
                    serial: spec.serial.clone(),
                };
                BlockDevice::serve(&spec.socket, disk)
            })
            .inspect_err(|_| {
                if matches!(spec.kind, VolumeKind::Scratch { .. }) && !had_data {
                    let _ = self.scratch.remove(&spec.id);
                }
            })?;
        let served = Served {
            spec: spec.clone(),
            device: served,
        };
        let handle = served.handle();
        self.state().served.insert(spec.id.clone(), served);
        Ok(handle)
    }

    fn release(&self, id: &str) -> Result<(), VolumeError> {
        check_id(id)?;
        let _claim = self.claim(id);
        // Out of the map first: stopping may wait for a request.
        let served = self.state().served.remove(id);
        drop(served);
        self.scratch.remove(id)
    }

    fn list(&self) -> Result<Vec<HeldVolume>, VolumeError> {
        let mut held: BTreeMap<String, Option<VolumeHandle>> = self
            .scratch
            .list()?
            .into_iter()
            .map(|id| (id, None))
            .collect();
        for (id, served) in &self.state().served {
            held.insert(id.clone(), Some(served.handle()));
        }
        Ok(held
            .into_iter()
            .map(|(id, handle)| HeldVolume { id, handle })
            .collect())
    }
}

impl VolumeSpec {
    /// In what `other` differs, if in anything.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.kind != other.kind {
            Some("kind")
        } else if self.socket != other.socket {
            Some("socket")
        } else if self.serial != other.serial {
            Some("serial")
        } else {
            None
        }
    }
}
