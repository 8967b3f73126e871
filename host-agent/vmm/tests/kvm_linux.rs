//! The guest kernel on a real KVM, as pods run it, with backends of this project:
//! the same in both memory profiles.
//!
//! Nothing here is skipped: without a KVM that runs kernels these tests fail.
//! `make test` runs them in the testbed then.

#![allow(clippy::unwrap_used, reason = "tests")]

mod guest_program;
mod played_agent;
mod recorder;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use guest_program::Program;
use longship_eni::{BridgeEnis, EniProvider, EniSpec};
use longship_framed::vmm::{Create, DeviceType, MemoryProfile, exited::Cause};
use longship_volume::{BlockDevice, Disk};
use longship_vsock::VsockDevice;
use played_agent::Vmm;
use recorder::Recorder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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

const PROFILES: [MemoryProfile; 2] = [MemoryProfile::Direct, MemoryProfile::Dense];

/// The DMA window where the profile is DENSE.
const WINDOW: u64 = 4 << 20;

/// In the memory of every guest, and never in a buffer of a device.
const SECRET: &str = "known to the guest alone";

/// Linux with an initramfs and its devices, running.
struct Linux {
    vmm: Vmm,
    console: File,
    /// Of each device that is only to reach the window.
    recorders: Vec<Recorder>,
    memory: u64,
}

impl Linux {
    fn boot(
        initramfs: &File,
        vcpus: u32,
        memory: u64,
        profile: MemoryProfile,
        devices: &[(DeviceType, &Path)],
    ) -> Self {
        let console = tempfile::tempfile().unwrap();
        let mut vmm = vmm();
        let dense = profile == MemoryProfile::Dense;
        let create = Create {
            vcpus,
            memory_bytes: memory,
            command_line: COMMAND_LINE.to_owned(),
            profile: profile.into(),
            dma_window_bytes: if dense { WINDOW } else { 0 },
            ..Create::default()
        };
        let created = vmm.create_as(create, &kernel(), Some(initramfs), Some(&console), None);
        assert_eq!(created.failure, None);
        let mut recorders = Vec::new();
        for (kind, socket) in devices {
            if dense {
                let recorder = Recorder::before(socket);
                assert_eq!(vmm.attach(*kind, recorder.socket()).failure, None);
                recorders.push(recorder);
            } else {
                assert_eq!(vmm.attach(*kind, socket).failure, None);
            }
        }
        vmm.boot();
        Self {
            vmm,
            console,
            recorders,
            memory,
        }
    }

    /// Waits until it has printed `what`.
    fn prints(&mut self, what: &str) {
        let began = Instant::now();
        let mut text = String::new();
        while !text.contains(what) {
            assert!(began.elapsed() < LIMIT, "no {what:?} in {text}");
            std::thread::sleep(Duration::from_millis(100));
            text.clear();
            self.console.seek(SeekFrom::Start(0)).unwrap();
            self.console.read_to_string(&mut text).unwrap();
        }
    }

    /// Bytes of memory that the VMM has resident, but for program files.
    fn resident(&self) -> u64 {
        let status = format!("/proc/{}/status", self.vmm.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let fields = ["RssAnon:", "RssShmem:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.unwrap().trim().trim_end_matches(" kB");
            kib.parse::<u64>().unwrap() << 10
        });
        fields.iter().sum()
    }

    /// Waits until it restarts; returns what it printed.
    fn printed(mut self) -> String {
        let exited = self.vmm.exited();
        let mut text = String::new();
        self.console.seek(SeekFrom::Start(0)).unwrap();
        self.console.read_to_string(&mut text).unwrap();
        assert_eq!(exited.cause(), Cause::GuestReset, "{text}");
        assert_eq!(self.vmm.wait().code(), Some(0));
        for recorder in self.recorders {
            only_the_window_was_reached(recorder, self.memory);
        }
        text.replace('\r', "")
    }
}

