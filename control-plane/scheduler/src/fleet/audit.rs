//! Counting everything again from scratch.

use std::collections::{BTreeMap, HashSet};

use super::ledger::Stage;
use super::{BY_HOST, BY_RANK, Fleet, Strain};
use crate::amount::{Amount, Total};
use crate::slab::number;
use crate::table::Table;
use crate::template::{Class, Rule, Topology};

impl Fleet {
    /// Counts everything again from the pods' places, and compares: what hosts and
    /// tenants hold, the indexes, the terms, the reservations, the evictions. Costs
    /// time that grows with everything; for tests and diagnosis.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn audit(&self) -> Result<(), String> {
        self.audit_hosts()?;
        self.audit_tenants()?;
        self.audit_terms()?;
        self.audit_bookings()
    }

    fn audit_hosts(&self) -> Result<(), String> {
        let mut capacity = Total::default();
        let mut open_hosts: Table<u32, u32> = Table::default();
        let mut by_zone: Table<u32, u32> = Table::default();
        let mut seen = HashSet::new();
        for (slot, host) in self.hosts.iter() {
            let name = &host.name;
            capacity.add(host.capacity);
            let cell = &self.cells[host.cell as usize];
            *by_zone.entry(cell.zone).or_default() += 1;
            *open_hosts.entry(host.cell).or_default() += u32::from(host.is_open());
            let (mut used, mut spot, mut strain) =
                (Amount::default(), Amount::default(), Strain::default());
            for (pod, held) in host.pods.iter::<BY_HOST, _>(&self.pods) {
                if held.host != slot || !seen.insert(pod) {
                    return Err(format!("a pod of {name} is elsewhere too"));
                }
                used = used.plus(held.takes);
                let waits = self.outstanding.contains_key(&pod);
                if waits {
                    strain.waiting = strain.waiting.plus(held.takes);
                }
                if held.stage == Stage::Leaving {
                    strain.leaving = strain.leaving.plus(held.takes);
                }
                if held.rank.0 == Class::Spot && held.stage == Stage::Committed && !waits {
                    spot = spot.plus(held.takes);
                }
            }
            let kept = self.strains.get(&slot).copied().unwrap_or_default();
            same("uses", name, &host.used, &used)?;
            same("has of spot pods", name, &host.spot, &spot)?;
            same("has leaving", name, &kept.leaving, &strain.leaving)?;
            same("has waiting", name, &kept.waiting, &strain.waiting)?;
            self.audit_index(slot)?;
        }
        if seen.len() != self.pods.len() {
            return Err("a pod is on no host".into());
        }
        same("has", "the fleet", &self.capacity, &capacity)?;
        for (cell, entry) in self.cells.iter().enumerate() {
            let open = open_hosts.get(&number(cell)).copied().unwrap_or_default();
            same("has open", "a cell", &entry.open, &open)?;
        }
        for (zone, entry) in self.zones.iter().enumerate() {
            let hosts = by_zone.get(&number(zone)).copied().unwrap_or_default();
            same("has hosts", &entry.name, &entry.hosts, &hosts)?;
        }
        for &victim in self.leaving_for.keys() {
            if self
                .pods
                .get(victim)
                .is_none_or(|held| held.stage != Stage::Leaving)
            {
                return Err("one that does not leave is waited for".into());
            }
        }
        for (&waiting, &count) in &self.outstanding {
            let waited = self.leaving_for.values().filter(|one| **one == waiting);
            same("waits for", "a pod", &(count as usize), &waited.count())?;
        }
        Ok(())
    }

    fn audit_index(&self, slot: u32) -> Result<(), String> {
        let host = &self.hosts[slot];
        let level = self
            .levels
            .of_room(self.room(slot))
            .filter(|_| host.is_open());
        let found = self.rooms.level(slot);
        same(
            "is indexed",
            &host.name,
            &found,
            &level.map(|level| (host.cell, level)),
        )?;
        let reclaim = host.is_open() && host.spot.pods > 0 && !self.strains.contains_key(&slot);
        let room = host.room_without(host.spot);
        let level = self.levels.of_room(room).filter(|_| reclaim);
        let found = self.reclaimable.level(slot);
        same(
            "is reclaimable",
            &host.name,
            &found,
            &level.map(|level| (host.cell, level)),
        )
    }

    fn audit_tenants(&self) -> Result<(), String> {
        let mut held: Table<u32, Total> = Table::default();
        let mut refs: Table<u32, u32> = Table::default();
        let mut ids = 0;
        for (slot, pod) in self.pods.iter() {
            let tenant = self.templates[pod.template].tenant;
            held.entry(tenant).or_default().add(pod.takes);
            *refs.entry(pod.template).or_default() += 1;
            if let Some(id) = pod.pod {
                ids += 1;
                same("is", "a pod", &self.by_id.get(&id).copied(), &Some(slot))?;
            }
        }
        same("are", "known pods", &self.by_id.len(), &ids)?;
        for (number_of, tenant) in self.tenants.iter().enumerate() {
            let total = held.get(&number(number_of)).copied().unwrap_or_default();
            same("holds", &tenant.name, &tenant.held, &total)?;
            let chains = tenant.ranks.iter();
            let ranked = chains.flat_map(|(rank, chain)| {
                let pods = chain.iter::<BY_RANK, _>(&self.pods);
                pods.map(move |(_, pod)| (*rank, pod.rank))
            });
            let ranked: Vec<_> = ranked.collect();
            same("ranks", &tenant.name, &(ranked.len() as u64), &total.pods)?;
            if ranked.iter().any(|(chain, pod)| chain != pod) {
                return Err(format!("a pod of {} is out of rank", tenant.name));
            }
        }
        let idle = self
            .templates
            .iter()
            .filter(|(_, template)| template.refs == 0)
            .count();
        same("are", "idle templates", &self.idle_templates, &idle)?;
        for (slot, template) in self.templates.iter() {
            let mut matched = template.matched.clone();
            matched.sort_unstable();
            let terms = self.terms.entries.iter().filter(|(_, term)| {
                term.tenant == template.tenant && term.selector.matches(&template.spec.labels)
            });
            let meant: Vec<u32> = terms.map(|(term, _)| term).collect();
            same("is meant by", "a template", &matched, &meant)?;
            let least = refs.get(&slot).copied().unwrap_or_default();
            if template.refs < least {
                return Err("a template in use may be swept".into());
            }
        }
        Ok(())
    }

    fn audit_terms(&self) -> Result<(), String> {
        for (slot, term) in self.terms.entries.iter() {
            let mut members: BTreeMap<u32, u32> = BTreeMap::new();
            let mut guards: BTreeMap<u32, u32> = BTreeMap::new();
            for (_, held) in self.pods.iter().filter(|(_, held)| held.pod.is_some()) {
                let template = &self.templates[held.template];
                let domain = self.site(held.host).domain(term.topology);
                if template.tenant == term.tenant && term.selector.matches(&template.spec.labels) {
                    *members.entry(domain).or_default() += 1;
                }
                let apart = template
                    .uses
                    .iter()
                    .filter(|used| used.term == slot && used.required && used.rule == Rule::Apart);
                *guards.entry(domain).or_default() += number(apart.count());
            }
            guards.retain(|_, count| *count > 0);
            same("counts", "a term", &term.members.sorted(), &members)?;
            same("guards", "a term", &term.guards.sorted(), &guards)?;
            let mut covered: Table<u32, BTreeMap<u32, u32>> = Table::default();
            let hosts = members.iter().filter(|_| term.topology == Topology::Host);
            for (&host, &count) in hosts.filter(|(host, _)| self.hosts[**host].is_open()) {
                let cell = covered.entry(self.hosts[host].cell).or_default();
                *cell.entry(count).or_default() += 1;
            }
            same("covers", "a term", &term.covered, &covered)?;
            let users = self
                .templates
                .iter()
                .flat_map(|(_, template)| &template.uses);
            let users = users.filter(|used| used.term == slot).count();
            same("is used", "a term", &(term.users as usize), &users)?;
        }
        Ok(())
    }

    fn audit_bookings(&self) -> Result<(), String> {
        for (slot, view) in self.booking_ids.values().zip(self.bookings()) {
            let on = self.pods.iter().filter(|(_, held)| held.booking == *slot);
            let (kept, used): (Vec<_>, Vec<_>) = on.partition(|(_, held)| held.pod.is_none());
            same("keeps", "a reservation", &view.idle, &number(kept.len()))?;
            same("is used", "a reservation", &view.used, &number(used.len()))?;
            if view.idle + view.used > view.booking.count {
                return Err("a reservation has more than it asked for".into());
            }
        }
        let held = self
            .pods
            .iter()
            .filter(|(_, held)| held.booking != crate::slab::NONE);
        for (_, held) in held {
            if self.bookings.get(held.booking).is_none() {
                return Err("a pod draws on a reservation that is over".into());
            }
        }
        Ok(())
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    verb: &str,
    who: &str,
    kept: &T,
    counted: &T,
) -> Result<(), String> {
    if kept == counted {
        return Ok(());
    }
    Err(format!(
        "{who} {verb} {kept:?}, but counted again {counted:?}"
    ))
}
