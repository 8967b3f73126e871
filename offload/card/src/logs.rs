//! What containers print, kept on the card: append-only segments of records, of
//! which each container keeps the last two, so that a log never grows without end.
//!
//! A record is `source: u8, time_us: i64, length: u32` (little endian) and the bytes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use longship_proto::card::v1::{LogChunk, Source};
use tokio::sync::watch;

use longship_proto::now_us;

/// Bytes after which a segment is full; a container keeps at most two.
const SEGMENT_BYTES: u64 = 8 << 20;
/// The largest record's payload in bytes.
const RECORD_BYTES: usize = 64 << 10;
const HEAD_BYTES: usize = 13;

/// Logs of all pods of this card, by (pod uid, container).
#[derive(Debug)]
pub(crate) struct LogStore {
    directory: PathBuf,
    open: Mutex<HashMap<(String, String), Arc<Log>>>,
}

impl LogStore {
    /// Logs below `directory`, which is created.
    ///
    /// # Errors
    /// Where it cannot be created.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            open: Mutex::default(),
        })
    }

    /// The log of a container, begun if there is none. Neither name may hold a
    /// path separator: both were validated as DNS labels.
    ///
    /// # Errors
    /// Where its directory cannot be made or read.
    pub(crate) fn log(&self, pod_uid: &str, container: &str) -> io::Result<Arc<Log>> {
        let mut open = lock(&self.open);
        let key = (pod_uid.to_owned(), container.to_owned());
        if let Some(log) = open.get(&key) {
            return Ok(log.clone());
        }
        let log = Arc::new(Log::open(&self.directory.join(pod_uid).join(container))?);
        open.insert(key, log.clone());
        Ok(log)
    }

    /// Forgets and deletes all logs of a pod. Readers end.
    ///
    /// # Errors
    /// Where files cannot be deleted; a pod without logs is fine.
    pub(crate) fn remove(&self, pod_uid: &str) -> io::Result<()> {
        lock(&self.open).retain(|(uid, _), log| {
            if uid == pod_uid {
                log.close();
            }
            uid != pod_uid
        });
        match std::fs::remove_dir_all(self.directory.join(pod_uid)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Where the writer is: readers compare, and wait for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    segment: u64,
    length: u64,
    closed: bool,
}

/// One container's log.
#[derive(Debug)]
pub(crate) struct Log {
    directory: PathBuf,
    writer: Mutex<File>,
    position: watch::Sender<Position>,
}

impl Log {
    fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let segment = segments(directory)?.last().copied().unwrap_or(0);
        let file = append_to(directory, segment)?;
        let length = file.metadata()?.len();
        let (position, _) = watch::channel(Position {
            segment,
            length,
            closed: false,
        });
        Ok(Self {
            directory: directory.to_owned(),
            writer: Mutex::new(file),
            position,
        })
    }

    /// Appends what the container printed. The write goes to the page cache and is
    /// small, so it is done where it is called.
    ///
    /// # Errors
    /// Where the disk refuses it.
    pub(crate) fn append(&self, source: Source, data: &[u8]) -> io::Result<()> {
        let mut file = lock(&self.writer);
        for part in data.chunks(RECORD_BYTES) {
            let mut at = *self.position.borrow();
            if at.length >= SEGMENT_BYTES {
                at.segment += 1;
                at.length = 0;
                *file = append_to(&self.directory, at.segment)?;
                self.drop_old_segments(at.segment)?;
            }
            let mut record = Vec::with_capacity(HEAD_BYTES + part.len());
            record.push(source as u8);
            record.extend_from_slice(&now_us().to_le_bytes());
            // A part is at most RECORD_BYTES long, which fits.
            record.extend_from_slice(&u32::try_from(part.len()).unwrap_or(0).to_le_bytes());
            record.extend_from_slice(part);
            if let Err(error) = file.write_all(&record) {
                // Half a record would make all that follows unreadable.
                file.set_len(at.length)?;
                return Err(error);
            }
            at.length += record.len() as u64;
            self.position.send_replace(at);
        }
        Ok(())
    }

    /// Nothing more comes: followers end.
    pub(crate) fn close(&self) {
        self.position.send_modify(|at| at.closed = true);
    }

    /// Whether nothing was ever written; for noticing the first output.
    pub(crate) fn is_empty(&self) -> bool {
        let at = *self.position.borrow();
        at.segment == 0 && at.length == 0
    }

    /// A reader from the oldest record kept, or from the last `tail` lines.
    ///
    /// # Errors
    /// Where the segments cannot be read.
    pub(crate) fn read(&self, follow: bool, tail: Option<u64>) -> io::Result<LogReader> {
        let mut reader = LogReader {
            directory: self.directory.clone(),
            position: self.position.subscribe(),
            follow,
            segment: segments(&self.directory)?.first().copied().unwrap_or(0),
            file: None,
            offset: 0,
            skip_lines: 0,
        };
        if let Some(tail) = tail {
            let mut counting = reader.restarted();
            let mut lines = 0;
            let mut open_line = false;
            while let Some(chunk) = counting.next_now()? {
                lines += newlines(&chunk.data);
                open_line = chunk.data.last().is_some_and(|b| *b != b'\n');
            }
            reader.skip_lines = (lines + u64::from(open_line)).saturating_sub(tail);
        }
        Ok(reader)
    }

    fn drop_old_segments(&self, current: u64) -> io::Result<()> {
        for old in segments(&self.directory)? {
            if old + 1 < current {
                std::fs::remove_file(segment_path(&self.directory, old))?;
            }
        }
        Ok(())
    }
}

