//! A foreign frontend, for tests: QEMU, in software emulation, boots the guest
//! kernel with vhost-user devices of ours.

#![allow(
    clippy::unwrap_used,
    reason = "it exists for tests only, where a panic is the right answer"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a guest may take from the spawn of QEMU to its last word.
const PATIENCE: Duration = Duration::from_secs(180);

/// A QEMU that runs; ended when dropped, with its console where a test failed.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    console: Receiver<String>,
    log: Vec<String>,
    end: Instant,
}

/// A vhost-user device of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Frontend<'a> {
    /// QEMU's name with its properties, e.g. `vhost-user-blk-pci,num-queues=1`.
    pub device: &'a str,
    /// Where the backend listens.
    pub socket: &'a Path,
}

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

impl Machine {
    /// Boots `kernel` with `initramfs` and `devices`.
    pub fn boot(kernel: &Path, initramfs: &Path, devices: &[Frontend<'_>]) -> Self {
        assert!(kernel.is_file(), "no kernel at {}", kernel.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-M", "q35,memory-backend=ram"])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-cpu", "max", "-m", "256M", "-smp", "1", "-nodefaults"])
            .args(["-no-user-config", "-display", "none", "-serial", "stdio"])
            .args(["-no-reboot", "-append", "console=ttyS0 reboot=k panic=-1"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs);
        for (i, frontend) in devices.iter().enumerate() {
            let socket = frontend.socket.display();
            command
                .args(["-chardev", &format!("socket,id=c{i},path={socket}")])
                .args(["-device", &format!("{},chardev=c{i}", frontend.device)]);
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
            end: Instant::now() + PATIENCE,
        }
    }

    /// Reads the console until a line holds `marker`, and returns that line.
    ///
    /// # Panics
    /// Where the guest ends or takes too long.
    pub fn wait_for(&mut self, marker: &str) -> String {
        while let Some(line) = self.next_line() {
            if line.contains(marker) {
                return line;
            }
        }
        panic!("no `{marker}` on the console");
    }

    /// Waits until the guest has ended; all that was on its console.
    pub fn wait_for_end(mut self) -> Vec<String> {
        while self.next_line().is_some() {}
        let status = self.qemu.wait().unwrap();
        assert!(status.success(), "QEMU: {status}");
        std::mem::take(&mut self.log)
    }

    fn next_line(&mut self) -> Option<String> {
        let left = self.end.saturating_duration_since(Instant::now());
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
