//! One simulated world: control planes, cards, clients, and what goes wrong between them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longship_control::{Config, RunError, Service};
use longship_proto::control::v1::HostCapacity;
use longship_sim::card::{Behaviour, Card, Holdings, HostFacts, Now, Orders, Pace};
use longship_store::{MemoryStore, RedbOptions};
use tokio::sync::watch;
use turmoil::Sim;

use crate::clients::Clients;
use crate::determinism;
use crate::network::{self, Way};
use crate::plan::{Fault, Plan, Planned, Sizes};

/// A tick of the simulation.
const TICK: Duration = Duration::from_millis(5);
/// How long a card may be silent.
const LEASE: Duration = Duration::from_secs(1);
/// After that its pods are given up.
const FENCE: Duration = Duration::from_secs(3);
/// What each host has.
pub(crate) const CAPACITY: HostCapacity = HostCapacity {
    cpu_millis: 4000,
    memory_bytes: 8 << 30,
    pods: 12,
    enis: 0,
    disks: 0,
    gpus: 0,
};

/// A card, as seen from outside.
pub(crate) struct CardView {
    pub(crate) name: String,
    pub(crate) holdings: Arc<Mutex<Holdings>>,
    pub(crate) attached: Arc<AtomicBool>,
    orders: watch::Sender<Orders>,
    skew: Arc<AtomicI64>,
    up: bool,
}

/// Says whether it is attached.
struct Attachment(Arc<AtomicBool>);