/// Nothing that the backend was told or given leads out of the DMA window.
fn only_the_window_was_reached(recorder: Recorder, memory: u64) {
    let heard = recorder.heard();
    let end = memory.min(3 << 30);
    let window = end - WINDOW..end;
    let [region] = &heard.regions[..] else {
        panic!("{} regions", heard.regions.len());
    };
    assert_eq!(region.guest..region.guest + region.bytes, window);
    assert!(!heard.features.is_empty());
    assert!(
        heard
            .features
            .iter()
            .all(|features| features & 1 << 33 == 0)
    );
    // The descriptor is of the window's bytes, for ever, and the others are no memory.
    assert_eq!(region.file.metadata().unwrap().len(), WINDOW);
    assert!(region.file.set_len(2 * WINDOW).is_err());
    for other in &heard.others {
        assert_eq!(other, Path::new("anon_inode:[eventfd]"));
    }
    let buffers = heard.buffers();
    assert!(!buffers.is_empty());
    for buffer in buffers {
        assert!(
            window.start <= buffer.start && buffer.end <= window.end,
            "{buffer:x?}"
        );
    }
    let mut content = Vec::new();
    (&region.file).seek(SeekFrom::Start(0)).unwrap();
    (&region.file).read_to_end(&mut content).unwrap();
    let mut words = content.windows(SECRET.len());
    assert!(!words.any(|bytes| bytes == SECRET.as_bytes()));
}

/// How long a guest may take for one thing.
const LIMIT: Duration = Duration::from_secs(90);

const MEMORY: u64 = 128 << 20;

#[test]
fn linux_reaches_init_and_restarts() {
    for profile in PROFILES {
        let init = Program::new().say("init is here\n").reboot();
        let text = Linux::boot(&init.initramfs(), 1, MEMORY, profile, &[]).printed();
        assert!(text.contains("init is here"), "{text}");
        assert!(text.contains("MPTABLE: OEM ID: LONGSHIP"), "{text}");
    }
}

#[test]
fn linux_finds_all_processors_and_memory_on_both_sides_of_the_hole() {
    for (profile, kept) in [(MemoryProfile::Direct, 0), (MemoryProfile::Dense, WINDOW)] {
        processors_and_memory(profile, kept);
    }
}

/// As above; `kept` bytes are no memory for the kernel's own use.
fn processors_and_memory(profile: MemoryProfile, kept: u64) {
    let memory = 3328 << 20;
    let init = Program::new().say("init is here\n").reboot();
    let text = Linux::boot(&init.initramfs(), 4, memory, profile, &[]).printed();
    assert!(text.contains("Brought up 1 node, 4 CPUs"), "{text}");
    assert!(text.contains("init is here"), "{text}");
    // "Memory: 123K/456K available": the second is all that the kernel was given.
    let found = text.split("Memory: ").nth(1).and_then(|rest| {
        let kib = rest.split('/').nth(1)?.split('K').next()?;
        kib.parse::<u64>().ok()
    });
    let missing = memory - (found.expect(&text) << 10);
    println!("{profile:?}: {missing} of {memory} bytes missing");
    assert!(missing < kept + (1 << 20), "{missing} bytes missing");
}

#[test]
fn linux_reads_its_disks_with_message_interrupts() {
    PROFILES.into_iter().for_each(reads_disks);
}

fn reads_disks(profile: MemoryProfile) {
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
    init.text(SECRET);
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
    let devices = disks
        .each_ref()
        .map(|disk| (DeviceType::Block, disk.socket()));
    let text = Linux::boot(&init.reboot().initramfs(), 2, MEMORY, profile, &devices).printed();
    assert!(text.contains("first disk\n"), "{text}");
    assert!(text.contains("second disk"), "{text}");
}

