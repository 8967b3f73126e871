//! The leader is killed while clients create pods.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use longship_proto::Class;
use longship_proto::control::v1::{GetPodRequest, Phase, Pod, pods_client::PodsClient};
use longship_sim::client::{Client, small_pod};
use longship_sim::fleet::{Fleet, FleetShape};
use longship_sim::network::Network;

use crate::replicas::{AnyReplica, Replicas};

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between attempts of a client that was not answered.
const RETRY: Duration = Duration::from_millis(10);

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Simulated cards.
    pub(crate) cards: usize,
    /// Pods a round.
    pub(crate) pods: usize,
    /// Clients that create at the same time.
    pub(crate) clients: usize,
    /// Leaders that are killed.
    pub(crate) rounds: usize,
    /// Of the leader.
    pub(crate) lease: Duration,
}

/// What came of it; what must never be is an error instead.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// From each kill until the next pod was acknowledged.
    pub(crate) resumed: Vec<Duration>,
    /// From each kill until another replica said that it leads.
    pub(crate) led: Vec<Duration>,
    /// Pods that were acknowledged.
    pub(crate) acknowledged: usize,
    /// Those of them that were asked for more than once.
    pub(crate) repeated: usize,
}

/// Kills one leader after the other under load, and checks that no acknowledged pod is
/// lost, none is there twice, and each runs on one card.
pub(crate) async fn kill_leaders(binary: &Path, order: &Order) -> anyhow::Result<Outcome> {
    let mut replicas = Replicas::start(binary, 2, order.lease).await?;
    let network = replicas.network();
    let mut leader = network.wait_leader().await;
    let room = u32::try_from(order.pods.saturating_mul(order.rounds))?;
    let shape = FleetShape::with_room(order.cards, room);
    let any: Arc<dyn Network> = Arc::new(network.clone());
    let fleet = Fleet::start(&shape, &any);
    let attached = tokio::time::timeout(PATIENCE, fleet.all_attached(order.cards)).await;
    attached.with_context(|| format!("cards do not attach: {}", fleet.counts().trouble()))?;

    let mut outcome = Outcome {
        resumed: Vec::new(),
        led: Vec::new(),
        acknowledged: 0,
        repeated: 0,
    };
    let mut acknowledged = BTreeMap::new();
    for round in 0..order.rounds {
        let load = Arc::new(Load::new(round, order.pods));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..order.clients {
            clients.spawn(client(Arc::clone(&load), network.clone()));
        }
        while load.acknowledged() < order.pods / 2 {
            ensure!(!clients.is_empty(), "all clients have ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let killed = Instant::now();
        replicas.kill(leader).await;
        load.killed.store(true, Ordering::SeqCst);
        leader = tokio::time::timeout(PATIENCE, network.wait_leader())
            .await
            .context("nobody leads")?;
        outcome.led.push(killed.elapsed());
        let ended = tokio::time::timeout(PATIENCE, async {
            while let Some(ended) = clients.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        });
        ended.await.context("the clients do not come to an end")??;
        let resumed = load.lock().resumed.context("nothing was acknowledged")?;
        outcome.resumed.push(resumed.duration_since(killed));
        outcome.repeated += load.repeated.load(Ordering::Relaxed);
        acknowledged.append(&mut load.lock().pods);
        replicas.restart(1 - leader).await?;
        check(&network, leader, &fleet, &acknowledged).await?;
    }
    outcome.acknowledged = acknowledged.len();
    Ok(outcome)
}

/// Pods to create, and what became of them.
struct Load {
    round: usize,
    count: usize,
    next: AtomicUsize,
    killed: AtomicBool,
    repeated: AtomicUsize,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    /// Name and uid of each that was acknowledged.
    pods: BTreeMap<String, String>,
    /// When the first was that was asked for after the kill.
    resumed: Option<Instant>,
}

impl Load {
    fn new(round: usize, count: usize) -> Self {
        Self {
            round,
            count,
            next: AtomicUsize::new(0),
            killed: AtomicBool::new(false),
            repeated: AtomicUsize::new(0),
            done: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self) -> usize {
        self.lock().pods.len()
    }
}

/// Creates pods until all are created; each until it is acknowledged, by whoever leads.
async fn client(load: Arc<Load>, network: AnyReplica) -> anyhow::Result<()> {
    let mut channel = network.connect().await.ok();
    loop {
        let number = load.next.fetch_add(1, Ordering::Relaxed);
        if number >= load.count {
            return Ok(());
        }
        let name = format!("pod-{}-{number:05}", load.round);
        let mut attempts = 0;
        let pod = loop {
            let Some(current) = channel.clone() else {
                tokio::time::sleep(RETRY).await;
                channel = network.connect().await.ok();
                continue;
            };
            attempts += 1;
            // Only a call that begins after the kill says that things go on.
            let after = load.killed.load(Ordering::SeqCst);
            let client = Client::new(current.clone());
            match client.create(small_pod("", name.clone()), "").await {
                Ok(pod) => {
                    if after {
                        load.lock().resumed.get_or_insert_with(Instant::now);
                    }
                    break pod;
                }
                Err(failure) => match failure.class() {
                    // An attempt that was not answered has been done.
                    Class::Conflict if attempts > 1 => break get(current, &name).await?,
                    Class::Unavailable | Class::Internal => {
                        channel = network.connect().await.ok();
                    }
                    _ => bail!("{name}: {failure}"),
                },
            }
        };
        if attempts > 1 {
            load.repeated.fetch_add(1, Ordering::Relaxed);
        }
        let uid = pod.metadata.unwrap_or_default().uid;
        let before = load.lock().pods.insert(name.clone(), uid);
        ensure!(before.is_none(), "{name} was acknowledged twice");
    }
}

async fn get(channel: tonic::transport::Channel, name: &str) -> anyhow::Result<Pod> {
    let request = GetPodRequest {
        namespace: String::new(),
        name: name.to_owned(),
    };
    let found = PodsClient::new(channel).get_pod(request).await;
    Ok(found
        .with_context(|| format!("{name} is lost"))?
        .into_inner())
}

/// That exactly the acknowledged pods are there, on any replica, and that each comes to
/// run on one card.
async fn check(
    network: &AnyReplica,
    leader: usize,
    fleet: &Fleet,
    acknowledged: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut listed = BTreeMap::new();
        let mut hosts = HashMap::new();
        let mut running = 0;
        // What waits reads from the store too.
        let client = network.channel(1 - leader).context("a replica")?;
        let client = Client::new(client);
        let mut token = String::new();
        loop {
            let page = client.list(500, token).await;
            let page = page.map_err(|failure| anyhow::anyhow!("listing: {failure}"))?;
            for pod in page.pods {
                let meta = pod.metadata.unwrap_or_default();
                let status = pod.status.unwrap_or_default();
                running += usize::from(status.phase() == Phase::Running);
                hosts.insert(meta.uid.clone(), status.host);
                let twice = listed.insert(meta.name.clone(), meta.uid);
                ensure!(twice.is_none(), "{} is there twice", meta.name);
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        ensure!(
            listed == *acknowledged,
            "{} pods were acknowledged, {} are there",
            acknowledged.len(),
            listed.len()
        );
        if running == listed.len() {
            let mut held: HashMap<String, usize> = HashMap::new();
            for holdings in fleet.holdings() {
                let holdings = holdings.lock().unwrap_or_else(PoisonError::into_inner);
                for (uid, _) in holdings.pods() {
                    *held.entry(uid.to_owned()).or_default() += 1;
                }
            }
            ensure!(
                held.values().all(|cards| *cards == 1),
                "a pod is on two cards"
            );
            ensure!(
                held.len() == listed.len(),
                "the cards hold {} pods, {} are there",
                held.len(),
                listed.len()
            );
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "only {running} of {} pods run",
            listed.len()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
