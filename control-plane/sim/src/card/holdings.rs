//! The pods that a card holds, as plain data: what it is told goes in, time passes,
//! and reports come out. It waits for nothing and asks no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longship_proto::control::v1::{
    ContainerState, ContainerStatus, Flavor, HeldPod, Phase, Pod, PodReport, PodSpec, PodStatus,
    RestartPolicy, Stage,
};
use tokio::time::Instant;

use super::outbox::Outbox;

/// The two clocks of one moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// What durations are measured with.
    pub at: Instant,
    /// Microseconds since the Unix epoch, as the card believes.
    pub us: i64,
}

impl Now {
    /// This moment.
    #[must_use]
    pub fn get() -> Self {
        Self {
            at: Instant::now(),
            us: longship_proto::now_us(),
        }
    }

    /// The earlier moment `at`.
    fn back_to(self, at: Instant) -> i64 {
        let since = self.at.saturating_duration_since(at).as_micros();
        self.us
            .saturating_sub(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

/// How long a card takes for each step.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// From the assignment until the sandbox starts.
    pub preparing: Duration,
    /// From there until the containers run.
    pub starting: Duration,
    /// From the wish that it ends until everything is given back.
    pub stopping: Duration,
}

impl Default for Pace {
    /// About what a clone takes (`docs/SPECIFICATION.md`).
    fn default() -> Self {
        Self {
            preparing: Duration::from_millis(12),
            starting: Duration::from_millis(63),
            stopping: Duration::from_millis(20),
        }
    }
}

/// One pod on a card.
#[derive(Debug, Clone)]
pub struct HeldByCard {
    /// Which assignment of the pod it is.
    pub generation: u64,
    /// How far it is.
    pub phase: Phase,
    /// What it takes of the host.
    pub flavor: Flavor,
    container: String,
    /// What it becomes next, and when.
    next: Option<(Instant, Phase)>,
    /// An assignment of a higher generation, which begins when this one is gone.
    then: Option<Box<Pod>>,
    received_us: i64,
    starting_us: i64,
    running_us: i64,
}

impl HeldByCard {
    /// Whether it takes the host's CPU and memory.
    #[must_use]
    pub fn takes_room(&self) -> bool {
        !matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    fn status(&self) -> PodStatus {
        let stage = |name: &str, component: &str, start_us, end_us| Stage {
            name: name.into(),
            component: component.into(),
            start_us,
            end_us,
        };
        let mut timeline = Vec::new();
        for name in ["image", "eni", "disks", "sandbox"] {
            timeline.push(stage(name, "card", self.received_us, self.starting_us));
        }
        if self.starting_us != 0 {
            timeline.push(stage("boot", "guest", self.starting_us, self.running_us));
            let container = stage("container", "guest", self.starting_us, self.running_us);
            timeline.push(container);
        }
        let state = match self.phase {
            Phase::Running => ContainerState::Running,
            Phase::Stopping | Phase::Succeeded | Phase::Failed => ContainerState::Terminated,
            _ => ContainerState::Waiting,
        };
        PodStatus {
            phase: self.phase.into(),
            containers: vec![ContainerStatus {
                name: self.container.clone(),
                state: state.into(),
                image_digest: format!("sha256:{:064x}", 0x10_c5_u32),
                started_us: self.running_us,
                ..ContainerStatus::default()
            }],
            timeline,
            ..PodStatus::default()
        }
    }
}

/// All pods of a card.
#[derive(Debug)]
pub struct Holdings {
    pace: Pace,
    pods: BTreeMap<String, HeldByCard>,
    due: BTreeSet<(Instant, String)>,
    outbox: Outbox,
}

impl Holdings {
    /// Of a card that holds nothing yet.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            pods: BTreeMap::new(),
            due: BTreeSet::new(),
            outbox: Outbox::default(),
        }
    }

    /// Every pod, by uid.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &HeldByCard)> {
        self.pods.iter().map(|(uid, held)| (uid.as_str(), held))
    }

    /// What the card says when it registers.
    #[must_use]
    pub fn held(&self) -> Vec<HeldPod> {
        let held = self.pods.iter().map(|(uid, held)| HeldPod {
            uid: uid.clone(),
            generation: held.generation,
        });
        held.collect()
    }

    /// The host has lost power: nothing runs any more, and nothing is known of what ran.
    pub fn lose_everything(&mut self) {
        *self = Self::new(self.pace);
    }

    /// A pod to run, or one whose deletion or generation changed. One of an older
    /// generation is passed over.
    pub fn assign(&mut self, now: Now, pod: Pod) {
        self.advance(now);
        let Some(meta) = pod.metadata.as_ref() else {
            return;
        };
        let (uid, generation) = (meta.uid.clone(), meta.generation);
        let deleted = meta.deleted_us > 0;
        match self.pods.get_mut(&uid) {
            None if deleted => self.outbox.gone(&uid, generation, now.at),
            None => self.begin(now, &uid, &pod),
            Some(held) if generation < held.generation => {}
            Some(held) if generation > held.generation => {
                held.then = (!deleted).then(|| Box::new(pod));
                if deleted {
                    held.generation = generation;
                }
                self.stop(now, &uid);
            }
            Some(_) if deleted => self.stop(now, &uid),
            Some(_) => {}
        }
    }

