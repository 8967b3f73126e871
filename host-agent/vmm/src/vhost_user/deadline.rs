//! A limit to how long a backend may keep its frontend waiting.
//!
//! The `vhost` crate waits for the rest of an answer for ever, also on a socket
//! with a timeout. What ends such a wait is the end of the connection.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Stack of the thread that waits, in bytes.
const STACK: usize = 64 << 10;

/// Does `work`, which talks over `socket`. After `limit` the connection is ended,
/// and with it the work.
///
/// # Errors
/// Where no thread can be started to keep the time; nothing is done then.
pub(super) fn within<T>(
    limit: Duration,
    socket: &UnixStream,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    thread::scope(|scope| {
        let (done, wait) = channel::<()>();
        thread::Builder::new()
            .name("deadline".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    let _ = socket.shutdown(Shutdown::Both);
                }
            })?;
        let result = work();
        drop(done);
        Ok(result)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_that_ends_in_time_keeps_its_connection() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let limit = Duration::from_secs(60);
        assert_eq!(within(limit, &ours, || 7).unwrap(), 7);
        io::Write::write_all(&mut ours, b"x").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_peer_that_says_nothing_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let began = Instant::now();
        let got = within(Duration::from_millis(50), &ours, || (&ours).read(&mut [0]));
        assert_eq!(got.unwrap().unwrap(), 0);
        assert!(began.elapsed() >= Duration::from_millis(50));
    }
}
