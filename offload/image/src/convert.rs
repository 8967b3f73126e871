//! From a manifest to a finished image directory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::blob::{Descriptor, read_small};
use crate::digest::Digest;
use crate::erofs::{self, ErofsError};
use crate::error::ImageError;
use crate::flatten::apply_layer;
use crate::layer::{Allowance, Archive, UnpackedLayer, unpack};
use crate::manifest::{About, ImageConfig, MAX_DOCUMENT, Manifest};
use crate::record;
use crate::source::{Source, Stop};
use crate::tree::Tree;

/// How many layers of one image are fetched at the same time.
const PARALLEL_LAYERS: usize = 3;

/// Fetches the blobs of `manifest`, whose digest is `digest`, and makes a finished
/// image of them: a directory below `workspace`, to be moved to its place.
/// Whatever happens, nothing works in `workspace` any more when this returns.
pub(crate) async fn convert(
    source: &Source,
    digest: Digest,
    manifest: &Manifest,
    max_bytes: u64,
    workspace: &Path,
) -> Result<PathBuf, ImageError> {
    let started = Instant::now();
    let compressed = manifest
        .layers
        .iter()
        .try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
    if compressed.is_none_or(|bytes| bytes > max_bytes) {
        return Err(ImageError::TooLarge {
            detail: format!("its layers have more than {max_bytes} bytes even compressed"),
        });
    }
    let (config, diff_ids) = configuration(source, manifest).await?;
    let allowance = Arc::new(Allowance::new(max_bytes));
    let layers = fetch_layers(source, manifest, &diff_ids, &allowance, workspace).await?;
    let fetched = started.elapsed();

    let name = source.name();
    let directory = workspace.join("image");
    let made = directory.clone();
    let (unpacked, disk) = blocking(move || {
        let unpacked: u64 = layers.iter().map(|layer| layer.length).sum();
        build(&layers, digest, config, &made).map(|disk| (unpacked, disk))
    })
    .await?;
    tracing::info!(
        image = name,
        %digest,
        layers = manifest.layers.len(),
        compressed_bytes = compressed,
        unpacked_bytes = unpacked,
        disk_bytes = disk,
        fetch_ms = fetched.as_secs_f64() * 1e3,
        build_ms = (started.elapsed() - fetched).as_secs_f64() * 1e3,
        "image converted"
    );
    Ok(directory)
}

async fn configuration(
    source: &Source,
    manifest: &Manifest,
) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
    let (_go, stop) = watch::channel(false);
    let descriptor = manifest.config;
    let blob = source.blob(descriptor, stop).await?;
    let bytes =
        blocking(move || read_small(blob, "configuration", descriptor, MAX_DOCUMENT)).await?;
    About(&source.name()).configuration(&bytes, manifest.layers.len())
}

/// All layers, unpacked, in the manifest's order. The first failure stops the
/// others; they are waited for.
async fn fetch_layers(
    source: &Source,
    manifest: &Manifest,
    diff_ids: &[Digest],
    allowance: &Arc<Allowance>,
    workspace: &Path,
) -> Result<Vec<UnpackedLayer>, ImageError> {
    let (stop_all, stop) = watch::channel(false);
    let turns = Arc::new(Semaphore::new(PARALLEL_LAYERS));
    let mut running = JoinSet::new();
    for (index, (&layer, &diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
        let fetch = Fetch {
            source: source.clone(),
            layer,
            diff_id,
            path: workspace.join(format!("layer-{index}.tar")),
            allowance: Arc::clone(allowance),
            stop: stop.clone(),
        };
        let turns = Arc::clone(&turns);
        running.spawn(async move {
            let _turn = turns.acquire().await;
            (index, fetch.run().await)
        });
    }
    let mut layers: Vec<Option<UnpackedLayer>> = Vec::new();
    layers.resize_with(manifest.layers.len(), || None);
    let mut first_failure = None;
    while let Some(done) = running.join_next().await {
        let failure = match done {
            Ok((index, Ok(layer))) => {
                if let Some(place) = layers.get_mut(index) {
                    *place = Some(layer);
                }
                continue;
            }
            Ok((_, Err(error))) => error,
            Err(error) => ImageError::Internal(error.to_string()),
        };
        stop_all.send_replace(true);
        allowance.end();
        first_failure.get_or_insert(failure);
    }
    match first_failure {
        Some(failure) => Err(failure),
        None => layers
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| ImageError::Internal("a layer got lost".to_owned())),
    }
}

/// What it takes to fetch one layer.
struct Fetch {
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    path: PathBuf,
    allowance: Arc<Allowance>,
    stop: Stop,
}

impl Fetch {
    async fn run(self) -> Result<UnpackedLayer, ImageError> {
        let mut stop = self.stop.clone();
        let blob = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {
                return Err(ImageError::Internal("given up".to_owned()));
            }
            blob = self.source.blob(self.layer, self.stop) => blob?,
        };
        let (layer, diff_id, path, allowance) =
            (self.layer, self.diff_id, self.path, self.allowance);
        blocking(move || unpack(blob, layer, diff_id, &path, &allowance)).await
    }
}

/// Flattens the layers and writes the disk and its record, safe against a crash of
/// the machine. Gives the disk's size in bytes.
fn build(
    layers: &[UnpackedLayer],
    digest: Digest,
    config: ImageConfig,
    directory: &Path,
) -> Result<u64, ImageError> {
    let mut tree = Tree::new();
    for (index, layer) in layers.iter().enumerate() {
        let archive = Archive::new(&layer.file, layer.length);
        apply_layer(&mut tree, index, layer.digest, archive)?;
    }
    fs::create_dir(directory).map_err(ImageError::store("create", directory))?;
    let path = directory.join(record::DISK);
    let write = || -> Result<u64, ErofsError> {
        let file = File::create_new(&path)?;
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        let files: Vec<&File> = layers.iter().map(|layer| &layer.file).collect();
        let size = erofs::write(&tree, &files, uuid(digest), &mut out)?;
        out.flush()?;
        drop(out);
        file.sync_all()?;
        Ok(size)
    };
    let size = write().map_err(|error| match error {
        ErofsError::Io(error) => ImageError::store("write", &path)(error),
        ErofsError::TooLarge => ImageError::TooLarge {
            detail: error.to_string(),
        },
        ErofsError::Xattr(_) | ErofsError::Device(..) => ImageError::LayerInvalid {
            layer: layers.last().map_or(digest, |layer| layer.digest),
            detail: error.to_string(),
        },
    })?;
    record::write(directory, digest, size, config)?;
    sync_directory(directory)?;
    Ok(size)
}

/// Makes what was created or renamed in `directory` last.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), ImageError> {
    File::open(directory)
        .and_then(|open| open.sync_all())
        .map_err(ImageError::store("sync", directory))
}

/// The disk's UUID: the digest's first bytes, marked as RFC 9562's version 8.
fn uuid(digest: Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(digest.bytes()) {
        *to = *from;
    }
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// Runs what may block on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ImageError::Internal(error.to_string()))?
}
