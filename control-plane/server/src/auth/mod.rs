//! Who calls, and what they may do.
//!
//! One layer in front of all services finds out who calls ([`Caller`]) and whether
//! the call is for such ([`rules`]). Whose things a call is about only its service
//! knows: it asks the [`Scope`].

mod caller;
mod layer;
mod rules;
mod scope;
mod tokens;

pub(crate) use caller::{Caller, Who};
pub(crate) use layer::AuthLayer;
pub(crate) use scope::Scope;
pub(crate) use tokens::{NewToken, TokenRecord, Tokens};

use longship_proto::{Failure, FailureExt};
use tonic::{Code, Status};

/// The refusal of somebody who is not known.
fn unauthenticated(message: impl Into<String>) -> Status {
    let status = Failure::denied(message).into_status();
    let details = status.details().to_vec();
    Status::with_details(Code::Unauthenticated, status.message(), details.into())
}
