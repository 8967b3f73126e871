//! Networks of tenants, and the addresses of pods in them.
//!
//! A VPC is one network: its pods reach each other whatever their subnets are, so an
//! ENI has the VPC's prefix and the VPC's gateway (on a card all ENIs of a VPC hang on
//! one bridge). A subnet is a part of the VPC's addresses, perhaps one zone's. VPCs know
//! nothing of each other, so two of them may have the same addresses.

mod addresses;
mod cidr;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use longship_proto::Failure;
use longship_proto::control::v1::{self as proto, Eni, PodSpec};

use crate::records::{SubnetRecord, VpcRecord};
use crate::tenancy;
use addresses::Addresses;
pub(crate) use cidr::Cidr;

/// Largest IP packet, in bytes.
pub(crate) const MTU: u32 = 1500;
/// The subnet that a VPC begins with, where nobody chose another.
pub(crate) const DEFAULT_SUBNET: &str = "default";

/// VPCs of one tenant, and subnets of one VPC.
const MAX_VPCS: usize = 100;
const MAX_SUBNETS: usize = 256;
/// The N of 10.N.0.0/16 of the VPC `default`; others have the next that is free.
const DEFAULT_NUMBER: u8 = 88;

/// All VPCs, and which of their addresses are taken.
#[derive(Debug, Default)]
pub(crate) struct Ipam {
    vpcs: BTreeMap<String, Vpc>,
}

#[derive(Debug)]
struct Vpc {
    tenant: String,
    cidr: Cidr,
    /// By their first addresses.
    subnets: BTreeMap<Cidr, Subnet>,
}

#[derive(Debug)]
struct Subnet {
    name: String,
    /// Empty: any.
    zone: String,
    addresses: Addresses,
}

impl Subnet {
    fn new(name: &str, cidr: Cidr, zone: &str) -> Self {
        Self {
            name: name.to_owned(),
            zone: zone.to_owned(),
            addresses: Addresses::new(cidr.size()),
        }
    }

    fn is(&self, name: &str) -> bool {
        name.is_empty() || self.name == name
    }
}

impl Vpc {
    /// With a subnet of all its addresses.
    fn whole(tenant: &str, cidr: Cidr) -> Self {
        let subnet = Subnet::new(DEFAULT_SUBNET, cidr, "");
        Self {
            tenant: tenant.to_owned(),
            cidr,
            subnets: BTreeMap::from([(cidr, subnet)]),
        }
    }

    fn record(&self) -> VpcRecord {
        let subnets = self.subnets.iter().map(|(cidr, subnet)| SubnetRecord {
            name: subnet.name.clone(),
            cidr: cidr.to_string(),
            zone: subnet.zone.clone(),
        });
        VpcRecord {
            subnet: 0,
            tenant: self.tenant.clone(),
            cidr: self.cidr.to_string(),
            subnets: subnets.collect(),
        }
    }

    fn to_proto(&self, name: &str) -> proto::Vpc {
        let subnets = self.subnets.iter().map(|(cidr, subnet)| proto::Subnet {
            name: subnet.name.clone(),
            cidr: cidr.to_string(),
            zone: subnet.zone.clone(),
            addresses_used: subnet.addresses.used(),
        });
        proto::Vpc {
            name: name.to_owned(),
            tenant: self.tenant.clone(),
            cidr: self.cidr.to_string(),
            subnets: subnets.collect(),
        }
    }

    fn add(&mut self, name: &str, cidr: Cidr, zone: &str) -> Result<(), Failure> {
        if self.subnets.values().any(|subnet| subnet.name == name) {
            return Err(Failure {
                field: "subnet.name".into(),
                ..Failure::conflict(format!("the VPC has a subnet `{name}` already"))
            });
        }
        if self.subnets.len() >= MAX_SUBNETS {
            return Err(Failure::exhausted(format!(
                "the VPC has {MAX_SUBNETS} subnets"
            )));
        }
        if !self.cidr.contains(cidr) {
            return Err(Failure::invalid(
                "subnet.cidr",
                format!("{cidr} is not in the VPC's {}", self.cidr),
            ));
        }
        if let Some((other, subnet)) = self.subnets.iter().find(|(other, _)| other.overlaps(cidr)) {
            return Err(Failure {
                field: "subnet.cidr".into(),
                ..Failure::conflict(format!(
                    "{cidr} overlaps {other} of the subnet `{}`",
                    subnet.name
                ))
            });
        }
        self.subnets.insert(cidr, Subnet::new(name, cidr, zone));
        Ok(())
    }
}

