//! The machine's own ports: what init says to its VMM before there is any device.
//!
//! Other machines do not have them (QEMU, say); init then boots as on any machine.

use std::arch::asm;
use std::time::Duration;

use longship_framed::machine_ports as ports;

use crate::console;

/// What kind of a machine this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It starts a pod, having booted.
    Booted,
    /// It is to be cloned, and never starts a pod itself.
    Template,
    /// It starts a pod, having gone on from where its template was.
    Clone,
}

impl Kind {
    fn from_bits(bits: u32) -> Self {
        if bits & ports::IS_CLONE != 0 {
            Self::Clone
        } else if bits & ports::IS_TEMPLATE != 0 {
            Self::Template
        } else {
            Self::Booted
        }
    }
}

/// The ports, which this process may use until this is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    _private: (),
}

impl Machine {
    /// Takes the ports; none where the machine has none.
    pub(crate) fn open() -> Option<Self> {
        if !allow(true) {
            return None;
        }
        let machine = Self { _private: () };
        (machine.read(ports::COMMAND) == ports::SIGNATURE).then_some(machine)
    }

    /// Asked again after [`Self::park`], the answer may be another.
    pub(crate) fn kind(&self) -> Kind {
        Kind::from_bits(self.read(ports::KIND))
    }

    /// Tells the VMM that init has begun, or goes on.
    pub(crate) fn alive(&self) {
        self.write(ports::COMMAND, ports::ALIVE);
    }

    /// Waits to be cloned, and comes back in each clone.
    pub(crate) fn park(&self) {
        self.write(ports::COMMAND, ports::PARK);
    }

    /// Fresh random bytes of the host.
    pub(crate) fn entropy(&self) -> [u8; 32] {
        let mut words = [0; 8];
        self.read_all(ports::ENTROPY, &mut words);
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The host's time of day, since the Unix epoch.
    pub(crate) fn time(&self) -> Duration {
        let mut words = [0; 2];
        self.read_all(ports::TIME, &mut words);
        let [low, high] = words.map(u64::from);
        Duration::from_nanos(high << 32 | low)
    }

    fn read(&self, port: u16) -> u32 {
        let value;
        // SAFETY: `allow` has given this process the port, and reading it changes
        // nothing but the register. It is no `nomem`, so that what is read stays in
        // its order with what is written.
        unsafe {
            asm!("in eax, dx", in("dx") port, out("eax") value,
                options(nostack, preserves_flags));
        }
        value
    }

    fn write(&self, port: u16, value: u32) {
        // SAFETY: `allow` has given this process the port. The VMM reads the value
        // and nothing else. Parking copies the whole machine, this memory with it,
        // as it is at this instruction.
        unsafe {
            asm!("out dx, eax", in("dx") port, in("eax") value,
                options(nostack, preserves_flags));
        }
    }

    /// Reads as many words as there is room for, by one instruction.
    fn read_all(&self, port: u16, words: &mut [u32]) {
        // SAFETY: `allow` has given this process the port. The instruction writes
        // `words.len()` words upwards from their start (the direction flag is
        // clear by the ABI), which is exactly the slice.
        unsafe {
            asm!("rep insd", in("dx") port,
                inout("rdi") words.as_mut_ptr() => _, inout("rcx") words.len() => _,
                options(nostack, preserves_flags));
        }
    }
}

impl Drop for Machine {
    /// What this process forks would inherit the ports, even across execve(2).
    fn drop(&mut self) {
        allow(false);
    }
}

fn allow(on: bool) -> bool {
    let [first, count] = [ports::COMMAND, ports::COUNT].map(libc::c_ulong::from);
    // SAFETY: ioperm(2) takes three numbers, and gives access to ports that have
    // no effect but on what the VMM does for this machine.
    unsafe { libc::ioperm(first, count, on.into()) == 0 }
}

/// Makes memory that is free now the host's again, as the kernel will do later by
/// itself: what a template does not hold, no clone has to be given.
pub(crate) fn give_back_free_memory() {
    const NOW: &str = "/sys/kernel/longship_reclaim";
    if let Err(error) = std::fs::write(NOW, "1") {
        console::warning!("free memory stays with the guest: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_of_a_template_is_a_clone() {
        assert_eq!(Kind::from_bits(0), Kind::Booted);
        assert_eq!(Kind::from_bits(ports::IS_TEMPLATE), Kind::Template);
        let both = ports::IS_TEMPLATE | ports::IS_CLONE;
        assert_eq!(Kind::from_bits(both), Kind::Clone);
    }
}
