//! A folder of one run, with copies of what is measured.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{BenchError, file};

/// A folder in memory that goes when this is dropped. Programs and images are copied
/// into it, so that no read of a slow disk is measured.
#[derive(Debug)]
pub(crate) struct Workshop {
    folder: TempDir,
}

impl Workshop {
    /// Makes one in `/run`, or, where that is not to be written to, where temporary
    /// files go.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub(crate) fn new() -> Result<Self, BenchError> {
        let mut builder = tempfile::Builder::new();
        // Paths of sockets must be short.
        builder.prefix("bench-");
        let folder = builder
            .tempdir_in("/run")
            .or_else(|_| builder.tempdir())
            .map_err(file("make a folder in", "/run"))?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A folder in it.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).map_err(file("make", &path))?;
        Ok(path)
    }

    /// Copies a file, with its permissions, under its own name.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub(crate) fn copy(&self, from: &Path) -> Result<PathBuf, BenchError> {
        let name = from.file_name().unwrap_or(from.as_os_str());
        let to = self.path().join(name);
        if !to.exists() {
            std::fs::copy(from, &to).map_err(file("copy", from))?;
        }
        Ok(to)
    }
}
