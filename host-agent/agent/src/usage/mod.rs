//! What sandboxes cost the host at this moment, each part told apart and nothing
//! counted twice.

mod cgroup_memory;
mod smaps;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use longship_proto::agent::v1::SandboxUsage;

use crate::shape::Shape;
use cgroup_memory::CgroupMemory;
use smaps::{Mapping, Part};

/// A sandbox to look at.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) id: String,
    pub(crate) pid: u32,
    pub(crate) shape: Shape,
}

/// What one sandbox costs; `None` where it has just ended. Blocks: the kernel walks its
/// page tables.
pub(crate) fn of_sandbox(subject: &Subject, cgroups: &Path) -> Option<SandboxUsage> {
    let process = PathBuf::from(format!("/proc/{}", subject.pid));
    let smaps = fs::read_to_string(process.join("smaps")).ok()?;
    let stat = fs::read_to_string(cgroup_of(&process, cgroups)?.join("memory.stat")).ok()?;
    let blocks = |mapping: &Mapping<'_>| {
        let place = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
        let found = fs::metadata(process.join(place)).ok()?;
        // In units of 512 bytes (stat(2)).
        Some(found.blocks().saturating_mul(512))
    };
    Some(sum_up(subject, &smaps, &stat, blocks))
}

/// The agent's own anonymous memory, in bytes.
pub(crate) fn of_agent() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// The cgroup of a process, where it is one of ours: the process id may be another's by
/// now.
fn cgroup_of(process: &Path, cgroups: &Path) -> Option<PathBuf> {
    let lines = fs::read_to_string(process.join("cgroup")).ok()?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let name = Path::new(path).file_name()?;
    let own = cgroups.join(name);
    own.ends_with(path).then_some(own)
}

fn sum_up(
    subject: &Subject,
    smaps: &str,
    stat: &str,
    blocks: impl Fn(&Mapping<'_>) -> Option<u64>,
) -> SandboxUsage {
    let mut usage = SandboxUsage {
        id: subject.id.clone(),
        pid: subject.pid,
        profile: subject.shape.profile.to_wire().into(),
        ..SandboxUsage::default()
    };
    let mappings = smaps::parse(smaps);
    let (mut ram_file, mut window_file) = (None, None);
    for (index, mapping) in mappings.iter().enumerate() {
        match smaps::part_of(&mappings, index, subject.shape) {
            Part::Template => {
                usage.guest_bytes += mapping.anonymous;
                usage.shared_bytes += mapping.resident.saturating_sub(mapping.anonymous);
            }
            Part::PrivateRam => usage.guest_bytes += mapping.anonymous,
            // Backends touch pages that this process never maps: the file knows all. It
            // may be mapped in several pieces.
            Part::SharedRam => {
                let all = ram_file.get_or_insert_with(|| blocks(mapping));
                if all.is_none() {
                    usage.guest_bytes += mapping.resident;
                }
            }
            Part::Window => {
                let all = window_file.get_or_insert_with(|| blocks(mapping));
                if all.is_none() {
                    usage.window_bytes += mapping.resident;
                }
            }
            Part::Vmm => usage.vmm_bytes += mapping.anonymous,
        }
    }
    usage.guest_bytes += ram_file.flatten().unwrap_or(0);
    usage.window_bytes += window_file.flatten().unwrap_or(0);
    let kernel = CgroupMemory::parse(stat);
    usage.page_table_bytes = kernel.page_tables();
    usage.kernel_bytes = kernel.other_kernel();
    usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Profile;

    const KIB: u64 = 1024;
    // Of VMMs that served a sandbox, without the lines that are not looked at.
    const CLONE: &str = include_str!("testdata/clone.smaps");
    const COLD: &str = include_str!("testdata/cold.smaps");
    const STAT: &str = include_str!("testdata/memory.stat");

    fn count(
        smaps: &str,
        profile: Profile,
        blocks: impl Fn(&Mapping<'_>) -> Option<u64>,
    ) -> SandboxUsage {
        let subject = Subject {
            id: "pod".into(),
            pid: 7,
            shape: Shape {
                vcpus: 1,
                memory_bytes: 128 << 20,
                profile,
            },
        };
        sum_up(&subject, smaps, STAT, blocks)
    }

    #[test]
    fn a_clones_own_pages_are_told_from_the_templates() {
        let usage = count(CLONE, Profile::Dense, |_| Some(300 * KIB));
        assert_eq!(usage.guest_bytes, 28 * KIB);
        assert_eq!(usage.shared_bytes, 4 * KIB);
        assert_eq!(usage.window_bytes, 300 * KIB);
        // Data, heap, stacks.
        assert_eq!(usage.vmm_bytes, (8 + 12 + 12 + 68 + 4 + 8 + 40) * KIB);
        assert_eq!(usage.page_table_bytes, 106_496 + 28_672);
        assert_eq!(usage.kernel_bytes, 585_728 - 106_496 - 28_672);
        assert_eq!(usage.profile, wire_profile(Profile::Dense));
    }

    #[test]
    fn ram_without_a_name_is_known_by_the_window_in_it() {
        let usage = count(COLD, Profile::Dense, |_| None);
        assert_eq!(usage.guest_bytes, 26_624 * KIB);
        assert_eq!(usage.window_bytes, 2516 * KIB);
        assert_eq!(usage.vmm_bytes, (8 + 12 + 12 + 84 + 4 + 8 + 32) * KIB);
        assert_eq!(usage.shared_bytes, 0);
    }

    #[test]
    fn what_backends_touch_of_shared_ram_counts_once() {
        let smaps = "\
            7f0000000000-7f0008000000 rw-s 00000000 00:01 9   /memfd:guest-ram (deleted)\n\
            Rss:     100 kB\nAnonymous:    0 kB\n\
            7f1000000000-7f1008000000 rw-s 08000000 00:01 9   /memfd:guest-ram (deleted)\n\
            Rss:      50 kB\nAnonymous:    0 kB\n";
        let whole_file = count(smaps, Profile::Direct, |_| Some(400 * KIB));
        assert_eq!(whole_file.guest_bytes, 400 * KIB);
        let unknown = count(smaps, Profile::Direct, |_| None);
        assert_eq!(unknown.guest_bytes, 150 * KIB);
        assert_eq!((unknown.vmm_bytes, unknown.window_bytes), (0, 0));
    }

    fn wire_profile(profile: Profile) -> i32 {
        profile.to_wire().into()
    }
}
