//! The guest kernel's command line, in one place.

/// Each parameter, and why it is there.
const PARAMETERS: [&str; 7] = [
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
    // No keyboard is there: looking for its parts costs a quarter of a second.
    "i8042.noaux i8042.nomux i8042.dumbkbd",
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
