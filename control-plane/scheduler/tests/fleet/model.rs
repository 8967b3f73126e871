//! The world as a straightforward reader of the rules would keep it: everything is
//! looked at every time.

use std::collections::{BTreeMap, BTreeSet};

use longship_scheduler::{
    Amount, Class, Constraint, Fallback, Flavors, HostFacts, Labels, Limits, PodId, PodTemplate,
    Rule, Ticket, Topology, Total, Zones,
};

#[derive(Debug, Clone)]
pub(crate) struct ModelHost {
    pub(crate) facts: HostFacts,
    pub(crate) ready: bool,
    pub(crate) cordoned: bool,
    /// What is kept for capacity reservations.
    pub(crate) kept: Amount,
}

impl ModelHost {
    pub(crate) fn is_open(&self) -> bool {
        self.ready && !self.cordoned
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ModelPod {
    pub(crate) ticket: Ticket,
    pub(crate) host: String,
    pub(crate) spec: PodTemplate,
    pub(crate) takes: Amount,
    pub(crate) class: Class,
    pub(crate) committed: bool,
    pub(crate) leaving: bool,
    pub(crate) waits_for: BTreeSet<PodId>,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) flavors: Flavors,
    pub(crate) hosts: BTreeMap<String, ModelHost>,
    pub(crate) pods: BTreeMap<PodId, ModelPod>,
    pub(crate) limits: BTreeMap<String, Limits>,
}

/// A flavor as the template's pods would take it, with its family.
pub(crate) type Choice = (String, Amount);

impl Model {
    pub(crate) fn choices(&self, spec: &PodTemplate) -> Vec<Choice> {
        let (cpu, memory, gpus) = (spec.cpu_millis, spec.memory_bytes, spec.gpus);
        let named = spec.flavors.iter().map(|name| self.flavors.get(name));
        let mut flavors: Vec<_> = named.flatten().collect();
        if spec.flavors.is_empty() {
            flavors.extend(self.flavors.round_up(cpu, memory, gpus, None).ok());
        }
        let choices = flavors.into_iter().map(|flavor| {
            let (enis, disks) = (spec.enis.max(1), spec.disks);
            let takes = Amount::of_pod(
                flavor.cpu_millis,
                flavor.memory_bytes,
                flavor.gpus,
                enis,
                disks,
            );
            (flavor.family.clone(), takes)
        });
        choices.collect()
    }

    pub(crate) fn on<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a ModelPod> {
        self.pods.values().filter(move |pod| pod.host == host)
    }

    fn sum<'a>(&self, pods: impl Iterator<Item = &'a ModelPod>, kept: Amount) -> Amount {
        pods.fold(kept, |sum, pod| sum.plus(pod.takes))
    }

    /// What is there, and what will be once those that leave have left.
    pub(crate) fn present_and_claimed(&self, host: &str) -> (Amount, Amount) {
        let kept = self.hosts[host].kept;
        let present = self.on(host).filter(|pod| pod.waits_for.is_empty());
        let claimed = self.on(host).filter(|pod| !pod.leaving);
        (self.sum(present, kept), self.sum(claimed, kept))
    }

    /// What no pod has.
    pub(crate) fn free(&self, host: &str) -> Amount {
        let (present, claimed) = self.present_and_claimed(host);
        self.hosts[host].facts.capacity.minus(present.most(claimed))
    }

    /// What can be promised: nothing by a host that has shrunk below what it holds.
    pub(crate) fn room(&self, host: &str) -> Amount {
        let (present, claimed) = self.present_and_claimed(host);
        self.left(host, present.most(claimed))
    }

    /// What could be if those that take that much left.
    pub(crate) fn room_without(&self, host: &str, leaving: Amount) -> Amount {
        let (present, _) = self.present_and_claimed(host);
        self.left(host, present.minus(leaving))
    }

    fn left(&self, host: &str, used: Amount) -> Amount {
        let capacity = self.hosts[host].facts.capacity;
        match used.fits(capacity) {
            true => capacity.minus(used),
            false => Amount::default(),
        }
    }

    pub(crate) fn strained(&self, host: &str) -> bool {
        self.on(host)
            .any(|pod| pod.leaving || !pod.waits_for.is_empty())
    }

    pub(crate) fn zone(&self, host: &str) -> &str {
        &self.hosts[host].facts.zone
    }

    fn domain<'a>(&'a self, host: &'a str, topology: Topology) -> &'a str {
        match topology {
            Topology::Host => host,
            Topology::Zone => self.zone(host),
        }
    }

    fn may_be_in(spec: &PodTemplate, zone: &str) -> bool {
        let named = spec.zones.named();
        named.is_empty() || named.iter().any(|one| one == zone)
    }

    /// Pods of the tenant that a constraint means, by domain.
    fn members(&self, tenant: &str, constraint: &Constraint) -> BTreeMap<&str, u32> {
        let mut members = BTreeMap::new();
        for pod in self.pods.values() {
            if pod.spec.tenant == tenant && constraint.selector.matches(&pod.spec.labels) {
                let domain = self.domain(&pod.host, constraint.topology);
                *members.entry(domain).or_default() += 1;
            }
        }
        members
    }

    /// Domains in which the template's pods may be, full or not.
    fn eligible(&self, spec: &PodTemplate, topology: Topology) -> BTreeSet<&str> {
        let families: BTreeSet<String> = self
            .choices(spec)
            .into_iter()
            .map(|(family, _)| family)
            .collect();
        let hosts = self.hosts.iter().filter(|(_, host)| {
            host.is_open()
                && Self::may_be_in(spec, &host.facts.zone)
                && families.contains(&host.facts.family)
        });
        hosts.map(|(name, _)| self.domain(name, topology)).collect()
    }

