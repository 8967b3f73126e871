//! Templates and clones of guests of a few instructions, on a real KVM.
//!
//! Nothing here is skipped: without a usable `/dev/kvm` these tests fail. `make
//! test` runs them in the testbed then.

#![allow(clippy::unwrap_used, reason = "tests")]

mod guest_program;
mod played_agent;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_program::Program;
use longship_framed::error::Class;
use longship_framed::vmm::request::Operation;
use longship_framed::vmm::{Boot, Create, DeviceType, MemoryProfile, exited::Cause};
use played_agent::{Template, Vmm, memfd};

const MEMORY: u64 = 64 << 20;
const WINDOW: u64 = 4 << 20;

/// The VMM to test; `LONGSHIP_VMM` names another build of it.
fn vmm() -> Vmm {
    let path = std::env::var_os("LONGSHIP_VMM").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_longship-vmm")),
        PathBuf::from,
    );
    Vmm::spawn(&path)
}

fn machine(profile: MemoryProfile) -> Create {
    Create {
        vcpus: 1,
        memory_bytes: MEMORY,
        profile: profile.into(),
        dma_window_bytes: match profile {
            MemoryProfile::Dense => WINDOW,
            _ => 0,
        },
        ..Create::default()
    }
}

fn text(mut console: &File) -> String {
    let mut text = String::new();
    console.seek(SeekFrom::Start(0)).unwrap();
    console.read_to_string(&mut text).unwrap();
    text
}

/// A program that parks, and goes on with `then`.
fn parks(then: &[u8]) -> Program {
    // mov dx, 0x2f00; mov eax, 2; out dx, eax
    Program::new()
        .code(&[0x66, 0xBA, 0x00, 0x2F, 0xB8, 2, 0, 0, 0, 0xEF])
        .code(then)
}

fn template_of(program: &Program, profile: MemoryProfile) -> Template {
    let memory = memfd(MEMORY);
    let mut vmm = vmm();
    let created = vmm.create_as(
        machine(profile),
        &program.kernel(),
        None,
        None,
        Some(&memory),
    );
    assert_eq!(created.failure, None);
    vmm.boot();
    vmm.into_template(memory)
}

// Before it parks: a value in a register, one in memory. After: both grow by one and
// are printed, with the kind of the machine and 16 random bytes as 32 letters.
std::arch::global_asm!(
    r#"
    .pushsection .rodata.guest, "a"
counts_begin:
    mov r15d, 0x30
    mov dword ptr [0x1800000], 0x40
    mov dx, 0x2f00
    mov eax, 2
    out dx, eax
    # Its instruction ends in each clone.
    inc r15d
    inc dword ptr [0x1800000]
    mov eax, 1
    out dx, eax
    mov dx, 0x3f8
    mov eax, r15d
    out dx, al
    mov eax, [0x1800000]
    out dx, al
    mov dx, 0x2f04
    in eax, dx
    add eax, 0x30
    mov dx, 0x3f8
    out dx, al
    mov dx, 0x2f08
    mov edi, 0x1900000
    mov ecx, 4
    rep insd
    mov esi, 0x1900000
    mov ecx, 16
    mov dx, 0x3f8
1:  mov bl, [rsi]
    mov al, bl
    and al, 15
    add al, 0x61
    out dx, al
    mov al, bl
    shr al, 4
    add al, 0x61
    out dx, al
    inc esi
    dec ecx
    jnz 1b
counts_end:
    .popsection
    "#
);

unsafe extern "C" {
    static counts_begin: u8;
    static counts_end: u8;
}

fn counts() -> Program {
    let (begin, end) = (&raw const counts_begin, &raw const counts_end);
    // SAFETY: both labels are in one section, with read-only bytes between them.
    let code = unsafe {
        let len = usize::try_from(end.offset_from(begin)).unwrap();
        std::slice::from_raw_parts(begin, len)
    };
    Program::new().code(code).reset()
}

