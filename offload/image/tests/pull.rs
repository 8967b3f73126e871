//! Images of real tools, pulled and converted, compared with what umoci unpacks.

mod parts;

use std::collections::BTreeMap;

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
    opened.assert_same(&rootfs);

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
