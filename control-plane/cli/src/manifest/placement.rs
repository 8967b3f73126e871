//! Where a pod is to be placed, and with whom: Kubernetes' fields where it has them
//! (`priority`, `preemptionPolicy`, `topologySpreadConstraints`, `affinity`), and
//! `placement` for what it has not.

use longship_proto::Failure;
use longship_proto::control::v1::placement_constraint::{Rule, Topology};
use longship_proto::control::v1::{
    Fallback, Placement, PlacementClass, PlacementConstraint, PlacementPolicy,
};
use serde_json::Value;

use super::field::{Fields, wrong_type};

/// Topology keys, as Kubernetes names them.
pub(crate) const ZONE_KEY: &str = "topology.kubernetes.io/zone";
pub(crate) const HOST_KEY: &str = "kubernetes.io/hostname";

pub(crate) const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
pub(crate) const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Names of classes, policies and fallbacks, as they are written and shown.
pub(crate) const CLASSES: [(&str, PlacementClass); 3] = [
    ("spot", PlacementClass::Spot),
    ("on-demand", PlacementClass::OnDemand),
    ("reserved", PlacementClass::Reserved),
];
pub(crate) const POLICIES: [(&str, PlacementPolicy); 2] = [
    ("pack", PlacementPolicy::Pack),
    ("spread", PlacementPolicy::Spread),
];
pub(crate) const FALLBACKS: [(&str, Fallback); 2] = [
    ("zones-first", Fallback::ZonesFirst),
    ("flavors-first", Fallback::FlavorsFirst),
];

/// Takes all of it from a pod's spec; `None` where there is nothing of it.
pub(super) fn placement(spec: &mut Fields) -> Result<Option<Placement>, Failure> {
    let mut placement = Placement::default();
    if let Some(own) = spec.fields("placement")? {
        own_fields(own, &mut placement)?;
    }
    if let Some(priority) = spec.i32("priority")? {
        placement.priority = priority;
    }
    let path = spec.path("preemptionPolicy");
    match spec.string("preemptionPolicy")?.as_deref() {
        None | Some("Never") => {}
        Some("PreemptLowerPriority") => placement.preempts = true,
        Some(other) => {
            let message = format!("must be PreemptLowerPriority or Never, not `{other}`");
            return Err(Failure::invalid(path, message));
        }
    }
    for (path, value) in spec.list("topologySpreadConstraints")? {
        let constraint = spread(Fields::of(&path, value)?)?;
        placement.constraints.push(constraint);
    }
    if let Some(mut affinity) = spec.fields("affinity")? {
        for (kind, rule) in [
            ("podAffinity", Rule::With(true)),
            ("podAntiAffinity", Rule::Apart(true)),
        ] {
            if let Some(fields) = affinity.fields(kind)? {
                terms(fields, rule, &mut placement.constraints)?;
            }
        }
        affinity.finish()?;
    }
    Ok((placement != Placement::default()).then_some(placement))
}

fn own_fields(mut fields: Fields, placement: &mut Placement) -> Result<(), Failure> {
    placement.zones = fields.strings("zones")?;
    placement.zones_in_order = fields.bool("zonesInOrder")?.unwrap_or_default();
    placement.flavors = fields.strings("flavors")?;
    placement.family = fields.string("family")?.unwrap_or_default();
    if let Some(class) = named(&mut fields, "class", &CLASSES)? {
        placement.set_class(class);
    }
    if let Some(policy) = named(&mut fields, "policy", &POLICIES)? {
        placement.set_policy(policy);
    }
    if let Some(fallback) = named(&mut fields, "fallback", &FALLBACKS)? {
        placement.set_fallback(fallback);
    }
    fields.finish()
}

fn named<T: Copy>(
    fields: &mut Fields,
    key: &str,
    names: &[(&str, T)],
) -> Result<Option<T>, Failure> {
    let Some(given) = fields.string(key)? else {
        return Ok(None);
    };
    let found = names.iter().find(|(name, _)| *name == given);
    let (_, value) = found.ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let message = format!("must be one of {}, not `{given}`", names.join(", "));
        Failure::invalid(fields.path(key), message)
    })?;
    Ok(Some(*value))
}

