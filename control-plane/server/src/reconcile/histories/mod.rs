//! What holds after any history of clients, cards, operators, silence and restarts.

mod acts;
mod card;
mod check;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longship_proto::Failure;
use longship_proto::control::v1::{
    CapacityReservation, HostCapacity, Phase, Pod, PodReport, PodStatus, Quota, Register,
};
use longship_scheduler::Policy;
use longship_store::{MemoryStore, RedbOptions};
use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use self::acts::{Act, TENANTS, acts, quota, tenant};
use self::card::Card;
use super::command::{Answer, CardNews, Command, GangOrder};
use super::state::{Now, State};
use super::tenants::TenantCommand;
use crate::inventory::Session;
use crate::lease::Leases;
use crate::outbox::Outbox;
use crate::tenancy::{Tenancy, Tenant, Unclaimed};
use crate::validate;

const LEASE: Duration = Duration::from_secs(10);
const HOSTS: u8 = 3;
const HOST_CPU_MILLIS: u32 = 2000;
const HOST_MEMORY_BYTES: u64 = 2 << 30;
const HOST_PODS: u32 = 4;

struct World {
    state: State,
    store: MemoryStore,
    now: Now,
    next: u128,
    cards: BTreeMap<String, Card>,
    quotas: [Quota; 2],
    /// Gangs that nobody has touched since they were asked for.
    gangs: Vec<Vec<Uuid>>,
    /// The highest generation of each pod.
    generations: BTreeMap<Uuid, u64>,
    /// The answers that must come: a refusal is one too, and has its reason.
    answers: Vec<oneshot::Receiver<Option<Failure>>>,
}

