//! The control connection: always there, or on its way back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use longship_framed::guest::{FromGuest, Port, Request};
use longship_framed::{FrameError, MAX_FRAME, decode, encode};
use nix::sys::epoll::EpollFlags;

use crate::backlog::Backlog;
use crate::console;
use crate::events::{Events, Token};
use crate::vsock::{dial, dialled, try_receive, try_send};

/// Between attempts to connect: at first, and at most.
const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_millis(500);

/// Answers that the card has not taken, in bytes; above, no request is read.
const MOST_UNSENT: usize = 256 << 10;

/// What came over the connection.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    /// The connection is new: say Hello.
    Connected,
    Request(Request),
}

#[derive(Debug)]
enum Link {
    Waiting(Instant),
    Connecting(OwnedFd),
    Up(OwnedFd),
}

impl Link {
    /// The connecting has succeeded.
    fn connected(&mut self) {
        *self = match std::mem::replace(self, Self::Waiting(Instant::now())) {
            Self::Connecting(fd) => Self::Up(fd),
            other => other,
        };
    }
}

/// The connection to the card's control port.
#[derive(Debug)]
pub(crate) struct Control {
    token: Token,
    link: Link,
    delay: Duration,
    failures: u32,
    received: Vec<u8>,
    unsent: Backlog,
}

impl Control {
    /// Not connected yet; [`Self::step`] connects.
    pub(crate) fn new(token: Token) -> Self {
        Self {
            token,
            link: Link::Waiting(Instant::now()),
            delay: FIRST_DELAY,
            failures: 0,
            received: Vec::new(),
            unsent: Backlog::default(),
        }
    }

    /// Names the events of this connection.
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Whether the card is there.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Whether all that was sent has left.
    pub(crate) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// When [`Self::step`] is to be called without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.link {
            Link::Waiting(until) => Some(until),
            Link::Connecting(_) | Link::Up(_) => None,
        }
    }

    /// Queues a message. Without a connection it is lost: after the next Hello
    /// the card asks again.
    pub(crate) fn send(&mut self, message: &FromGuest) {
        if !self.is_up() {
            return;
        }
        match encode(message) {
            Ok(frame) => self.unsent.push(&frame),
            Err(error) => console::error!("a message to the card: {error}"),
        }
    }

    /// Sends what was queued, as far as the card takes it.
    pub(crate) fn flush(&mut self, events: &Events) {
        let outcome = self.send_queued();
        self.settle(outcome, events);
    }

    /// Moves what can be moved; `happened` is what the events said, if any did.
    pub(crate) fn step(&mut self, happened: EpollFlags, events: &Events) -> Vec<Incoming> {
        let mut incoming = Vec::new();
        let outcome = self.advance(happened, &mut incoming);
        self.settle(outcome, events);
        incoming
    }

    /// Waits for what comes next, or starts anew.
    fn settle(&mut self, outcome: io::Result<()>, events: &Events) {
        let armed = outcome.and_then(|()| self.arm(events).map_err(io::Error::other));
        if let Err(error) = armed {
            self.lose(&error, events);
        }
    }

    fn advance(&mut self, happened: EpollFlags, incoming: &mut Vec<Incoming>) -> io::Result<()> {
        match &self.link {
            Link::Waiting(until) if Instant::now() < *until => return Ok(()),
            Link::Waiting(_) => {
                self.link = Link::Connecting(dial(Port::Control)?);
                return Ok(());
            }
            Link::Connecting(_) if happened.is_empty() => return Ok(()),
            Link::Connecting(fd) => {
                dialled(fd)?;
                self.link.connected();
                self.delay = FIRST_DELAY;
                self.failures = 0;
                incoming.push(Incoming::Connected);
            }
            Link::Up(_) => {}
        }
        self.send_queued()?;
        self.receive(incoming)
    }

    fn send_queued(&mut self) -> io::Result<()> {
        let Link::Up(fd) = &self.link else {
            return Ok(());
        };
        while !self.unsent.is_empty() {
            match try_send(fd.as_fd(), self.unsent.rest())? {
                0 => break,
                sent => self.unsent.advance(sent),
            }
        }
        Ok(())
    }

    fn receive(&mut self, incoming: &mut Vec<Incoming>) -> io::Result<()> {
        let Link::Up(fd) = &self.link else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        while self.unsent.rest().len() <= MOST_UNSENT {
            match try_receive(fd.as_fd(), &mut buffer)? {
                None => break,
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(got) => self.received.extend(buffer.iter().take(got)),
            }
            while let Some(request) = take_frame(&mut self.received).map_err(io::Error::other)? {
                incoming.push(Incoming::Request(request));
            }
        }
        Ok(())
    }

    fn arm(&self, events: &Events) -> Result<(), crate::failed::Failed> {
        match &self.link {
            Link::Waiting(_) => Ok(()),
            Link::Connecting(fd) => events.arm(fd.as_fd(), self.token, EpollFlags::EPOLLOUT),
            Link::Up(fd) => {
                let mut interest = EpollFlags::EPOLLRDHUP;
                if !self.unsent.is_empty() {
                    interest |= EpollFlags::EPOLLOUT;
                }
                if self.unsent.rest().len() <= MOST_UNSENT {
                    interest |= EpollFlags::EPOLLIN;
                }
                events.arm(fd.as_fd(), self.token, interest)
            }
        }
    }

    fn lose(&mut self, error: &io::Error, events: &Events) {
        // 1, 2, 4, 8, …: the log stays short however long the card is away.
        self.failures = self.failures.saturating_add(1);
        if self.failures.is_power_of_two() {
            let attempt = self.failures;
            console::warning!("no control connection (attempt {attempt}): {error}");
        }
        let until = Instant::now() + self.delay;
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
        match std::mem::replace(&mut self.link, Link::Waiting(until)) {
            Link::Waiting(_) => {}
            Link::Connecting(fd) | Link::Up(fd) => events.forget(&fd),
        }
        self.received = Vec::new();
        self.unsent = Backlog::default();
    }
}

