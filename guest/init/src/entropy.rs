//! Entropy from outside: clones of one template must not draw the same numbers.

use std::fs::{File, OpenOptions};
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

/// The kernel's random generator.
#[derive(Debug)]
pub(crate) struct Generator {
    device: File,
}

impl Generator {
    /// # Errors
    /// The kernel's.
    pub(crate) fn open() -> Result<Self, Failed> {
        let mut options = OpenOptions::new();
        let device = options.write(true).open("/dev/urandom");
        let device = device.doing(|| "open /dev/urandom")?;
        Ok(Self { device })
    }

    /// Mixes the bytes into the pool, credits them in full, and makes the generator
    /// use them at once.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn add(&self, bytes: [u8; BYTES]) -> Result<(), Failed> {
        let info = PoolInfo {
            entropy_count: 256,
            buf_size: 32,
            bytes,
        };
        // SAFETY: the request reads a rand_pool_info, whose buf_size says truly how
        // many bytes follow; `info` outlives the call.
        let added = unsafe { libc::ioctl(self.device.as_raw_fd(), ADD_ENTROPY, &raw const info) };
        if added != 0 {
            return Err(Failed::new("add entropy", io::Error::last_os_error()));
        }
        // SAFETY: the request takes no argument.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), RESEED) } != 0 {
            let error = io::Error::last_os_error();
            return Err(Failed::new("reseed the random generator", error));
        }
        Ok(())
    }
}
