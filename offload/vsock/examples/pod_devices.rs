//! What the devices of pods cost the card that serves them: an ENI, a control channel,
//! an image and a scratch disk each. Their frontends are another process. Needs root;
//! on a machine that does nothing else.
//! `cargo run --release -p longship-vsock --example pod_devices [PODS]`

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use longship_eni::{BridgeEnis, EniProvider, EniSpec, MacAddress};
use longship_vhost_user::driver::{Driver, MEMORY_START, Piece};
use longship_volume::{ScratchStore, VhostUserVolumes, VolumeKind, VolumeProvider, VolumeSpec};
use longship_vsock::VsockDevice;

/// Each pod's devices and their rings.
const DEVICES: [(&str, usize); 4] = [("eth0", 2), ("vsock", 3), ("image", 1), ("scratch", 1)];

/// The window of a dense pod in bytes.
const WINDOW: u64 = 4 << 20;

/// Kibibytes after `key` in a file of `/proc`.
fn kib(file: &str, key: &str) -> Result<i64, Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number
        .ok_or_else(|| format!("no {key} in {file}"))?
        .parse()?)
}

/// Kibibytes that are this process's alone, with its page tables.
fn private() -> Result<i64, Box<dyn Error>> {
    let smaps = "/proc/self/smaps_rollup";
    let pages = kib(smaps, "Private_Dirty:")? + kib(smaps, "Private_Clean:")?;
    Ok(pages + kib("/proc/self/status", "VmPTE:")?)
}

/// What the machine and this process hold, in kibibytes.
#[derive(Clone, Copy)]
struct Held {
    /// Without the guests' memory and without files.
    machine: i64,
    process: i64,
    threads: i64,
}

impl Held {
    fn now() -> Result<Self, Box<dyn Error>> {
        let mut machine = 0;
        for key in [
            "AnonPages:",
            "Slab:",
            "KernelStack:",
            "PageTables:",
            "Percpu:",
        ] {
            machine += kib("/proc/meminfo", key)?;
        }
        Ok(Self {
            machine,
            process: private()?,
            threads: kib("/proc/self/status", "Threads:")?,
        })
    }

    fn print(self, what: &str, before: Self, elsewhere: i64, pods: i64) {
        println!(
            "{what}: {} KiB of the machine a pod, {} KiB of them the process's own; {} threads",
            (self.machine - before.machine - elsewhere) / pods,
            (self.process - before.process) / pods,
            (self.threads - before.threads) / pods,
        );
    }
}

fn socket(folder: &Path, pod: u16, device: &str) -> PathBuf {
    folder.join(format!("{pod}-{device}"))
}

/// The frontends: connected when asked, and gone at the end.
fn connect(folder: &Path, pods: u16) -> Result<(), Box<dyn Error>> {
    let mut asked = std::io::stdin().lines();
    let mut drivers = Vec::new();
    println!("ready");
    asked.next();
    let before = private()?;
    for pod in 0..pods {
        for (device, rings) in DEVICES {
            let window = MEMORY_START..MEMORY_START + WINDOW;
            let path = socket(folder, pod, device);
            let mut driver = Driver::connect_by_window(&path, rings, window);
            // A request each, which touches what serving touches.
            let header = [0; 60];
            let pieces = [
                Piece::Read(&header[..16]),
                Piece::Write(512),
                Piece::Write(1),
            ];
            let (ring, pieces) = match rings {
                1 => (0, &pieces[..]),
                _ => (1, &[Piece::Read(&header)][..]),
            };
            driver.submit(ring, pieces, false);
            driver.kick(ring);
            driver.wait_used(ring).ok_or("no answer")?;
            drivers.push(driver);
        }
    }
    println!("connected {}", private()? - before);
    asked.next();
    Ok(())
}

async fn serve(folder: &Path, pods: u16) -> Result<(), Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([pods.to_string().as_str(), "connect"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ask = child.stdin.take().ok_or("no input")?;
    let mut answers = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut answer = || {
        answers
            .next()
            .ok_or("the frontends are gone")?
            .map_err(<Box<dyn Error>>::from)
    };
    answer()?;

    let enis = BridgeEnis::new();
    let store = ScratchStore::open(folder.join("store"))?;
    let volumes = VhostUserVolumes::new(store);
    volumes.format_ahead(1 << 30)?;
    fs::write(folder.join("disk"), vec![1; 1 << 20])?;
    let mut channels = Vec::new();
    // The first pays for what all share.
    let mut before = Held::now()?;
    for pod in 0..=pods {
        if pod == 1 {
            before = Held::now()?;
        }
        // The one that pays is the last by its number, and is not connected.
        let pod = if pod == 0 { pods } else { pod - 1 };
        let [high, low] = pod.to_be_bytes();
        enis.prepare(EniSpec {
            id: pod.to_string(),
            vpc: "cost".to_owned(),
            mac: MacAddress::new([2, 0, 0, 0, high, low]),
            address: Ipv4Addr::new(10, 1, high, low),
            prefix_length: 8,
            gateway: Ipv4Addr::new(10, 255, 255, 254),
            mtu: 1500,
            socket: socket(folder, pod, "eth0"),
        })
        .await?;
        channels.push(VsockDevice::serve(
            &socket(folder, pod, "vsock"),
            3,
            &[1024],
        )?);
        let disk = folder.join("disk");
        let kinds = [
            ("image", VolumeKind::Image { disk }),
            ("scratch", VolumeKind::Scratch { bytes: 1 << 30 }),
        ];
        for (device, kind) in kinds {
            volumes.prepare(&VolumeSpec {
                id: format!("{pod}-{device}"),
                socket: socket(folder, pod, device),
                kind,
                serial: device.to_owned(),
            })?;
        }
    }
    let pods = i64::from(pods);
    Held::now()?.print("served", before, 0, pods);
    writeln!(ask)?;
    let connected = answer()?;
    let theirs = connected.strip_prefix("connected ").ok_or("no figure")?;
    Held::now()?.print("connected", before, theirs.parse()?, pods);
    drop(ask);
    child.wait()?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let pods = arguments.next().map_or(Ok(64), |n| n.parse())?;
    if arguments.next().is_some() {
        let folder = arguments.next().ok_or("no folder")?;
        return connect(Path::new(&folder), pods);
    }
    let folder = std::env::temp_dir().join(format!("pod-devices-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let served = serve(&folder, pods).await;
    fs::remove_dir_all(&folder)?;
    served
}