/// Takes the first whole frame off `received`.
fn take_frame(received: &mut Vec<u8>) -> Result<Option<Request>, FrameError> {
    let Some(head) = received.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge(len));
    }
    let Some(body) = received.get(4..4 + len) else {
        return Ok(None);
    };
    let request = decode(body)?;
    received.drain(..4 + len);
    if received.is_empty() {
        // Most of the time there is nothing; it shall take no memory.
        *received = Vec::new();
    }
    Ok(Some(request))
}

#[cfg(test)]
mod tests {
    use longship_framed::guest::{PowerOff, Signal, request::Operation};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn requests_come_whole_however_the_stream_is_cut(
            ids in prop::collection::vec(any::<u64>(), 0..8), step in 1_usize..9,
        ) {
            let sent: Vec<Request> = ids.into_iter().map(|id| Request {
                id,
                operation: Some(Operation::Signal(Signal { process: "p".into(), signal: 9, all: false })),
            }).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|r| encode(r).unwrap()).collect();
            let (mut received, mut taken) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(step) {
                received.extend_from_slice(piece);
                while let Some(request) = take_frame(&mut received).unwrap() {
                    taken.push(request);
                }
            }
            prop_assert_eq!(taken, sent);
            prop_assert!(received.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            while let Ok(Some(_)) = take_frame(&mut bytes) {}
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_ends_the_connection() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(
            take_frame(&mut bytes),
            Err(FrameError::TooLarge(_))
        ));
    }

    #[test]
    fn a_connection_says_so_then_carries_both_ways_and_is_missed_when_it_ends() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut events = Events::new().unwrap();
        let mut control = Control::new(events.token());
        control.link = Link::Connecting(ours.into());
        assert_eq!(
            control.step(EpollFlags::EPOLLOUT, &events),
            [Incoming::Connected]
        );

        let request = Request {
            id: 4,
            operation: Some(Operation::PowerOff(PowerOff {})),
        };
        longship_framed::write_frame(&mut &theirs, &request).unwrap();
        control.send(&FromGuest::default());
        let incoming = control.step(EpollFlags::empty(), &events);
        assert_eq!(incoming, [Incoming::Request(request)]);
        assert!(control.is_flushed() && control.is_up());
        let answer = longship_framed::read_frame::<FromGuest>(&mut &theirs).unwrap();
        assert_eq!(answer, Some(FromGuest::default()));

        drop(theirs);
        assert!(control.step(EpollFlags::EPOLLIN, &events).is_empty());
        assert!(!control.is_up());
        assert!(control.deadline().is_some());
    }
}
