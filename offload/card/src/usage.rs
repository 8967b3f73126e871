//! What the pods cost the card.
//!
//! All backends live in this one process, so that what a single pod costs cannot be
//! told from outside: a pod's share is what the process has grown by since before
//! its first pod, in equal parts. The shares and the base add up to the whole.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Kernel stack of a thread in bytes (x86-64, THREAD_SIZE).
const KERNEL_STACK: u64 = 16 << 10;
/// Bytes of a block as stat(2) counts them.
const STAT_BLOCK: u64 = 512;

/// Memory of this process in bytes: anonymous pages, page tables, kernel stacks.
/// Guests' memory that is mapped here is not in it, but the tables that map it are.
///
/// # Errors
/// Where /proc does not say it.
pub(crate) fn own_bytes() -> io::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let status = fs::read_to_string("/proc/self/status")?;
    let missing = || io::Error::other("/proc/self does not say how much memory it is");
    of_proc(&rollup, &status).ok_or_else(missing)
}

fn of_proc(rollup: &str, status: &str) -> Option<u64> {
    let anonymous = number(rollup, "Anonymous:")?.checked_mul(1024)?;
    let tables = number(status, "VmPTE:")?.checked_mul(1024)?;
    let stacks = number(status, "Threads:")?.checked_mul(KERNEL_STACK)?;
    anonymous.checked_add(tables)?.checked_add(stacks)
}

/// The number behind `label` at the begin of a line.
fn number(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Equal parts of `total` for `count` pods; nothing where there are none. What does
/// not divide goes to the first ones, so that the parts add up.
pub(crate) fn shares(total: u64, count: usize) -> impl Iterator<Item = u64> {
    let pods = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    let (each, rest) = (total / pods, total % pods);
    (0..pods)
        .map(move |at| each + u64::from(at < rest))
        .take(count)
}

/// Bytes that a file really takes; 0 where there is none.
pub(crate) fn file_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.blocks() * STAT_BLOCK)
}

/// Bytes that the files of a folder really take, by their names without ending.
///
/// # Errors
/// Where the folder cannot be read; files that go meanwhile are passed over.
pub(crate) fn files_bytes(folder: &Path) -> io::Result<HashMap<String, u64>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(stem) = path.file_stem().and_then(|s| s.to_str()) {
            found.insert(stem.to_owned(), file_bytes(&path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_anonymous_tables_and_stacks() {
        let rollup = "Rss: 9000 kB\nAnonymous:           1000 kB\nAnonHugePages: 5 kB\n";
        let status = "Name:\tx\nVmPTE:\t      96 kB\nThreads:\t3\n";
        assert_eq!(of_proc(rollup, status), Some((1000 + 96 + 48) << 10));
        assert_eq!(of_proc("", status), None);
        assert_eq!(of_proc("Anonymous: 18446744073709551615 kB", status), None);
    }

    #[test]
    fn memory_that_is_taken_is_counted() {
        let before = own_bytes().unwrap();
        let taken = vec![1_u8; 32 << 20];
        let after = own_bytes().unwrap();
        assert!(after >= before + (31 << 20), "{before} {after}");
        assert_eq!(taken.last(), Some(&1));
    }

    #[test]
    fn shares_add_up_to_the_whole() {
        for (total, count) in [(0, 3), (10, 3), (2, 5), (u64::MAX, 7)] {
            let shares: Vec<u64> = shares(total, count).collect();
            assert_eq!(shares.len(), count);
            assert_eq!(shares.iter().sum::<u64>(), total);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1);
        }
        assert_eq!(shares(10, 0).count(), 0);
    }

    #[test]
    fn a_sparse_file_takes_only_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uid-scratch.ext4");
        let file = fs::File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], 1 << 20).unwrap();
        let found = files_bytes(dir.path()).unwrap();
        let taken = found["uid-scratch"];
        assert!((8192..1 << 20).contains(&taken), "{taken}");
        assert_eq!(file_bytes(&dir.path().join("none")), 0);
    }
}
