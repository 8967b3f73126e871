//! A finished image in the store: a directory with the disk and a record.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::ImageConfig;

const RECORD: &str = "config.json";
pub(crate) const DISK: &str = "disk.erofs";
/// Raised when older disks or records must not be used any more.
const VERSION: u32 = 1;

/// An image that is ready to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its manifest for linux/amd64: `sha256:…`.
    pub digest: String,
    /// An EROFS disk, to be opened read-only; its length is a multiple of 4096.
    pub disk: PathBuf,
    /// How it wants to be run.
    pub config: ImageConfig,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    digest: String,
    /// In bytes.
    disk_size: u64,
    config: ImageConfig,
}

/// Writes the record beside a disk of `disk_size` bytes.
pub(crate) fn write(
    directory: &Path,
    digest: Digest,
    disk_size: u64,
    config: ImageConfig,
) -> Result<(), ImageError> {
    let record = Record {
        version: VERSION,
        digest: digest.to_string(),
        disk_size,
        config,
    };
    let bytes = serde_json::to_vec_pretty(&record)
        .map_err(|error| ImageError::Internal(format!("writing a record: {error}")))?;
    let path = directory.join(RECORD);
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(ImageError::store("write", &path))
}

/// The image in `directory`; none where there is none that can be used.
pub(crate) fn read(directory: &Path) -> Result<Option<Image>, ImageError> {
    let path = directory.join(RECORD);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(ImageError::store("read", &path)(error)),
    };
    let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
        return Ok(None);
    };
    let disk = directory.join(DISK);
    let size = match fs::metadata(&disk) {
        Ok(metadata) => metadata.len(),
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(ImageError::store("read", &disk)(error)),
    };
    if record.version != VERSION || record.disk_size != size {
        return Ok(None);
    }
    Ok(Some(Image {
        digest: record.digest,
        disk,
        config: record.config,
    }))
}

pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
