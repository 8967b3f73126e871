//! Connections to the card over AF_VSOCK (vsock(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use longship_framed::guest::Port;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, VsockAddr, connect, getsockopt, recv, send,
    socket, sockopt,
};

/// The card's address (`VMADDR_CID_HOST`).
const CARD: u32 = 2;

/// Begins to connect to the card. The socket becomes writable when it is
/// connected, or when it is clear that it will not be.
///
/// # Errors
/// The kernel's; `ENODEV` and its like while there is no vsock device.
pub(crate) fn dial(port: Port) -> io::Result<OwnedFd> {
    let port = u32::try_from(i32::from(port)).map_err(io::Error::other)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &VsockAddr::new(CARD, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// How the connecting ended, once there was an event.
///
/// # Errors
/// Why it failed.
pub(crate) fn dialled(fd: &OwnedFd) -> io::Result<()> {
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Sends what the socket takes now; zero where it takes nothing.
///
/// # Errors
/// The socket's; its peer has gone.
pub(crate) fn try_send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    match send(fd.as_raw_fd(), bytes, flags) {
        Ok(sent) => Ok(sent),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Receives what is there: none for now, or `Some(0)` at the end.
///
/// # Errors
/// The socket's.
pub(crate) fn try_receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(got) => Ok(Some(got)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the peer still receives. Sending nothing asks, and costs nothing.
pub(crate) fn peer_receives(fd: &impl AsFd) -> bool {
    try_send(fd.as_fd(), &[]).is_ok()
}
