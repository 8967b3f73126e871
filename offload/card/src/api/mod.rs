//! What the card serves: its pods' streams to clients, its books to operators.

mod admin;
mod exec;
mod streams;

pub(crate) use admin::Admin;
pub(crate) use streams::Streams;
