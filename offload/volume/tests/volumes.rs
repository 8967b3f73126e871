//! Scratch disks and the provider, as a card uses them.

#![allow(clippy::unwrap_used, reason = "a test's own steps")]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use longship_framed::error::{Class, Failure};
use longship_vhost_user::driver::Driver;
use longship_volume::{
    ScratchStore, VhostUserVolumes, VolumeError, VolumeHandle, VolumeKind, VolumeProvider,
    VolumeSpec,
};

const SIZE: u64 = 64 << 20;

fn run(program: &str, option: &str, path: &Path) -> String {
    let out = Command::new(program)
        .arg(option)
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{program}: {text}");
    text
}

fn fsck(path: &Path) {
    run("/usr/sbin/e2fsck", "-fn", path);
}

#[test]
fn a_scratch_disk_is_a_sound_sparse_ext4_without_journal() {
    let dir = tempfile::tempdir().unwrap();
    let store = ScratchStore::open(dir.path()).unwrap();
    let path = store.create("pod-1", SIZE).unwrap();
    let there = path.metadata().unwrap();
    assert_eq!(there.len(), SIZE);
    let allocated = there.blocks() * 512;
    assert!(allocated <= 64 << 10, "{allocated} bytes are allocated");
    assert_eq!(there.mode() & 0o777, 0o600);
    fsck(&path);
    let text = run("/usr/sbin/dumpe2fs", "-h", &path);
    assert!(
        text.contains("extent") && !text.contains("has_journal"),
        "{text}"
    );
}

/// Whether the disk's last byte was marked before; marks it.
fn mark(path: &Path) -> bool {
    let disk = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, SIZE - 1).unwrap();
    disk.write_all_at(&[7], SIZE - 1).unwrap();
    byte == [7]
}

#[test]
fn creating_again_keeps_the_data_and_another_size_is_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let store = ScratchStore::open(dir.path()).unwrap();
    let path = store.create("a", SIZE).unwrap();
    assert!(!mark(&path));
    assert_eq!(store.create("a", SIZE).unwrap(), path);
    assert!(mark(&path), "the data is gone");
    let e = store.create("a", 2 * SIZE).unwrap_err();
    assert!(
        matches!(e, VolumeError::Conflict { what: "size", .. }),
        "{e}"
    );
    let other = store.create("b", SIZE).unwrap();
    assert!(!mark(&other), "the template was written to");
    assert_eq!(store.list().unwrap(), ["a", "b"]);
    store.remove("a").unwrap();
    store.remove("a").unwrap();
    assert_eq!(store.list().unwrap(), ["b"]);
}

#[test]
fn a_store_opened_again_has_its_disks_and_no_unfinished_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = ScratchStore::open(dir.path()).unwrap();
    let path = store.create("kept", SIZE).unwrap();
    let partial = path.with_file_name("cut.ext4.partial");
    std::fs::write(&partial, "half").unwrap();
    drop(store);
    let store = ScratchStore::open(dir.path()).unwrap();
    assert_eq!(store.list().unwrap(), ["kept"]);
    assert!(!partial.exists());
}

#[test]
fn bad_names_and_sizes_name_the_field_and_create_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ScratchStore::open(dir.path()).unwrap();
    let long = "a".repeat(129);
    for id in ["", "../a", "a/b", ".a", "a.", "ä", "a b", &long] {
        let e = store.create(id, SIZE).unwrap_err();
        assert_eq!(e.reason(), "VolumeInvalid");
        assert_eq!(Failure::from(e).field, "id");
        assert!(store.remove(id).is_err());
    }
    for bytes in [0, 4096, SIZE + 1, SIZE + 512, u64::MAX] {
        let failure = Failure::from(store.create("a", bytes).unwrap_err());
        assert_eq!(failure.class(), Class::Invalid);
        assert_eq!(failure.field, "kind.bytes");
    }
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn many_at_once_get_a_disk_each_from_one_template() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(ScratchStore::open(dir.path()).unwrap());
    let makers: Vec<_> = (0..8)
        .map(|i| {
            let store = store.clone();
            std::thread::spawn(move || store.create(&format!("pod-{i}"), SIZE).unwrap())
        })
        .collect();
    for maker in makers {
        fsck(&maker.join().unwrap());
    }
    let templates = std::fs::read_dir(dir.path().join("templates")).unwrap();
    assert_eq!(templates.count(), 1);
}

struct Provider {
    dir: tempfile::TempDir,
    volumes: VhostUserVolumes,
}

