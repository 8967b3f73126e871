//! Making room by evicting others.
//!
//! A spot pod may be evicted for any pod that is none; any pod may be for a more
//! important one of its own tenant and of no lesser class. Nobody else ever is.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::gate::Gate;
use super::ledger::{Held, Stage};
use super::place::attempts;
use super::{BY_HOST, BY_RANK, Choice, Fleet, Template};
use crate::amount::Amount;
use crate::index::Search;
use crate::placement::{Placed, PodId, Ticket};
use crate::policy::Policy;
use crate::reason::Declined;
use crate::template::Class;

/// Hosts with spot pods that are compared.
const HOSTS_COMPARED: usize = 8;
/// Hosts with less important pods of the same tenant that are looked at.
const OWN_HOSTS: usize = 256;

/// What an eviction costs: the rank of the most important victim, how many, and the
/// host to make it one answer.
type Cost = (Option<(Class, i32)>, usize, u32);

/// A way to make room.
#[derive(Debug)]
struct Plan {
    host: u32,
    choice: Choice,
    victims: Vec<u32>,
}

impl Fleet {
    pub(super) fn preempt(&mut self, pod: PodId, template: u32) -> Result<Placed, Declined> {
        let entry = &self.templates[template];
        let Some(plan) = self.plan_eviction(entry) else {
            return Err(Declined::NoRoom);
        };
        self.check_limits(entry.tenant, plan.choice.takes)?;
        let victims = plan.victims.iter().map(|slot| self.pods[*slot].ticket());
        let victims: Vec<Ticket> = victims.collect();
        let mut placed = self.hold(pod, template, plan.choice, plan.host);
        let slot = self.by_id[&pod];
        self.make_leave(slot, &plan.victims);
        placed.victims = victims;
        Ok(placed)
    }

    /// Those have to leave their host before the pod, which is on it too, may start.
    pub(super) fn make_leave(&mut self, slot: u32, victims: &[u32]) {
        let (host, takes) = (self.pods[slot].host, self.pods[slot].takes);
        for victim in victims {
            self.uncount_spot(*victim);
            self.pods[*victim].stage = Stage::Leaving;
            self.leaving_for.insert(*victim, slot);
            let takes = self.pods[*victim].takes;
            let strain = self.strains.entry(host).or_default();
            strain.leaving = strain.leaving.plus(takes);
        }
        let strain = self.strains.entry(host).or_default();
        strain.waiting = strain.waiting.plus(takes);
        let count = crate::slab::number(victims.len());
        self.outstanding.insert(slot, count);
        self.reindex(host);
    }

    /// Those that were to leave for a pod stay after all.
    pub(super) fn pardon(&mut self, slot: u32) {
        if self.outstanding.remove(&slot).is_none() {
            return;
        }
        let (host, takes) = (self.pods[slot].host, self.pods[slot].takes);
        let on_host = self.hosts[host].pods.iter::<BY_HOST, _>(&self.pods);
        let victims = on_host.filter(|(victim, _)| self.leaving_for.get(victim) == Some(&slot));
        let victims: Vec<u32> = victims.map(|(victim, _)| victim).collect();
        let mut stay = Amount::default();
        for victim in victims {
            self.leaving_for.remove(&victim);
            self.pods[victim].stage = Stage::Committed;
            stay = stay.plus(self.pods[victim].takes);
            self.count_spot(victim);
        }
        self.ease(host, stay, takes);
    }

    /// A pod that is taken off its host leaves the bookkeeping of evictions. Answers
    /// the pod that waited for it, if it was the last that this one waited for.
    pub(super) fn leave_strain(&mut self, slot: u32) -> Option<u32> {
        let (host, takes, stage) = {
            let held = &self.pods[slot];
            (held.host, held.takes, held.stage)
        };
        if self.outstanding.remove(&slot).is_some() {
            // Who leaves for it is told already, and leaves for nobody now.
            self.leaving_for.retain(|_, waiting| *waiting != slot);
            self.ease(host, Amount::default(), takes);
        }
        if stage != Stage::Leaving {
            return None;
        }
        self.ease(host, takes, Amount::default());
        let waiting = self.leaving_for.remove(&slot)?;
        let left = self.outstanding.get_mut(&waiting)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.outstanding.remove(&waiting);
        let waited = self.pods[waiting].takes;
        self.ease(host, Amount::default(), waited);
        self.count_spot(waiting);
        Some(waiting)
    }

    fn ease(&mut self, host: u32, leaving: Amount, waiting: Amount) {
        if let Some(strain) = self.strains.get_mut(&host) {
            strain.leaving = strain.leaving.minus(leaving);
            strain.waiting = strain.waiting.minus(waiting);
            if strain.leaving.pods == 0 && strain.waiting.pods == 0 {
                self.strains.remove(&host);
            }
        }
    }

