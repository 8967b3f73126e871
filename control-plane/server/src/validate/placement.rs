//! Where a pod may be placed, and with whom.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use longship_proto::Failure;
use longship_proto::control::v1::placement_constraint::{Rule, Topology};
use longship_proto::control::v1::{
    Fallback, Placement, PlacementClass, PlacementConstraint, PlacementPolicy, PodSpec,
};
use longship_scheduler::Flavors;

use super::names::{dns_label, shown};
use super::selector::selector;

/// Zones, and flavors, that one pod may name.
const MAX_CHOICES: usize = 64;
const MAX_CONSTRAINTS: usize = 16;
const PRIORITIES: std::ops::RangeInclusive<i32> = -1000..=1000;

static FLAVORS: LazyLock<Flavors> = LazyLock::new(Flavors::standard);

/// Checks `spec.placement`, against what else the spec says of zone and flavor.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(super) fn placement(spec: &PodSpec) -> Result<(), Failure> {
    if !spec.flavor.is_empty() {
        flavor("spec.flavor", &spec.flavor)?;
    }
    let Some(placement) = &spec.placement else {
        return Ok(());
    };
    zones("spec.placement.zones", &placement.zones)?;
    if !spec.zone.is_empty() && !placement.zones.is_empty() {
        return twice("spec.placement.zones", "spec.zone");
    }
    if placement.zones_in_order && placement.zones.is_empty() {
        return Err(Failure::invalid(
            "spec.placement.zones_in_order",
            "there are no zones to be in order",
        ));
    }
    flavors(&placement.flavors)?;
    if !placement.flavors.is_empty() && !spec.flavor.is_empty() {
        return twice("spec.placement.flavors", "spec.flavor");
    }
    family(spec, placement)?;
    numbers(placement)?;
    let constraints = &placement.constraints;
    if constraints.len() > MAX_CONSTRAINTS {
        return Err(Failure::invalid(
            "spec.placement.constraints",
            format!(
                "has {} of them; at most {MAX_CONSTRAINTS}",
                constraints.len()
            ),
        ));
    }
    for (at, one) in constraints.iter().enumerate() {
        constraint(&format!("spec.placement.constraints[{at}]"), one)?;
    }
    Ok(())
}

fn twice<T>(field: &str, other: &str) -> Result<T, Failure> {
    Err(Failure::invalid(
        field,
        format!("{other} says so already: give one of both"),
    ))
}

/// Checks a list of zones.
///
/// # Errors
/// `INVALID` at `field` or one of its items.
pub(crate) fn zones(field: &str, zones: &[String]) -> Result<(), Failure> {
    distinct(field, zones)?;
    for (at, zone) in zones.iter().enumerate() {
        dns_label(&format!("{field}[{at}]"), zone)?;
    }
    Ok(())
}

fn distinct(field: &str, names: &[String]) -> Result<(), Failure> {
    if names.len() > MAX_CHOICES {
        return Err(Failure::invalid(
            field,
            format!("has {} of them; at most {MAX_CHOICES}", names.len()),
        ));
    }
    let mut seen = BTreeSet::new();
    for (at, name) in names.iter().enumerate() {
        if !seen.insert(name) {
            return Err(Failure::invalid(
                format!("{field}[{at}]"),
                format!("`{}` is there already", shown(name)),
            ));
        }
    }
    Ok(())
}

fn flavors(flavors: &[String]) -> Result<(), Failure> {
    distinct("spec.placement.flavors", flavors)?;
    for (at, name) in flavors.iter().enumerate() {
        flavor(&format!("spec.placement.flavors[{at}]"), name)?;
    }
    Ok(())
}

/// Checks that there is such a flavor.
///
/// # Errors
/// `INVALID` at `field`.
pub(crate) fn flavor(field: &str, name: &str) -> Result<(), Failure> {
    if FLAVORS.get(name).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = FLAVORS.iter().map(|flavor| flavor.name.as_str()).collect();
    Err(Failure::invalid(
        field,
        format!(
            "no flavor `{}`: the flavors are {}",
            shown(name),
            names.join(", ")
        ),
    ))
}

fn family(spec: &PodSpec, placement: &Placement) -> Result<(), Failure> {
    const FIELD: &str = "spec.placement.family";
    let family = &placement.family;
    if family.is_empty() {
        return Ok(());
    }
    if !placement.flavors.is_empty() || !spec.flavor.is_empty() {
        return Err(Failure::invalid(
            FIELD,
            "the flavor is named already: give one of both",
        ));
    }
    let families: BTreeSet<&str> = FLAVORS.iter().map(|f| f.family.as_str()).collect();
    if families.contains(family.as_str()) {
        return Ok(());
    }
    let families: Vec<&str> = families.into_iter().collect();
    Err(Failure::invalid(
        FIELD,
        format!(
            "no family `{}`: the families are {}",
            shown(family),
            families.join(", ")
        ),
    ))
}

fn numbers(placement: &Placement) -> Result<(), Failure> {
    for (name, known, given) in [
        (
            "fallback",
            Fallback::try_from(placement.fallback).is_ok(),
            placement.fallback,
        ),
        (
            "class",
            PlacementClass::try_from(placement.class).is_ok(),
            placement.class,
        ),
        (
            "policy",
            PlacementPolicy::try_from(placement.policy).is_ok(),
            placement.policy,
        ),
    ] {
        if !known {
            let field = format!("spec.placement.{name}");
            return Err(Failure::invalid(field, format!("{given} is no {name}")));
        }
    }
    if !PRIORITIES.contains(&placement.priority) {
        return Err(Failure::invalid(
            "spec.placement.priority",
            format!("is {}; from -1000 to 1000", placement.priority),
        ));
    }
    Ok(())
}

fn constraint(field: &str, constraint: &PlacementConstraint) -> Result<(), Failure> {
    if Topology::try_from(constraint.topology).is_err() {
        return Err(Failure::invalid(
            format!("{field}.topology"),
            format!("{} is no topology", constraint.topology),
        ));
    }
    selector(
        &format!("{field}.label_selector"),
        &constraint.label_selector,
    )?;
    let (name, is_void) = match constraint.rule {
        Some(Rule::With(with)) => ("with", !with),
        Some(Rule::Apart(apart)) => ("apart", !apart),
        Some(Rule::MaxSkew(skew)) => ("max_skew", skew == 0),
        None => {
            let missing = "one of with, apart and max_skew must be given";
            return Err(Failure::invalid(format!("{field}.rule"), missing));
        }
    };
    if is_void {
        let what = match name {
            "max_skew" => "must be at least 1",
            _ => "must be true where it is given",
        };
        return Err(Failure::invalid(format!("{field}.{name}"), what));
    }
    Ok(())
}
