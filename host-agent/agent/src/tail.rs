//! The last of what a process writes, and no more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// Bytes read at once.
const CHUNK: usize = 2048;

/// The reader's end of a pipe of which the last bytes are kept. What a guest
/// prints is read at once, so that it never waits, and costs the host at most the
/// limit.
#[derive(Debug)]
pub(crate) struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    /// A pipe of which the last `limit` bytes are kept, and its writer's end.
    pub(crate) fn new(limit: usize) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&read)?;
        let source = pipe::Receiver::from_owned_fd(read)?;
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let keep = Arc::clone(&kept);
        let reader = tokio::spawn(async move {
            while source.readable().await.is_ok() {
                // On the stack between two waits, not in the task, of which every
                // sandbox has one for as long as it lives.
                let mut chunk = [0; CHUNK];
                match source.try_read(&mut chunk) {
                    Ok(n @ 1..) => {
                        let mut keep = keep.lock().unwrap_or_else(PoisonError::into_inner);
                        keep.extend(chunk.iter().take(n));
                        let excess = keep.len().saturating_sub(limit);
                        keep.drain(..excess);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                }
            }
        });
        Ok((Self { kept, reader }, write))
    }

    /// What was kept, once the writer has closed; it gets a moment for that.
    pub(crate) async fn finish(mut self) -> String {
        let patience = Duration::from_millis(200);
        if tokio::time::timeout(patience, &mut self.reader)
            .await
            .is_err()
        {
            self.reader.abort();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn only_the_last_bytes_are_kept_and_the_writer_never_waits() {
        let (tail, write) = Tail::new(10).unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            let mut write = std::fs::File::from(write);
            for _ in 0..10_000 {
                write.write_all(b"many bytes of noise\n").unwrap();
            }
            write.write_all(b"the end\n").unwrap();
        });
        writing.await.unwrap();
        assert_eq!(tail.finish().await, "e\nthe end\n");
    }

    #[tokio::test]
    async fn a_writer_that_never_closes_does_not_hold_up_the_end() {
        let (tail, write) = Tail::new(10).unwrap();
        let mut write = std::fs::File::from(write);
        write.write_all(b"\xffhello").unwrap();
        assert_eq!(tail.finish().await, "\u{fffd}hello");
    }
}
