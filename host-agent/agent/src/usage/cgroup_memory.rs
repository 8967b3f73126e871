//! The kernel's account of one cgroup's memory (Linux, admin-guide/cgroup-v2,
//! `memory.stat`).

/// Kernel memory of a cgroup, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct CgroupMemory {
    /// All of it, where the kernel says so (Linux 5.18).
    kernel: Option<u64>,
    /// Of processes.
    page_tables: u64,
    /// Of guests (nested paging; Linux 6.1).
    secondary_page_tables: u64,
    stacks: u64,
    slab: u64,
    percpu: u64,
    vmalloc: u64,
}

impl CgroupMemory {
    /// Of the text of `memory.stat`; what is missing is 0.
    pub(super) fn parse(stat: &str) -> Self {
        let value = |name: &str| {
            stat.lines().find_map(|line| {
                let (key, value) = line.split_once(' ')?;
                (key == name).then(|| value.trim().parse::<u64>().ok())?
            })
        };
        let or_none = |name| value(name).unwrap_or(0);
        Self {
            kernel: value("kernel"),
            page_tables: or_none("pagetables"),
            secondary_page_tables: or_none("sec_pagetables"),
            stacks: or_none("kernel_stack"),
            slab: or_none("slab"),
            percpu: or_none("percpu"),
            vmalloc: or_none("vmalloc"),
        }
    }

    /// Page tables of processes and guests.
    pub(super) fn page_tables(self) -> u64 {
        self.page_tables.saturating_add(self.secondary_page_tables)
    }

    /// All kernel memory but page tables.
    pub(super) fn other_kernel(self) -> u64 {
        match self.kernel {
            Some(kernel) => kernel.saturating_sub(self.page_tables()),
            None => [self.stacks, self.slab, self.percpu, self.vmalloc]
                .into_iter()
                .fold(0, u64::saturating_add),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_are_told_from_the_rest() {
        let stat =
            "anon 1\nkernel 1000\nkernel_stack 100\npagetables 200\nsec_pagetables 50\nslab 9\n";
        let memory = CgroupMemory::parse(stat);
        assert_eq!((memory.page_tables(), memory.other_kernel()), (250, 750));
    }

    #[test]
    fn an_older_kernel_says_it_in_parts() {
        let stat = "kernel_stack 100\npagetables 200\npercpu 10\nslab 7\nslab_reclaimable 5\n";
        let memory = CgroupMemory::parse(stat);
        assert_eq!((memory.page_tables(), memory.other_kernel()), (200, 117));
        assert_eq!(CgroupMemory::parse("nonsense"), CgroupMemory::default());
    }
}