impl Ipam {
    /// Puts back a VPC of the store. Before there were subnets it had one of all its
    /// addresses.
    ///
    /// # Errors
    /// A sentence, where it cannot be.
    pub(crate) fn adopt_vpc(&mut self, name: &str, record: &VpcRecord) -> Result<(), String> {
        let tenant = match record.tenant.as_str() {
            "" => tenancy::DEFAULT,
            tenant => tenant,
        };
        let vpc = if record.cidr.is_empty() {
            let number = u8::try_from(record.subnet).map_err(|error| error.to_string())?;
            Vpc::whole(tenant, Cidr::ten(number))
        } else {
            let mut vpc = Vpc {
                tenant: tenant.to_owned(),
                cidr: record.cidr.parse()?,
                subnets: BTreeMap::new(),
            };
            for subnet in &record.subnets {
                vpc.add(&subnet.name, subnet.cidr.parse()?, &subnet.zone)
                    .map_err(|failure| failure.message)?;
            }
            vpc
        };
        self.vpcs.insert(name.to_owned(), vpc);
        Ok(())
    }

    /// Puts back an address that was given to a pod earlier.
    ///
    /// # Errors
    /// A sentence, where it is no address of the VPC, or taken.
    pub(crate) fn adopt(&mut self, vpc: &str, address: &str) -> Result<(), String> {
        let found = self.find(vpc, address);
        let (addresses, number) =
            found.ok_or_else(|| format!("`{address}` is no address of the VPC `{vpc}`"))?;
        match addresses.take(number) {
            true => Ok(()),
            false => Err(format!("the address {address} is taken twice")),
        }
    }

    /// Finds out in which network a new pod will be: its VPC, which is made where there
    /// is none of that name, and the zones to which its subnets confine it. Answers what
    /// has to be remembered of a new VPC.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID` or `EXHAUSTED` at `spec.vpc` or `spec.subnet`.
    pub(crate) fn join(
        &mut self,
        tenant: &str,
        spec: &mut PodSpec,
    ) -> Result<Option<(String, VpcRecord)>, Failure> {
        if spec.vpc.is_empty() {
            tenant.clone_into(&mut spec.vpc);
        }
        let mut new = None;
        if !self.vpcs.contains_key(&spec.vpc) {
            if !spec.subnet.is_empty() && spec.subnet != DEFAULT_SUBNET {
                return Err(no_subnet("spec.subnet", &spec.vpc, &spec.subnet));
            }
            let number = self.free_number(&spec.vpc, tenant, "spec.vpc")?;
            let vpc = Vpc::whole(tenant, Cidr::ten(number));
            new = Some((spec.vpc.clone(), vpc.record()));
            self.vpcs.insert(spec.vpc.clone(), vpc);
        }
        let vpc = self.of_tenant(&spec.vpc, Some(tenant), "spec.vpc")?;
        let named = vpc
            .subnets
            .values()
            .filter(|subnet| subnet.is(&spec.subnet));
        let zones: BTreeSet<&str> = named.map(|subnet| subnet.zone.as_str()).collect();
        if zones.is_empty() {
            return Err(match spec.subnet.is_empty() {
                true => {
                    Failure::invalid("spec.vpc", format!("the VPC `{}` has no subnet", spec.vpc))
                }
                false => no_subnet("spec.subnet", &spec.vpc, &spec.subnet),
            });
        }
        if !zones.contains("") {
            let zones = zones.into_iter().map(str::to_owned).collect();
            confine(spec, zones)?;
        }
        Ok(new)
    }

    /// Takes the lowest free address of the VPC's subnet of that name (empty: of any)
    /// that a pod in that zone may have; `None` where there is none left.
    pub(crate) fn allocate(&mut self, vpc: &str, subnet: &str, zone: &str) -> Option<Eni> {
        let found = self.vpcs.get_mut(vpc)?;
        let address = found.subnets.iter_mut().find_map(|(cidr, one)| {
            let fits = one.is(subnet) && (one.zone.is_empty() || one.zone == zone);
            let number = fits.then(|| one.addresses.take_lowest()).flatten()?;
            Some(cidr.address(number))
        })?;
        Some(Eni {
            vpc: vpc.to_owned(),
            address: address.to_string(),
            prefix_length: found.cidr.length(),
            gateway: found.cidr.address(1).to_string(),
            mac: mac(address),
            mtu: MTU,
        })
    }

