//! Entropy from outside: clones of one template must not draw the same numbers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use crate::failed::{Doing, Failed};

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` (random(4)).
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

const BYTES: usize = 32;

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct PoolInfo {
    /// Bits.
    entropy_count: libc::c_int,
    /// Bytes.
    buf_size: libc::c_int,
    bytes: [u8; BYTES],
}

/// Mixes the bytes into the kernel's pool, credits them in full, and makes the
/// generator use them at once.
///
/// # Errors
/// The kernel's.
pub(crate) fn add(bytes: [u8; BYTES]) -> Result<(), Failed> {
    let device = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .doing(|| "open /dev/urandom")?;
    let info = PoolInfo {
        entropy_count: 256,
        buf_size: 32,
        bytes,
    };
    // SAFETY: the request reads a rand_pool_info, whose buf_size says truly how
    // many bytes follow; `info` outlives the call.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const info) };
    if added != 0 {
        return Err(Failed::new("add entropy", io::Error::last_os_error()));
    }
    // SAFETY: the request takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RESEED) } != 0 {
        let error = io::Error::last_os_error();
        return Err(Failed::new("reseed the random generator", error));
    }
    Ok(())
}