async fn load(now: Now, store: &MemoryStore) -> State {
    let tenancy = Tenancy::load(store, Unclaimed::Nobodys).await.unwrap();
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
    async fn new(quotas: [Quota; 2]) -> Self {
        let now = Now {
            us: 1_700_000_000_000_000,
            at: Instant::now(),
        };
        let store = MemoryStore::new(RedbOptions::default(), Duration::ZERO).lead();
        let mut world = Self {
            state: load(now, &store).await,
            store,
            now,
            next: 0,
            cards: (0..HOSTS)
                .map(|host| (host_name(host), Card::default()))
                .collect(),
            quotas,
            gangs: Vec::new(),
            generations: BTreeMap::new(),
            answers: Vec::new(),
        };
        for (name, quota) in TENANTS.into_iter().zip(quotas) {
            let answer = world.answer();
            let tenant = Tenant {
                namespaces: [name.to_owned()].into(),
                quota,
                ..Tenant::default()
            };
            let command = TenantCommand::Put {
                name: name.to_owned(),
                tenant,
                if_version: 0,
                answer,
            };
            world.state.decide(now, Command::Tenants(command));
        }
        super::flush(&mut world.state, &world.store).await.unwrap();
        world
    }

    fn act(&mut self, act: &Act) {
        self.now.us += 1;
        if let Some(command) = self.command(act) {
            self.state.decide(self.now, command);
        }
    }

    fn command(&mut self, act: &Act) -> Option<Command> {
        let command = match act {
            Act::Create { pod, shape } => {
                let uid = self.uid();
                Command::Create {
                    once: None,
                    pod: Box::new(validate::pod(shape.pod(*pod)).unwrap()),
                    uid,
                    answer: self.answer(),
                }
            }
            Act::CreateGang {
                pods,
                shape,
                one_zone,
            } => {
                let pods = pods
                    .iter()
                    .map(|pod| validate::pod(shape.pod(*pod)).unwrap());
                let pods: Vec<_> = pods.map(|pod| (pod, self.uid())).collect();
                self.gangs.push(pods.iter().map(|(_, uid)| *uid).collect());
                Command::CreateMany {
                    once: None,
                    pods,
                    gang: Some(GangOrder {
                        one_zone: *one_zone,
                    }),
                    answer: self.answer(),
                }
            }
            Act::Delete { pod, red } => Command::Delete {
                namespace: tenant(*red).into(),
                name: format!("pod-{pod}"),
                grace_seconds: None,
                if_uid: String::new(),
                answer: self.answer(),
            },
            Act::Attach { host, remembers } => self.attach(&host_name(*host), *remembers),
            Act::Detach { host } => {
                let host = host_name(*host);
                let card = self.cards.get_mut(&host)?;
                card.detach();
                said_by(&host, card.session, CardNews::Gone)
            }
            Act::Card { host, nth, phase } => self.step(&host_name(*host), *nth, *phase)?,
            Act::Lie {
                host,
                nth,
                phase,
                generation,
            } => self.lie(&host_name(*host), *nth, *phase, *generation)?,
            Act::Cordon { host, cordoned } => Command::Cordon {
                host: host_name(*host),
                cordoned: *cordoned,
                answer: self.answer(),
            },
            Act::Drain { host } => Command::Drain {
                host: host_name(*host),
                grace_seconds: None,
                answer: self.answer(),
            },
            Act::Remove { host } => Command::RemoveHost {
                host: host_name(*host),
                answer: self.answer(),
            },
            Act::Reserve {
                red,
                count,
                seconds,
            } => Command::Reserve {
                reservation: CapacityReservation {
                    name: "kept".into(),
                    tenant: tenant(*red).into(),
                    flavor: "std-0.25x0.5".into(),
                    count: *count,
                    ends_us: self.now.us + i64::from(*seconds) * 1_000_000,
                    ..CapacityReservation::default()
                },
                answer: self.answer(),
            },
            Act::EndReservation { red } => Command::EndReservation {
                tenant: tenant(*red).into(),
                name: "kept".into(),
                answer: self.answer(),
            },
            Act::Wait { tenths_of_a_lease } => {
                let passed = LEASE / 10 * *tenths_of_a_lease;
                self.now.at += passed;
                self.now.us += i64::try_from(passed.as_micros()).unwrap();
                return None;
            }
            Act::Restart { .. } => return None,
        };
        Some(command)
    }

    fn uid(&mut self) -> Uuid {
        self.next += 1;
        Uuid::from_u128(self.next)
    }

    /// An answer that must come.
    fn answer<T: Send + 'static>(&mut self) -> Answer<T> {
        let (answer, answered) = oneshot::channel::<Result<T, Failure>>();
        let (done, waits) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(answer) = answered.await {
                let _ = done.send(answer.err());
            }
        });
        self.answers.push(waits);
        answer
    }

    fn attach(&mut self, host: &str, remembers: bool) -> Command {
        let number = host.bytes().last().unwrap_or_default();
        self.next += 1;
        let id = u64::try_from(self.next).unwrap();
        let outbox = Arc::new(Outbox::default());
        let card = self.cards.get_mut(host).unwrap();
        if !remembers {
            card.running.clear();
        }
        card.attach(id, &outbox);
        let held = card.running.iter();
        let held = held.map(|(uid, running)| longship_proto::control::v1::HeldPod {
            uid: uid.clone(),
            generation: running.generation(),
        });
        let register = Register {
            host: host.to_owned(),
            zone: format!("zone-{}", number % 2),
            capacity: Some(HostCapacity {
                cpu_millis: HOST_CPU_MILLIS,
                memory_bytes: HOST_MEMORY_BYTES,
                pods: HOST_PODS,
                ..HostCapacity::default()
            }),
            endpoint: "http://card:1".into(),
            held: held.collect(),
            family: String::new(),
        };
        Command::Attach {
            register: Box::new(validate::register(register).unwrap()),
            session: Session { id, outbox },
            answer: self.answer(),
        }
    }

    /// A card goes on with one of its pods: as far as that may be.
    fn step(&mut self, host: &str, nth: usize, phase: Phase) -> Option<Command> {
        let card = self.cards.get_mut(host).filter(|card| card.is_attached())?;
        if let Some(pod) = card.unknown.pop() {
            return Some(said_by(
                host,
                card.session,
                news(&pod, None, Phase::Released),
            ));
        }
        let count = card.running.len();
        let (uid, running) = card.running.iter_mut().nth(nth % count.max(1))?;
        let phase = match (phase, running.to_go, running.over) {
            (Phase::Released, true, _) => Phase::Released,
            (_, _, true) => return None,
            (Phase::Released, false, _) => Phase::Running,
            (_, true, false) => Phase::Stopping,
            (phase, false, false) => phase,
        };
        let pod = running.pod.clone();
        running.over |= matches!(phase, Phase::Succeeded | Phase::Failed);
        if phase == Phase::Released {
            let uid = uid.clone();
            card.running.remove(&uid);
        }
        Some(said_by(host, card.session, news(&pod, None, phase)))
    }

    /// Nothing follows from this.
    fn lie(&self, host: &str, nth: usize, phase: i32, generation: u64) -> Option<Command> {
        let card = self.cards.get(host)?;
        let pods: Vec<_> = self.state.pods.iter().collect();
        let record = pods.get(nth % pods.len().max(1))?;
        if record.status.host == host && record.meta.generation == generation {
            return None;
        }
        let pod = record.to_pod(0);
        let phase = Phase::try_from(phase).unwrap_or_default();
        Some(said_by(
            host,
            card.session,
            news(&pod, Some(generation), phase),
        ))
    }

    /// Has the cards hear what they were told.
    async fn hear(&mut self) {
        for card in self.cards.values_mut() {
            card.hear().await;
        }
    }
}

fn said_by(host: &str, session: u64, news: CardNews) -> Command {
    Command::FromCard {
        host: host.to_owned(),
        session,
        news,
    }
}

fn news(pod: &Pod, generation: Option<u64>, phase: Phase) -> CardNews {
    let meta = pod.metadata.as_ref().unwrap();
    let report = PodReport {
        uid: meta.uid.clone(),
        generation: generation.unwrap_or(meta.generation),
        status: Some(PodStatus {
            phase: phase.into(),
            ..PodStatus::default()
        }),
    };
    CardNews::Reports(vec![report])
}

async fn play(quotas: [Quota; 2], batches: &[Vec<Act>]) -> Result<(), TestCaseError> {
    let mut world = World::new(quotas).await;
    for batch in batches {
        for act in batch {
            world.act(act);
        }
        world.state.go_on(world.now);
        let restart = batch.iter().find_map(|act| match act {
            Act::Restart { written } => Some(*written),
            _ => None,
        });
        if restart != Some(false) {
            super::flush(&mut world.state, &world.store).await.unwrap();
            for answered in world.answers.drain(..) {
                let answer = answered.await;
                prop_assert!(answer.is_ok(), "somebody was not answered");
                if let Ok(Some(refusal)) = answer {
                    prop_assert!(!refusal.message.is_empty(), "{refusal:?}");
                }
            }
            world.hear().await;
            world.check().await?;
        }
        if let Some(written) = restart {
            world.restart(written).await?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_placed_twice_lost_leaked_or_over_committed(
        quotas in [quota(), quota()],
        batches in acts(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(quotas, &batches))?;
    }
}
