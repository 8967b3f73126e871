//! The scheduler itself: hosts, their index, and who has a place where.

use std::collections::{BTreeMap, HashMap};

use crate::flavor::{CPU_STEP_MILLIS, Flavor, Flavors};
use crate::host::{Capacity, Host, HostError, HostSpec, HostView};
use crate::index::{Entry, FreeIndex};
use crate::placement::{PlacementError, PodId, Request, Reservation, SANDBOX_OVERHEAD_BYTES};
use crate::reason::{PlaceError, Refusal, Wait};

/// Which of the hosts with room is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// The fullest, so that large gaps stay whole.
    Pack,
    /// The emptiest, so that pods share the least.
    #[default]
    Spread,
}

#[derive(Debug, Default)]
struct Zone {
    hosts: usize,
    ready: usize,
    index: FreeIndex,
}

#[derive(Debug, Clone, Copy)]
struct Placement {
    slot: usize,
    takes: Capacity,
    committed: bool,
}

/// Places pods on hosts. See the crate's documentation.
#[derive(Debug)]
pub struct Scheduler {
    flavors: Flavors,
    policy: Policy,
    hosts: Vec<Host>,
    slots: HashMap<String, usize>,
    zones: BTreeMap<String, Zone>,
    placements: HashMap<PodId, Placement>,
}

impl Scheduler {
    /// Without hosts yet.
    #[must_use]
    pub fn new(flavors: Flavors, policy: Policy) -> Self {
        Self {
            flavors,
            policy,
            hosts: Vec::new(),
            slots: HashMap::new(),
            zones: BTreeMap::new(),
            placements: HashMap::new(),
        }
    }

    /// The flavors that requests are rounded up to.
    #[must_use]
    pub fn flavors(&self) -> &Flavors {
        &self.flavors
    }

