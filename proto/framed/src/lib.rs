//! The protocols that do not go over gRPC: agent ↔ VMM (a socketpair) and
//! card ↔ guest init (vsock). Both use one framing: a `u32` length in little
//! endian, then that many bytes of protobuf.

mod clock;
mod failure;
mod frame;
pub mod machine_ports;
mod rights;

pub use clock::now_us;
pub use frame::{FrameError, MAX_FRAME, decode, encode, read_frame, write_frame};
#[cfg(feature = "tokio")]
pub use frame::{read_frame_async, write_frame_async};
pub use rights::{MAX_DESCRIPTORS, receive_frame_with_fds, send_frame_with_fds};

/// What went wrong, in a form that survives every hop.
#[allow(missing_docs)]
pub mod error {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/longship.error.v1.rs"));
    }
    pub use v1::*;
}

/// Agent ↔ VMM.
#[allow(missing_docs)]
pub mod vmm {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/longship.vmm.v1.rs"));
    }
    pub use v1::*;
}

/// Card ↔ guest init.
#[allow(missing_docs)]
pub mod guest {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/longship.guest.v1.rs"));
    }
    pub use v1::*;
}
