//! What a device costs the process that serves it, measured from inside one
//! that serves many of them to frontends in another.

#![allow(clippy::unwrap_used, reason = "a test's own steps")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use longship_vhost_user::driver::{Driver, Piece};
use longship_volume::{BlockDevice, Disk};
use longship_vsock::VsockDevice;

const DEVICES: u64 = 64;

/// Private memory in bytes that a connected device may cost.
const LIMIT: u64 = 64 << 10;

#[derive(Clone, Copy, Debug)]
struct Footprint {
    threads: u64,
    /// Bytes that are this process's alone.
    private: u64,
    page_tables: u64,
}

impl Footprint {
    fn now() -> Self {
        let value = |file: &str, key: &str| -> u64 {
            let text = fs::read_to_string(file).unwrap();
            let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
            let number = line.split_whitespace().next().unwrap();
            number.parse().unwrap()
        };
        let smaps = "/proc/self/smaps_rollup";
        let dirty = value(smaps, "Private_Dirty:") + value(smaps, "Private_Clean:");
        Self {
            threads: value("/proc/self/status", "Threads:"),
            private: dirty << 10,
            page_tables: value("/proc/self/status", "VmPTE:") << 10,
        }
    }

    fn print(self) {
        println!("at {} {} {}", self.threads, self.private, self.page_tables);
    }
}

fn block(dir: &Path, i: u64) -> BlockDevice {
    let disk = Disk {
        file: File::open(dir.join("image")).unwrap(),
        read_only: true,
        serial: "image".into(),
    };
    BlockDevice::serve(&dir.join(i.to_string()), disk).unwrap()
}

/// The process that serves: says what it costs before, with idle devices, and
/// when it is told that they are connected.
fn serve(kind: &str, dir: &Path) {
    // The first device pays for what all share.
    drop(block(dir, DEVICES));
    Footprint::now().print();
    let socket = |i: u64| dir.join(i.to_string());
    let vsocks: Vec<_> = (0..if kind == "vsock" { DEVICES } else { 0 })
        .map(|i| VsockDevice::serve(&socket(i), 3 + i, &[1024, 1025]).unwrap())
        .collect();
    let blocks: Vec<_> = (0..if kind == "block" { DEVICES } else { 0 })
        .map(|i| block(dir, i))
        .collect();
    Footprint::now().print();
    std::io::stdin().read_line(&mut String::new()).unwrap();
    Footprint::now().print();
    drop((vsocks, blocks));
}

fn measure(kind: &str) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), vec![1; 1 << 20]).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["a_device_costs", "--nocapture", "--test-threads=1"])
        .env("LONGSHIP_SERVE", format!("{kind} {}", dir.path().display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || loop {
        let line = lines.next().expect("the serving process ended").unwrap();
        // The test harness writes before it on the same line.
        if let Some((_, numbers)) = line.split_once("at ")
            && let [threads, private, page_tables] = numbers
                .split(' ')
                .filter_map(|n| n.parse().ok())
                .collect::<Vec<u64>>()[..]
        {
            return Footprint {
                threads,
                private,
                page_tables,
            };
        }
    };
    let (before, idle) = (next(), next());
    let rings = if kind == "block" { 1 } else { 3 };
    let mut drivers = Vec::new();
    for i in 0..DEVICES {
        let socket = dir.path().join(i.to_string());
        let mut driver = Driver::connect(&socket, rings, 0);
        // A read each: the first sector, or a packet that is refused.
        let header = vec![0; if rings == 1 { 16 } else { 44 }];
        let pieces = [Piece::Read(&header), Piece::Write(512), Piece::Write(1)];
        let pieces = &pieces[..if rings == 1 { 3 } else { 1 }];
        let ring = rings / 2;
        driver.submit(ring, pieces, false);
        driver.kick(ring);
        driver.wait_used(ring).expect("no answer");
        drivers.push(driver);
    }
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let connected = next();
    assert!(child.wait().unwrap().success());

    let each = |after: u64, before: u64| after.saturating_sub(before) / DEVICES;
    let threads = each(connected.threads, before.threads);
    let private = each(connected.private, before.private);
    println!(
        "{kind}: {threads} thread; idle {} bytes, connected {private} bytes private, \
         {} bytes of page tables",
        each(idle.private, before.private),
        each(connected.page_tables, before.page_tables),
    );
    assert_eq!(threads, 1);
    assert!(private < LIMIT, "{private} bytes a {kind} device");
}

#[test]
fn a_device_costs_one_thread_and_little_memory() {
    if let Ok(order) = std::env::var("LONGSHIP_SERVE") {
        let (kind, dir) = order.split_once(' ').unwrap();
        return serve(kind, Path::new(dir));
    }
    measure("block");
    measure("vsock");
}
