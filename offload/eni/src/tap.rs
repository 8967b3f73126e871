//! A TAP device: Ethernet frames with a virtio-net header, in and out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::net::if_::if_nametoindex;

use crate::EniError;
use crate::net::HEADER_LEN;

mod ioctl {
    //! linux/if_tun.h
    nix::ioctl_write_ptr_bad!(set_iff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_header_len, libc::TUNSETVNETHDRSZ, libc::c_int);
}

/// A TAP that goes when this is dropped. Reads and writes never block.
#[derive(Debug)]
pub(crate) struct Tap {
    file: File,
}

impl Tap {
    /// Creates the TAP `name` in the namespace of the calling thread; with its index
    /// there.
    pub(crate) fn create(name: &str) -> Result<(Self, u32), EniError> {
        let failed = |doing, source| EniError::Tap {
            name: name.to_owned(),
            doing,
            source,
        };
        let request = interface_request(name)
            .ok_or_else(|| failed("naming it", io::ErrorKind::InvalidInput.into()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|e| failed("opening /dev/net/tun", e))?;
        let fd = file.as_raw_fd();
        // SAFETY: `fd` is open, and TUNSETIFF reads and writes one ifreq, which
        // `request` is.
        unsafe { ioctl::set_iff(fd, &raw const request) }
            .map_err(|e| failed("creating it", e.into()))?;
        let header_len = libc::c_int::try_from(HEADER_LEN)
            .map_err(|_| failed("setting its header", io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: `fd` is open, and TUNSETVNETHDRSZ reads one int.
        unsafe { ioctl::set_header_len(fd, &raw const header_len) }
            .map_err(|e| failed("setting its header", e.into()))?;
        let tap = Self { file };
        tap.set_offloads(Offloads::default())
            .map_err(|e| failed("setting its offloads", e))?;
        let index = if_nametoindex(name).map_err(|e| failed("looking for it", e.into()))?;
        Ok((tap, index))
    }

    /// Says what its reader can cope with; everything else the kernel does
    /// itself before a frame is read.
    pub(crate) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument
        // by value.
        unsafe { ioctl::set_offload(self.file.as_raw_fd(), offloads.flags()) }?;
        Ok(())
    }

    /// Throws away what waits to be read, at most so many packets.
    pub(crate) fn drain(&self, packets: usize) {
        // What does not fit is thrown away as well.
        let mut start = [0; 64];
        for _ in 0..packets {
            if (&self.file).read(&mut start).is_err() {
                break;
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What a guest accepts in the frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offloads {
    /// Checksums of TCP and UDP may be missing.
    pub(crate) checksum: bool,
    /// TCP segments over IPv4 may be larger than the MTU; needs `checksum`.
    pub(crate) tso4: bool,
    /// The same over IPv6.
    pub(crate) tso6: bool,
}

impl Offloads {
    /// Whether a frame may be larger than the MTU.
    pub(crate) fn segments(self) -> bool {
        self.checksum && (self.tso4 || self.tso6)
    }

    fn flags(self) -> libc::c_int {
        let mut flags = 0;
        if self.checksum {
            flags |= libc::TUN_F_CSUM;
            flags |= if self.tso4 { libc::TUN_F_TSO4 } else { 0 };
            flags |= if self.tso6 { libc::TUN_F_TSO6 } else { 0 };
        }
        libc::c_int::try_from(flags).unwrap_or(0)
    }
}

/// The request for a new TAP of that name; `None` where the name is too long.
fn interface_request(name: &str) -> Option<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less than there is: the name ends with a zero.
    let (_, room) = request.ifr_name.split_last_mut()?;
    if name.is_empty() || name.len() > room.len() {
        return None;
    }
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).ok()?;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags =
        libc::c_short::from_ne_bytes(u16::try_from(flags).ok()?.to_ne_bytes());
    Some(request)
}
