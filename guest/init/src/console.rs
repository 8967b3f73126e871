//! Init's own log: the kernel's, which the console shows.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::power;

static KERNEL_LOG: OnceLock<File> = OnceLock::new();

/// Set in a process that init has forked, where a panic is the end of that
/// process only.
static FORKED: AtomicBool = AtomicBool::new(false);

/// How much a line matters (syslog(2)).
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Error = 3,
    Warning = 4,
    /// Above the kernel's own chatter.
    Notice = 5,
}

/// Opens the kernel's log; until then lines go nowhere.
pub(crate) fn open() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Only the first is kept, which is as good.
        let _ = KERNEL_LOG.set(file);
    }
}

/// Writes one line. The kernel limits the rate.
pub(crate) fn log(level: Level, text: fmt::Arguments<'_>) {
    if let Some(mut file) = KERNEL_LOG.get() {
        let line = format!("<{}>longship-init: {text}\n", level as u8);
        // A log that cannot be written is no reason to stop.
        let _ = file.write_all(line.as_bytes());
    }
}

/// Says that this process is a fork of init, not init.
pub(crate) fn forked() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Makes a panic of init a logged reboot, which the VMM sees as the end of the
/// machine, instead of a kernel panic.
pub(crate) fn reboot_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        log(Level::Error, format_args!("{panic}"));
        if FORKED.load(Ordering::Relaxed) {
            std::process::exit(70);
        }
        power::off();
    }));
}

macro_rules! error {
    ($($text:tt)*) => {
        $crate::console::log($crate::console::Level::Error, format_args!($($text)*))
    };
}
macro_rules! warning {
    ($($text:tt)*) => {
        $crate::console::log($crate::console::Level::Warning, format_args!($($text)*))
    };
}
macro_rules! notice {
    ($($text:tt)*) => {
        $crate::console::log($crate::console::Level::Notice, format_args!($($text)*))
    };
}
pub(crate) use {error, notice, warning};
