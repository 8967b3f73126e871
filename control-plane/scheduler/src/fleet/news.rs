//! What has changed for those that wait, so that only they are tried again who may
//! have a place now.

use std::collections::{BTreeMap, BTreeSet};

use super::{BY_HOST, Fleet};
use crate::amount::Amount;
use crate::template::Class;
use crate::tenant::Limits;

/// Since it was last taken.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// The most that a host with more room than before has free, its spot pods counted
    /// as room, by cell.
    pub(crate) rooms: BTreeMap<u32, Amount>,
    /// Hosts with more room than before, or whose pods may be evicted now.
    freed: BTreeSet<u32>,
    /// Tenants with pods on those: less room is missing where they evict their own.
    nearby: BTreeSet<u32>,
    /// Tenants whose pods, limits or reservations have changed: what they must be
    /// with or apart from may have.
    pub(crate) tenants: BTreeSet<u32>,
    /// Spreads over hosts and zones may be measured against other hosts now.
    pub(crate) hosts: bool,
}

impl News {
    /// Both together.
    pub(crate) fn and(mut self, later: Self) -> Self {
        for (cell, room) in later.rooms {
            let most = self.rooms.entry(cell).or_default();
            *most = most.most(room);
        }
        self.freed.extend(later.freed);
        self.nearby.extend(later.nearby);
        self.tenants.extend(later.tenants);
        self.hosts |= later.hosts;
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.freed.is_empty() && self.tenants.is_empty() && !self.hosts
    }
}

impl Fleet {
    /// Whether pods of a template that found no room may find it now.
    pub(crate) fn may_have_room(&self, template: u32, news: &News) -> bool {
        let template = &self.templates[template];
        // What pods of its tenant are where, what it holds and has reserved, whom it
        // may evict.
        if news.tenants.contains(&template.tenant) {
            let limits = &self.tenants[template.tenant as usize].limits;
            let touched = !template.uses.is_empty()
                || !template.matched.is_empty()
                || template.spec.preempts
                || template.spec.class == Class::Reserved
                || *limits != Limits::default();
            if touched {
                return true;
            }
        }
        if news.hosts && !template.uses.is_empty() {
            return true;
        }
        if template.spec.preempts && news.nearby.contains(&template.tenant) {
            return true;
        }
        template.choices.iter().any(|choice| {
            let zones = self.zones_of(template).iter();
            let mut cells = zones.filter_map(|zone| self.cell_of(*zone, choice.family));
            cells.any(|cell| {
                let most = news.rooms.get(&cell);
                most.is_some_and(|most| choice.takes.fits(*most))
            })
        })
    }

    /// A host may have more room than before.
    pub(super) fn tell_room(&mut self, host: u32) {
        self.news.hosts = true;
        self.tell_free(host);
    }

    pub(super) fn tell_free(&mut self, host: u32) {
        let entry = &self.hosts[host];
        if entry.is_open() {
            // On a host that has shrunk the first may be nothing.
            let without_spot = entry.room_without(self.shared(host).plus(entry.spot));
            let (cell, free) = (entry.cell, self.room(host).most(without_spot));
            let most = self.news.rooms.entry(cell).or_default();
            *most = most.most(free);
            self.news.freed.insert(host);
        }
    }

    /// Whether something has changed for those that wait.
    pub(crate) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// All news since the last time.
    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Finds whose pods are on the hosts that the news are about.
    pub(crate) fn complete(&self, news: &mut News) {
        for host in std::mem::take(&mut news.freed) {
            let Some(entry) = self.hosts.get(host) else {
                continue;
            };
            let on_host = entry.pods.iter::<BY_HOST, _>(&self.pods);
            let tenants = on_host.map(|(_, held)| self.templates[held.template].tenant);
            news.nearby.extend(tenants);
        }
    }
}
