//! Manifests, indexes and configurations (OCI image spec 1.1, and Docker's schema 2,
//! which has the same fields) turned into the little that is needed of them.

use std::collections::BTreeSet;

use oci_spec::image::{
    Arch, Descriptor as OciDescriptor, ImageConfiguration, ImageIndex, ImageManifest, Os,
};
use serde::{Deserialize, Serialize};

use crate::blob::Descriptor;
use crate::digest::Digest;
use crate::error::ImageError;

/// The largest manifest, index or configuration, in bytes; registries refuse
/// larger manifests as well.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers: each keeps one file open while the image is converted.
const MAX_LAYERS: usize = 256;

pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const INDEX_TYPES: [&str; 2] = [MANIFEST_TYPES[1], MANIFEST_TYPES[3]];
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// How an image wants to be run (OCI image spec, "Image Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program and its first arguments; may be empty.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the whole command where there is none.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Absolute, or empty for `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, …; empty for root.
    pub user: String,
    /// Name or number, e.g. `SIGTERM`.
    pub stop_signal: Option<String>,
}

/// A manifest or an index, not yet interpreted.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

/// What a document turned out to be.
pub(crate) enum Parsed {
    Manifest(Manifest),
    Index(Vec<Candidate>),
}

/// An image's parts.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// From the bottom to the top.
    pub(crate) layers: Vec<Descriptor>,
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    /// `os/architecture`, where the index says.
    pub(crate) platform: Option<String>,
    /// `org.opencontainers.image.ref.name`, in layouts.
    pub(crate) tag: Option<String>,
}

const PLATFORM: &str = "linux/amd64";

/// Says which image an error is about.
#[derive(Clone, Copy)]
pub(crate) struct About<'a>(pub(crate) &'a str);

