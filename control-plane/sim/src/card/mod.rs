//! One simulated card.

mod holdings;
mod orders;
mod outbox;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_proto::control::v1::cards_client::CardsClient;
use longship_proto::control::v1::{
    FromCard, Heartbeat, HostCapacity, PodReport, PodReports, Register, ToCard, from_card, to_card,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub use holdings::{HeldByCard, Holdings, Now, Pace};
pub use orders::{Behaviour, Orders};

use crate::network::Network;

/// As the real card waits between attempts.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The largest message taken, in bytes.
const MESSAGE_BYTES: usize = 64 << 20;
/// Messages on their way to the control plane.
const OUTGOING: usize = 64;

/// What a card says of its host.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub zone: String,
    /// What it has.
    pub capacity: HostCapacity,
}

/// What happens at a card, for whoever counts.
pub trait Observer: Send + Sync {
    /// The control plane has taken the registration.
    fn attached(&self) {}
    /// The stream has ended.
    fn detached(&self) {}
    /// An attempt has failed, or an attachment broke.
    fn broken(&self, _why: &Status) {}
    /// A message came.
    fn received(&self) {}
    /// So many reports went out, in one message.
    fn reported(&self, _count: usize) {}
}

/// Nobody counts.
impl Observer for () {}

/// A card.
pub struct Card {
    facts: HostFacts,
    holdings: Arc<Mutex<Holdings>>,
    orders: watch::Receiver<Orders>,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Fn() -> Now + Send + Sync>,
}

/// Why an attachment came to its end.
enum End {
    /// By order.
    Ordered,
    /// The peer's, or the network's.
    Broken(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Broken(status)
    }
}

impl Card {
    /// A card of that host, which holds what `holdings` says.
    #[must_use]
    pub fn new(
        facts: HostFacts,
        holdings: Arc<Mutex<Holdings>>,
        orders: watch::Receiver<Orders>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            facts,
            holdings,
            orders,
            observer,
            clock: Arc::new(Now::get),
        }
    }

    /// With another clock than this machine's.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the link until nobody can give it orders any more.
    pub async fn keep(mut self, network: Arc<dyn Network>) {
        let mut wait = RETRY_MIN;
        while self.orders.has_changed().is_ok() {
            if self.orders.borrow_and_update().away {
                if self.orders.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match self.attach(&*network, &mut wait).await {
                End::Ordered => {}
                End::Broken(why) => {
                    self.observer.broken(&why);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn attach(&mut self, network: &dyn Network, wait: &mut Duration) -> End {
        match self.run_stream(network, wait).await {
            Ok(end) | Err(end) => end,
        }
    }

    fn register(&self) -> from_card::Message {
        from_card::Message::Register(Register {
            host: self.facts.name.clone(),
            zone: self.facts.zone.clone(),
            capacity: Some(self.facts.capacity),
            endpoint: format!("http://{}.cards:7702", self.facts.name),
            held: self.holdings().held(),
            family: String::new(),
        })
    }

    async fn run_stream(&mut self, network: &dyn Network, wait: &mut Duration) -> Result<End, End> {
        let begun = *self.orders.borrow_and_update();
        let channel = network.connect().await?;
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        send(&outgoing, self.register()).await?;
        let mut client = CardsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let mut stream = client
            .attach(ReceiverStream::new(queue))
            .await?
            .into_inner();
        let Some(ToCard {
            message: Some(to_card::Message::Registered(registered)),
        }) = stream.message().await?
        else {
            return Err(Status::internal("the registration was not answered").into());
        };
        *wait = RETRY_MIN;
        let _attached = Attached::new(&self.observer);
        let now = (self.clock)();
        self.holdings().report_all(now);

        let lease = Duration::from_millis(u64::from(registered.lease_ms.max(300)));
        let mut heartbeat = tokio::time::interval(lease / 3);
        let mut assignments = Some(BTreeSet::new());
        loop {
            let behaviour = self.orders.borrow().behaviour;
            let (deaf, silent) = (behaviour == Behaviour::Deaf, behaviour == Behaviour::Silent);
            let (step, reports) = {
                let holdings = self.holdings();
                (holdings.next_due(), holdings.reports_due())
            };
            tokio::select! {
                changed = self.orders.changed() => {
                    let orders = *self.orders.borrow_and_update();
                    if changed.is_err() || orders.away || orders.reattach != begun.reattach {
                        return Ok(End::Ordered);
                    }
                }
                message = stream.message(), if !deaf => {
                    let Some(message) = message? else {
                        return Err(Status::unavailable("the stream was closed").into());
                    };
                    self.observer.received();
                    self.receive(message, &mut assignments);
                }
                () = until(reports), if !silent => {
                    let now = (self.clock)();
                    let reports = self.holdings().take_reports(now);
                    self.report(&outgoing, reports, behaviour).await?;
                }
                () = until(step) => {
                    let now = (self.clock)();
                    self.holdings().advance(now);
                }
                _ = heartbeat.tick(), if !silent => {
                    send(&outgoing, from_card::Message::Heartbeat(Heartbeat {})).await?;
                }
            }
        }
    }

    async fn report(
        &self,
        outgoing: &mpsc::Sender<FromCard>,
        reports: Vec<PodReport>,
        behaviour: Behaviour,
    ) -> Result<(), Status> {
        if reports.is_empty() {
            return Ok(());
        }
        let again = (behaviour == Behaviour::Stale).then(|| reports.clone());
        self.observer.reported(reports.len());
        send(
            outgoing,
            from_card::Message::Reports(PodReports { reports }),
        )
        .await?;
        if let Some(mut reports) = again {
            for report in &mut reports {
                report.generation = report.generation.saturating_sub(1);
            }
            send(
                outgoing,
                from_card::Message::Reports(PodReports { reports }),
            )
            .await?;
        }
        Ok(())
    }

    /// `all` gathers the parts of the first assignments, and is gone after the last.
    fn receive(&self, message: ToCard, all: &mut Option<BTreeSet<String>>) {
        let now = (self.clock)();
        let mut holdings = self.holdings();
        match message.message {
            Some(to_card::Message::Assignments(part)) => {
                if let Some(wanted) = all {
                    let metas = part.pods.iter().filter_map(|pod| pod.metadata.as_ref());
                    wanted.extend(metas.map(|meta| meta.uid.clone()));
                    if !part.more {
                        holdings.keep_only(now, wanted);
                        *all = None;
                    }
                }
                for pod in part.pods {
                    holdings.assign(now, pod);
                }
            }
            Some(to_card::Message::Changes(changes)) => {
                for pod in changes.assign {
                    holdings.assign(now, pod);
                }
                for uid in changes.release_uids {
                    holdings.release(now, &uid);
                }
            }
            Some(to_card::Message::Registered(_) | to_card::Message::Images(_)) | None => {}
        }
    }
}

/// Counts an attachment for as long as it lasts.
struct Attached(Arc<dyn Observer>);

impl Attached {
    fn new(observer: &Arc<dyn Observer>) -> Self {
        observer.attached();
        Self(Arc::clone(observer))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.detached();
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn send(queue: &mpsc::Sender<FromCard>, message: from_card::Message) -> Result<(), Status> {
    let sent = queue.send(FromCard {
        message: Some(message),
    });
    let sent = sent.await;
    sent.map_err(|_| Status::unavailable("the link is closed"))
}