    fn plan_eviction(&self, template: &Template) -> Option<Plan> {
        // Preferences are given up before anybody is evicted.
        let gate = Gate::new(self, template, true);
        let zones = self.zones_of(template);
        attempts(template, zones).find_map(|(choice, zones)| {
            let mut hosts = self.hosts_with_spot(template, &gate, choice, zones);
            hosts.extend(self.hosts_with_lesser(template, &gate, choice, zones));
            let plans = hosts.into_iter().filter_map(|host| {
                let victims = self.victims(template, choice.takes, host)?;
                Some((self.cost(&victims, host), victims, host))
            });
            let (_, victims, host) = plans.min_by_key(|(cost, _, _)| *cost)?;
            Some(Plan {
                host,
                choice: *choice,
                victims,
            })
        })
    }

    fn cost(&self, victims: &[u32], host: u32) -> Cost {
        let highest = victims.iter().map(|slot| self.pods[*slot].rank).max();
        (highest, victims.len(), host)
    }

    /// Some hosts where evicting spot pods makes room.
    fn hosts_with_spot(
        &self,
        template: &Template,
        gate: &Gate<'_>,
        choice: &Choice,
        zones: &[u32],
    ) -> BTreeSet<u32> {
        let mut hosts = BTreeSet::new();
        let Some(need) = choice.need.filter(|_| template.spec.class != Class::Spot) else {
            return hosts;
        };
        let search = Search {
            need,
            policy: Policy::Pack,
            probes: u32::MAX,
        };
        for &zone in zones.iter().filter(|zone| gate.zone(**zone).is_none()) {
            let Some(cell) = self.cell_of(zone, choice.family) else {
                continue;
            };
            let mut compared = 0;
            let accept = |host| {
                if gate.host(host).is_none() {
                    hosts.insert(host);
                    compared += 1;
                }
                compared >= HOSTS_COMPARED
            };
            self.reclaimable
                .find(cell, search, &self.levels, None, accept);
        }
        hosts
    }

    /// Hosts with less important pods of the same tenant, the least important first.
    fn hosts_with_lesser(
        &self,
        template: &Template,
        gate: &Gate<'_>,
        choice: &Choice,
        zones: &[u32],
    ) -> BTreeSet<u32> {
        let mut hosts = BTreeSet::new();
        let ranks = &self.tenants[template.tenant as usize].ranks;
        let lesser = ranks.iter().filter(|(rank, _)| is_lesser(template, **rank));
        let pods = lesser.flat_map(|(_, chain)| chain.iter::<BY_RANK, _>(&self.pods));
        for (_, held) in pods {
            let site = self.site(held.host);
            if site.open
                && zones.contains(&site.zone)
                && self.cells[site.cell as usize].family == choice.family
                && gate.zone(site.zone).is_none()
                && gate.host(held.host).is_none()
                && !self.strains.contains_key(&held.host)
            {
                hosts.insert(held.host);
                if hosts.len() == OWN_HOSTS {
                    break;
                }
            }
        }
        hosts
    }

    /// Whom to evict from a host to make room for that: the least important, the
    /// newest first, and nobody whose place turns out not to be needed. `None` where
    /// it would not be enough.
    fn victims(&self, template: &Template, takes: Amount, host: u32) -> Option<Vec<u32>> {
        let on_host = self.hosts[host].pods.iter::<BY_HOST, _>(&self.pods);
        let mut candidates: Vec<_> = on_host
            .filter(|(slot, held)| self.may_be_evicted(template, *slot, held))
            .map(|(slot, held)| (held.rank, Reverse(held.generation), slot, held.takes))
            .collect();
        candidates.sort_unstable_by_key(|(rank, age, ..)| (*rank, *age));
        let entry = &self.hosts[host];
        let mut leaving = Amount::default();
        let mut chosen = Vec::new();
        for candidate in candidates {
            if takes.fits(entry.room_without(leaving)) {
                break;
            }
            leaving = leaving.plus(candidate.3);
            chosen.push(candidate);
        }
        if !takes.fits(entry.room_without(leaving)) {
            return None;
        }
        let mut victims = Vec::with_capacity(chosen.len());
        for (_, _, slot, its) in chosen.into_iter().rev() {
            if takes.fits(entry.room_without(leaving.minus(its))) {
                leaving = leaving.minus(its);
            } else {
                victims.push(slot);
            }
        }
        victims.reverse();
        (!victims.is_empty()).then_some(victims)
    }

    fn may_be_evicted(&self, template: &Template, slot: u32, held: &Held) -> bool {
        let same_tenant = || self.templates[held.template].tenant == template.tenant;
        let spot = held.rank.0 == Class::Spot && template.spec.class != Class::Spot;
        held.pod.is_some()
            && held.stage == Stage::Committed
            && !self.outstanding.contains_key(&slot)
            && (spot || (same_tenant() && is_lesser(template, held.rank)))
    }
}

/// Whether a pod of that rank is less important than the template's, within a tenant.
/// What is placed for the template ranks as on-demand at most.
fn is_lesser(template: &Template, rank: (Class, i32)) -> bool {
    let class = template.spec.class.min(Class::OnDemand);
    rank.0 <= class && rank.1 < template.spec.priority
}
