//! The kernel's DMA window, seen from the device's side: a guest reads disks and
//! answers the network under QEMU, whose monitor tells where rings and buffers lie.
#![allow(clippy::unwrap_used)] // all of it is tests

use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A window as the VMM would choose it, and one of an odd size elsewhere.
const WINDOW: Range<u64> = 0xf80_0000..0xfc0_0000;
const ODD_WINDOW: Range<u64> = 0x600_0000..0x660_0000;

const GUEST_MEMORY: u64 = 256 << 20;

/// Device and number of each queue that has buffers.
const QUEUES: [(&str, u32); 3] = [("disk", 0), ("net", 0), ("net", 1)];

/// What the guest does: it uses its disk and its network until it is ended. The
/// checksum is of what lies on the disk.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo "sum $(md5sum </dev/vda)"
ping -c 3 -s 1400 10.0.2.2 >/dev/null && echo ping answered
while :; do dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null; done &
ping -i 0.05 -s 1400 10.0.2.2 >/dev/null &
echo ready
wait
"#;

#[test]
fn all_dma_takes_place_in_the_window() {
    for (window, cpus) in [(WINDOW, 1), (ODD_WINDOW, 3)] {
        let mut guest = Guest::boot(&format!("{window:#x?}"), &window, cpus);
        guest.wait_for("ready");
        let console = guest.console();
        assert!(console.contains("ping answered"), "{console}");
        assert!(console.contains(&guest.sum), "{console}");

        // What the guest has last given to the devices is what they see of it.
        guest.ask("stop");
        let mut elements = 0;
        for (device, queue) in QUEUES {
            let path = format!("/machine/peripheral/{device}/virtio-backend {queue}");
            let status = guest.ask(&format!("info virtio-queue-status {path}"));
            for ring in ["desc", "avail", "used"].map(|name| value(&status, name)) {
                assert!(window.contains(&ring), "{path}: {status}");
            }
            for index in 0..64 {
                let element = guest.ask(&format!("info virtio-queue-element {path} {index}"));
                for (address, length) in buffers(&element) {
                    elements += 1;
                    let inside = window.contains(&address) && address + length <= window.end;
                    assert!(inside, "{path}: {element}");
                }
            }
        }
        println!("{elements} buffers of {window:#x?} looked at");
        assert!(elements >= 100, "few buffers were seen");
    }
}

#[test]
fn a_window_that_is_no_memory_ends_the_boot() {
    let outside = GUEST_MEMORY..GUEST_MEMORY + (4 << 20);
    let mut guest = Guest::boot("outside", &outside, 1);
    guest.wait_for("bytes at 0x0000000010000000 are not memory");
}

/// Without one there is no bouncing: buffers lie anywhere.
#[test]
fn without_a_window_memory_is_used_as_ever() {
    let mut guest = Guest::boot("none", &(0..0), 1);
    guest.wait_for("ready");
    let status = guest.ask("info virtio-queue-status /machine/peripheral/disk/virtio-backend 0");
    assert!(!WINDOW.contains(&value(&status, "desc")), "{status}");
}

/// The number behind `name: ` or `name = ` in what the monitor has said.
fn value(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| {
        let (head, tail) = line.split_once(':')?;
        (head.trim() == name).then(|| tail.trim())
    });
    let digits = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    u64::from_str_radix(digits.trim_start_matches("0x"), 16).unwrap()
}

/// Address and length of each buffer: `addr 0xf800000 len 4096 (write)`.
fn buffers(element: &str) -> Vec<(u64, u64)> {
    let mut words = element.split_whitespace();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        if word != "addr" {
            continue;
        }
        let address = words.next().unwrap().trim_start_matches("0x");
        let address = u64::from_str_radix(address, 16).unwrap();
        assert_eq!(words.next(), Some("len"), "{element}");
        let length = words.next().unwrap().parse().unwrap();
        // Never used since the start.
        if length > 0 {
            found.push((address, length));
        }
    }
    found
}

/// A running guest.
struct Guest {
    qemu: Child,
    directory: tempfile::TempDir,
    monitor: Option<UnixStream>,
    /// Of the disk.
    sum: String,
}

