//! A container: a root, namespaces and a cgroup of its own; the network, the IPC
//! objects and the host name are the pod's.

mod capabilities;
mod cgroup;
mod namespaces;
mod root;
mod spawn;
mod user;

pub(crate) use cgroup::{Cgroup, Limits, prepare as prepare_cgroups, send as send_signal};
pub(crate) use namespaces::Namespaces;
pub(crate) use root::{ASSEMBLY, RootPlan, WritableLayer};
pub(crate) use spawn::{Spawned, exec, start};
