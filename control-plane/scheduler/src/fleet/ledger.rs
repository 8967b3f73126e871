//! The places that pods hold: reserved, committed, rolled back, released.

use super::{BY_HOST, BY_RANK, Fleet};
use crate::amount::Amount;
use crate::chain::{Chained, Neighbours};
use crate::placement::{HostId, PlacementError, PodId, Ticket};
use crate::slab::NONE;
use crate::template::{Class, PodTemplate, Rule};

/// How far a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The decision is not durable yet.
    Reserved,
    Committed,
    /// It has to leave for another pod.
    Leaving,
}

/// A place on a host.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// `None`: room that a capacity reservation keeps.
    pub(super) pod: Option<PodId>,
    pub(super) takes: Amount,
    pub(super) generation: u64,
    pub(super) host: u32,
    pub(super) template: u32,
    /// The capacity reservation that it draws on; `NONE`: none.
    pub(super) booking: u32,
    pub(super) rank: (Class, i32),
    pub(super) stage: Stage,
    pub(super) chains: [Neighbours; 2],
}

impl Held {
    pub(super) fn ticket(&self) -> Ticket {
        Ticket {
            pod: self.pod.unwrap_or(PodId(0)),
            generation: self.generation,
        }
    }
}

impl Chained<BY_HOST> for Held {
    fn neighbours(&self) -> Neighbours {
        self.chains[BY_HOST]
    }
    fn neighbours_mut(&mut self) -> &mut Neighbours {
        &mut self.chains[BY_HOST]
    }
}

impl Chained<BY_RANK> for Held {
    fn neighbours(&self) -> Neighbours {
        self.chains[BY_RANK]
    }
    fn neighbours_mut(&mut self) -> &mut Neighbours {
        &mut self.chains[BY_RANK]
    }
}

/// A new place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admission {
    pub(super) pod: Option<PodId>,
    pub(super) template: u32,
    pub(super) takes: Amount,
    pub(super) host: u32,
    pub(super) booking: u32,
    pub(super) class: Class,
    pub(super) stage: Stage,
}

/// What became possible with a release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// Pods that waited for this one to leave, and may start now.
    pub startable: Vec<Ticket>,
}

impl Fleet {
    /// Makes a place last: the decision is durable. Those that have to leave for the
    /// pod must be told now.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`], [`PlacementError::Stale`].
    pub fn commit(&mut self, ticket: Ticket) -> Result<(), PlacementError> {
        let slot = self.slot_of(ticket)?;
        if self.pods[slot].stage == Stage::Reserved {
            self.pods[slot].stage = Stage::Committed;
            self.count_spot(slot);
            let template = &self.templates[self.pods[slot].template];
            self.news.tenants.insert(template.tenant);
        }
        Ok(())
    }

    /// Gives up a place that was not committed. Those that were to leave for it stay.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`], [`PlacementError::Stale`],
    /// [`PlacementError::Committed`].
    pub fn roll_back(&mut self, ticket: Ticket) -> Result<(), PlacementError> {
        let slot = self.slot_of(ticket)?;
        if self.pods[slot].stage != Stage::Reserved {
            return Err(PlacementError::Committed(ticket.pod));
        }
        self.give_up(slot);
        Ok(())
    }

    /// A pod has left its host, or will never come there.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`], [`PlacementError::Stale`].
    pub fn release(&mut self, ticket: Ticket) -> Result<Released, PlacementError> {
        let slot = self.slot_of(ticket)?;
        Ok(self.give_up(slot))
    }

    /// Takes over a place that was committed in an earlier life of the scheduler. It
    /// holds even where the host has shrunk, or constraints would forbid it now.
    ///
    /// # Errors
    /// [`PlacementError::UnknownHost`], [`PlacementError::AlreadyPlaced`],
    /// [`PlacementError::Absurd`], [`PlacementError::Refused`].
    pub fn adopt(
        &mut self,
        pod: PodId,
        spec: &PodTemplate,
        host: &str,
        cpu_millis: u32,
        memory_bytes: u64,
        gpus: u32,
    ) -> Result<Ticket, PlacementError> {
        if let Some(&slot) = self.by_id.get(&pod) {
            let host = self.pods[slot].host;
            return Err(PlacementError::AlreadyPlaced {
                pod,
                host: self.host_name(HostId(host)).to_owned(),
            });
        }
        let slot = self.by_name.get(host).copied();
        let host = slot.ok_or_else(|| PlacementError::UnknownHost(host.to_owned()))?;
        let template = match self.intern(spec) {
            Ok(template) => template,
            // What it asked for is no more: its zone, say. It has its place all the same.
            Err(_) => self.intern(&PodTemplate {
                tenant: spec.tenant.clone(),
                labels: spec.labels.clone(),
                constraints: spec.constraints.clone(),
                class: spec.class,
                priority: spec.priority,
                ..PodTemplate::default()
            })?,
        };
        let takes = Amount::of_pod(cpu_millis, memory_bytes, gpus, spec.enis.max(1), spec.disks);
        if self.hosts[host].used.checked_plus(takes).is_none() {
            return Err(PlacementError::Absurd(pod));
        }
        let slot = self.admit(Admission {
            pod: Some(pod),
            template,
            takes,
            host,
            booking: NONE,
            class: spec.class.min(Class::OnDemand),
            stage: Stage::Committed,
        });
        Ok(self.pods[slot].ticket())
    }