impl Guest {
    fn boot(name: &str, window: &Range<u64>, cpus: u32) -> Self {
        println!("booting with the window {name}");
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let content: Vec<u8> = (0..8_u32 << 18).flat_map(u32::to_le_bytes).collect();
        fs::write(path("disk"), content).unwrap();
        let sum = output(Command::new("md5sum").arg(path("disk")));
        let sum = sum.split(' ').next().unwrap().to_owned();
        make_initramfs(&path("root"), &path("initramfs"));

        let early = "earlycon=uart8250,io,0x3f8";
        let mut line = format!("console=ttyS0 {early} reboot=k panic=-1 loglevel=7");
        if !window.is_empty() {
            let bytes = window.end - window.start;
            line += &format!(" dma_window={bytes}@{:#x}", window.start);
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg", "-cpu", "max"])
            .args(["-m", &format!("{}M", GUEST_MEMORY >> 20)])
            .args(["-smp", &cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-nographic"])
            .args(["-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel())
            .arg("-initrd")
            .arg(path("initramfs"))
            .args(["-append", &line])
            .arg("-monitor")
            .arg(format!("unix:{},server,nowait", path("monitor").display()))
            .arg("-blockdev")
            .arg(format!(
                "driver=raw,node-name=file,file.driver=file,file.filename={}",
                path("disk").display()
            ))
            .args(["-netdev", "user,id=net,restrict=on"]);
        let platform = if window.is_empty() { "off" } else { "on" };
        for device in [
            "virtio-blk-pci,id=disk,drive=file,num-queues=1",
            "virtio-net-pci,id=net,netdev=net,romfile=",
        ] {
            qemu.arg("-device").arg(format!(
                "{device},disable-legacy=on,indirect_desc=off,iommu_platform={platform}"
            ));
        }
        let console = File::create(path("console")).unwrap();
        let errors = console.try_clone().unwrap();
        let qemu = qemu
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(errors)
            .spawn()
            .expect("qemu-system-x86_64 is needed (Debian package qemu-system-x86)");
        Self {
            qemu,
            directory,
            monitor: None,
            sum,
        }
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + Duration::from_secs(120);
        while !self.console().contains(text) {
            let ended = self.qemu.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "{text:?} is not printed"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the monitor says to a command.
    fn ask(&mut self, command: &str) -> String {
        if self.monitor.is_none() {
            let path = self.directory.path().join("monitor");
            let mut monitor = UnixStream::connect(path).unwrap();
            let limit = Some(Duration::from_secs(30));
            monitor.set_read_timeout(limit).unwrap();
            until_prompt(&mut monitor);
            self.monitor = Some(monitor);
        }
        let monitor = self.monitor.as_mut().unwrap();
        writeln!(monitor, "{command}").unwrap();
        until_prompt(monitor)
    }
}

fn until_prompt(monitor: &mut UnixStream) -> String {
    let mut said = String::new();
    let mut buffer = [0; 4096];
    while !said.ends_with("(qemu) ") {
        let got = monitor.read(&mut buffer).unwrap();
        assert!(got > 0, "the monitor has gone: {said}");
        said += &String::from_utf8_lossy(&buffer[..got]);
    }
    said
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console ---\n{}", self.console());
        }
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The guest's kernel: what `LONGSHIP_KERNEL` names, or built now.
fn kernel() -> PathBuf {
    std::env::var_os("LONGSHIP_KERNEL").map_or_else(
        || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/build.sh");
            let mut build = Command::new(script);
            output(build.stderr(Stdio::inherit())).trim().into()
        },
        PathBuf::from,
    )
}

/// BusyBox, and [`INIT`].
fn make_initramfs(root: &Path, archive: &Path) {
    for dir in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = busybox.iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is needed (Debian package busybox-static)");
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    let script = "chmod +x init; mknod dev/console c 5 1; \
        find . | cpio --quiet -o -H newc >\"$0\"";
    let mut shell = Command::new("sh");
    output(shell.args(["-ec", script]).arg(archive).current_dir(root));
}

fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
