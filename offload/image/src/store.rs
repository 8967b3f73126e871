//! The store: images that are ready, and how they come in.
//!
//! ```text
//! DIR/lock                          held while the store is open
//! DIR/images/HEX/disk.erofs         HEX: the manifest's digest
//! DIR/images/HEX/config.json
//! DIR/temp/…                        under way; removed at the next start
//! ```

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::convert::{blocking, convert, sync_directory};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::flight::{Flights, Lost};
use crate::manifest::Manifest;
use crate::record::{self, Image};
use crate::reference::{Reference, Selector};
use crate::source::{Layout, Registries, Repository, Resolved, Source};

/// How many images are converted at the same time.
const PARALLEL_IMAGES: usize = 4;

/// The usual limit for [`StoreConfig::max_image_bytes`]: 8 GiB.
pub const DEFAULT_MAX_IMAGE_BYTES: u64 = 8 << 30;

/// What a store needs to know.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Made where it is missing. One process at a time.
    pub directory: PathBuf,
    /// The most that all layers of one image may have, unpacked, in bytes.
    pub max_image_bytes: u64,
    /// `host` or `host:port` of registries that are asked over plain HTTP.
    /// Loopback addresses always are.
    pub insecure_registries: Vec<String>,
}

/// Images by digest, pulled and converted when they are first asked for. Clones
/// are the same store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    images: PathBuf,
    temp: PathBuf,
    max_image_bytes: u64,
    registries: Arc<Registries>,
    resolving: Flights<String, Result<Resolved, ImageError>>,
    converting: Flights<Digest, Result<Image, ImageError>>,
    turns: Semaphore,
    /// Held as long as the store lives.
    _lock: Flock<File>,
}

impl ImageStore {
    /// Opens the store, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`ImageError::StoreInUse`], or [`ImageError::Store`] with the path at fault.
    pub fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let directory = config.directory;
        let images = directory.join("images");
        let temp = directory.join("temp");
        // Images are their tenants' own.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&images)
            .map_err(ImageError::store("create", &images))?;
        let path = directory.join("lock");
        let file = File::create(&path).map_err(ImageError::store("create", &path))?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, error)| match error {
                    nix::errno::Errno::EWOULDBLOCK => ImageError::StoreInUse(directory.clone()),
                    _ => ImageError::store("lock", &path)(error.into()),
                },
            )?;
        match fs::remove_dir_all(&temp) {
            Err(error) if !record::is_missing(&error) => {
                return Err(ImageError::store("remove", &temp)(error));
            }
            _ => {}
        }
        fs::create_dir(&temp).map_err(ImageError::store("create", &temp))?;
        Ok(Self {
            inner: Arc::new(Inner {
                images,
                temp,
                max_image_bytes: config.max_image_bytes,
                registries: Arc::new(Registries::new(config.insecure_registries)),
                resolving: Flights::new(),
                converting: Flights::new(),
                turns: Semaphore::new(PARALLEL_IMAGES),
                _lock: lock,
            }),
        })
    }

    /// The image that `reference` stands for now, pulled and converted if it is not
    /// there yet. A tag is looked up every time; content that is there is not
    /// fetched again. Who asks for the same at the same time shares the work.
    ///
    /// # Errors
    /// Any [`ImageError`] but [`ImageError::StoreInUse`]. After an error nothing of
    /// the image is left in the store.
    pub async fn prepare(&self, reference: &str) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        let (source, selector) = self.source(reference);
        let resolved = self.resolve(&source, selector).await?;
        let Some(manifest) = resolved.manifest else {
            return match self.find(resolved.digest).await? {
                Some(image) => Ok(image),
                // Removed since it was found; its manifest is needed after all.
                None => Err(ImageError::NotStored(resolved.digest.to_string())),
            };
        };
        let (inner, digest) = (Arc::clone(&self.inner), resolved.digest);
        let convert = || async move { inner.obtain(&source, digest, &manifest).await };
        let converted = self.inner.converting.join(digest, convert).await;
        converted.map_err(|Lost| lost())?
    }

    /// All images of the store, by digest.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let images = self.inner.images.clone();
        blocking(move || {
            let read = ImageError::store("read", &images);
            let entries: Vec<_> = fs::read_dir(&images)
                .and_then(Iterator::collect::<Result<_, _>>)
                .map_err(read)?;
            let mut found = Vec::new();
            for entry in entries {
                found.extend(record::read(&entry.path())?);
            }
            found.sort_by(|a, b| a.digest.cmp(&b.digest));
            Ok(found)
        })
        .await
    }

    /// Removes the image with this manifest digest. Whoever has its disk open keeps
    /// it until they close it.
    ///
    /// # Errors
    /// [`ImageError::NotStored`], or [`ImageError::Store`].
    pub async fn remove(&self, digest: &str) -> Result<(), ImageError> {
        let not_stored = || ImageError::NotStored(digest.to_owned());
        let known: Digest = digest.parse().map_err(|_| not_stored())?;
        let path = self.inner.path(known);
        let missing = not_stored();
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            // Gone at once, whatever happens to its files.
            let grave = inner.workspace()?;
            match fs::rename(&path, grave.path().join("removed")) {
                Ok(()) => sync_directory(&inner.images),
                Err(error) if record::is_missing(&error) => Err(missing),
                Err(error) => Err(ImageError::store("remove", &path)(error)),
            }
        })
        .await
    }

    fn source(&self, reference: Reference) -> (Source, Option<Selector>) {
        match reference {
            Reference::Registry(reference) => {
                let selector = reference.selector.clone();
                let registries = Arc::clone(&self.inner.registries);
                let repository = Repository::new(reference, registries);
                (Source::Registry(repository), Some(selector))
            }
            Reference::Layout(reference) => {
                let selector = reference.selector.clone();
                (Source::Layout(Layout::new(reference)), selector)
            }
        }
    }

    async fn resolve(
        &self,
        source: &Source,
        selector: Option<Selector>,
    ) -> Result<Resolved, ImageError> {
        let inner = Arc::clone(&self.inner);
        let source = source.clone();
        let key = source.name();
        let resolve = || async move {
            let is_known = |digest: &Digest| matches!(inner.read(*digest), Ok(Some(_)));
            source.resolve(selector.as_ref(), is_known).await
        };
        let resolved = self.inner.resolving.join(key, resolve).await;
        resolved.map_err(|Lost| lost())?
    }

    async fn find(&self, digest: Digest) -> Result<Option<Image>, ImageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.read(digest)).await
    }
}

