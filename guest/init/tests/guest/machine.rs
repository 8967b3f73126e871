//! A guest under QEMU (software emulation), whose disks and control channel are
//! served by Longship's own backends, as a card would.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use longship_volume::{BlockDevice, Disk};
use longship_vsock::{Incoming, VsockDevice};
use tokio::sync::mpsc;

/// What the guest starts from.
struct Parts {
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// Builds the guest, or takes what `LONGSHIP_KERNEL` and `LONGSHIP_INITRAMFS`
/// name. Whatever is missing fails the test.
fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = |script: &str| {
            let output = Command::new(here.join(script))
                .stderr(Stdio::inherit())
                .output()
                .unwrap_or_else(|error| panic!("{script}: {error}"));
            assert!(output.status.success(), "{script}: {}", output.status);
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        };
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        Parts {
            kernel: named("LONGSHIP_KERNEL").unwrap_or_else(|| built("../kernel/build.sh")),
            initramfs: named("LONGSHIP_INITRAMFS")
                .unwrap_or_else(|| built("build.sh").join("initramfs.cpio")),
        }
    })
}

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
    pub(crate) fn boot() -> (Self, mpsc::Receiver<Incoming>) {
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

/// An image of BusyBox with a few users and traps.
fn make_image(image: &Path, tree: &Path) {
    for dir in ["bin", "etc", "data", "tmp"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = busybox.iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is needed (Debian package busybox-static)");
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    for applet in [
        "cat", "chmod", "cut", "date", "dd", "env", "grep", "hostname", "id", "ip", "kill", "ls",
        "mknod", "mount", "nproc", "ping", "ps", "pwd", "readlink", "sh", "sleep", "stty", "tail",
        "touch", "tty", "wc",
    ] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/sh\n";
    fs::write(tree.join("etc/passwd"), passwd).unwrap();
    fs::write(
        tree.join("etc/group"),
        "root:x:0:\nwww:x:34:\nadm:x:4:www\n",
    )
    .unwrap();
    // As in images that expect systemd-resolved.
    std::os::unix::fs::symlink("/run/none/resolv.conf", tree.join("etc/resolv.conf")).unwrap();
    fs::write(tree.join("data/plain"), "no program\n").unwrap();
    fs::write(tree.join("data/garbage"), [0_u8; 64]).unwrap();
    fs::write(tree.join("data/lost"), "#!/no/such/interpreter\n").unwrap();
    for program in ["garbage", "lost"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(tree.join("data").join(program), mode).unwrap();
    }
    run("mkfs.erofs", &["--all-root".as_ref(), image, tree]);
}

fn make_scratch(disk: &Path) {
    File::create(disk).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), disk]);
}

fn run(program: &str, arguments: &[&Path]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program)
        .env("PATH", path)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
}
