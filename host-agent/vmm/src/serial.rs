//! The serial port, for debugging: what the guest prints goes to the console
//! descriptor, within bounds.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// The most that a guest can print, in bytes.
const MAX_OUTPUT: usize = 4 << 20;
/// Output is written in lines, or in pieces of this size.
const LINE: usize = 256;

/// The interrupt of the port.
pub(crate) struct Irq(Arc<EventFd>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550 that is written to only.
pub(crate) struct SerialPort(Mutex<Serial<Irq, NoEvents, Console>>);

impl SerialPort {
    /// A port that writes to `console`, if anywhere, and interrupts by `irq`.
    pub(crate) fn new(irq: Arc<EventFd>, console: Option<File>) -> Self {
        Self(Mutex::new(Serial::new(Irq(irq), Console::new(console))))
    }

    /// A port as [`SerialPort::new`] makes it, with its registers as they were.
    ///
    /// # Errors
    /// Interrupting, where the state wants that; `irq`'s own errors.
    pub(crate) fn restored(
        irq: Arc<EventFd>,
        console: Option<File>,
        state: &SerialState,
    ) -> io::Result<Self> {
        let console = Console::new(console);
        Serial::from_state(state, Irq(irq), NoEvents, console)
            .map(|serial| Self(Mutex::new(serial)))
            .map_err(|e| io::Error::other(e.to_string()))
    }

    /// The registers of the port.
    pub(crate) fn state(&self) -> SerialState {
        let serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serial.state()
    }

    /// The guest writes register `offset`.
    pub(crate) fn write(&self, offset: u8, value: u8) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Output that nobody takes is lost; the guest does not notice.
        let _ = serial.write(offset, value);
    }

    /// The guest reads register `offset`.
    pub(crate) fn read(&self, offset: u8) -> u8 {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serial.read(offset)
    }

    /// Writes out what is left of the last line.
    pub(crate) fn flush(&self) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serial.writer_mut().put_line();
    }
}

/// Where lines go.
struct Console {
    file: Option<File>,
    line: Vec<u8>,
    left: usize,
}

impl Console {
    fn new(file: Option<File>) -> Self {
        Self {
            file,
            line: Vec::with_capacity(LINE),
            left: MAX_OUTPUT,
        }
    }

    fn put_line(&mut self) {
        let Some(file) = &mut self.file else {
            self.line.clear();
            return;
        };
        // A pipe that nobody reads must not stop the guest: the line is lost.
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
        let writable = fds
            .iter()
            .filter_map(PollFd::revents)
            .any(|events| events.contains(PollFlags::POLLOUT));
        if ready && writable {
            let _ = file.write(&self.line);
        }
        self.line.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LINE {
                self.put_line();
            }
            if self.left == 0 {
                self.line
                    .extend_from_slice(b"\n[console output limit reached]\n");
                self.put_line();
            }
        }
        Ok(bytes.len())
    }

    /// The port flushes after each byte; lines are kept until they end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn port() -> (SerialPort, File) {
        let (read, write) = nix::unistd::pipe().unwrap();
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        (
            SerialPort::new(irq, Some(File::from(write))),
            File::from(read),
        )
    }

    #[test]
    fn lines_arrive_and_the_last_one_by_a_flush() {
        let (port, mut out) = port();
        for byte in b"one\ntwo" {
            port.write(0, *byte);
        }
        port.flush();
        drop(port);
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo");
    }

    #[test]
    fn a_console_that_nobody_reads_does_not_block_the_guest() {
        let (port, _unread) = port();
        for _ in 0..200_000 {
            port.write(0, b'x');
            port.write(0, b'\n');
        }
    }

    #[test]
    fn output_is_bounded() {
        let file = tempfile::tempfile().unwrap();
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let port = SerialPort::new(irq, Some(file.try_clone().unwrap()));
        for _ in 0..MAX_OUTPUT + 10_000 {
            port.write(0, b'x');
        }
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        assert!((MAX_OUTPUT..MAX_OUTPUT + 100).contains(&len), "{len}");
    }
}
