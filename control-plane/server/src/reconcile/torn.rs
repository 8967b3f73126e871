//! Gangs of which only a part was written when the server ended.

use std::sync::Arc;
use std::time::Duration;

use longship_proto::control::v1::{Container, HostCapacity, ObjectMeta, Pod, PodSpec, Register};
use longship_scheduler::Policy;
use longship_store::{Expect, MemoryStore, RedbOptions, Store, Transaction};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::command::{Command, GangOrder};
use super::flush;
use super::state::{Now, State};
use crate::inventory::Session;
use crate::lease::Leases;
use crate::outbox::Outbox;
use crate::tenancy::{Tenancy, Unclaimed};
use crate::{records, validate};

const LEASE: Duration = Duration::from_secs(10);

async fn load(store: &MemoryStore) -> State {
    let now = Now::get();
    let tenancy = Tenancy::new(Unclaimed::Defaults);
    let leases = Leases::new(LEASE, LEASE);
    let state = State::empty(
        now,
        Policy::Spread,
        leases,
        vec![7; 32],
        tenancy,
        Arc::default(),
    );
    state.filled(now, store).await.unwrap()
}

async fn settle(state: &mut State, store: &MemoryStore) {
    state.go_on(Now::get());
    flush(state, store).await.unwrap();
}

/// A store with a gang of two that waits.
async fn with_gang() -> (MemoryStore, State) {
    let store = MemoryStore::new(RedbOptions::default(), Duration::ZERO).lead();
    let mut state = load(&store).await;
    let pods = ["a", "b"].map(|name| Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "hello".into(),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: None,
    });
    let pods = pods.map(|pod| (validate::pod(pod).unwrap(), Uuid::new_v4()));
    let create = Command::CreateMany {
        once: None,
        pods: pods.to_vec(),
        gang: Some(GangOrder { one_zone: false }),
        answer: oneshot::channel().0,
    };
    state.decide(Now::get(), create);
    settle(&mut state, &store).await;
    (store, state)
}

fn attach(state: &mut State) {
    let register = Register {
        host: "host-1".into(),
        zone: "zone-a".into(),
        capacity: Some(HostCapacity {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            pods: 10,
            ..HostCapacity::default()
        }),
        endpoint: "http://card:1".into(),
        ..Register::default()
    };
    let attach = Command::Attach {
        register: Box::new(validate::register(register).unwrap()),
        session: Session {
            id: 1,
            outbox: Arc::new(Outbox::default()),
        },
        answer: oneshot::channel().0,
    };
    state.decide(Now::get(), attach);
}

async fn count(store: &MemoryStore, kind: &str) -> usize {
    store.list(kind, "").await.unwrap().objects.len()
}

#[tokio::test]
async fn one_that_was_created_in_part_is_gone() {
    let (store, _) = with_gang().await;
    assert_eq!(
        (
            count(&store, records::POD).await,
            count(&store, records::GANG).await
        ),
        (2, 1)
    );
    let tear = Transaction::new().delete(records::POD, "default/b", Expect::Any);
    store.commit(tear).await.unwrap();
    let mut state = load(&store).await;
    settle(&mut state, &store).await;
    assert_eq!(
        (
            count(&store, records::POD).await,
            count(&store, records::GANG).await
        ),
        (0, 0)
    );
    assert_eq!(state.pods.iter().count(), 0);
}

#[tokio::test]
async fn one_that_was_placed_in_part_waits_and_is_placed_as_a_whole() {
    let (store, mut state) = with_gang().await;
    let waiting = store.get(records::POD, "default/b").await.unwrap().unwrap();
    let gangs = store.list(records::GANG, "").await.unwrap().objects;
    attach(&mut state);
    settle(&mut state, &store).await;
    assert_eq!(count(&store, records::GANG).await, 0, "it is placed");
    let tear = Transaction::new()
        .put(records::POD, "default/b", waiting.value, Expect::Any)
        .put(
            records::GANG,
            &gangs[0].key,
            gangs[0].value.clone(),
            Expect::Any,
        );
    store.commit(tear).await.unwrap();

    let mut state = load(&store).await;
    assert!(state.pods.iter().all(|pod| pod.waits()), "none of it");
    assert_eq!(state.fleet.host("host-1").unwrap().used.pods, 0);
    attach(&mut state);
    settle(&mut state, &store).await;
    assert!(state.pods.iter().all(|pod| pod.status.host == "host-1"));
    assert_eq!(count(&store, records::GANG).await, 0);
}
