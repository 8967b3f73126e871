//! The user's terminal: raw while a remote process has it, and as it was after.

use std::io::{self, IsTerminal, Stdin};

use longship_proto::card::v1::WindowSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Puts the terminal at standard input into raw mode until it is dropped, also when
/// that is by a panic.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    stdin: Stdin,
    before: Termios,
}

impl RawTerminal {
    /// `None` where standard input is no terminal.
    ///
    /// # Errors
    /// tcsetattr(3)'s.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.stdin, SetArg::TCSADRAIN, &self.before);
    }
}

/// The size of the terminal at standard output or input, if either is one.
pub(crate) fn window_size() -> Option<WindowSize> {
    [libc::STDOUT_FILENO, libc::STDIN_FILENO]
        .into_iter()
        .find_map(|fd| {
            let mut size = libc::winsize {
                ws_row: 0,
                ws_col: 0,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // SAFETY: TIOCGWINSZ writes one winsize, which lives through the call.
            let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
            (result == 0 && size.ws_col > 0).then(|| WindowSize {
                columns: size.ws_col.into(),
                rows: size.ws_row.into(),
            })
        })
}

/// Whether standard output is a terminal.
pub(crate) fn shows_text() -> bool {
    io::stdout().is_terminal()
}
