//! Copies what comes out of the virtual host to where it is wanted.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With the mark: all of it was copied.
    Complete,
    /// Without it: the machine went away first.
    Cut,
}

/// Copies a stream up to, and without, the mark at its end. Every byte is handed on as
/// soon as it cannot belong to the mark. When the sink fails, the rest is read and
/// dropped, so that the sender is not held up.
pub(crate) fn copy(mut source: impl Read, sink: &mut dyn Write, mark: &[u8]) -> End {
    let mut sink = Some(sink);
    let mut give = |bytes: &[u8]| {
        if let Some(open) = sink.as_mut()
            && !bytes.is_empty()
            && open.write_all(bytes).and_then(|()| open.flush()).is_err()
        {
            sink = None;
        }
    };
    let mut held = Vec::new();
    let mut chunk = [0; 64 << 10];
    loop {
        let count = match source.read(&mut chunk) {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => {
                give(&held);
                return End::Cut;
            }
        };
        held.extend(chunk.iter().take(count));
        if let Some(rest) = held.strip_suffix(mark) {
            give(rest);
            return End::Complete;
        }
        let kept = (0..mark.len().min(held.len() + 1))
            .rev()
            .find(|kept| mark.get(..*kept).is_some_and(|m| held.ends_with(m)))
            .unwrap_or(0);
        let (ready, rest) = held.split_at(held.len() - kept);
        give(ready);
        held = rest.to_vec();
    }
}

/// A sink whose content can be taken out afterwards.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    /// What was written so far.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        content.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sink that remembers the last part of what was written: the console's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    collected: Collected,
    shown: bool,
}

/// More than a kernel panic prints.
const TAIL: usize = 16 << 10;

impl Tail {
    /// With `shown`, everything goes to standard error as well.
    pub(crate) fn new(shown: bool) -> Self {
        Self {
            collected: Collected::default(),
            shown,
        }
    }

    /// The last lines, as text; empty when they have been shown already.
    pub(crate) fn text(&self) -> String {
        if self.shown {
            return String::new();
        }
        let text = String::from_utf8_lossy(&self.collected.take()).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(40);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shown {
            io::stderr().write_all(bytes)?;
        }
        let mut content = self
            .collected
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        content.extend(bytes);
        let excess = content.len().saturating_sub(TAIL);
        content.drain(..excess);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that gives its pieces one by one.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            self.0.remove(0).read(into)
        }
    }

    fn copied(pieces: &[&'static [u8]]) -> (End, Vec<u8>) {
        let mut sink = Vec::new();
        let end = copy(Pieces(pieces.to_vec()), &mut sink, b"<END>");
        (end, sink)
    }

    #[test]
    fn the_mark_is_found_wherever_the_stream_is_cut() {
        for pieces in [
            &[b"hello<END>".as_slice()][..],
            &[b"hello<E", b"ND>"],
            &[b"hel", b"lo", b"<", b"E", b"N", b"D", b">"],
        ] {
            assert_eq!(copied(pieces), (End::Complete, b"hello".to_vec()));
        }
        assert_eq!(copied(&[b"<END>"]), (End::Complete, vec![]));
    }

    #[test]
    fn what_only_looks_like_the_mark_is_passed_on() {
        let (end, sink) = copied(&[b"<<EN", b"<END", b"<END>x", b"<END>"]);
        assert_eq!((end, sink), (End::Complete, b"<<EN<END<END>x".to_vec()));
        assert_eq!(copied(&[b"a<EN"]), (End::Cut, b"a<EN".to_vec()));
    }

    #[test]
    fn a_sink_that_fails_does_not_stop_the_reading() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let source = Pieces(vec![b"one", b"two", b"<END>"]);
        assert_eq!(copy(source, &mut Full, b"<END>"), End::Complete);
    }

    #[test]
    fn the_console_keeps_its_end() {
        let mut tail = Tail::new(false);
        for line in 0..10_000 {
            tail.write_all(format!("line {line}\r\n").as_bytes())
                .unwrap();
        }
        let text = tail.text();
        assert_eq!(text.lines().count(), 40);
        assert_eq!(text.lines().last(), Some("line 9999"));
    }
}
