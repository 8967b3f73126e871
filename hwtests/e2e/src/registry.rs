//! A real registry: Debian's `docker-registry`, on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::image::Layout;
use crate::{Process, eventually, run_to_end};

/// A registry that ends, with all it stores, when it is dropped.
pub struct Registry {
    port: u16,
    directory: TempDir,
    _process: Process,
}

impl Registry {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            directory.path().join("storage").display()
        );
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).expect("write the registry's configuration");
        let mut process = Process::spawn(
            Command::new("docker-registry").arg("serve").arg(&path),
            &directory.path().join("log"),
        );
        eventually(120, "the registry answers", || {
            assert_eq!(
                process.ended(),
                None,
                "the registry ended:\n{}",
                process.output()
            );
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            port,
            directory,
            _process: process,
        }
    }

    /// Copies an image into it with `skopeo`; the reference to pull it by.
    pub fn push(&self, layout: &Layout, name: &str) -> String {
        let reference = format!("127.0.0.1:{}/{name}", self.port);
        let copied = run_to_end(
            Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--dest-tls-verify=false",
                    "--insecure-policy",
                ])
                .arg(format!("oci:{}:latest", layout.path().display()))
                .arg(format!("docker://{reference}")),
        );
        assert_eq!(copied.code, Some(0), "skopeo: {}", copied.stderr);
        reference
    }

    /// A reference to something that it does not have.
    pub fn unknown(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// The file in which it keeps a blob.
    pub fn blob(&self, digest_hex: &str) -> PathBuf {
        let (prefix, _) = digest_hex.split_at(2);
        self.directory
            .path()
            .join("storage/docker/registry/v2/blobs/sha256")
            .join(prefix)
            .join(digest_hex)
            .join("data")
    }
}

/// A port of loopback that was free just now.
fn free_port() -> u16 {
    let socket = TcpListener::bind(("127.0.0.1", 0)).expect("bind a port");
    socket
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}
