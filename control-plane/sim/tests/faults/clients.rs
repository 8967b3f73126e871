//! Clients that create and delete, remember what they were told, and follow all pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longship_proto::control::v1::{
    Gang, Phase, PlacementConstraint, Pod, PodStatus, RestartPolicy, WatchPodsRequest,
    placement_constraint, pod_event,
};
use longship_proto::{Class, Failure};
use longship_sim::client::{Client, failure, small_pod};
use longship_sim::network::Network;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{sleep, timeout};

use crate::network::Way;

/// Pods with this label want a host without another of them.
pub(crate) const LONELY: &str = "lonely";
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it asks again for the same.
const ATTEMPTS: usize = 4;

/// What a client knows of a pod that it has asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fate {
    /// Nobody has answered: it may exist or not.
    Unknown,
    /// It exists, until the client asks for its deletion.
    Acknowledged { uid: String },
    /// Its deletion was asked for: it may still exist, or not.
    MayBeDeleted,
    /// Its deletion was acknowledged.
    Deleted,
}

/// What clients know.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) pods: BTreeMap<String, Fate>,
    /// Everything as a watcher has it: uid, generation and phase.
    pub(crate) watched: BTreeMap<String, (String, u64, Phase)>,
    /// Clients stop.
    pub(crate) stop: bool,
}

#[derive(Clone)]
pub(crate) struct Clients {
    ledger: Arc<Mutex<Ledger>>,
    controls: Vec<String>,
    most: usize,
    seed: u64,
}

