//! The fleet: hosts, what they have promised, and the places that pods get.

mod audit;
mod booking;
mod explain;
mod gang;
mod gate;
mod hosts;
mod intern;
mod ledger;
mod limits;
mod news;
mod place;
mod preempt;
mod relabel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use booking::{Booking, BookingError, BookingId, BookingView, Time};
pub use gang::Gang;
pub use hosts::{HostFacts, HostStatus};
pub use ledger::Released;
pub(crate) use news::News;

use crate::amount::{Amount, Total};
use crate::chain::Chain;
use crate::flavor::{Flavor, Flavors};
use crate::index::RoomIndex;
use crate::levels::{Level, Levels};
use crate::placement::{HostId, Placed, PodId};
use crate::policy::Policy;
use crate::slab::Slab;
use crate::table::Table;
use crate::template::{PodTemplate, Rule};
use crate::tenant::Tenant;
use crate::terms::{Site, Terms};
use ledger::Held;

/// Chains by which a pod hangs.
pub(crate) const BY_HOST: usize = 0;
pub(crate) const BY_RANK: usize = 1;

/// Hosts, what they have promised, and who has a place where.
///
/// No clock, no I/O, no randomness: the same calls give the same decisions.
#[derive(Debug)]
pub struct Fleet {
    flavors: Flavors,
    levels: Levels,
    policy: Policy,

    hosts: Slab<Host>,
    by_name: Table<Arc<str>, u32>,
    zones: Vec<Zone>,
    zone_names: BTreeMap<String, u32>,
    /// The numbers of all zones.
    all_zones: Vec<u32>,
    families: BTreeMap<String, u32>,
    cells: Vec<Cell>,
    capacity: Total,
    /// Hosts by what they have free.
    rooms: RoomIndex,
    /// Hosts with spot pods, by what they would have without these.
    reclaimable: RoomIndex,
    /// Hosts where somebody waits for others to leave.
    strains: Table<u32, Strain>,

    pods: Slab<Held>,
    by_id: Table<PodId, u32>,
    next_generation: u64,
    /// Who leaves for whom, by the pods' numbers; the latter may have gone.
    leaving_for: Table<u32, u32>,
    /// How many have to leave first.
    outstanding: Table<u32, u32>,

    tenants: Vec<Tenant>,
    tenant_names: BTreeMap<String, u32>,
    templates: Slab<Template>,
    known_templates: Table<Arc<PodTemplate>, u32>,
    idle_templates: usize,
    terms: Terms,

    bookings: Slab<booking::Booked>,
    booking_ids: BTreeMap<BookingId, u32>,
    booking_ends: BTreeSet<(Time, BookingId)>,

    news: News,
}

#[derive(Debug)]
struct Host {
    name: Arc<str>,
    cell: u32,
    capacity: Amount,
    /// What its pods take, all of them.
    used: Amount,
    /// What its spot pods take that may be evicted.
    spot: Amount,
    pods: Chain,
    ready: bool,
    cordoned: bool,
}

impl Host {
    fn is_open(&self) -> bool {
        self.ready && !self.cordoned
    }

    /// What could be promised if those that take that much left; nothing of anything
    /// while its pods have more of something than there is, since it has shrunk.
    fn room_without(&self, leaving: Amount) -> Amount {
        let used = self.used.minus(leaving);
        match used.fits(self.capacity) {
            true => self.capacity.minus(used),
            false => Amount::default(),
        }
    }
}

#[derive(Debug)]
struct Zone {
    name: String,
    hosts: u32,
    /// Its cell of each family, by the family's number; `NONE` where it has none.
    cells: Vec<u32>,
}

/// The hosts of one zone and family.
#[derive(Debug)]
struct Cell {
    zone: u32,
    family: u32,
    /// Those that take pods.
    open: u32,
}

/// On a host where somebody waits for others to leave.
#[derive(Debug, Clone, Copy, Default)]
struct Strain {
    /// What those take that have to leave.
    leaving: Amount,
    /// What those take that wait for it.
    waiting: Amount,
}

/// A pod template with all that can be worked out ahead.
#[derive(Debug)]
struct Template {
    spec: Arc<PodTemplate>,
    tenant: u32,
    choices: Vec<Choice>,
    /// Zones named, by their numbers.
    zones: Vec<u32>,
    uses: Vec<Use>,
    /// Terms whose selector means its pods.
    matched: Vec<u32>,
    /// Pods that have a place, and queues that hold it.
    refs: u32,
}

/// A flavor that a template accepts.
#[derive(Debug, Clone, Copy)]
struct Choice {
    flavor: u16,
    family: u32,
    takes: Amount,
    /// `None`: more than any host has.
    need: Option<Level>,
}

/// A constraint of a template.
#[derive(Debug, Clone, Copy)]
struct Use {
    term: u32,
    rule: Rule,
    required: bool,
    /// Whether its own pods are meant.
    own: bool,
}

