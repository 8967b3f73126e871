//! What holds after any history of clients, cards, silence and restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use longship_proto::control::v1::{
    Container, HostCapacity, ObjectMeta, Phase, Pod, PodReport, PodSpec, PodStatus, Register,
    Resources,
};
use longship_scheduler::{Amount, Policy, SANDBOX_OVERHEAD_BYTES};
use longship_store::{RedbOptions, RedbStore, Store};
use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::command::{CardNews, Command};
use super::state::{Now, State};
use crate::inventory::Session;
use crate::lease::Leases;
use crate::outbox::Outbox;
use crate::phase::is_over;
use crate::pods::PodRecord;
use crate::tenancy::{Tenancy, Unclaimed};
use crate::{records, validate};

const LEASE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
enum Act {
    Create {
        pod: u8,
        cpu_millis: u32,
        mib: u64,
        vpc: u8,
        zone: Option<u8>,
    },
    Delete {
        pod: u8,
    },
    Attach {
        host: u8,
        cpus: u32,
    },
    Detach {
        host: u8,
    },
    Report {
        pod: u8,
        phase: i32,
        generation: u64,
    },
    /// Time passes: a part of a lease, or more than one.
    Wait {
        tenths_of_a_lease: u32,
    },
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let zone = prop::option::weighted(0.3, 0_u8..3);
    // Few names, and mostly what a card would really say, so that pods come to their end.
    let phase = prop_oneof![
        3 => Just(i32::from(Phase::Released)),
        2 => Just(i32::from(Phase::Failed)),
        3 => 0_i32..11,
    ];
    let generation = prop_oneof![8 => Just(1_u64), 1 => Just(0), 1 => Just(2)];
    let act = prop_oneof![
        6 => (0_u8..6, 0_u32..2500, 64_u64..1500, 0_u8..3, zone).prop_map(
            |(pod, cpu_millis, mib, vpc, zone)| Act::Create { pod, cpu_millis, mib, vpc, zone }
        ),
        4 => (0_u8..6).prop_map(|pod| Act::Delete { pod }),
        4 => (0_u8..3, 1_u32..5).prop_map(|(host, cpus)| Act::Attach { host, cpus }),
        1 => (0_u8..3).prop_map(|host| Act::Detach { host }),
        10 => (0_u8..6, phase, generation)
            .prop_map(|(pod, phase, generation)| Act::Report { pod, phase, generation }),
        1 => (0_u32..15).prop_map(|tenths_of_a_lease| Act::Wait { tenths_of_a_lease }),
        1 => Just(Act::Restart),
    ];
    // Batches, as the queue makes them.
    prop::collection::vec(prop::collection::vec(act, 1..5), 1..40)
}

struct World {
    state: State,
    store: Arc<RedbStore>,
    now: Now,
    next: u128,
    sessions: BTreeMap<String, u64>,
    /// The answers that must come.
    answers: Vec<oneshot::Receiver<()>>,
}

async fn load(now: Now, store: &RedbStore) -> State {
    let tenancy = Tenancy::new(Unclaimed::Defaults);
    let state = State::empty(
        now,
        Policy::Spread,
        Leases::new(LEASE, LEASE * 3),
        vec![7; 32],
        tenancy,
        Arc::default(),
    );
    state.filled(now, store).await.unwrap()
}

fn host_name(host: u8) -> String {
    format!("host-{host}")
}

impl World {
    fn act(&mut self, act: &Act) {
        self.now.us += 1;
        let command = match act {
            Act::Create {
                pod,
                cpu_millis,
                mib,
                vpc,
                zone,
            } => self.create(*pod, *cpu_millis, *mib, *vpc, *zone),
            Act::Delete { pod } => {
                let (answer, answered) = oneshot::channel();
                self.must_answer(answered);
                Command::Delete {
                    namespace: "default".into(),
                    name: format!("pod-{pod}"),
                    grace_seconds: None,
                    answer,
                }
            }
            Act::Attach { host, cpus } => self.attach(*host, *cpus),
            Act::Detach { host } => self.said_by(&host_name(*host), CardNews::Gone),
            Act::Report {
                pod,
                phase,
                generation,
            } => {
                let Some(found) = self.state.pods.find("default", &format!("pod-{pod}")) else {
                    return;
                };
                let report = PodReport {
                    uid: found.meta.uid.clone(),
                    generation: *generation,
                    status: Some(PodStatus {
                        phase: *phase,
                        ..found.status.clone()
                    }),
                };
                let host = match found.status.host.as_str() {
                    "" => host_name(0),
                    host => host.to_owned(),
                };
                self.said_by(&host, CardNews::Reports(vec![report]))
            }
            Act::Wait { tenths_of_a_lease } => {
                let passed = LEASE / 10 * *tenths_of_a_lease;
                self.now.at += passed;
                self.now.us += i64::try_from(passed.as_micros()).unwrap();
                return;
            }
            Act::Restart => return,
        };
        self.state.decide(self.now, command);
    }

