//! Terms: how many pods that a selector means are where.
//!
//! A term is a selector of one tenant over one topology. It is counted only while a
//! template uses it, so a pod that nobody's selector means costs nothing here.

use std::collections::BTreeMap;

use crate::selector::Selector;
use crate::slab::Slab;
use crate::table::Table;
use crate::template::Topology;

/// Pods by host or zone; no zeros.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(Table<u32, u32>);

impl Counts {
    pub(crate) fn at(&self, domain: u32) -> u32 {
        if self.0.is_empty() {
            return 0;
        }
        self.0.get(&domain).copied().unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In no order: whoever looks through it must not depend on one.
    pub(crate) fn domains(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    pub(crate) fn sorted(&self) -> BTreeMap<u32, u32> {
        self.0
            .iter()
            .map(|(domain, count)| (*domain, *count))
            .collect()
    }

    fn add(&mut self, domain: u32) -> u32 {
        let count = self.0.entry(domain).or_default();
        *count += 1;
        *count
    }

    fn take(&mut self, domain: u32) -> u32 {
        let Some(count) = self.0.get_mut(&domain) else {
            return 0;
        };
        *count -= 1;
        let left = *count;
        if left == 0 {
            self.0.remove(&domain);
        }
        left
    }
}

/// Where a pod is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) host: u32,
    pub(crate) zone: u32,
    pub(crate) cell: u32,
    /// Whether the host takes pods.
    pub(crate) open: bool,
}

impl Site {
    pub(crate) fn domain(self, topology: Topology) -> u32 {
        match topology {
            Topology::Host => self.host,
            Topology::Zone => self.zone,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) tenant: u32,
    pub(crate) selector: Selector,
    pub(crate) topology: Topology,
    /// Templates that use it.
    pub(crate) users: u32,
    /// Pods that the selector means.
    pub(crate) members: Counts,
    /// Pods that must be apart from those.
    pub(crate) guards: Counts,
    /// Over hosts: of those that take pods, how many have how many members, by cell.
    /// What a spread over hosts measures against without looking at every host.
    pub(crate) covered: Table<u32, BTreeMap<u32, u32>>,
}

impl Term {
    /// Counts one more member there.
    pub(crate) fn join(&mut self, site: Site) {
        let now = self.members.add(site.domain(self.topology));
        if self.topology == Topology::Host && site.open {
            self.uncover(site.cell, now - 1);
            self.cover(site.cell, now);
        }
    }

    /// Counts one member less there.
    pub(crate) fn leave(&mut self, site: Site) {
        let now = self.members.take(site.domain(self.topology));
        if self.topology == Topology::Host && site.open {
            self.uncover(site.cell, now + 1);
            self.cover(site.cell, now);
        }
    }

    pub(crate) fn guard(&mut self, site: Site) {
        self.guards.add(site.domain(self.topology));
    }

    pub(crate) fn unguard(&mut self, site: Site) {
        self.guards.take(site.domain(self.topology));
    }

    /// A host of that cell with so many members takes pods now.
    pub(crate) fn cover(&mut self, cell: u32, members: u32) {
        if members > 0 {
            *self
                .covered
                .entry(cell)
                .or_default()
                .entry(members)
                .or_default() += 1;
        }
    }

    /// A host of that cell with so many members takes no pods any more.
    pub(crate) fn uncover(&mut self, cell: u32, members: u32) {
        let Some(counts) = self.covered.get_mut(&cell) else {
            return;
        };
        if let Some(hosts) = counts.get_mut(&members) {
            *hosts -= 1;
            if *hosts == 0 {
                counts.remove(&members);
                if counts.is_empty() {
                    self.covered.remove(&cell);
                }
            }
        }
    }
}

/// All terms.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    pub(crate) entries: Slab<Term>,
    known: Table<(u32, Topology, Selector), u32>,
}

impl Terms {
    pub(crate) fn find(&self, tenant: u32, topology: Topology, selector: &Selector) -> Option<u32> {
        self.known
            .get(&(tenant, topology, selector.clone()))
            .copied()
    }

    pub(crate) fn insert(&mut self, tenant: u32, topology: Topology, selector: &Selector) -> u32 {
        let term = self.entries.insert(Term {
            tenant,
            selector: selector.clone(),
            topology,
            users: 0,
            members: Counts::default(),
            guards: Counts::default(),
            covered: Table::default(),
        });
        self.known
            .insert((tenant, topology, selector.clone()), term);
        term
    }

    pub(crate) fn remove(&mut self, term: u32) -> Option<Term> {
        let removed = self.entries.remove(term)?;
        let key = (removed.tenant, removed.topology, removed.selector.clone());
        self.known.remove(&key);
        Some(removed)
    }
}
