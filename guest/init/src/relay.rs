//! One stream of a process: its pipe or terminal on one side, a connection to
//! the card on the other. A slow side makes the other wait; at most one buffer
//! is in between.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use longship_framed::encode;
use longship_framed::guest::{Port, StreamHeader, StreamKind};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};

use crate::backlog::Backlog;
use crate::console;
use crate::events::{Events, Token};
use crate::vsock::{dial, dialled, peer_receives, try_receive, try_send};

const BUFFER: usize = 16 << 10;
/// Buffers that one stream moves before others get their turn.
const TURN: usize = 16;
/// Most that is read after the process has ended; no pipe holds more.
const LEFTOVER: usize = 1 << 20;

const FIRST_DELAY: Duration = Duration::from_millis(20);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// The stream's two sides.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Where output is read from.
    pub(crate) source: Option<OwnedFd>,
    /// Where input is written to.
    pub(crate) sink: Option<OwnedFd>,
}

#[derive(Debug)]
enum Link {
    Waiting(Instant),
    Connecting(OwnedFd),
    Up(OwnedFd),
    /// There is nothing more to say.
    Closed,
}

impl Link {
    /// The connecting has succeeded.
    fn connected(&mut self) {
        *self = match std::mem::replace(self, Self::Closed) {
            Self::Connecting(fd) => Self::Up(fd),
            other => other,
        };
    }
}

/// A stream on its way.
#[derive(Debug)]
pub(crate) struct Relay {
    token: Token,
    header: StreamHeader,
    ends: Ends,
    link: Link,
    /// Whether a lost connection is made again: what the container prints must
    /// outlive the card's restart, an exec's session does not.
    lasting: bool,
    delay: Duration,
    preamble: Backlog,
    outgoing: Backlog,
    incoming: Backlog,
    /// No more output will be read.
    output_ended: bool,
    /// The card sends no more input.
    input_ended: bool,
    /// After the process has ended: how much output is still read.
    leftover: Option<usize>,
    progress: Instant,
}

impl Relay {
    /// A stream that connects at its first [`Self::step`].
    pub(crate) fn new(token: Token, header: StreamHeader, ends: Ends, lasting: bool) -> Self {
        Self {
            token,
            header,
            link: Link::Waiting(Instant::now()),
            lasting,
            delay: FIRST_DELAY,
            preamble: Backlog::default(),
            outgoing: Backlog::default(),
            incoming: Backlog::default(),
            output_ended: ends.source.is_none(),
            input_ended: false,
            ends,
            leftover: None,
            progress: Instant::now(),
        }
    }