    /// As it was in an earlier life of the scheduler: those have to leave before the
    /// pod may start. Those that are not on its host any more have left.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`], where the pod has no place.
    pub fn adopt_eviction(&mut self, pod: PodId, victims: &[PodId]) -> Result<(), PlacementError> {
        let slot = self.by_id.get(&pod).copied();
        let slot = slot.ok_or(PlacementError::NotPlaced(pod))?;
        let host = self.pods[slot].host;
        let mut there: Vec<u32> = Vec::with_capacity(victims.len());
        for victim in victims {
            let found = self.by_id.get(victim).copied();
            let leaves = |victim: &u32| {
                let held = &self.pods[*victim];
                *victim != slot && held.host == host && held.stage == Stage::Committed
            };
            let new = found.filter(leaves);
            there.extend(new.filter(|victim| !there.contains(victim)));
        }
        if !there.is_empty() && !self.outstanding.contains_key(&slot) {
            self.uncount_spot(slot);
            self.make_leave(slot, &there);
        }
        Ok(())
    }

    /// As it was in an earlier life of the scheduler: the pod draws on that capacity
    /// reservation. False where it cannot: the reservation has ended, is another
    /// tenant's, or has no place left.
    pub fn adopt_draw(&mut self, pod: PodId, booking: super::BookingId) -> bool {
        let slot = self.by_id.get(&pod).copied();
        slot.is_some_and(|slot| self.count_draw(slot, booking))
    }

    /// The smallest amount that a pod of the template could take.
    ///
    /// # Errors
    /// [`crate::Refusal`], as placing it would give.
    pub fn least(&self, spec: &PodTemplate) -> Result<Amount, crate::Refusal> {
        let takes = match self.known_templates.get(spec) {
            Some(template) => least(&self.templates[*template].choices),
            None => least(&self.choices(spec)?),
        };
        Ok(takes)
    }

    /// The hold that a pod has now, where it is, and whether that is committed.
    #[must_use]
    pub fn placement(&self, pod: PodId) -> Option<(Ticket, HostId, bool)> {
        let held = &self.pods[*self.by_id.get(&pod)?];
        let committed = held.stage != Stage::Reserved;
        Some((held.ticket(), HostId(held.host), committed))
    }

    /// What a pod takes of its host; `None` where the ticket is stale.
    #[must_use]
    pub fn takes(&self, ticket: Ticket) -> Option<Amount> {
        let slot = self.slot_of(ticket).ok()?;
        Some(self.pods[slot].takes)
    }

    /// Whether nobody has to leave any more before the pod may start.
    #[must_use]
    pub fn may_start(&self, pod: PodId) -> bool {
        let slot = self.by_id.get(&pod);
        slot.is_some_and(|slot| !self.outstanding.contains_key(slot))
    }

    fn slot_of(&self, ticket: Ticket) -> Result<u32, PlacementError> {
        let slot = self.by_id.get(&ticket.pod).copied();
        let slot = slot.ok_or(PlacementError::NotPlaced(ticket.pod))?;
        let current = self.pods[slot].generation;
        if current != ticket.generation {
            return Err(PlacementError::Stale {
                pod: ticket.pod,
                given: ticket.generation,
                current,
            });
        }
        Ok(slot)
    }

    pub(super) fn give_up(&mut self, slot: u32) -> Released {
        if self.pods[slot].stage == Stage::Reserved {
            self.pardon(slot);
        }
        let (host, booking) = (self.pods[slot].host, self.pods[slot].booking);
        let clear = self.withdraw(slot);
        if booking != NONE {
            self.keep_booked(booking, host);
        }
        let startable = clear.map(|slot| self.pods[slot].ticket());
        Released {
            startable: startable.into_iter().collect(),
        }
    }

    /// Puts a pod on a host; every place begins here.
    pub(super) fn admit(&mut self, new: Admission) -> u32 {
        let generation = self.next_generation;
        self.next_generation += 1;
        let template = &mut self.templates[new.template];
        template.refs += 1;
        if template.refs == 1 {
            self.idle_templates -= 1;
        }
        let (tenant, priority) = (template.tenant, template.spec.priority);
        let rank = (new.class, priority);
        let slot = self.pods.insert(Held {
            pod: new.pod,
            takes: new.takes,
            generation,
            host: new.host,
            template: new.template,
            booking: new.booking,
            rank,
            stage: new.stage,
            chains: Default::default(),
        });
        if let Some(pod) = new.pod {
            self.by_id.insert(pod, slot);
        }
        let host = &mut self.hosts[new.host];
        host.used = host.used.plus(new.takes);
        host.pods.push::<BY_HOST, _>(&mut self.pods, slot);
        let tenant = &mut self.tenants[tenant as usize];
        tenant.held.add(new.takes);
        let chain = tenant.ranks.entry(rank).or_default();
        chain.push::<BY_RANK, _>(&mut self.pods, slot);
        self.count_terms(slot, true);
        match new.stage {
            Stage::Reserved => self.reindex(new.host),
            // It may be evicted from now on.
            Stage::Committed | Stage::Leaving => {
                if !self.count_spot(slot) {
                    self.reindex(new.host);
                }
            }
        }
        slot
    }