    /// The control plane does not know the pod: it goes.
    pub fn release(&mut self, now: Now, uid: &str) {
        self.advance(now);
        if let Some(held) = self.pods.get_mut(uid) {
            held.then = None;
            self.stop(now, uid);
        }
    }

    /// What is not among these goes.
    pub fn keep_only(&mut self, now: Now, wanted: &BTreeSet<String>) {
        self.advance(now);
        let strangers = self.pods.keys().filter(|uid| !wanted.contains(*uid));
        for uid in strangers.cloned().collect::<Vec<_>>() {
            self.release(now, &uid);
        }
    }

    /// The pod's containers end by themselves.
    pub fn end(&mut self, now: Now, uid: &str, phase: Phase) {
        self.advance(now);
        let Some(held) = self.pods.get_mut(uid) else {
            return;
        };
        if held.phase == Phase::Running {
            held.phase = phase;
            self.plan(uid, None);
            self.outbox.news(uid, now.at);
        }
    }

    fn begin(&mut self, now: Now, uid: &str, pod: &Pod) {
        let status = pod.status.as_ref();
        let phase = status.map_or(Phase::Unspecified, PodStatus::phase);
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice());
        let first = containers.and_then(<[_]>::first);
        let over = matches!(phase, Phase::Succeeded | Phase::Failed);
        // It ran here, and this card knows nothing of it: its machine is gone.
        let lost = matches!(phase, Phase::Starting | Phase::Running)
            && pod.spec.as_ref().map(PodSpec::restart_policy) == Some(RestartPolicy::Never);
        let held = HeldByCard {
            generation: pod.metadata.as_ref().map_or(0, |meta| meta.generation),
            phase: match phase {
                _ if lost => Phase::Failed,
                phase if over => phase,
                _ => Phase::Preparing,
            },
            flavor: status
                .and_then(|status| status.flavor.clone())
                .unwrap_or_default(),
            container: first.map_or_else(String::new, |container| container.name.clone()),
            next: None,
            then: None,
            received_us: now.us,
            starting_us: 0,
            running_us: 0,
        };
        self.pods.insert(uid.to_owned(), held);
        if lost {
            self.outbox.news(uid, now.at);
        } else if !over {
            let next = (now.at + self.pace.preparing, Phase::Starting);
            self.plan(uid, Some(next));
            self.outbox.news_soon(uid, now.at);
        }
    }

    fn stop(&mut self, now: Now, uid: &str) {
        let Some(held) = self.pods.get_mut(uid) else {
            return;
        };
        if held.phase == Phase::Stopping {
            return;
        }
        held.phase = Phase::Stopping;
        let next = (now.at + self.pace.stopping, Phase::Released);
        self.plan(uid, Some(next));
        self.outbox.news_soon(uid, now.at);
    }

    fn plan(&mut self, uid: &str, next: Option<(Instant, Phase)>) {
        let Some(held) = self.pods.get_mut(uid) else {
            return;
        };
        if let Some((before, _)) = held.next {
            self.due.remove(&(before, uid.to_owned()));
        }
        held.next = next;
        if let Some((at, _)) = next {
            self.due.insert((at, uid.to_owned()));
        }
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Everything happens that was due until `now`.
    pub fn advance(&mut self, now: Now) {
        while self.due.first().is_some_and(|(at, _)| *at <= now.at) {
            let Some((at, uid)) = self.due.pop_first() else {
                break;
            };
            let then = Now {
                at,
                us: now.back_to(at),
            };
            self.step(then, &uid);
        }
    }

    fn step(&mut self, now: Now, uid: &str) {
        let Some(held) = self.pods.get_mut(uid) else {
            return;
        };
        let Some((_, phase)) = held.next.take() else {
            return;
        };
        held.phase = phase;
        match phase {
            Phase::Starting => {
                held.starting_us = now.us;
                let next = (now.at + self.pace.starting, Phase::Running);
                self.plan(uid, Some(next));
                self.outbox.news_soon(uid, now.at);
            }
            Phase::Released => {
                let Some(gone) = self.pods.remove(uid) else {
                    return;
                };
                match gone.then {
                    Some(pod) => self.begin(now, uid, &pod),
                    None => self.outbox.gone(uid, gone.generation, now.at),
                }
            }
            _ => {
                held.running_us = now.us;
                self.outbox.news(uid, now.at);
            }
        }
    }

    /// Everything is to be reported again: the link is new.
    pub fn report_all(&mut self, now: Now) {
        self.advance(now);
        for uid in self.pods.keys() {
            self.outbox.news(uid, now.at);
        }
    }

    /// When there are reports to send; `None` while there is nothing to say.
    #[must_use]
    pub fn reports_due(&self) -> Option<Instant> {
        self.outbox.due()
    }

    /// The reports that are due, some hundred at most.
    pub fn take_reports(&mut self, now: Now) -> Vec<PodReport> {
        self.advance(now);
        let pods = &self.pods;
        self.outbox.take(now.at, |uid| {
            let held = pods.get(uid)?;
            Some((held.generation, held.status()))
        })
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::ObjectMeta;

    use super::*;

    fn pod(uid: &str, generation: u64, deleted: bool) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                uid: uid.into(),
                generation,
                deleted_us: i64::from(deleted),
                ..ObjectMeta::default()
            }),
            ..Pod::default()
        }
    }

    fn said(reports: &[PodReport]) -> Vec<(String, u64, Phase)> {
        let said = reports.iter().map(|report| {
            let status = report.status.as_ref().unwrap();
            (report.uid.clone(), report.generation, status.phase())
        });
        said.collect()
    }

    struct Clock(Now);

    impl Clock {
        fn new() -> Self {
            Self(Now {
                at: Instant::now(),
                us: 1_000_000,
            })
        }

        fn after(&self, millis: u64) -> Now {
            let us = i64::try_from(millis).unwrap() * 1000;
            Now {
                at: self.0.at + Duration::from_millis(millis),
                us: self.0.us + us,
            }
        }
    }

    #[test]
    fn a_start_that_goes_well_is_one_report_and_a_deletion_another() {
        let clock = Clock::new();
        let mut holdings = Holdings::new(Pace::default());
        holdings.assign(clock.after(0), pod("a", 1, false));
        assert_eq!(holdings.take_reports(clock.after(60)), []);
        let reports = holdings.take_reports(clock.after(80));
        assert_eq!(said(&reports), [("a".into(), 1, Phase::Running)]);
        let timeline = &reports[0].status.as_ref().unwrap().timeline;
        let last = timeline.last().unwrap();
        assert_eq!((last.start_us, last.end_us), (1_012_000, 1_075_000));

        holdings.assign(clock.after(100), pod("a", 1, true));
        let reports = holdings.take_reports(clock.after(130));
        assert_eq!(said(&reports), [("a".into(), 1, Phase::Released)]);
        assert_eq!(holdings.pods().count(), 0);
        assert_eq!(holdings.reports_due(), None);
    }

    #[test]
    fn a_slow_start_is_reported_on_the_way() {
        let clock = Clock::new();
        let mut holdings = Holdings::new(Pace {
            preparing: Duration::from_millis(500),
            ..Pace::default()
        });
        holdings.assign(clock.after(0), pod("a", 1, false));
        assert_eq!(holdings.reports_due(), Some(clock.after(100).at));
        let reports = holdings.take_reports(clock.after(100));
        assert_eq!(said(&reports), [("a".into(), 1, Phase::Preparing)]);
    }

    #[test]
    fn a_higher_generation_begins_when_the_lower_has_gone() {
        let clock = Clock::new();
        let mut holdings = Holdings::new(Pace::default());
        holdings.assign(clock.after(0), pod("a", 1, false));
        holdings.assign(clock.after(200), pod("a", 2, false));
        let of = |holdings: &Holdings| {
            let (_, held) = holdings.pods().next().unwrap();
            (held.generation, held.phase)
        };
        assert_eq!(of(&holdings), (1, Phase::Stopping));
        holdings.advance(clock.after(230));
        assert_eq!(of(&holdings), (2, Phase::Preparing));
        holdings.assign(clock.after(240), pod("a", 1, true));
        holdings.advance(clock.after(900));
        assert_eq!(of(&holdings), (2, Phase::Running));
    }

    #[test]
    fn what_is_not_wanted_goes_and_the_unknown_is_said_to_be_gone() {
        let clock = Clock::new();
        let mut holdings = Holdings::new(Pace::default());
        holdings.assign(clock.after(0), pod("a", 1, false));
        holdings.assign(clock.after(0), pod("b", 1, false));
        holdings.keep_only(clock.after(200), &BTreeSet::from(["b".to_owned()]));
        holdings.assign(clock.after(200), pod("c", 3, true));
        let mut reports = said(&holdings.take_reports(clock.after(300)));
        reports.sort();
        let expected = [
            ("a".into(), 1, Phase::Released),
            ("b".into(), 1, Phase::Running),
            ("c".into(), 3, Phase::Released),
        ];
        assert_eq!(reports, expected);
        holdings.report_all(clock.after(400));
        assert_eq!(
            said(&holdings.take_reports(clock.after(400))),
            [("b".into(), 1, Phase::Running)]
        );
    }
}