/// Reads a log in order.
#[derive(Debug)]
pub(crate) struct LogReader {
    directory: PathBuf,
    position: watch::Receiver<Position>,
    follow: bool,
    segment: u64,
    file: Option<File>,
    offset: u64,
    skip_lines: u64,
}

impl LogReader {
    /// The next record; `None` at the end (of the log so far, or where it follows,
    /// when the log is closed).
    ///
    /// # Errors
    /// Where a segment cannot be read or is damaged.
    pub(crate) async fn next(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            let seen = *self.position.borrow_and_update();
            if let Some(chunk) = self.next_now()? {
                if let Some(chunk) = self.after_skipped(chunk) {
                    return Ok(Some(chunk));
                }
                continue;
            }
            let ended = !self.follow || seen.closed;
            if ended || self.position.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    fn restarted(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            position: self.position.clone(),
            follow: false,
            segment: self.segment,
            file: None,
            offset: 0,
            skip_lines: 0,
        }
    }

    /// The next record that is there already.
    fn next_now(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            if self.file.is_none() {
                self.file = match File::open(segment_path(&self.directory, self.segment)) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                    other => Some(other?),
                };
            }
            let writer = *self.position.borrow();
            // What is behind the announced position may be half written.
            let announced = self.segment < writer.segment || self.offset < writer.length;
            if announced
                && let Some(file) = &mut self.file
                && let Some(chunk) = read_record(file)?
            {
                self.offset += (HEAD_BYTES + chunk.data.len()) as u64;
                return Ok(Some(chunk));
            }
            if self.segment >= writer.segment {
                return Ok(None);
            }
            self.file = None;
            self.offset = 0;
            let kept = segments(&self.directory)?;
            self.segment = kept
                .into_iter()
                .find(|n| *n > self.segment)
                .unwrap_or(writer.segment);
        }
    }

    /// Leaves out what lies before the wanted tail.
    fn after_skipped(&mut self, mut chunk: LogChunk) -> Option<LogChunk> {
        while self.skip_lines > 0 {
            let end = chunk.data.iter().position(|b| *b == b'\n')?;
            chunk.data.drain(..=end);
            self.skip_lines -= 1;
        }
        (!chunk.data.is_empty()).then_some(chunk)
    }
}

