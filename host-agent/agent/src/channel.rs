//! The agent's end of the channel to one VMM (`proto/longship/vmm/v1`).

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use longship_framed::error::Failure;
use longship_framed::vmm::{Exited, Message, Reply, Request, Step, message, request::Operation};
use longship_framed::{FrameError, MAX_FRAME, decode, send_frame_with_fds};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes read at once; what VMMs say is short.
const CHUNK: usize = 1024;

/// What went wrong between agent and VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The request could not be sent.
    #[error("send to the VMM: {0}")]
    Send(#[from] FrameError),
    /// The VMM closed the channel, most often because it has ended.
    #[error("the VMM closed its channel")]
    Closed,
    /// No answer in time.
    #[error("the VMM did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The VMM answered another request than the one it was asked.
    #[error("the VMM answered out of order")]
    OutOfOrder,
    /// The VMM refused.
    #[error("{0}")]
    Refused(Failure),
}

/// What a VMM has said without being asked.
#[derive(Debug, Default)]
struct Heard {
    parked: bool,
    /// Microseconds since the Unix epoch; taken by who is told.
    alive_us: Option<i64>,
    exited: Option<Exited>,
}

/// Requests are answered in order. What the VMM says unasked is kept until it is asked
/// for. All of it is read by who waits, so that a channel nobody waits at costs a
/// socket and no more.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<UnixStream>,
    /// The beginning of a frame, or frames, not looked at yet.
    unread: Vec<u8>,
    last_id: u64,
    heard: Heard,
}

/// A request under way.
#[derive(Debug)]
#[must_use = "its answer has to be waited for"]
pub(crate) struct Asked(u64);