impl Inner {
    /// The image, converted unless somebody else has just done so.
    async fn obtain(
        self: Arc<Self>,
        source: &Source,
        digest: Digest,
        manifest: &Manifest,
    ) -> Result<Image, ImageError> {
        let _turn = self.turns.acquire().await;
        let inner = Arc::clone(&self);
        if let Some(image) = blocking(move || inner.read(digest)).await? {
            return Ok(image);
        }
        let inner = Arc::clone(&self);
        let workspace = blocking(move || inner.workspace()).await?;
        let made = convert(
            source,
            digest,
            manifest,
            self.max_image_bytes,
            workspace.path(),
        )
        .await;
        let inner = Arc::clone(&self);
        blocking(move || {
            let result = made.and_then(|made| inner.keep(&made, digest, workspace.path()));
            drop(workspace);
            result
        })
        .await
    }

    /// Moves a finished image to its place.
    fn keep(&self, made: &Path, digest: Digest, workspace: &Path) -> Result<Image, ImageError> {
        let path = self.path(digest);
        // What is there cannot be used, or this image would not have been made.
        match fs::rename(&path, workspace.join("unusable")) {
            Err(error) if !record::is_missing(&error) => {
                return Err(ImageError::store("replace", &path)(error));
            }
            _ => {}
        }
        fs::rename(made, &path).map_err(ImageError::store("create", &path))?;
        sync_directory(&self.images)?;
        self.read(digest)?
            .ok_or_else(|| ImageError::NotStored(digest.to_string()))
    }

    fn read(&self, digest: Digest) -> Result<Option<Image>, ImageError> {
        record::read(&self.path(digest))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.images.join(digest.hex())
    }

    /// A directory that is gone, with all in it, when this is dropped.
    fn workspace(&self) -> Result<TempDir, ImageError> {
        tempfile::tempdir_in(&self.temp).map_err(ImageError::store("create", &self.temp))
    }
}

fn lost() -> ImageError {
    ImageError::Internal("the conversion was lost".to_owned())
}
