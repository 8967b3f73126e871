//! The cost of a placement as the fleet grows.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use longship_scheduler::{Declined, Fleet, PodId, Policy, Prepared, Ticket};
use serde_json::{Value, json};

use crate::hardware;
use crate::measure::{self, Summary, float};
use crate::workload::{Random, Workload};

/// Pods that leave before others come in their place.
const DELAY: usize = 2000;
const CHURN: usize = 400_000;
/// Placements between two looks at the thread's clock.
const BLOCK: usize = 1000;

/// Pods that come and go.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) workload: Workload,
    pub(crate) random: Random,
    pub(crate) live: Vec<(Ticket, usize)>,
    /// By the clock on the wall, one by one.
    placements: Vec<u32>,
    /// By this thread's own clock, together: what other programs take is not in it.
    placing: Duration,
    releasing: Duration,
    released: usize,
    pub(crate) declined: usize,
    next: u128,
    /// Empty: each pod comes with its whole template.
    prepared: Vec<Prepared>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            workload: Workload::new(),
            random: Random(42),
            live: Vec::new(),
            placements: Vec::new(),
            placing: Duration::ZERO,
            releasing: Duration::ZERO,
            released: 0,
            declined: 0,
            next: 1,
            prepared: Vec::new(),
        }
    }
}

impl Run {
    fn place(&mut self, fleet: &mut Fleet, template: usize) {
        // As UUIDs are: not in order.
        let pod = PodId(
            self.next
                .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
        );
        self.next += 1;
        let spec = &self.workload.templates[template];
        let begun = Instant::now();
        let outcome = match self.prepared.get(template) {
            Some(prepared) => fleet.reserve_prepared(pod, prepared),
            None => fleet.reserve(pod, spec),
        };
        if let Ok(placed) = &outcome {
            fleet.commit(placed.ticket).unwrap();
        }
        let took = begun.elapsed();
        self.placements
            .push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        match outcome {
            Ok(placed) => self.live.push((placed.ticket, template)),
            Err(Declined::NoRoom) => self.declined += 1,
            Err(error) => panic!("{error}"),
        }
    }

    /// Pods come until seven tenths of all CPUs are taken.
    pub(crate) fn fill(&mut self, fleet: &mut Fleet, first: PodId) {
        self.next = first.0;
        let goal = fleet.capacity().cpu_millis / 10 * 7;
        let begun = measure::cpu_time();
        let mut taken = 0;
        while taken < goal {
            let template = self.workload.next(&mut self.random);
            let before = self.live.len();
            self.place(fleet, template);
            if self.live.len() > before {
                // About what it was rounded up to.
                taken += u64::from(self.workload.templates[template].cpu_millis.max(250));
            }
        }
        self.placing = measure::cpu_time() - begun;
    }

    /// Some leave, and as many come that are like others which left long before.
    fn churn(&mut self, fleet: &mut Fleet, count: usize) {
        let mut gone = VecDeque::new();
        let delay = DELAY.min(self.live.len() / 10);
        self.leave(fleet, delay, &mut gone);
        self.clear();
        for _ in 0..count / BLOCK {
            self.leave(fleet, BLOCK, &mut gone);
            let begun = measure::cpu_time();
            for _ in 0..BLOCK {
                let template = gone.pop_front().unwrap();
                self.place(fleet, template);
            }
            self.placing += measure::cpu_time() - begun;
        }
    }

    fn leave(&mut self, fleet: &mut Fleet, count: usize, gone: &mut VecDeque<usize>) {
        let begun = measure::cpu_time();
        for _ in 0..count {
            let leaving = self.random.below(self.live.len());
            let (ticket, template) = self.live.swap_remove(leaving);
            fleet.release(ticket).unwrap();
            gone.push_back(template);
            self.released += 1;
        }
        self.releasing += measure::cpu_time() - begun;
    }

    fn clear(&mut self) {
        self.placements.clear();
        self.declined = 0;
        self.released = 0;
        (self.placing, self.releasing) = (Duration::ZERO, Duration::ZERO);
    }

    fn summary(&mut self) -> Summary {
        Summary::of(&mut self.placements, self.placing)
    }
}

/// The costs at one size.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) hosts: usize,
    pods: usize,
    declined: usize,
    templates: u32,
    fill: Summary,
    pub(crate) churn: Summary,
    /// The same where each pod comes with its whole template, to be compared.
    by_spec: Summary,
    /// Nanoseconds a release takes.
    release: f64,
}

/// The round with the median cost.
pub(crate) fn median(hosts: usize, rounds: usize) -> Point {
    let mut points: Vec<Point> = (0..rounds).map(|_| measure(hosts)).collect();
    points.sort_by(|a, b| a.churn.mean.total_cmp(&b.churn.mean));
    points.swap_remove(rounds / 2)
}

fn measure(hosts: usize) -> Point {
    let mut fleet = hardware::fleet(hosts, Policy::Pack);
    let mut run = Run::default();
    run.fill(&mut fleet, PodId(1));
    let fill = run.summary();
    run.churn(&mut fleet, CHURN / 4);
    let by_spec = run.summary();
    let templates = run.workload.templates.iter();
    run.prepared = templates.map(|spec| fleet.prepare(spec).unwrap()).collect();
    run.churn(&mut fleet, CHURN);
    Point {
        hosts,
        pods: run.live.len(),
        declined: run.declined,
        templates: fleet.templates(),
        fill,
        churn: run.summary(),
        by_spec,
        release: float(run.releasing.as_nanos()) / float(run.released),
    }
}

impl Point {
    pub(crate) fn json(&self) -> Value {
        json!({
            "hosts": self.hosts, "pods": self.pods, "declined": self.declined,
            "fill": self.fill.json(), "churn": self.churn.json(),
            "by_spec": self.by_spec.json(), "release_ns": self.release,
        })
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "{} hosts with {} pods of {} templates: {:.0} placements a second on one core \
             (reserve + commit; {:.0} where each comes with its whole template), p99 {:.1} µs, \
             {} of {CHURN} without room",
            self.hosts,
            self.pods,
            self.templates,
            1e9 / self.churn.mean,
            1e9 / self.by_spec.mean,
            f64::from(self.churn.p99) / 1000.0,
            self.declined
        )
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} {:>12.0} {:>5.0}   {:>12.0} {:>7.0} {:>7} {:>7} {:>7} {:>8.0}  ns",
            self.hosts,
            1e9 / self.fill.mean,
            self.fill.mean,
            1e9 / self.churn.mean,
            self.churn.mean,
            self.churn.p50,
            self.churn.p99,
            self.churn.p999,
            self.release
        )
    }
}
