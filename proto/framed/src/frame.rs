//! Length-framed protobuf over a byte stream.

use std::io::{self, Read, Write};

use prost::Message;

/// The largest frame in bytes, without its length. What is larger is refused
/// before any of it is stored, whoever sends it.
pub const MAX_FRAME: usize = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed, or ended inside a frame.
    #[error("frame: {0}")]
    Io(#[from] io::Error),
    /// The peer announced, or the caller passed, more than [`MAX_FRAME`] bytes.
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// The bytes are no message of the expected type.
    #[error("frame holds no such message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The frame came with more descriptors than any message has.
    #[error("frame came with more than {0} descriptors")]
    TooManyDescriptors(usize),
}

/// The frame of `message`: its length and its bytes.
///
/// # Errors
/// [`FrameError::TooLarge`] over [`MAX_FRAME`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let len = message.encoded_len();
    let announced = u32::try_from(len).map_err(|_| FrameError::TooLarge(len))?;
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge(len));
    }
    let mut frame = Vec::with_capacity(4 + len);
    frame.extend_from_slice(&announced.to_le_bytes());
    message.encode_raw(&mut frame);
    Ok(frame)
}

/// The message in a frame's bytes, without their length.
///
/// # Errors
/// [`FrameError::Decode`] where they hold no `M`.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, FrameError> {
    Ok(M::decode(bytes)?)
}

/// Length of the body that a frame's first four bytes announce.
pub(crate) fn body_len(head: [u8; 4]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(head) as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge(len));
    }
    Ok(len)
}

/// Writes one message and flushes.
///
/// # Errors
/// [`FrameError::TooLarge`], or the stream's own.
pub fn write_frame<M: Message>(stream: &mut impl Write, message: &M) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(stream.flush()?)
}

/// Reads one message; `None` where the stream ends between two frames.
///
/// # Errors
/// [`FrameError::Io`] where it ends inside one, [`FrameError::TooLarge`],
/// [`FrameError::Decode`].
pub fn read_frame<M: Message + Default>(stream: &mut impl Read) -> Result<Option<M>, FrameError> {
    let mut head = [0; 4];
    let mut got = 0;
    while got < head.len() {
        match stream.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut body = vec![0; body_len(head)?];
    stream.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// [`write_frame`] over a tokio stream.
///
/// # Errors
/// As [`write_frame`].
#[cfg(feature = "tokio")]
pub async fn write_frame_async<M: Message>(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &M,
) -> Result<(), FrameError> {
    use tokio::io::AsyncWriteExt;
    stream.write_all(&encode(message)?).await?;
    Ok(stream.flush().await?)
}

/// [`read_frame`] over a tokio stream. Not cancel-safe: give it a task of its own.
///
/// # Errors
/// As [`read_frame`].
#[cfg(feature = "tokio")]
pub async fn read_frame_async<M: Message + Default>(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Result<Option<M>, FrameError> {
    use tokio::io::AsyncReadExt;
    let mut head = [0; 4];
    let first = stream.read(&mut head[..1]).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let mut body = vec![0; body_len(head)?];
    stream.read_exact(&mut body).await?;
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::{Hello, Process};

    /// A stream that gives at most `step` bytes a read, as a socket may.
    struct Dribble<'a> {
        bytes: &'a [u8],
        step: usize,
    }

    impl Read for Dribble<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(self.step).min(self.bytes.len());
            let (now, later) = self.bytes.split_at(n);
            buf[..n].copy_from_slice(now);
            self.bytes = later;
            Ok(n)
        }
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_went_however_the_stream_is_cut(
            argvs in prop::collection::vec(prop::collection::vec(".{0,40}", 0..8), 0..6),
            step in 1_usize..64,
        ) {
            let mut bytes = Vec::new();
            let sent: Vec<Process> =
                argvs.into_iter().map(|argv| Process { argv, ..Process::default() }).collect();
            for message in &sent {
                write_frame(&mut bytes, message).unwrap();
            }
            let mut stream = Dribble { bytes: &bytes, step };
            let mut received = Vec::new();
            while let Some(message) = read_frame::<Process>(&mut stream).unwrap() {
                received.push(message);
            }
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn a_cut_frame_is_an_error_and_never_a_message(
            uptime in any::<i64>(), version in ".{1,100}", cut in any::<prop::sample::Index>(),
        ) {
            let hello = Hello { uptime_us: uptime, version, ..Hello::default() };
            let frame = encode(&hello).unwrap();
            let cut = 1 + cut.index(frame.len() - 1);
            prop_assert!(read_frame::<Hello>(&mut &frame[..cut]).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut stream = &bytes[..];
            while let Ok(Some(_)) = read_frame::<Hello>(&mut stream) {}
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_its_body() {
        let head = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes();
        let refused = read_frame::<Hello>(&mut &head[..]);
        assert!(matches!(refused, Err(FrameError::TooLarge(n)) if n == MAX_FRAME + 1));
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        let message = Hello {
            version: "v".repeat(MAX_FRAME),
            ..Hello::default()
        };
        let mut sent = Vec::new();
        assert!(matches!(
            write_frame(&mut sent, &message),
            Err(FrameError::TooLarge(_))
        ));
        assert!(sent.is_empty());
    }
}
