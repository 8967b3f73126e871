//! Many pods at once on one card, between a played control plane and a played agent;
//! images, ENIs and disks are real. Needs root (network namespaces) and mkfs.ext4.

#![allow(clippy::unwrap_used)] // the helpers are tests too

mod agent;
mod control;
mod image;

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use longship_card::{Config, serve};
use longship_proto::card::v1::card_admin_client::CardAdminClient;
use longship_proto::card::v1::{GetUsageRequest, GetUsageResponse, ListHeldRequest};
use longship_proto::control::v1::Phase;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

use agent::PlayedAgent;
use control::PlayedControl;

/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);

struct Card {
    directory: tempfile::TempDir,
    control: PlayedControl,
    agent: PlayedAgent,
    image: String,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Card {
    async fn start() -> Self {
        let euid = std::fs::metadata("/proc/self").unwrap().uid();
        assert!(
            euid == 0,
            "this test needs root: ENIs are made in network namespaces"
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let image = image::layout(&path.join("image"));
        let control = PlayedControl::start().await;
        let agent = PlayedAgent::start(&path.join("agent.sock")).await;
        let config = Config {
            tls: None,
            control: control.url(),
            agent: format!("unix:{}", path.join("agent.sock").display()),
            listen: "127.0.0.1:0".parse().unwrap(),
            endpoint: String::new(),
            admin: path.join("card.sock"),
            state: path.join("state"),
            runtime_dir: path.join("run"),
            host: "host-1".to_owned(),
            zone: "zone-a".to_owned(),
            max_pods: 1000,
            // Guests that say nothing keep their turn to start: there is one for each.
            parallel_starts: Some(200),
            scratch_bytes: 8 << 20,
            max_image_bytes: 1 << 20,
            insecure_registries: Vec::new(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(config, stopped).await.unwrap();
        });
        control.attached().await;
        Self {
            directory,
            control,
            agent,
            image,
            stop,
            served,
        }
    }

    async fn admin(&self) -> CardAdminClient<Channel> {
        let address = format!("unix:{}", self.directory.path().join("card.sock").display());
        let channel = Endpoint::from_shared(address).unwrap().connect().await;
        CardAdminClient::new(channel.unwrap())
    }

    async fn usage(&self) -> GetUsageResponse {
        let usage = self.admin().await.get_usage(GetUsageRequest {}).await;
        usage.unwrap().into_inner()
    }

    /// Assigns pods all at once and waits until each has got as far as a guest that
    /// runs (and, being played, never says a word).
    async fn start_pods(&self, numbers: std::ops::Range<u32>) {
        for number in numbers.clone() {
            self.control.assign(control::pod(number, &self.image));
        }
        let all: HashSet<String> = numbers.map(control::uid).collect();
        eventually(
            || all.is_subset(&self.agent.started()),
            || self.control.failures(),
        )
        .await;
    }
}

async fn eventually(holds: impl Fn() -> bool, failures: impl Fn() -> Vec<String>) {
    let began = Instant::now();
    while !holds() {
        assert_eq!(failures(), Vec::<String>::new());
        assert!(began.elapsed() < PATIENCE, "it takes too long");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once_all_start_within_bounds_and_leave_nothing() {
    let card = Card::start().await;
    card.start_pods(0..60).await;
    let few = card.usage().await;
    card.start_pods(60..200).await;
    let many = card.usage().await;

    assert!(
        card.agent.most_at_once() <= 16,
        "{} machines were asked for at once",
        card.agent.most_at_once()
    );
    for usage in [&few, &many] {
        let shares: u64 = usage.pods.iter().map(|p| p.card_bytes).sum();
        assert_eq!(shares + usage.card_base_bytes, usage.card_bytes);
        let host = usage.host.as_ref().unwrap();
        for pod in &usage.pods {
            let sandbox = pod.sandbox.as_ref().unwrap();
            assert_eq!(sandbox.id, pod.pod_uid);
            assert_eq!(pod.template_clones, host.templates[0].clones);
            assert_eq!(
                (pod.namespace.as_str(), pod.flavor.as_str()),
                ("default", "f")
            );
            assert_eq!(usize::try_from(pod.image_pods).unwrap(), usage.pods.len());
            assert!(pod.image_bytes > 0);
            let scratch = pod.scratch_bytes;
            assert!((1..8 << 20).contains(&scratch), "{scratch}");
        }
    }
    assert_eq!((few.pods.len(), many.pods.len()), (60, 200));
    // Neither a pod's cost nor the cost of one more grows with their number.
    let more = (many.card_bytes - few.card_bytes.min(many.card_bytes)) / 140;
    println!(
        "card: {} KiB before any pod, {} KiB a pod of 60, {} KiB a pod of 200, {} KiB for one more",
        few.card_base_bytes >> 10,
        few.pods[0].card_bytes >> 10,
        many.pods[0].card_bytes >> 10,
        more >> 10,
    );
    assert!(more < 256 << 10, "one more pod costs the card {more} bytes");

    for number in 0..200 {
        card.control.assign(control::deleted(number, &card.image));
    }
    let all: HashSet<String> = (0..200).map(control::uid).collect();
    eventually(|| card.control.in_phase(Phase::Released) == all, Vec::new).await;
    assert_eq!(card.agent.stopped(), all);
    let held = card.admin().await.list_held(ListHeldRequest {}).await;
    assert_eq!(held.unwrap().into_inner().held, []);
    for folder in ["run", "state/scratch/disks", "state/logs"] {
        let left = std::fs::read_dir(card.directory.path().join(folder)).unwrap();
        assert_eq!(left.count(), 0, "something is left in {folder}");
    }
    assert_eq!(card.usage().await.pods, []);
    card.stop.send(()).unwrap();
    card.served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_generation_begins_anew_when_the_former_life_has_gone() {
    let card = Card::start().await;
    card.start_pods(0..1).await;
    eventually(|| card.control.generation(0) == 1, Vec::new).await;
    for generation in [2, 3, 1] {
        let again = control::again(0, &card.image, generation);
        card.control.assign(again);
    }
    let uid = control::uid(0);
    let lives = || {
        let starting = card.control.in_phase(Phase::Starting).contains(&uid);
        starting && card.control.generation(0) == 3
    };
    eventually(lives, || card.control.failures()).await;
    assert!(card.agent.stopped().contains(&uid), "its first life ended");
    card.control.assign(control::deleted(0, &card.image));
    let mut deleted = control::again(0, &card.image, 3);
    deleted.metadata.as_mut().unwrap().deleted_us = 2;
    card.control.assign(deleted);
    let released = || card.control.in_phase(Phase::Released).contains(&uid);
    eventually(released, Vec::new).await;
    assert_eq!(card.control.generation(0), 3);
    card.stop.send(()).unwrap();
    card.served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_is_few_reports_and_an_agent_that_is_away_leaves_the_cards_side() {
    let card = Card::start().await;
    card.start_pods(0..1).await;
    eventually(
        || card.control.in_phase(Phase::Starting).len() == 1,
        || card.control.failures(),
    )
    .await;
    // All that is news: preparing, with its steps; starting.
    assert!(card.control.reports() <= 3, "{}", card.control.reports());
    card.agent.refuse_usage();
    let usage = card.usage().await;
    assert_eq!(usage.host, None);
    assert_eq!(usage.pods[0].sandbox, None);
    assert!(usage.pods[0].card_bytes > 0);
    card.stop.send(()).unwrap();
    card.served.await.unwrap();
}
