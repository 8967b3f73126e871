//! The channel against a guest that is played by a test driver.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test's own steps"
)]

mod closing;
mod connections;
mod flow;
mod guest;
mod hostile;
