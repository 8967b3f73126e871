//! An OCI image layout in a directory (OCI image spec, "Image Layout").

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use oci_spec::image::ImageIndex;

use crate::blob::digest_of;
use crate::convert::blocking;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{About, Document, MAX_DOCUMENT};
use crate::reference::{LayoutReference, Selector};

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(super) reference: LayoutReference,
}

impl Layout {
    pub(crate) fn new(reference: LayoutReference) -> Self {
        Self { reference }
    }

    /// The digest that `index.json` has for a tag, or for the only image.
    pub(super) async fn find(&self, selector: Option<&Selector>) -> Result<Digest, ImageError> {
        let bytes = self.read_document(PathBuf::from("index.json")).await?;
        let name = self.reference.to_string();
        let about = About(&name);
        let index: ImageIndex =
            serde_json::from_slice(&bytes).map_err(|error| ImageError::ManifestInvalid {
                what: "index",
                reference: name.clone(),
                detail: error.to_string(),
            })?;
        let mut candidates = about.candidates(&index)?;
        let tags: Vec<String> = candidates
            .iter()
            .filter_map(|one| one.tag.clone())
            .collect();
        match selector {
            Some(Selector::Digest(digest)) => return Ok(*digest),
            Some(Selector::Tag(tag)) => {
                candidates.retain(|candidate| candidate.tag.as_ref() == Some(tag));
            }
            None => {}
        }
        match candidates.as_slice() {
            [] => Err(self.not_found(format!("the layout has the tags [{}]", tags.join(", ")))),
            [only] => Ok(only.digest),
            _ if selector.is_none() && tags.len() > 1 => Err(self.not_found(format!(
                "the layout has several images, name one of [{}]",
                tags.join(", ")
            ))),
            several => about.choose(several),
        }
    }

    pub(super) async fn document(&self, digest: Digest) -> Result<Document, ImageError> {
        let bytes = self.read_document(blob_path(digest)).await?;
        let actual = digest_of(&bytes);
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                what: "manifest",
                expected: digest,
                actual: actual.to_string(),
            });
        }
        Ok(Document { digest, bytes })
    }

    pub(super) async fn blob(&self, digest: Digest) -> Result<File, ImageError> {
        self.open(blob_path(digest)).await
    }

    async fn read_document(&self, path: PathBuf) -> Result<Vec<u8>, ImageError> {
        let file = self.open(path.clone()).await?;
        let full = self.reference.directory.join(path);
        blocking(move || {
            let mut bytes = Vec::new();
            let read = file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
            read.map_err(ImageError::store("read", &full))?;
            if bytes.len() as u64 > MAX_DOCUMENT {
                let detail = format!("{} has more than {MAX_DOCUMENT} bytes", full.display());
                return Err(ImageError::TooLarge { detail });
            }
            Ok(bytes)
        })
        .await
    }

    async fn open(&self, path: PathBuf) -> Result<File, ImageError> {
        let layout = self.clone();
        blocking(move || {
            let full = layout.reference.directory.join(path);
            // Never wait for a FIFO's other end: only regular files count.
            let opened = File::options()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&full)
                .and_then(|file| match file.metadata()?.is_file() {
                    true => Ok(file),
                    false => Err(io::Error::other("not a regular file")),
                });
            opened.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    layout.not_found(format!("there is no {}", full.display()))
                }
                _ => ImageError::store("open", &full)(error),
            })
        })
        .await
    }

    fn not_found(&self, detail: String) -> ImageError {
        ImageError::NotFound {
            reference: self.reference.to_string(),
            detail,
        }
    }
}

fn blob_path(digest: Digest) -> PathBuf {
    PathBuf::from("blobs/sha256").join(digest.hex())
}
