//! The guest kernel's command line, in one place.

/// Each parameter, and why it is there.
const PARAMETERS: [&str; 10] = [
    // The serial port, for debugging and for a guest's last words. Each byte there
    // costs an exit, so the kernel says little.
    "console=ttyS0 quiet loglevel=3",
    // Reset by the keyboard controller's port, which the VMM takes for the end.
    "reboot=k",
    // A panic is the end, at once.
    "panic=-1",
    // Configuration space by ports 0xcf8 and 0xcfc; there is no ACPI to find more.
    "pci=conf1",
    // One UART is there; looking for others costs exits.
    "8250.nr_uarts=1",
    // Entropy before the card sends its own.
    "random.trust_cpu=on",
    // The lock prefixes stay where one CPU does not need them: patching thousands of
    // them away one by one takes longer than they ever cost.
    "noreplace-smp",
    // KVM vouches for the clock; it needs no watchdog.
    "tsc=reliable",
    // No bounce pool for devices that reach little memory: there are none. A DMA window,
    // which the VMM adds here, goes before this.
    "swiotlb=noforce",
    // Mounts, namespaces and devices wait for grace periods, at 10 ms a tick.
    "rcupdate.rcu_expedited=1",
];

/// What every guest boots with.
pub(crate) fn command_line() -> String {
    PARAMETERS.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_what_linux_accepts() {
        let line = command_line();
        // COMMAND_LINE_SIZE on x86 is 2048 with the terminating NUL.
        assert!(line.len() < 2048);
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert!(!line.contains("  "));
    }
}