    /// Takes a pod off its host; every place ends here. Answers the pod whose way is
    /// clear by that.
    pub(super) fn withdraw(&mut self, slot: u32) -> Option<u32> {
        self.uncount_spot(slot);
        self.count_terms(slot, false);
        let clear = self.leave_strain(slot);
        let (host, rank) = (self.pods[slot].host, self.pods[slot].rank);
        let entry = &mut self.hosts[host];
        entry.pods.remove::<BY_HOST, _>(&mut self.pods, slot);
        let template = self.pods[slot].template;
        let tenant = self.templates[template].tenant;
        let owner = &mut self.tenants[tenant as usize];
        if let Some(chain) = owner.ranks.get_mut(&rank) {
            chain.remove::<BY_RANK, _>(&mut self.pods, slot);
            if chain.len == 0 {
                owner.ranks.remove(&rank);
            }
        }
        let held = self.pods.remove(slot)?;
        entry.used = entry.used.minus(held.takes);
        owner.held.take(held.takes);
        if let Some(pod) = held.pod {
            self.by_id.remove(&pod);
        }
        if held.booking != NONE {
            self.lose_booked(held.booking, slot);
        }
        self.drop_template(template);
        self.reindex(host);
        self.news.tenants.insert(tenant);
        self.tell_free(host);
        clear
    }

    /// Counts a pod in, or out of, the terms that mean it or that it guards.
    pub(super) fn count_terms(&mut self, slot: u32, come: bool) {
        let held = &self.pods[slot];
        let template = &self.templates[held.template];
        // Room that is kept is no pod.
        let counted = !template.matched.is_empty() || !template.uses.is_empty();
        if held.pod.is_none() || !counted {
            return;
        }
        let site = self.site(held.host);
        for &term in &template.matched {
            let term = &mut self.terms.entries[term];
            match come {
                true => term.join(site),
                false => term.leave(site),
            }
        }
        let apart = |used: &&super::Use| used.required && used.rule == Rule::Apart;
        for used in template.uses.iter().filter(apart) {
            let term = &mut self.terms.entries[used.term];
            match come {
                true => term.guard(site),
                false => term.unguard(site),
            }
        }
    }

    /// Makes a pod one that draws on a capacity reservation.
    fn count_draw(&mut self, slot: u32, booking: super::BookingId) -> bool {
        let tenant = self.templates[self.pods[slot].template].tenant;
        let Some(booking) = self.find_booking(booking, tenant) else {
            return false;
        };
        if self.pods[slot].booking != NONE || self.missing(booking) == 0 {
            return false;
        }
        self.uncount_spot(slot);
        self.rerank(slot, Class::Reserved);
        self.pods[slot].booking = booking;
        self.count_used(booking);
        true
    }

    /// Moves a pod to another class in its tenant's order.
    pub(super) fn rerank(&mut self, slot: u32, class: Class) {
        let held = &mut self.pods[slot];
        let (before, now) = (held.rank, (class, held.rank.1));
        held.rank = now;
        let tenant = self.templates[held.template].tenant;
        let ranks = &mut self.tenants[tenant as usize].ranks;
        if let Some(chain) = ranks.get_mut(&before) {
            chain.remove::<BY_RANK, _>(&mut self.pods, slot);
            if chain.len == 0 {
                ranks.remove(&before);
            }
        }
        let chain = ranks.entry(now).or_default();
        chain.push::<BY_RANK, _>(&mut self.pods, slot);
    }

    fn may_be_evicted_as_spot(&self, slot: u32) -> bool {
        let held = &self.pods[slot];
        held.rank.0 == Class::Spot
            && held.stage == Stage::Committed
            && !self.outstanding.contains_key(&slot)
    }

    /// Counts a spot pod among what its host could reclaim. False where it is none.
    pub(super) fn count_spot(&mut self, slot: u32) -> bool {
        if !self.may_be_evicted_as_spot(slot) {
            return false;
        }
        let held = &self.pods[slot];
        let (host, takes) = (held.host, held.takes);
        let spot = &mut self.hosts[host].spot;
        *spot = spot.plus(takes);
        self.reindex(host);
        // Room for who may evict it.
        self.tell_free(host);
        true
    }

    pub(super) fn uncount_spot(&mut self, slot: u32) {
        if self.may_be_evicted_as_spot(slot) {
            let held = &self.pods[slot];
            let spot = &mut self.hosts[held.host].spot;
            *spot = spot.minus(held.takes);
        }
    }
}

/// Of each the least that one of them takes.
pub(super) fn least(choices: &[super::Choice]) -> Amount {
    let takes = choices.iter().map(|choice| choice.takes);
    takes.reduce(Amount::least).unwrap_or_default()
}