impl Fleet {
    /// Without hosts yet.
    #[must_use]
    pub fn new(flavors: Flavors, policy: Policy) -> Self {
        let mut families = BTreeMap::new();
        for flavor in flavors.iter() {
            let next = crate::slab::number(families.len());
            families.entry(flavor.family.clone()).or_insert(next);
        }
        Self {
            levels: Levels::new(&flavors),
            flavors,
            policy,
            hosts: Slab::default(),
            by_name: Table::default(),
            zones: Vec::new(),
            zone_names: BTreeMap::new(),
            all_zones: Vec::new(),
            families,
            cells: Vec::new(),
            capacity: Total::default(),
            rooms: RoomIndex::default(),
            reclaimable: RoomIndex::default(),
            strains: Table::default(),
            pods: Slab::default(),
            by_id: Table::default(),
            next_generation: 1,
            leaving_for: Table::default(),
            outstanding: Table::default(),
            tenants: Vec::new(),
            tenant_names: BTreeMap::new(),
            templates: Slab::default(),
            known_templates: Table::default(),
            idle_templates: 0,
            terms: Terms::default(),
            bookings: Slab::default(),
            booking_ids: BTreeMap::new(),
            booking_ends: BTreeSet::new(),
            news: News::default(),
        }
    }

    /// The flavors that requests are rounded up to.
    #[must_use]
    pub fn flavors(&self) -> &Flavors {
        &self.flavors
    }

    /// What all hosts have together.
    #[must_use]
    pub fn capacity(&self) -> Total {
        self.capacity
    }

    /// Zones that have a host, by name.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        let zones = self.zone_names.iter();
        let with_hosts = zones.filter(|(_, zone)| self.zones[**zone as usize].hosts > 0);
        with_hosts.map(|(name, _)| name.as_str())
    }

    /// The name of a host that a pod was placed on; empty where it was removed.
    #[must_use]
    pub fn host_name(&self, host: HostId) -> &str {
        self.hosts.get(host.0).map_or("", |host| &host.name)
    }

    /// The name of the zone where a host stands; empty where it was removed.
    #[must_use]
    pub fn zone_name(&self, host: HostId) -> &str {
        self.hosts.get(host.0).map_or("", |host| {
            let zone = self.cells[host.cell as usize].zone;
            &self.zones[zone as usize].name
        })
    }

    /// Zones that have a host, by name, and whether one of these takes pods now.
    pub fn zones_open(&self) -> impl Iterator<Item = (&str, bool)> {
        self.zones().map(|name| {
            let zone = &self.zones[self.zone_names[name] as usize];
            let cells = zone.cells.iter().filter(|cell| **cell != crate::slab::NONE);
            let mut open = cells.map(|cell| self.cells[*cell as usize].open);
            (name, open.any(|open| open > 0))
        })
    }

    /// The flavor that a pod was placed as.
    ///
    /// # Panics
    /// Where the place was given by another fleet, with more flavors.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn flavor(&self, placed: &Placed) -> &Flavor {
        let flavor = self.flavors.at(usize::from(placed.flavor));
        flavor.expect("a flavor of this fleet's table")
    }

    fn site(&self, host: u32) -> Site {
        let entry = &self.hosts[host];
        Site {
            host,
            zone: self.cells[entry.cell as usize].zone,
            cell: entry.cell,
            open: entry.is_open(),
        }
    }

    /// What of its pods' sum is counted once, since some leave for others.
    fn shared(&self, host: u32) -> Amount {
        if self.strains.is_empty() {
            return Amount::default();
        }
        let strain = self.strains.get(&host);
        strain.map_or_else(Amount::default, |strain| {
            strain.leaving.least(strain.waiting)
        })
    }

    /// What the host can still promise. Where somebody waits for others to leave,
    /// the place is counted for whoever of both takes more of it.
    fn room(&self, host: u32) -> Amount {
        self.hosts[host].room_without(self.shared(host))
    }

    /// Brings the indexes up to date with a host.
    fn reindex(&mut self, host: u32) {
        let room = self.room(host);
        let entry = &self.hosts[host];
        let open = entry.is_open();
        let level = self.levels.of_room(room).filter(|_| open);
        self.rooms.set(host, entry.cell, level);
        let reclaim = open && entry.spot.pods > 0 && !self.strains.contains_key(&host);
        let level = match reclaim {
            true => self.levels.of_room(entry.room_without(entry.spot)),
            false => None,
        };
        self.reclaimable.set(host, entry.cell, level);
    }

    fn cell_of(&self, zone: u32, family: u32) -> Option<u32> {
        let cell = self.zones.get(zone as usize)?.cells.get(family as usize)?;
        (*cell != crate::slab::NONE).then_some(*cell)
    }
}
