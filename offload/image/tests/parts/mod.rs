//! Real parts for the tests: images by umoci and skopeo, a registry, and disks
//! looked at by the kernel or by fsck.erofs.

#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

pub mod disk;
pub mod fake;
pub mod image;
pub mod registry;

use std::path::{Path, PathBuf};
use std::process::Command;

use longship_image::{ImageError, ImageStore, StoreConfig};

/// Runs a program that must succeed, and gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A store in a directory of its own.
pub struct Store {
    pub store: ImageStore,
    pub directory: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Self {
        Self::with_limit(1 << 30)
    }

    pub fn with_limit(max_image_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), max_image_bytes).unwrap();
        Self { store, directory }
    }

    /// `prepare` must fail; nothing may be left. Gives the reason and the text.
    pub async fn refusal(&self, reference: &str) -> (&'static str, String) {
        let error = self.store.prepare(reference).await.unwrap_err();
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "left after {error}");
        assert!(self.store.list().await.unwrap().is_empty());
        (error.reason(), error.to_string())
    }

    /// All files of finished and unfinished images.
    pub fn left(&self) -> Vec<PathBuf> {
        ["images", "temp"]
            .iter()
            .flat_map(|name| std::fs::read_dir(self.directory.path().join(name)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

pub fn open(directory: &Path, max_image_bytes: u64) -> Result<ImageStore, ImageError> {
    ImageStore::open(StoreConfig {
        directory: directory.to_owned(),
        max_image_bytes,
        insecure_registries: Vec::new(),
    })
}