#[test]
fn clones_go_on_where_their_template_parked_and_are_alone() {
    for profile in [MemoryProfile::Dense, MemoryProfile::Direct] {
        let template = template_of(&counts(), profile);
        let mut random = Vec::new();
        // Two at once, and one after them.
        for together in [2, 1] {
            let mut clones: Vec<(Vmm, File)> = (0..together)
                .map(|_| {
                    let (mut clone, console) = (vmm(), tempfile::tempfile().unwrap());
                    let restored = clone.restore(&template, Some(&console));
                    assert_eq!(restored.failure, None);
                    let names: Vec<&str> = restored.steps.iter().map(|s| s.name.as_str()).collect();
                    assert_eq!(names, ["check", "vm", "memory", "vcpus"]);
                    assert_eq!(clone.stats().exits, 0, "it runs before it is told to");
                    (clone, console)
                })
                .collect();
            for (clone, _) in &mut clones {
                clone.boot();
            }
            for (mut clone, console) in clones {
                assert!(clone.alive() > 0);
                assert_eq!(clone.exited().cause(), Cause::GuestReset);
                assert_eq!(clone.wait().code(), Some(0));
                let text = text(&console);
                // 0x31, 0x41, IS_CLONE.
                let (seen, letters) = text.split_at(3);
                assert_eq!(seen, "1A2");
                assert_eq!(letters.len(), 32);
                random.push(letters.to_owned());
            }
        }
        random.sort();
        random.dedup();
        assert_eq!(random.len(), 3, "{random:?}");
    }
}

#[test]
fn the_memory_of_a_template_holds_what_its_guest_wrote_and_no_zeros() {
    // Writes 0x40 at 24 MiB, and zero 32 pages further on.
    let zero = [0xC7, 0x04, 0x25, 0x00, 0x00, 0x82, 0x01, 0, 0, 0, 0];
    let program = Program::new().code(&zero);
    let template = {
        let memory = memfd(MEMORY);
        let mut vmm = vmm();
        let code = [
            // mov dword ptr [0x1800000], 0x40
            &[0xC7, 0x04, 0x25, 0x00, 0x00, 0x80, 0x01, 0x40, 0, 0, 0][..],
            &[0x66, 0xBA, 0x00, 0x2F, 0xB8, 2, 0, 0, 0, 0xEF],
        ]
        .concat();
        let kernel = program.code(&code).halt().kernel();
        let created = vmm.create_as(
            machine(MemoryProfile::Dense),
            &kernel,
            None,
            None,
            Some(&memory),
        );
        assert_eq!(created.failure, None);
        vmm.boot();
        vmm.into_template(memory)
    };
    let mut bytes = [0; 4];
    template
        .memory
        .read_exact_at(&mut bytes, 0x180_0000)
        .unwrap();
    assert_eq!(bytes, [0x40, 0, 0, 0]);
    let data = |at: i64| {
        nix::unistd::lseek(&template.memory, at, nix::unistd::Whence::SeekData).unwrap_or(i64::MAX)
    };
    assert_eq!(data(0x180_0000), 0x180_0000);
    assert!(data(0x182_0000) > 0x182_1000, "a page of zeros is resident");
}

#[test]
fn only_templates_park_and_only_the_parked_are_written() {
    // An ordinary machine: to park is nothing.
    let console = tempfile::tempfile().unwrap();
    let mut ordinary = vmm();
    let kernel = parks(&[]).print("on").reset().kernel();
    let created = ordinary.create(1, MEMORY, "", &kernel, None, Some(&console));
    assert_eq!(created.failure, None);
    ordinary.boot();
    assert_eq!(ordinary.exited().cause(), Cause::GuestReset);
    assert_eq!(text(&console), "on");

    // A template that does not park (yet).
    let memory = memfd(MEMORY);
    let mut vmm = vmm();
    let kernel = Program::new().print("x").spin().kernel();
    let created = vmm.create_as(
        machine(MemoryProfile::Direct),
        &kernel,
        None,
        None,
        Some(&memory),
    );
    assert_eq!(created.failure, None);
    let refused = vmm.snapshot(&memfd(0)).failure.unwrap();
    assert_eq!(refused.class(), Class::Conflict);
    let (socket, _backend) = std::os::unix::net::UnixStream::pair().unwrap();
    let refused = vmm
        .attach_connected(DeviceType::Block, &socket)
        .failure
        .unwrap();
    assert_eq!(refused.class(), Class::Conflict);
    vmm.boot();
    let refused = vmm.snapshot(&memfd(0)).failure.unwrap();
    assert_eq!(refused.class(), Class::Conflict);
    vmm.stop();
}

