//! A fleet for whoever needs no more than a zone and a flavor: one tenant, one kind
//! of host, no devices to count.

use crate::amount::Amount;
use crate::flavor::{Flavor, Flavors, STANDARD_FAMILY};
use crate::fleet::{Fleet, HostFacts, HostStatus};
use crate::host::{Capacity, HostError, HostSpec, HostView};
use crate::placement::{PlacementError, PodId, Request, Reservation};
use crate::policy::Policy;
use crate::reason::{Declined, PlaceError, Refusal};
use crate::template::{PodTemplate, Zones};

/// Places pods on hosts by pod and host name, over a [`Fleet`].
#[derive(Debug)]
pub struct Scheduler {
    fleet: Fleet,
}

impl Scheduler {
    /// Without hosts yet.
    #[must_use]
    pub fn new(flavors: Flavors, policy: Policy) -> Self {
        Self {
            fleet: Fleet::new(flavors, policy),
        }
    }

    /// The fleet below, for all that this does not show.
    pub fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    /// The flavors that requests are rounded up to.
    #[must_use]
    pub fn flavors(&self) -> &Flavors {
        self.fleet.flavors()
    }

    /// Zones that have a host, by name.
    pub fn zones(&self) -> impl Iterator<Item = &str> {
        self.fleet.zones()
    }

    /// All hosts, in the order in which they first came.
    pub fn hosts(&self) -> impl Iterator<Item = HostView> {
        self.fleet.hosts().map(view)
    }

    /// The host of that name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<HostView> {
        self.fleet.host(name).map(view)
    }

    /// Adds a host, not ready yet, or changes what is known of one. A host that
    /// shrinks below what its pods have keeps them and takes no more.
    ///
    /// # Errors
    /// [`HostError::ZoneInUse`] where it has pods and would change its zone.
    pub fn set_host(&mut self, spec: HostSpec) -> Result<(), HostError> {
        let facts = HostFacts {
            name: spec.name,
            zone: spec.zone,
            family: STANDARD_FAMILY.into(),
            capacity: Amount {
                memory_bytes: spec.capacity.memory_bytes,
                cpu_millis: spec.capacity.cpu_millis,
                pods: spec.capacity.pods,
                enis: u32::MAX,
                disks: u32::MAX,
                gpus: 0,
            },
        };
        self.fleet.set_host(facts).map(|_| ())
    }

    /// Says whether a host takes pods. Those that it has stay placed.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn set_ready(&mut self, host: &str, ready: bool) -> Result<(), HostError> {
        self.fleet.set_ready(host, ready)
    }

    /// Checks a request without placing anything.
    ///
    /// # Errors
    /// The [`Refusal`] that [`Scheduler::reserve`] would give.
    pub fn check(&self, request: &Request) -> Result<&Flavor, Refusal> {
        self.fleet.check(&template(request))?;
        let flavor = request.flavor.as_deref();
        self.flavors()
            .resolve(request.cpu_millis, request.memory_bytes, flavor)
    }

    /// Holds a place for a pod.
    ///
    /// # Errors
    /// Any [`PlaceError`]; nothing is held then.
    pub fn reserve(&mut self, pod: PodId, request: &Request) -> Result<Reservation, PlaceError> {
        let template = template(request);
        match self.fleet.reserve(pod, &template) {
            Ok(placed) => {
                let host = self.fleet.host_name(placed.host).to_owned();
                let status = self.fleet.host(&host);
                Ok(Reservation {
                    host,
                    zone: status.map(|host| host.facts.zone).unwrap_or_default(),
                    flavor: self.fleet.flavor(&placed).clone(),
                })
            }
            Err(Declined::Refused(refusal)) => Err(PlaceError::Refused(refusal)),
            Err(Declined::AlreadyPlaced { pod, host }) => {
                Err(PlaceError::AlreadyPlaced { pod, host })
            }
            Err(Declined::NoRoom | Declined::Limit(_)) => {
                let shortage = self.fleet.explain(&template)?;
                Err(PlaceError::Wait(Box::new(shortage)))
            }
        }
    }

    /// Makes a reservation last: the decision is durable.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`].
    pub fn commit(&mut self, pod: PodId) -> Result<(), PlacementError> {
        let held = self.fleet.placement(pod);
        let (ticket, ..) = held.ok_or(PlacementError::NotPlaced(pod))?;
        self.fleet.commit(ticket)
    }

    /// Gives a pod's place back, reserved or committed.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`].
    pub fn release(&mut self, pod: PodId) -> Result<(), PlacementError> {
        let held = self.fleet.placement(pod);
        let (ticket, ..) = held.ok_or(PlacementError::NotPlaced(pod))?;
        self.fleet.release(ticket).map(|_| ())
    }

    /// Takes over a place that was committed in an earlier life of the scheduler.
    /// It holds even where the host has shrunk since.
    ///
    /// # Errors
    /// [`PlacementError::UnknownHost`], [`PlacementError::AlreadyPlaced`],
    /// [`PlacementError::Absurd`].
    pub fn adopt(
        &mut self,
        pod: PodId,
        host: &str,
        cpu_millis: u32,
        memory_bytes: u64,
    ) -> Result<(), PlacementError> {
        let spec = PodTemplate::default();
        let adopted = self
            .fleet
            .adopt(pod, &spec, host, cpu_millis, memory_bytes, 0);
        adopted.map(|_| ())
    }

    /// Where a pod has its place, and whether it is committed.
    #[must_use]
    pub fn placement(&self, pod: PodId) -> Option<(&str, bool)> {
        let (_, host, committed) = self.fleet.placement(pod)?;
        Some((self.fleet.host_name(host), committed))
    }
}

fn template(request: &Request) -> PodTemplate {
    PodTemplate {
        cpu_millis: request.cpu_millis,
        memory_bytes: request.memory_bytes,
        flavors: request.flavor.iter().cloned().collect(),
        zones: match &request.zone {
            None => Zones::Any,
            Some(zone) => Zones::AnyOf(vec![zone.clone()]),
        },
        ..PodTemplate::default()
    }
}

fn capacity(amount: Amount) -> Capacity {
    Capacity {
        cpu_millis: amount.cpu_millis,
        memory_bytes: amount.memory_bytes,
        pods: amount.pods,
    }
}

fn view(status: HostStatus) -> HostView {
    HostView {
        spec: HostSpec {
            name: status.facts.name,
            zone: status.facts.zone,
            capacity: capacity(status.facts.capacity),
        },
        free: capacity(status.free),
        pods: status.used.pods,
        ready: status.ready,
    }
}
