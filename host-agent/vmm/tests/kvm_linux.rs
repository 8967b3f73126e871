//! The guest kernel on a real KVM, as pods run it, with a backend of this project.
//!
//! Nothing here is skipped: without a KVM that runs kernels these tests fail.
//! `make test` runs them in the testbed then.

#![allow(clippy::unwrap_used, reason = "tests")]

mod guest_program;
mod played_agent;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_program::Program;
use longship_framed::vmm::{DeviceType, exited::Cause};
use longship_volume::{BlockDevice, Disk};
use played_agent::Vmm;

const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 pci=conf1";

/// The kernel: `LONGSHIP_KERNEL`, or the one that guest/kernel has built.
fn kernel() -> File {
    let path = std::env::var_os("LONGSHIP_KERNEL").map_or_else(
        || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/kernel/build.sh");
            let output = Command::new(script)
                .output()
                .expect("guest/kernel/build.sh");
            assert!(output.status.success(), "guest/kernel/build.sh failed");
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        },
        PathBuf::from,
    );
    File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn vmm() -> Vmm {
    let path = std::env::var_os("LONGSHIP_VMM").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_longship-vmm")),
        PathBuf::from,
    );
    Vmm::spawn(&path)
}

/// Boots Linux with `init`, until it restarts; returns what it printed.
fn linux(init: &Program, vcpus: u32, memory: u64, disks: &[&BlockDevice]) -> String {
    let mut console = tempfile::tempfile().unwrap();
    let mut vmm = vmm();
    let initramfs = init.initramfs();
    let created = vmm.create(
        vcpus,
        memory,
        COMMAND_LINE,
        &kernel(),
        Some(&initramfs),
        Some(&console),
    );
    assert_eq!(created.failure, None);
    for disk in disks {
        assert_eq!(vmm.attach(DeviceType::Block, disk.socket()).failure, None);
    }
    vmm.boot();
    let exited = vmm.exited();
    let mut text = String::new();
    console.seek(SeekFrom::Start(0)).unwrap();
    console.read_to_string(&mut text).unwrap();
    assert_eq!(exited.cause(), Cause::GuestReset, "{text}");
    assert_eq!(vmm.wait().code(), Some(0));
    text
}

#[test]
fn linux_reaches_init_and_restarts() {
    let text = linux(
        &Program::new().say("init is here\n").reboot(),
        1,
        128 << 20,
        &[],
    );
    assert!(text.contains("init is here"), "{text}");
    assert!(text.contains("MPTABLE: OEM ID: LONGSHIP"), "{text}");
}

#[test]
fn linux_finds_all_processors_and_memory_on_both_sides_of_the_hole() {
    let memory = 3328 << 20;
    let init = Program::new().say("init is here\n").reboot();
    let text = linux(&init, 4, memory, &[]);
    assert!(text.contains("Brought up 1 node, 4 CPUs"), "{text}");
    assert!(text.contains("init is here"), "{text}");
    // "Memory: 123K/456K available": the second is all that the kernel was given.
    let found = text.split("Memory: ").nth(1).and_then(|rest| {
        let kib = rest.split('/').nth(1)?.split('K').next()?;
        kib.parse::<u64>().ok()
    });
    let missing = memory - (found.expect(&text) << 10);
    assert!(missing < 1 << 20, "{missing} bytes missing");
}

#[test]
fn linux_reads_its_disks_with_message_interrupts() {
    let dir = tempfile::tempdir().unwrap();
    let disks = ["first disk\n", "second disk\n"].map(|content| {
        let path = dir.path().join(content.split(' ').next().unwrap());
        let mut bytes = content.repeat(100).into_bytes();
        bytes.resize(1 << 20, 0);
        std::fs::write(&path, bytes).unwrap();
        let socket = path.with_extension("socket");
        let disk = Disk {
            file: File::open(&path).unwrap(),
            read_only: true,
            serial: "vmm-test".into(),
        };
        BlockDevice::serve(&socket, disk).unwrap()
    });
    let mut init = Program::new();
    let kind = init.text("devtmpfs");
    let dev = init.text("/dev");
    let nodes = [init.text("/dev/vda"), init.text("/dev/vdb")];
    let buffer = init.text(&"?".repeat(16));
    init = init.call(165, &[kind, dev, kind, 0]);
    for (fd, (node, len)) in (3..).zip(nodes.into_iter().zip([11, 12])) {
        init = init
            .call(2, &[node, 0])
            .call(0, &[fd, buffer, 12])
            .call(1, &[1, buffer, len]);
    }
    let text = linux(&init.reboot(), 2, 128 << 20, &[&disks[0], &disks[1]]);
    assert!(
        text.contains("first disk\n") || text.contains("first disk\r\n"),
        "{text}"
    );
    assert!(text.contains("second disk"), "{text}");
}

#[test]
fn a_guest_that_panics_ends() {
    // exit(1) of init.
    let text = linux(&Program::new().call(60, &[1]), 1, 128 << 20, &[]);
    assert!(text.contains("Attempted to kill init"), "{text}");
}