/// Not a test of speed, which the machine's load decides: all bytes arrive, and how
/// fast they did is printed.
#[test]
fn disks_are_read_in_large_pieces() {
    const BYTES: u32 = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let content: Vec<u8> = (0..BYTES / 4).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&path, content).unwrap();
    let sum = Command::new("md5sum").arg(&path).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    for profile in PROFILES {
        let disk = Disk {
            file: File::open(&path).unwrap(),
            read_only: true,
            serial: "vmm-test".into(),
        };
        let disk = BlockDevice::serve(&dir.path().join("socket"), disk).unwrap();
        let script = guest_program::script(&format!(
            "# {SECRET}\n\
             /busybox mkdir -p /dev /proc\n\
             /busybox mount -t devtmpfs dev /dev\n\
             /busybox mount -t proc proc /proc\n\
             read before rest </proc/uptime\n\
             /busybox dd if=/dev/vda of=/dev/null bs=1M\n\
             read after rest </proc/uptime\n\
             echo \"seconds=$before,$after\"\n\
             echo 3 >/proc/sys/vm/drop_caches\n\
             echo \"sum=$(/busybox md5sum /dev/vda)\"",
        ));
        let devices = [(DeviceType::Block, disk.socket())];
        let text = Linux::boot(&script, 1, MEMORY, profile, &devices).printed();
        let seconds = text
            .lines()
            .find_map(|line| line.strip_prefix("seconds="))
            .and_then(|line| line.split_once(','))
            .map(|times| [times.0, times.1].map(|time| time.parse::<f64>().unwrap()))
            .map(|[before, after]| after - before)
            .expect(&text);
        let rate = f64::from(BYTES >> 20) / seconds;
        println!("{profile:?}: read at {rate:.0} MiB/s");
        assert!(text.contains(&format!("sum={sum}")), "{text}");
        drop(disk);
        let _ = std::fs::remove_file(dir.path().join("socket"));
    }
}