#[test]
fn what_has_parked_never_runs_again() {
    let memory = memfd(MEMORY);
    let console = tempfile::tempfile().unwrap();
    let mut vmm = vmm();
    let kernel = parks(&[]).print("on").reset().kernel();
    let machine = machine(MemoryProfile::Dense);
    let created = vmm.create_as(machine, &kernel, None, Some(&console), Some(&memory));
    assert_eq!(created.failure, None);
    vmm.boot();
    vmm.parked();
    let exits = vmm.stats().exits;
    let again = vmm.request(Operation::Boot(Boot {}), &[]).failure.unwrap();
    assert_eq!(again.class(), Class::Conflict);
    // Written as often as one likes.
    for _ in 0..2 {
        assert_eq!(vmm.snapshot(&memfd(0)).failure, None);
    }
    assert_eq!(vmm.stats().exits, exits);
    assert_eq!(text(&console), "");
    vmm.stop();
}

/// The bytes of a state, in a memfd of their own.
fn state_of(bytes: &[u8]) -> File {
    let file = memfd(0);
    file.write_all_at(bytes, 0).unwrap();
    file
}

#[test]
fn damaged_templates_are_refused_and_leave_nothing_behind() {
    let good = template_of(&counts(), MemoryProfile::Dense);
    let mut state = Vec::new();
    (&good.state).seek(SeekFrom::Start(0)).unwrap();
    (&good.state).read_to_end(&mut state).unwrap();
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 4;
    let mut version = state.clone();
    version[8] = 9;
    let cases = [
        (state_of(&flipped), "its checksum is wrong: it is damaged"),
        (
            state_of(&version),
            "it has version 9, this VMM reads version 1",
        ),
        (state_of(&state[..state.len() - 100]), "it is cut off"),
        (
            state_of(&[&state[..], b"!"].concat()),
            "1 bytes follow its end",
        ),
        (state_of(b""), "too few for any state"),
        (File::open("/dev/zero").unwrap(), "no regular file"),
    ];
    for (state, reason) in cases {
        let mut vmm = vmm();
        let spoilt = Template {
            state,
            memory: good.memory.try_clone().unwrap(),
        };
        let began = Instant::now();
        let failure = vmm.restore(&spoilt, None).failure.unwrap();
        assert_eq!(
            (failure.class(), failure.field.as_str()),
            (Class::Invalid, "state")
        );
        assert!(failure.message.contains(reason), "{}", failure.message);
        assert!(began.elapsed() < Duration::from_secs(5));
        // It still does what is right, and it ends.
        assert_eq!(vmm.restore(&good, None).failure, None);
        let again = vmm.restore(&good, None).failure.unwrap();
        assert_eq!(again.class(), Class::Conflict);
        vmm.stop();
        assert_eq!(vmm.wait().code(), Some(0));
    }

    // The memory: another size, or such as may still change.
    for (bytes, reason) in [
        (MEMORY / 2, "it has 33554432 bytes"),
        (MEMORY, "it is not sealed"),
    ] {
        let spoilt = Template {
            state: good.state.try_clone().unwrap(),
            memory: memfd(bytes),
        };
        let mut vmm = vmm();
        let failure = vmm.restore(&spoilt, None).failure.unwrap();
        assert_eq!(failure.field, "memory");
        assert!(failure.message.contains(reason), "{}", failure.message);
        vmm.channel.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(vmm.wait().code(), Some(0));
    }
}

#[test]
fn a_clone_that_was_never_started_is_stopped() {
    let template = template_of(&counts(), MemoryProfile::Dense);
    let mut clone = vmm();
    assert_eq!(clone.restore(&template, None).failure, None);
    clone.stop();
    assert_eq!(clone.wait().code(), Some(0));
}
