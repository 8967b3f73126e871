//! Hosts that come, change, are cordoned, drained, lost and removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{BY_HOST, Cell, Fleet, Host, Zone};
use crate::amount::Amount;
use crate::chain::Chain;
use crate::host::HostError;
use crate::placement::{HostId, Ticket};
use crate::slab::{NONE, number};
use crate::template::Topology;

/// A host as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Unique.
    pub name: String,
    /// Where it stands.
    pub zone: String,
    /// The kind of host: it takes flavors of this family.
    pub family: String,
    /// All that pods may use of it.
    pub capacity: Amount,
}

/// A host as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Its number.
    pub id: HostId,
    /// As registered.
    pub facts: HostFacts,
    /// What no pod has. Nothing is promised of it while there is less of something
    /// than its pods have.
    pub free: Amount,
    /// What its pods take.
    pub used: Amount,
    /// Whether its card is attached.
    pub ready: bool,
    /// Whether an operator keeps pods off it.
    pub cordoned: bool,
}

impl Fleet {
    /// Adds a host, not ready yet, or changes what is known of one. A host that
    /// shrinks below what its pods have keeps them and takes no more.
    ///
    /// # Errors
    /// [`HostError::ZoneInUse`] where it has pods and would change its zone or its
    /// family.
    pub fn set_host(&mut self, facts: HostFacts) -> Result<HostId, HostError> {
        let cell = self.ensure_cell(&facts.zone, &facts.family);
        let Some(&host) = self.by_name.get(facts.name.as_str()) else {
            let name: Arc<str> = facts.name.into();
            let host = self.hosts.insert(Host {
                name: Arc::clone(&name),
                cell,
                capacity: facts.capacity,
                used: Amount::default(),
                spot: Amount::default(),
                pods: Chain::default(),
                ready: false,
                cordoned: false,
            });
            self.by_name.insert(name, host);
            self.zone_of_mut(cell).hosts += 1;
            self.capacity.add(facts.capacity);
            return Ok(HostId(host));
        };
        let entry = &self.hosts[host];
        if entry.cell != cell && entry.used.pods > 0 {
            let zone = self.cells[entry.cell as usize].zone;
            return Err(HostError::ZoneInUse {
                host: facts.name,
                zone: self.zones[zone as usize].name.clone(),
                pods: entry.used.pods,
            });
        }
        let (old_cell, old_capacity, open) = (entry.cell, entry.capacity, entry.is_open());
        self.capacity.take(old_capacity);
        self.capacity.add(facts.capacity);
        if old_cell != cell {
            self.zone_of_mut(old_cell).hosts -= 1;
            self.zone_of_mut(cell).hosts += 1;
            self.cells[old_cell as usize].open -= u32::from(open);
            self.cells[cell as usize].open += u32::from(open);
        }
        let entry = &mut self.hosts[host];
        entry.cell = cell;
        entry.capacity = facts.capacity;
        self.reindex(host);
        self.tell_room(host);
        Ok(HostId(host))
    }

