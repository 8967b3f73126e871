//! Blobs checked against their digest and size while they stream by.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::ImageError;

/// What a manifest says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    /// In bytes, as it is stored and sent.
    pub(crate) size: u64,
}

/// A reader that hashes what it gives, and never gives more than was announced.
pub(crate) struct Verified<R> {
    inner: R,
    what: &'static str,
    descriptor: Descriptor,
    hasher: Sha256,
    seen: u64,
}

impl<R: Read> Verified<R> {
    pub(crate) fn new(inner: R, what: &'static str, descriptor: Descriptor) -> Self {
        Self {
            inner,
            what,
            descriptor,
            hasher: Sha256::new(),
            seen: 0,
        }
    }

    /// Reads what is left and says whether all of it was what it should be. Only
    /// after this has anything that was read been proved right.
    ///
    /// # Errors
    /// [`ImageError::Truncated`], [`ImageError::DigestMismatch`], or the source's own.
    pub(crate) fn finish(mut self) -> Result<(), ImageError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(ImageError::within(&error).unwrap_or_else(|| {
                        ImageError::Internal(format!("reading a blob: {error}"))
                    }));
                }
            }
        }
        let Descriptor { digest, size } = self.descriptor;
        if self.seen < size {
            return Err(ImageError::Truncated {
                what: self.what,
                digest,
                detail: format!("it ends after {} of {size} bytes", self.seen),
            });
        }
        let actual = Digest::new(self.hasher.finalize().into());
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                what: self.what,
                expected: digest,
                actual: actual.to_string(),
            });
        }
        Ok(())
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.seen += got as u64;
        if self.seen > self.descriptor.size {
            return Err(ImageError::DigestMismatch {
                what: self.what,
                expected: self.descriptor.digest,
                actual: format!("longer than the {} bytes announced", self.descriptor.size),
            }
            .into_io());
        }
        self.hasher.update(buffer.get(..got).unwrap_or_default());
        Ok(got)
    }
}

/// Reads a whole small blob.
///
/// # Errors
/// As [`Verified::finish`], and [`ImageError::TooLarge`] over `limit` bytes.
pub(crate) fn read_small(
    source: impl Read,
    what: &'static str,
    descriptor: Descriptor,
    limit: u64,
) -> Result<Vec<u8>, ImageError> {
    if descriptor.size > limit {
        return Err(ImageError::TooLarge {
            detail: format!(
                "its {what} has {} bytes; the limit is {limit}",
                descriptor.size
            ),
        });
    }
    let mut verified = Verified::new(source, what, descriptor);
    let mut bytes = Vec::new();
    verified.read_to_end(&mut bytes).map_err(|error| {
        ImageError::within(&error)
            .unwrap_or_else(|| ImageError::Internal(format!("reading the {what}: {error}")))
    })?;
    verified.finish()?;
    Ok(bytes)
}

/// The SHA-256 digest of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(bytes: &[u8]) -> Descriptor {
        Descriptor {
            digest: digest_of(bytes),
            size: bytes.len() as u64,
        }
    }

    #[test]
    fn the_announced_bytes_pass() {
        let bytes = read_small(&b"abc"[..], "layer", described(b"abc"), 3).unwrap();
        assert_eq!(bytes, b"abc");
    }

    #[test]
    fn other_bytes_too_few_and_too_many_are_told_apart() {
        let expected = described(b"abc");
        let reason = |bytes: &[u8]| {
            read_small(bytes, "layer", expected, 10)
                .unwrap_err()
                .reason()
        };
        assert_eq!(reason(b"abd"), "DigestMismatch");
        assert_eq!(reason(b"ab"), "LayerTruncated");
        assert_eq!(reason(b"abcd"), "DigestMismatch");
        let large = read_small(&b"abc"[..], "layer", expected, 2).unwrap_err();
        assert_eq!(large.reason(), "ImageTooLarge");
    }
}
