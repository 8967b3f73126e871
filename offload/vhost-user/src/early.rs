//! SET_VRING_ENABLE before SET_FEATURES.
//!
//! QEMU's net frontend enables its rings as soon as the backend has offered
//! protocol features (`hw/net/virtio-net.c`, peer_attach), while the crate vhost
//! refuses the message until they are accepted too. So as long as no features
//! are accepted, this message is looked for, and served here.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv, send};

/// `VHOST_USER_SET_VRING_ENABLE`
const SET_VRING_ENABLE: u32 = 18;
/// Version 1 of the protocol, and that this is a reply.
const REPLY: u32 = 1 | 1 << 2;
/// The frontend wants an answer.
const NEED_REPLY: u32 = 1 << 3;

const HEADER_LEN: usize = 12;
const MESSAGE_LEN: usize = HEADER_LEN + 8;

/// Takes the message, if the next one is of that kind: the ring's index, and
/// whether it is to be enabled. `None`, and nothing is taken, otherwise.
pub(crate) fn take_vring_enable(connection: &UnixStream) -> Option<(u32, bool)> {
    let fd = connection.as_raw_fd();
    let mut message = [0; MESSAGE_LEN];
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    // A descriptor that comes with a message stays with it.
    let seen = recv(fd, &mut message, peek).ok()?;
    let word = |at: usize| {
        let bytes = message.get(at..)?.first_chunk().copied()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let (request, flags, size) = (word(0)?, word(4)?, word(8)?);
    if seen != MESSAGE_LEN || request != SET_VRING_ENABLE || size != 8 {
        return None;
    }
    let taken = (word(12)?, word(16)? == 1);
    recv(fd, &mut message, MsgFlags::MSG_DONTWAIT).ok()?;
    if flags & NEED_REPLY != 0 {
        let mut reply = [0; MESSAGE_LEN];
        for (to, word) in reply.chunks_exact_mut(4).zip([SET_VRING_ENABLE, REPLY, 8]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        // A frontend that does not read is gone soon.
        let _ = send(fd, &reply, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn message(request: u32, flags: u32, body: [u32; 2]) -> Vec<u8> {
        let words = [request, flags, 8, body[0], body[1]];
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn only_that_message_is_taken() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(take_vring_enable(&ours), None);
        theirs.write_all(&message(18, 1, [1, 1])).unwrap();
        theirs.write_all(&message(18, 1, [0, 0])).unwrap();
        let other = message(2, 1, [7, 7]);
        theirs.write_all(&other).unwrap();
        assert_eq!(take_vring_enable(&ours), Some((1, true)));
        assert_eq!(take_vring_enable(&ours), Some((0, false)));
        assert_eq!(take_vring_enable(&ours), None);
        let mut rest = [0; MESSAGE_LEN];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(rest[..], other);
        theirs.write_all(&message(18, 1, [1, 1])[..19]).unwrap();
        assert_eq!(take_vring_enable(&ours), None);
        drop(theirs);
        assert_eq!(take_vring_enable(&ours), None);
    }

    #[test]
    fn who_wants_a_reply_gets_one() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(&message(18, 1 | NEED_REPLY, [1, 1]))
            .unwrap();
        assert_eq!(take_vring_enable(&ours), Some((1, true)));
        let mut reply = [0; MESSAGE_LEN];
        theirs.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..], message(18, REPLY, [0, 0]));
    }
}