impl Channel {
    /// Over `socket`; needs a tokio runtime.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        // Requests are small and few, so that sending never waits for a VMM that
        // reads; one that does not read gets an error instead.
        socket.set_nonblocking(true)?;
        // SAFETY: a UnixStream is open, always the same, and closed only when dropped,
        // which the AsyncFd that owns it outlives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self {
            socket: socket?,
            unread: Vec::new(),
            last_id: 0,
            heard: Heard::default(),
        })
    }

    /// Asks and waits for the answer; gives the steps that the VMM measured.
    ///
    /// # Errors
    /// [`ChannelError`]; but for `Refused` the channel is of no use afterwards.
    pub(crate) async fn call(
        &mut self,
        operation: Operation,
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Vec<Step>, ChannelError> {
        let asked = self.ask(operation, fds)?;
        self.answer(asked, patience).await
    }

    /// Asks; the answers of several requests have to be waited for in their order.
    ///
    /// # Errors
    /// [`ChannelError::Send`].
    pub(crate) fn ask(
        &mut self,
        operation: Operation,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Asked, ChannelError> {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            operation: Some(operation),
        };
        send_frame_with_fds(self.socket.get_ref(), &request, fds)?;
        Ok(Asked(self.last_id))
    }

    /// Waits for the answer to a request.
    ///
    /// # Errors
    /// As [`Channel::call`].
    pub(crate) async fn answer(
        &mut self,
        Asked(id): Asked,
        patience: Duration,
    ) -> Result<Vec<Step>, ChannelError> {
        let reply = tokio::time::timeout(patience, async {
            loop {
                match self.hear().await {
                    Some(Some(reply)) => return Ok(reply),
                    Some(None) => {}
                    None => return Err(ChannelError::Closed),
                }
            }
        });
        let reply = reply.await.map_err(|_| ChannelError::Timeout(patience))??;
        if reply.id != id {
            return Err(ChannelError::OutOfOrder);
        }
        match reply.failure {
            Some(failure) => Err(ChannelError::Refused(failure)),
            None => Ok(reply.steps),
        }
    }

    /// Waits until the guest has parked.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] where it ends instead, [`ChannelError::Timeout`].
    pub(crate) async fn parked(&mut self, patience: Duration) -> Result<(), ChannelError> {
        let parked = tokio::time::timeout(patience, async {
            while !self.heard.parked {
                if self.heard.exited.is_some() || self.hear().await.is_none() {
                    return Err(ChannelError::Closed);
                }
            }
            Ok(())
        });
        parked.await.map_err(|_| ChannelError::Timeout(patience))?
    }

    /// Waits until the guest does its first act, and gives the time of that once; `None`
    /// where the VMM says that its guest has ended, or closes. Cancel-safe.
    pub(crate) async fn alive(&mut self) -> Option<i64> {
        loop {
            if let Some(alive_us) = self.heard.alive_us.take() {
                return Some(alive_us);
            }
            if self.heard.exited.is_some() || self.hear().await.is_none() {
                return None;
            }
        }
    }

    /// What the VMM said about its end, if it did; it gets a moment for that.
    pub(crate) async fn last_words(&mut self) -> Option<Exited> {
        let end = async { while self.heard.exited.is_none() && self.hear().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(200), end).await;
        self.heard.exited.take()
    }

    /// Reads one message and keeps it, but for an answer, which it gives; `None` at the
    /// channel's end. Cancel-safe.
    async fn hear(&mut self) -> Option<Option<Reply>> {
        match self.next().await {
            Ok(Some(said)) => match said.message {
                Some(message::Message::Reply(reply)) => return Some(Some(reply)),
                Some(message::Message::Exited(exited)) => self.heard.exited = Some(exited),
                Some(message::Message::Parked(_)) => self.heard.parked = true,
                Some(message::Message::Alive(alive)) => self.heard.alive_us = Some(alive.time_us),
                // Of a newer VMM.
                None => {}
            },
            Ok(None) => return None,
            Err(error) => {
                tracing::debug!("a VMM's channel broke: {error}");
                return None;
            }
        }
        Some(None)
    }

    /// Cancel-safe: what has been read of a frame is kept.
    async fn next(&mut self) -> Result<Option<Message>, FrameError> {
        loop {
            if let Some(message) = take_message(&mut self.unread)? {
                return Ok(Some(message));
            }
            let Self { socket, unread, .. } = self;
            let mut ready = socket.readable().await?;
            let read = ready.try_io(|socket| {
                let mut chunk = [0; CHUNK];
                let n = socket.get_ref().read(&mut chunk)?;
                unread.extend(chunk.iter().take(n));
                Ok(n)
            });
            match read {
                Ok(Ok(0)) => return Ok(None),
                Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error.into());
                }
                // Read, or not readable after all.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// Takes the first frame out of `unread`, where it is complete.
fn take_message(unread: &mut Vec<u8>) -> Result<Option<Message>, FrameError> {
    let Some(head) = unread.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge(len));
    }
    let Some(body) = unread.get(4..4 + len) else {
        return Ok(None);
    };
    let message = decode(body)?;
    unread.drain(..4 + len);
    if unread.is_empty() {
        // There is one of these for every sandbox.
        *unread = Vec::new();
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use longship_framed::vmm::{Alive, Boot, GetStats, Parked, exited::Cause};
    use longship_framed::{encode, read_frame, write_frame};

    use super::*;

    const SHORT: Duration = Duration::from_secs(5);

    /// A VMM's end of a channel, answered by `script` in a thread.
    fn peer(script: impl FnOnce(UnixStream) + Send + 'static) -> Channel {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || script(theirs));
        Channel::new(ours).unwrap()
    }

    fn reply(id: u64, failure: Option<Failure>) -> Message {
        Message {
            message: Some(message::Message::Reply(Reply {
                id,
                failure,
                ..Reply::default()
            })),
        }
    }

    fn exited(text: &str) -> Message {
        Message {
            message: Some(message::Message::Exited(Exited {
                cause: Cause::GuestReset.into(),
                message: text.into(),
            })),
        }
    }

    #[tokio::test]
    async fn answers_and_refusals_come_back_and_the_end_is_remembered() {
        let mut channel = peer(|mut vmm| {
            let first: Request = read_frame(&mut vmm).unwrap().unwrap();
            write_frame(&mut vmm, &reply(first.id, None)).unwrap();
            let second: Request = read_frame(&mut vmm).unwrap().unwrap();
            write_frame(&mut vmm, &exited("reset")).unwrap();
            let no = Some(Failure::conflict("booted already"));
            write_frame(&mut vmm, &reply(second.id, no)).unwrap();
        });
        let boot = || Operation::Boot(Boot {});
        channel.call(boot(), &[], SHORT).await.unwrap();
        let refused = channel.call(boot(), &[], SHORT).await.unwrap_err();
        assert_eq!(refused.to_string(), "booted already");
        assert_eq!(channel.last_words().await.unwrap().message, "reset");
    }

    fn said(message: message::Message) -> Message {
        Message {
            message: Some(message),
        }
    }

    #[tokio::test]
    async fn what_is_said_unasked_is_kept_until_somebody_wants_it() {
        let (_keep, kept) = std::sync::mpsc::channel::<()>();
        let mut channel = peer(move |mut vmm| {
            let mut say = |message| write_frame(&mut vmm, &message).unwrap();
            say(said(message::Message::Alive(Alive { time_us: 7 })));
            say(said(message::Message::Parked(Parked {})));
            let boot: Request = read_frame(&mut vmm).unwrap().unwrap();
            write_frame(&mut vmm, &reply(boot.id, None)).unwrap();
            let _ = kept.recv();
        });
        let boot = Operation::Boot(Boot {});
        channel.call(boot, &[], SHORT).await.unwrap();
        channel.parked(SHORT).await.unwrap();
        assert_eq!(channel.alive().await, Some(7));
        let again = tokio::time::timeout(Duration::from_millis(20), channel.alive()).await;
        assert!(again.is_err(), "said once, told once");
    }

    #[tokio::test]
    async fn a_frame_that_comes_in_pieces_survives_who_stops_waiting() {
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let mut channel = peer(move |mut vmm| {
            let frame = encode(&said(message::Message::Alive(Alive { time_us: 9 }))).unwrap();
            for byte in frame {
                vmm.write_all(&[byte]).unwrap();
                wait.recv().unwrap();
            }
        });
        for _ in 0..3 {
            let waiting = tokio::time::timeout(Duration::from_millis(5), channel.alive());
            assert!(waiting.await.is_err());
            go_on.send(()).unwrap();
        }
        while go_on.send(()).is_ok() {}
        assert_eq!(channel.alive().await, Some(9));
        assert_eq!(channel.unread.capacity(), 0);
    }

    #[tokio::test]
    async fn a_guest_that_ends_does_not_park() {
        let mut channel = peer(|mut vmm| {
            write_frame(&mut vmm, &exited("panic")).unwrap();
        });
        let ended = channel.parked(SHORT).await;
        assert!(matches!(ended, Err(ChannelError::Closed)));
        assert_eq!(channel.last_words().await.unwrap().message, "panic");
        let (_keep, kept) = std::sync::mpsc::channel::<()>();
        let mut quiet = peer(move |_vmm| {
            let _ = kept.recv();
        });
        let ended = quiet.parked(Duration::from_millis(20)).await;
        assert!(matches!(ended, Err(ChannelError::Timeout(_))));
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_ends_the_channel() {
        let mut channel = peer(|mut vmm| {
            vmm.write_all(&u32::MAX.to_le_bytes()).unwrap();
            let _ = vmm.read(&mut [0]);
        });
        assert_eq!(channel.alive().await, None);
    }

    #[tokio::test]
    async fn several_requests_are_answered_in_their_order() {
        let mut channel = peer(|mut vmm| {
            for _ in 0..3 {
                let asked: Request = read_frame(&mut vmm).unwrap().unwrap();
                let no = (asked.id == 2).then(|| Failure::conflict("not this one"));
                write_frame(&mut vmm, &reply(asked.id, no)).unwrap();
            }
        });
        let stats = || Operation::Stats(GetStats {});
        let asked: Vec<Asked> = (0..3).map(|_| channel.ask(stats(), &[]).unwrap()).collect();
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(channel.answer(asked, SHORT).await.is_ok());
        }
        assert_eq!(answers, [true, false, true]);
    }

    #[tokio::test]
    async fn a_vmm_that_ends_keeps_quiet_or_answers_wrongly_is_an_error() {
        let stats = || Operation::Stats(GetStats {});
        let mut gone = peer(drop);
        let error = gone.call(stats(), &[], SHORT).await.unwrap_err();
        assert!(
            matches!(error, ChannelError::Closed | ChannelError::Send(_)),
            "{error}"
        );

        let (_keep, kept) = std::sync::mpsc::channel::<()>();
        let mut quiet = peer(move |_vmm| {
            let _ = kept.recv();
        });
        let error = quiet.call(stats(), &[], Duration::from_millis(20)).await;
        assert!(matches!(error, Err(ChannelError::Timeout(_))));

        let mut wrong = peer(|mut vmm| {
            let _: Option<Request> = read_frame(&mut vmm).unwrap();
            write_frame(&mut vmm, &reply(99, None)).unwrap();
        });
        let error = wrong.call(stats(), &[], SHORT).await;
        assert!(matches!(error, Err(ChannelError::OutOfOrder)));
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_read_cannot_block_the_agent() {
        let (_keep, kept) = std::sync::mpsc::channel::<()>();
        let mut channel = peer(move |_vmm| {
            let _ = kept.recv();
        });
        // Without a reader the socket fills up at some time.
        for _ in 0..100_000 {
            let call = channel.call(Operation::Boot(Boot {}), &[], Duration::from_micros(1));
            match call.await {
                Err(ChannelError::Timeout(_)) => {}
                Err(ChannelError::Send(_)) => return,
                other => panic!("{other:?}"),
            }
        }
        panic!("the socket never filled up");
    }
}
