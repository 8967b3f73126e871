//! Pulls one image into a store and says what it took:
//! `convert STORE-DIRECTORY REFERENCE`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use longship_image::{DEFAULT_MAX_IMAGE_BYTES, ImageStore, StoreConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(reference)) = (arguments.next(), arguments.next()) else {
        return Err("usage: convert STORE-DIRECTORY REFERENCE".into());
    };
    let store = ImageStore::open(StoreConfig {
        directory: PathBuf::from(directory),
        max_image_bytes: DEFAULT_MAX_IMAGE_BYTES,
        insecure_registries: Vec::new(),
    })?;
    let started = Instant::now();
    let image = store.prepare(&reference).await?;
    let milliseconds = started.elapsed().as_millis();
    let size = std::fs::metadata(&image.disk)?.len();
    println!("{} {}", image.digest, image.disk.display());
    println!("{size} bytes after {milliseconds} ms");
    println!("{:?}", image.config);
    Ok(())
}
