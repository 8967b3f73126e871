//! The host's agent: sandboxes from spawn to clean-up.
//!
//! A sandbox is one cgroup and one `longship-vmm` process in it. The agent opens
//! everything that the VMM needs and hands it descriptors; it watches the process,
//! and when it has ended gives everything back. One task owns a sandbox from
//! beginning to end ([`sandbox`]), the [`board`] shows what became of each, and
//! [`sandboxes`] decides which call reaches which. Machines come from the [`warm_pool`],
//! from a [`template`] or from a boot of their own ([`machines`]).

mod board;
mod cgroup;
mod channel;
mod command_line;
mod generations;
mod host;
mod kernel_image;
mod listen;
mod machines;
mod pressure;
mod process;
mod request;
mod sandbox;
mod sandboxes;
mod serve;
mod service;
mod shape;
mod stages;
mod state;
mod tail;
mod template;
mod timeline;
mod usage;
mod vmm;
mod warm_pool;

pub use host::{Config, Host, StartError};
pub use listen::Listen;
pub use serve::serve;
