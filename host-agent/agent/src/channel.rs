//! The agent's end of the channel to one VMM (`proto/longship/vmm/v1`).

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use longship_framed::error::Failure;
use longship_framed::vmm::{Exited, Message, Request, Step, message, request::Operation};
use longship_framed::{FrameError, read_frame_async, send_frame_with_fds};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A VMM that says more than this without being asked has to wait.
const UNREAD: usize = 8;

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

/// One request at a time, answered in order. What the VMM says unasked, that the
/// guest has ended, is kept.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: UnixStream,
    messages: mpsc::Receiver<Message>,
    reader: JoinHandle<()>,
    last_id: u64,
    exited: Option<Exited>,
}

impl Channel {
    /// Over `socket`; needs a tokio runtime.
    pub(crate) fn new(socket: UnixStream) -> std::io::Result<Self> {
        // Requests are small and asked one at a time, so that sending never waits
        // for a VMM that reads; one that does not read gets an error instead.
        socket.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(socket.try_clone()?)?;
        let (sender, messages) = mpsc::channel(UNREAD);
        let reader = tokio::spawn(async move {
            loop {
                match read_frame_async::<Message>(&mut stream).await {
                    Ok(Some(message)) => {
                        if sender.send(message).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!("a VMM's channel broke: {error}");
                        return;
                    }
                }
            }
        });
        Ok(Self {
            socket,
            messages,
            reader,
            last_id: 0,
            exited: None,
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
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            operation: Some(operation),
        };
        send_frame_with_fds(&self.socket, &request, fds)?;
        let reply = async {
            loop {
                match self.messages.recv().await.and_then(|said| said.message) {
                    Some(message::Message::Reply(reply)) => return Ok(reply),
                    Some(message::Message::Exited(exited)) => self.exited = Some(exited),
                    None => return Err(ChannelError::Closed),
                }
            }
        };
        let reply = tokio::time::timeout(patience, reply)
            .await
            .map_err(|_| ChannelError::Timeout(patience))??;
        if reply.id != self.last_id {
            return Err(ChannelError::OutOfOrder);
        }
        match reply.failure {
            Some(failure) => Err(ChannelError::Refused(failure)),
            None => Ok(reply.steps),
        }
    }

    /// Waits until the VMM says that its guest has ended, or closes. Cancel-safe.
    pub(crate) async fn over(&mut self) {
        while self.exited.is_none() {
            match self.messages.recv().await.and_then(|said| said.message) {
                Some(message::Message::Exited(exited)) => self.exited = Some(exited),
                Some(message::Message::Reply(_)) => {}
                None => return,
            }
        }
    }

    /// What the VMM said about its end, if it did; it gets a moment for that.
    pub(crate) async fn last_words(&mut self) -> Option<Exited> {
        let _ = tokio::time::timeout(Duration::from_millis(200), self.over()).await;
        self.exited.take()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[cfg(test)]
mod tests {
    use longship_framed::vmm::{Boot, GetStats, Reply, exited::Cause};
    use longship_framed::{read_frame, write_frame};

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
