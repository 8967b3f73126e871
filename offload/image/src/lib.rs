//! OCI images: pulled, verified, flattened, one EROFS disk each.

mod digest;
pub mod reference;

// The tests' parts name this crate as everybody else does.
#[cfg(test)]
extern crate self as longship_image;

#[cfg(feature = "store")]
mod blob;
#[cfg(feature = "store")]
mod convert;
#[cfg(feature = "store")]
mod erofs;
#[cfg(feature = "store")]
mod error;
#[cfg(feature = "store")]
mod flatten;
#[cfg(feature = "store")]
mod flight;
#[cfg(feature = "store")]
mod layer;
#[cfg(feature = "store")]
mod manifest;
#[cfg(feature = "store")]
mod record;
#[cfg(feature = "store")]
mod source;
#[cfg(feature = "store")]
mod store;
#[cfg(feature = "store")]
mod tree;
#[cfg(feature = "store")]
mod walk;

pub use digest::{Digest, DigestError};
#[cfg(feature = "store")]
pub use error::ImageError;
#[cfg(feature = "store")]
pub use manifest::ImageConfig;
#[cfg(feature = "store")]
pub use record::Image;
pub use reference::{ReferenceError, validate_reference};
#[cfg(feature = "store")]
pub use store::{DEFAULT_MAX_IMAGE_BYTES, ImageStore, StoreConfig};