fn read_record(file: &mut File) -> io::Result<Option<LogChunk>> {
    let mut head = [0; HEAD_BYTES];
    if file.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    file.read_exact(&mut head[1..])?;
    let [source, t0, t1, t2, t3, t4, t5, t6, t7, l0, l1, l2, l3] = head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > RECORD_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a record of the log is damaged",
        ));
    }
    let mut data = vec![0; length];
    file.read_exact(&mut data)?;
    Ok(Some(LogChunk {
        source: i32::from(source),
        time_us: i64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
        data,
    }))
}

fn newlines(data: &[u8]) -> u64 {
    data.iter().filter(|b| **b == b'\n').count() as u64
}

fn segment_path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(format!("{segment}.log"))
}

fn append_to(directory: &Path, segment: u64) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(segment_path(directory, segment))
}

/// Numbers of the segments that exist, rising.
fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_suffix(".log"))
            .map(str::parse);
        if let Some(Ok(number)) = number {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A poisoned lock only says that another thread panicked between two complete
/// states; what it guards is still usable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, Arc<Log>) {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(dir.path().to_owned())
            .unwrap()
            .log("uid", "c")
            .unwrap();
        (dir, log)
    }

    async fn text(mut reader: LogReader) -> String {
        let mut text = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            text.extend(chunk.data);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn records_come_back_in_order_with_their_source() {
        let (_dir, log) = log();
        log.append(Source::Stdout, b"out\n").unwrap();
        log.append(Source::Stderr, b"err\n").unwrap();
        let mut reader = log.read(false, None).unwrap();
        let first = reader.next().await.unwrap().unwrap();
        let second = reader.next().await.unwrap().unwrap();
        assert_eq!(
            (first.source(), &first.data[..]),
            (Source::Stdout, &b"out\n"[..])
        );
        assert_eq!(
            (second.source(), &second.data[..]),
            (Source::Stderr, &b"err\n"[..])
        );
        assert!(reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn the_tail_counts_lines_not_records() {
        let (_dir, log) = log();
        log.append(Source::Stdout, b"one\ntwo\nth").unwrap();
        log.append(Source::Stdout, b"ree\nfour").unwrap();
        assert_eq!(text(log.read(false, Some(2)).unwrap()).await, "three\nfour");
        assert_eq!(text(log.read(false, Some(0)).unwrap()).await, "");
        assert_eq!(
            text(log.read(false, Some(9)).unwrap()).await,
            "one\ntwo\nthree\nfour"
        );
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes_and_ends_when_the_log_is_closed() {
        let (_dir, log) = log();
        let follower = tokio::spawn(text(log.read(true, None).unwrap()));
        for line in ["a\n", "b\n"] {
            tokio::task::yield_now().await;
            log.append(Source::Stdout, line.as_bytes()).unwrap();
        }
        log.close();
        assert_eq!(follower.await.unwrap(), "a\nb\n");
    }

    #[tokio::test]
    async fn a_long_log_keeps_its_end_and_is_bounded() {
        let (dir, log) = log();
        let line = [vec![b'x'; 65_000], b"\n".to_vec()].concat();
        for _ in 0..600 {
            log.append(Source::Stdout, &line).unwrap();
        }
        log.append(Source::Stdout, b"the end").unwrap();
        let kept: u64 = std::fs::read_dir(dir.path().join("uid/c"))
            .unwrap()
            .map(|f| f.unwrap().metadata().unwrap().len())
            .sum();
        assert!(
            kept <= 2 * SEGMENT_BYTES + 2 * RECORD_BYTES as u64,
            "{kept}"
        );
        assert!(
            text(log.read(false, None).unwrap())
                .await
                .ends_with("\nthe end")
        );
    }

    #[tokio::test]
    async fn a_removed_pod_leaves_no_file_and_ends_its_readers() {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(dir.path().to_owned()).unwrap();
        let log = store.log("uid", "c").unwrap();
        log.append(Source::Stdout, b"x").unwrap();
        let follower = tokio::spawn(text(log.read(true, None).unwrap()));
        tokio::task::yield_now().await;
        store.remove("uid").unwrap();
        follower.await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        store.remove("uid").unwrap();
    }
}