impl longship_sim::card::Observer for Attachment {
    fn attached(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn detached(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Whose turn it is to lead, and whether this process has ended by itself.
#[derive(Clone)]
struct Turn {
    leader: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

/// A control plane, as seen from outside.
struct ControlView {
    name: String,
    up: bool,
    ended: Arc<AtomicBool>,
}

pub(crate) struct World<'a> {
    sim: Sim<'a>,
    pub(crate) store: MemoryStore,
    pub(crate) cards: Vec<CardView>,
    pub(crate) clients: Clients,
    controls: Vec<ControlView>,
    leader: Arc<AtomicUsize>,
    plan: Vec<Planned>,
    active: Vec<Planned>,
    latency: Duration,
}

impl World<'_> {
    pub(crate) fn new(seed: u64, plan: &Plan) -> Self {
        let Sizes {
            controls,
            cards,
            pods,
            write_delay,
            latency,
            ..
        } = plan.sizes;
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(latency)
            .simulation_duration(Duration::from_secs(3600))
            .tcp_capacity(4096)
            .build();
        let store = MemoryStore::new(RedbOptions::default(), write_delay);
        let leader = Arc::new(AtomicUsize::new(0));
        let controls: Vec<String> = (0..controls).map(|n| format!("control-{n}")).collect();
        let control_views = controls.iter().enumerate().map(|(number, name)| {
            let ended = Arc::new(AtomicBool::new(false));
            let turn = Turn {
                leader: Arc::clone(&leader),
                ended: Arc::clone(&ended),
            };
            let store = store.clone();
            sim.host(name.as_str(), move || {
                control(number, store.clone(), turn.clone())
            });
            ControlView {
                name: name.clone(),
                up: true,
                ended,
            }
        });
        let control_views = control_views.collect();
        let cards = (0..cards).map(|number| card(&mut sim, number, &controls));
        let cards = cards.collect();
        let clients = Clients::new(seed, &controls, pods);
        {
            let clients = clients.clone();
            sim.host("clients", move || {
                let clients = clients.clone();
                async move {
                    tokio::spawn(clients.clone().watch());
                    clients.work().await;
                    std::future::pending().await
                }
            });
        }
        Self {
            sim,
            store,
            cards,
            clients,
            controls: control_views,
            leader,
            plan: plan.faults.clone(),
            active: Vec::new(),
            latency,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    fn control_names(&self) -> Vec<String> {
        let names = self.controls.iter().map(|control| control.name.clone());
        names.collect()
    }

    /// One tick: what is due goes wrong, or right again.
    pub(crate) fn step(&mut self, history: &mut Vec<String>) -> Result<(), String> {
        let now = self.elapsed();
        determinism::at(now);
        let begin: Vec<Planned> = self.plan.extract_if(.., |p| p.begin <= now).collect();
        for planned in begin {
            history.push(format!("{now:?} {:?}", planned.fault));
            self.begin(planned.fault);
            self.active.push(planned);
        }
        let end: Vec<Planned> = self.active.extract_if(.., |p| p.end <= now).collect();
        for planned in end {
            history.push(format!("{now:?} no longer {:?}", planned.fault));
            self.end(planned.fault);
        }
        // Whatever starts processes starts those again that end.
        for control in &self.controls {
            if control.up && control.ended.swap(false, Ordering::SeqCst) {
                self.sim.crash(control.name.as_str());
                self.sim.bounce(control.name.as_str());
            }
        }
        let stepped = self.sim.step().map(drop);
        stepped.map_err(|error| format!("a process failed: {error}"))
    }

    /// Nothing is wrong any more.
    pub(crate) fn heal(&mut self) {
        self.plan.clear();
        for planned in std::mem::take(&mut self.active) {
            self.end(planned.fault);
        }
    }

    fn begin(&mut self, fault: Fault) {
        let links = |world: &Self, card: usize| {
            let card = world.cards[card].name.clone();
            let controls: Vec<String> = world.control_names();
            controls
                .into_iter()
                .map(move |control| (card.clone(), control))
        };
        match fault {
            Fault::Partition { card } => {
                links(self, card).for_each(|(a, b)| self.sim.partition(a, b));
            }
            Fault::PartitionOneWay { card, to_card } => {
                for (card, control) in links(self, card) {
                    let (from, to) = if to_card {
                        (control, card)
                    } else {
                        (card, control)
                    };
                    self.sim.partition_oneway(from, to);
                }
            }
            Fault::Hold { card } => links(self, card).for_each(|(a, b)| self.sim.hold(a, b)),
            Fault::PartitionClient => {
                for control in self.control_names() {
                    self.sim.partition("clients", control);
                }
            }
            Fault::CrashCard { card } => {
                let card = &mut self.cards[card];
                if std::mem::take(&mut card.up) {
                    self.sim.crash(card.name.as_str());
                    lock(&card.holdings).lose_everything();
                }
            }
            Fault::CrashControl { control } => {
                let control = &mut self.controls[control];
                if std::mem::take(&mut control.up) {
                    self.sim.crash(control.name.as_str());
                }
            }
            Fault::Elect { control } => self.leader.store(control, Ordering::SeqCst),
            Fault::Behave { card, behaviour } => {
                let orders = &self.cards[card].orders;
                orders.send_modify(|orders| orders.behaviour = behaviour);
            }
            Fault::Storm => {
                for card in &self.cards {
                    card.orders.send_modify(|orders| orders.reattach += 1);
                }
            }
            Fault::Skew { seconds } => determinism::set_skew(seconds * 1_000_000),
            Fault::SkewCard { card, seconds } => {
                let skew = &self.cards[card].skew;
                skew.store(seconds * 1_000_000, Ordering::SeqCst);
            }
            Fault::Slow { card, millis } => {
                let latency = Duration::from_millis(millis);
                for (card, control) in links(self, card) {
                    self.sim
                        .set_link_max_message_latency(card, control, latency);
                }
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        let links = |world: &Self, card: usize| {
            let card = world.cards[card].name.clone();
            let controls: Vec<String> = world.control_names();
            controls
                .into_iter()
                .map(move |control| (card.clone(), control))
        };
        match fault {
            Fault::Partition { card } | Fault::PartitionOneWay { card, .. } => {
                links(self, card).for_each(|(a, b)| self.sim.repair(a, b));
            }
            Fault::Hold { card } => links(self, card).for_each(|(a, b)| self.sim.release(a, b)),
            Fault::PartitionClient => {
                for control in self.control_names() {
                    self.sim.repair("clients", control);
                }
            }
            Fault::CrashCard { card } => {
                let card = &mut self.cards[card];
                if !std::mem::replace(&mut card.up, true) {
                    self.sim.bounce(card.name.as_str());
                }
            }
            Fault::CrashControl { control } => {
                let control = &mut self.controls[control];
                if !std::mem::replace(&mut control.up, true) {
                    control.ended.store(false, Ordering::SeqCst);
                    self.sim.bounce(control.name.as_str());
                }
            }
            Fault::Behave { card, .. } => {
                let orders = &self.cards[card].orders;
                orders.send_modify(|orders| orders.behaviour = Behaviour::Sound);
            }
            Fault::Slow { card, .. } => {
                for (card, control) in links(self, card) {
                    self.sim
                        .set_link_max_message_latency(card, control, self.latency);
                }
            }
            Fault::Elect { .. } | Fault::Storm | Fault::Skew { .. } | Fault::SkewCard { .. } => {}
        }
    }
}

pub(crate) fn lock(holdings: &Mutex<Holdings>) -> std::sync::MutexGuard<'_, Holdings> {
    holdings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn card(sim: &mut Sim<'_>, number: usize, controls: &[String]) -> CardView {
    let name = format!("card-{number}");
    let facts = HostFacts {
        name: name.clone(),
        zone: format!("zone-{}", number % 2 + 1),
        capacity: CAPACITY,
    };
    let holdings = Arc::new(Mutex::new(Holdings::new(Pace::default())));
    let (orders, receiver) = watch::channel(Orders::default());
    let attached = Arc::new(AtomicBool::new(false));
    let skew = Arc::new(AtomicI64::new(0));
    let view = CardView {
        name: name.clone(),
        holdings: Arc::clone(&holdings),
        attached: Arc::clone(&attached),
        orders,
        skew: Arc::clone(&skew),
        up: true,
    };
    let controls = controls.to_vec();
    sim.host(name, move || {
        let skew = Arc::clone(&skew);
        let observer = Arc::new(Attachment(Arc::clone(&attached)));
        let card = Card::new(
            facts.clone(),
            Arc::clone(&holdings),
            receiver.clone(),
            observer,
        );
        let card = card.with_clock(move || Now {
            at: tokio::time::Instant::now(),
            us: determinism::true_us() + skew.load(Ordering::SeqCst),
        });
        let way = Arc::new(Way::new(&controls));
        async move {
            card.keep(way).await;
            Ok(())
        }
    });
    view
}

/// The control plane's process: it leads when it is its turn, and ends when it is not any
/// more.
async fn control(number: usize, store: MemoryStore, turn: Turn) -> turmoil::Result {
    let leads = {
        let leader = Arc::clone(&turn.leader);
        move || leader.load(Ordering::SeqCst) == number
    };
    while !leads() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listen: SocketAddr = ([0, 0, 0, 0], network::PORT).into();
    let mut config = Config::new(listen, PathBuf::new());
    config.lease = LEASE;
    config.fence_after = FENCE;
    let service = Service::load(&config, Arc::new(store.lead())).await?;
    // A leader that has lost its election learns of it a little later.
    let stop = async move {
        while leads() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    match service.run(network::incoming().await?, stop).await {
        // Another one leads, or led in between.
        Ok(()) | Err(RunError::Store(_)) => {}
        Err(error) => return Err(error.into()),
    }
    turn.ended.store(true, Ordering::SeqCst);
    std::future::pending().await
}
