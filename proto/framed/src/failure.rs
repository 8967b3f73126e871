//! Short ways to make a [`Failure`], one a class that callers tell apart.

use crate::error::{Class, Failure};

impl Failure {
    /// A failure of `class` at `field` (a path, or empty), said in `message`.
    pub fn new(class: Class, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            class: class.into(),
            field: field.into(),
            message: message.into(),
        }
    }

    /// The request is wrong in `field`; repeating it is useless.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Class::Invalid, field, message)
    }

    /// What the request names does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Class::NotFound, "", message)
    }

    /// The request contradicts what exists.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Class::Conflict, "", message)
    }

    /// The request carries an older generation than one already seen.
    pub fn stale(message: impl Into<String>) -> Self {
        Self::new(Class::StaleGeneration, "", message)
    }

    /// A limit or the capacity is used up.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(Class::Exhausted, "", message)
    }

    /// A part that is needed is not there now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, "", message)
    }

    /// The caller is not allowed to do this.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Class::Denied, "", message)
    }

    /// A fault of Longship itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, "", message)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

impl std::error::Error for Failure {}