#[test]
fn memory_that_linux_frees_goes_back_to_the_host() {
    const USED: u64 = 48 << 20;
    let script = guest_program::script(
        "/busybox mkdir -p /dev\n\
         /busybox mount -t devtmpfs dev /dev\n\
         echo 'before use'\n\
         /busybox sleep 3\n\
         /busybox dd if=/dev/zero of=/big bs=1M count=48\n\
         echo 'in use'\n\
         /busybox sleep 6\n\
         /busybox rm /big\n\
         echo 'given up'\n\
         /busybox sleep 1000",
    );
    for profile in PROFILES {
        let mut linux = Linux::boot(&script, 1, MEMORY, profile, &[]);
        linux.prints("before use");
        let before = linux.resident();
        linux.prints("in use");
        let used = linux.resident();
        assert!(used > before + USED / 2, "{before}, then {used}");
        linux.prints("given up");
        let began = Instant::now();
        while linux.resident() > before + USED / 8 {
            let now = linux.resident();
            assert!(began.elapsed() < LIMIT, "{before}, {used}, still {now}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let (after, took) = (linux.resident(), began.elapsed());
        let reclaimed = linux.vmm.stats().reclaimed_bytes;
        println!(
            "{profile:?}: {} MiB at first, {} in use, {} after {took:?}; {} told",
            before >> 20,
            used >> 20,
            after >> 20,
            reclaimed >> 20
        );
        assert!(reclaimed > USED / 2, "{reclaimed}");
    }
}

#[test]
fn a_guest_that_panics_ends() {
    // exit(1) of init.
    let init = Program::new().call(60, &[1]);
    let direct = MemoryProfile::Direct;
    let text = Linux::boot(&init.initramfs(), 1, MEMORY, direct, &[]).printed();
    assert!(text.contains("Attempted to kill init"), "{text}");
}

#[tokio::test]
async fn linux_talks_over_its_vsock() {
    for profile in PROFILES {
        talks_over_vsock(profile).await;
    }
}

async fn talks_over_vsock(profile: MemoryProfile) {
    const PORT: u32 = 4321;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let (_device, mut incoming) = VsockDevice::serve(&socket, 7, &[PORT]).unwrap();
    let mut init = Program::new();
    init.text(SECRET);
    // struct sockaddr_vm: AF_VSOCK, port, CID 2.
    let address = init.bytes(
        &[
            &[40, 0, 0, 0],
            &PORT.to_le_bytes()[..],
            &[2, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
    );
    let question = init.text("who is there?");
    let answer = init.text(&"?".repeat(64));
    let init = init
        .call(41, &[40, 1, 0])
        .call(42, &[3, address, 16])
        .call(1, &[3, question, 13])
        .call(0, &[3, answer, 64])
        .call(1, &[1, answer, 10])
        .reboot();
    let linux = Linux::boot(
        &init.initramfs(),
        1,
        MEMORY,
        profile,
        &[(DeviceType::Vsock, &socket)],
    );
    let mut stream = tokio::time::timeout(LIMIT, incoming.recv())
        .await
        .unwrap()
        .unwrap()
        .stream;
    let mut heard = [0; 13];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"who is there?");
    stream.write_all(b"the host.\n").await.unwrap();
    let printed = tokio::task::spawn_blocking(|| linux.printed())
        .await
        .unwrap();
    assert!(printed.contains("the host.\n"), "{printed}");
}

#[tokio::test]
async fn linux_serves_tcp_over_its_eni() {
    for profile in PROFILES {
        serves_tcp(profile).await;
    }
}

async fn serves_tcp(profile: MemoryProfile) {
    let dir = tempfile::tempdir().unwrap();
    let address = Ipv4Addr::new(10, 1, 2, 3);
    let spec = EniSpec {
        id: "eni".to_owned(),
        vpc: "vpc".to_owned(),
        mac: "02:00:0a:01:02:03".parse().unwrap(),
        address,
        prefix_length: 24,
        gateway: Ipv4Addr::new(10, 1, 2, 1),
        mtu: 1500,
        socket: dir.path().join("socket"),
    };
    let enis = BridgeEnis::new();
    enis.prepare(spec.clone()).await.unwrap();
    // The second connection says that the answer to the first has arrived.
    let script = guest_program::script(&format!(
        "# {SECRET}\n\
         /busybox ip addr add 10.1.2.3/24 dev eth0; /busybox ip link set eth0 up; \
         /busybox nc -l -p 80 -e /busybox tr a-z A-Z; /busybox nc -l -p 81",
    ));
    let devices = [(DeviceType::Net, spec.socket.as_path())];
    let linux = Linux::boot(&script, 2, MEMORY, profile, &devices);
    let mut stream = dial(&enis, SocketAddrV4::new(address, 80)).await;
    // Many segments, in both directions.
    let sent = "longship ".repeat(50_000);
    let (mut receive, mut send) = stream.split();
    let mut received = String::new();
    let both = async {
        tokio::try_join!(
            async {
                send.write_all(sent.as_bytes()).await?;
                send.shutdown().await
            },
            receive.read_to_string(&mut received),
        )
    };
    tokio::time::timeout(LIMIT, both)
        .await
        .expect("an answer")
        .unwrap();
    assert_eq!(received, sent.to_uppercase());
    drop(dial(&enis, SocketAddrV4::new(address, 81)).await);
    tokio::task::spawn_blocking(|| linux.printed())
        .await
        .unwrap();
    enis.release("eni").await.unwrap();
}

/// Connects to a guest as soon as it listens.
async fn dial(enis: &BridgeEnis, to: SocketAddrV4) -> TcpStream {
    let dial = async {
        loop {
            // Unreachable or refused until then. None is given up early: the guest may
            // have accepted it, and it accepts one only.
            let once = tokio::time::timeout(Duration::from_secs(30), enis.dial("vpc", to));
            if let Ok(Ok(stream)) = once.await {
                break stream;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let dialed = tokio::time::timeout(LIMIT, dial).await;
    dialed.expect("a listening guest")
}
