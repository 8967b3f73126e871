//! Templates: a machine of each shape that is asked for, booted once until its guest
//! parked, and kept as sealed memory for its clones.

mod key;
mod making;
mod shelf;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_proto::agent::v1 as wire;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use key::Contents;

use crate::host::Host;
use crate::shape::Shape;
use shelf::{Shelf, State};

/// For a template that is being made; booting takes not much longer than that.
const WAIT_PATIENCE: Duration = Duration::from_secs(20);
/// More kinds of machines than a host offers flavors.
const TEMPLATES_MAX: usize = 64;

/// A machine that has parked.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) shape: Shape,
    /// Sealed. What its guest never touched, or was zero, is a hole.
    memory: File,
    /// Sealed.
    state: File,
    /// Of both, in bytes.
    pub(crate) resident_bytes: u64,
    pub(crate) made_in_us: i64,
    clones: Arc<AtomicU32>,
}

/// One clone of a template, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicU32>);

impl Template {
    /// Its state and memory for one clone: opened anew, so that no two clones share an
    /// offset.
    pub(crate) fn open(&self) -> io::Result<(File, File)> {
        let reopen = |file: &File| File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok((reopen(&self.state)?, reopen(&self.memory)?))
    }

    /// Counts one more clone.
    pub(crate) fn count(&self) -> Counted {
        self.clones.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(&self.clones))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All templates of the host. They are made when first asked for, and the least
/// recently used go when they take too much; clones keep what they need of them.
#[derive(Debug)]
pub(crate) struct Templates {
    host: Arc<Host>,
    shelf: Mutex<Shelf<Arc<Template>>>,
    /// Those under way, so that they end with the agent.
    making: Mutex<JoinSet<()>>,
    contents: tokio::sync::OnceCell<Contents>,
    /// What templates and warm clones may hold, in bytes.
    pub(crate) limit_bytes: u64,
}

impl Templates {
    pub(crate) fn new(host: Arc<Host>, limit_bytes: u64) -> Self {
        Self {
            host,
            shelf: Mutex::new(Shelf::new(TEMPLATES_MAX, limit_bytes)),
            making: Mutex::default(),
            contents: tokio::sync::OnceCell::new(),
            limit_bytes,
        }
    }

    /// The template of this shape, which is made first where there is none. `None`
    /// where that fails, is likely to fail again, or takes too long: machines of this
    /// shape boot by themselves then.
    pub(crate) async fn of(self: &Arc<Self>, shape: Shape) -> Option<Arc<Template>> {
        let look = self.shelf().look(shape, Instant::now());
        if let Some(done) = look.missing {
            self.make(shape, done);
        }
        let mut state = look.state;
        let settled = state.wait_for(|state| look.doubtful || !matches!(state, State::Making));
        // Two errors: it takes too long, and the agent ends.
        let settled = tokio::time::timeout(WAIT_PATIENCE, settled)
            .await
            .ok()?
            .ok()?;
        match &*settled {
            State::Ready(template) => Some(Arc::clone(template)),
            State::Making | State::Failed(_) => None,
        }
    }

    /// The template of this shape, where there is one at hand.
    pub(crate) fn ready(&self, shape: Shape) -> Option<Arc<Template>> {
        self.shelf().ready(shape)
    }

    /// A clone of it could not be made, so it is of no use: it is made anew after a
    /// while.
    pub(crate) fn give_up(&self, template: &Arc<Template>, message: String) {
        let shape = template.shape;
        tracing::warn!("the template of {shape} cannot be cloned: {message}");
        let mut shelf = self.shelf();
        if shelf
            .ready(shape)
            .is_some_and(|ready| Arc::ptr_eq(&ready, template))
        {
            shelf.fail(shape, message, Instant::now());
        }
    }

    /// What is held of the host's memory, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.shelf().held_bytes()
    }

    /// All of them as cards see them, without their warm clones.
    pub(crate) async fn list(&self) -> Vec<(Shape, wire::Template)> {
        let all = self.shelf().all();
        if all.is_empty() {
            return Vec::new();
        }
        let host = Arc::clone(&self.host);
        let contents = self
            .contents
            .get_or_init(|| async move { Contents::of(host).await });
        let contents = contents.await;
        let shown = |(shape, state): (Shape, State<Arc<Template>>)| {
            let mut shown = wire::Template {
                id: contents.id(shape),
                vcpus: shape.vcpus,
                memory_bytes: shape.memory_bytes,
                profile: shape.profile.to_wire().into(),
                state: state.shown().into(),
                ..wire::Template::default()
            };
            match state {
                State::Making => {}
                State::Failed(failed) => shown.message = failed.message,
                State::Ready(template) => {
                    shown.resident_bytes = template.resident_bytes;
                    shown.made_in_us = template.made_in_us;
                    shown.clones = template.clones.load(Ordering::Relaxed);
                }
            }
            (shape, shown)
        };
        all.into_iter().map(shown).collect()
    }

    /// Ends those under way and lets go of all.
    pub(crate) async fn close(&self) {
        let mut making =
            std::mem::take(&mut *self.making.lock().unwrap_or_else(PoisonError::into_inner));
        making.shutdown().await;
        self.shelf().clear();
    }

    fn make(self: &Arc<Self>, shape: Shape, done: watch::Sender<State<Arc<Template>>>) {
        let all = Arc::clone(self);
        let work = async move {
            tracing::info!("making the template of {shape}");
            let unfinished = Unfinished { all: &all, shape };
            let made = making::make(&all.host, shape).await;
            // From here on there is no other end.
            std::mem::forget(unfinished);
            match made {
                Ok(template) => {
                    tracing::info!(
                        "the template of {shape} is ready: {} KiB, made in {} ms",
                        template.resident_bytes >> 10,
                        template.made_in_us / 1000
                    );
                    let bytes = template.resident_bytes;
                    all.shelf().put(shape, Arc::new(template), bytes, &done);
                }
                Err(error) => all.failed(shape, error.to_string()),
            }
        };
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        while making.try_join_next().is_some() {}
        making.spawn(work);
    }

    fn failed(&self, shape: Shape, message: String) {
        tracing::warn!("the template of {shape} cannot be made: {message}");
        self.shelf().fail(shape, message, Instant::now());
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<Arc<Template>>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A template under way. Whatever ends its making, nobody waits for it for ever.
struct Unfinished<'a> {
    all: &'a Templates,
    shape: Shape,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let message = "its making was given up".to_owned();
        self.all.failed(self.shape, message);
    }
}
