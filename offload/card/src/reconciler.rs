//! Desired against observed: which pods the control plane wants here, and which are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_proto::Failure;
use longship_proto::control::v1::{HeldPod, Phase, Pod, PodReport, PodStatus, RestartPolicy};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::card::Card;
use crate::plan::PodPlan;
use crate::pod::{self, Desired, PodAccess, release_held, remove_sockets};
use crate::status::StatusCell;

/// The pods of this card.
pub(crate) struct Reconciler {
    card: Arc<Card>,
    pods: Mutex<Pods>,
}

#[derive(Default)]
struct Pods {
    known: HashMap<String, Entry>,
    tasks: JoinSet<()>,
}

struct Entry {
    generation: u64,
    plan: Arc<PodPlan>,
    status: StatusCell,
    desired: watch::Sender<Desired>,
    access: Arc<PodAccess>,
    done: tokio::task::AbortHandle,
    /// The same pod in a higher generation: it begins when what is here of the former
    /// one has gone.
    next: Option<Pod>,
}

impl Entry {
    /// The newest generation that the card was told of.
    fn newest(&self) -> u64 {
        let next = self.next.as_ref().and_then(|pod| pod.metadata.as_ref());
        next.map_or(self.generation, |meta| meta.generation)
    }
}

impl Reconciler {
    /// A card that runs nothing yet. What a former card left behind is released
    /// before this returns: its backends died with it.
    pub(crate) async fn begin(card: Arc<Card>) -> Self {
        let held = card.journal.held();
        let mut left: Vec<String> = held.into_iter().map(|h| h.pod_uid).collect();
        left.dedup();
        let mut releases = JoinSet::new();
        for pod_uid in left {
            info!(pod_uid, "releasing what a former card left behind");
            let card = card.clone();
            releases.spawn(async move { release_held(&card, &pod_uid).await });
        }
        releases.join_all().await;
        Self {
            card,
            pods: Mutex::default(),
        }
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = false;
        while pods.tasks.try_join_next().is_some() {
            ended = true;
        }
        if ended {
            let waits = |entry: &Entry| entry.next.is_some();
            pods.known
                .retain(|_, entry| waits(entry) || !entry.done.is_finished());
        }
        pods
    }

    /// What the card says of itself when it registers.
    pub(crate) fn held(&self) -> Vec<HeldPod> {
        let entries = self.pods();
        let held = entries.known.iter();
        held.map(|(uid, e)| HeldPod {
            uid: uid.clone(),
            generation: e.generation,
        })
        .collect()
    }

    /// The whole of what shall run here: what is not in it goes.
    pub(crate) fn assign_all(self: &Arc<Self>, pods: Vec<Pod>) {
        let wanted: HashSet<&str> = pods
            .iter()
            .filter_map(|p| p.metadata.as_ref())
            .map(|m| m.uid.as_str())
            .collect();
        let strangers: Vec<String> = {
            let known = self.pods();
            known
                .known
                .keys()
                .filter(|uid| !wanted.contains(uid.as_str()))
                .cloned()
                .collect()
        };
        for uid in strangers {
            self.release(&uid);
        }
        for pod in pods {
            self.assign(pod);
        }
    }

    /// A pod that shall run here, or whose deletion or generation changed. A higher
    /// generation is a new life of the pod: whatever runs here of the former one was
    /// given up, and goes first.
    pub(crate) fn assign(self: &Arc<Self>, pod: Pod) {
        let Some(meta) = pod.metadata.clone() else {
            warn!("the control plane assigned a pod without metadata");
            return;
        };
        let plan = PodPlan::new(&pod);
        let grace = plan.as_ref().map_or(Duration::ZERO, |p| p.grace);
        let desired = if meta.deleted_us > 0 {
            Desired::Gone { grace }
        } else {
            Desired::Run
        };
        let mut pods = self.pods();
        if let Some(entry) = pods.known.get_mut(&meta.uid) {
            if meta.generation < entry.newest() {
                warn!(pod_uid = meta.uid, "a stale assignment is passed over");
                return;
            }
            if meta.generation > entry.generation {
                info!(pod_uid = meta.uid, "a former life of the pod ends first");
                entry.desired.send_replace(Desired::Gone {
                    grace: Duration::ZERO,
                });
                if entry.next.replace(pod).is_none() {
                    let (this, gone) = (Arc::clone(self), entry.desired.clone());
                    pods.tasks.spawn(async move {
                        gone.closed().await;
                        this.begin_next(&meta.uid);
                    });
                }
                return;
            }
            entry.desired.send_if_modified(|now| {
                let changed = *now != desired && desired != Desired::Run;
                if changed {
                    *now = desired;
                }
                changed
            });
            return;
        }
        let before = pod.status.clone().unwrap_or_default();
        if meta.deleted_us > 0 {
            // Nothing of it is here (what a former card held is released): done.
            self.remove_files(&meta.uid);
            self.report(&meta.uid, meta.generation, Phase::Released, before);
            return;
        }
        match (plan, before.phase()) {
            // It was over before this card began; its logs may still be read.
            (Ok(plan), Phase::Succeeded | Phase::Failed) => self.keep(&mut pods, plan, before),
            (Ok(plan), Phase::Starting | Phase::Running)
                if plan.restart == RestartPolicy::Never =>
            {
                let status = PodStatus {
                    phase: Phase::Failed.into(),
                    reason: "CardRestarted".to_owned(),
                    message: "the card was restarted while the pod ran".to_owned(),
                    ..before
                };
                self.report(&plan.uid, plan.generation, Phase::Failed, status.clone());
                self.keep(&mut pods, plan, status);
            }
            (Ok(plan), _) => self.begin_pod(&mut pods, plan, before),
            (Err(failure), _) => {
                warn!(pod_uid = meta.uid, %failure, "cannot run what was assigned");
                let status = PodStatus {
                    reason: "InvalidAssignment".to_owned(),
                    message: failure.to_string(),
                    ..before
                };
                self.report(&meta.uid, meta.generation, Phase::Failed, status);
            }
        }
    }

