//! Where a sandbox's machine comes from: the warm pool, a template, or a boot of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longship_proto::agent::v1 as wire;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroup::Share;
use crate::channel::ChannelError;
use crate::host::Host;
use crate::pressure::Pressure;
use crate::shape::Shape;
use crate::template::{Template, Templates};
use crate::timeline::{Timeline, now_us};
use crate::vmm::{Vmm, VmmError, prepare};
use crate::warm_pool::{Busy, WarmPool};

/// Between two looks at clones that wait: are they still wanted, is there memory?
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// After memory was short, or a clone could not be made, for the next one in advance.
const BACK_OFF: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Machines {
    host: Arc<Host>,
    /// `None`: every machine boots by itself.
    templates: Option<Arc<Templates>>,
    pool: WarmPool<Vmm>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Machines {
    /// Needs a tokio runtime.
    pub(crate) fn new(host: Arc<Host>) -> Arc<Self> {
        let templates = host
            .template_bytes
            .map(|limit| Arc::new(Templates::new(Arc::clone(&host), limit)));
        let each = match &templates {
            Some(_) => host.warm_pool,
            None => 0,
        };
        let machines = Arc::new(Self {
            host,
            templates,
            pool: WarmPool::new(each),
            keeper: Mutex::default(),
        });
        if each > 0 {
            let keeper = tokio::spawn(keep_warm(Arc::clone(&machines)));
            *machines.keeper() = Some(keeper);
        }
        machines
    }

    /// A machine of this shape that waits for its devices. Its VMM has the share of CPU
    /// time that was promised.
    ///
    /// # Errors
    /// [`VmmError`]; nothing is left then.
    pub(crate) async fn get(
        &self,
        shape: Shape,
        share: Share,
        timeline: &mut Timeline,
    ) -> Result<Vmm, VmmError> {
        let Some(templates) = &self.templates else {
            return self.boot_by_itself(shape, share, timeline).await;
        };
        let started = now_us();
        if let Some(vmm) = self.take_warm(templates, shape, share).await {
            timeline.add_agent("pool", started);
            return Ok(vmm);
        }
        let at_hand = match templates.ready(shape) {
            // Counts as a use.
            Some(_) => templates.of(shape).await,
            None => timeline.measure("template", templates.of(shape)).await,
        };
        let Some(template) = at_hand else {
            return self.boot_by_itself(shape, share, timeline).await;
        };
        let started = now_us();
        match self.clone(&template, share, timeline).await {
            Ok(mut vmm) => {
                vmm.count(template.count());
                timeline.add_agent("clone", started);
                Ok(vmm)
            }
            Err(
                error @ VmmError::Call {
                    error: ChannelError::Refused(_),
                    ..
                },
            ) => {
                templates.give_up(&template, error.to_string());
                self.boot_by_itself(shape, share, timeline).await
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// A sandbox is on its way until what this gives is dropped.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.pool.busy()
    }

    /// All templates, with their warm clones.
    pub(crate) async fn list(&self) -> Vec<wire::Template> {
        let Some(templates) = &self.templates else {
            return Vec::new();
        };
        let with_warm = |(shape, template)| wire::Template {
            warm: u32::try_from(self.pool.count(shape)).unwrap_or(u32::MAX),
            ..template
        };
        templates.list().await.into_iter().map(with_warm).collect()
    }

    /// What the paused clones hold of the host's memory, in bytes.
    pub(crate) fn warm_bytes(&self) -> u64 {
        self.pool.held_bytes()
    }

    /// Ends what no sandbox has, at the agent's end.
    pub(crate) async fn close(&self) {
        let keeper = self.keeper().take();
        if let Some(keeper) = keeper {
            keeper.abort();
            let _ = keeper.await;
        }
        if let Some(templates) = &self.templates {
            templates.close().await;
        }
        end_all(self.pool.drain()).await;
    }

    async fn take_warm(&self, templates: &Templates, shape: Shape, share: Share) -> Option<Vmm> {
        let template = templates.ready(shape);
        while let Some(mut vmm) = self.pool.take(shape, Instant::now()) {
            if vmm.set_share(share).is_ok() && !vmm.has_ended() {
                if let Some(template) = &template {
                    vmm.count(template.count());
                }
                return Some(vmm);
            }
            tracing::warn!("a warm clone of {shape} has died");
            end_all(vec![vmm]).await;
        }
        None
    }

    async fn boot_by_itself(
        &self,
        shape: Shape,
        share: Share,
        timeline: &mut Timeline,
    ) -> Result<Vmm, VmmError> {
        let mut vmm = Vmm::launch(&self.host, shape, share, timeline).await?;
        match vmm.create(&self.host, shape, None, timeline).await {
            Ok(()) => Ok(vmm),
            Err(error) => Err(vmm.end_with(error).await.0),
        }
    }

    async fn clone(
        &self,
        template: &Template,
        share: Share,
        timeline: &mut Timeline,
    ) -> Result<Vmm, VmmError> {
        let (state, memory) = template.open().map_err(prepare("open the template"))?;
        let mut vmm = Vmm::launch(&self.host, template.shape, share, timeline).await?;
        match vmm.restore(&self.host, &state, &memory, timeline).await {
            Ok(()) => Ok(vmm),
            Err(error) => Err(vmm.end_with(error).await.0),
        }
    }

    fn keeper(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the pool as it should be, for ever.
async fn keep_warm(machines: Arc<Machines>) {
    let (pool, Some(templates)) = (&machines.pool, &machines.templates) else {
        return;
    };
    let pressure = Pressure::watch();
    loop {
        tokio::select! {
            () = pool.changed.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if !pool.is_empty() => {}
            () = pressure.stalled() => {
                shed(pool, "tasks wait for memory").await;
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        }
        if Pressure::is_short() {
            shed(pool, "memory is short").await;
            tokio::time::sleep(BACK_OFF).await;
            continue;
        }
        end_all(pool.expired(|shape| templates.ready(shape).is_some(), Instant::now())).await;
        if let Err(error) = refill(&machines, pool, templates).await {
            tracing::warn!("make a clone in advance: {error}");
            tokio::time::sleep(BACK_OFF).await;
        }
    }
}

/// One clone after the other, whenever no sandbox is on its way.
async fn refill(
    machines: &Machines,
    pool: &WarmPool<Vmm>,
    templates: &Templates,
) -> Result<(), VmmError> {
    let mut without_template = Vec::new();
    while let Some(shape) = pool.wanted(&without_template, Instant::now()) {
        pool.quiet().await;
        let Some(template) = templates.ready(shape) else {
            without_template.push(shape);
            continue;
        };
        let held = templates.held_bytes().saturating_add(pool.held_bytes());
        if held >= templates.limit_bytes || Pressure::is_short() {
            return Ok(());
        }
        let mut nobody_asks = Timeline::default();
        let vmm = machines
            .clone(&template, Share::Background, &mut nobody_asks)
            .await?;
        let bytes = vmm.charged_bytes();
        pool.put(shape, vmm, bytes);
    }
    Ok(())
}

async fn shed(pool: &WarmPool<Vmm>, why: &str) {
    let clones = pool.drain();
    if !clones.is_empty() {
        tracing::info!("{why}: {} warm clones make room", clones.len());
        end_all(clones).await;
    }
}

async fn end_all(vmms: Vec<Vmm>) {
    for mut vmm in vmms {
        vmm.ask_to_end().await;
        drop(vmm.end().await);
    }
}
