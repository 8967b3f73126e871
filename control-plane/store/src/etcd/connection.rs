//! The connection to etcd: to one member at a time, to the next where it fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::error::StoreError;

/// How long a read is tried before its caller hears that etcd is away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(3);
/// The wait after the first failed attempt; it doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// The longest wait between attempts.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How often a silent connection is asked whether it is still there, and for how long.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Ways to all members.
#[derive(Debug)]
pub(crate) struct Connection {
    channels: Vec<Channel>,
    /// The one that is used now.
    current: AtomicUsize,
}

impl Connection {
    /// Does not connect yet.
    pub(crate) fn new(endpoints: &[String]) -> Result<Self, StoreError> {
        let channel = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone());
            let endpoint =
                endpoint.map_err(|_| StoreError::backend(format!("`{address}` is no address")))?;
            let endpoint = endpoint
                .connect_timeout(ATTEMPT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true);
            Ok(endpoint.connect_lazy())
        };
        let channels: Result<Vec<Channel>, StoreError> = endpoints.iter().map(channel).collect();
        let channels = channels?;
        if channels.is_empty() {
            return Err(StoreError::backend("no etcd endpoint is given"));
        }
        Ok(Self {
            channels,
            current: AtomicUsize::new(0),
        })
    }

    /// The way to use now, and its number for [`Connection::failed`].
    pub(crate) fn channel(&self) -> (usize, Channel) {
        let at = self.current.load(Ordering::Relaxed);
        // Never empty, and the remainder is in bounds.
        let channel = self.channels.iter().cycle().nth(at % self.channels.len());
        (at, channel.unwrap_or(&self.channels[0]).clone())
    }

    /// That way does not work: the next one is tried.
    pub(crate) fn failed(&self, at: usize) {
        let next = at.wrapping_add(1);
        let _ = self
            .current
            .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes a call that may be repeated, until it is answered or `patience` is over.
    ///
    /// # Errors
    /// etcd's refusal, or the last failure on the way to it.
    pub(crate) async fn call<T, F>(
        &self,
        patience: Duration,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let (at, channel) = self.channel();
            let status = match attempt(call(channel)).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if !transient(&status) {
                return Err(status);
            }
            self.failed(at);
            let wait = backoff.next();
            if Instant::now() + wait >= until {
                return Err(status);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// One attempt, for a bounded time.
pub(crate) async fn attempt<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let answered = tokio::time::timeout(ATTEMPT, call).await;
    let answered = answered.map_err(|_| Status::deadline_exceeded("etcd does not answer"))?;
    answered.map(Response::into_inner)
}

/// The waits between attempts.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(RETRY_MIN)
    }
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(RETRY_MAX);
        wait
    }
}

/// Whether another attempt, perhaps with another member, may go better.
pub(crate) fn transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::Internal => true,
        // "mvcc: database space exceeded" has the same code, and does not pass.
        Code::ResourceExhausted => status.message().contains("too many requests"),
        _ => false,
    }
}

/// What the store's callers hear of a failed call.
pub(crate) fn failed(status: &Status) -> StoreError {
    let code = status.code();
    StoreError::backend(format!("etcd: {} ({code:?})", status.message()))
}