    fn create(&mut self, pod: u8, cpu: u32, mib: u64, vpc: u8, zone: Option<u8>) -> Command {
        let spec = PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "hello".into(),
                resources: Some(Resources {
                    cpu_millis: cpu,
                    memory_bytes: mib << 20,
                    ..Resources::default()
                }),
                ..Container::default()
            }],
            vpc: format!("vpc-{vpc}"),
            zone: zone.map(|zone| format!("zone-{zone}")).unwrap_or_default(),
            ..PodSpec::default()
        };
        let pod = Pod {
            metadata: Some(ObjectMeta {
                name: format!("pod-{pod}"),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
            status: None,
        };
        self.next += 1;
        let (answer, answered) = oneshot::channel();
        self.must_answer(answered);
        Command::Create {
            pod: Box::new(validate::pod(pod).unwrap()),
            uid: Uuid::from_u128(self.next),
            answer,
        }
    }

    fn attach(&mut self, host: u8, cpus: u32) -> Command {
        let register = Register {
            host: host_name(host),
            zone: format!("zone-{}", host % 2),
            capacity: Some(HostCapacity {
                cpu_millis: cpus * 1000,
                memory_bytes: 2 << 30,
                pods: 4,
                ..HostCapacity::default()
            }),
            endpoint: "http://card:1".into(),
            held: Vec::new(),
            family: String::new(),
        };
        self.next += 1;
        let id = u64::try_from(self.next).unwrap();
        let outbox = Arc::new(Outbox::default());
        self.sessions.insert(host_name(host), id);
        let (answer, answered) = oneshot::channel();
        self.must_answer(answered);
        Command::Attach {
            register: Box::new(validate::register(register).unwrap()),
            session: Session { id, outbox },
            answer,
        }
    }

    fn said_by(&self, host: &str, news: CardNews) -> Command {
        Command::FromCard {
            host: host.to_owned(),
            session: self.sessions.get(host).copied().unwrap_or_default(),
            news,
        }
    }

    fn must_answer<T: Send + 'static>(&mut self, answered: oneshot::Receiver<T>) {
        let (done, waits) = oneshot::channel();
        tokio::spawn(async move {
            if answered.await.is_ok() {
                let _ = done.send(());
            }
        });
        self.answers.push(waits);
    }

    async fn check(&self) -> Result<(), TestCaseError> {
        let stored = self.store.list(records::POD, "").await.unwrap().objects;
        let mut pods = Vec::new();
        for object in &stored {
            let pod: Pod = records::decode(object).unwrap();
            let record = PodRecord::from_pod(pod).unwrap();
            prop_assert_eq!(
                self.state
                    .pods
                    .get(record.id)
                    .map(|pod| (&pod.meta, &pod.spec, &pod.status)),
                Some((&record.meta, &record.spec, &record.status))
            );
            prop_assert_eq!(self.state.pods.version(record.id), object.version);
            pods.push(record);
        }
        let mut addresses = BTreeSet::new();
        for record in &pods {
            let status = &record.status;
            let waits = status.phase() == Phase::Pending;
            prop_assert!(!waits || status.host.is_empty(), "{:?}", record);
            prop_assert_eq!(status.host.is_empty(), status.eni.is_none(), "{:?}", record);
            prop_assert!(!waits || !status.reason.is_empty() && !status.message.is_empty());
            prop_assert!(
                !waits || !record.is_deleted(),
                "deleted, seen by nobody, still there"
            );
            if let Some(eni) = &status.eni {
                prop_assert!(addresses.insert(&eni.address), "given twice: {:?}", eni);
                prop_assert_eq!(&eni.vpc, &record.spec.vpc);
            }
            if !record.spec.zone.is_empty() && !waits {
                prop_assert_eq!(&record.spec.zone, &status.zone);
            }
        }
        for view in self.state.fleet.hosts() {
            let on = pods.iter().map(|record| &record.status);
            let on = on.filter(|s| s.host == view.facts.name && !is_over(s.phase()));
            let flavors: Vec<_> = on.filter_map(|status| status.flavor.clone()).collect();
            let cpu: u32 = flavors.iter().map(|f| f.cpu_millis).sum();
            let memory: u64 = flavors
                .iter()
                .map(|f| f.memory_bytes + SANDBOX_OVERHEAD_BYTES)
                .sum();
            let capacity = view.facts.capacity;
            prop_assert_eq!(view.used.pods as usize, flavors.len());
            prop_assert!(memory <= capacity.memory_bytes && view.used.pods <= capacity.pods);
            // A host may shrink below what its pods have; it takes no more then.
            prop_assert_eq!(
                view.free.cpu_millis,
                capacity.cpu_millis.saturating_sub(cpu)
            );
        }
        Ok(())
    }
}

/// What hosts have promised. Who of them is ready does not outlive a restart.
fn promised(state: &State) -> BTreeMap<String, (Amount, Amount, bool)> {
    let hosts = state.fleet.hosts();
    let hosts = hosts.map(|host| (host.facts.name, (host.free, host.used, host.cordoned)));
    hosts.collect()
}

async fn play(batches: &[Vec<Act>]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.redb");
    let store = Arc::new(RedbStore::open(&path, RedbOptions::default()).unwrap());
    let now = Now {
        us: 1_700_000_000_000_000,
        at: Instant::now(),
    };
    let mut world = World {
        state: load(now, &store).await,
        store,
        now,
        next: 0,
        sessions: BTreeMap::new(),
        answers: Vec::new(),
    };
    for batch in batches {
        for act in batch {
            world.act(act);
        }
        world.state.go_on(world.now);
        super::flush(&mut world.state, &*world.store).await.unwrap();
        for answered in world.answers.drain(..) {
            prop_assert!(answered.await.is_ok(), "somebody was not answered");
        }
        world.check().await?;
        if batch.iter().any(|act| matches!(act, Act::Restart)) {
            let before = (promised(&world.state), world.state.ipam.all_taken());
            world.state = load(world.now, &world.store).await;
            let after = (promised(&world.state), world.state.ipam.all_taken());
            prop_assert_eq!(after, before, "something was lost or leaked");
            world.sessions.clear();
            world.check().await?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_is_placed_twice_lost_or_leaked(batches in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(&batches))?;
    }
}