fn spread(mut fields: Fields) -> Result<PlacementConstraint, Failure> {
    let path = fields.path("whenUnsatisfiable");
    let preferred = match fields.string("whenUnsatisfiable")?.as_deref() {
        None | Some("DoNotSchedule") => false,
        Some("ScheduleAnyway") => true,
        Some(other) => {
            let message = format!("must be DoNotSchedule or ScheduleAnyway, not `{other}`");
            return Err(Failure::invalid(path, message));
        }
    };
    let path = fields.path("maxSkew");
    let skew = fields.u32("maxSkew")?;
    let skew = skew.ok_or_else(|| Failure::invalid(path, "is missing"))?;
    constraint(fields, Rule::MaxSkew(skew), preferred)
}

fn terms(
    mut fields: Fields,
    rule: Rule,
    constraints: &mut Vec<PlacementConstraint>,
) -> Result<(), Failure> {
    for (path, value) in fields.list(REQUIRED)? {
        constraints.push(constraint(Fields::of(&path, value)?, rule, false)?);
    }
    for (path, value) in fields.list(PREFERRED)? {
        let mut weighted = Fields::of(&path, value)?;
        // All preferences count alike.
        weighted.u32("weight")?;
        let path = weighted.path("podAffinityTerm");
        let term = weighted.fields("podAffinityTerm")?;
        let term = term.ok_or_else(|| Failure::invalid(path, "is missing"))?;
        constraints.push(constraint(term, rule, true)?);
        weighted.finish()?;
    }
    fields.finish()
}

fn constraint(
    mut fields: Fields,
    rule: Rule,
    preferred: bool,
) -> Result<PlacementConstraint, Failure> {
    let topology = match fields.required("topologyKey")?.as_str() {
        ZONE_KEY | "zone" => Topology::Zone,
        HOST_KEY | "host" => Topology::Host,
        other => {
            let message = format!("must be {ZONE_KEY} or {HOST_KEY}, not `{other}`");
            return Err(Failure::invalid(fields.path("topologyKey"), message));
        }
    };
    let path = fields.path("labelSelector");
    let label_selector = match fields.take("labelSelector") {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(value @ Value::Object(_)) => selector(Fields::of(&path, value)?)?,
        Some(other) => {
            let wanted = "a mapping, or a selector like `app=web`";
            return Err(wrong_type(&path, wanted, &other));
        }
    };
    fields.finish()?;
    Ok(PlacementConstraint {
        topology: topology.into(),
        label_selector,
        rule: Some(rule),
        preferred,
    })
}

