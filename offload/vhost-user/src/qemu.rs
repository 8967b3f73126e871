//! A foreign frontend, for tests: QEMU, in software emulation, boots the guest
//! kernel with vhost-user devices of ours.

#![allow(
    clippy::unwrap_used,
    reason = "it exists for tests only, where a panic is the right answer"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a guest may take to say or do what is waited for.
const PATIENCE: Duration = Duration::from_secs(180);

/// A QEMU that runs; ended when dropped, with its console where a test failed.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    console: Receiver<String>,
    log: Vec<String>,
}

/// A vhost-user device of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Frontend<'a> {
    /// QEMU's name with its properties, e.g. `vhost-user-blk-pci,num-queues=1`.
    pub device: &'a str,
    /// Where the backend listens.
    pub socket: &'a Path,
    /// Whether it is a network card; QEMU has a netdev between those and their
    /// socket.
    pub network: bool,
}

/// How the guest's drivers give memory to the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// Any of theirs, at its guest-physical address.
    Direct,
    /// As the platform has it (VIRTIO_F_ACCESS_PLATFORM): our guest kernel keeps to
    /// [`DMA_WINDOW`]. QEMU shares all memory with a backend nevertheless.
    Platform,
}

/// The window of [`Dma::Platform`]: 4 MiB that are RAM on this machine.
pub const DMA_WINDOW: &str = "4194304@0xf000000";

/// The guest kernel: `$LONGSHIP_KERNEL`, or what `guest/kernel/build.sh` of the
/// project at `root` builds or has built.
pub fn kernel(root: &Path) -> PathBuf {
    match std::env::var_os("LONGSHIP_KERNEL") {
        Some(path) => PathBuf::from(path),
        None => last_line_of(&root.join("guest/kernel/build.sh")),
    }
}

/// The path that a build script prints last.
pub fn last_line_of(script: &Path) -> PathBuf {
    let out = Command::new(script)
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    assert!(out.status.success(), "{} failed", script.display());
    let text = String::from_utf8(out.stdout).unwrap();
    PathBuf::from(text.lines().last().expect("the script printed nothing"))
}

/// An initramfs with busybox and `init` as its `/init`, made in `dir`.
pub fn busybox_initramfs(dir: &Path, init: &str) -> PathBuf {
    let busybox = "/bin/busybox";
    let root = dir.join("initramfs");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(busybox, root.join("bin/busybox"))
        .unwrap_or_else(|e| panic!("{busybox} is needed (`make setup`): {e}"));
    fs::write(root.join("init"), init).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    let archive = dir.join("initramfs.cpio");
    let mut cpio = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&archive).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = b"init\nbin\nbin/busybox\n";
    cpio.stdin.take().unwrap().write_all(names).unwrap();
    assert!(cpio.wait().unwrap().success(), "packing the initramfs");
    archive
}

impl Machine {
    /// Boots `kernel` with `initramfs` and `devices`, and `words` for the guest
    /// on the kernel's command line.
    pub fn boot(
        kernel: &Path,
        initramfs: &Path,
        words: &str,
        dma: Dma,
        devices: &[Frontend<'_>],
    ) -> Self {
        assert!(kernel.is_file(), "no kernel at {}", kernel.display());
        let (window, properties) = match dma {
            Dma::Direct => (String::new(), ""),
            Dma::Platform => (
                format!("dma_window={DMA_WINDOW}"),
                ",iommu_platform=on,disable-legacy=on",
            ),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-M", "q35,memory-backend=ram"])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-cpu", "max", "-m", "256M", "-smp", "1", "-nodefaults"])
            .args(["-no-user-config", "-display", "none", "-serial", "stdio"])
            .arg("-no-reboot")
            .args([
                "-append",
                &format!("console=ttyS0 reboot=k panic=-1 {window} {words}"),
            ])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs);
        for (i, frontend) in devices.iter().enumerate() {
            let socket = frontend.socket.display();
            command.args(["-chardev", &format!("socket,id=c{i},path={socket}")]);
            let mut backend = format!("chardev=c{i}");
            if frontend.network {
                let netdev = format!("vhost-user,id=n{i},{backend}");
                command.args(["-netdev", &netdev]);
                backend = format!("netdev=n{i}");
            }
            let device = format!("{},{backend}{properties}", frontend.device);
            command.args(["-device", &device]);
        }
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("qemu-system-x86_64 is needed (`make setup`): {e}"));
        let output = BufReader::new(qemu.stdout.take().unwrap());
        let (lines, console) = channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            qemu,
            console,
            log: Vec::new(),
        }
    }

    /// Reads the console until a line holds `marker`, and returns that line.
    ///
    /// # Panics
    /// Where the guest ends or takes too long.
    pub fn wait_for(&mut self, marker: &str) -> String {
        let end = Instant::now() + PATIENCE;
        while let Some(line) = self.next_line(end) {
            if line.contains(marker) {
                return line;
            }
        }
        panic!("no `{marker}` on the console");
    }

    /// Waits until the guest has ended; all that was on its console.
    pub fn wait_for_end(mut self) -> Vec<String> {
        let end = Instant::now() + PATIENCE;
        while self.next_line(end).is_some() {}
        let status = self.qemu.wait().unwrap();
        assert!(status.success(), "QEMU: {status}");
        std::mem::take(&mut self.log)
    }

    fn next_line(&mut self, end: Instant) -> Option<String> {
        let left = end.saturating_duration_since(Instant::now());
        match self.console.recv_timeout(left) {
            Ok(line) => {
                self.log.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the guest takes too long"),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            self.log.extend(self.console.iter());
            eprintln!("the guest's console:\n{}", self.log.join("\n"));
        }
    }
}
