//! What a template depends on: everything that is in its memory and its state.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::command_line::command_line;
use crate::host::Host;
use crate::shape::Shape;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// Of the hash, so many bytes are enough for a name.
const NAME_BYTES: usize = 16;

/// Hash of the kernel, the initramfs, the VMM and the command line.
#[derive(Debug)]
pub(crate) struct Contents([u8; 32]);

impl Contents {
    /// Reads and hashes this host's files, off the runtime's threads.
    pub(crate) async fn of(host: Arc<Host>) -> Self {
        let hash = tokio::task::spawn_blocking(move || {
            let files = [host.kernel(), host.initramfs(), host.vmm_file()];
            hash(files)
        });
        let hash = match hash.await {
            Ok(Ok(hash)) => hash,
            Ok(Err(error)) => {
                tracing::warn!("hash the guest's files: {error}");
                [0; 32]
            }
            // It was cancelled: the agent ends.
            Err(_) => [0; 32],
        };
        Self(hash)
    }

    /// Name of a template that is made of this.
    pub(crate) fn id(&self, shape: Shape) -> String {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(format!("{shape}, window {}", shape.dma_window_bytes()));
        hex::encode(hash.finalize().get(..NAME_BYTES).unwrap_or_default())
    }
}

fn hash(files: [io::Result<File>; 3]) -> io::Result<[u8; 32]> {
    let mut whole = Sha256::new();
    for file in files {
        whole.update(hash_file(&file?)?);
    }
    whole.update(command_line());
    Ok(whole.finalize().into())
}

fn hash_file(file: &File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        match file.read_at(&mut chunk, offset) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => {
                hash.update(chunk.get(..n).unwrap_or_default());
                offset += u64::try_from(n).map_err(io::Error::other)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::shape::Profile;

    fn file(text: &[u8]) -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        file.write_all(text)?;
        Ok(file)
    }

    #[test]
    fn every_file_and_every_part_of_the_shape_counts() {
        let of = |texts: [&[u8]; 3]| Contents(hash(texts.map(file)).unwrap());
        let shape = Shape {
            vcpus: 1,
            memory_bytes: 128 << 20,
            profile: Profile::Dense,
        };
        let base = of([b"kernel", b"init", b"vmm"]);
        let id = base.id(shape);
        assert_eq!(id.len(), 2 * NAME_BYTES);
        assert_eq!(of([b"kernel", b"init", b"vmm"]).id(shape), id);
        let others = [
            of([b"kernel2", b"init", b"vmm"]).id(shape),
            of([b"kernel", b"init2", b"vmm"]).id(shape),
            of([b"kernel", b"init", b"vmm2"]).id(shape),
            of([b"kerneli", b"nit", b"vmm"]).id(shape),
            base.id(Shape { vcpus: 2, ..shape }),
            base.id(Shape {
                memory_bytes: 130 << 20,
                ..shape
            }),
            base.id(Shape {
                profile: Profile::Direct,
                ..shape
            }),
        ];
        assert!(!others.contains(&id));
    }

    #[test]
    fn a_file_is_hashed_to_its_end() {
        let long = vec![7; CHUNK + 1];
        let expected: [u8; 32] = Sha256::digest(&long).into();
        assert_eq!(hash_file(&file(&long).unwrap()).unwrap(), expected);
    }
}