/// Kubernetes' mapping as one line of its other syntax.
fn selector(mut fields: Fields) -> Result<String, Failure> {
    let labels = fields.string_map("matchLabels")?;
    let mut parts: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    parts.sort_unstable();
    for (path, value) in fields.list("matchExpressions")? {
        let mut one = Fields::of(&path, value)?;
        let key = one.required("key")?;
        let path = one.path("operator");
        let operator = one.required("operator")?;
        let has_values = one.path("values");
        let values = one.strings("values")?;
        one.finish()?;
        let values_fit = matches!(operator.as_str(), "In" | "NotIn") != values.is_empty();
        let list = values.join(",");
        parts.push(match operator.as_str() {
            "In" if values_fit => format!("{key} in ({list})"),
            "NotIn" if values_fit => format!("{key} notin ({list})"),
            "Exists" if values_fit => key,
            "DoesNotExist" if values_fit => format!("!{key}"),
            "In" | "NotIn" => return Err(Failure::invalid(has_values, "must not be empty")),
            "Exists" | "DoesNotExist" => {
                return Err(Failure::invalid(
                    has_values,
                    "must be empty for this operator",
                ));
            }
            other => {
                let message = format!("must be In, NotIn, Exists or DoesNotExist, not `{other}`");
                return Err(Failure::invalid(path, message));
            }
        });
    }
    fields.finish()?;
    Ok(parts.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(spec: Value) -> Result<Option<Placement>, Failure> {
        let mut fields = Fields::of("spec", spec)?;
        let placement = placement(&mut fields)?;
        fields.finish()?;
        Ok(placement)
    }

    #[test]
    fn kubernetes_fields_find_their_place() {
        assert_eq!(read(json!({})).unwrap(), None);
        let spec = json!({
            "priority": -5,
            "preemptionPolicy": "PreemptLowerPriority",
            "placement": {
                "zones": ["b", "a"], "zonesInOrder": true, "family": "gpu",
                "class": "spot", "policy": "pack", "fallback": "flavors-first",
            },
            "topologySpreadConstraints": [{
                "maxSkew": 2,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {
                    "matchLabels": {"b": "2", "a": "1"},
                    "matchExpressions": [
                        {"key": "c", "operator": "In", "values": ["x", "y"]},
                        {"key": "d", "operator": "DoesNotExist"},
                    ],
                },
            }],
            "affinity": {
                "podAffinity": {PREFERRED: [{
                    "weight": 50,
                    "podAffinityTerm": {"topologyKey": "zone", "labelSelector": "app=db"},
                }]},
                "podAntiAffinity": {REQUIRED: [{
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app": "web"}},
                }]},
            },
        });
        let placement = read(spec).unwrap().unwrap();
        assert_eq!((placement.priority, placement.preempts), (-5, true));
        assert_eq!(placement.class(), PlacementClass::Spot);
        assert_eq!(placement.policy(), PlacementPolicy::Pack);
        assert_eq!(placement.fallback(), Fallback::FlavorsFirst);
        assert!(placement.zones == ["b", "a"] && placement.zones_in_order);
        let seen: Vec<_> = placement
            .constraints
            .iter()
            .map(|one| {
                (
                    one.topology(),
                    one.label_selector.as_str(),
                    one.rule,
                    one.preferred,
                )
            })
            .collect();
        let wanted = [
            (
                Topology::Zone,
                "a=1,b=2,c in (x,y),!d",
                Some(Rule::MaxSkew(2)),
                true,
            ),
            (Topology::Zone, "app=db", Some(Rule::With(true)), true),
            (Topology::Host, "app=web", Some(Rule::Apart(true)), false),
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn each_mistake_is_named_by_its_path() {
        let term = |key: &str, value: Value| {
            let mut term = json!({"maxSkew": 1, "topologyKey": "zone"});
            term[key] = value;
            json!({"topologySpreadConstraints": [term]})
        };
        let at = |path: &str| format!("spec.topologySpreadConstraints[0].{path}");
        let expression = |one: Value| term("labelSelector", json!({"matchExpressions": [one]}));
        for (spec, field) in [
            (json!({"priority": "high"}), "spec.priority".to_owned()),
            (
                json!({"preemptionPolicy": "Maybe"}),
                "spec.preemptionPolicy".into(),
            ),
            (
                json!({"placement": {"class": "gold"}}),
                "spec.placement.class".into(),
            ),
            (
                json!({"placement": {"zone": "a"}}),
                "spec.placement.zone".into(),
            ),
            (
                json!({"placement": {"zonesInOrder": 1}}),
                "spec.placement.zonesInOrder".into(),
            ),
            (term("maxSkew", Value::Null), at("maxSkew")),
            (term("topologyKey", json!("rack")), at("topologyKey")),
            (
                term("whenUnsatisfiable", json!("Retry")),
                at("whenUnsatisfiable"),
            ),
            (term("labelSelector", json!(1)), at("labelSelector")),
            (term("minDomains", json!(1)), at("minDomains")),
            (
                expression(json!({"key": "a", "operator": "Gt"})),
                at("labelSelector.matchExpressions[0].operator"),
            ),
            (
                expression(json!({"key": "a", "operator": "In"})),
                at("labelSelector.matchExpressions[0].values"),
            ),
            (
                expression(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
                at("labelSelector.matchExpressions[0].values"),
            ),
            (
                json!({"affinity": {"nodeAffinity": {}}}),
                "spec.affinity.nodeAffinity".into(),
            ),
            (
                json!({"affinity": {"podAffinity": {PREFERRED: [{"weight": 1}]}}}),
                format!("spec.affinity.podAffinity.{PREFERRED}[0].podAffinityTerm"),
            ),
        ] {
            assert_eq!(read(spec.clone()).unwrap_err().field, field, "{spec}");
        }
    }
}
