//! What the card asks for, checked once and turned into types that cannot be
//! wrong. Nothing here looks at or changes the machine.

mod configuration;
mod container;
mod process;
mod user;

pub(crate) use configuration::{Configuration, Interface, MacAddress};
pub(crate) use container::ContainerSpec;
pub(crate) use process::{ProcessSpec, WindowSize};
pub(crate) use user::UserSpec;

use longship_framed::error::Failure;

/// Most bytes that virtio-blk has room for in a serial (virtio 1.2, 5.2.6.1).
const MAX_SERIAL: usize = 20;

/// Longest name of a process, in bytes.
const MAX_PROCESS_ID: usize = 128;

/// A disk's serial.
fn serial(field: &str, text: &str) -> Result<String, Failure> {
    let fits = !text.is_empty() && text.len() <= MAX_SERIAL;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    // It becomes a directory's name too.
    if fits && text.bytes().all(plain) && !text.starts_with('.') {
        Ok(text.to_owned())
    } else {
        Err(Failure::invalid(
            field,
            format!("{text:?} is no disk serial: 1 to {MAX_SERIAL} letters, digits, `.`, `_`, `-`"),
        ))
    }
}

/// The name of an exec's process.
///
/// # Errors
/// Invalid at `field`.
pub(crate) fn process_id(field: &str, text: &str) -> Result<String, Failure> {
    let printable = text.bytes().all(|b| b.is_ascii_graphic());
    if !text.is_empty() && text.len() <= MAX_PROCESS_ID && printable {
        Ok(text.to_owned())
    } else {
        Err(Failure::invalid(
            field,
            format!("{text:?} is no process name: 1 to {MAX_PROCESS_ID} printable characters"),
        ))
    }
}

/// A signal's number, as kill(2) takes it on Linux.
///
/// # Errors
/// Invalid at `signal`.
pub(crate) fn signal(number: i32) -> Result<i32, Failure> {
    if (1..=64).contains(&number) {
        Ok(number)
    } else {
        Err(Failure::invalid(
            "signal",
            format!("{number} is no signal: 1 to 64"),
        ))
    }
}

/// A configuration that passes every check.
#[cfg(test)]
pub(crate) fn tests_configuration() -> Configuration {
    configuration::tests::good().try_into().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_a_short_plain_word() {
        assert_eq!(serial("f", "img-0_a.B").unwrap(), "img-0_a.B");
        for bad in ["", "..", ".x", "a/b", "a b", "é", "123456789012345678901"] {
            assert_eq!(serial("f", bad).unwrap_err().field, "f", "{bad:?}");
        }
    }

    #[test]
    fn signals_are_those_of_linux() {
        assert!(signal(1).is_ok() && signal(64).is_ok());
        assert!(signal(0).is_err() && signal(65).is_err() && signal(-9).is_err());
    }

    #[test]
    fn a_process_name_has_no_spaces_and_an_end() {
        assert!(process_id("process", "exec-1").is_ok());
        for bad in ["", "a b", "a\0", &"x".repeat(129)] {
            assert!(process_id("process", bad).is_err(), "{bad:?}");
        }
    }
}
