//! A response's body as a blocking reader.

use std::io::{self, Read};

use tokio::sync::mpsc;

use super::Stop;
use crate::error::ImageError;

/// How many pieces of a body wait in memory; one is some 16 KiB.
const QUEUE: usize = 32;

enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// The receiving side of a body. Blocks: not for async code.
pub(super) struct Body {
    pieces: mpsc::Receiver<Result<Piece, ImageError>>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
}

/// Reads `response` in a task of its own until its end, its failure, `stop`, or
/// until nobody reads any more.
pub(super) fn read_body(
    mut response: reqwest::Response,
    mut stop: Stop,
    failure: impl Fn(&reqwest::Error) -> ImageError + Send + 'static,
) -> Body {
    let (sender, pieces) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let chunk = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                chunk = response.chunk() => chunk,
            };
            let (piece, last) = match chunk {
                Ok(Some(bytes)) => (Ok(Piece::Bytes(bytes.into())), false),
                Ok(None) => (Ok(Piece::End), true),
                Err(error) => (Err(failure(&error)), true),
            };
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    Body {
        pieces,
        current: io::Cursor::default(),
        ended: false,
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = self.current.read(buffer)?;
            if got > 0 || self.ended || buffer.is_empty() {
                return Ok(got);
            }
            match self.pieces.blocking_recv() {
                Some(Ok(Piece::Bytes(bytes))) => self.current = io::Cursor::new(bytes),
                Some(Ok(Piece::End)) => self.ended = true,
                Some(Err(error)) => return Err(error.into_io()),
                // Stopped: an end that nobody may take for the body's own.
                None => {
                    let stopped = "the download was given up".to_owned();
                    return Err(ImageError::Internal(stopped).into_io());
                }
            }
        }
    }
}
