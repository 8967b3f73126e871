//! Two replicas on etcd, of which the one that leads is killed under load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use clap::Args;
use longship_proto::control::v1::{Phase, Pod, PodStatus};
use longship_proto::{Class, Failure};
use longship_report::document::{Figure, Findings};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::load::NAMESPACE;
use super::place::{PlaceOptions, etcd, replica};
use crate::client::{Client, small_pod};
use crate::control::{ControlOptions, ControlProcess};
use crate::fleet::{Fleet, FleetShape};
use crate::network::{Network, SharedConnections};

/// Load before the leader is killed.
const BEFORE: Duration = Duration::from_secs(2);
/// Load after another one leads.
const AFTER: Duration = Duration::from_secs(2);
/// Everything has to come right by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// There is room for so many pods.
const MOST_PODS: u32 = 60_000;
/// Between two creates of one client: what comes in all the time has to stay within that.
const PACE: Duration = Duration::from_millis(5);
/// Between attempts, once every replica has been asked.
const PAUSE: Duration = Duration::from_millis(10);

/// The leader of two replicas on etcd is killed under load: what is lost, and for how long
#[derive(Debug, Args)]
pub(crate) struct Failover {
    /// Simulated cards
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    cards: u32,
    /// Clients that create and delete all the time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// How often the leader is killed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    #[command(flatten)]
    place: PlaceOptions,
}

/// What clients were told.
#[derive(Default)]
struct Told {
    /// Uids of created pods by name; none of them was deleted.
    created: BTreeMap<String, String>,
    deleted: BTreeSet<String>,
    /// When, after how long, and by which replica a create was acknowledged.
    answers: Vec<(Instant, Duration, usize)>,
}

struct Shared {
    endpoints: Vec<Endpoint>,
    told: Mutex<Told>,
    stop: AtomicBool,
}

/// Cards ask the replicas which of them leads, as the real card does.
struct ToLeader {
    replicas: Vec<SharedConnections>,
}

#[async_trait]
impl Network for ToLeader {
    async fn connect(&self) -> Result<Channel, Status> {
        for replica in &self.replicas {
            let channel = replica.connect().await?;
            if leads(channel.clone()).await {
                return Ok(channel);
            }
        }
        Err(Status::unavailable("no replica leads"))
    }
}

async fn leads(channel: Channel) -> bool {
    let request = HealthCheckRequest {
        service: "longship.control.v1.Cards".to_owned(),
    };
    let mut health = HealthClient::new(channel);
    let answered = tokio::time::timeout(Duration::from_secs(1), health.check(request)).await;
    answered.is_ok_and(|answered| {
        answered.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
    })
}

