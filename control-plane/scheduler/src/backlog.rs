//! Pods that wait for a place, and whose turn it is.
//!
//! Between tenants the turn goes by weighted dominant shares (DRF, Ghodsi et al.,
//! NSDI 2011): next is whoever holds the least of the fleet for its weight, measured
//! by what it holds the most of. A scheme that shares out *turns* (stride, lottery)
//! would let a tenant with long-lived pods keep all it has and get as many turns as
//! one with nothing; what pods take here stays taken, so what is held is what counts.
//! Within a tenant the higher class and priority goes first, then who came first.
//!
//! Pods of one template stand in one line. When the first of a line finds no room,
//! the whole line rests until something has changed that could give it a place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;

use crate::fleet::{Fleet, Gang, News};
use crate::placement::{Placed, PodId};
use crate::reason::{Declined, Refusal};
use crate::shortage::Shortage;
use crate::slab::Slab;
use crate::table::Table;
use crate::template::{Class, PodTemplate};

/// What became of something that waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A pod got its place.
    Placed(Placed),
    /// A gang got all of its places.
    Gang(Vec<Placed>),
    /// A pod, or a gang, can never be placed as it is, or has its place already: it
    /// waits no more.
    Dropped(Vec<PodId>, Declined),
}

/// Why a pod still waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Pods and gangs of its tenant that are tried before it.
    pub ahead: usize,
    /// Of a gang: how many of its pods there is room for, and how many it has.
    pub gang: Option<(usize, usize)>,
    /// What is in the way of it, or of the first of its gang that has no room.
    pub shortage: Shortage,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((fits, of)) = self.gang {
            write!(
                f,
                "{fits} of the {of} pods of its gang have room; for the next, "
            )?;
        }
        write!(f, "{}", self.shortage)?;
        match self.ahead {
            0 => Ok(()),
            1 => f.write_str(" (1 of the tenant's is ahead)"),
            ahead => write!(f, " ({ahead} of the tenant's are ahead)"),
        }
    }
}

/// The place of a line in its tenant's order: rank, arrival, the line's number.
type Turn = (Reverse<(Class, i32)>, u64, u32);

/// Pods of one template, or one gang.
#[derive(Debug)]
struct Line {
    tenant: u32,
    rank: (Class, i32),
    /// By arrival. A gang's pods have its arrival, and come one after the other.
    pods: BTreeMap<u64, PodId>,
    gang: Option<Gang>,
    /// What has to fit.
    templates: Vec<u32>,
    /// It found no room.
    rests: bool,
}

impl Line {
    fn turn(&self, number: u32) -> Option<Turn> {
        let (arrival, _) = self.pods.first_key_value()?;
        Some((Reverse(self.rank), *arrival, number))
    }
}

/// Pods that wait. It has no pod that the fleet has.
#[derive(Debug, Default)]
pub struct Backlog {
    lines: Slab<Line>,
    by_template: Table<u32, u32>,
    by_pod: Table<PodId, (u32, u64)>,
    /// Lines that may be tried, by tenant.
    turns: BTreeMap<u32, BTreeSet<Turn>>,
    resting: BTreeSet<u32>,
    arrivals: u64,
}

