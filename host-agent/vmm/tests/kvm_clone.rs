//! Clones of the guest kernel on a real KVM: with all their processors, going on in
//! time, each with its own randomness, and with devices that they get as clones.
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
use std::time::{Duration, Instant};

use guest_program::Program;
use longship_framed::vmm::{Create, DeviceType, MemoryProfile, exited::Cause};
use longship_volume::{BlockDevice, Disk};
use played_agent::{Template, Vmm, memfd};

const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 pci=conf1";
const MEMORY: u64 = 128 << 20;
const WINDOW: u64 = 4 << 20;

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

// A program for Linux. It parks; in the clone it writes what the clock said before and
// says now, takes 32 random bytes of the host for the kernel's generator, says that it
// lives, and ends with the machine's kind as its code.
std::arch::global_asm!(
    r#"
    .pushsection .rodata.park, "a"
park_begin:
    # ioperm(0x2f00, 0x14, 1)
    mov eax, 173
    mov edi, 0x2f00
    mov esi, 0x14
    mov edx, 1
    syscall
    # clock_gettime(CLOCK_MONOTONIC), before it parks and after
    mov eax, 228
    mov edi, 1
    mov esi, 0x1010900
    syscall
    mov edx, 0x2f00
    mov eax, 2
    out dx, eax
    mov eax, 228
    mov edi, 1
    mov esi, 0x1010910
    syscall
    # write(1, both)
    mov eax, 1
    mov edi, 1
    mov esi, 0x1010900
    mov edx, 32
    syscall
    # struct rand_pool_info: 256 bits in 32 bytes.
    mov dword ptr [0x1010800], 256
    mov dword ptr [0x1010804], 32
    mov edi, 0x1010808
    mov ecx, 8
    mov edx, 0x2f08
    rep insd
    # open("/dev/urandom", O_WRONLY)
    mov eax, 2
    mov edi, 0x1010000
    mov esi, 1
    syscall
    mov ebx, eax
    # ioctl(RNDADDENTROPY), ioctl(RNDRESEEDCRNG)
    mov edi, ebx
    mov eax, 16
    mov esi, 0x40085203
    mov edx, 0x1010800
    syscall
    mov edi, ebx
    mov eax, 16
    mov esi, 0x5207
    syscall
    mov edx, 0x2f00
    mov eax, 1
    out dx, eax
    mov edx, 0x2f04
    in eax, dx
    mov edi, eax
    mov eax, 60
    syscall
park_end:
    .popsection
    "#
);

unsafe extern "C" {
    static park_begin: u8;
    static park_end: u8;
}

/// An initramfs that parks, and then runs `script`.
fn parks(script: &str) -> File {
    let (begin, end) = (&raw const park_begin, &raw const park_end);
    // SAFETY: both labels are in one section, with read-only bytes between them.
    let code = unsafe {
        let len = usize::try_from(end.offset_from(begin)).unwrap();
        std::slice::from_raw_parts(begin, len)
    };
    let mut park = Program::new().code(code);
    park.text("/dev/urandom");
    let busybox = std::fs::read("/bin/busybox").expect("the package busybox-static");
    let script = format!(
        "#!/busybox sh\n\
         /busybox mkdir -p /proc /sys /dev\n\
         /busybox mount -t proc proc /proc\n\
         /busybox mount -t sysfs sysfs /sys\n\
         /busybox mount -t devtmpfs dev /dev\n\
         echo 'it parks'\n\
         /park >/clocks\n\
         echo \"kind=$?\"\n\
         echo \"clocks=$(/busybox hexdump -ve '8/4 \"%u \"' /clocks)\"\n\
         {script}\n\
         /busybox reboot -f\n"
    );
    guest_program::initramfs(&[
        ("init", script.as_bytes()),
        ("busybox", &busybox),
        ("park", &park.elf()),
    ])
}

fn template(vcpus: u32, profile: MemoryProfile, initramfs: &File) -> Template {
    let memory = memfd(MEMORY);
    let console = tempfile::tempfile().unwrap();
    let create = Create {
        vcpus,
        memory_bytes: MEMORY,
        command_line: COMMAND_LINE.to_owned(),
        profile: profile.into(),
        dma_window_bytes: match profile {
            MemoryProfile::Dense => WINDOW,
            _ => 0,
        },
        ..Create::default()
    };
    let mut vmm = vmm();
    let created = vmm.create_as(
        create,
        &kernel(),
        Some(initramfs),
        Some(&console),
        Some(&memory),
    );
    assert_eq!(created.failure, None);
    vmm.boot();
    let template = vmm.into_template(memory);
    let text = text(&console);
    assert!(text.contains("it parks"), "{text}");
    assert!(!text.contains("kind="), "{text}");
    template
}

fn text(mut console: &File) -> String {
    let mut text = String::new();
    console.seek(SeekFrom::Start(0)).unwrap();
    console.read_to_string(&mut text).unwrap();
    text.replace('\r', "")
}

struct Clone {
    vmm: Vmm,
    console: File,
}

