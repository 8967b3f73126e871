//! A request of the agent as an operation with its descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use longship_framed::error::Failure;
use longship_framed::vmm::{Create, Request, Restore, request};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getpeername, getsockopt, sockopt};

use crate::vhost_user::device_type::DeviceType;

/// What the agent asks for.
pub(super) enum Operation {
    Create(Create, Vec<OwnedFd>),
    Restore(Restore, Vec<OwnedFd>),
    Attach(DeviceType, UnixStream),
    Boot,
    Snapshot(File),
    GetStats,
    Stop,
}

impl Operation {
    /// Checks that a request is one, and has the descriptors that it needs.
    pub(super) fn check(request: Request, mut fds: Vec<OwnedFd>) -> Result<Self, Failure> {
        let operation = request.operation.ok_or_else(|| {
            Failure::invalid("operation", "it is missing or unknown to this version")
        })?;
        let none = |operation| {
            if fds.is_empty() {
                Ok(operation)
            } else {
                let message = format!("expected no descriptors, got {}", fds.len());
                Err(Failure::invalid("descriptors", message))
            }
        };
        match operation {
            request::Operation::Create(create) => Ok(Self::Create(create, fds)),
            request::Operation::Boot(_) => none(Self::Boot),
            request::Operation::Stats(_) => none(Self::GetStats),
            request::Operation::Stop(_) => none(Self::Stop),
            request::Operation::Restore(restore) => Ok(Self::Restore(restore, fds)),
            request::Operation::Snapshot(_) => {
                let count = fds.len();
                match (fds.pop(), count) {
                    (Some(fd), 1) => Ok(Self::Snapshot(empty_file(fd)?)),
                    _ => Err(Failure::invalid(
                        "descriptors",
                        format!("expected 1 descriptor (an empty file), got {count}"),
                    )),
                }
            }
            request::Operation::Attach(attach) => {
                let kind = DeviceType::from_wire(attach.r#type).ok_or_else(|| {
                    Failure::invalid("type", format!("no device type {}", attach.r#type))
                })?;
                let count = fds.len();
                match (fds.pop(), count) {
                    (Some(fd), 1) => Ok(Self::Attach(kind, connected_socket(fd)?)),
                    _ => Err(Failure::invalid(
                        "descriptors",
                        format!("expected 1 descriptor (a connected socket), got {count}"),
                    )),
                }
            }
        }
    }
}

/// A file that a state can be written to.
fn empty_file(fd: OwnedFd) -> Result<File, Failure> {
    let file = File::from(fd);
    let flags = fcntl(&file, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    let writable = flags
        .is_ok_and(|flags| matches!(flags & OFlag::O_ACCMODE, OFlag::O_WRONLY | OFlag::O_RDWR));
    let empty = file
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0);
    if writable && empty {
        Ok(file)
    } else {
        Err(Failure::invalid(
            "state",
            "the descriptor is no empty file that is open for writing",
        ))
    }
}

fn connected_socket(fd: OwnedFd) -> Result<UnixStream, Failure> {
    let socket = UnixStream::from(fd);
    let stream = getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream);
    let connected = {
        use std::os::fd::AsRawFd;
        getpeername::<nix::sys::socket::UnixAddr>(socket.as_raw_fd()).is_ok()
    };
    if stream && connected {
        Ok(socket)
    } else {
        Err(Failure::invalid(
            "socket",
            "the descriptor is no connected UNIX stream socket",
        ))
    }
}

#[cfg(test)]
mod tests {
    use longship_framed::vmm::{AttachDevice, Boot, Snapshot};

    use super::*;

    fn refused(operation: Option<request::Operation>, fds: Vec<OwnedFd>) -> String {
        let request = Request { id: 1, operation };
        Operation::check(request, fds).err().unwrap().field
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn refusals_name_the_field() {
        let attach = |kind| Some(request::Operation::Attach(AttachDevice { r#type: kind }));
        let boot = Some(request::Operation::Boot(Boot {}));
        assert_eq!(refused(None, vec![]), "operation");
        assert_eq!(refused(boot, vec![null()]), "descriptors");
        assert_eq!(refused(attach(0), vec![null()]), "type");
        assert_eq!(refused(attach(2), vec![]), "descriptors");
        assert_eq!(refused(attach(2), vec![null(), null()]), "descriptors");
        assert_eq!(refused(attach(2), vec![null()]), "socket");
        let snapshot = || Some(request::Operation::Snapshot(Snapshot {}));
        assert_eq!(refused(snapshot(), vec![]), "descriptors");
        assert_eq!(refused(snapshot(), vec![null(), null()]), "descriptors");
        assert_eq!(refused(snapshot(), vec![null()]), "state");
        let full = tempfile::tempfile().unwrap();
        full.set_len(1).unwrap();
        assert_eq!(refused(snapshot(), vec![full.into()]), "state");
    }
}
