//! What a VMM's process holds, apart from its guest's RAM (`/proc/PID/smaps`).

use crate::error::{BenchError, file};

/// A VMM's own memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// Resident: its program and libraries too, shared with others or not.
    pub(crate) resident: u64,
    /// The anonymous part of that.
    pub(crate) anonymous: u64,
    /// Resident part of what was taken for guest RAM.
    pub(crate) guest: u64,
}

/// Looks at the process `pid`, whose guest has `guest_bytes` of RAM.
///
/// # Errors
/// That it has gone.
pub(crate) fn own_memory(pid: u32, guest_bytes: u64) -> Result<Own, BenchError> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).map_err(file("read", path))?;
    Ok(parse(&text, guest_bytes))
}

/// Guest RAM is what comes from a memfd, and any mapping of at least half the
/// guest's size; no VMM has other mappings that large with anything in them.
fn parse(smaps: &str, guest_bytes: u64) -> Own {
    let mut own = Own::default();
    let mut is_guest = false;
    for line in smaps.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        // A mapping's head is `START-END PERMISSIONS OFFSET DEVICE:… INODE PATH`.
        if let Some(bytes) = head(line) {
            is_guest = line.contains("/memfd:") || bytes >= guest_bytes / 2;
            continue;
        }
        let Some(bytes) = kilobytes(value) else {
            continue;
        };
        let place = match (name, is_guest) {
            ("Rss", true) => &mut own.guest,
            ("Rss", false) => &mut own.resident,
            ("Anonymous", false) => &mut own.anonymous,
            _ => continue,
        };
        *place = place.saturating_add(bytes);
    }
    own
}

/// The size of a mapping, from its first line.
fn head(line: &str) -> Option<u64> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let at = |text| u64::from_str_radix(text, 16).ok();
    at(end)?.checked_sub(at(start)?)
}

fn kilobytes(value: &str) -> Option<u64> {
    let value = value.trim().strip_suffix(" kB")?;
    value.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0100000 r-xp 00000000 00:1f 77 /usr/bin/longship-vmm
Size:               1024 kB
Rss:                 700 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0 [heap]
Rss:                 100 kB
Anonymous:           100 kB
7f0000000000-7f0007c00000 rw-p 00000000 00:01 5 /memfd:template (deleted)
Rss:                4000 kB
Anonymous:          3000 kB
7f0010000000-7f0018000000 rw-p 00000000 00:00 0
Rss:               20000 kB
Anonymous:         20000 kB
7f0020000000-7f0020400000 rw-s 00000000 00:01 6 /memfd:window (deleted)
Rss:                  64 kB
Anonymous:             0 kB
";

    #[test]
    fn guest_ram_is_told_apart() {
        let own = parse(SMAPS, 128 << 20);
        assert_eq!(own.resident, 800 << 10);
        assert_eq!(own.anonymous, 100 << 10);
        assert_eq!(own.guest, (4000 + 20000 + 64) << 10);
    }

    #[test]
    fn this_process_is_seen() {
        let own = own_memory(std::process::id(), 1 << 40).unwrap();
        assert!(own.resident > own.anonymous && own.anonymous > 0);
    }
}
