//! The comparison: a straightforward scheduler over nodes. Every node is looked at
//! for every pod: filters first, then scores, and the best score wins.

use std::collections::HashMap;
use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use longship_scheduler::{
    Amount, Fallback, Flavors, HostFacts, PodId, PodTemplate, Policy, Rule, Topology, Zones,
};
use serde_json::{Value, json};

use crate::hardware;
use crate::measure::{cpu_time, float};
use crate::scale::Run;
use crate::workload::{Random, Workload};

#[derive(Debug)]
struct Node {
    facts: HostFacts,
    used: Amount,
    /// Pods by tenant and the label that selectors of the workload look at.
    apps: HashMap<(String, String), u32>,
}

/// Filter-and-score over a list of nodes.
#[derive(Debug)]
pub(crate) struct Naive {
    nodes: Vec<Node>,
    flavors: Flavors,
    /// Pods by tenant, app and zone.
    zones: HashMap<(String, String, String), u32>,
    /// Feasible nodes after which no more are looked for; kube-scheduler's
    /// `percentageOfNodesToScore`.
    enough: usize,
    next: usize,
}

/// A place: node, and what the pod takes.
pub(crate) type Place = (usize, Amount);

impl Naive {
    pub(crate) fn new(hosts: usize, enough: usize) -> Self {
        let nodes = hardware::hosts(hosts).map(|facts| Node {
            facts,
            used: Amount::default(),
            apps: HashMap::new(),
        });
        Self {
            nodes: nodes.collect(),
            flavors: hardware::flavors(),
            zones: HashMap::new(),
            enough,
            next: 0,
        }
    }

    /// As kube-scheduler does by itself: a share of the nodes that shrinks from a half
    /// to a twentieth with their number.
    pub(crate) fn adaptive(hosts: usize) -> usize {
        let percent = 50_usize.saturating_sub(hosts / 125).max(5);
        (hosts * percent / 100).max(100)
    }

    pub(crate) fn place(&mut self, spec: &PodTemplate) -> Option<Place> {
        let choices: Vec<(String, Amount)> = match spec.flavors.is_empty() {
            true => {
                let flavor =
                    self.flavors
                        .round_up(spec.cpu_millis, spec.memory_bytes, spec.gpus, None);
                vec![flavor.unwrap()]
            }
            false => spec
                .flavors
                .iter()
                .map(|name| self.flavors.get(name).unwrap())
                .collect(),
        }
        .into_iter()
        .map(|flavor| {
            let (enis, disks) = (spec.enis.max(1), spec.disks);
            let takes = Amount::of_pod(
                flavor.cpu_millis,
                flavor.memory_bytes,
                flavor.gpus,
                enis,
                disks,
            );
            (flavor.family.clone(), takes)
        })
        .collect();
        let any = [None];
        let some: Vec<Option<&str>> = spec
            .zones
            .named()
            .iter()
            .map(|zone| Some(zone.as_str()))
            .collect();
        let zones = match &spec.zones {
            Zones::Any => &any[..],
            Zones::AnyOf(_) | Zones::InOrder(_) => &some[..],
        };
        let mut attempts: Vec<(&(String, Amount), Option<&str>)> = Vec::new();
        match spec.fallback {
            Fallback::ZonesFirst => {
                for choice in &choices {
                    attempts.extend(zones.iter().map(|zone| (choice, *zone)));
                }
            }
            Fallback::FlavorsFirst => {
                for zone in zones {
                    attempts.extend(choices.iter().map(|choice| (choice, *zone)));
                }
            }
        }
        let found = attempts.into_iter().find_map(|((family, takes), zone)| {
            Some((self.best(spec, family, *takes, zone)?, *takes))
        });
        let (node, takes) = found?;
        self.count(spec, node, takes, true);
        Some((node, takes))
    }

    pub(crate) fn release(&mut self, spec: &PodTemplate, (node, takes): Place) {
        self.count(spec, node, takes, false);
    }

