//! The gRPC services: clients and cards to the control plane, clients to cards,
//! cards to agents; and how an error travels through all of them.

pub mod health;
mod status;
pub mod token;

pub use longship_framed::error::{Class, Failure};
pub use longship_framed::now_us;
pub use status::{FailureExt, failure_of};

/// All services and messages as an encoded `FileDescriptorSet`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/longship.bin"));

/// Clients and cards ↔ control plane.
#[allow(missing_docs)]
pub mod control {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("longship.control.v1");
    }
}

/// Clients ↔ card.
#[allow(missing_docs)]
pub mod card {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("longship.card.v1");
    }
}

/// Card ↔ agent.
#[allow(missing_docs)]
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("longship.agent.v1");
    }
}
