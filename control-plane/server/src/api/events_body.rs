//! A watch's answer on the wire. The pods are sent as they were encoded for all
//! watchers: a thousand of them, read or not, hold the same bytes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, key_len};
use tokio_stream::Stream;
use tonic::Status;

use crate::watch::EncodedEvent;

/// Up to here copying a pod costs less than a frame of its own, in bytes.
const SMALL: usize = 4096;
/// A message's compression flag and length.
const HEADER: usize = 5;
/// Number of [`EncodedEvent::pod`] on the wire.
const POD: u32 = 2;

/// Events as messages of a gRPC stream, then its status.
pub(super) struct EventsBody<S> {
    events: S,
    parts: VecDeque<Bytes>,
    ended: bool,
}

impl<S> EventsBody<S> {
    pub(super) fn new(events: S) -> Self {
        Self {
            events,
            parts: VecDeque::with_capacity(2),
            ended: false,
        }
    }
}

/// The bytes of a message, without copying a pod that is large.
fn parts(mut event: EncodedEvent) -> Result<impl Iterator<Item = Bytes>, Status> {
    let pod = event.pod.take();
    let around = event.encoded_len();
    let of_pod = pod.as_ref().map_or(0, |pod| {
        let length = prost::encoding::encoded_len_varint(u64::try_from(pod.len()).unwrap_or(0));
        key_len(POD) + length + pod.len()
    });
    let length = u32::try_from(around + of_pod);
    let length = length.map_err(|_| Status::internal("an event of over 4 GiB"))?;
    let mut head = BytesMut::with_capacity(HEADER + around + SMALL + 16);
    head.put_u8(0);
    head.put_u32(length);
    let too_small = |_| Status::internal("an event has no room in its buffer");
    event.encode(&mut head).map_err(too_small)?;
    let mut apart = None;
    if let Some(pod) = pod {
        encode_key(POD, WireType::LengthDelimited, &mut head);
        encode_varint(u64::try_from(pod.len()).unwrap_or(0), &mut head);
        if pod.len() <= SMALL {
            head.extend_from_slice(&pod);
        } else {
            apart = Some(pod);
        }
    }
    Ok([Some(head.freeze()), apart].into_iter().flatten())
}

impl<S> http_body::Body for EventsBody<S>
where
    S: Stream<Item = Result<EncodedEvent, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(Pin::new(&mut self.events).poll_next(cx));
        let why = match event.map(|event| event.and_then(parts)) {
            Some(Ok(parts)) => {
                self.parts.extend(parts);
                let first = self.parts.pop_front().unwrap_or_default();
                return Poll::Ready(Some(Ok(Frame::data(first))));
            }
            Some(Err(why)) => why,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        why.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{ObjectMeta, Pod, PodEvent};

    use super::*;

    #[test]
    fn what_is_sent_is_the_event_and_large_pods_are_not_copied() {
        for (bytes, apart) in [(0, false), (100, false), (5000, true)] {
            let pod = Pod {
                metadata: Some(ObjectMeta {
                    name: "x".repeat(bytes),
                    ..ObjectMeta::default()
                }),
                ..Pod::default()
            };
            let wanted = PodEvent {
                r#type: 2,
                pod: Some(pod.clone()),
                resource_version: 300,
            };
            let encoded: Bytes = pod.encode_to_vec().into();
            let event = EncodedEvent {
                r#type: 2,
                pod: Some(encoded.clone()),
                resource_version: 300,
            };
            let sent: Vec<Bytes> = parts(event).unwrap().collect();
            assert_eq!(
                sent.iter().any(|part| part.as_ptr() == encoded.as_ptr()),
                apart
            );
            let sent = sent.concat();
            let (header, message) = sent.split_at(HEADER);
            assert_eq!(header[0], 0);
            let length = u32::from_be_bytes(header[1..].try_into().unwrap());
            assert_eq!(usize::try_from(length).unwrap(), message.len());
            assert_eq!(PodEvent::decode(message).unwrap(), wanted);
        }
    }
}