impl Provider {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), [5; 8192]).unwrap();
        let scratch = ScratchStore::open(dir.path().join("scratch")).unwrap();
        let volumes = VhostUserVolumes::new(scratch);
        Self { dir, volumes }
    }

    fn spec(&self, id: &str, kind: VolumeKind) -> VolumeSpec {
        VolumeSpec {
            id: id.into(),
            socket: self.dir.path().join(format!("{id}.sock")),
            kind,
            serial: id.into(),
        }
    }

    fn image(&self) -> VolumeKind {
        let disk = self.dir.path().join("image");
        VolumeKind::Image { disk }
    }

    fn held(&self) -> Vec<(String, bool)> {
        let held = self.volumes.list().unwrap();
        let pairs = held.into_iter().map(|v| (v.id, v.handle.is_some()));
        pairs.collect()
    }
}

fn socket(handle: VolumeHandle) -> PathBuf {
    match handle {
        VolumeHandle::VhostUser { socket } => socket,
        other => panic!("{other:?}"),
    }
}

const SCRATCH: VolumeKind = VolumeKind::Scratch { bytes: SIZE };

#[test]
fn a_pods_volumes_are_served_and_given_back() {
    let p = Provider::new();
    let image = p.spec("image", p.image());
    let scratch = p.spec("scratch", SCRATCH);
    let image_socket = socket(p.volumes.prepare(&image).unwrap());
    let scratch_socket = socket(p.volumes.prepare(&scratch).unwrap());
    assert_eq!(socket(p.volumes.prepare(&image).unwrap()), image_socket);
    assert_eq!(p.held(), [("image".into(), true), ("scratch".into(), true)]);

    let mut a = Driver::connect(&image_socket, 1, 0);
    assert_eq!(a.config(8), 16_u64.to_le_bytes());
    assert_eq!(a.features() >> 5 & 1, 1);
    let mut b = Driver::connect(&scratch_socket, 1, 0);
    assert_eq!(b.config(8), (SIZE / 512).to_le_bytes());
    assert_eq!(b.features() >> 5 & 1, 0);

    for id in ["image", "scratch", "never-there"] {
        p.volumes.release(id).unwrap();
    }
    assert!(p.held().is_empty());
    assert!(!image_socket.exists() && !scratch_socket.exists());
}

#[test]
fn after_a_restart_the_scratch_disk_is_still_listed_and_can_be_prepared_again() {
    let p = Provider::new();
    let spec = p.spec("scratch", SCRATCH);
    p.volumes.prepare(&spec).unwrap();
    let Provider { dir, volumes } = p;
    drop(volumes);
    let scratch = ScratchStore::open(dir.path().join("scratch")).unwrap();
    let volumes = VhostUserVolumes::new(scratch);
    let p = Provider { dir, volumes };
    assert_eq!(p.held(), [("scratch".into(), false)]);
    p.volumes.prepare(&spec).unwrap();
    assert_eq!(p.held(), [("scratch".into(), true)]);
}

#[test]
fn a_refused_volume_leaves_nothing() {
    let p = Provider::new();
    let gone = VolumeKind::Image {
        disk: p.dir.path().join("gone"),
    };
    let e = p.volumes.prepare(&p.spec("image", gone)).unwrap_err();
    assert_eq!(e.reason(), "ImageDiskMissing");
    assert_eq!(Failure::from(e).class(), Class::NotFound);

    let mut spec = p.spec("scratch", SCRATCH);
    spec.serial = "far-too-long-for-a-serial".into();
    let e = p.volumes.prepare(&spec).unwrap_err();
    assert_eq!(Failure::from(e).field, "serial");
    let mut spec = p.spec("scratch", SCRATCH);
    spec.socket = p.dir.path().join("no/such/dir");
    let e = p.volumes.prepare(&spec).unwrap_err();
    assert_eq!(e.reason(), "VolumeServeFailed");
    assert!(p.held().is_empty());

    p.volumes.prepare(&p.spec("scratch", SCRATCH)).unwrap();
    let e = p
        .volumes
        .prepare(&p.spec("scratch", p.image()))
        .unwrap_err();
    assert_eq!(Failure::from(e).class(), Class::Conflict);
    assert_eq!(p.held(), [("scratch".into(), true)]);
}

#[test]
fn calls_for_one_volume_take_their_turn() {
    let p = Arc::new(Provider::new());
    let calls: Vec<_> = (0..8)
        .map(|i| {
            let p = p.clone();
            std::thread::spawn(move || match i % 4 {
                3 => p.volumes.release("scratch").unwrap(),
                _ => drop(p.volumes.prepare(&p.spec("scratch", SCRATCH)).unwrap()),
            })
        })
        .collect();
    for call in calls {
        call.join().unwrap();
    }
    p.volumes.release("scratch").unwrap();
    assert!(p.held().is_empty());
}
