//! Everything that comes from outside is checked here, completely, before anything
//! is reserved or written. A refusal names the field by its path in the message.

mod container;
#[cfg(test)]
mod faults;
mod image;
mod image_cache;
mod metadata;
mod names;
mod network;
mod once;
mod patch;
mod placement;
mod pod;
mod register;
mod reservation;
mod selector;
mod tenant;
mod token;

pub(crate) use image_cache::image_cache;
pub(crate) use metadata::{annotations, labels};
pub(crate) use names::{dns_label, namespace_or_default};
pub(crate) use network::{NewSubnet, NewVpc, subnet, vpc};
pub(crate) use once::{Once, once};
pub(crate) use patch::{PodPatch, patch};
pub(crate) use pod::{NewPod, grace_limit, in_batch, pod, pod_count, pod_size, pods};
pub(crate) use register::{ValidRegister, register};
pub(crate) use reservation::reservation;
pub(crate) use selector::selector;
pub(crate) use tenant::tenant;
pub(crate) use token::token;
