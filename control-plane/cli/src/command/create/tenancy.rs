//! `longship create tenant` and `longship create token`

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use longship_proto::Failure;
use longship_proto::control::v1::{CreateTokenRequest, Quota, Role, Tenant};

use crate::error::CliError;
use crate::manifest::{cpu_millis, memory_bytes};
use crate::server::Server;
use crate::show::{self, time};

/// A tenant and its quota. One that exists is changed in what is given here.
#[derive(Debug, Args)]
pub(super) struct NewTenant {
    /// DNS label.
    name: String,
    /// All its namespaces, separated by commas.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    namespaces: Option<Vec<String>>,
    /// Pods at once; `none`: no limit.
    #[arg(long, value_name = "N")]
    pods: Option<Limit<u64>>,
    /// CPUs at once, e.g. 100 or 500m.
    #[arg(long, value_name = "QUANTITY")]
    cpu: Option<Limit<Cpu>>,
    /// Memory at once, e.g. 64Gi.
    #[arg(long, value_name = "QUANTITY")]
    memory: Option<Limit<Memory>>,
    /// Network interfaces at once.
    #[arg(long, value_name = "N")]
    enis: Option<Limit<u64>>,
    /// GPUs at once.
    #[arg(long, value_name = "N")]
    gpus: Option<Limit<u64>>,
    /// Pods created a second, over time.
    #[arg(long, value_name = "N")]
    creates_per_second: Option<Limit<u32>>,
    /// Pods created at once after a pause.
    #[arg(long, value_name = "N")]
    create_burst: Option<Limit<u32>>,
    /// Its share of a full fleet against other tenants' weights.
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy)]
struct Limit<T>(Option<T>);

impl<T: FromStr<Err: ToString>> FromStr for Limit<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => {
                let limit = text.parse::<T>().map_err(|error| error.to_string());
                Ok(Self(Some(limit?)))
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Cpu(u64);

impl FromStr for Cpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(cpu_millis(text)?.into()))
    }
}

#[derive(Debug, Clone, Copy)]
struct Memory(u64);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(memory_bytes(text)?))
    }
}

impl NewTenant {
    pub(super) async fn put(self, server: &mut Server) -> Result<String, CliError> {
        let before = match server.tenant(&self.name).await {
            Ok(tenant) => tenant,
            Err(error) if error.is_not_found() => Tenant {
                name: self.name.clone(),
                ..Tenant::default()
            },
            Err(error) => return Err(error),
        };
        let tenant = server.put_tenant(self.change(before)).await?;
        Ok(format!("tenant/{} written", tenant.name))
    }

    fn change(self, before: Tenant) -> Tenant {
        fn limit<T, U>(new: Option<Limit<T>>, of: impl Fn(T) -> U, old: Option<U>) -> Option<U> {
            new.map_or(old, |Limit(new)| new.map(of))
        }
        let old = before.quota.unwrap_or_default();
        let rate = limit(self.creates_per_second, |n| n, old.creates_per_second);
        let burst = limit(self.create_burst, |n| n, old.create_burst);
        let quota = Quota {
            pods: limit(self.pods, |n| n, old.pods),
            cpu_millis: limit(self.cpu, |Cpu(n)| n, old.cpu_millis),
            memory_bytes: limit(self.memory, |Memory(n)| n, old.memory_bytes),
            enis: limit(self.enis, |n| n, old.enis),
            gpus: limit(self.gpus, |n| n, old.gpus),
            creates_per_second: rate,
            // Without a rate it means nothing.
            create_burst: burst.filter(|_| rate.is_some() || self.create_burst.is_some()),
        };
        Tenant {
            namespaces: self.namespaces.unwrap_or(before.namespaces),
            quota: Some(quota),
            weight: self.weight.unwrap_or(before.weight),
            ..before
        }
    }
}

/// A token with which clients call. It is printed once, and kept nowhere.
#[derive(Debug, Args)]
pub(super) struct NewToken {
    /// What it may do.
    #[arg(long)]
    role: RoleName,
    /// Whose it is; operators belong to no tenant.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// How long it is good for, e.g. 12h or 90d; 30 days where it is not given.
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::duration::parse)]
    duration: Option<Duration>,
    /// What it is for.
    #[arg(long, default_value = "", hide_default_value = true)]
    note: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    /// Reads what the tenant has.
    Viewer,
    /// Creates, changes and deletes it, and opens its pods' streams.
    Editor,
    /// Everything, of all tenants.
    Operator,
}

impl NewToken {
    /// Prints the token alone, so that a script can take it.
    pub(super) async fn create(self, server: &mut Server) -> Result<String, CliError> {
        let seconds = match self.duration {
            None => 0,
            Some(duration) => match u32::try_from(duration.as_secs()) {
                Ok(seconds @ 1..) => seconds,
                _ => {
                    let wrong = "must be between a second and a year";
                    return Err(Failure::invalid("--for", wrong).into());
                }
            },
        };
        let role = match self.role {
            RoleName::Viewer => Role::Viewer,
            RoleName::Editor => Role::Editor,
            RoleName::Operator => Role::Operator,
        };
        let request = CreateTokenRequest {
            tenant: self.tenant,
            role: role.into(),
            ttl_seconds: seconds,
            note: self.note,
        };
        let created = server.create_token(request).await?;
        let info = created.info.unwrap_or_default();
        let left = time::length(info.expires_us.saturating_sub(time::now_us()));
        eprintln!(
            "token/{} of {} created, good for {left}; it is shown only now:",
            info.id,
            match info.tenant.as_str() {
                "" => "an operator".to_owned(),
                tenant => format!("a tenant's {} ({tenant})", show::tenancy::role(info.role())),
            },
        );
        Ok(created.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> NewTenant {
        NewTenant {
            name: "red".into(),
            namespaces: None,
            pods: None,
            cpu: None,
            memory: None,
            enis: None,
            gpus: None,
            creates_per_second: None,
            create_burst: None,
            weight: None,
        }
    }

    #[test]
    fn what_is_not_given_stays_and_none_takes_a_limit_away() {
        let before = Tenant {
            name: "red".into(),
            namespaces: vec!["shop".into()],
            quota: Some(Quota {
                pods: Some(10),
                creates_per_second: Some(5),
                create_burst: Some(50),
                ..Quota::default()
            }),
            weight: 3,
            usage: None,
            resource_version: 8,
        };
        assert_eq!(nothing().change(before.clone()), before);
        let changed = NewTenant {
            pods: Some("none".parse().unwrap()),
            cpu: Some("1500m".parse().unwrap()),
            memory: Some("1Gi".parse().unwrap()),
            creates_per_second: Some("none".parse().unwrap()),
            ..nothing()
        };
        let changed = changed.change(before.clone());
        let wanted = Quota {
            cpu_millis: Some(1500),
            memory_bytes: Some(1 << 30),
            ..Quota::default()
        };
        assert_eq!(changed.quota, Some(wanted));
        assert_eq!(changed.namespaces, before.namespaces);
        assert_eq!(changed.resource_version, 8);
        assert!("some".parse::<Limit<u64>>().is_err());
        assert!("1.5.2".parse::<Limit<Cpu>>().is_err());
    }
}
