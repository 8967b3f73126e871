//! Finding a host for a pod.

use super::gate::Gate;
use super::ledger::{Admission, Stage, least};
use super::{Choice, Fleet, Template};
use crate::index::{Found, Search};
use crate::placement::{HostId, Placed, PodId, Prepared};
use crate::reason::Declined;
use crate::slab::NONE;
use crate::template::{Class, Fallback, PodTemplate, Zones};

/// Hosts of one ring that may be refused before another ring is tried: pods that must
/// be apart would else look at all their siblings' hosts first.
const PROBES: u32 = 8;

/// A flavor and the zones to try it in at once.
pub(super) type Attempt<'a> = (&'a Choice, &'a [u32]);

impl Fleet {
    /// Holds a place for a pod. Where there is no room and the template says so, the
    /// place is made by evicting others, who are named in the answer.
    ///
    /// # Errors
    /// [`Declined`]; nothing is held then, and nobody has to leave.
    pub fn reserve(&mut self, pod: PodId, spec: &PodTemplate) -> Result<Placed, Declined> {
        let template = self.intern(spec)?;
        self.reserve_waiting(pod, template)
    }

    /// As [`Fleet::reserve`], for a template that is kept ready.
    ///
    /// # Errors
    /// [`Declined`], but for its template being refused.
    pub fn reserve_prepared(
        &mut self,
        pod: PodId,
        prepared: &Prepared,
    ) -> Result<Placed, Declined> {
        self.reserve_waiting(pod, prepared.0)
    }

    /// Each pod for itself; the answers in the same order.
    pub fn reserve_batch(
        &mut self,
        pods: &[PodId],
        spec: &PodTemplate,
    ) -> Vec<Result<Placed, Declined>> {
        pods.iter().map(|pod| self.reserve(*pod, spec)).collect()
    }

    fn reserve_as(&mut self, pod: PodId, template: u32) -> Result<Placed, Declined> {
        if self.templates[template].spec.class == Class::Reserved
            && let Some(placed) = self.draw(pod, template)
        {
            return Ok(placed);
        }
        let entry = &self.templates[template];
        // The smallest that could be taken; the choice itself is checked again.
        self.check_limits(entry.tenant, least(&entry.choices))?;
        let found = self.search(entry, false);
        let found = match found {
            None if entry.uses.iter().any(|used| !used.required) => self.search(entry, true),
            found => found,
        };
        if let Some((choice, host)) = found {
            self.check_limits(entry.tenant, choice.takes)?;
            return Ok(self.hold(pod, template, choice, host));
        }
        if entry.spec.preempts {
            return self.preempt(pod, template);
        }
        Err(Declined::NoRoom)
    }

    /// As [`Fleet::reserve`], for a template that a queue holds.
    pub(crate) fn reserve_waiting(
        &mut self,
        pod: PodId,
        template: u32,
    ) -> Result<Placed, Declined> {
        if let Some(&slot) = self.by_id.get(&pod) {
            let host = HostId(self.pods[slot].host);
            let host = self.host_name(host).to_owned();
            return Err(Declined::AlreadyPlaced { pod, host });
        }
        self.reserve_as(pod, template)
    }

    pub(crate) fn tenant_of(&self, template: u32) -> u32 {
        self.templates[template].tenant
    }

    pub(super) fn hold(&mut self, pod: PodId, template: u32, choice: Choice, host: u32) -> Placed {
        let class = self.templates[template].spec.class.min(Class::OnDemand);
        let slot = self.admit(Admission {
            pod: Some(pod),
            template,
            takes: choice.takes,
            host,
            booking: NONE,
            class,
            stage: Stage::Reserved,
        });
        Placed {
            ticket: self.pods[slot].ticket(),
            host: HostId(host),
            flavor: choice.flavor,
            from_reservation: false,
            victims: Vec::new(),
        }
    }

    pub(super) fn search(&self, template: &Template, required_only: bool) -> Option<(Choice, u32)> {
        let gate = Gate::new(self, template, required_only);
        let zones = self.zones_of(template);
        attempts(template, zones).find_map(|(choice, zones)| {
            let host = self.best_host(template, &gate, choice, zones)?;
            Some((*choice, host))
        })
    }

    /// The host of these zones that suits the policy best.
    fn best_host(
        &self,
        template: &Template,
        gate: &Gate<'_>,
        choice: &Choice,
        zones: &[u32],
    ) -> Option<u32> {
        let need = choice.need?;
        if let Some(hosts) = gate.only_on() {
            return self.best_of(gate, choice, zones, hosts);
        }
        let policy = template.spec.policy.unwrap_or(self.policy);
        let passes: &[u32] = match gate.looks_at_hosts() {
            true => &[PROBES, u32::MAX],
            false => &[1],
        };
        passes.iter().find_map(|&probes| {
            let search = Search {
                need,
                policy,
                probes,
            };
            let mut best: Option<Found> = None;
            for &zone in zones.iter().filter(|zone| gate.zone(**zone).is_none()) {
                if let Some(cell) = self.cell_of(zone, choice.family) {
                    let accept = |host| gate.host(host).is_none();
                    best = self.rooms.find(cell, search, &self.levels, best, accept);
                }
            }
            best.map(|best| best.host)
        })
    }

    /// The one of a few hosts that is left with the least.
    fn best_of(
        &self,
        gate: &Gate<'_>,
        choice: &Choice,
        zones: &[u32],
        hosts: impl Iterator<Item = u32>,
    ) -> Option<u32> {
        let fitting = hosts.filter(|&host| {
            let site = self.site(host);
            site.open
                && zones.contains(&site.zone)
                && self.cells[site.cell as usize].family == choice.family
                && gate.zone(site.zone).is_none()
                && gate.host(host).is_none()
                && choice.takes.fits(self.room(host))
        });
        fitting.min_by_key(|&host| {
            let free = self.room(host);
            (free.cpu_millis, free.memory_bytes, host)
        })
    }
}

/// The flavors and zones to try, one after the other.
pub(super) fn attempts<'a>(
    template: &'a Template,
    zones: &'a [u32],
) -> impl Iterator<Item = Attempt<'a>> {
    // Zones that are alike are tried together.
    let each = match template.spec.zones {
        Zones::InOrder(_) => 1,
        Zones::Any | Zones::AnyOf(_) => zones.len().max(1),
    };
    let groups = zones.len().div_ceil(each);
    let choices = template.choices.len();
    (0..groups * choices).filter_map(move |at| {
        let (choice, group) = match template.spec.fallback {
            Fallback::ZonesFirst => (at / groups, at % groups),
            Fallback::FlavorsFirst => (at % choices, at / choices),
        };
        let zones = zones.chunks(each).nth(group)?;
        Some((template.choices.get(choice)?, zones))
    })
}
