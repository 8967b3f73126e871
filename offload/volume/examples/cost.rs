//! What a pod's disks cost the card: the first scratch disk of a size, the next ones,
//! and an image's. `cargo run --release -p longship-volume --example cost [DIR]`

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use longship_volume::{ScratchStore, VhostUserVolumes, VolumeKind, VolumeProvider, VolumeSpec};

/// The card's usual size in bytes.
const BYTES: u64 = 4 << 30;
const DISKS: usize = 100;

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os().nth(1).map(PathBuf::from);
    let parent = parent.unwrap_or_else(std::env::temp_dir);
    let directory = parent.join(format!("volume-cost-{}", std::process::id()));
    let store = ScratchStore::open(&directory)?;
    let volumes = VhostUserVolumes::new(store);
    let image = directory.join("image");
    fs::write(&image, vec![1; 1 << 20])?;

    let began = Instant::now();
    volumes.format_ahead(BYTES)?;
    println!("template: {:.2} ms", milliseconds(began.elapsed()));
    let kinds = [
        ("scratch", VolumeKind::Scratch { bytes: BYTES }),
        (
            "image",
            VolumeKind::Image {
                disk: image.clone(),
            },
        ),
    ];
    for (name, kind) in kinds {
        let mut times = Vec::new();
        for i in 0..DISKS {
            let id = format!("{name}-{i}");
            let spec = VolumeSpec {
                socket: directory.join(&id),
                id,
                kind: kind.clone(),
                serial: name.to_owned(),
            };
            let began = Instant::now();
            volumes.prepare(&spec)?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        println!(
            "{name}: median {:.2} ms, most {:.2} ms",
            milliseconds(times[DISKS / 2]),
            milliseconds(times[DISKS - 1])
        );
    }
    let disk = fs::metadata(directory.join("disks/scratch-0.ext4"))?;
    println!("a scratch disk takes {} KiB", disk.blocks() / 2);
    let began = Instant::now();
    for held in volumes.list()? {
        volumes.release(&held.id)?;
    }
    println!("released in {:.1} ms", milliseconds(began.elapsed()));
    fs::remove_dir_all(&directory)?;
    Ok(())
}
