//! A store's objects in one file, to be put away and read back.
//!
//! ```text
//! "longship-backup\n"  format: u32  version of the store: u64
//! an object:  1: u8  kind: u16  key: u32  value: u32  (lengths)  version: u64  and the three
//! the end:    0: u8  count of the objects: u64
//! SHA-256 of all that comes before
//! ```
//! Numbers are little-endian. History for watchers is not kept: whoever watched lists
//! again.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable};
use sha2::{Digest, Sha256};

use crate::error::StoreError;
use crate::object::{MAX_KEY_BYTES, MAX_VALUE_BYTES, Object};
use crate::writer::{self, FORMAT, META, OBJECTS, meta};

const MAGIC: &[u8; 16] = b"longship-backup\n";
/// Number of the layout above.
const LAYOUT: u32 = 1;
const OBJECT: u8 = 1;
const END: u8 = 0;
/// Objects that are written in one go when they are read back.
const BATCH: u64 = 10_000;

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backup {
    /// Version of the store.
    pub version: u64,
    /// How many.
    pub objects: u64,
}

/// Why a backup was not written, or not read back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file could not be read or written.
    #[error("the backup: {0}")]
    Io(#[from] io::Error),
    /// The file is no backup, or not a whole one.
    #[error("this is no backup that can be used: {0}")]
    Damaged(&'static str),
    /// It is of another version of this program.
    #[error("the backup has layout {0}, this program reads {LAYOUT}")]
    Layout(u32),
    /// There is a store already.
    #[error("{}: there is a store already", .0.display())]
    Exists(PathBuf),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes all objects as they are at one version, while others may go on to write.
pub(crate) fn write(db: &Database, to: impl Write) -> Result<Backup, BackupError> {
    let read = db.begin_read().map_err(StoreError::backend)?;
    let numbers = read.open_table(META).map_err(StoreError::backend)?;
    let version = writer::number(&numbers, meta::VERSION)?;
    let mut out = Summed::new(BufWriter::new(to));
    out.write_all(MAGIC)?;
    out.write_all(&LAYOUT.to_le_bytes())?;
    out.write_all(&version.to_le_bytes())?;
    let mut objects = 0_u64;
    let table = read.open_table(OBJECTS).map_err(StoreError::backend)?;
    for entry in table.iter().map_err(StoreError::backend)? {
        let (place, value) = entry.map_err(StoreError::backend)?;
        let ((kind, key), (version, value)) = (place.value(), value.value());
        let too_large = |_| BackupError::Damaged("an object is too large");
        out.write_all(&[OBJECT])?;
        out.write_all(&u16::try_from(kind.len()).map_err(too_large)?.to_le_bytes())?;
        out.write_all(&u32::try_from(key.len()).map_err(too_large)?.to_le_bytes())?;
        out.write_all(&u32::try_from(value.len()).map_err(too_large)?.to_le_bytes())?;
        out.write_all(&version.to_le_bytes())?;
        out.write_all(kind.as_bytes())?;
        out.write_all(key.as_bytes())?;
        out.write_all(value)?;
        objects += 1;
    }
    out.write_all(&[END])?;
    out.write_all(&objects.to_le_bytes())?;
    let sum = out.sum.clone().finalize();
    out.inner.write_all(&sum)?;
    out.inner.flush()?;
    Ok(Backup { version, objects })
}

/// Checks a whole backup; what it holds.
///
/// # Errors
/// [`BackupError::Damaged`], [`BackupError::Layout`], [`BackupError::Io`].
pub fn check_backup(from: impl Read) -> Result<Backup, BackupError> {
    read(from, |_| Ok(()))
}

/// Makes a new store of a backup. Nothing is there afterwards where that fails.
///
/// # Errors
/// [`BackupError::Exists`] where there is a store, and all of [`check_backup`]'s.
pub fn restore(from: impl Read, path: &Path) -> Result<Backup, BackupError> {
    if path.try_exists()? {
        return Err(BackupError::Exists(path.to_owned()));
    }
    // Under its own name only once it is whole.
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let restored = restore_into(from, &part).and_then(|backup| {
        std::fs::rename(&part, path)?;
        if let Some(dir) = path.parent() {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(backup)
    });
    if restored.is_err() {
        // It may not exist.
        let _ = std::fs::remove_file(&part);
    }
    restored
}

fn restore_into(from: impl Read, part: &Path) -> Result<Backup, BackupError> {
    let _ = std::fs::remove_file(part);
    let db = Database::create(part).map_err(StoreError::backend)?;
    let mut batch = Vec::new();
    let backup = read(from, |object| {
        batch.push(object);
        if u64::try_from(batch.len()).unwrap_or(u64::MAX) >= BATCH {
            insert(&db, std::mem::take(&mut batch))?;
        }
        Ok(())
    })?;
    insert(&db, batch)?;
    let write = db.begin_write().map_err(StoreError::backend)?;
    {
        let mut numbers = write.open_table(META).map_err(StoreError::backend)?;
        for (name, value) in [
            (meta::FORMAT, FORMAT),
            (meta::VERSION, backup.version),
            (meta::OLDEST, backup.version),
        ] {
            numbers.insert(name, value).map_err(StoreError::backend)?;
        }
        write.open_table(writer::LOG).map_err(StoreError::backend)?;
    }
    write.commit().map_err(StoreError::backend)?;
    Ok(backup)
}

fn insert(db: &Database, batch: Vec<Object>) -> Result<(), BackupError> {
    let write = db.begin_write().map_err(StoreError::backend)?;
    {
        let mut table = write.open_table(OBJECTS).map_err(StoreError::backend)?;
        for object in batch {
            let place = (object.kind.as_str(), object.key.as_str());
            let before = table.insert(place, (object.version, object.value.as_slice()));
            if before.map_err(StoreError::backend)?.is_some() {
                return Err(BackupError::Damaged("it has an object twice"));
            }
        }
    }
    write.commit().map_err(StoreError::backend)?;
    Ok(())
}

fn read(
    from: impl Read,
    mut take: impl FnMut(Object) -> Result<(), BackupError>,
) -> Result<Backup, BackupError> {
    let mut from = Summed::new(BufReader::new(from));
    if from.bytes::<16>()? != *MAGIC {
        return Err(BackupError::Damaged("it does not begin as one"));
    }
    let layout = u32::from_le_bytes(from.bytes()?);
    if layout != LAYOUT {
        return Err(BackupError::Layout(layout));
    }
    let version = u64::from_le_bytes(from.bytes()?);
    let mut objects = 0_u64;
    loop {
        match from.bytes::<1>()? {
            [OBJECT] => {
                let object = from.object()?;
                if object.version > version {
                    return Err(BackupError::Damaged("an object is newer than the store"));
                }
                take(object)?;
                objects += 1;
            }
            [END] => break,
            _ => return Err(BackupError::Damaged("it holds what is no object")),
        }
    }
    if u64::from_le_bytes(from.bytes()?) != objects {
        return Err(BackupError::Damaged("objects are missing"));
    }
    let sum = from.sum.clone().finalize();
    if from.bytes::<32>()?[..] != sum[..] {
        return Err(BackupError::Damaged("its checksum is wrong"));
    }
    if from.inner.read(&mut [0])? != 0 {
        return Err(BackupError::Damaged("it goes on behind its end"));
    }
    Ok(Backup { version, objects })
}

/// Sums up what passes.
struct Summed<T> {
    inner: T,
    sum: Sha256,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        let sum = Sha256::new();
        Self { inner, sum }
    }
}

impl<T: Write> Summed<T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Summed<T> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.inner
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends too early"),
                _ => error.into(),
            })?;
        self.sum.update(bytes);
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn vec(&mut self, len: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn object(&mut self) -> Result<Object, BackupError> {
        let kind = usize::from(u16::from_le_bytes(self.bytes()?));
        let [key, value] = [self.bytes()?, self.bytes()?].map(u32::from_le_bytes);
        let version = u64::from_le_bytes(self.bytes()?);
        let too_large = |_| BackupError::Damaged("an object is too large");
        let key = usize::try_from(key).map_err(too_large)?;
        let value = usize::try_from(value).map_err(too_large)?;
        if kind.saturating_add(key) > MAX_KEY_BYTES || value > MAX_VALUE_BYTES {
            return Err(BackupError::Damaged("an object is too large"));
        }
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|_| BackupError::Damaged("a name is not UTF-8"))
        };
        Ok(Object {
            kind: text(self.vec(kind)?)?,
            key: text(self.vec(key)?)?,
            value: self.vec(value)?,
            version,
        })
    }
}