impl Backlog {
    /// With nobody in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many pods wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_pod.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_pod.is_empty()
    }

    /// A pod comes to wait. One that waits already keeps its turn.
    ///
    /// # Errors
    /// The [`Refusal`] where it could never be placed.
    pub fn push(
        &mut self,
        fleet: &mut Fleet,
        pod: PodId,
        spec: &PodTemplate,
    ) -> Result<(), Refusal> {
        let template = fleet.intern(spec)?;
        if self.by_pod.contains_key(&pod) {
            return Ok(());
        }
        let line = match self.by_template.get(&template) {
            Some(&line) => line,
            None => {
                fleet.hold_template(template);
                let line = self.lines.insert(Line {
                    tenant: fleet.tenant_of(template),
                    rank: (spec.class, spec.priority),
                    pods: BTreeMap::new(),
                    gang: None,
                    templates: vec![template],
                    rests: false,
                });
                self.by_template.insert(template, line);
                line
            }
        };
        self.arrivals += 1;
        self.lines[line].pods.insert(self.arrivals, pod);
        self.by_pod.insert(pod, (line, self.arrivals));
        self.queue(line);
        Ok(())
    }

    /// A gang comes to wait: its pods get their places together. A gang of nobody is
    /// nobody; one with a pod that waits already is left as it is.
    ///
    /// # Errors
    /// The [`Refusal`] where one of it could never be placed.
    pub fn push_gang(&mut self, fleet: &mut Fleet, gang: Gang) -> Result<(), Refusal> {
        let mut templates = Vec::with_capacity(gang.pods.len());
        for (_, spec) in &gang.pods {
            templates.push(fleet.intern(spec)?);
        }
        let waits = |(pod, _): &(PodId, PodTemplate)| self.by_pod.contains_key(pod);
        let Some(&first) = templates.first().filter(|_| !gang.pods.iter().any(waits)) else {
            return Ok(());
        };
        for &template in &templates {
            fleet.hold_template(template);
        }
        let ranks = gang
            .pods
            .iter()
            .map(|(_, spec)| (spec.class, spec.priority));
        let line = self.lines.insert(Line {
            tenant: fleet.tenant_of(first),
            rank: ranks.min().unwrap_or_default(),
            pods: BTreeMap::new(),
            gang: None,
            templates,
            rests: false,
        });
        for (pod, _) in &gang.pods {
            self.arrivals += 1;
            self.lines[line].pods.insert(self.arrivals, *pod);
            self.by_pod.insert(*pod, (line, self.arrivals));
        }
        self.lines[line].gang = Some(gang);
        self.queue(line);
        Ok(())
    }

    /// A pod waits no more; with it its gang. False where it did not wait.
    pub fn cancel(&mut self, fleet: &mut Fleet, pod: PodId) -> bool {
        let Some(&(line, arrival)) = self.by_pod.get(&pod) else {
            return false;
        };
        self.unqueue(line);
        match self.lines[line].gang {
            Some(_) => self.end_line(fleet, line),
            None => self.remove_pod(fleet, line, arrival),
        }
        true
    }

    /// Gives places to those whose turn it is, with at most so many attempts. Whoever
    /// is named in the answer waits no more.
    pub fn pump(&mut self, fleet: &mut Fleet, attempts: usize) -> Vec<Decision> {
        self.wake(fleet);
        let mut decisions = Vec::new();
        let tenants = self.turns.keys();
        let mut next: BinaryHeap<Reverse<(u64, u32)>> = tenants
            .map(|tenant| Reverse((fleet.weighted_share(*tenant), *tenant)))
            .collect();
        for _ in 0..attempts {
            let Some(Reverse((_, tenant))) = next.pop() else {
                break;
            };
            let turns = self.turns.get(&tenant);
            let Some(&(_, arrival, line)) = turns.and_then(|turns| turns.first()) else {
                continue;
            };
            self.unqueue(line);
            decisions.extend(self.attempt(fleet, line, arrival));
            if self.turns.contains_key(&tenant) {
                next.push(Reverse((fleet.weighted_share(tenant), tenant)));
            }
        }
        decisions
    }

    /// Whether another [`Backlog::pump`] may give somebody a place.
    #[must_use]
    pub fn is_restless(&self, fleet: &Fleet) -> bool {
        !self.turns.is_empty() || (!self.resting.is_empty() && fleet.has_news())
    }

    /// The number of the line that a pod stands in: those of one line wait for the
    /// same. `None`: it does not wait.
    #[must_use]
    pub fn line(&self, pod: PodId) -> Option<u32> {
        self.by_pod.get(&pod).map(|(line, _)| *line)
    }

    /// The pods that wait together with a pod: its gang, or it alone.
    #[must_use]
    pub fn gang(&self, pod: PodId) -> Option<&Gang> {
        let (line, _) = self.by_pod.get(&pod)?;
        self.lines[*line].gang.as_ref()
    }

    /// Why the pods of a pod's line wait, whoever is ahead of them. Costs time that
    /// grows with the hosts.
    pub fn why_line(&self, fleet: &mut Fleet, pod: PodId) -> Option<Waiting> {
        let (number, _) = self.by_pod.get(&pod)?;
        let (gang, shortage) = explain(&self.lines[*number], fleet)?;
        Some(Waiting {
            ahead: 0,
            gang,
            shortage,
        })
    }

    /// Why a pod waits; `None`: it does not. Costs time that grows with the hosts.
    pub fn why(&self, fleet: &mut Fleet, pod: PodId) -> Option<Waiting> {
        let &(number, arrival) = self.by_pod.get(&pod)?;
        let line = &self.lines[number];
        let own = (Reverse(line.rank), arrival, number);
        let lines = self
            .lines
            .iter()
            .filter(|(_, other)| other.tenant == line.tenant);
        let ahead = lines.map(|(number, other)| match &other.gang {
            Some(_) => usize::from(other.turn(number).is_some_and(|turn| turn < own)),
            None => {
                let before = other.pods.keys();
                before
                    .take_while(|at| (Reverse(other.rank), **at, number) < own)
                    .count()
            }
        });
        let ahead = ahead.sum::<usize>();
        let (gang, shortage) = explain(line, fleet)?;
        Some(Waiting {
            ahead: ahead - usize::from(line.gang.is_some() && own > line.turn(number)?),
            gang,
            shortage,
        })
    }

    fn attempt(&mut self, fleet: &mut Fleet, number: u32, arrival: u64) -> Option<Decision> {
        let line = &self.lines[number];
        let outcome = match &line.gang {
            Some(gang) => fleet.reserve_gang(gang).map(Decision::Gang),
            None => {
                let pod = *line.pods.get(&arrival)?;
                let placed = fleet.reserve_waiting(pod, *line.templates.first()?);
                placed.map(Decision::Placed)
            }
        };
        let decision = match outcome {
            Ok(decision) => decision,
            // A zone that has lost all its hosts may have some again.
            Err(
                Declined::NoRoom
                | Declined::Limit(_)
                | Declined::Refused(Refusal::UnknownZone { .. }),
            ) => {
                self.rest(number);
                return None;
            }
            Err(declined) => {
                let pods = match &line.gang {
                    Some(gang) => gang.pods.iter().map(|(pod, _)| *pod).collect(),
                    None => line.pods.get(&arrival).copied().into_iter().collect(),
                };
                Decision::Dropped(pods, declined)
            }
        };
        match line.gang {
            Some(_) => self.end_line(fleet, number),
            None => self.remove_pod(fleet, number, arrival),
        }
        Some(decision)
    }

    /// Lines that something has changed for may be tried again.
    fn wake(&mut self, fleet: &mut Fleet) {
        let mut news: News = fleet.take_news();
        if self.resting.is_empty() || news.is_empty() {
            return;
        }
        fleet.complete(&mut news);
        let woken = self.resting.iter().copied().filter(|line| {
            let mut templates = self.lines[*line].templates.iter();
            templates.any(|template| fleet.may_have_room(*template, &news))
        });
        for line in woken.collect::<Vec<u32>>() {
            self.resting.remove(&line);
            self.lines[line].rests = false;
            self.queue(line);
        }
    }

    fn rest(&mut self, line: u32) {
        self.lines[line].rests = true;
        self.resting.insert(line);
    }

    /// Gives the line its turn, unless it rests.
    fn queue(&mut self, number: u32) {
        let line = &self.lines[number];
        if let Some(turn) = line.turn(number).filter(|_| !line.rests) {
            self.turns.entry(line.tenant).or_default().insert(turn);
        }
    }

    fn unqueue(&mut self, number: u32) {
        let line = &self.lines[number];
        let Some(turn) = line.turn(number) else {
            return;
        };
        if let Some(turns) = self.turns.get_mut(&line.tenant) {
            turns.remove(&turn);
            if turns.is_empty() {
                self.turns.remove(&line.tenant);
            }
        }
    }

    /// Takes a pod out of a line that is not queued, and queues the line again.
    fn remove_pod(&mut self, fleet: &mut Fleet, line: u32, arrival: u64) {
        if let Some(pod) = self.lines[line].pods.remove(&arrival) {
            self.by_pod.remove(&pod);
        }
        if self.lines[line].pods.is_empty() {
            self.end_line(fleet, line);
        } else {
            self.queue(line);
        }
    }

    fn end_line(&mut self, fleet: &mut Fleet, number: u32) {
        self.resting.remove(&number);
        let Some(line) = self.lines.remove(number) else {
            return;
        };
        for pod in line.pods.values() {
            self.by_pod.remove(pod);
        }
        for template in line.templates {
            fleet.drop_template(template);
            if self.by_template.get(&template) == Some(&number) {
                self.by_template.remove(&template);
            }
        }
    }
}

/// What is in the way of a line, and how many of how many of a gang have room.
fn explain(line: &Line, fleet: &mut Fleet) -> Option<(Option<(usize, usize)>, Shortage)> {
    let Some(gang) = &line.gang else {
        return Some((None, fleet.explain_template(*line.templates.first()?)));
    };
    let (fits, shortage) = match fleet.explain_gang(gang) {
        Some(failed) => failed,
        // It has room, and has not been tried since.
        None => (
            gang.pods.len(),
            fleet.explain_template(*line.templates.first()?),
        ),
    };
    Some((Some((fits, gang.pods.len())), shortage))
}
