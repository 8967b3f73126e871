//! What an operator says of a tenant.

use std::collections::BTreeSet;

use longship_proto::Failure;
use longship_proto::control::v1 as proto;

use super::names::dns_label;
use crate::tenancy::Tenant;

/// More than a tenant needs.
const MAX_NAMESPACES: usize = 1000;
/// So that the smallest share is still one.
const MAX_WEIGHT: u32 = 1000;

/// Checks a tenant; its name, and what is to be remembered of it.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn tenant(tenant: proto::Tenant) -> Result<(String, Tenant), Failure> {
    dns_label("tenant.name", &tenant.name)?;
    if tenant.namespaces.len() > MAX_NAMESPACES {
        return Err(Failure::invalid(
            "tenant.namespaces",
            format!("has {}; at most {MAX_NAMESPACES}", tenant.namespaces.len()),
        ));
    }
    let mut namespaces = BTreeSet::new();
    for (at, namespace) in tenant.namespaces.into_iter().enumerate() {
        let field = format!("tenant.namespaces[{at}]");
        dns_label(&field, &namespace)?;
        if namespaces.contains(&namespace) {
            return Err(Failure::invalid(
                field,
                format!("`{namespace}` is there twice"),
            ));
        }
        namespaces.insert(namespace);
    }
    if tenant.weight > MAX_WEIGHT {
        return Err(Failure::invalid(
            "tenant.weight",
            format!("is {}; at most {MAX_WEIGHT}", tenant.weight),
        ));
    }
    let quota = tenant.quota.unwrap_or_default();
    if quota.create_burst.is_some() && quota.creates_per_second.is_none() {
        return Err(Failure::invalid(
            "tenant.quota.create_burst",
            "means something only with creates_per_second",
        ));
    }
    Ok((
        tenant.name,
        Tenant {
            namespaces,
            quota,
            weight: tenant.weight.max(1),
            version: 0,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> proto::Tenant {
        proto::Tenant {
            name: name.into(),
            ..proto::Tenant::default()
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        let namespaces = |all: &[&str]| proto::Tenant {
            namespaces: all.iter().map(|n| (*n).to_owned()).collect(),
            ..named("red")
        };
        let cases = [
            (named(""), "tenant.name"),
            (named("Red"), "tenant.name"),
            (namespaces(&["a", "b/c"]), "tenant.namespaces[1]"),
            (namespaces(&["a", "b", "a"]), "tenant.namespaces[2]"),
            (namespaces(&[""; 1001]), "tenant.namespaces"),
            (
                proto::Tenant {
                    weight: 1001,
                    ..named("red")
                },
                "tenant.weight",
            ),
            (
                proto::Tenant {
                    quota: Some(proto::Quota {
                        create_burst: Some(5),
                        ..proto::Quota::default()
                    }),
                    ..named("red")
                },
                "tenant.quota.create_burst",
            ),
        ];
        for (wrong, field) in cases {
            let failure = tenant(wrong).unwrap_err();
            assert_eq!(failure.field, field, "{failure}");
        }
        assert_eq!(tenant(named("red")).unwrap().1, Tenant::default());
    }
}
