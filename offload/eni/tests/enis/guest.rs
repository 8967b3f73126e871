//! A Linux guest for the tests: busybox in an initramfs, and QEMU as the VMM.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use longship_eni::EniSpec;

/// The guest kernel: `LONGSHIP_KERNEL`, or what its build script makes (or has
/// made: it keeps the result).
pub(crate) fn kernel() -> PathBuf {
    if let Some(given) = std::env::var_os("LONGSHIP_KERNEL") {
        let path = PathBuf::from(given);
        assert!(
            path.is_file(),
            "LONGSHIP_KERNEL: no file {}",
            path.display()
        );
        return path;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/kernel/build.sh");
    let built = Command::new(&script).stderr(Stdio::inherit()).output();
    let built = built.unwrap_or_else(|e| panic!("running {}: {e}", script.display()));
    assert!(built.status.success(), "{} failed", script.display());
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

/// Packs busybox and `script` as `/init` into an initramfs (cpio) at `at`.
pub(crate) fn initramfs(at: &Path, script: &str) {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let busybox = "/usr/bin/busybox";
    std::fs::copy(busybox, bin.join("busybox"))
        .unwrap_or_else(|e| panic!("{busybox}: {e}; it is in the package busybox-static"));
    let init = root.path().join("init");
    std::fs::write(&init, script).unwrap();
    std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755)).unwrap();
    let mut cpio = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(at).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = b"init\nbin\nbin/busybox\n";
    cpio.stdin.take().unwrap().write_all(names).unwrap();
    assert!(cpio.wait().unwrap().success(), "packing {}", at.display());
}

/// A guest that runs under QEMU, until it is dropped.
pub(crate) struct Guest {
    name: String,
    process: Child,
    lines: Receiver<String>,
    console: Vec<String>,
}

impl Guest {
    /// Boots a guest with the ENI of `spec`. Words of `role` are for its
    /// `/init`, on the kernel's command line.
    pub(crate) fn boot(initramfs: &Path, spec: &EniSpec, role: &str) -> Self {
        let mut process = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "q35,memory-backend=ram",
                "-accel",
                "tcg",
                "-cpu",
                "max",
            ])
            .args([
                "-m",
                "128M",
                "-nodefaults",
                "-no-user-config",
                "-nographic",
                "-no-reboot",
            ])
            .args(["-serial", "stdio"])
            .args(["-object", "memory-backend-memfd,id=ram,size=128M,share=on"])
            .arg("-kernel")
            .arg(kernel())
            .arg("-initrd")
            .arg(initramfs)
            .args([
                "-append",
                &format!("console=ttyS0 reboot=k panic=-1 quiet {role}"),
            ])
            .args([
                "-chardev",
                &format!("socket,id=eni,path={}", spec.socket.display()),
            ])
            .args(["-netdev", "vhost-user,id=net,chardev=eni"])
            // QEMU 7.2 crashes with MSI-X here under TCG; without it works everywhere.
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=net,vectors=0,mac={}", spec.mac),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("qemu-system-x86_64: {e}; it is in qemu-system-x86"));
        let (sender, lines) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self {
            name: spec.id.clone(),
            process,
            lines,
            console: Vec::new(),
        }
    }

    /// Waits for the line `TEST key=value` and returns the value.
    pub(crate) fn result(&mut self, key: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(90);
        let wanted = format!("TEST {key}=");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.console.push(line.clone());
                    if let Some((_, value)) = line.split_once(&wanted) {
                        return value.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.fail(key, "took too long"),
                Err(RecvTimeoutError::Disconnected) => self.fail(key, "ended"),
            }
        }
    }

    fn fail(&self, key: &str, how: &str) -> ! {
        let console = self.console.join("\n");
        panic!(
            "guest {} {how} before it said `{key}`; its console:\n{console}",
            self.name
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
