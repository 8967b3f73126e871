//! Images of real tools, pulled and converted, compared with what umoci unpacks.

#![allow(clippy::unwrap_used)]

mod parts;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longship_image::Image;
use parts::fake::{Answer, Fake, answer};
use parts::image::{Layer, Layout, Look, mode};
use parts::registry::Registry;
use parts::{Store, disk};
use tar::EntryType;

/// Nearly all that a layer can hold.
fn tricky_layers() -> [Vec<u8>; 3] {
    let capability = {
        // VFS_CAP_REVISION_2 with cap_net_raw, and a newline among the bytes.
        let mut value = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
        value.extend([0; 12]);
        value[4] = b'\n';
        value
    };
    let long = format!("usr/{}/{}", "d".repeat(200), "f".repeat(255));
    let owned = |owner, mode| Look {
        owner,
        mode,
        mtime: 1_600_000_001,
        ..Look::default()
    };
    let with_xattrs = Look {
        mode: 0o755,
        xattrs: BTreeMap::from([
            ("security.capability", capability),
            ("user.note", b"two\nlines\0".to_vec()),
            ("trusted.own", b"x".to_vec()),
        ]),
        ..Look::default()
    };
    let mut first = Layer::new()
        .directory("./")
        .directory("bin/")
        .entry("bin/su", EntryType::Regular, b"setuid", "", mode(0o4755))
        .entry("bin/ping", EntryType::Regular, b"ping", "", with_xattrs)
        .entry("tmp", EntryType::Directory, b"", "", mode(0o1777))
        .entry(
            "home",
            EntryType::Directory,
            b"",
            "",
            owned((1000, 100_000), 0o2750),
        )
        .entry(
            "home/file",
            EntryType::Regular,
            b"mine",
            "",
            owned((70_000, 5), 0o600),
        )
        .file("empty", b"")
        .file("block", vec![7; 4096])
        .file(
            "large",
            (0..3_000_001_u32)
                .map(|i| i.to_le_bytes()[i as usize % 4])
                .collect::<Vec<_>>(),
        )
        .file(&long, b"long names")
        .symlink("absolute", "/usr/share")
        .symlink("dangling", "../nowhere")
        .symlink("longlink", &"x/".repeat(1000))
        .file("one", b"linked")
        .hard_link("two", "one")
        .hard_link("bin/three", "./two")
        .directory("gone")
        .file("gone/file", b"gone")
        .directory("opaque")
        .file("opaque/old", b"old")
        .directory("opaque/sub")
        .file("opaque/sub/old", b"old")
        .file("was-file", b"file")
        .directory("was-directory")
        .file("was-directory/file", b"file")
        .directory("usr/share")
        .file("replaced", b"old")
        .hard_link("replaced-link", "replaced")
        .directory("many");
    for number in 0..700 {
        first = first.file(
            &format!("many/{number:03}-{}", "n".repeat(number % 90)),
            b"m",
        );
    }
    if nix::unistd::geteuid().is_root() {
        first = first
            .device("null", EntryType::Char, 1, 3)
            .device("disk", EntryType::Block, 8, 300)
            .device("pipe", EntryType::Fifo, 0, 0);
    }
    let second = Layer::new()
        .file(".wh.gone", b"")
        .directory("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .directory("was-file")
        .file("was-file/inside", b"now a directory")
        .file("replaced", b"new")
        .hard_link("across", "one")
        .file("absolute/through-a-link", b"inside")
        .entry("bin", EntryType::Directory, b"", "", mode(0o700));
    let third = Layer::new()
        .file(".wh.was-directory", b"")
        .file("was-directory", b"now a file")
        .file("many/.wh.001-n", b"")
        .finish();
    [first.finish(), second.finish(), third]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_a_registry_is_what_umoci_unpacks() {
    let layout = Layout::new(tricky_layers());
    layout.configure(&[
        "--config.entrypoint=/bin/init",
        "--config.cmd=serve",
        "--config.cmd=--all",
        "--config.env=PATH=/bin:/usr/bin",
        "--config.workingdir=/home",
        "--config.user=1000:100",
        "--config.stopsignal=SIGINT",
    ]);
    let registry = Registry::start();
    let store = Store::new();
    let reference = registry.push(&layout.path(), "v1", "team/app:v1", &[]);
    let image = store.store.prepare(&reference).await.unwrap();

    let expected = tempfile::tempdir().unwrap();
    let rootfs = layout.unpack(&expected.path().join("bundle"));
    let opened = disk::open(&image.disk);
    opened.assert_same(&disk::list(&rootfs));

    let config = &image.config;
    assert_eq!(config.entrypoint, ["/bin/init"]);
    assert_eq!(config.command, ["serve", "--all"]);
    assert!(config.env.contains(&"PATH=/bin:/usr/bin".to_owned()));
    assert_eq!(config.working_dir, "/home");
    assert_eq!(config.user, "1000:100");
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(image.digest, layout.manifest().0);
    assert_eq!(store.store.list().await.unwrap(), [image]);
}

fn small() -> Layout {
    let layer = Layer::new().directory("bin").file("bin/tool", b"tool");
    Layout::new([
        layer.finish(),
        Layer::new().file("etc/conf", b"conf").finish(),
    ])
}

fn content(image: &Image, path: &str) -> Vec<u8> {
    std::fs::read(disk::open(&image.disk).path().join(path)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_manifest_gives_the_same_disk_as_an_oci_one() {
    let layout = small();
    let registry = Registry::start();
    let store = Store::new();
    let mut disks = Vec::new();
    for (name, format) in [("oci:v1", "--format=oci"), ("docker:v1", "--format=v2s2")] {
        let reference = registry.push(&layout.path(), "v1", name, &[format]);
        let image = store.store.prepare(&reference).await.unwrap();
        assert_eq!(content(&image, "bin/tool"), b"tool");
        disks.push((image.digest.clone(), without_identity(&image)));
    }
    assert_eq!(disks[0].1, disks[1].1);
    assert_ne!(disks[0].0, disks[1].0);
    assert_eq!(store.store.list().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_gives_the_same_disk_however_it_is_compressed() {
    let archive = Layer::new().file("bin/tool", b"tool".repeat(1000)).finish();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &archive).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&archive[..], 3).unwrap();
    let store = Store::new();
    let mut disks = Vec::new();
    for (blob, kind) in [(&archive, "tar"), (&gzip, "tar+gzip"), (&zstd, "tar+zstd")] {
        let layout = Layout::raw(blob, &archive, kind);
        let image = store.store.prepare(&layout.reference()).await.unwrap();
        assert_eq!(content(&image, "bin/tool"), b"tool".repeat(1000));
        disks.push(without_identity(&image));
    }
    assert!(disks[0] == disks[1] && disks[0] == disks[2]);
    assert_eq!(store.store.list().await.unwrap().len(), 3);
}

/// The disk without its superblock: the UUID is the manifest's.
fn without_identity(image: &Image) -> Vec<u8> {
    std::fs::read(&image.disk).unwrap().split_off(4096)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_on_disk_is_as_good_by_tag_by_digest_and_alone() {
    let layout = small();
    let store = Store::new();
    let by_tag = store.store.prepare(&layout.reference()).await.unwrap();
    let alone = format!("oci:{}", layout.path().display());
    assert_eq!(store.store.prepare(&alone).await.unwrap(), by_tag);
    let by_digest = format!("{alone}@{}", by_tag.digest);
    assert_eq!(store.store.prepare(&by_digest).await.unwrap(), by_tag);
    assert_eq!(content(&by_tag, "etc/conf"), b"conf");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_gives_the_same_bytes_in_every_store() {
    let layout = small();
    let (one, other) = (Store::new(), Store::new());
    let first = one.store.prepare(&layout.reference()).await.unwrap();
    let second = other.store.prepare(&layout.reference()).await.unwrap();
    assert_eq!(
        std::fs::read(first.disk).unwrap(),
        std::fs::read(second.disk).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_want_the_same_image_fetch_it_once() {
    let layout = small();
    let fake = Fake::serving(&layout, |request| {
        // Long enough for all to meet.
        let blob = request.path.contains("/blobs/");
        std::thread::sleep(Duration::from_millis(if blob { 200 } else { 0 }));
        None
    });
    let store = Store::new();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (store, reference) = (store.store.clone(), fake.reference());
            tokio::spawn(async move { store.prepare(&reference).await.unwrap() })
        })
        .collect();
    let mut images = Vec::new();
    for task in waiting {
        images.push(task.await.unwrap());
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    // The configuration and two layers.
    assert_eq!(fake.count("/blobs/"), 3);
    store.store.prepare(&fake.reference()).await.unwrap();
    assert_eq!(fake.count("/blobs/"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_noticed_and_a_digest_needs_no_registry() {
    let layout = small();
    let registry = Registry::start();
    let store = Store::new();
    let reference = registry.push(&layout.path(), "v1", "app:v1", &[]);
    let old = store.store.prepare(&reference).await.unwrap();
    layout.add(&Layer::new().file("etc/conf", b"newer").finish());
    registry.push(&layout.path(), "v1", "app:v1", &[]);
    let new = store.store.prepare(&reference).await.unwrap();
    assert_ne!(new.digest, old.digest);
    assert_eq!(content(&new, "etc/conf"), b"newer");

    let pinned = format!("{}/app@{}", registry.address, old.digest);
    registry.stop();
    assert_eq!(store.store.prepare(&pinned).await.unwrap(), old);
    assert_eq!(content(&old, "etc/conf"), b"conf");
}

#[tokio::test(flavor = "multi_thread")]
async fn linux_amd64_is_chosen_from_an_index() {
    let layout = small();
    let (digest, _) = layout.manifest();
    let size = std::fs::metadata(layout.blob(&digest)).unwrap().len();
    let entry = |os: &str, architecture: &str, digest: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size},"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#
        )
    };
    let missing = format!("sha256:{}", "0".repeat(64));
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{},{},{}]}}"#,
        entry("linux", "arm64", &missing),
        entry("unknown", "unknown", &missing),
        entry("linux", "amd64", &digest),
    );
    let only_arm = index.replace("amd64", "riscv64");
    let fake = Fake::serving(&layout, move |request| match request.path.as_str() {
        "/v2/team/app/manifests/v1" => Some(answer(200, index.clone())),
        "/v2/team/app/manifests/arm" => Some(answer(200, only_arm.clone())),
        _ => None,
    });
    let store = Store::new();
    let image = store.store.prepare(&fake.reference()).await.unwrap();
    assert_eq!(image.digest, digest);
    let arm = fake.reference().replace(":v1", ":arm");
    let refused = store.store.prepare(&arm).await.unwrap_err();
    assert_eq!(refused.reason(), "UnsupportedPlatform");
    assert!(refused.to_string().contains("linux/riscv64"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_token_gets_the_one_it_hands_out() {
    let layout = small();
    let fake = Fake::serving(&layout, |request| {
        if request.path.starts_with("/token?") {
            assert!(
                request
                    .path
                    .contains("scope=repository%3Ateam%2Fapp%3Apull")
            );
            assert!(request.path.contains("service=here"));
            return Some(answer(200, r#"{"token":"secret"}"#));
        }
        if request.headers.get("authorization").map(String::as_str) == Some("Bearer secret") {
            return None;
        }
        let host = &request.headers["host"];
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="here""#);
        Some(Answer {
            headers: vec![("www-authenticate", challenge)],
            ..answer(401, "{}")
        })
    });
    let store = Store::new();
    store.store.prepare(&fake.reference()).await.unwrap();
    assert_eq!(fake.count("/token"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_images_are_gone_and_come_back_when_asked_for() {
    let layout = small();
    let store = Store::new();
    let image = store.store.prepare(&layout.reference()).await.unwrap();
    store.store.remove(&image.digest).await.unwrap();
    assert!(store.left().is_empty());
    let again = store.store.remove(&image.digest).await.unwrap_err();
    assert_eq!(again.reason(), "ImageNotFound");
    assert_eq!(
        store.store.prepare(&layout.reference()).await.unwrap(),
        image
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_finished_images_and_removes_what_was_under_way() {
    let layout = small();
    let directory = tempfile::tempdir().unwrap();
    let store = parts::open(directory.path(), 1 << 30).unwrap();
    let image = store.prepare(&layout.reference()).await.unwrap();
    let in_use = parts::open(directory.path(), 1 << 30).unwrap_err();
    assert_eq!(in_use.reason(), "ImageStoreInUse");
    drop(store);

    std::fs::create_dir(directory.path().join("temp/half")).unwrap();
    std::fs::write(directory.path().join("temp/half/layer-0.tar"), b"x").unwrap();
    let store = parts::open(directory.path(), 1 << 30).unwrap();
    assert_eq!(
        std::fs::read_dir(directory.path().join("temp"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(store.list().await.unwrap(), std::slice::from_ref(&image));

    // A disk that was cut is not used, but made again.
    let file = std::fs::File::options()
        .write(true)
        .open(&image.disk)
        .unwrap();
    let size = file.metadata().unwrap().len();
    file.set_len(size - 4096).unwrap();
    assert!(store.list().await.unwrap().is_empty());
    let made = store.prepare(&layout.reference()).await.unwrap();
    assert_eq!(std::fs::metadata(made.disk).unwrap().len(), size);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_waiting_does_not_stop_the_others() {
    static OPEN: AtomicBool = AtomicBool::new(false);
    let layout = small();
    let fake = Fake::serving(&layout, |request| {
        while request.path.contains("/blobs/") && !OPEN.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    });
    let store = Store::new();
    let reference = fake.reference();
    let patient = tokio::spawn({
        let (store, reference) = (store.store.clone(), reference.clone());
        async move { store.prepare(&reference).await }
    });
    let gone = tokio::time::timeout(Duration::from_millis(300), store.store.prepare(&reference));
    assert!(gone.await.is_err());
    OPEN.store(true, Ordering::SeqCst);
    patient.await.unwrap().unwrap();
}
