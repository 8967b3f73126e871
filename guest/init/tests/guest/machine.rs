//! A guest under QEMU (software emulation), whose disks and control channel are
//! served by Longship's own backends, as a card would.

use std::fs::{self, File, OpenOptions};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longship_volume::{BlockDevice, Disk};
use longship_vsock::{Incoming, VsockDevice};
use tokio::sync::mpsc;

use super::parts::{make_image, make_scratch, parts};

/// A running guest.
pub(crate) struct Machine {
    qemu: Child,
    directory: tempfile::TempDir,
    _disks: Vec<BlockDevice>,
    _vsock: VsockDevice,
}

impl Machine {
    /// Boots a guest with an image disk `image`, a scratch disk `scratch` and a
    /// network device [`super::card::MAC`].
    #[expect(clippy::unused_async, reason = "other machines wait here")]
    pub(crate) async fn boot() -> (Self, mpsc::Receiver<Incoming>) {
        let parts = parts();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        make_image(&path("image.erofs"), &path("tree"));
        make_scratch(&path("scratch.ext4"));
        let disk = |name: &str, file: &str, read_only: bool| {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(!read_only)
                .open(path(file))
                .unwrap();
            let serial = name.to_owned();
            let disk = Disk {
                file,
                read_only,
                serial,
            };
            BlockDevice::serve(&path(name), disk).unwrap()
        };
        let disks = vec![
            disk("image", "image.erofs", true),
            disk("scratch", "scratch.ext4", false),
        ];
        let (vsock, incoming) = VsockDevice::serve(&path("vsock"), 3, &[1024, 1025]).unwrap();
        let console = File::create(path("console")).unwrap();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35,memory-backend=memory",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ])
        .args(["-m", "256", "-smp", "1", "-nodefaults", "-no-user-config"])
        .args([
            "-object",
            "memory-backend-memfd,id=memory,size=256M,share=on",
        ])
        .args(["-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&parts.kernel)
        .arg("-initrd")
        .arg(&parts.initramfs)
        .args(["-append", "console=ttyS0 reboot=k panic=-1 loglevel=6"])
        .args(["-netdev", "user,id=net,restrict=on", "-device"])
        .arg(format!(
            "virtio-net-pci,netdev=net,mac={},romfile=",
            super::card::MAC
        ));
        for (name, device) in [
            ("image", "vhost-user-blk-pci,num-queues=1"),
            ("scratch", "vhost-user-blk-pci,num-queues=1"),
            ("vsock", "vhost-user-vsock-pci"),
        ] {
            let socket = path(name);
            qemu.arg("-chardev")
                .arg(format!("socket,id={name},path={}", socket.display()))
                .arg("-device")
                .arg(format!("{device},chardev={name},disable-legacy=on"));
        }
        let errors = console.try_clone().unwrap();
        let qemu = qemu
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(errors)
            .spawn()
            .expect("qemu-system-x86_64 is needed (Debian package qemu-system-x86)");
        let machine = Self {
            qemu,
            directory,
            _disks: disks,
            _vsock: vsock,
        };
        (machine, incoming)
    }

    /// What the guest has printed.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the end of the machine, which must be a proper one.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                assert!(status.success(), "QEMU: {status}");
                return;
            }
            assert!(Instant::now() < until, "the guest does not power off");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console ---\n{}", self.console());
        }
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
