//! Tenants, with what they have of what they may have, and tokens.

use longship_proto::control::v1::{Role, Tenant, TokenInfo};
use serde_json::{Value, json};

use super::table::{dash, lines, text};
use super::time::{length, rfc3339};
use crate::manifest::{show_cpu, show_memory};

/// One tenant.
pub(crate) fn tenant(tenant: &Tenant) -> Value {
    let quota = tenant.quota.unwrap_or_default();
    let usage = tenant.usage.unwrap_or_default();
    json!({
        "name": tenant.name,
        "namespaces": tenant.namespaces,
        "weight": tenant.weight,
        "resourceVersion": tenant.resource_version.to_string(),
        "quota": {
            "pods": quota.pods,
            "cpuMillis": quota.cpu_millis,
            "memoryBytes": quota.memory_bytes,
            "enis": quota.enis,
            "gpus": quota.gpus,
            "createsPerSecond": quota.creates_per_second,
            "createBurst": quota.create_burst,
        },
        "usage": {
            "pods": usage.pods,
            "cpuMillis": usage.cpu_millis,
            "memoryBytes": usage.memory_bytes,
            "enis": usage.enis,
            "gpus": usage.gpus,
        },
    })
}

/// One line a tenant.
pub(crate) fn tenants(tenants: &[Tenant]) -> String {
    let mut table = lines(&[
        "NAME",
        "NAMESPACES",
        "PODS",
        "CPU",
        "MEMORY",
        "ENIS",
        "GPUS",
        "CREATES/S",
        "WEIGHT",
    ]);
    for tenant in tenants {
        let quota = tenant.quota.unwrap_or_default();
        let usage = tenant.usage.unwrap_or_default();
        let rate = quota.creates_per_second;
        table.add_row([
            tenant.name.clone(),
            dash(tenant.namespaces.join(",")),
            used_of(usage.pods, quota.pods, |n| n.to_string()),
            used_of(usage.cpu_millis, quota.cpu_millis, cpu),
            used_of(usage.memory_bytes, quota.memory_bytes, show_memory),
            used_of(usage.enis, quota.enis, |n| n.to_string()),
            used_of(usage.gpus, quota.gpus, |n| n.to_string()),
            dash(rate.map(|rate| rate.to_string()).unwrap_or_default()),
            tenant.weight.to_string(),
        ]);
    }
    text(&table)
}

fn cpu(millis: u64) -> String {
    match u32::try_from(millis) {
        Ok(millis) => show_cpu(millis),
        Err(_) => (millis / 1000).to_string(),
    }
}

/// `3 of 10`, or `3` where there is no limit.
fn used_of(used: u64, limit: Option<u64>, show: impl Fn(u64) -> String) -> String {
    match limit {
        Some(limit) => format!("{} of {}", show(used), show(limit)),
        None => show(used),
    }
}

/// One token, without its secret.
pub(crate) fn token(token: &TokenInfo) -> Value {
    json!({
        "id": token.id,
        "tenant": token.tenant,
        "role": role(token.role()),
        "created": rfc3339(token.created_us),
        "expires": rfc3339(token.expires_us),
        "note": token.note,
    })
}

/// One line a token.
pub(crate) fn tokens(tokens: &[TokenInfo], now_us: i64) -> String {
    let mut table = lines(&["ID", "TENANT", "ROLE", "EXPIRES IN", "NOTE"]);
    for token in tokens {
        let left = token.expires_us.saturating_sub(now_us);
        let left = match left > 0 {
            true => length(left),
            false => "expired".to_owned(),
        };
        table.add_row([
            token.id.clone(),
            dash(token.tenant.clone()),
            role(token.role()).to_owned(),
            left,
            dash(token.note.clone()),
        ]);
    }
    text(&table)
}

/// As it is written in commands.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Editor => "editor",
        Role::Operator => "operator",
        Role::Unspecified => "-",
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{Quota, QuotaUsage};

    use super::*;

    #[test]
    fn what_is_used_stands_beside_what_may_be() {
        let red = Tenant {
            name: "red".into(),
            namespaces: vec!["shop".into(), "test".into()],
            quota: Some(Quota {
                pods: Some(10),
                cpu_millis: Some(1500),
                ..Quota::default()
            }),
            weight: 2,
            usage: Some(QuotaUsage {
                pods: 3,
                cpu_millis: 500,
                memory_bytes: 3 << 30,
                enis: 3,
                gpus: 0,
            }),
            resource_version: 7,
        };
        let text = tenants(&[red]);
        let expected = "\
NAME   NAMESPACES   PODS      CPU             MEMORY   ENIS   GPUS   CREATES/S   WEIGHT
red    shop,test    3 of 10   500m of 1500m   3Gi      3      0      -           2
";
        assert_eq!(text, expected, "\n{text}");
    }
}