    /// Zones that have a host, by name.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        self.zones.keys().map(String::as_str)
    }

    /// All hosts, in the order in which they first came.
    pub fn hosts(&self) -> impl Iterator<Item = HostView> {
        self.hosts.iter().map(Host::view)
    }

    /// The host of that name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<HostView> {
        let slot = *self.slots.get(name)?;
        self.hosts.get(slot).map(Host::view)
    }

    /// Adds a host, not ready yet, or changes what is known of one. A host that
    /// shrinks below what its pods have keeps them and takes no more.
    ///
    /// # Errors
    /// [`HostError::ZoneInUse`] where it has pods and would change its zone.
    pub fn set_host(&mut self, spec: HostSpec) -> Result<(), HostError> {
        let Some(&slot) = self.slots.get(&spec.name) else {
            let slot = self.hosts.len();
            self.slots.insert(spec.name.clone(), slot);
            self.zones.entry(spec.zone.clone()).or_default().hosts += 1;
            self.hosts.push(Host {
                spec,
                used: Capacity::default(),
                ready: false,
            });
            return Ok(());
        };
        let Some(host) = self.hosts.get(slot) else {
            return Err(HostError::Unknown(spec.name));
        };
        if host.spec.zone == spec.zone {
            self.change(slot, |host| host.spec = spec);
            return Ok(());
        }
        if host.used.pods > 0 {
            return Err(HostError::ZoneInUse {
                host: spec.name,
                zone: host.spec.zone.clone(),
                pods: host.used.pods,
            });
        }
        let (was_ready, old) = (host.ready, host.spec.zone.clone());
        self.change(slot, |host| host.ready = false);
        if let Some(zone) = self.zones.get_mut(&old) {
            zone.hosts -= 1;
            if zone.hosts == 0 {
                self.zones.remove(&old);
            }
        }
        self.zones.entry(spec.zone.clone()).or_default().hosts += 1;
        self.change(slot, |host| host.spec = spec);
        self.change(slot, |host| host.ready = was_ready);
        Ok(())
    }

    /// Says whether a host takes pods. Those that it has stay placed.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn set_ready(&mut self, host: &str, ready: bool) -> Result<(), HostError> {
        let slot = *self
            .slots
            .get(host)
            .ok_or_else(|| HostError::Unknown(host.to_owned()))?;
        self.change(slot, |host| host.ready = ready);
        Ok(())
    }

    /// Checks a request without placing anything.
    ///
    /// # Errors
    /// The [`Refusal`] that [`Scheduler::reserve`] would give.
    pub fn check(&self, request: &Request) -> Result<&Flavor, Refusal> {
        if let Some(zone) = &request.zone
            && !self.zones.contains_key(zone)
        {
            return Err(Refusal::UnknownZone {
                zone: zone.clone(),
                known: self.zones.keys().cloned().collect(),
            });
        }
        self.flavors.resolve(
            request.cpu_millis,
            request.memory_bytes,
            request.flavor.as_deref(),
        )
    }

    /// Holds a place for a pod.
    ///
    /// # Errors
    /// Any [`PlaceError`]; nothing is held then.
    pub fn reserve(&mut self, pod: PodId, request: &Request) -> Result<Reservation, PlaceError> {
        if let Some(held) = self.placements.get(&pod) {
            let host = self.name_of(held.slot);
            return Err(PlaceError::AlreadyPlaced { pod, host });
        }
        let flavor = self.check(request)?.clone();
        let takes = takes(flavor.cpu_millis, flavor.memory_bytes);
        let steps = flavor.cpu_millis / CPU_STEP_MILLIS;
        let found = self
            .candidates(request.zone.as_deref())
            .filter_map(|zone| zone.index.find(self.policy, steps, takes.memory_bytes));
        let chosen = match self.policy {
            Policy::Pack => found.min(),
            // Of equals the first registered.
            Policy::Spread => {
                found.max_by_key(|(steps, memory, slot)| (*steps, *memory, usize::MAX - slot))
            }
        };
        let Some((_, _, slot)) = chosen else {
            return Err(PlaceError::Wait(self.why(request.zone.clone(), &flavor)));
        };
        self.place(pod, slot, takes, false);
        let spec = self.hosts.get(slot).map(|host| host.spec.clone());
        let (host, zone) = spec.map(|s| (s.name, s.zone)).unwrap_or_default();
        Ok(Reservation { host, zone, flavor })
    }

    /// Makes a reservation last: the decision is durable.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`].
    pub fn commit(&mut self, pod: PodId) -> Result<(), PlacementError> {
        let held = self.placements.get_mut(&pod);
        held.ok_or(PlacementError::NotPlaced(pod))?.committed = true;
        Ok(())
    }

    /// Gives a pod's place back, reserved or committed.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`].
    pub fn release(&mut self, pod: PodId) -> Result<(), PlacementError> {
        let held = self.placements.remove(&pod);
        let held = held.ok_or(PlacementError::NotPlaced(pod))?;
        self.change(held.slot, |host| {
            host.used = host.used.minus(held.takes);
        });
        Ok(())
    }

    /// Takes over a place that was committed in an earlier life of the scheduler.
    /// It holds even where the host has shrunk since.
    ///
    /// # Errors
    /// [`PlacementError::UnknownHost`], [`PlacementError::AlreadyPlaced`].
    pub fn adopt(
        &mut self,
        pod: PodId,
        host: &str,
        cpu_millis: u32,
        memory_bytes: u64,
    ) -> Result<(), PlacementError> {
        if let Some(held) = self.placements.get(&pod) {
            let host = self.name_of(held.slot);
            return Err(PlacementError::AlreadyPlaced { pod, host });
        }
        let slot = self.slots.get(host).copied();
        let slot = slot.ok_or_else(|| PlacementError::UnknownHost(host.to_owned()))?;
        self.place(pod, slot, takes(cpu_millis, memory_bytes), true);
        Ok(())
    }

    /// Where a pod has its place, and whether it is committed.
    #[must_use]
    pub fn placement(&self, pod: PodId) -> Option<(&str, bool)> {
        let held = self.placements.get(&pod)?;
        let host = self.hosts.get(held.slot)?;
        Some((&host.spec.name, held.committed))
    }

    fn name_of(&self, slot: usize) -> String {
        let host = self.hosts.get(slot);
        host.map(|host| host.spec.name.clone()).unwrap_or_default()
    }

    fn candidates(&self, zone: Option<&str>) -> impl Iterator<Item = &Zone> {
        self.zones
            .iter()
            .filter(move |(name, _)| zone.is_none_or(|wanted| wanted == name.as_str()))
            .map(|(_, zone)| zone)
    }

    fn place(&mut self, pod: PodId, slot: usize, takes: Capacity, committed: bool) {
        self.change(slot, |host| {
            host.used.cpu_millis = host.used.cpu_millis.saturating_add(takes.cpu_millis);
            host.used.memory_bytes = host.used.memory_bytes.saturating_add(takes.memory_bytes);
            host.used.pods = host.used.pods.saturating_add(takes.pods);
        });
        self.placements.insert(
            pod,
            Placement {
                slot,
                takes,
                committed,
            },
        );
    }

    /// Every change of a host goes through here, so that the index follows.
    fn change(&mut self, slot: usize, change: impl FnOnce(&mut Host)) {
        let Some(host) = self.hosts.get_mut(slot) else {
            return;
        };
        if let Some(zone) = self.zones.get_mut(&host.spec.zone) {
            zone.ready -= usize::from(host.ready);
            if let Some(entry) = entry(host, slot) {
                zone.index.remove(entry);
            }
        }
        change(host);
        if let Some(zone) = self.zones.get_mut(&host.spec.zone) {
            zone.ready += usize::from(host.ready);
            if let Some(entry) = entry(host, slot) {
                zone.index.insert(entry);
            }
        }
    }

    /// Why no host of the zone has room for the flavor.
    fn why(&self, zone: Option<String>, flavor: &Flavor) -> Wait {
        let (mut hosts, mut ready) = (0, 0);
        let mut largest: Option<(u32, u64)> = None;
        for candidate in self.candidates(zone.as_deref()) {
            hosts += candidate.hosts;
            ready += candidate.ready;
            if let Some((steps, memory)) = candidate.index.largest() {
                let (s, m) = largest.unwrap_or_default();
                largest = Some((s.max(steps), m.max(memory)));
            }
        }
        if hosts == 0 {
            return Wait::NoHost;
        }
        if ready == 0 {
            return Wait::NoneReady { zone, hosts };
        }
        let Some((steps, largest_bytes)) = largest else {
            return Wait::Pods { zone };
        };
        let largest_millis = steps.saturating_mul(CPU_STEP_MILLIS);
        if largest_millis < flavor.cpu_millis {
            return Wait::Cpu {
                zone,
                need_millis: flavor.cpu_millis,
                largest_millis,
            };
        }
        if largest_bytes < takes(flavor.cpu_millis, flavor.memory_bytes).memory_bytes {
            return Wait::Memory {
                zone,
                need_bytes: flavor.memory_bytes,
                largest_bytes,
            };
        }
        Wait::Both {
            zone,
            need_millis: flavor.cpu_millis,
            need_bytes: flavor.memory_bytes,
        }
    }
}

/// What a pod of that size takes of its host.
fn takes(cpu_millis: u32, memory_bytes: u64) -> Capacity {
    Capacity {
        cpu_millis,
        memory_bytes: memory_bytes.saturating_add(SANDBOX_OVERHEAD_BYTES),
        pods: 1,
    }
}

/// Where a host stands in its zone's index; `None`: it takes no pod.
fn entry(host: &Host, slot: usize) -> Option<Entry> {
    let free = host.free();
    (host.ready && free.pods > 0).then(|| (host.free_steps(), free.memory_bytes, slot))
}
