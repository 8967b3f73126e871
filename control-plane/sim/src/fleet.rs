//! Many simulated cards in this process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longship_proto::control::v1::HostCapacity;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use crate::card::{Behaviour, Card, Holdings, HostFacts, Observer, Orders, Pace};
use crate::network::Network;

/// What the cards of a fleet are like.
#[derive(Debug, Clone)]
pub struct FleetShape {
    /// How many.
    pub cards: usize,
    /// The hosts are spread evenly over so many zones, `zone-1` and so on.
    pub zones: usize,
    /// What each host has.
    pub capacity: HostCapacity,
    /// How long they take.
    pub pace: Pace,
}

impl Default for FleetShape {
    /// Hosts of 64 CPUs and 256 GiB.
    fn default() -> Self {
        Self {
            cards: 1000,
            zones: 4,
            capacity: HostCapacity {
                cpu_millis: 64_000,
                memory_bytes: 256 << 30,
                pods: 1000,
                ..HostCapacity::default()
            },
            pace: Pace::default(),
        }
    }
}

impl FleetShape {
    /// So many cards, with room for so many small pods together, and half as many more.
    #[must_use]
    pub fn with_room(cards: usize, pods: u32) -> Self {
        let each = u64::from(pods) * 3 / 2 / u64::try_from(cards.max(1)).unwrap_or(u64::MAX) + 8;
        let each = u32::try_from(each).unwrap_or(u32::MAX);
        Self {
            cards,
            capacity: HostCapacity {
                cpu_millis: each.saturating_mul(250),
                memory_bytes: u64::from(each) << 30,
                pods: each,
                ..HostCapacity::default()
            },
            ..Self::default()
        }
    }
}

/// What has happened at all cards so far.
#[derive(Debug, Default)]
pub struct Counts {
    attached: AtomicUsize,
    attachments: AtomicUsize,
    received: AtomicUsize,
    reports: AtomicUsize,
    report_messages: AtomicUsize,
    broken: AtomicUsize,
    trouble: Mutex<String>,
}

impl Counts {
    /// Cards that are attached now.
    pub fn attached(&self) -> usize {
        self.attached.load(Ordering::Relaxed)
    }

    /// Attachments so far.
    pub fn attachments(&self) -> usize {
        self.attachments.load(Ordering::Relaxed)
    }

    /// Attempts and attachments that failed so far.
    pub fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
    }

    /// Why the latest of them did; empty where none has.
    pub fn trouble(&self) -> String {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    /// Messages that came.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Reports that went out, and the messages that they went in.
    pub fn reports(&self) -> (usize, usize) {
        let reports = self.reports.load(Ordering::Relaxed);
        (reports, self.report_messages.load(Ordering::Relaxed))
    }
}

impl Observer for Counts {
    fn attached(&self) {
        self.attached.fetch_add(1, Ordering::Relaxed);
        self.attachments.fetch_add(1, Ordering::Relaxed);
    }

    fn detached(&self) {
        self.attached.fetch_sub(1, Ordering::Relaxed);
    }

    fn broken(&self, why: &Status) {
        self.broken.fetch_add(1, Ordering::Relaxed);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        why.message().clone_into(&mut trouble);
    }

    fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    fn reported(&self, count: usize) {
        self.reports.fetch_add(count, Ordering::Relaxed);
        self.report_messages.fetch_add(1, Ordering::Relaxed);
    }
}

struct Member {
    orders: watch::Sender<Orders>,
    holdings: Arc<Mutex<Holdings>>,
}

/// Cards that run until the fleet is dropped.
pub struct Fleet {
    members: Vec<Member>,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(2);

impl Fleet {
    /// Starts the cards; they attach by themselves.
    #[must_use]
    pub fn start(shape: &FleetShape, network: &Arc<dyn Network>) -> Self {
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        let members = (0..shape.cards).map(|number| {
            let (orders, receiver) = watch::channel(Orders::default());
            let holdings = Arc::new(Mutex::new(Holdings::new(shape.pace)));
            let facts = HostFacts {
                name: format!("host-{number:05}"),
                zone: format!("zone-{}", number % shape.zones.max(1) + 1),
                capacity: shape.capacity,
            };
            let observer: Arc<dyn Observer> = Arc::clone(&counts) as _;
            let card = Card::new(facts, Arc::clone(&holdings), receiver, observer);
            tasks.spawn(card.keep(Arc::clone(network)));
            Member { orders, holdings }
        });
        let members = members.collect();
        Self {
            members,
            counts,
            _tasks: tasks,
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many cards there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Looks at every card's pods.
    pub fn holdings(&self) -> impl Iterator<Item = &Mutex<Holdings>> {
        self.members.iter().map(|member| &*member.holdings)
    }

    /// Makes the first `count` cards behave like that.
    pub fn behave(&self, count: usize, behaviour: Behaviour) {
        for member in self.members.iter().take(count) {
            member.orders.send_modify(|o| o.behaviour = behaviour);
        }
    }

    /// All cards break off and attach again at once.
    pub fn storm(&self) {
        for member in &self.members {
            member.orders.send_modify(|orders| orders.reattach += 1);
        }
    }

    /// Waits until all cards have attached `attachments` times together, and are
    /// attached.
    pub async fn all_attached(&self, attachments: usize) {
        let all = self.members.len();
        while self.counts.attached() < all || self.counts.attachments() < attachments {
            tokio::time::sleep(LOOK).await;
        }
    }
}
