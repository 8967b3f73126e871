//! Both stores do what is promised of a store, through restarts and crashes; etcd is a
//! real process.
#![allow(clippy::unwrap_used)] // the helpers are tests too

mod backend;
mod backup;
mod contract;
mod crashes;
mod election;
mod embedded;
mod histories;
mod model;
