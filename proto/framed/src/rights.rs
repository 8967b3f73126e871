//! Frames that carry descriptors (`SCM_RIGHTS`, unix(7)).
//!
//! The descriptors travel with the frame's four length bytes, so that a receiver
//! always has them before it knows the message that explains them.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use prost::Message;

use crate::frame::{FrameError, body_len, decode, encode};

/// The most descriptors that one frame may carry.
pub const MAX_DESCRIPTORS: usize = 8;

/// The most that the kernel lets one message carry (`SCM_MAX_FD`). There is room
/// for all, so that none is ever cut off and lost track of.
const SCM_MAX_FD: usize = 253;

/// Sends one message with descriptors.
///
/// # Errors
/// [`FrameError::TooLarge`], [`FrameError::TooManyDescriptors`], or the socket's own.
pub fn send_frame_with_fds<M: Message>(
    socket: &UnixStream,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    if fds.len() > MAX_DESCRIPTORS {
        return Err(FrameError::TooManyDescriptors(MAX_DESCRIPTORS));
    }
    let frame = encode(message)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&frame)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(nix::Error::EINTR) => {}
            other => break other.map_err(std::io::Error::from)?,
        }
    };
    // The kernel may take a part only; the descriptors went with the first byte.
    let mut stream = socket;
    Ok(stream.write_all(frame.get(sent..).unwrap_or_default())?)
}

/// Receives one message and the descriptors that came with it; `None` where the
/// peer closed between two frames. The descriptors are close-on-exec.
///
/// # Errors
/// As [`crate::read_frame`], and [`FrameError::TooManyDescriptors`].
pub fn receive_frame_with_fds<M: Message + Default>(
    socket: &UnixStream,
) -> Result<Option<(M, Vec<OwnedFd>)>, FrameError> {
    let mut head = [0; 4];
    let mut fds = Vec::new();
    let got = receive_head(socket, &mut head, &mut fds)?;
    if got == 0 {
        return Ok(None);
    }
    let mut stream = socket;
    stream.read_exact(&mut head[got..])?;
    let mut body = vec![0; body_len(head)?];
    stream.read_exact(&mut body)?;
    Ok(Some((decode(&body)?, fds)))
}

/// One recvmsg for (a part of) the frame's head, with its descriptors.
fn receive_head(
    socket: &UnixStream,
    head: &mut [u8; 4],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, FrameError> {
    let mut space = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
    loop {
        let mut buffers = [IoSliceMut::new(head)];
        let received = match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut buffers,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::Error::EINTR) => continue,
            other => other.map_err(std::io::Error::from)?,
        };
        for message in received.cmsgs().map_err(std::io::Error::from)? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just installed these descriptors for this
                // call; nothing else knows them, so each has exactly this owner.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        if fds.len() > MAX_DESCRIPTORS {
            return Err(FrameError::TooManyDescriptors(MAX_DESCRIPTORS));
        }
        return Ok(received.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};
    use std::os::fd::AsFd;

    use super::*;
    use crate::vmm::{Request, request::Operation};

    fn boot(id: u64) -> Request {
        Request {
            id,
            operation: Some(Operation::Boot(crate::vmm::Boot {})),
        }
    }

    #[test]
    fn descriptors_arrive_in_order_with_their_own_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut files: Vec<std::fs::File> = Vec::new();
        for text in ["one", "two"] {
            let fd = nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::empty());
            let mut file = std::fs::File::from(fd.unwrap());
            file.write_all(text.as_bytes()).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            files.push(file);
        }
        send_frame_with_fds(&ours, &boot(1), &[]).unwrap();
        send_frame_with_fds(&ours, &boot(2), &[files[0].as_fd(), files[1].as_fd()]).unwrap();
        drop(ours);

        let (first, none) = receive_frame_with_fds::<Request>(&theirs).unwrap().unwrap();
        assert_eq!((first.id, none.len()), (1, 0));
        let (second, fds) = receive_frame_with_fds::<Request>(&theirs).unwrap().unwrap();
        assert_eq!(second.id, 2);
        let texts: Vec<String> = fds
            .into_iter()
            .map(|fd| std::io::read_to_string(std::fs::File::from(fd)).unwrap())
            .collect();
        assert_eq!(texts, ["one", "two"]);
        assert!(
            receive_frame_with_fds::<Request>(&theirs)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn too_many_descriptors_are_refused_by_both_ends() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = ours.as_fd();
        let nine = vec![fd; MAX_DESCRIPTORS + 1];
        let refused = send_frame_with_fds(&ours, &boot(1), &nine);
        assert!(matches!(refused, Err(FrameError::TooManyDescriptors(_))));

        let raw: Vec<RawFd> = nine.iter().map(AsRawFd::as_raw_fd).collect();
        let frame = encode(&boot(1)).unwrap();
        sendmsg::<()>(
            ours.as_raw_fd(),
            &[IoSlice::new(&frame)],
            &[ControlMessage::ScmRights(&raw)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        let refused = receive_frame_with_fds::<Request>(&theirs);
        assert!(matches!(refused, Err(FrameError::TooManyDescriptors(_))));
    }
}