impl Clients {
    pub(crate) fn new(seed: u64, controls: &[String], most: usize) -> Self {
        Self {
            ledger: Arc::default(),
            controls: controls.to_vec(),
            most,
            seed,
        }
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Creates and deletes until told to stop.
    pub(crate) async fn work(self) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x00c1_1e17);
        let way = Way::new(&self.controls);
        let mut number = 0;
        while !self.with(|ledger| ledger.stop) {
            sleep(Duration::from_millis(random.random_range(5..400))).await;
            let live: Vec<String> = self.with(|ledger| {
                let of = ledger.pods.iter();
                let live = of.filter(|(_, fate)| matches!(fate, Fate::Acknowledged { .. }));
                live.map(|(name, _)| name.clone()).collect()
            });
            if live.len() < self.most && random.random_bool(0.65) {
                if random.random_bool(0.12) {
                    let count = random.random_range(2..=4);
                    let pods = (1..=count).map(|next| draw_pod(&mut random, number + next));
                    let pods = pods.collect();
                    number += count;
                    self.create_gang(&way, pods).await;
                    continue;
                }
                number += 1;
                let pod = draw_pod(&mut random, number);
                self.create(&way, pod).await;
            } else if !live.is_empty() {
                let name = live[random.random_range(0..live.len())].clone();
                self.delete(&way, name).await;
            }
        }
    }

    async fn create(&self, way: &Way, pod: Pod) {
        let name = pod.metadata.as_ref().unwrap().name.clone();
        self.set(&name, Fate::Unknown);
        for attempt in 0..ATTEMPTS {
            let created = self
                .ask(way, async |client: &Client| {
                    client.create(pod.clone(), &name).await
                })
                .await;
            match created {
                Ok(created) => {
                    let uid = created.metadata.unwrap().uid;
                    return self.set(&name, Fate::Acknowledged { uid });
                }
                Err(failure) if failure.class() == Class::Unavailable => {}
                // An attempt before this one has reached it.
                Err(failure) if failure.class() == Class::Conflict && attempt > 0 => return,
                // No host of that zone has been heard of yet.
                Err(failure) if failure.field == "spec.zone" => {
                    self.with(|ledger| ledger.pods.remove(&name));
                    return;
                }
                Err(failure) => panic!("{name}: {failure}"),
            }
        }
    }

    /// All of them or none: also of their places.
    async fn create_gang(&self, way: &Way, pods: Vec<Pod>) {
        let names: Vec<String> = pods.iter().map(name).collect();
        for name in &names {
            self.set(name, Fate::Unknown);
        }
        for attempt in 0..ATTEMPTS {
            let gang = Gang { one_zone: false };
            let created = self
                .ask(way, async |client: &Client| {
                    let key = format!("gang-{}", names[0]);
                    client.create_many(pods.clone(), Some(gang), &key).await
                })
                .await;
            // All have the same outcome, so the first failure is everybody's.
            let created = created.and_then(|results| results.into_iter().collect());
            let created: Result<Vec<Pod>, Failure> = created;
            match created {
                Ok(created) => {
                    // A later attempt is answered with what became of them meanwhile.
                    let placed = created
                        .iter()
                        .filter(|pod| as_watched(pod).2 != Phase::Pending);
                    let placed = placed.count();
                    assert!(
                        attempt > 0 || placed == 0 || placed == created.len(),
                        "{placed} of a gang of {} have a place",
                        created.len()
                    );
                    for pod in created {
                        let uid = pod.metadata.as_ref().unwrap().uid.clone();
                        self.set(&name(&pod), Fate::Acknowledged { uid });
                    }
                    return;
                }
                Err(failure) if failure.class() == Class::Unavailable => {}
                Err(failure) if failure.class() == Class::Conflict && attempt > 0 => return,
                // No host of that zone has been heard of yet.
                Err(failure) if failure.field.ends_with("spec.zone") => {
                    self.with(|ledger| {
                        for name in &names {
                            ledger.pods.remove(name);
                        }
                    });
                    return;
                }
                Err(failure) => panic!("{names:?}: {failure}"),
            }
        }
    }

    async fn delete(&self, way: &Way, name: String) {
        self.set(&name, Fate::MayBeDeleted);
        for _ in 0..ATTEMPTS {
            let deleted = self
                .ask(way, async |client: &Client| {
                    client.delete("default", &name).await
                })
                .await;
            match deleted {
                Ok(_) => return self.set(&name, Fate::Deleted),
                Err(failure) if failure.class() == Class::NotFound => {
                    return self.set(&name, Fate::Deleted);
                }
                Err(failure) if failure.class() == Class::Unavailable => {}
                Err(failure) => panic!("{name}: {failure}"),
            }
        }
    }

    fn set(&self, name: &str, fate: Fate) {
        self.with(|ledger| ledger.pods.insert(name.to_owned(), fate));
    }

    async fn ask<T>(
        &self,
        way: &Way,
        call: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let asked = timeout(PATIENCE, async {
            let channel = way.connect().await;
            let channel = channel.map_err(|status| Failure::unavailable(status.message()))?;
            call(&Client::new(channel)).await
        });
        match asked.await {
            Ok(answer) => answer,
            Err(_) => {
                sleep(Duration::from_millis(100)).await;
                Err(Failure::unavailable("no answer"))
            }
        }
    }

    /// Follows all pods, from where it was broken off.
    pub(crate) async fn watch(self) {
        let way = Way::new(&self.controls);
        let mut after = 0;
        loop {
            if let Err(failure) = self.follow(&way, &mut after).await
                && failure.class() != Class::Unavailable
            {
                // It has missed something: all over again.
                after = 0;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn follow(&self, way: &Way, after: &mut u64) -> Result<(), Failure> {
        let unavailable = |status: tonic::Status| failure(&status);
        let channel = timeout(PATIENCE, way.connect()).await;
        let channel = channel.map_err(|_| Failure::unavailable("no connection"))?;
        let client = Client::new(channel.map_err(unavailable)?);
        if *after == 0 {
            let listing = client.list(0, String::new()).await?;
            assert!(
                listing.next_page_token.is_empty(),
                "one page is enough here"
            );
            self.with(|ledger| {
                ledger.watched.clear();
                for pod in &listing.pods {
                    ledger.watched.insert(name(pod), as_watched(pod));
                }
            });
            *after = listing.resource_version;
        }
        let request = WatchPodsRequest {
            resource_version: *after,
            ..WatchPodsRequest::default()
        };
        let mut events = client.watch(request).await?;
        while let Some(event) = events.message().await.map_err(unavailable)? {
            if let Some(pod) = &event.pod {
                self.with(|ledger| match event.r#type() {
                    pod_event::Type::Deleted => {
                        ledger.watched.remove(&name(pod));
                    }
                    _ => {
                        ledger.watched.insert(name(pod), as_watched(pod));
                    }
                });
            }
            *after = event.resource_version.max(*after);
        }
        Ok(())
    }
}

pub(crate) fn name(pod: &Pod) -> String {
    pod.metadata.as_ref().unwrap().name.clone()
}

pub(crate) fn as_watched(pod: &Pod) -> (String, u64, Phase) {
    let meta = pod.metadata.as_ref().unwrap();
    let phase = pod
        .status
        .as_ref()
        .map_or(Phase::Unspecified, PodStatus::phase);
    (meta.uid.clone(), meta.generation, phase)
}

fn draw_pod(random: &mut StdRng, number: usize) -> Pod {
    let mut pod = small_pod("default", format!("pod-{number:03}"));
    let spec = pod.spec.as_mut().unwrap();
    let resources = spec.containers[0].resources.as_mut().unwrap();
    resources.cpu_millis = [250, 500, 1000, 2000][random.random_range(0..4)];
    resources.memory_bytes = (128 << random.random_range(0..4)) << 20;
    if random.random_bool(0.3) {
        spec.set_restart_policy(RestartPolicy::Never);
    }
    if random.random_bool(0.2) {
        spec.zone = "zone-1".into();
    }
    if random.random_bool(0.15) {
        let apart = PlacementConstraint {
            label_selector: format!("{LONELY}=yes"),
            rule: Some(placement_constraint::Rule::Apart(true)),
            ..PlacementConstraint::default()
        };
        spec.placement
            .get_or_insert_default()
            .constraints
            .push(apart);
        let labels = &mut pod.metadata.as_mut().unwrap().labels;
        labels.insert(LONELY.into(), "yes".into());
    }
    pod
}
