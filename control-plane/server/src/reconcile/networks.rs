//! Networks that come, change and go.

use longship_proto::Failure;
use longship_proto::control::v1::{Subnet, Vpc};
use longship_store::{Expect, Transaction};
use prost::Message;

use super::command::Answer;
use super::plan::{Step, refuse};
use super::state::State;
use super::tenants::tenant_of_pod;
use crate::records::{self, VpcRecord};
use crate::validate::{NewSubnet, NewVpc};

/// What can be asked about networks. A `tenant` of `None` may change everybody's.
#[derive(Debug)]
pub(crate) enum NetworkCommand {
    CreateVpc {
        tenant: String,
        vpc: NewVpc,
        answer: Answer<Vpc>,
    },
    List {
        tenant: Option<String>,
        answer: Answer<Vec<Vpc>>,
    },
    DeleteVpc {
        tenant: Option<String>,
        vpc: String,
        answer: Answer<()>,
    },
    CreateSubnet {
        tenant: Option<String>,
        vpc: String,
        subnet: NewSubnet,
        answer: Answer<Subnet>,
    },
    DeleteSubnet {
        tenant: Option<String>,
        vpc: String,
        name: String,
        answer: Answer<()>,
    },
}

impl State {
    pub(super) fn decide_networks(&mut self, command: NetworkCommand) {
        match command {
            NetworkCommand::CreateVpc {
                tenant,
                vpc,
                answer,
            } => {
                let made = self.create_vpc(&tenant, &vpc);
                self.answer_written(answer, made);
            }
            NetworkCommand::List { tenant, answer } => {
                let vpcs = self.ipam.list(tenant.as_deref());
                self.plan.reply(false, answer, move |_| vpcs);
            }
            NetworkCommand::DeleteVpc {
                tenant,
                vpc,
                answer,
            } => {
                let gone = self.delete_vpc(tenant.as_deref(), &vpc);
                self.answer_written(answer, gone);
            }
            NetworkCommand::CreateSubnet {
                tenant,
                vpc,
                subnet,
                answer,
            } => {
                let made = self.create_subnet(tenant.as_deref(), &vpc, &subnet);
                self.answer_written(answer, made);
            }
            NetworkCommand::DeleteSubnet {
                tenant,
                vpc,
                name,
                answer,
            } => {
                let gone = self.delete_subnet(tenant.as_deref(), &vpc, &name);
                self.answer_written(answer, gone);
            }
        }
    }

    /// Answers after the write, or with the refusal at once.
    pub(super) fn answer_written<T: Send + 'static>(
        &mut self,
        answer: Answer<T>,
        done: Result<T, Failure>,
    ) {
        match done {
            Ok(done) => self.plan.reply(true, answer, move |_| done),
            Err(failure) => refuse(answer, failure),
        }
    }

    fn create_vpc(&mut self, tenant: &str, vpc: &NewVpc) -> Result<Vpc, Failure> {
        // The network of a tenant's own name is that tenant's.
        if vpc.name != tenant && self.tenancy.get(&vpc.name).is_some() {
            return Err(Failure {
                field: "vpc.name".into(),
                ..Failure::conflict(format!("`{}` is another tenant's name", vpc.name))
            });
        }
        let (made, record) = self.ipam.create(&vpc.name, tenant, vpc.cidr)?;
        self.save_vpc(&vpc.name, &record);
        Ok(made)
    }

    pub(super) fn delete_vpc(&mut self, tenant: Option<&str>, vpc: &str) -> Result<(), Failure> {
        self.check_unused(tenant, vpc, None)?;
        self.ipam.delete(tenant, vpc)?;
        self.plan.steps.push(Step {
            transaction: Transaction::new().delete(records::VPC, vpc, Expect::Any),
            pod: None,
        });
        Ok(())
    }

    fn create_subnet(
        &mut self,
        tenant: Option<&str>,
        vpc: &str,
        subnet: &NewSubnet,
    ) -> Result<Subnet, Failure> {
        let NewSubnet { name, cidr, zone } = subnet;
        let record = self.ipam.add_subnet(tenant, vpc, (name, *cidr, zone))?;
        self.save_vpc(vpc, &record);
        self.try_all_addresses_again(vpc);
        Ok(Subnet {
            name: name.clone(),
            cidr: cidr.to_string(),
            zone: zone.clone(),
            addresses_used: 0,
        })
    }

    fn delete_subnet(
        &mut self,
        tenant: Option<&str>,
        vpc: &str,
        name: &str,
    ) -> Result<(), Failure> {
        self.check_unused(tenant, vpc, Some(name))?;
        let record = self.ipam.delete_subnet(tenant, vpc, name)?;
        self.save_vpc(vpc, &record);
        Ok(())
    }

    /// Pods that wait have no address yet, but they will want one.
    fn check_unused(
        &self,
        tenant: Option<&str>,
        vpc: &str,
        subnet: Option<&str>,
    ) -> Result<(), Failure> {
        let mut waiting = self.pods.waiting_after(None);
        // Of another tenant's pods nothing is said.
        let waits = waiting.find(|record| {
            tenant.is_none_or(|tenant| tenant_of_pod(&record.meta) == tenant)
                && record.spec.vpc == vpc
                && subnet.is_none_or(|subnet| record.spec.subnet == subnet)
        });
        match waits {
            None => Ok(()),
            Some(record) => Err(Failure::conflict(format!(
                "pod {} waits for an address of it",
                record.key()
            ))),
        }
    }

    /// Remembers a VPC in the store.
    pub(super) fn save_vpc(&mut self, name: &str, record: &VpcRecord) {
        let bytes = record.encode_to_vec();
        self.plan.steps.push(Step {
            transaction: Transaction::new().put(records::VPC, name, bytes, Expect::Any),
            pod: None,
        });
    }
}
