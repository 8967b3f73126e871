//! A stream of answers that the server can end with a reason at any time.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;

/// First what is known already, then what comes, until either side ends it.
#[derive(Debug)]
pub(crate) struct Ending<T> {
    first: VecDeque<T>,
    queue: mpsc::Receiver<T>,
    end: Option<oneshot::Receiver<Status>>,
}

impl<T> Ending<T> {
    pub(crate) fn new(
        first: impl Into<VecDeque<T>>,
        queue: mpsc::Receiver<T>,
        end: oneshot::Receiver<Status>,
    ) -> Self {
        Self {
            first: first.into(),
            queue,
            end: Some(end),
        }
    }
}

impl<T: Unpin> Stream for Ending<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // The end goes before what is queued: a fenced card must not act on it.
        let Some(end) = &mut this.end else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(ended) = Pin::new(end).poll(cx) {
            this.end = None;
            return Poll::Ready(ended.ok().map(Err));
        }
        if let Some(message) = this.first.pop_front() {
            return Poll::Ready(Some(Ok(message)));
        }
        this.queue.poll_recv(cx).map(|message| message.map(Ok))
    }
}
