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
        match this.queue.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            // Nothing more comes, but for the reason: its sender goes last.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn the_reason_comes_though_the_queue_has_closed_before() {
        let (queue, messages) = mpsc::channel(4);
        let (end, ended) = oneshot::channel();
        let mut stream = Ending::new(vec![1], messages, ended);
        queue.send(2).await.unwrap();
        drop(queue);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap(), 2);
        let reason = tokio::spawn(async move { stream.next().await.unwrap().unwrap_err() });
        tokio::task::yield_now().await;
        end.send(Status::unavailable("over")).unwrap();
        assert_eq!(reason.await.unwrap().message(), "over");
    }

    #[tokio::test]
    async fn without_a_reason_it_just_ends() {
        let (queue, messages) = mpsc::channel::<u8>(4);
        let (end, ended) = oneshot::channel::<Status>();
        drop((queue, end));
        assert!(Ending::new(vec![], messages, ended).next().await.is_none());
    }
}