    fn best(
        &mut self,
        spec: &PodTemplate,
        family: &str,
        takes: Amount,
        zone: Option<&str>,
    ) -> Option<usize> {
        let app = spec.labels.get("app");
        let key = app.map(|app| (spec.tenant.clone(), app.clone()));
        let rule = spec.constraints.first().map(|one| (one.topology, one.rule));
        let of_zone = |zone: &str| {
            let (tenant, app) = key.clone().unwrap_or_default();
            self.zones
                .get(&(tenant, app, zone.to_owned()))
                .copied()
                .unwrap_or_default()
        };
        let by_zone: HashMap<&str, u32> = hardware::ZONES
            .iter()
            .map(|zone| (*zone, of_zone(zone)))
            .collect();
        let fewest = by_zone.values().min().copied().unwrap_or_default();
        let anywhere = by_zone.values().sum::<u32>();
        let mut best: Option<(f64, usize)> = None;
        let mut feasible = 0;
        let count = self.nodes.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            let node = &self.nodes[at];
            let facts = &node.facts;
            // Filters.
            if facts.family != family
                || zone.is_some_and(|zone| zone != facts.zone)
                || !takes.fits(facts.capacity.minus(node.used))
            {
                continue;
            }
            if let (Some((topology, rule)), Some(key)) = (rule, &key) {
                let there = match topology {
                    Topology::Host => node.apps.get(key).copied().unwrap_or_default(),
                    Topology::Zone => by_zone[facts.zone.as_str()],
                };
                let allowed = match rule {
                    Rule::Apart => there == 0,
                    Rule::With => there > 0 || anywhere == 0,
                    // With fewer replicas than hosts some host has none.
                    Rule::Spread { max_skew } if topology == Topology::Host => there < max_skew,
                    Rule::Spread { max_skew } => there < fewest + max_skew,
                };
                if !allowed {
                    continue;
                }
            }
            // The score: the fuller after it the better (kube-scheduler's
            // MostAllocated), CPU and memory alike.
            let part = |used: f64, all: f64| used / all;
            let cpu = part(
                f64::from(node.used.cpu_millis + takes.cpu_millis),
                f64::from(facts.capacity.cpu_millis),
            );
            let memory = part(
                float(node.used.memory_bytes + takes.memory_bytes),
                float(facts.capacity.memory_bytes),
            );
            let score = f64::midpoint(cpu, memory);
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, at));
            }
            feasible += 1;
            if feasible == self.enough {
                self.next = at + 1;
                break;
            }
        }
        best.map(|(_, node)| node)
    }

    fn count(&mut self, spec: &PodTemplate, node: usize, takes: Amount, come: bool) {
        let node = &mut self.nodes[node];
        node.used = if come {
            node.used.plus(takes)
        } else {
            node.used.minus(takes)
        };
        if let Some(app) = spec.labels.get("app") {
            let change = |count: &mut u32| *count = if come { *count + 1 } else { *count - 1 };
            let key = (spec.tenant.clone(), app.clone());
            change(node.apps.entry(key).or_default());
            let key = (spec.tenant.clone(), app.clone(), node.facts.zone.clone());
            change(self.zones.entry(key).or_default());
        }
    }

    /// Capacity and use of each standard node.
    pub(crate) fn standard(&self) -> impl Iterator<Item = (Amount, Amount)> {
        let standard = self.nodes.iter().filter(|node| node.facts.family == "std");
        standard.map(|node| (node.facts.capacity, node.facts.capacity.minus(node.used)))
    }
}

/// What a placement costs there.
#[derive(Debug)]
pub(crate) struct Comparison {
    hosts: usize,
    samples: usize,
    pub(crate) all_ns: f64,
    pub(crate) sampled_ns: f64,
}

/// Over a fleet that is filled as the indexed one is.
pub(crate) fn compare(hosts: usize, samples: usize) -> Comparison {
    let mut fleet = hardware::fleet(hosts, Policy::Pack);
    let mut run = Run::default();
    run.fill(&mut fleet, PodId(1));
    let mut naive = Naive::new(hosts, usize::MAX);
    // The same pods on the same hosts: filling it by itself would take hours.
    for (ticket, template) in &run.live {
        let spec = &run.workload.templates[*template];
        let (_, host, _) = fleet.placement(ticket.pod).unwrap();
        let at: usize = fleet.host_name(host)["host-".len()..].parse().unwrap();
        let takes = fleet.takes(*ticket).unwrap();
        naive.count(spec, at, takes, true);
    }
    drop(fleet);
    let mut cost = |enough| {
        naive.enough = enough;
        let (mut workload, mut random) = (Workload::new(), Random(99));
        let mut took = Duration::ZERO;
        for _ in 0..samples {
            let template = workload.next(&mut random);
            let spec = &workload.templates[template];
            let begun = cpu_time();
            let place = black_box(naive.place(spec));
            took += cpu_time() - begun;
            if let Some(place) = place {
                naive.release(spec, place);
            }
        }
        float(took.as_nanos()) / float(samples)
    };
    Comparison {
        hosts,
        samples,
        all_ns: cost(usize::MAX),
        sampled_ns: cost(Naive::adaptive(hosts)),
    }
}

impl Comparison {
    pub(crate) fn json(&self, indexed_ns: f64) -> Value {
        json!({
            "hosts": self.hosts,
            "all_nodes_ns": self.all_ns, "all_nodes_ratio": self.all_ns / indexed_ns,
            "sampled_ns": self.sampled_ns, "sampled_ratio": self.sampled_ns / indexed_ns,
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "filter-and-score over {} nodes, {} pods: {:.0} µs a placement over all nodes, \
             {:.0} µs where enough are {} feasible ones",
            self.hosts,
            self.samples,
            self.all_ns / 1000.0,
            self.sampled_ns / 1000.0,
            Naive::adaptive(self.hosts)
        )
    }
}
