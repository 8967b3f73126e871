//! Where images come from: registries, and layouts on disk.

mod challenge;
mod layout;
mod registry;
mod stream;

use std::io::Read;

use tokio::sync::watch;

pub(crate) use layout::Layout;
pub(crate) use registry::{Registries, Repository};

use crate::blob::Descriptor;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{About, Document, Manifest, Parsed};
use crate::reference::Selector;

/// An index may point to an index; a layout's `index.json` comes before both.
const MAX_INDEXES: usize = 4;

/// Becomes true when nobody wants the rest of the blobs any more.
pub(crate) type Stop = watch::Receiver<bool>;

/// One image's source.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Registry(Repository),
    Layout(Layout),
}

/// The manifest that a reference stands for at this moment.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    /// None where the digest was known beforehand and so nothing was asked for.
    pub(crate) manifest: Option<Manifest>,
}

impl Source {
    /// Finds the manifest of `selector` for linux/amd64. Nothing is fetched for a
    /// digest that `is_known`.
    pub(crate) async fn resolve(
        &self,
        selector: Option<&Selector>,
        is_known: impl Fn(&Digest) -> bool,
    ) -> Result<Resolved, ImageError> {
        let name = self.name();
        let about = About(&name);
        let mut selector = match (self, selector) {
            (Self::Layout(layout), Some(Selector::Tag(_)) | None) => {
                Selector::Digest(layout.find(selector).await?)
            }
            (_, Some(selector)) => selector.clone(),
            (_, None) => Selector::Tag("latest".to_owned()),
        };
        for _ in 0..MAX_INDEXES {
            if let Selector::Digest(digest) = selector
                && is_known(&digest)
            {
                return Ok(Resolved {
                    digest,
                    manifest: None,
                });
            }
            let document = self.document(&selector).await?;
            match about.parse(&document)? {
                Parsed::Manifest(manifest) => {
                    return Ok(Resolved {
                        digest: document.digest,
                        manifest: Some(manifest),
                    });
                }
                Parsed::Index(candidates) => {
                    selector = Selector::Digest(about.choose(&candidates)?);
                }
            }
        }
        Err(ImageError::ManifestInvalid {
            what: "index",
            reference: name,
            detail: format!("indexes point to indexes more than {MAX_INDEXES} times"),
        })
    }

    async fn document(&self, selector: &Selector) -> Result<Document, ImageError> {
        match (self, selector) {
            (Self::Registry(repository), _) => repository.document(selector).await,
            (Self::Layout(layout), Selector::Digest(digest)) => layout.document(*digest).await,
            (Self::Layout(layout), Selector::Tag(_)) => {
                layout.document(layout.find(Some(selector)).await?).await
            }
        }
    }

    /// A blob's bytes, to be read by a thread that may block. They are not checked.
    pub(crate) async fn blob(
        &self,
        descriptor: Descriptor,
        stop: Stop,
    ) -> Result<Box<dyn Read + Send>, ImageError> {
        match self {
            Self::Registry(repository) => Ok(Box::new(repository.blob(descriptor, stop).await?)),
            Self::Layout(layout) => Ok(Box::new(layout.blob(descriptor.digest).await?)),
        }
    }

    /// What errors call this image.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Registry(repository) => repository.reference.to_string(),
            Self::Layout(layout) => layout.reference.to_string(),
        }
    }
}