    fn allows(&self, spec: &PodTemplate, host: &str, constraint: &Constraint) -> bool {
        let members = self.members(&spec.tenant, constraint);
        let domain = self.domain(host, constraint.topology);
        let there = members.get(domain).copied().unwrap_or_default();
        let own = constraint.selector.matches(&spec.labels);
        match constraint.rule {
            Rule::With => there > 0 || (own && members.is_empty()),
            Rule::Apart => there == 0,
            Rule::Spread { max_skew } => {
                let eligible = self.eligible(spec, constraint.topology);
                let counts = eligible.iter().map(|one| members.get(one).copied());
                let fewest = counts
                    .map(Option::unwrap_or_default)
                    .min()
                    .unwrap_or_default();
                there + u32::from(own) <= fewest + max_skew
            }
        }
    }

    /// Whether somebody there must be apart from such a pod.
    fn guarded(&self, tenant: &str, labels: &Labels, host: &str) -> bool {
        self.pods
            .values()
            .filter(|pod| pod.spec.tenant == tenant)
            .any(|pod| {
                pod.spec.constraints.iter().any(|constraint| {
                    constraint.required
                        && constraint.rule == Rule::Apart
                        && constraint.selector.matches(labels)
                        && self.domain(&pod.host, constraint.topology)
                            == self.domain(host, constraint.topology)
                })
            })
    }

    /// Whether the constraints let such a pod onto the host.
    pub(crate) fn admits(&self, spec: &PodTemplate, host: &str, required_only: bool) -> bool {
        let mut constraints = spec.constraints.iter();
        constraints.all(|one| (required_only && !one.required) || self.allows(spec, host, one))
            && !self.guarded(&spec.tenant, &spec.labels, host)
    }

    /// Hosts where a pod could be placed as that, were there room.
    pub(crate) fn open_hosts<'a>(
        &'a self,
        spec: &'a PodTemplate,
        family: &'a str,
        required_only: bool,
    ) -> impl Iterator<Item = &'a String> {
        let hosts = self.hosts.iter().filter(move |(name, host)| {
            host.is_open()
                && host.facts.family == family
                && Self::may_be_in(spec, &host.facts.zone)
                && self.admits(spec, name, required_only)
        });
        hosts.map(|(name, _)| name)
    }

    /// The attempts in their order: a choice, and the zones tried at once.
    pub(crate) fn attempts(&self, spec: &PodTemplate) -> Vec<(Choice, Vec<String>)> {
        let all = || {
            let zones = self.hosts.values().map(|host| host.facts.zone.clone());
            zones
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        };
        let groups: Vec<Vec<String>> = match &spec.zones {
            Zones::Any => vec![all()],
            Zones::AnyOf(zones) => vec![zones.clone()],
            Zones::InOrder(zones) => zones.iter().map(|zone| vec![zone.clone()]).collect(),
        };
        let choices = self.choices(spec);
        let mut attempts = Vec::new();
        match spec.fallback {
            Fallback::ZonesFirst => {
                for choice in &choices {
                    attempts.extend(groups.iter().map(|group| (choice.clone(), group.clone())));
                }
            }
            Fallback::FlavorsFirst => {
                for group in &groups {
                    attempts.extend(choices.iter().map(|one| (one.clone(), group.clone())));
                }
            }
        }
        attempts
    }

    /// The first attempt that would succeed, and its hosts.
    pub(crate) fn first_fit(
        &self,
        spec: &PodTemplate,
        required_only: bool,
    ) -> Option<(Choice, BTreeSet<String>)> {
        self.attempts(spec)
            .into_iter()
            .find_map(|((family, takes), zones)| {
                let hosts = self.open_hosts(spec, &family, required_only);
                let hosts = hosts.filter(|host| {
                    zones.iter().any(|zone| zone == self.zone(host)) && takes.fits(self.room(host))
                });
                let hosts: BTreeSet<String> = hosts.cloned().collect();
                (!hosts.is_empty()).then_some(((family, takes), hosts))
            })
    }

    /// Whether a pod may be evicted for one of that template.
    pub(crate) fn may_be_evicted(spec: &PodTemplate, victim: &ModelPod) -> bool {
        let class = spec.class.min(Class::OnDemand);
        let spot = victim.class == Class::Spot && spec.class != Class::Spot;
        let lesser = victim.spec.tenant == spec.tenant
            && victim.class <= class
            && victim.spec.priority < spec.priority;
        victim.committed && !victim.leaving && victim.waits_for.is_empty() && (spot || lesser)
    }

    /// Whether evicting all that may be evicted from some host would make room.
    pub(crate) fn could_preempt(&self, spec: &PodTemplate) -> bool {
        self.attempts(spec).iter().any(|((family, takes), zones)| {
            let hosts = self.open_hosts(spec, family, true);
            let mut hosts = hosts.filter(|host| zones.iter().any(|one| one == self.zone(host)));
            hosts.any(|host| {
                let victims = self.on(host).filter(|pod| Self::may_be_evicted(spec, pod));
                let leaving = self.sum(victims, Amount::default());
                !self.strained(host) && takes.fits(self.room_without(host, leaving))
            })
        })
    }

    pub(crate) fn held(&self, tenant: &str, kept: Amount) -> Total {
        let own = self.pods.values().filter(|pod| pod.spec.tenant == tenant);
        let amounts = own.map(|pod| pod.takes).chain([kept]);
        amounts.fold(Total::default(), |mut total, amount| {
            total.memory_bytes += amount.memory_bytes;
            total.cpu_millis += u64::from(amount.cpu_millis);
            total.pods += u64::from(amount.pods);
            total.enis += u64::from(amount.enis);
            total.disks += u64::from(amount.disks);
            total.gpus += u64::from(amount.gpus);
            total
        })
    }
}
