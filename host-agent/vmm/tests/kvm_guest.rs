//! Guests of a few instructions on a real KVM: their lives and their ends.
//!
//! Nothing here is skipped: without a usable `/dev/kvm` these tests fail. `make
//! test` runs them in the testbed then.

#![allow(clippy::unwrap_used, reason = "tests")]

mod guest_program;
mod played_agent;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_program::{Program, file};
use longship_framed::error::Class;
use longship_framed::vmm::request::Operation;
use longship_framed::vmm::{Boot, Create, DeviceType, exited::Cause};
use longship_volume::{BlockDevice, Disk};
use played_agent::Vmm;

const MEMORY: u64 = 64 << 20;

/// The VMM to test; `LONGSHIP_VMM` names another build of it.
fn vmm() -> Vmm {
    let path = std::env::var_os("LONGSHIP_VMM").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_longship-vmm")),
        PathBuf::from,
    );
    Vmm::spawn(&path)
}

/// A machine that runs `program`.
fn booted(program: &Program, console: Option<&File>) -> Vmm {
    let mut vmm = vmm();
    let created = vmm.create(1, MEMORY, "", &program.kernel(), None, console);
    assert_eq!(created.failure, None);
    vmm.boot();
    vmm
}

fn text(mut console: File) -> String {
    let mut text = String::new();
    console.seek(SeekFrom::Start(0)).unwrap();
    console.read_to_string(&mut text).unwrap();
    text
}

