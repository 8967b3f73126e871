//! One leads; whoever does not, answers reads and names the leader; a leader that dies
//! or hangs is succeeded, and nothing that was acknowledged is lost or done twice.

use std::path::Path;
use std::time::Duration;

use longship_proto::control::v1::cards_client::CardsClient;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{
    CreatePodRequest, FromCard, GetPodRequest, HostCapacity, ListPodsRequest, Register,
    WatchPodsRequest, from_card,
};
use longship_proto::{Class, Failure, failure_of};
use longship_sim::client::small_pod;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::Channel;

use crate::load::{Order, kill_leaders};
use crate::replicas::{AnyReplica, Replicas};

/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(1);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_longship-control"))
}

fn signal(replicas: &Replicas, number: usize, signal: Signal) {
    let pid = replicas.process(number).unwrap().pid().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

async fn leader(network: &AnyReplica) -> usize {
    let leader = tokio::time::timeout(PATIENCE, network.wait_leader());
    leader.await.expect("somebody leads")
}

async fn create(channel: &Channel, name: &str) -> Result<(), Failure> {
    let request = CreatePodRequest {
        pod: Some(small_pod("", name.to_owned())),
        ..CreatePodRequest::default()
    };
    let created = PodsClient::new(channel.clone()).create_pod(request).await;
    created.map(drop).map_err(|status| failure_of(&status))
}

async fn names(channel: &Channel) -> Vec<String> {
    let listed = PodsClient::new(channel.clone())
        .list_pods(ListPodsRequest::default())
        .await
        .unwrap();
    let pods = listed.into_inner().pods.into_iter();
    pods.map(|pod| pod.metadata.unwrap().name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_answers_reads_and_names_the_leader_for_all_else() {
    let mut replicas = Replicas::start(binary(), 2, LEASE).await.unwrap();
    let network = replicas.network();
    let leading = leader(&network).await;
    let waits = network.channel(1 - leading).unwrap();
    let leads = network.channel(leading).unwrap();
    let address = replicas.process(leading).unwrap().address().to_owned();

    let mut events = PodsClient::new(waits.clone())
        .watch_pods(WatchPodsRequest::default())
        .await
        .unwrap()
        .into_inner();
    create(&leads, "one").await.unwrap();
    let event = tokio::time::timeout(PATIENCE, events.message()).await;
    let event = event.unwrap().unwrap().unwrap();
    assert_eq!(event.pod.unwrap().metadata.unwrap().name, "one");
    assert_eq!(names(&waits).await, ["one"]);
    let found = PodsClient::new(waits.clone())
        .get_pod(GetPodRequest {
            namespace: String::new(),
            name: "one".into(),
        })
        .await;
    assert!(found.is_ok(), "{found:?}");

    let refused = create(&waits, "two").await.unwrap_err();
    assert_eq!(refused.class(), Class::Unavailable, "{refused}");
    assert!(refused.message.contains(&address), "{refused}");
    let register = Register {
        host: "host".into(),
        zone: "zone".into(),
        capacity: Some(HostCapacity {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            pods: 10,
            ..HostCapacity::default()
        }),
        endpoint: "http://host:7702".into(),
        ..Register::default()
    };
    let register = FromCard {
        message: Some(from_card::Message::Register(register)),
    };
    let attached = CardsClient::new(waits.clone())
        .attach(tokio_stream::iter([register]))
        .await;
    let refused = failure_of(&attached.unwrap_err());
    assert_eq!(refused.class(), Class::Unavailable, "{refused}");
    assert!(refused.message.contains(&address), "{refused}");

    // Told to stop, it hands over at once: no lease has to run out.
    signal(&replicas, leading, Signal::SIGTERM);
    let until = tokio::time::Instant::now() + PATIENCE;
    while let Err(failure) = create(&waits, "two").await {
        assert_eq!(failure.class(), Class::Unavailable, "{failure}");
        assert!(tokio::time::Instant::now() < until, "{failure}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    replicas.kill(leading).await;
    assert_eq!(names(&waits).await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_is_succeeded_and_does_nothing_when_it_wakes_up() {
    let replicas = Replicas::start(binary(), 2, LEASE).await.unwrap();
    let network = replicas.network();
    let former = leader(&network).await;
    let hung = network.channel(former).unwrap();
    create(&hung, "before").await.unwrap();
    signal(&replicas, former, Signal::SIGSTOP);

    // What it is asked while it hangs, it finds when it wakes up.
    let asked = {
        let hung = hung.clone();
        tokio::spawn(async move { create(&hung, "meanwhile").await })
    };
    let next = leader(&network).await;
    assert_ne!(next, former);
    let leads = network.channel(next).unwrap();
    create(&leads, "after").await.unwrap();
    create(&leads, "meanwhile").await.unwrap();
    signal(&replicas, former, Signal::SIGCONT);
    let refused = tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap()
        .unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(refused.class(), Class::Unavailable, "{refused}");
    for _ in 0..20 {
        let refused = create(&hung, "late").await.unwrap_err();
        assert_eq!(refused.class(), Class::Unavailable, "{refused}");
    }
    for replica in [&hung, &leads] {
        assert_eq!(names(replica).await, ["after", "before", "meanwhile"]);
    }
    create(&leads, "later").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_go_on_after_etcd_was_killed() {
    let mut replicas = Replicas::start(binary(), 2, LEASE).await.unwrap();
    let network = replicas.network();
    let leading = leader(&network).await;
    create(&network.channel(leading).unwrap(), "before")
        .await
        .unwrap();
    replicas.etcd.kill();
    // Longer than the lease: whoever leads must give it up.
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!(network.leader().await, None);
    replicas.etcd.restart();
    let leading = leader(&network).await;
    let channel = network.channel(leading).unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    while let Err(failure) = create(&channel, "after").await {
        assert!(tokio::time::Instant::now() < until, "{failure}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(names(&channel).await, ["after", "before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_killed_under_load_lose_and_repeat_nothing() {
    let order = Order {
        cards: 20,
        pods: 400,
        clients: 8,
        rounds: 3,
        lease: LEASE,
    };
    let outcome = kill_leaders(binary(), &order).await.unwrap();
    assert_eq!(outcome.acknowledged, 1200);
    println!("resumed after {:?}", outcome.resumed);
    for resumed in outcome.resumed {
        assert!(resumed < PATIENCE, "{resumed:?}");
    }
}
