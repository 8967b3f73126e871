//! What one change costs, however many pods there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longship_proto::control::v1::{
    Container, HostCapacity, ObjectMeta, Phase, Pod, PodReport, PodSpec, PodStatus, Register,
};
use longship_scheduler::Policy;
use longship_store::{MemoryStore, RedbOptions};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::command::{CardNews, Command};
use super::flush;
use super::state::{Now, State};
use crate::inventory::Session;
use crate::lease::Leases;
use crate::outbox::Outbox;
use crate::tenancy::{Tenancy, Unclaimed};
use crate::validate;

const PODS_A_HOST: u32 = 100;
const CHANGES: u32 = 400;

async fn fleet_of(pods: u32) -> (State, MemoryStore) {
    let history = RedbOptions {
        log_transactions: 1000,
        ..RedbOptions::default()
    };
    let store = MemoryStore::new(history, Duration::ZERO).lead();
    let lease = Duration::from_secs(3600);
    let mut state = State::empty(
        Now::get(),
        Policy::Spread,
        Leases::new(lease, lease),
        vec![7; 32],
        Tenancy::new(Unclaimed::Defaults),
        Arc::default(),
    );
    for host in 0..pods.div_ceil(PODS_A_HOST) {
        let register = Register {
            host: format!("host-{host}"),
            zone: format!("zone-{}", host % 3),
            capacity: Some(HostCapacity {
                cpu_millis: 1_000_000,
                memory_bytes: 1 << 40,
                pods: PODS_A_HOST,
                ..HostCapacity::default()
            }),
            endpoint: "http://card:1".into(),
            ..Register::default()
        };
        let session = Session {
            id: 1,
            outbox: Arc::new(Outbox::default()),
        };
        let attach = Command::Attach {
            register: Box::new(validate::register(register).unwrap()),
            session,
            answer: oneshot::channel().0,
        };
        state.decide(Now::get(), attach);
    }
    for pod in 0..pods {
        create(&mut state, pod);
        if pod % 512 == 511 {
            settle(&mut state, &store).await;
        }
    }
    settle(&mut state, &store).await;
    (state, store)
}

fn create(state: &mut State, number: u32) {
    let pod = Pod {
        metadata: Some(ObjectMeta {
            name: format!("pod-{number}"),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "hello".into(),
                ..Container::default()
            }],
            // More than a VPC has addresses.
            vpc: format!("vpc-{}", number / 50_000),
            ..PodSpec::default()
        }),
        status: None,
    };
    let command = Command::Create {
        once: None,
        pod: Box::new(validate::pod(pod).unwrap()),
        uid: Uuid::from_u128(u128::from(number) + 1),
        answer: oneshot::channel().0,
    };
    state.decide(Now::get(), command);
}

async fn settle(state: &mut State, store: &MemoryStore) {
    state.go_on(Now::get());
    flush(state, store).await.unwrap();
}

/// The median time of one batch of a single change: a report of a pod, which its card
/// and the store hear of.
async fn one_change(pods: u32) -> Duration {
    let (mut state, store) = fleet_of(pods).await;
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let number = u128::from(change * (pods / CHANGES) + 1);
        let record = state.pods.get(Uuid::from_u128(number)).unwrap();
        let host = record.status.host.clone();
        assert_eq!(record.status.phase(), Phase::Scheduled);
        let report = PodReport {
            uid: record.meta.uid.clone(),
            generation: 1,
            status: Some(PodStatus {
                phase: Phase::Running.into(),
                ..PodStatus::default()
            }),
        };
        let begun = Instant::now();
        let news = CardNews::Reports(vec![report]);
        let said = Command::FromCard {
            host,
            session: 1,
            news,
        };
        state.decide(Now::get(), said);
        settle(&mut state, &store).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
async fn a_change_costs_no_more_among_a_hundred_times_the_pods() {
    let few = one_change(1_000).await;
    let many = one_change(100_000).await;
    println!("one change: {few:?} among 1,000 pods, {many:?} among 100,000");
    // Caches and deeper trees; what grew with the pods would be a hundredfold.
    assert!(many < few * 6, "{few:?} and {many:?}");
}