    /// Says whether a host takes pods. Those that it has stay placed.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn set_ready(&mut self, host: &str, ready: bool) -> Result<(), HostError> {
        let host = self.find_host(host)?;
        let cordoned = self.hosts[host].cordoned;
        self.set_state(host, ready, cordoned);
        Ok(())
    }

    /// Keeps new pods off a host. Those that it has stay; what it holds of capacity
    /// reservations moves to other hosts.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn cordon(&mut self, host: &str) -> Result<(), HostError> {
        let host = self.find_host(host)?;
        let ready = self.hosts[host].ready;
        self.set_state(host, ready, true);
        self.unbook_host(host);
        Ok(())
    }

    /// Lets a cordoned host take pods again.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn uncordon(&mut self, host: &str) -> Result<(), HostError> {
        let host = self.find_host(host)?;
        let ready = self.hosts[host].ready;
        self.set_state(host, ready, false);
        Ok(())
    }

    /// Cordons a host, and says who has to leave it: the least important first. Their
    /// places are theirs until they are released.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn drain(&mut self, host: &str) -> Result<Vec<Ticket>, HostError> {
        self.cordon(host)?;
        let host = self.find_host(host)?;
        let on_host = self.hosts[host].pods.iter::<BY_HOST, _>(&self.pods);
        let mut pods: Vec<_> = on_host
            .map(|(_, held)| (held.rank, held.generation, held.ticket()))
            .collect();
        pods.sort_unstable();
        Ok(pods.into_iter().map(|(_, _, ticket)| ticket).collect())
    }

    /// A host is lost with all that was on it. Its pods have no place any more, and
    /// what still comes with their tickets is stale. Says whose pods these were, and
    /// whose way is clear by that: none, since they were on that host too.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn lose_host(&mut self, host: &str) -> Result<Vec<Ticket>, HostError> {
        let host = self.find_host(host)?;
        let cordoned = self.hosts[host].cordoned;
        self.set_state(host, false, cordoned);
        self.unbook_host(host);
        let on_host = self.hosts[host].pods.iter::<BY_HOST, _>(&self.pods);
        let mut pods: Vec<_> = on_host
            .map(|(slot, held)| (held.generation, slot))
            .collect();
        pods.sort_unstable();
        let lost = pods.iter().map(|(_, slot)| self.pods[*slot].ticket());
        let lost: Vec<Ticket> = lost.collect();
        for (_, slot) in pods {
            self.withdraw(slot);
        }
        Ok(lost)
    }

    /// Forgets a host, lost as by [`Fleet::lose_host`].
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn remove_host(&mut self, name: &str) -> Result<Vec<Ticket>, HostError> {
        let lost = self.lose_host(name)?;
        let host = self.find_host(name)?;
        if let Some(entry) = self.hosts.remove(host) {
            self.by_name.remove(name);
            self.zone_of_mut(entry.cell).hosts -= 1;
            self.capacity.take(entry.capacity);
        }
        Ok(lost)
    }

    /// All hosts, by their numbers.
    pub fn hosts(&self) -> impl Iterator<Item = HostStatus> {
        self.hosts.iter().map(|(host, _)| self.status(host))
    }

    /// The host of that name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<HostStatus> {
        let host = *self.by_name.get(name)?;
        Some(self.status(host))
    }

    fn status(&self, host: u32) -> HostStatus {
        let entry = &self.hosts[host];
        let cell = &self.cells[entry.cell as usize];
        let family = self
            .families
            .iter()
            .find(|(_, family)| **family == cell.family);
        HostStatus {
            id: HostId(host),
            facts: HostFacts {
                name: entry.name.to_string(),
                zone: self.zones[cell.zone as usize].name.clone(),
                family: family.map(|(name, _)| name.clone()).unwrap_or_default(),
                capacity: entry.capacity,
            },
            free: entry.capacity.minus(entry.used.minus(self.shared(host))),
            used: entry.used,
            ready: entry.ready,
            cordoned: entry.cordoned,
        }
    }

    pub(super) fn find_host(&self, name: &str) -> Result<u32, HostError> {
        let host = self.by_name.get(name).copied();
        host.ok_or_else(|| HostError::Unknown(name.to_owned()))
    }

    fn set_state(&mut self, host: u32, ready: bool, cordoned: bool) {
        let entry = &mut self.hosts[host];
        let before = entry.is_open();
        entry.ready = ready;
        entry.cordoned = cordoned;
        let (now, cell) = (entry.is_open(), entry.cell);
        if before == now {
            return;
        }
        let open = &mut self.cells[cell as usize].open;
        *open = if now { *open + 1 } else { *open - 1 };
        self.cover_host(host, now);
        self.reindex(host);
        self.tell_room(host);
    }

    /// A host counts, or counts no more, where pods are spread over hosts.
    fn cover_host(&mut self, host: u32, open: bool) {
        let on_host = self.hosts[host].pods.iter::<BY_HOST, _>(&self.pods);
        let terms = on_host.flat_map(|(_, held)| &self.templates[held.template].matched);
        let terms: BTreeSet<u32> = terms.copied().collect();
        let cell = self.hosts[host].cell;
        for term in terms {
            let term = &mut self.terms.entries[term];
            if term.topology == Topology::Host {
                let members = term.members.at(host);
                match open {
                    true => term.cover(cell, members),
                    false => term.uncover(cell, members),
                }
            }
        }
    }

    fn zone_of_mut(&mut self, cell: u32) -> &mut Zone {
        let zone = self.cells[cell as usize].zone;
        &mut self.zones[zone as usize]
    }

    fn ensure_cell(&mut self, zone: &str, family: &str) -> u32 {
        let next = number(self.families.len());
        let family = *self.families.entry(family.to_owned()).or_insert(next);
        let next = number(self.zones.len());
        let zone_number = *self.zone_names.entry(zone.to_owned()).or_insert(next);
        if zone_number == next {
            self.all_zones.push(next);
            self.zones.push(Zone {
                name: zone.to_owned(),
                hosts: 0,
                cells: Vec::new(),
            });
        }
        let cells = &mut self.zones[zone_number as usize].cells;
        if cells.len() <= family as usize {
            cells.resize(family as usize + 1, NONE);
        }
        let cell = &mut cells[family as usize];
        if *cell == NONE {
            *cell = number(self.cells.len());
            self.cells.push(Cell {
                zone: zone_number,
                family,
                open: 0,
            });
        }
        *cell
    }
}
