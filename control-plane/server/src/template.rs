//! What a pod asks of the scheduler.

use std::collections::BTreeSet;

use longship_proto::Failure;
use longship_proto::control::v1::placement_constraint::{
    Rule as WireRule, Topology as WireTopology,
};
use longship_proto::control::v1::{
    Fallback as WireFallback, ObjectMeta, Placement, PlacementClass, PlacementConstraint,
    PlacementPolicy, PodSpec,
};
use longship_scheduler::{
    Class, Constraint, Fallback, Labels, PodTemplate, Policy, Rule, Topology, Zones,
};

use crate::validate::selector;

/// ENIs of every pod.
const ENIS: u32 = 1;
/// Disks of every pod beside its images': the scratch.
const SCRATCH_DISKS: u32 = 1;

/// The template of a pod whose metadata and spec are complete.
///
/// A pod takes one of its host's disks for its scratch and one for each distinct image.
/// An image that other pods of the host use too is converted once, but it is attached
/// to each of them by itself: a function or a queue of the card's own, and that is what
/// a host has so many of.
///
/// # Errors
/// `INVALID`, where a selector cannot be read.
pub(crate) fn template(
    tenant: &str,
    meta: &ObjectMeta,
    spec: &PodSpec,
) -> Result<PodTemplate, Failure> {
    let none = Placement::default();
    let placement = spec.placement.as_ref().unwrap_or(&none);
    let mut template = PodTemplate {
        tenant: tenant.to_owned(),
        labels: labels(meta),
        enis: ENIS,
        disks: SCRATCH_DISKS.saturating_add(distinct_images(spec)),
        family: (!placement.family.is_empty()).then(|| placement.family.clone()),
        flavors: one_or(&spec.flavor, &placement.flavors),
        zones: zones(spec, placement),
        fallback: match placement.fallback() {
            WireFallback::FlavorsFirst => Fallback::FlavorsFirst,
            WireFallback::ZonesFirst | WireFallback::Unspecified => Fallback::ZonesFirst,
        },
        class: match placement.class() {
            PlacementClass::Spot => Class::Spot,
            PlacementClass::Reserved => Class::Reserved,
            PlacementClass::OnDemand | PlacementClass::Unspecified => Class::OnDemand,
        },
        priority: placement.priority,
        preempts: placement.preempts,
        policy: match placement.policy() {
            PlacementPolicy::Pack => Some(Policy::Pack),
            PlacementPolicy::Spread => Some(Policy::Spread),
            PlacementPolicy::Unspecified => None,
        },
        ..PodTemplate::default()
    };
    let resources = spec.containers.iter().filter_map(|one| one.resources);
    for one in resources {
        template.cpu_millis = template.cpu_millis.saturating_add(one.cpu_millis);
        template.memory_bytes = template.memory_bytes.saturating_add(one.memory_bytes);
        template.gpus = template.gpus.saturating_add(one.gpus);
    }
    for (at, one) in placement.constraints.iter().enumerate() {
        template.constraints.push(constraint(at, one)?);
    }
    Ok(template)
}

/// What selectors see of a pod.
fn labels(meta: &ObjectMeta) -> Labels {
    let labels = meta.labels.iter();
    labels
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn distinct_images(spec: &PodSpec) -> u32 {
    let images: BTreeSet<&str> = spec
        .containers
        .iter()
        .map(|one| one.image.as_str())
        .collect();
    u32::try_from(images.len()).unwrap_or(u32::MAX)
}

fn one_or(one: &str, several: &[String]) -> Vec<String> {
    match one.is_empty() {
        true => several.to_vec(),
        false => vec![one.to_owned()],
    }
}

fn zones(spec: &PodSpec, placement: &Placement) -> Zones {
    let zones = one_or(&spec.zone, &placement.zones);
    match (zones.is_empty(), placement.zones_in_order) {
        (true, _) => Zones::Any,
        (false, true) => Zones::InOrder(zones),
        (false, false) => Zones::AnyOf(zones),
    }
}

fn constraint(at: usize, given: &PlacementConstraint) -> Result<Constraint, Failure> {
    let field = format!("spec.placement.constraints[{at}]");
    let rule = match given.rule {
        Some(WireRule::With(_)) => Rule::With,
        Some(WireRule::Apart(_)) => Rule::Apart,
        Some(WireRule::MaxSkew(max_skew)) => Rule::Spread { max_skew },
        None => return Err(Failure::invalid(format!("{field}.rule"), "must be given")),
    };
    Ok(Constraint {
        selector: selector(&format!("{field}.label_selector"), &given.label_selector)?,
        topology: match given.topology() {
            WireTopology::Zone => Topology::Zone,
            WireTopology::Host | WireTopology::Unspecified => Topology::Host,
        },
        rule,
        required: !given.preferred,
    })
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{Container, Resources};

    use super::*;

    #[test]
    fn what_the_spec_says_is_what_the_scheduler_gets() {
        let container = |image: &str, gpus| Container {
            image: image.into(),
            resources: Some(Resources {
                cpu_millis: 300,
                memory_bytes: 100,
                gpus,
            }),
            ..Container::default()
        };
        let meta = ObjectMeta {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..ObjectMeta::default()
        };
        let spec = PodSpec {
            containers: vec![container("a", 0), container("b", 1), container("a", 1)],
            placement: Some(Placement {
                zones: vec!["z-2".into(), "z-1".into()],
                zones_in_order: true,
                class: PlacementClass::Spot.into(),
                priority: -3,
                preempts: true,
                policy: PlacementPolicy::Pack.into(),
                fallback: WireFallback::FlavorsFirst.into(),
                constraints: vec![PlacementConstraint {
                    topology: WireTopology::Zone.into(),
                    label_selector: "app=web".into(),
                    rule: Some(WireRule::MaxSkew(2)),
                    preferred: true,
                }],
                ..Placement::default()
            }),
            ..PodSpec::default()
        };
        let template = template("blue", &meta, &spec).unwrap();
        let wanted = PodTemplate {
            tenant: "blue".into(),
            labels: Labels::from([("app".into(), "web".into())]),
            cpu_millis: 900,
            memory_bytes: 300,
            gpus: 2,
            enis: 1,
            // Two images and the scratch.
            disks: 3,
            family: None,
            flavors: Vec::new(),
            zones: Zones::InOrder(vec!["z-2".into(), "z-1".into()]),
            fallback: Fallback::FlavorsFirst,
            constraints: vec![Constraint {
                selector: longship_scheduler::Selector::label("app", "web"),
                topology: Topology::Zone,
                rule: Rule::Spread { max_skew: 2 },
                required: false,
            }],
            class: Class::Spot,
            priority: -3,
            preempts: true,
            policy: Some(Policy::Pack),
        };
        assert_eq!(template, wanted);
    }
}
