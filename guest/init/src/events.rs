//! Waiting for descriptors, each armed for one event at a time, so that one that
//! nobody serves just now (a pipe whose writer is gone, say) wakes nobody.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::failed::{Doing, Failed};

/// Names what an event is for. Never used twice, so a late event finds nobody.
pub(crate) type Token = u64;

const BATCH: usize = 32;

/// What has happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) token: Token,
    pub(crate) flags: EpollFlags,
}

/// An epoll(7) instance.
#[derive(Debug)]
pub(crate) struct Events {
    epoll: Epoll,
    next: Token,
}

impl Events {
    /// # Errors
    /// The kernel's.
    pub(crate) fn new() -> Result<Self, Failed> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing(|| "make an epoll")?;
        Ok(Self { epoll, next: 0 })
    }

    /// A token that nothing else has.
    pub(crate) fn token(&mut self) -> Token {
        self.next += 1;
        self.next
    }

    /// Asks for one event of `fd`: one of `interest`, an error, or a hang-up.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn arm(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: EpollFlags,
    ) -> Result<(), Failed> {
        let mut event = EpollEvent::new(interest | EpollFlags::EPOLLONESHOT, token);
        match self.epoll.modify(fd, &mut event) {
            Err(Errno::ENOENT) => self.epoll.add(fd, event),
            other => other,
        }
        .doing(|| "wait for a descriptor")
    }

    /// Forgets a descriptor before it is closed: a fork may hold it open.
    pub(crate) fn forget(&self, fd: &impl AsFd) {
        // It may never have been armed.
        let _ = self.epoll.delete(fd);
    }

    /// Waits for events, until `deadline` at most.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Vec<Event>, Failed> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self
            .epoll
            .wait(&mut events, timeout(deadline, Instant::now()))
        {
            Err(Errno::EINTR) => 0,
            other => other.doing(|| "wait for events")?,
        };
        let happened = events.iter().take(count).map(|event| Event {
            token: event.data(),
            flags: event.events(),
        });
        Ok(happened.collect())
    }
}

/// Time until the deadline, rounded up: waking early would be in vain.
fn timeout(deadline: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(deadline) = deadline else {
        return EpollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(now) + Duration::from_micros(999);
    i32::try_from(left.as_millis())
        .ok()
        .and_then(|millis| EpollTimeout::try_from(millis).ok())
        .unwrap_or(EpollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_event_comes_once_for_each_arming() {
        let mut events = Events::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let token = events.token();
        theirs.write_all(b"x").unwrap();
        let now = || Some(Instant::now());
        for _ in 0..2 {
            events
                .arm(ours.as_fd(), token, EpollFlags::EPOLLIN)
                .unwrap();
            assert_eq!(events.wait(now()).unwrap()[0].token, token);
            assert!(events.wait(now()).unwrap().is_empty());
        }
        events
            .arm(ours.as_fd(), token, EpollFlags::EPOLLIN)
            .unwrap();
        events.forget(&ours);
        assert!(events.wait(now()).unwrap().is_empty());
    }

    #[test]
    fn waiting_is_rounded_up() {
        let now = Instant::now();
        assert_eq!(timeout(None, now), EpollTimeout::NONE);
        assert_eq!(timeout(Some(now), now), EpollTimeout::ZERO);
        let soon = now + Duration::from_micros(1);
        assert_eq!(timeout(Some(soon), now), EpollTimeout::from(1_u8));
    }
}