impl About<'_> {
    fn invalid(self, what: &'static str, detail: impl ToString) -> ImageError {
        ImageError::ManifestInvalid {
            what,
            reference: self.0.to_owned(),
            detail: detail.to_string(),
        }
    }

    /// Interprets a manifest or an index, told apart by what they say they are,
    /// or by their fields where they say nothing.
    pub(crate) fn parse(self, document: &Document) -> Result<Parsed, ImageError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "schemaVersion")]
            schema_version: Option<u32>,
            #[serde(rename = "mediaType")]
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let invalid = |error| self.invalid("manifest", error);
        let head: Head = serde_json::from_slice(&document.bytes).map_err(invalid)?;
        if let Some(media_type) = &head.media_type
            && !MANIFEST_TYPES.contains(&media_type.as_str())
        {
            return Err(unsupported("the manifest", media_type));
        }
        if head.schema_version != Some(2) {
            let version = head
                .schema_version
                .map_or("none".to_owned(), |v| v.to_string());
            return Err(unsupported(
                "the manifest",
                &format!("schema version {version}"),
            ));
        }
        let is_index = match &head.media_type {
            Some(media_type) => INDEX_TYPES.contains(&media_type.as_str()),
            None => head.manifests.is_some(),
        };
        if is_index {
            let index: ImageIndex = serde_json::from_slice(&document.bytes)
                .map_err(|error| self.invalid("index", error))?;
            return self.candidates(&index).map(Parsed::Index);
        }
        let manifest: ImageManifest = serde_json::from_slice(&document.bytes).map_err(invalid)?;
        self.manifest(&manifest).map(Parsed::Manifest)
    }

    /// The entries of an index or of a layout's `index.json`.
    pub(crate) fn candidates(self, index: &ImageIndex) -> Result<Vec<Candidate>, ImageError> {
        index
            .manifests()
            .iter()
            .map(|entry| {
                Ok(Candidate {
                    digest: self.digest("index", entry)?,
                    platform: entry
                        .platform()
                        .as_ref()
                        .map(|platform| format!("{}/{}", platform.os(), platform.architecture())),
                    tag: entry
                        .annotations()
                        .as_ref()
                        .and_then(|all| all.get("org.opencontainers.image.ref.name").cloned()),
                })
            })
            .collect()
    }

    /// Picks the entry for linux/amd64, or the only one that does not say.
    pub(crate) fn choose(self, candidates: &[Candidate]) -> Result<Digest, ImageError> {
        let fitting = |wanted: Option<&str>| {
            let mut found = candidates
                .iter()
                .filter(move |candidate| candidate.platform.as_deref() == wanted)
                .map(|candidate| candidate.digest);
            (found.next(), found.next())
        };
        if let (Some(digest), _) = fitting(Some(PLATFORM)) {
            return Ok(digest);
        }
        match fitting(None) {
            (Some(digest), None) => Ok(digest),
            (Some(_), Some(_)) => Err(self.invalid(
                "index",
                "it has several images and does not say which is for linux/amd64",
            )),
            (None, _) => {
                let platforms: BTreeSet<&str> = candidates
                    .iter()
                    .filter_map(|candidate| candidate.platform.as_deref())
                    .collect();
                let mut found = platforms.into_iter().collect::<Vec<_>>().join(", ");
                if found.is_empty() {
                    found.push_str("nothing at all");
                }
                Err(self.wrong_platform(found))
            }
        }
    }

    fn manifest(self, manifest: &ImageManifest) -> Result<Manifest, ImageError> {
        let config_type = manifest.config().media_type().to_string();
        if !CONFIG_TYPES.contains(&config_type.as_str()) {
            return Err(unsupported("the image's configuration", &config_type));
        }
        let layers = manifest.layers();
        if layers.len() > MAX_LAYERS {
            let detail = format!("it has {} layers; the limit is {MAX_LAYERS}", layers.len());
            return Err(ImageError::TooLarge { detail });
        }
        for layer in layers {
            let layer_type = layer.media_type().to_string();
            if !LAYER_TYPES.contains(&layer_type.as_str()) {
                let what = format!("layer {}", layer.digest());
                return Err(unsupported(&what, &layer_type));
            }
        }
        Ok(Manifest {
            config: self.descriptor(manifest.config())?,
            layers: layers
                .iter()
                .map(|layer| self.descriptor(layer))
                .collect::<Result<_, _>>()?,
        })
    }

    /// How the image is run, and the digests of its `layers` layers, unpacked.
    pub(crate) fn configuration(
        self,
        bytes: &[u8],
        layers: usize,
    ) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
        const WHAT: &str = "configuration";
        let configuration: ImageConfiguration =
            serde_json::from_slice(bytes).map_err(|error| self.invalid(WHAT, error))?;
        let (os, architecture) = (configuration.os(), configuration.architecture());
        if *os != Os::Linux || *architecture != Arch::Amd64 {
            return Err(self.wrong_platform(format!("{os}/{architecture}")));
        }
        let diff_ids = configuration
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse().map_err(|error| self.invalid(WHAT, error)))
            .collect::<Result<Vec<Digest>, _>>()?;
        if diff_ids.len() != layers {
            let detail = format!("it has {} diff_ids for {layers} layers", diff_ids.len());
            return Err(self.invalid(WHAT, detail));
        }
        let config = configuration.config().clone().unwrap_or_default();
        Ok((
            ImageConfig {
                entrypoint: config.entrypoint().clone().unwrap_or_default(),
                command: config.cmd().clone().unwrap_or_default(),
                env: config.env().clone().unwrap_or_default(),
                working_dir: config.working_dir().clone().unwrap_or_default(),
                user: config.user().clone().unwrap_or_default(),
                stop_signal: config.stop_signal().clone(),
            },
            diff_ids,
        ))
    }

    fn descriptor(self, descriptor: &OciDescriptor) -> Result<Descriptor, ImageError> {
        Ok(Descriptor {
            digest: self.digest("manifest", descriptor)?,
            size: descriptor.size(),
        })
    }

    fn digest(self, what: &'static str, entry: &OciDescriptor) -> Result<Digest, ImageError> {
        let text = entry.digest().to_string();
        text.parse().map_err(|error| self.invalid(what, error))
    }

    fn wrong_platform(self, found: String) -> ImageError {
        ImageError::UnsupportedPlatform {
            reference: self.0.to_owned(),
            found,
        }
    }
}

fn unsupported(what: &str, media_type: &str) -> ImageError {
    ImageError::UnsupportedMediaType {
        what: what.to_owned(),
        media_type: media_type.to_owned(),
    }
}