/// Waits until the guest has made an exit, so that it surely runs.
fn wait_for_exits(vmm: &mut Vmm, exits: u64) {
    let until = Instant::now() + Duration::from_secs(30);
    while vmm.stats().exits < exits {
        assert!(Instant::now() < until, "the guest does not run");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_prints_and_resets() {
    let console = tempfile::tempfile().unwrap();
    let mut vmm = booted(
        &Program::new().print("hello\nworld").reset(),
        Some(&console),
    );
    assert_eq!(vmm.exited().cause(), Cause::GuestReset);
    assert_eq!(vmm.wait().code(), Some(0));
    assert_eq!(text(console), "hello\nworld");
}

#[test]
fn a_triple_fault_is_the_guests_own() {
    let mut vmm = booted(&Program::new().code(&[0x0F, 0x0B]), None);
    assert_eq!(vmm.exited().cause(), Cause::GuestFault);
    assert_eq!(vmm.wait().code(), Some(1));
}

#[test]
fn a_guest_is_stopped_whatever_it_does() {
    let programs = [
        Program::new().print("x").spin(),
        Program::new().print("x").halt(),
        // in al, 0x80; again: nothing but exits.
        Program::new().code(&[0xE4, 0x80, 0xEB, 0xFC]),
    ];
    for program in programs {
        let mut vmm = booted(&program, None);
        wait_for_exits(&mut vmm, 1);
        let began = Instant::now();
        vmm.stop();
        assert_eq!(vmm.wait().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn it_ends_when_the_agent_is_gone() {
    let mut vmm = booted(&Program::new().print("x").spin(), None);
    wait_for_exits(&mut vmm, 1);
    vmm.channel.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(vmm.wait().code(), Some(0));
}

#[test]
fn statistics_count_exits_and_tell_the_start() {
    let before = longship_now_us();
    let mut vmm = booted(&Program::new().print("0123456789").spin(), None);
    wait_for_exits(&mut vmm, 10);
    let stats = vmm.stats();
    assert_eq!(stats.exits, 10);
    assert!((before..=longship_now_us()).contains(&stats.first_run_us));
}

fn longship_now_us() -> i64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(now.as_micros()).unwrap()
}

#[test]
fn steps_are_measured() {
    let mut vmm = vmm();
    let before = longship_now_us();
    let created = vmm.create(2, MEMORY, "", &Program::new().halt().kernel(), None, None);
    let names: Vec<&str> = created
        .steps
        .iter()
        .map(|step| step.name.as_str())
        .collect();
    assert_eq!(names, ["vm", "memory", "kernel", "initramfs", "vcpus"]);
    let mut last = before;
    for step in &created.steps {
        assert!(
            last <= step.start_us && step.start_us <= step.end_us,
            "{step:?}"
        );
        last = step.end_us;
    }
}

#[test]
fn refusals_change_nothing_and_name_the_field() {
    let mut vmm = vmm();
    let failure = vmm.request(Operation::Boot(Boot {}), &[]).failure.unwrap();
    assert_eq!(failure.class(), Class::Conflict);

    let text = file(b"#!/bin/sh\nexit 1\n");
    let failure = vmm
        .create(1, MEMORY, "", &text, None, None)
        .failure
        .unwrap();
    assert_eq!(
        (failure.class(), failure.field.as_str()),
        (Class::Invalid, "kernel")
    );

    let program = Program::new().print("x").spin();
    let failure = vmm
        .create(1, 16 << 20, "", &program.kernel(), None, None)
        .failure
        .unwrap();
    assert_eq!(failure.field, "memory_bytes");

    let null = File::open("/dev/null").unwrap();
    let create = Create {
        vcpus: 1,
        memory_bytes: MEMORY,
        ..Create::default()
    };
    let kernel = program.kernel();
    let fds = [null.as_fd(), kernel.as_fd()];
    let failure = vmm
        .request(Operation::Create(create), &fds)
        .failure
        .unwrap();
    assert_eq!(
        (failure.class(), failure.field.as_str()),
        (Class::Invalid, "kvm")
    );

    // After all that, it still makes the machine that is right.
    let created = vmm.create(1, MEMORY, "", &program.kernel(), None, None);
    assert_eq!(created.failure, None);
    let again = vmm.create(1, MEMORY, "", &program.kernel(), None, None);
    assert_eq!(again.failure.unwrap().class(), Class::Conflict);
    vmm.boot();
    let (socket, _backend) = std::os::unix::net::UnixStream::pair().unwrap();
    let late = vmm
        .attach_connected(DeviceType::Block, &socket)
        .failure
        .unwrap();
    assert_eq!(late.class(), Class::Conflict);
    assert_eq!(
        late.message,
        "the machine runs: devices are attached before boot"
    );
    vmm.stop();
}

/// A blk backend of this project, with a disk of 1 MiB.
fn disk(dir: &Path) -> BlockDevice {
    let path = dir.join("disk");
    std::fs::write(&path, vec![0x5A; 1 << 20]).unwrap();
    let disk = Disk {
        file: File::open(&path).unwrap(),
        read_only: true,
        serial: "vmm-test".into(),
    };
    BlockDevice::serve(&dir.join("socket"), disk).unwrap()
}

// A hostile guest. RBX is a linear congruential generator; in 3000 rounds it writes
// and reads random registers of functions 0 and 1 by CF8/CFC, then puts the BAR of
// function 1 back and writes and reads its common configuration or MSI-X table.
std::arch::global_asm!(
    r#"
    .pushsection .rodata.guest, "a"
hammer_begin:
    # Map 2 MiB at 3 GiB to themselves: directory pointers at 0xa000, a new directory.
    mov qword ptr [0xa018], 0xc003
    mov eax, 0xc0000083
    mov [0xc000], rax
    mov rax, cr3
    mov cr3, rax
    mov ecx, 3000
    mov r8, 0x5851f42d4c957f2d
    mov ebx, 12345
1:  imul rbx, r8
    add rbx, 0x113c9705
    # A random register, a random value in three widths.
    mov rax, rbx
    shr rax, 33
    and eax, 0xffc
    or eax, 0x80000000
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    mov rax, rbx
    out dx, eax
    out dx, al
    out dx, ax
    in eax, dx
    # Function 1 decodes memory, at its own place.
    mov dx, 0xcf8
    mov eax, 0x80000804
    out dx, eax
    mov dx, 0xcfc
    mov eax, 6
    out dx, eax
    mov dx, 0xcf8
    mov eax, 0x80000810
    out dx, eax
    mov dx, 0xcfc
    mov eax, 0xc0008000
    out dx, eax
    # A random place of it, in four widths.
    mov rdi, rbx
    shr rdi, 40
    and edi, 0x403f
    mov eax, 0xc0008000
    add rdi, rax
    mov [rdi], ebx
    mov [rdi], bl
    mov [rdi], bx
    mov [rdi], rbx
    mov eax, [rdi]
    dec ecx
    jnz 1b
hammer_end:
    .popsection
    "#
);

unsafe extern "C" {
    static hammer_begin: u8;
    static hammer_end: u8;
}

fn hammer() -> &'static [u8] {
    let (begin, end) = (&raw const hammer_begin, &raw const hammer_end);
    // SAFETY: both labels are in one section, with read-only bytes between them.
    unsafe {
        let len = usize::try_from(end.offset_from(begin)).unwrap();
        std::slice::from_raw_parts(begin, len)
    }
}

#[test]
fn a_guest_that_hammers_its_device_ends_as_it_likes() {
    let program = Program::new().code(hammer()).print("done\n").reset();

    let dir = tempfile::tempdir().unwrap();
    let backend = disk(dir.path());
    let console = tempfile::tempfile().unwrap();
    let mut vmm = vmm();
    let created = vmm.create(1, MEMORY, "", &program.kernel(), None, Some(&console));
    assert_eq!(created.failure, None);
    assert_eq!(
        vmm.attach(DeviceType::Block, backend.socket()).failure,
        None
    );
    vmm.boot();
    assert_eq!(vmm.exited().cause(), Cause::GuestReset);
    assert_eq!(vmm.wait().code(), Some(0));
    assert_eq!(text(console), "done\n");
}

/// Bytes of memory that only this process has, without the guest's RAM, and of
/// all its resident memory without the guest's.
fn own_memory(pid: u32) -> (u64, u64) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut private, mut resident, mut guest) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        if !name.ends_with(':') {
            guest = line.contains("memfd:guest-ram");
        } else if !guest && let Ok(kib) = value.parse::<u64>() {
            match name {
                "Private_Clean:" | "Private_Dirty:" => private += kib << 10,
                "Rss:" => resident += kib << 10,
                _ => {}
            }
        }
    }
    (private, resident)
}

#[test]
fn its_own_memory_is_under_4_mib() {
    let dir = tempfile::tempdir().unwrap();
    let backend = disk(dir.path());
    let program = Program::new().print("x").halt();
    let mut vmm = vmm();
    let created = vmm.create(2, 512 << 20, "", &program.kernel(), None, None);
    assert_eq!(created.failure, None);
    assert_eq!(
        vmm.attach(DeviceType::Block, backend.socket()).failure,
        None
    );
    vmm.boot();
    wait_for_exits(&mut vmm, 1);
    let (private, resident) = own_memory(vmm.child.id());
    println!("longship-vmm without guest RAM: {private} bytes private, {resident} bytes resident");
    assert!(private > 0 && private < 4 << 20, "{private} bytes private");
    vmm.stop();
}
