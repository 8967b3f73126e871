//! The pods' writable disks: sparse files, copied from a template that is formatted
//! once a size.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::VolumeError;
use crate::ext4::{LAYOUT, format_ext4};
use crate::sparse::copy_sparse;

/// Sizes of a scratch disk in bytes; a multiple of [`BLOCK`].
pub const SCRATCH_BYTES: RangeInclusive<u64> = (8 << 20)..=(1 << 44);

/// Bytes of a file system block.
pub(crate) const BLOCK: u64 = 4096;

/// Ending of a disk's file. What is being written has [`PARTIAL`] and is
/// thrown away at the next start.
const DISK: &str = ".ext4";
const PARTIAL: &str = ".partial";

/// A directory of scratch disks.
///
/// The file system has no journal: a scratch disk does not outlive its pod, so
/// there is nothing to recover, and each write costs one. All disks of a size
/// share their UUID, which no two disks of one pod do.
#[derive(Debug)]
pub struct ScratchStore {
    disks: PathBuf,
    templates: PathBuf,
    /// One formats or copies at a time: what is slow is the disk.
    writing: Mutex<()>,
}

impl ScratchStore {
    /// Opens the store in `dir`, which is made where it is missing. What an
    /// interrupted call left there is removed; finished disks stay.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, VolumeError> {
        let store = Self {
            disks: dir.as_ref().join("disks"),
            templates: dir.as_ref().join("templates"),
            writing: Mutex::new(()),
        };
        for path in [&store.disks, &store.templates] {
            fs::create_dir_all(path).map_err(failed("creating", path))?;
            for entry in fs::read_dir(path).map_err(failed("reading", path))? {
                let entry = entry.map_err(failed("reading", path))?.path();
                if entry.to_string_lossy().ends_with(PARTIAL) {
                    fs::remove_file(&entry).map_err(failed("removing", &entry))?;
                }
            }
        }
        Ok(store)
    }

    /// Formats the template of a size ahead of the first disk, which would wait for
    /// it: `mkfs.ext4` takes a hundred times longer than all the rest.
    ///
    /// # Errors
    /// [`VolumeError::ScratchSize`], [`VolumeError::Store`], [`VolumeError::Format`].
    pub fn format_ahead(&self, bytes: u64) -> Result<(), VolumeError> {
        check_size(bytes)?;
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.template(bytes).map(|_| ())
    }

    /// The disk `id`, an empty ext4 of `bytes` where it did not exist yet.
    /// Blocks: the first of a size runs `mkfs.ext4`.
    ///
    /// # Errors
    /// [`VolumeError::Id`], [`VolumeError::ScratchSize`],
    /// [`VolumeError::Conflict`] where it exists with another size,
    /// [`VolumeError::Store`], [`VolumeError::Format`].
    pub fn create(&self, id: &str, bytes: u64) -> Result<PathBuf, VolumeError> {
        let path = self.path(id)?;
        check_size(bytes)?;
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::metadata(&path) {
            Ok(there) if there.len() == bytes => return Ok(path),
            Ok(_) => {
                return Err(VolumeError::Conflict {
                    id: id.to_owned(),
                    what: "size",
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("looking at", &path)(e)),
        }
        let template = self.template(bytes)?;
        whole(&path, |partial| {
            copy_sparse(&template, partial).map_err(failed("copying the template to", partial))
        })?;
        Ok(path)
    }

    /// Removes the disk `id`; one that is not there is no error.
    ///
    /// # Errors
    /// [`VolumeError::Id`], [`VolumeError::Store`].
    pub fn remove(&self, id: &str) -> Result<(), VolumeError> {
        let path = self.path(id)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Whether there is a disk `id`.
    ///
    /// # Errors
    /// [`VolumeError::Id`], [`VolumeError::Store`].
    pub fn contains(&self, id: &str) -> Result<bool, VolumeError> {
        let path = self.path(id)?;
        fs::exists(&path).map_err(failed("looking at", &path))
    }

    /// The ids of all disks, sorted.
    ///
    /// # Errors
    /// [`VolumeError::Store`].
    pub fn list(&self) -> Result<Vec<String>, VolumeError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.disks).map_err(failed("reading", &self.disks))? {
            let name = entry.map_err(failed("reading", &self.disks))?.file_name();
            ids.extend(
                name.to_str()
                    .and_then(|n| n.strip_suffix(DISK))
                    .map(str::to_owned),
            );
        }
        ids.sort();
        Ok(ids)
    }

    fn path(&self, id: &str) -> Result<PathBuf, VolumeError> {
        check_id(id)?;
        Ok(self.disks.join(format!("{id}{DISK}")))
    }

    fn template(&self, bytes: u64) -> Result<PathBuf, VolumeError> {
        let path = self.templates.join(format!("{bytes}.{LAYOUT}{DISK}"));
        if !path.exists() {
            whole(&path, |partial| format_ext4(partial, bytes))?;
        }
        Ok(path)
    }
}

/// Whether `id` is a safe file name.
pub(crate) fn check_id(id: &str) -> Result<(), VolumeError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = (1..=128).contains(&id.len()) && id.bytes().all(allowed);
    if fits && !id.starts_with('.') && !id.ends_with('.') {
        Ok(())
    } else {
        Err(VolumeError::Id(id.to_owned()))
    }
}

/// Whether a scratch disk may have so many bytes.
pub(crate) fn check_size(bytes: u64) -> Result<(), VolumeError> {
    if SCRATCH_BYTES.contains(&bytes) && bytes.is_multiple_of(BLOCK) {
        return Ok(());
    }
    let expected = format!(
        "{} to {} bytes, a multiple of {BLOCK}",
        SCRATCH_BYTES.start(),
        SCRATCH_BYTES.end()
    );
    Err(VolumeError::ScratchSize { bytes, expected })
}

pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Store {
        doing,
        path,
        source,
    }
}

/// Lets `make` write a file beside `path`, which then appears complete or not
/// at all.
fn whole(
    path: &Path,
    make: impl FnOnce(&Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    make(&partial)
        .and_then(|()| fs::rename(&partial, path).map_err(failed("renaming", &partial)))
        .inspect_err(|_| {
            let _ = fs::remove_file(&partial);
        })
}
