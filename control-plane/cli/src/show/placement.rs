//! Where a pod is to be placed, in the fields in which it was asked for.

use longship_proto::control::v1::placement_constraint::{Rule, Topology};
use longship_proto::control::v1::{Placement, PlacementConstraint};
use serde_json::{Value, json};

use super::document::Document;
use crate::manifest::placement::{
    CLASSES, FALLBACKS, HOST_KEY, POLICIES, PREFERRED, REQUIRED, ZONE_KEY,
};

/// Adds it to a pod's spec.
pub(super) fn add(placement: &Placement, spec: &mut Document) {
    let mut own = Document::default();
    own.put("zones", placement.zones.clone());
    if placement.zones_in_order {
        own.put("zonesInOrder", true);
    }
    own.put("flavors", placement.flavors.clone());
    own.put("family", placement.family.as_str());
    own.put("class", name_of(&CLASSES, placement.class()));
    own.put("policy", name_of(&POLICIES, placement.policy()));
    own.put("fallback", name_of(&FALLBACKS, placement.fallback()));
    spec.put("placement", own.value());
    if placement.priority != 0 {
        spec.put("priority", placement.priority);
    }
    if placement.preempts {
        spec.put("preemptionPolicy", "PreemptLowerPriority");
    }
    let constraints = &placement.constraints;
    let spread = constraints.iter().filter_map(|one| match one.rule {
        Some(Rule::MaxSkew(skew)) => Some(spread(one, skew)),
        _ => None,
    });
    spec.put("topologySpreadConstraints", spread.collect::<Vec<_>>());
    let mut affinity = Document::default();
    for (kind, rule) in [
        ("podAffinity", Rule::With(true)),
        ("podAntiAffinity", Rule::Apart(true)),
    ] {
        let of = constraints.iter().filter(|one| one.rule == Some(rule));
        let (preferred, required): (Vec<_>, Vec<_>) = of.partition(|one| one.preferred);
        let mut terms = Document::default();
        terms.put(REQUIRED, required.into_iter().map(term).collect::<Vec<_>>());
        let weighted = preferred.into_iter();
        let weighted = weighted.map(|one| json!({"weight": 1, "podAffinityTerm": term(one)}));
        terms.put(PREFERRED, weighted.collect::<Vec<_>>());
        affinity.put(kind, terms.value());
    }
    spec.put("affinity", affinity.value());
}

/// `None` where it was not given.
fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: T) -> Option<&'static str> {
    let found = names.iter().find(|(_, one)| *one == value);
    found.map(|(name, _)| *name)
}

fn term(constraint: &PlacementConstraint) -> Value {
    let mut term = Document::default();
    term.put("labelSelector", constraint.label_selector.as_str());
    let key = match constraint.topology() {
        Topology::Zone => ZONE_KEY,
        Topology::Host | Topology::Unspecified => HOST_KEY,
    };
    term.put("topologyKey", key);
    term.value()
}

fn spread(constraint: &PlacementConstraint, max_skew: u32) -> Value {
    let mut spread = term(constraint);
    spread["maxSkew"] = max_skew.into();
    let otherwise = match constraint.preferred {
        true => "ScheduleAnyway",
        false => "DoNotSchedule",
    };
    spread["whenUnsatisfiable"] = otherwise.into();
    spread
}
