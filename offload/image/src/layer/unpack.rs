//! A layer's blob, decompressed into a file, both ends checked.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use crate::blob::{Descriptor, Verified};
use crate::digest::Digest;
use crate::error::ImageError;

/// How many bytes an image's layers may still unpack to, all together.
#[derive(Debug)]
pub(crate) struct Allowance {
    limit: u64,
    left: AtomicU64,
}

impl Allowance {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            left: AtomicU64::new(limit),
        }
    }

    /// Nothing more may be unpacked: the image has failed already.
    pub(crate) fn end(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> Result<(), ImageError> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .map(drop)
            .map_err(|_| ImageError::TooLarge {
                detail: format!("its layers unpack to more than {} bytes", self.limit),
            })
    }
}

/// An unpacked layer.
#[derive(Debug)]
pub(crate) struct UnpackedLayer {
    /// Of the blob, as the manifest names it.
    pub(crate) digest: Digest,
    /// The tar archive.
    pub(crate) file: File,
    /// In bytes.
    pub(crate) length: u64,
}

/// Writes the archive in `blob` to a new file at `path`.
///
/// The compression is what the first bytes say: media types of old Docker images
/// are known to be wrong about it, and the two digests leave no doubt.
///
/// # Errors
/// [`ImageError::Truncated`], [`ImageError::DigestMismatch`],
/// [`ImageError::LayerInvalid`], [`ImageError::TooLarge`], or the source's own.
pub(crate) fn unpack(
    blob: impl Read,
    descriptor: Descriptor,
    diff_id: Digest,
    path: &Path,
    allowance: &Allowance,
) -> Result<UnpackedLayer, ImageError> {
    let store = |action| ImageError::store(action, path);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(store("create"))?;
    let mut verified = Verified::new(blob, "layer", descriptor);
    let unpacked = decompress(&mut verified, &mut file, path, allowance);
    let (actual, length) = match unpacked {
        Ok(done) => done,
        Err(Failed::For(error)) => return Err(error),
        Err(Failed::Stream(error)) => {
            // A broken stream is most often a broken blob: the digest knows.
            verified.finish()?;
            return Err(ImageError::LayerInvalid {
                layer: descriptor.digest,
                detail: format!("it cannot be decompressed: {error}"),
            });
        }
    };
    verified.finish()?;
    if actual != diff_id {
        return Err(ImageError::DigestMismatch {
            what: "unpacked layer",
            expected: diff_id,
            actual: actual.to_string(),
        });
    }
    file.seek(SeekFrom::Start(0)).map_err(store("rewind"))?;
    Ok(UnpackedLayer {
        digest: descriptor.digest,
        file,
        length,
    })
}

enum Failed {
    /// The cause is known.
    For(ImageError),
    /// The compressed stream is broken.
    Stream(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        ImageError::within(&error).map_or(Self::Stream(error), Self::For)
    }
}

fn decompress(
    blob: impl Read,
    file: &mut File,
    path: &Path,
    allowance: &Allowance,
) -> Result<(Digest, u64), Failed> {
    let mut blob = BufReader::with_capacity(128 << 10, blob);
    let mut stream: Box<dyn Read + '_> = match blob.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(blob)?),
        _ => Box::new(blob),
    };
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let got = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        allowance.take(got as u64).map_err(Failed::For)?;
        let bytes = buffer.get(..got).unwrap_or_default();
        hasher.update(bytes);
        file.write_all(bytes)
            .map_err(|error| Failed::For(ImageError::store("write", path)(error)))?;
        length += got as u64;
    }
    Ok((Digest::new(hasher.finalize().into()), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::digest_of;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn described(blob: &[u8]) -> Descriptor {
        Descriptor {
            digest: digest_of(blob),
            size: blob.len() as u64,
        }
    }

    fn run(
        blob: &[u8],
        descriptor: Descriptor,
        content: &[u8],
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer");
        let allowance = Allowance::new(limit);
        let mut layer = unpack(blob, descriptor, digest_of(content), &path, &allowance)?;
        assert_eq!(layer.digest, descriptor.digest);
        let mut bytes = Vec::new();
        layer.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, layer.length);
        Ok(bytes)
    }

    #[test]
    fn plain_gzip_and_zstd_give_the_same_archive() {
        let content = b"content of a layer ".repeat(5000);
        let zstd = zstd::encode_all(&content[..], 1).unwrap();
        let mut members = gzip(&content[..1000]);
        members.extend(gzip(&content[1000..]));
        for blob in [content.clone(), gzip(&content), members, zstd] {
            let limit = content.len() as u64;
            assert_eq!(
                run(&blob, described(&blob), &content, limit).unwrap(),
                content
            );
        }
    }

    #[test]
    fn a_bomb_is_stopped_while_it_unpacks() {
        let content = vec![0; 8 << 20];
        let blob = gzip(&content);
        let refused = run(&blob, described(&blob), &content, 1 << 20).unwrap_err();
        assert_eq!(refused.reason(), "ImageTooLarge");
        assert!(refused.to_string().contains("1048576"), "{refused}");
    }

    #[test]
    fn what_is_wrong_with_a_blob_is_told_apart() {
        let content = b"content of a layer ".repeat(5000);
        let blob = gzip(&content);
        let reason = |bytes: &[u8], descriptor, content: &[u8]| {
            run(bytes, descriptor, content, 1 << 30)
                .unwrap_err()
                .reason()
        };
        let whole = described(&blob);
        assert_eq!(
            reason(&blob[..blob.len() / 2], whole, &content),
            "LayerTruncated"
        );
        let mut flipped = blob.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        assert_eq!(reason(&flipped, whole, &content), "DigestMismatch");
        assert_eq!(reason(&blob, whole, b"other"), "DigestMismatch");
        // The digest is right, but what it stands for is no gzip stream.
        let cut = &blob[..blob.len() / 2];
        assert_eq!(reason(cut, described(cut), &content), "LayerInvalid");
    }
}
