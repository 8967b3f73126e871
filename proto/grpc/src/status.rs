//! An error's class and field survive gRPC: the [`Failure`] is the status's detail.

use longship_framed::error::{Class, Failure};
use prost::Message;
use tonic::{Code, Status};

/// Turns a [`Failure`] into what gRPC sends.
pub trait FailureExt {
    /// The status with the code of the class, the text, and the failure as detail.
    fn into_status(self) -> Status;
}

impl FailureExt for Failure {
    fn into_status(self) -> Status {
        Status::with_details(
            code_of(self.class()),
            self.to_string(),
            self.encode_to_vec().into(),
        )
    }
}

/// The failure behind a status; where the peer sent none (a proxy, a broken
/// connection) the code decides the class.
pub fn failure_of(status: &Status) -> Failure {
    if let Ok(failure) = Failure::decode(status.details())
        && failure.class() != Class::Unspecified
    {
        return failure;
    }
    Failure::new(class_of(status.code()), "", status.message())
}

fn code_of(class: Class) -> Code {
    match class {
        Class::Invalid => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::Conflict => Code::AlreadyExists,
        Class::StaleGeneration => Code::FailedPrecondition,
        Class::Exhausted => Code::ResourceExhausted,
        Class::Unavailable => Code::Unavailable,
        Class::Denied => Code::PermissionDenied,
        Class::Internal | Class::Unspecified => Code::Internal,
    }
}

fn class_of(code: Code) -> Class {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Class::Invalid,
        Code::NotFound => Class::NotFound,
        Code::AlreadyExists | Code::Aborted => Class::Conflict,
        Code::FailedPrecondition => Class::StaleGeneration,
        Code::ResourceExhausted => Class::Exhausted,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Class::Unavailable,
        Code::PermissionDenied | Code::Unauthenticated => Class::Denied,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Class::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_status() {
        for class in (1..=8).filter_map(|n| Class::try_from(n).ok()) {
            let failure = Failure::new(class, "spec.zone", "no zone `x`; there are: a, b");
            assert_eq!(failure_of(&failure.clone().into_status()), failure);
        }
    }

    #[test]
    fn a_status_without_detail_still_has_a_class() {
        let failure = failure_of(&Status::unavailable("connection refused"));
        assert_eq!(failure.class(), Class::Unavailable);
        assert_eq!(failure.message, "connection refused");
    }

    #[test]
    fn a_detail_that_is_no_failure_is_passed_over() {
        let status = Status::with_details(Code::NotFound, "gone", vec![0xff, 0xff].into());
        assert_eq!(failure_of(&status).class(), Class::NotFound);
    }
}
