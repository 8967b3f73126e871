//! What ENIs cost the card: the first of a VPC, one after the other, and many at
//! once. Needs root. `cargo run --release -p longship-eni --example cost [COUNT]`

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use longship_eni::{BridgeEnis, EniProvider, EniSpec, MacAddress};

/// The ENI number `n` of VPC number `net`.
fn spec(folder: &Path, net: u8, n: u16) -> EniSpec {
    let [high, low] = n.to_be_bytes();
    EniSpec {
        id: format!("{net}-{n}"),
        vpc: format!("vpc-{net}"),
        mac: MacAddress::new([2, 0, 0, net, high, low]),
        address: Ipv4Addr::new(10, net, high, low),
        prefix_length: 16,
        gateway: Ipv4Addr::new(10, net, 255, 254),
        mtu: 1500,
        socket: folder.join(format!("{net}-{n}.sock")),
    }
}

/// Where the kernel's memory goes, in its own words.
const MEMORY: [&str; 7] = [
    "MemAvailable",
    "AnonPages",
    "SUnreclaim",
    "SReclaimable",
    "KernelStack",
    "PageTables",
    "Percpu",
];

/// Those of [`MEMORY`] in kibibytes.
fn memory() -> Result<[i64; 7], Box<dyn std::error::Error>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let mut found = [0; 7];
    for (into, name) in found.iter_mut().zip(MEMORY) {
        let line = text.lines().find(|l| l.split(':').next() == Some(name));
        let number = line.and_then(|l| l.split_whitespace().nth(1));
        *into = number
            .ok_or("a field is missing in /proc/meminfo")?
            .parse()?;
    }
    Ok(found)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u16 = std::env::args().nth(1).map_or(Ok(100), |n| n.parse())?;
    let folder = std::env::temp_dir().join(format!("eni-cost-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let enis = BridgeEnis::new();

    for net in 0..3 {
        let began = Instant::now();
        enis.prepare(spec(&folder, net, 1)).await?;
        println!("first of a VPC: {:.2} ms", milliseconds(began.elapsed()));
    }
    let mut times = Vec::new();
    for n in 2..22 {
        let began = Instant::now();
        enis.prepare(spec(&folder, 0, n)).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!(
        "one after the other: median {:.2} ms, most {:.2} ms",
        milliseconds(times[times.len() / 2]),
        milliseconds(times[times.len() - 1])
    );

    let before = memory()?;
    let began = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for n in 22..22 + count {
        let (enis, spec) = (enis.clone(), spec(&folder, 0, n));
        all.spawn(async move { enis.prepare(spec).await });
    }
    while let Some(made) = all.join_next().await {
        made??;
    }
    let took = milliseconds(began.elapsed());
    println!(
        "{count} at once: {took:.1} ms, {:.2} ms each",
        took / f64::from(count)
    );
    for ((name, after), before) in MEMORY.iter().zip(memory()?).zip(before) {
        println!(
            "  {name}: {:+} KiB each",
            (after - before) / i64::from(count)
        );
    }

    let began = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for eni in enis.list().await? {
        let enis = enis.clone();
        all.spawn(async move { enis.release(&eni.id).await });
    }
    let released = all.len();
    while let Some(gone) = all.join_next().await {
        gone??;
    }
    let took = milliseconds(began.elapsed());
    println!("{released} released at once: {took:.1} ms");
    fs::remove_dir(&folder)?;
    Ok(())
}
