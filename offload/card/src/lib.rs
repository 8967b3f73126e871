//! The card's daemon: the control path of one host. It takes pods from the control
//! plane, prepares their images, ENIs, disks and machines, serves their devices
//! over vhost-user, speaks to their init, and streams to their clients.

#![allow(
    clippy::result_large_err,
    reason = "gRPC handlers return tonic's Status"
)]

mod agent;
mod api;
mod card;
mod guest;
mod images;
mod journal;
mod keeper;
mod link;
mod logs;
mod plan;
mod pod;
mod reconciler;
mod serve;
mod status;
mod tls;
mod turns;
mod usage;

pub use serve::{Config, StartError, serve};
pub use tls::TlsFiles;
