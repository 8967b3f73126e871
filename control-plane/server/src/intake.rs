//! How much may be on its way in at once.
//!
//! A message is held until its last byte has come, so many slow clients could fill the
//! memory with halves of large messages. Small messages cost little and are taken
//! always; whoever sends more waits for one of a few places, its connection with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tower::{Layer, Service};

/// What a call may send without a place, in bytes.
const SMALL: usize = 64 << 10;
/// Calls that may send more, at once.
const PLACES: usize = 32;
/// Cards send for as long as they live, each message bounded by itself.
const CARDS: &str = "/longship.control.v1.Cards/Attach";

/// Bounds what all calls together have sent and nobody has read.
#[derive(Clone)]
pub(crate) struct IntakeLayer {
    places: Arc<Semaphore>,
}

impl IntakeLayer {
    pub(crate) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
        }
    }
}

impl<S> Layer<S> for IntakeLayer {
    type Service = Intake<S>;

    fn layer(&self, inner: S) -> Intake<S> {
        Intake {
            inner,
            places: Arc::clone(&self.places),
        }
    }
}

/// See [`IntakeLayer`].
#[derive(Clone)]
pub(crate) struct Intake<S> {
    inner: S,
    places: Arc<Semaphore>,
}

impl<S> Service<Request<Body>> for Intake<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        if request.uri().path() == CARDS {
            return self.inner.call(request);
        }
        let places = Arc::clone(&self.places);
        let request = request.map(|body| {
            Body::new(Bounded {
                body,
                small_left: SMALL,
                place: Place::NotNeeded(places),
            })
        });
        self.inner.call(request)
    }
}

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

enum Place {
    NotNeeded(Arc<Semaphore>),
    Waiting(Waiting),
    Taken {
        _place: Option<OwnedSemaphorePermit>,
    },
}

/// A body that is read further than [`SMALL`] only with a place.
struct Bounded {
    body: Body,
    small_left: usize,
    place: Place,
}

impl Bounded {
    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.place = match &mut self.place {
                Place::NotNeeded(_) if self.small_left > 0 => return Poll::Ready(()),
                Place::Taken { .. } => return Poll::Ready(()),
                Place::NotNeeded(places) => {
                    let places = Arc::clone(places);
                    Place::Waiting(Box::pin(async move { places.acquire_owned().await.ok() }))
                }
                Place::Waiting(waiting) => {
                    let _place = ready!(waiting.as_mut().poll(cx));
                    Place::Taken { _place }
                }
            };
        }
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        ready!(self.poll_place(cx));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.small_left = self.small_left.saturating_sub(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body::Body as _;

    use super::*;

    /// A body that goes on for ever.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let data = Bytes::from_static(&[0; 16 << 10]);
            Poll::Ready(Some(Ok(Frame::data(data))))
        }
    }

    fn read(body: &mut Bounded, most: usize) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let frames = std::iter::from_fn(|| match Pin::new(&mut *body).poll_frame(&mut cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        });
        frames.take(most).count()
    }

    #[test]
    fn only_so_many_send_much_and_each_place_is_given_back() {
        let places = Arc::new(Semaphore::new(2));
        let body = || Bounded {
            body: Body::new(Endless),
            small_left: SMALL,
            place: Place::NotNeeded(Arc::clone(&places)),
        };
        let mut bodies: Vec<Bounded> = (0..4).map(|_| body()).collect();
        let sent: Vec<usize> = bodies.iter_mut().map(|body| read(body, 1000)).collect();
        assert_eq!(sent, [1000, 1000, 4, 4]);
        bodies.remove(0);
        assert_eq!(read(&mut bodies[1], 1000), 1000);
        assert_eq!(read(&mut bodies[2], 1000), 0);
        drop(bodies);
        assert_eq!(places.available_permits(), 2);
    }
}
