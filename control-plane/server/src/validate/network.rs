//! Networks that somebody wants.

use longship_proto::Failure;
use longship_proto::control::v1::{Subnet, Vpc};

use super::names::dns_label;
use crate::ipam::Cidr;

/// A VPC whose every field has been checked.
#[derive(Debug)]
pub(crate) struct NewVpc {
    pub(crate) name: String,
    /// `None`: the next that is free.
    pub(crate) cidr: Option<Cidr>,
}

/// A subnet whose every field has been checked.
#[derive(Debug)]
pub(crate) struct NewSubnet {
    pub(crate) name: String,
    pub(crate) cidr: Cidr,
    /// Empty: any.
    pub(crate) zone: String,
}

/// Checks a VPC. What only the server sets is left out.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn vpc(given: &Vpc) -> Result<NewVpc, Failure> {
    dns_label("vpc.name", &given.name)?;
    let cidr = match given.cidr.is_empty() {
        true => None,
        false => Some(cidr("vpc.cidr", &given.cidr)?),
    };
    Ok(NewVpc {
        name: given.name.clone(),
        cidr,
    })
}

/// Checks a subnet.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn subnet(given: Subnet) -> Result<NewSubnet, Failure> {
    dns_label("subnet.name", &given.name)?;
    let cidr = cidr("subnet.cidr", &given.cidr)?;
    if !given.zone.is_empty() {
        dns_label("subnet.zone", &given.zone)?;
    }
    Ok(NewSubnet {
        name: given.name,
        cidr,
        zone: given.zone,
    })
}

fn cidr(field: &str, text: &str) -> Result<Cidr, Failure> {
    text.parse()
        .map_err(|what: String| Failure::invalid(field, what))
}