impl Clone {
    /// A clone with its devices, running.
    fn of(template: &Template, devices: &[(DeviceType, &Path)]) -> Self {
        let console = tempfile::tempfile().unwrap();
        let mut vmm = vmm();
        assert_eq!(vmm.restore(template, Some(&console)).failure, None);
        for (kind, socket) in devices {
            assert_eq!(vmm.attach(*kind, socket).failure, None);
        }
        vmm.boot();
        Self { vmm, console }
    }

    /// Waits until it restarts; returns what it printed since it was cloned.
    fn printed(mut self) -> String {
        self.vmm.alive();
        let exited = self.vmm.exited();
        let text = text(&self.console);
        assert_eq!(exited.cause(), Cause::GuestReset, "{text}");
        assert_eq!(self.vmm.wait().code(), Some(0));
        text
    }
}

/// What stands after `name=` in a line of its own.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// From the first clock to the second, each four words: seconds and nanoseconds.
fn leap(clocks: &str) -> Duration {
    let words: Vec<u64> = clocks
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let time = |at: usize| Duration::from_secs(words[at]) + Duration::from_nanos(words[at + 2]);
    time(4)
        .checked_sub(time(0))
        .unwrap_or_else(|| panic!("back in time: {clocks}"))
}

/// How long a template waits for its clones.
const PAUSE: Duration = Duration::from_secs(5);

#[test]
fn clones_have_all_their_processors_their_time_and_their_own_randomness() {
    // Each processor sleeps by its own timer.
    let script = "\
        read before rest </proc/uptime\n\
        for cpu in $(/busybox seq 0 $(($(/busybox nproc) - 1))); do\n\
            /busybox taskset -c $cpu /busybox sleep 0.1 && echo \"slept on $cpu\"\n\
        done\n\
        read after rest </proc/uptime\n\
        echo \"uptime=$before,$after\"\n\
        echo \"random=$(/busybox head -c 16 /dev/urandom | /busybox hexdump -ve '1/1 \"%02x\"')\"\n\
        echo \"clock=$(/busybox cat /sys/devices/system/clocksource/clocksource0/current_clocksource)\"";
    for (vcpus, profile) in [
        (1, MemoryProfile::Dense),
        (2, MemoryProfile::Direct),
        (4, MemoryProfile::Dense),
    ] {
        let template = template(vcpus, profile, &parks(script));
        // What passes now is no time for the clones.
        std::thread::sleep(PAUSE);
        let began = Instant::now();
        let clones = [(); 2].map(|()| Clone::of(&template, &[]));
        let ends = clones.map(|mut clone| {
            clone.vmm.alive();
            let alive = began.elapsed();
            (clone.printed(), alive)
        });
        let texts = ends.each_ref().map(|(text, _)| text);
        println!("{vcpus} vCPUs:\n{}", texts[0]);
        for (text, alive) in &ends {
            assert_eq!(value(text, "kind"), "2", "no clone: {text}");
            for cpu in 0..vcpus {
                assert!(text.contains(&format!("slept on {cpu}\n")), "{text}");
            }
            let leap = leap(value(text, "clocks"));
            // The clone's own time, and that between parking and writing the state.
            let most = *alive + PAUSE / 2;
            assert!(leap < most, "{leap:?} in {alive:?}: {text}");
            let (before, after) = value(text, "uptime").split_once(',').unwrap();
            let seconds = |text: &str| text.parse::<f64>().unwrap();
            let slept = seconds(after) - seconds(before);
            assert!(
                slept >= 0.1 * f64::from(vcpus),
                "{slept} s for {vcpus} sleeps: {text}"
            );
            assert!(!text.contains("stall"), "{text}");
        }
        assert_eq!(value(texts[0], "random").len(), 32);
        assert_ne!(value(texts[0], "random"), value(texts[1], "random"));
    }
}

#[test]
fn a_clone_finds_its_disk_by_a_rescan_of_the_bus() {
    let script = "\
        echo 1 >/sys/bus/pci/rescan\n\
        echo \"disk=$(/busybox head -n 1 /dev/vda)\"\n\
        echo \"sum=$(/busybox md5sum </dev/vda)\"";
    let initramfs = parks(script);
    for profile in [MemoryProfile::Dense, MemoryProfile::Direct] {
        let dir = tempfile::tempdir().unwrap();
        let template = template(2, profile, &initramfs);
        let clones = ["first", "second"].map(|name| {
            let path = dir.path().join(name);
            let mut bytes = format!("{name}\n").repeat(1000).into_bytes();
            bytes.resize(1 << 20, 0);
            std::fs::write(&path, &bytes).unwrap();
            let disk = Disk {
                file: File::open(&path).unwrap(),
                read_only: true,
                serial: "vmm-test".into(),
            };
            let disk = BlockDevice::serve(&path.with_extension("socket"), disk).unwrap();
            let clone = Clone::of(&template, &[(DeviceType::Block, disk.socket())]);
            (clone, name, path, disk)
        });
        for (clone, name, path, _disk) in clones {
            let text = clone.printed();
            assert_eq!(value(&text, "disk"), name, "{profile:?}: {text}");
            let sum = Command::new("md5sum").arg(&path).output().unwrap().stdout;
            let sum = String::from_utf8(sum).unwrap();
            let sum = sum.split_whitespace().next().unwrap();
            assert!(value(&text, "sum").starts_with(sum), "{profile:?}: {text}");
        }
    }
}
