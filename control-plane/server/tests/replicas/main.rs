//! Several control planes over a real etcd: real processes, killed and stopped.
#![allow(clippy::unwrap_used)] // the helpers are tests too

mod failover;
mod load;
mod replicas;