    /// Whether the card has had all that it will get.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.link, Link::Closed)
    }

    /// Whether nothing is left to do: it is finished, and nobody writes any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_finished() && self.ends.source.is_none()
    }

    /// When bytes last moved.
    pub(crate) fn progress(&self) -> Instant {
        self.progress
    }

    /// When [`Self::step`] is to be called without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.link {
            Link::Waiting(until) => Some(until),
            _ => None,
        }
    }

    /// The process's terminal, where this is one.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let is_terminal = self.header.kind() == StreamKind::Tty;
        let source = self.ends.source.as_ref().filter(|_| is_terminal)?;
        Some(source.as_fd())
    }

    /// The process has ended: what it has written is read, what others write on
    /// is thrown away.
    pub(crate) fn drain(&mut self, events: &Events) {
        self.leftover = Some(LEFTOVER);
        self.progress = Instant::now();
        self.close_sink(events);
    }

    /// Gives the card up.
    pub(crate) fn abandon(&mut self, events: &Events) {
        self.close_link(events);
        self.close_sink(events);
    }

    /// Moves what can be moved; `happened` is what the events said, if any did.
    pub(crate) fn step(&mut self, happened: EpollFlags, events: &Events) {
        if let Err(error) = self.advance(happened, events) {
            self.lose(&error, events);
        }
        if self.is_finished() {
            self.discard(events);
        }
        if let Err(failed) = self.arm(events) {
            console::warning!("{}: {failed}", self.header.process);
            self.abandon(events);
            self.close_source(events);
        }
    }

    fn advance(&mut self, happened: EpollFlags, events: &Events) -> io::Result<()> {
        match &self.link {
            Link::Closed => return Ok(()),
            Link::Waiting(until) if Instant::now() < *until => return Ok(()),
            Link::Waiting(_) => {
                self.link = Link::Connecting(dial(Port::Stream)?);
                return Ok(());
            }
            Link::Connecting(_) if happened.is_empty() => return Ok(()),
            Link::Connecting(fd) => {
                dialled(fd)?;
                self.link.connected();
                self.delay = FIRST_DELAY;
                self.preamble = Backlog::default();
                self.preamble
                    .push(&encode(&self.header).map_err(io::Error::other)?);
            }
            Link::Up(fd) => {
                let gone = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                if happened.intersects(gone) && !peer_receives(fd) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                // An output's reader says at once that it will not write.
                if self.ends.sink.is_none() && happened.intersects(gone) {
                    self.input_ended = true;
                }
            }
        }
        for _ in 0..TURN {
            let moved = self.send_output(events)? | self.receive_input(events)?;
            if !moved {
                break;
            }
            self.progress = Instant::now();
        }
        self.finish(events);
        Ok(())
    }

    /// Process → card.
    fn send_output(&mut self, events: &Events) -> io::Result<bool> {
        let Link::Up(fd) = &self.link else {
            return Ok(false);
        };
        let mut moved = false;
        for backlog in [&mut self.preamble, &mut self.outgoing] {
            while !backlog.is_empty() {
                match try_send(fd.as_fd(), backlog.rest())? {
                    0 => return Ok(moved),
                    sent => backlog.advance(sent),
                }
                moved = true;
            }
        }
        if self.output_ended {
            return Ok(moved);
        }
        let mut buffer = [0; BUFFER];
        let room = self.leftover.unwrap_or(BUFFER).min(BUFFER);
        let outcome = match (&self.ends.source, buffer.get_mut(..room)) {
            (Some(source), Some(buffer)) => read(source, buffer),
            _ => Ok(0),
        };
        match outcome {
            Ok(got) if got > 0 => {
                self.leftover = self.leftover.map(|left| left.saturating_sub(got));
                let output = buffer.get(..got).unwrap_or_default();
                let sent = try_send(fd.as_fd(), output)?;
                self.outgoing.push(output.get(sent..).unwrap_or_default());
                moved = true;
            }
            Err(Errno::EAGAIN | Errno::EINTR) if self.leftover.is_none() => {}
            // All has been read, though others may write on.
            Err(Errno::EAGAIN | Errno::EINTR) => self.output_ended = true,
            // A terminal without processes says EIO.
            Ok(_) | Err(_) => {
                self.output_ended = true;
                if self.leftover != Some(0) {
                    self.close_source(events);
                }
            }
        }
        Ok(moved)
    }

    /// Card → process.
    fn receive_input(&mut self, events: &Events) -> io::Result<bool> {
        let Link::Up(fd) = &self.link else {
            return Ok(false);
        };
        let Some(sink) = &self.ends.sink else {
            return Ok(false);
        };
        let mut moved = false;
        if self.incoming.is_empty() && !self.input_ended {
            let mut buffer = [0; BUFFER];
            match try_receive(fd.as_fd(), &mut buffer)? {
                None => {}
                Some(0) if !peer_receives(fd) => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Some(0) => self.input_ended = true,
                Some(got) => {
                    self.incoming.push(buffer.get(..got).unwrap_or_default());
                    moved = true;
                }
            }
        }
        let mut refused = false;
        while !self.incoming.is_empty() {
            match write(sink, self.incoming.rest()) {
                Ok(taken) => self.incoming.advance(taken),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    refused = true;
                    break;
                }
            }
            moved = true;
        }
        if refused || (self.input_ended && self.incoming.is_empty()) {
            self.close_sink(events);
        }
        Ok(moved)
    }

    /// Ends the connection when there is nothing more to say.
    fn finish(&mut self, events: &Events) {
        let said = self.output_ended && self.outgoing.is_empty() && self.preamble.is_empty();
        let only_input = self.header.kind() == StreamKind::Stdin;
        if said && (!only_input || self.ends.sink.is_none()) {
            if let Link::Up(fd) = &self.link {
                // The peer may be gone already, which is as good.
                let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
            }
            self.close_link(events);
            self.close_sink(events);
        }
    }

    /// The connection is lost, or could not be made.
    fn lose(&mut self, error: &io::Error, events: &Events) {
        let name = &self.header.process;
        let kind = self.header.kind();
        let said = self.output_ended && self.outgoing.is_empty();
        if self.lasting && kind != StreamKind::Stdin && !said {
            let until = Instant::now() + self.delay;
            self.delay = (self.delay * 2).min(LONGEST_DELAY);
            self.forget_link(events);
            self.link = Link::Waiting(until);
            self.input_ended = false;
        } else {
            console::notice!("{kind:?} of {name}: {error}");
            self.abandon(events);
            // Nobody will ever read it: the process is to know.
            self.close_source(events);
        }
    }

    /// Reads what nobody wants, so that who writes it need not wait or end.
    fn discard(&mut self, events: &Events) {
        let Some(source) = &self.ends.source else {
            return;
        };
        let mut buffer = [0; BUFFER];
        for _ in 0..TURN {
            match read(source, &mut buffer) {
                Ok(1..) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Ok(_) | Err(_) => return self.close_source(events),
            }
        }
    }

    fn arm(&self, events: &Events) -> Result<(), crate::failed::Failed> {
        let Self { ends, token, .. } = self;
        let unsent = !self.outgoing.is_empty() || !self.preamble.is_empty();
        let up = matches!(self.link, Link::Up(_));
        match &self.link {
            Link::Waiting(_) | Link::Closed => {}
            Link::Connecting(fd) => events.arm(fd.as_fd(), *token, EpollFlags::EPOLLOUT)?,
            Link::Up(fd) => {
                let mut interest = EpollFlags::empty();
                if unsent {
                    interest |= EpollFlags::EPOLLOUT;
                }
                if !self.input_ended && ends.sink.is_some() && self.incoming.is_empty() {
                    interest |= EpollFlags::EPOLLIN;
                }
                if !self.input_ended {
                    interest |= EpollFlags::EPOLLRDHUP;
                }
                events.arm(fd.as_fd(), *token, interest)?;
            }
        }
        if let Some(source) = &ends.source
            && (self.is_finished() || (up && !unsent && !self.output_ended))
        {
            events.arm(source.as_fd(), *token, EpollFlags::EPOLLIN)?;
        }
        if let Some(sink) = &ends.sink
            && !self.incoming.is_empty()
        {
            events.arm(sink.as_fd(), *token, EpollFlags::EPOLLOUT)?;
        }
        Ok(())
    }

    fn close_source(&mut self, events: &Events) {
        if let Some(source) = self.ends.source.take() {
            events.forget(&source);
        }
        self.output_ended = true;
    }

    fn close_sink(&mut self, events: &Events) {
        if let Some(sink) = self.ends.sink.take() {
            events.forget(&sink);
        }
        self.incoming = Backlog::default();
    }

    fn forget_link(&self, events: &Events) {
        match &self.link {
            Link::Connecting(fd) | Link::Up(fd) => events.forget(fd),
            Link::Waiting(_) | Link::Closed => {}
        }
    }

    fn close_link(&mut self, events: &Events) {
        self.forget_link(events);
        self.link = Link::Closed;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown as NetShutdown;
    use std::os::unix::net::UnixStream;

    use longship_framed::read_frame;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    struct Fixture {
        events: Events,
        relay: Relay,
        /// The process's end.
        process: OwnedFd,
        card: UnixStream,
    }

    impl Fixture {
        fn new(kind: StreamKind, lasting: bool) -> Self {
            let mut events = Events::new().unwrap();
            let (read, write) = pipe2(OFlag::O_NONBLOCK).unwrap();
            let (ends, process) = match kind {
                StreamKind::Stdin => (
                    Ends {
                        source: None,
                        sink: Some(write),
                    },
                    read,
                ),
                _ => (
                    Ends {
                        source: Some(read),
                        sink: None,
                    },
                    write,
                ),
            };
            let header = StreamHeader {
                process: "p".into(),
                kind: kind.into(),
            };
            let mut relay = Relay::new(events.token(), header, ends, lasting);
            let (ours, card) = UnixStream::pair().unwrap();
            relay.link = Link::Connecting(ours.into());
            relay.step(EpollFlags::EPOLLOUT, &events);
            let header = read_frame::<StreamHeader>(&mut &card).unwrap().unwrap();
            assert_eq!((header.process.as_str(), header.kind()), ("p", kind));
            Self {
                events,
                relay,
                process,
                card,
            }
        }

        fn step(&mut self) {
            self.relay.step(EpollFlags::empty(), &self.events);
        }

        fn say(&self, bytes: &[u8]) -> usize {
            write(&self.process, bytes).unwrap_or(0)
        }

        fn heard(&mut self) -> Vec<u8> {
            self.card.set_nonblocking(true).unwrap();
            let mut heard = Vec::new();
            // Would block, or the end: both leave what came before.
            let _ = self.card.read_to_end(&mut heard);
            heard
        }
    }

    #[test]
    fn output_arrives_and_ends_with_its_writer() {
        let mut f = Fixture::new(StreamKind::Stdout, false);
        f.say(b"hello");
        f.step();
        assert!(!f.relay.is_finished());
        f.process = tempfile::tempfile().unwrap().into();
        f.step();
        assert!(f.relay.is_gone());
        let mut all = String::new();
        f.card.read_to_string(&mut all).unwrap();
        assert_eq!(all, "hello");
    }

    #[test]
    fn a_reader_that_stops_makes_the_process_wait_and_nothing_is_lost() {
        let mut f = Fixture::new(StreamKind::Stdout, false);
        let mut said = Vec::new();
        for i in 0_u32.. {
            let text = [u8::try_from(i % 251).unwrap(); 4096];
            f.step();
            match f.say(&text) {
                0 => break,
                n => said.extend_from_slice(&text[..n]),
            }
            assert!(said.len() < 64 << 20, "unbounded");
        }
        assert!(f.relay.outgoing.rest().len() <= BUFFER);
        let mut heard = Vec::new();
        while heard.len() < said.len() {
            let more = f.heard();
            assert!(!more.is_empty() || heard.len() < said.len());
            heard.extend(more);
            f.step();
        }
        assert!(heard == said);
    }

    #[test]
    fn after_the_end_what_was_written_is_sent_though_others_hold_the_pipe() {
        let mut f = Fixture::new(StreamKind::Stderr, false);
        f.say(&[7; 50_000]);
        f.relay.drain(&f.events);
        f.step();
        assert!(f.relay.is_finished() && !f.relay.is_gone());
        assert_eq!(f.heard().len(), 50_000);
        // A child in the background writes on and is not stopped.
        for _ in 0..100 {
            assert_eq!(f.say(&[1; 4096]), 4096);
            f.step();
        }
        f.process = tempfile::tempfile().unwrap().into();
        f.step();
        assert!(f.relay.is_gone());
    }

    #[test]
    fn input_arrives_and_its_end_is_the_process_s_end_of_file() {
        let mut f = Fixture::new(StreamKind::Stdin, false);
        f.card.write_all(b"typed").unwrap();
        f.card.shutdown(NetShutdown::Write).unwrap();
        f.step();
        let mut buffer = [0; 16];
        assert_eq!(read(&f.process, &mut buffer).unwrap(), 5);
        f.step();
        assert_eq!(read(&f.process, &mut buffer).unwrap(), 0);
        assert!(f.relay.is_gone());
    }

    #[test]
    fn a_reader_that_will_not_write_is_still_a_reader() {
        let mut f = Fixture::new(StreamKind::Stdout, false);
        f.card.shutdown(NetShutdown::Write).unwrap();
        f.relay.step(EpollFlags::EPOLLRDHUP, &f.events);
        f.say(b"x");
        f.step();
        assert_eq!(f.heard(), b"x");
    }

    #[test]
    fn an_exec_whose_card_is_gone_loses_its_output() {
        let mut f = Fixture::new(StreamKind::Stdout, false);
        f.card = UnixStream::pair().unwrap().0;
        f.relay.step(EpollFlags::EPOLLHUP, &f.events);
        assert!(f.relay.is_gone());
        assert_eq!(write(&f.process, b"x"), Err(Errno::EPIPE));
    }

    #[test]
    fn a_container_whose_card_is_gone_waits_for_it() {
        let mut f = Fixture::new(StreamKind::Stdout, true);
        f.card = UnixStream::pair().unwrap().0;
        f.say(b"kept");
        f.relay.step(EpollFlags::EPOLLHUP, &f.events);
        assert!(!f.relay.is_finished());
        assert!(f.relay.deadline().is_some());
        let (ours, card) = UnixStream::pair().unwrap();
        (f.relay.link, f.card) = (Link::Connecting(ours.into()), card);
        f.relay.step(EpollFlags::EPOLLOUT, &f.events);
        read_frame::<StreamHeader>(&mut &f.card).unwrap().unwrap();
        assert_eq!(f.heard(), b"kept");
    }
}
