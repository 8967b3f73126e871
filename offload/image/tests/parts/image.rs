//! OCI layouts made by umoci out of archives made here.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::run;

/// A layer's archive under construction.
pub struct Layer {
    builder: tar::Builder<Vec<u8>>,
}

/// How an entry looks, where it is not the usual way.
#[derive(Clone)]
pub struct Look {
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub xattrs: BTreeMap<&'static str, Vec<u8>>,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_700_000_000,
            xattrs: BTreeMap::new(),
        }
    }
}

pub fn mode(mode: u32) -> Look {
    Look {
        mode,
        ..Look::default()
    }
}

impl Layer {
    pub fn new() -> Self {
        Self {
            builder: tar::Builder::new(Vec::new()),
        }
    }

    pub fn directory(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, b"", "", mode(0o755))
    }

    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, content.as_ref(), "", mode(0o644))
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, b"", target, mode(0o777))
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, b"", target, mode(0o644))
    }

    pub fn device(mut self, path: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o660);
        header.set_mtime(1_700_000_000);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        put_name(&mut header, path);
        header.set_cksum();
        self.builder.append(&header, &b""[..]).unwrap();
        self
    }

    /// An entry as it is told; nothing is made nicer.
    pub fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        content: &[u8],
        target: &str,
        look: Look,
    ) -> Self {
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        if path.len() > 100 {
            pax.push(("path".to_owned(), path.into()));
        }
        if target.len() > 100 {
            pax.push(("linkpath".to_owned(), target.into()));
        }
        for (name, value) in &look.xattrs {
            pax.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if !pax.is_empty() {
            let pax = pax.iter().map(|(name, value)| (name.as_str(), &value[..]));
            self.builder.append_pax_extensions(pax).unwrap();
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(look.mode);
        header.set_uid(look.owner.0);
        header.set_gid(look.owner.1);
        header.set_mtime(look.mtime);
        header.set_size(content.len() as u64);
        put_name(&mut header, path);
        let target = &target.as_bytes()[..target.len().min(100)];
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

/// Without the checks of the tar crate, which would refuse what is to be tested.
fn put_name(header: &mut Header, path: &str) {
    let name = &path.as_bytes()[..path.len().min(100)];
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
}

/// An OCI layout with one image, `v1`.
pub struct Layout {
    pub directory: tempfile::TempDir,
}

impl Layout {
    pub fn new(layers: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let layout = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        run(Command::new("umoci")
            .arg("init")
            .arg("--layout")
            .arg(layout.path()));
        run(Command::new("umoci")
            .arg("new")
            .arg("--image")
            .arg(layout.image("v1")));
        for layer in layers {
            layout.add(&layer);
        }
        layout
    }

    /// One layer, `blob`, as it is: umoci reads archives while it adds them and
    /// would not take a broken one. It unpacks to `archive`; `kind` is the end of
    /// its media type.
    pub fn raw(blob: &[u8], archive: &[u8], kind: &str) -> Self {
        let layout = Self::new([Layer::new().file("x", b"x").finish()]);
        let put = |bytes: &[u8]| {
            let digest = digest_of(bytes);
            std::fs::write(layout.blob(&digest), bytes).unwrap();
            (digest, bytes.len())
        };
        let (_, mut manifest) = layout.manifest();
        let config = manifest["config"]["digest"].as_str().unwrap();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(layout.blob(config)).unwrap()).unwrap();
        let (layer, size) = put(blob);
        config["rootfs"]["diff_ids"] = serde_json::json!([digest_of(archive)]);
        manifest["layers"] = serde_json::json!([{
            "mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"),
            "digest": layer,
            "size": size,
        }]);
        let (digest, size) = put(&serde_json::to_vec(&config).unwrap());
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
        let (digest, size) = put(&serde_json::to_vec(&manifest).unwrap());
        let path = layout.path().join("index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        index["manifests"][0]["digest"] = digest.into();
        index["manifests"][0]["size"] = size.into();
        std::fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
        layout
    }

    /// Where the layout is: not yet there when umoci makes it.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    pub fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.path().display())
    }

    pub fn reference(&self) -> String {
        format!("oci:{}", self.image("v1"))
    }

    pub fn add(&self, layer: &[u8]) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(layer).unwrap();
        run(Command::new("umoci")
            .args(["raw", "add-layer", "--image", &self.image("v1")])
            .arg(file.path()));
    }

    pub fn configure(&self, options: &[&str]) {
        run(Command::new("umoci")
            .args(["config", "--image", &self.image("v1")])
            .args(options));
    }

    /// What umoci makes of it, in a directory that must not exist yet.
    pub fn unpack(&self, bundle: &Path) -> PathBuf {
        let mut command = Command::new("umoci");
        command.args(["unpack", "--image", &self.image("v1")]);
        if !nix::unistd::geteuid().is_root() {
            command.arg("--rootless");
        }
        run(command.arg(bundle));
        bundle.join("rootfs")
    }

    /// The manifest of `v1`, with its digest.
    pub fn manifest(&self) -> (String, Value) {
        let index: Value =
            serde_json::from_slice(&std::fs::read(self.path().join("index.json")).unwrap())
                .unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let bytes = std::fs::read(self.blob(&digest)).unwrap();
        (digest, serde_json::from_slice(&bytes).unwrap())
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.path().join("blobs/sha256").join(hex)
    }

    /// Digest of a layer, counted from the bottom.
    pub fn layer(&self, index: usize) -> String {
        let (_, manifest) = self.manifest();
        manifest["layers"][index]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