    /// The former life of a pod is over: the next one begins.
    fn begin_next(self: &Arc<Self>, uid: &str) {
        let next = {
            let mut pods = self.pods();
            let entry = pods.known.remove(uid);
            entry.and_then(|entry| entry.next)
        };
        if let Some(pod) = next {
            self.assign(pod);
        }
    }

    /// A pod that the control plane does not know: it goes at once.
    pub(crate) fn release(&self, uid: &str) {
        if let Some(entry) = self.pods().known.get_mut(uid) {
            entry.next = None;
            entry.desired.send_replace(Desired::Gone {
                grace: Duration::ZERO,
            });
        }
    }

    /// The access to a pod for its client's streams.
    ///
    /// # Errors
    /// `NotFound` where this card has no such pod.
    pub(crate) fn access(&self, uid: &str) -> Result<Arc<PodAccess>, Failure> {
        let pods = self.pods();
        let entry = pods.known.get(uid).map(|e| e.access.clone());
        entry.ok_or_else(|| Failure::not_found(format!("this card has no pod {uid}")))
    }

    /// Gives back what all pods hold, for the card's own end. They stay assigned:
    /// the next card takes them up again.
    pub(crate) async fn end(&self) {
        // Without its sender, a pod's task knows that the card ends.
        let Pods { known, mut tasks } = std::mem::take(&mut *self.pods());
        drop(known);
        while tasks.join_next().await.is_some() {}
    }

    fn begin_pod(&self, pods: &mut Pods, plan: PodPlan, before: PodStatus) {
        let status = StatusCell::new(
            &plan.uid,
            plan.generation,
            before,
            self.card.reports.clone(),
        );
        let names = plan.containers.iter().map(|c| c.name.clone()).collect();
        let access = Arc::new(PodAccess::new(names));
        let (desired, watching) = watch::channel(Desired::Run);
        let (uid, generation) = (plan.uid.clone(), plan.generation);
        info!(pod_uid = uid, "assigned");
        let plan = Arc::new(plan);
        let done = pods.tasks.spawn(pod::run(
            self.card.clone(),
            plan.clone(),
            status.clone(),
            watching,
            access.clone(),
        ));
        pods.known.insert(
            uid,
            Entry {
                generation,
                plan,
                status,
                desired,
                access,
                done,
                next: None,
            },
        );
    }

    /// Keeps a pod that is over until it is deleted.
    fn keep(&self, pods: &mut Pods, plan: PodPlan, before: PodStatus) {
        let status = StatusCell::new(
            &plan.uid,
            plan.generation,
            before,
            self.card.reports.clone(),
        );
        let names: Vec<String> = plan.containers.iter().map(|c| c.name.clone()).collect();
        for name in &names {
            if let Ok(log) = self.card.logs.log(&plan.uid, name) {
                log.close();
            }
        }
        let access = Arc::new(PodAccess::new(names));
        let (desired, mut watching) = watch::channel(Desired::Run);
        let (card, uid, cell) = (self.card.clone(), plan.uid.clone(), status.clone());
        let done = pods.tasks.spawn(async move {
            if watching.wait_for(|d| *d != Desired::Run).await.is_err() {
                return;
            }
            if let Err(error) = card.logs.remove(&uid) {
                warn!(pod_uid = uid, %error, "cannot delete the pod's logs");
            }
            cell.update(|s| s.phase = Phase::Released.into());
        });
        let uid = plan.uid.clone();
        let entry = Entry {
            generation: plan.generation,
            plan: Arc::new(plan),
            status,
            desired,
            access,
            done,
            next: None,
        };
        pods.known.insert(uid, entry);
    }

    fn remove_files(&self, uid: &str) {
        // The uid is the control plane's; it must not lead elsewhere.
        if uid.is_empty() || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return;
        }
        if let Err(error) = self.card.logs.remove(uid) {
            warn!(pod_uid = uid, %error, "cannot delete the pod's logs");
        }
        // A card that was killed before it had written anything down may have left some.
        if let Err(failure) = remove_sockets(&self.card, uid) {
            warn!(pod_uid = uid, %failure, "cannot delete the pod's sockets");
        }
    }

    /// The pods that hold something of this card, by namespace and name.
    pub(crate) fn holding(&self) -> Vec<(Arc<PodPlan>, Arc<PodAccess>)> {
        let pods = self.pods();
        let mut holding: Vec<_> = pods
            .known
            .values()
            .filter(|entry| {
                matches!(
                    entry.status.phase(),
                    Phase::Preparing | Phase::Starting | Phase::Running | Phase::Stopping
                )
            })
            .map(|entry| (entry.plan.clone(), entry.access.clone()))
            .collect();
        drop(pods);
        holding.sort_by(|(a, _), (b, _)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        holding
    }

    fn report(&self, uid: &str, generation: u64, phase: Phase, mut status: PodStatus) {
        status.phase = phase.into();
        let uid = uid.to_owned();
        self.card.reports.put(PodReport {
            uid,
            generation,
            status: Some(status),
        });
    }
}
