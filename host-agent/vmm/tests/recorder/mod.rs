//! Stands between a vhost-user frontend and its backend, passes everything on and
//! notes what the backend has been given.

#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
/// Feature: descriptors may lie in tables of their own. It is hidden, so that all
/// addresses stay to be seen in the rings.
const INDIRECT: u64 = 1 << 28;

/// One region of guest memory that the backend was given.
pub struct Region {
    pub guest: u64,
    pub bytes: u64,
    user: u64,
    offset: u64,
    pub file: File,
}

/// What a backend was given.
#[derive(Default)]
pub struct Heard {
    pub regions: Vec<Region>,
    /// Features, as often as they were set.
    pub features: Vec<u64>,
    /// By index: descriptors, and the address of their table in the frontend.
    rings: BTreeMap<u32, (u32, u64)>,
    /// What the other descriptors are.
    pub others: Vec<PathBuf>,
}

impl Heard {
    /// The buffers of all rings, as they were at last: guest-physical.
    pub fn buffers(&self) -> Vec<Range<u64>> {
        let mut buffers = Vec::new();
        for (count, table) in self.rings.values() {
            let region = self
                .regions
                .iter()
                .find(|region| (region.user..region.user + region.bytes).contains(table));
            let region = region.expect("a ring outside of the backend's memory");
            for index in 0..u64::from(*count) {
                let mut descriptor = [0; 16];
                let at = table - region.user + region.offset + 16 * index;
                region.file.read_exact_at(&mut descriptor, at).unwrap();
                let start = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
                let bytes = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
                if bytes > 0 {
                    buffers.push(start..start + u64::from(bytes));
                }
            }
        }
        buffers
    }

    fn note(&mut self, request: u32, body: &[u8], fds: Vec<OwnedFd>) {
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        match request {
            SET_MEM_TABLE => {
                self.regions = (8..)
                    .step_by(32)
                    .zip(fds)
                    .map(|(at, fd)| Region {
                        guest: long(at),
                        bytes: long(at + 8),
                        user: long(at + 16),
                        offset: long(at + 24),
                        file: fd.into(),
                    })
                    .collect();
                assert_eq!(self.regions.len(), word(0) as usize);
                return;
            }
            SET_FEATURES => self.features.push(long(0)),
            SET_VRING_NUM => self.rings.entry(word(0)).or_default().0 = word(4),
            SET_VRING_ADDR => self.rings.entry(word(0)).or_default().1 = long(8),
            _ => {}
        }
        self.others
            .extend(fds.iter().map(|fd| {
                std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
            }));
    }
}

/// A recorder of one connection.
pub struct Recorder {
    socket: PathBuf,
    thread: JoinHandle<Heard>,
}

impl Recorder {
    /// Listens beside the backend's socket.
    pub fn before(backend: &Path) -> Self {
        let socket = backend.with_extension("recorded");
        let listener = UnixListener::bind(&socket).unwrap();
        let backend = backend.to_owned();
        let thread = std::thread::spawn(move || {
            let (frontend, _) = listener.accept().unwrap();
            let backend = UnixStream::connect(backend).unwrap();
            let answers = (backend.try_clone().unwrap(), frontend.try_clone().unwrap());
            let answering = std::thread::spawn(move || {
                pass(&answers.0, &answers.1, |request, body, _| {
                    if request == GET_FEATURES {
                        let features = u64::from_le_bytes(body.try_into().unwrap());
                        body.copy_from_slice(&(features & !INDIRECT).to_le_bytes());
                    }
                });
            });
            let mut heard = Heard::default();
            pass(&frontend, &backend, |request, body, fds| {
                heard.note(request, body, fds);
            });
            answering.join().unwrap();
            heard
        });
        Self { socket, thread }
    }

    /// Where the frontend finds it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What passed, when the frontend is gone.
    pub fn heard(self) -> Heard {
        self.thread.join().unwrap()
    }
}

/// Passes messages on until there are no more; `look` sees each before.
fn pass(from: &UnixStream, to: &UnixStream, mut look: impl FnMut(u32, &mut [u8], Vec<OwnedFd>)) {
    while let Some((head, mut body, fds)) = receive(from) {
        let copies = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        look(
            u32::from_le_bytes(head[..4].try_into().unwrap()),
            &mut body,
            copies,
        );
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        let parts = [IoSlice::new(&head)];
        let sent = sendmsg::<()>(to.as_raw_fd(), &parts, control, MsgFlags::empty(), None);
        if sent.is_err() || (&mut &*to).write_all(&body).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn receive(mut socket: &UnixStream) -> Option<([u8; 12], Vec<u8>, Vec<OwnedFd>)> {
    let mut head = [0; 12];
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut fds = Vec::new();
    let got = {
        let mut buffers = [IoSliceMut::new(&mut head)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags);
        let message = message.ok()?;
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed them for this call.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        message.bytes
    };
    if got == 0 {
        return None;
    }
    socket.read_exact(&mut head[got..]).ok()?;
    let mut body = vec![0; u32::from_le_bytes(head[8..].try_into().unwrap()) as usize];
    socket.read_exact(&mut body).ok()?;
    Some((head, body, fds))
}
