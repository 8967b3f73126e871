//! What a card needs of whoever provides ENIs.

use std::future::Future;

use crate::{EniError, EniSpec};

/// Provides ENIs: in emulation mode [`crate::BridgeEnis`], with hardware a card
/// that exposes PCI functions.
pub trait EniProvider: Send + Sync {
    /// Makes the ENI ready: when this returns, its device can be attached. The
    /// specification is checked before anything is created, and whatever was
    /// created is undone when a later step fails. Repeating the call with the
    /// same specification is harmless.
    ///
    /// Work that has begun goes on when the future is dropped;
    /// [`EniProvider::release`] ends it either way.
    ///
    /// # Errors
    /// [`EniError::Invalid`]; [`EniError::Conflict`] where an ENI of another
    /// specification has this id, or the MAC, address or socket is in use; what
    /// the kernel refused otherwise.
    fn prepare(&self, spec: EniSpec) -> impl Future<Output = Result<(), EniError>> + Send;

    /// Gives everything back that [`EniProvider::prepare`] made for this id. An
    /// unknown id is fine.
    ///
    /// # Errors
    /// [`EniError::Stopping`].
    fn release(&self, id: &str) -> impl Future<Output = Result<(), EniError>> + Send;

    /// The ENIs that exist or are being made, by id.
    fn list(&self) -> impl Future<Output = Result<Vec<EniSpec>, EniError>> + Send;
}
