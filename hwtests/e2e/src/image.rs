//! Images for tests: made with `umoci`, or written by hand where they must be wrong.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::run_to_end;

/// An OCI layout on disk, tag `latest`.
pub struct Layout {
    directory: TempDir,
}

/// The demo's busybox image, made by its own script.
pub fn busybox_layout() -> Layout {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/make-image.sh");
    let made = run_to_end(Command::new(script).arg(directory.path().join("layout")));
    assert_eq!(made.code, Some(0), "make-image.sh: {}", made.stderr);
    Layout { directory }
}

impl Layout {
    /// An image with one layer, this tar file, that runs `/bin/sh`. Its digests are
    /// right whatever the layer holds.
    pub fn with_layer(tar: &[u8]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let layout = Self { directory };
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).expect("make the layout");
        let layer = layout.blob(tar);
        let config = layout.blob(
            json!({
                "architecture": "amd64", "os": "linux",
                "config": {"Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            })
            .to_string()
            .as_bytes(),
        );
        let descriptor = |kind: &str, hex: &str| {
            let size = std::fs::metadata(layout.blob_path(hex))
                .expect("a blob")
                .len();
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{hex}"), "size": size})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar", &layer)],
        });
        let manifest = layout.blob(manifest.to_string().as_bytes());
        let mut entry = descriptor("manifest.v1+json", &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(layout.path().join("index.json"), index.to_string()).expect("write");
        let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        std::fs::write(layout.path().join("oci-layout"), version).expect("write");
        layout
    }

    /// Its directory.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    /// A reference to it.
    pub fn reference(&self) -> String {
        format!("oci:{}:latest", self.path().display())
    }

    /// The file of a blob.
    pub fn blob_path(&self, hex: &str) -> PathBuf {
        self.path().join("blobs/sha256").join(hex)
    }

    /// Hex digest of its only layer.
    pub fn layer(&self) -> String {
        let index = self.json(&self.path().join("index.json"));
        let manifest = digest_hex(&index["manifests"][0]);
        let manifest = self.json(&self.blob_path(&manifest));
        digest_hex(&manifest["layers"][0])
    }

    fn json(&self, path: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(path).expect("read")).expect("parse")
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let hex = hex::encode(Sha256::digest(bytes));
        std::fs::write(self.blob_path(&hex), bytes).expect("write a blob");
        hex
    }
}

fn digest_hex(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().expect("a digest");
    digest.trim_start_matches("sha256:").to_owned()
}