    /// Gives an address back. One that nobody has is passed over.
    pub(crate) fn release(&mut self, vpc: &str, address: &str) {
        if let Some((addresses, number)) = self.find(vpc, address) {
            addresses.give_back(number);
        }
    }

    /// Makes a VPC without subnets; without a prefix it gets the next that is free.
    ///
    /// # Errors
    /// `CONFLICT` at `vpc.name`, `EXHAUSTED`.
    pub(crate) fn create(
        &mut self,
        name: &str,
        tenant: &str,
        cidr: Option<Cidr>,
    ) -> Result<(proto::Vpc, VpcRecord), Failure> {
        if self.vpcs.contains_key(name) {
            return Err(Failure {
                field: "vpc.name".into(),
                ..Failure::conflict(format!("there is a VPC `{name}` already"))
            });
        }
        let cidr = match cidr {
            Some(cidr) => {
                self.check_count(tenant, "vpc")?;
                cidr
            }
            None => Cidr::ten(self.free_number(name, tenant, "vpc")?),
        };
        let vpc = Vpc {
            tenant: tenant.to_owned(),
            cidr,
            subnets: BTreeMap::new(),
        };
        let made = (vpc.to_proto(name), vpc.record());
        self.vpcs.insert(name.to_owned(), vpc);
        Ok(made)
    }

    /// Adds a subnet to a VPC of that tenant (`None`: of any).
    ///
    /// # Errors
    /// `NOT_FOUND` at `vpc`, `INVALID` or `CONFLICT` at the subnet's field, `EXHAUSTED`.
    pub(crate) fn add_subnet(
        &mut self,
        tenant: Option<&str>,
        vpc: &str,
        (name, cidr, zone): (&str, Cidr, &str),
    ) -> Result<VpcRecord, Failure> {
        self.of_tenant(vpc, tenant, "vpc")?;
        let found = self.vpcs.get_mut(vpc).ok_or_else(|| no_vpc("vpc", vpc))?;
        found.add(name, cidr, zone)?;
        Ok(found.record())
    }

    /// Forgets a VPC of that tenant (`None`: of any); no pod may be in it any more.
    ///
    /// # Errors
    /// `NOT_FOUND` at `name`, `CONFLICT` where addresses are taken.
    pub(crate) fn delete(&mut self, tenant: Option<&str>, name: &str) -> Result<(), Failure> {
        let vpc = self.of_tenant(name, tenant, "name")?;
        let used: u32 = vpc
            .subnets
            .values()
            .map(|subnet| subnet.addresses.used())
            .sum();
        if used > 0 {
            return Err(Failure::conflict(format!(
                "pods have {used} addresses of the VPC `{name}`"
            )));
        }
        self.vpcs.remove(name);
        Ok(())
    }

    /// Forgets a subnet of which no address is taken.
    ///
    /// # Errors
    /// `NOT_FOUND` at `vpc` or `name`, `CONFLICT`.
    pub(crate) fn delete_subnet(
        &mut self,
        tenant: Option<&str>,
        vpc: &str,
        name: &str,
    ) -> Result<VpcRecord, Failure> {
        self.of_tenant(vpc, tenant, "vpc")?;
        let found = self.vpcs.get_mut(vpc).ok_or_else(|| no_vpc("vpc", vpc))?;
        let mut subnets = found.subnets.iter();
        let (cidr, subnet) = subnets
            .find(|(_, subnet)| subnet.name == name)
            .ok_or_else(|| no_subnet("name", vpc, name))?;
        if subnet.addresses.used() > 0 {
            return Err(Failure::conflict(format!(
                "pods have {} addresses of the subnet `{name}`",
                subnet.addresses.used()
            )));
        }
        let cidr = *cidr;
        found.subnets.remove(&cidr);
        Ok(found.record())
    }

