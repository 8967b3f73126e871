//! Questions to the kernel's network over rtnetlink(7): one at a time, over a socket
//! that is kept.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use rtnetlink::packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;

/// Room for an answer in bytes; a device's is below 2 KiB.
const ANSWER: usize = 16 << 10;

/// A socket in the namespace in which it was made, whoever uses it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has the kernel change something; `flags` are those of netlink(7) that say how.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn change(&mut self, change: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(change, flags | NLM_F_ACK, |payload| match payload {
            NetlinkPayload::Error(answer) if answer.code.is_none() => Some(()),
            _ => None,
        })
    }

    /// The device that `wanted` names, by its index or its name.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn link(&mut self, wanted: LinkMessage) -> io::Result<LinkMessage> {
        let question = RouteNetlinkMessage::GetLink(wanted);
        self.exchange(question, 0, |payload| match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Some(link),
            _ => None,
        })
    }

    /// Sends a question, and waits for the answer to it that `take` takes.
    fn exchange<T>(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
        take: impl Fn(NetlinkPayload<RouteNetlinkMessage>) -> Option<T>,
    ) -> io::Result<T> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, question.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;

        let mut buffer = vec![0; ANSWER];
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => continue,
                received => received?,
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
            let answer = answer.map_err(|e: DecodeError| io::Error::other(e))?;
            // Of a question that was given up.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(refusal) = &answer.payload
                && refusal.code.is_some()
            {
                return Err(refusal.to_io());
            }
            if let Some(taken) = take(answer.payload) {
                return Ok(taken);
            }
        }
    }
}
