//! A real Linux behind a foreign frontend: QEMU boots the guest kernel, which
//! finds our disks by their serials, reads an image and uses a scratch disk.

#![allow(clippy::unwrap_used, reason = "a test's own steps")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use longship_vhost_user::qemu::{Dma, Frontend, Machine, busybox_initramfs, kernel};
use longship_volume::{
    ScratchStore, VhostUserVolumes, VolumeHandle, VolumeKind, VolumeProvider, VolumeSpec,
};

/// What the guest does; every line that begins with `=` is looked at.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /image /scratch
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for b in /sys/block/vd*; do
    n=${b##*/}; s=$(cat $b/serial)
    # The 34th character is bit 33, VIRTIO_F_ACCESS_PLATFORM.
    echo "= platform $(cut -c 34 $b/device/features)"
    echo "= disk $s read-only $(cat $b/ro) sectors $(cat $b/size)"
    ln -s /dev/$n /dev/$s
done
echo "= sum $(sha256sum </dev/the-image)"
mount -t erofs -o ro /dev/the-image /image && echo "= image $(cat /image/etc/motd)"
dd if=/dev/zero of=/dev/the-image bs=512 count=1 2>/dev/null && echo "= image written to"
mount -t ext4 /dev/the-scratch /scratch && echo "= scratch mounted"
mkdir -p /scratch/a/upper /scratch/a/work /scratch/b/upper /scratch/b/work
sync; echo "= idle"; sleep 1
dd if=/dev/urandom of=/scratch/random bs=1M count=24 2>/dev/null
echo hello >/scratch/hello
sync
echo 3 >/proc/sys/vm/drop_caches
echo "= written $(sha256sum </scratch/random)"
cp /scratch/random /scratch/copy
rm /scratch/random; sync
fstrim /scratch && echo "= trimmed"
echo 3 >/proc/sys/vm/drop_caches
echo "= copied $(sha256sum </scratch/copy)"
rm /scratch/copy; umount /scratch; umount /image
echo "= end"
reboot -f
"#;

fn run(command: &mut Command) -> String {
    let out = command.stderr(Stdio::inherit()).output();
    let out = out.unwrap_or_else(|e| panic!("{command:?} (`make setup`): {e}"));
    assert!(out.status.success(), "{command:?}: {}", out.status);
    String::from_utf8(out.stdout).unwrap()
}

fn image(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("image-root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/motd"), "a longship").unwrap();
    let numbers: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(root.join("numbers"), numbers).unwrap();
    let disk = dir.join("image.erofs");
    run(Command::new("mkfs.erofs")
        .arg("--quiet")
        .args([&disk, &root]));
    disk
}

#[test]
fn linux_behind_qemu_reads_the_image_and_uses_the_scratch_disk() {
    uses_both_disks(Dma::Direct);
}

#[test]
fn linux_that_asks_the_platform_for_memory_does_the_same() {
    uses_both_disks(Dma::Platform);
}

fn uses_both_disks(dma: Dma) {
    const SCRATCH: u64 = 128 << 20;
    let kernel = kernel(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    let dir = tempfile::tempdir().unwrap();
    let initramfs = busybox_initramfs(dir.path(), INIT);
    let disk = image(dir.path());
    let sum = run(Command::new("sha256sum").arg(&disk));
    let sum = sum.split(' ').next().unwrap();

    let store = ScratchStore::open(dir.path().join("scratch")).unwrap();
    let volumes = VhostUserVolumes::new(store);
    let prepare = |serial: &str, kind| {
        let spec = VolumeSpec {
            id: serial.into(),
            socket: dir.path().join(serial),
            kind,
            serial: serial.into(),
        };
        match volumes.prepare(&spec).unwrap() {
            VolumeHandle::VhostUser { socket } => socket,
            other => panic!("{other:?}"),
        }
    };
    let sockets = [
        prepare("the-image", VolumeKind::Image { disk: disk.clone() }),
        prepare("the-scratch", VolumeKind::Scratch { bytes: SCRATCH }),
    ];
    let devices = sockets.each_ref().map(|socket| Frontend {
        device: "vhost-user-blk-pci,num-queues=1",
        socket,
        network: false,
    });
    let mut machine = Machine::boot(&kernel, &initramfs, "", dma, &devices);
    // What a pod that writes nothing makes of its disk is the card's memory.
    machine.wait_for("= idle");
    let path = dir.path().join("scratch/disks/the-scratch.ext4");
    let held = path.metadata().unwrap().blocks() * 512;
    println!("the scratch disk of an idle pod: {held} bytes");
    assert!(held <= 96 << 10, "{held} bytes");
    let console = machine.wait_for_end();

    let said: Vec<&str> = console
        .iter()
        .filter_map(|l| l.strip_prefix("= "))
        .collect();
    let all = console.join("\n");
    let says = |line: &str| assert!(said.contains(&line), "no `{line}` in\n{all}");
    let sectors = disk.metadata().unwrap().len().div_ceil(512);
    says(&format!("disk the-image read-only 1 sectors {sectors}"));
    says(&format!(
        "disk the-scratch read-only 0 sectors {}",
        SCRATCH / 512
    ));
    // The kernel has bounce buffers only where it was told of a window for them.
    let bounced = console.iter().any(|line| line.contains("software IO TLB"));
    assert_eq!(bounced, dma == Dma::Platform, "{all}");
    says(&format!("platform {}", u8::from(dma == Dma::Platform)));
    says(&format!("sum {sum}  -"));
    says("image a longship");
    says("scratch mounted");
    says("trimmed");
    says("end");
    assert!(!said.contains(&"image written to"), "{all}");
    let value = |key: &str| said.iter().find_map(|l| l.strip_prefix(key));
    assert!(
        value("written ").is_some_and(|w| Some(w) == value("copied ")),
        "{all}"
    );

    // What the guest left is on the disk, sound, and what it trimmed is not.
    run(Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&path));
    let hello = run(Command::new("/usr/sbin/debugfs")
        .args(["-R", "cat /hello"])
        .arg(&path));
    assert_eq!(hello, "hello\n");
    let held = path.metadata().unwrap().blocks() * 512;
    assert!(held < 40 << 20, "{held} bytes are still allocated");
    let again = run(Command::new("sha256sum").arg(&disk));
    assert!(again.starts_with(sum));

    volumes.release("the-scratch").unwrap();
    volumes.release("the-image").unwrap();
    assert!(volumes.list().unwrap().is_empty());
}