    /// The VPCs of a tenant, or all, by name.
    pub(crate) fn list(&self, tenant: Option<&str>) -> Vec<proto::Vpc> {
        let wanted = |vpc: &Vpc| tenant.is_none_or(|tenant| vpc.tenant == tenant);
        let vpcs = self.vpcs.iter().filter(|(_, vpc)| wanted(vpc));
        vpcs.map(|(name, vpc)| vpc.to_proto(name)).collect()
    }

    /// One of a tenant's; what is another's does not exist for it.
    fn of_tenant(&self, name: &str, tenant: Option<&str>, field: &str) -> Result<&Vpc, Failure> {
        let vpc = self.vpcs.get(name);
        let vpc = vpc.filter(|vpc| tenant.is_none_or(|tenant| vpc.tenant == tenant));
        vpc.ok_or_else(|| no_vpc(field, name))
    }

    fn check_count(&self, tenant: &str, field: &str) -> Result<(), Failure> {
        let count = self
            .vpcs
            .values()
            .filter(|vpc| vpc.tenant == tenant)
            .count();
        if count < MAX_VPCS {
            return Ok(());
        }
        Err(Failure {
            field: field.into(),
            ..Failure::exhausted(format!("the tenant has {count} VPCs; at most {MAX_VPCS}"))
        })
    }

    /// A number that no VPC's addresses overlap; else one that none of the tenant's do.
    fn free_number(&self, vpc: &str, tenant: &str, field: &str) -> Result<u8, Failure> {
        self.check_count(tenant, field)?;
        let free = |number: u8, tenant: Option<&str>| {
            let of = |vpc: &&Vpc| tenant.is_none_or(|tenant| vpc.tenant == tenant);
            let mut others = self.vpcs.values().filter(of);
            !others.any(|other| other.cidr.overlaps(Cidr::ten(number)))
        };
        if vpc == tenancy::DEFAULT && free(DEFAULT_NUMBER, Some(tenant)) {
            return Ok(DEFAULT_NUMBER);
        }
        let numbers = || (DEFAULT_NUMBER + 1..=u8::MAX).chain(0..DEFAULT_NUMBER);
        let alone = numbers().find(|number| free(*number, None));
        let number = alone.or_else(|| numbers().find(|number| free(*number, Some(tenant))));
        number.ok_or_else(|| Failure {
            field: field.into(),
            ..Failure::exhausted("no 10.N.0.0/16 is left: give the VPC a prefix of its own")
        })
    }

    fn find(&mut self, vpc: &str, address: &str) -> Option<(&mut Addresses, u32)> {
        let address: Ipv4Addr = address.parse().ok()?;
        let mut subnets = self.vpcs.get_mut(vpc)?.subnets.iter_mut();
        subnets.find_map(|(cidr, subnet)| {
            let number = cidr.number(address)?;
            Some((&mut subnet.addresses, number))
        })
    }
}

/// Leaves of the spec's zones only those.
fn confine(spec: &mut PodSpec, zones: Vec<String>) -> Result<(), Failure> {
    let (field, what) = match spec.subnet.is_empty() {
        true => ("spec.vpc", format!("the VPC `{}` has subnets", spec.vpc)),
        false => ("spec.subnet", format!("the subnet `{}` is", spec.subnet)),
    };
    let refused = || Failure::invalid(field, format!("{what} only in {}", zones.join(", ")));
    if !spec.zone.is_empty() {
        return match zones.contains(&spec.zone) {
            true => Ok(()),
            false => Err(refused()),
        };
    }
    let placement = spec.placement.get_or_insert_default();
    if placement.zones.is_empty() {
        placement.zones = zones;
        return Ok(());
    }
    if !placement.zones.iter().any(|zone| zones.contains(zone)) {
        return Err(refused());
    }
    placement.zones.retain(|zone| zones.contains(zone));
    Ok(())
}

fn no_vpc(field: &str, name: &str) -> Failure {
    Failure {
        field: field.into(),
        ..Failure::not_found(format!("no VPC `{name}`"))
    }
}

fn no_subnet(field: &str, vpc: &str, name: &str) -> Failure {
    Failure {
        field: field.into(),
        ..Failure::not_found(format!("the VPC `{vpc}` has no subnet `{name}`"))
    }
}

/// A locally administered MAC with the address in it: unique where addresses are.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests;