impl Failover {
    pub(crate) async fn run(&self) -> anyhow::Result<Findings> {
        let etcd = etcd().await?;
        let mut options: Vec<ControlOptions> = Vec::new();
        let mut replicas = Vec::new();
        let mut endpoints = Vec::new();
        for _ in 0..2 {
            let (option, url) = replica(self.place.binary()?, &etcd)?;
            replicas.push(ControlProcess::start(&option).await?);
            options.push(option);
            endpoints.push(Channel::from_shared(url)?.tcp_nodelay(true));
        }
        let connections = usize::try_from(self.cards)?.div_ceil(50);
        let network = ToLeader {
            replicas: endpoints
                .iter()
                .map(|endpoint| SharedConnections::new(endpoint, connections))
                .collect(),
        };
        let network: Arc<dyn Network> = Arc::new(network);
        let shape = FleetShape::with_room(usize::try_from(self.cards)?, MOST_PODS);
        let fleet = Fleet::start(&shape, &network);
        let late = || format!("the cards do not attach: {}", fleet.counts().trouble());
        let attached = tokio::time::timeout(PATIENCE, fleet.all_attached(shape.cards));
        attached.await.with_context(late)?;

        let shared = Arc::new(Shared {
            endpoints,
            told: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let mut load = JoinSet::new();
        for number in 0..self.clients {
            load.spawn(work(number, Arc::clone(&shared)));
        }
        let (mut resumed, mut cards_back, mut worst) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            tokio::time::sleep(BEFORE).await;
            let leader = shared.leader().context("nobody leads")?;
            let attachments = fleet.counts().attachments();
            let killed = Instant::now();
            replicas
                .get_mut(leader)
                .context("a replica that does not exist")?
                .kill()
                .await;
            let first = shared.first_answer_after(killed, leader).await?;
            resumed.push(first.duration_since(killed).as_secs_f64() * 1e3);
            let late = || format!("the cards do not come back: {}", fleet.counts().trouble());
            let goal = attachments + fleet.len();
            let back = tokio::time::timeout(PATIENCE, fleet.all_attached(goal));
            back.await.with_context(late)?;
            cards_back.push(killed.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(AFTER).await;
            worst.extend(shared.slowest_since(killed));
            let option = options
                .get(leader)
                .context("a replica that does not exist")?;
            let again = ControlProcess::start(option).await?;
            if let Some(place) = replicas.get_mut(leader) {
                *place = again;
            }
        }
        shared.stop.store(true, Ordering::Relaxed);
        while let Some(done) = load.join_next().await {
            done??;
        }
        let counted = self.check(&shared, &fleet).await?;
        let figures = [
            Figure::of(
                "failover.resumed",
                "leader killed → first create answered by the other",
                "ms",
                resumed,
            ),
            Figure::of(
                "failover.cards",
                "leader killed → all cards attached to the other",
                "ms",
                cards_back,
            ),
            Figure::of(
                "failover.worst",
                "the longest that a client waited for its create",
                "ms",
                worst,
            ),
            Figure::of("failover.lost", "acknowledged pods lost", "", vec![0.0]),
            Figure::of("failover.duplicated", "pods duplicated", "", vec![0.0]),
        ];
        Ok(Findings {
            figures: figures.into_iter().flatten().collect(),
            notes: vec![counted],
            ..Findings::default()
        })
    }

    /// Nothing that was acknowledged is lost, nothing is there twice.
    async fn check(&self, shared: &Shared, fleet: &Fleet) -> anyhow::Result<String> {
        let begun = Instant::now();
        let pods = loop {
            let pods = shared.list().await?;
            let waiting = pods.iter().filter(|pod| phase(pod) != Phase::Running);
            match waiting.count() {
                0 => break pods,
                waiting if begun.elapsed() > PATIENCE => {
                    bail!("{waiting} of {} pods do not come to run", pods.len())
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let mut found = BTreeMap::new();
        let mut addresses = BTreeSet::new();
        for pod in &pods {
            let meta = pod.metadata.as_ref().context("a pod without metadata")?;
            let before = found.insert(meta.name.clone(), meta.uid.clone());
            ensure!(before.is_none(), "pod {} is there twice", meta.name);
            let eni = pod.status.as_ref().and_then(|status| status.eni.clone());
            let eni = eni.context("a pod without an address")?;
            ensure!(
                addresses.insert((eni.vpc, eni.address.clone())),
                "two pods have the address {}",
                eni.address
            );
        }
        let mut held = BTreeSet::new();
        for holdings in fleet.holdings() {
            let holdings = holdings.lock().unwrap_or_else(PoisonError::into_inner);
            for (uid, _) in holdings.pods() {
                ensure!(held.insert(uid.to_owned()), "pod {uid} is on two cards");
            }
        }
        let told = shared.told();
        for (name, uid) in &told.created {
            ensure!(
                found.get(name) == Some(uid),
                "pod {name} was acknowledged as {uid}, and is {:?}",
                found.get(name)
            );
            ensure!(held.contains(uid), "pod {name} is on no card");
        }
        for name in &told.deleted {
            ensure!(!found.contains_key(name), "pod {name} has not gone");
        }
        Ok(format!(
            "{} creates and {} deletions were acknowledged; every pod that should be there is, \
             once, on one card, with an address of its own; the run fails otherwise",
            told.answers.len(),
            told.deleted.len()
        ))
    }
}

impl Shared {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which replica has answered last.
    fn leader(&self) -> Option<usize> {
        self.told().answers.last().map(|(_, _, replica)| *replica)
    }

    async fn first_answer_after(&self, killed: Instant, leader: usize) -> anyhow::Result<Instant> {
        let begun = Instant::now();
        let others = |answer: &&(Instant, Duration, usize)| answer.0 > killed && answer.2 != leader;
        while begun.elapsed() < PATIENCE {
            let first = self.told().answers.iter().find(others).copied();
            if let Some((at, _, _)) = first {
                return Ok(at);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bail!("nobody leads after the leader was killed")
    }

    fn slowest_since(&self, killed: Instant) -> Option<f64> {
        let told = self.told();
        let after = told.answers.iter().filter(|(at, _, _)| *at > killed);
        let slowest = after.map(|(_, took, _)| *took).max();
        slowest.map(|took| took.as_secs_f64() * 1e3)
    }

    async fn list(&self) -> anyhow::Result<Vec<Pod>> {
        let endpoint = self.endpoints.first().context("no replica")?;
        let client = Client::new(endpoint.connect().await?);
        let (mut pods, mut token) = (Vec::new(), String::new());
        loop {
            let page = client.list(1000, token).await?;
            pods.extend(page.pods);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(pods);
            }
        }
    }
}

fn phase(pod: &Pod) -> Phase {
    pod.status
        .as_ref()
        .map_or(Phase::Unspecified, PodStatus::phase)
}

/// Creates pods one after the other, and deletes every second one again.
async fn work(number: u16, shared: Arc<Shared>) -> anyhow::Result<()> {
    let clients = shared.endpoints.iter().map(Endpoint::connect_lazy);
    let clients: Vec<Client> = clients.map(Client::new).collect();
    let mut replica = 0;
    for turn in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(PACE).await;
        let name = format!("client-{number}-pod-{turn}");
        let pod = small_pod(NAMESPACE, name.clone());
        let asked = Instant::now();
        let created = persist(&clients, &mut replica, |client: Client| {
            let (pod, name) = (pod.clone(), name.clone());
            async move {
                match client.create(pod, &name).await {
                    // An attempt that was not answered had reached it.
                    Err(failure) if failure.class() == Class::Conflict => {
                        client.get(NAMESPACE, &name).await
                    }
                    answer => answer,
                }
            }
        });
        let created = created.await.with_context(|| format!("create {name}"))?;
        let uid = created.metadata.context("a pod without metadata")?.uid;
        {
            let mut told = shared.told();
            told.answers
                .push((Instant::now(), asked.elapsed(), replica));
            told.created.insert(name.clone(), uid);
        }
        if turn % 2 == 1 {
            shared.told().created.remove(&name);
            let deleted = persist(&clients, &mut replica, |client: Client| {
                let name = name.clone();
                async move {
                    match client.delete(NAMESPACE, &name).await {
                        // An attempt that was not answered had reached it.
                        Err(failure) if failure.class() == Class::NotFound => Ok(()),
                        other => other.map(drop),
                    }
                }
            });
            deleted.await.with_context(|| format!("delete {name}"))?;
            shared.told().deleted.insert(name);
        }
    }
    Ok(())
}

/// Asks one replica after the other until one can answer.
async fn persist<T, F: Future<Output = Result<T, Failure>>>(
    clients: &[Client],
    replica: &mut usize,
    call: impl Fn(Client) -> F,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        let client = clients.get(*replica).cloned();
        let client = client.ok_or_else(|| Failure::internal("no such replica"))?;
        let answer = match tokio::time::timeout(Duration::from_secs(5), call(client)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::unavailable("no answer")),
        };
        match answer {
            Err(failure) if failure.class() == Class::Unavailable && begun.elapsed() < PATIENCE => {
                *replica = (*replica + 1) % clients.len().max(1);
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}
