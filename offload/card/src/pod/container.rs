//! One container of a running pod: started, its output kept, started again as the
//! restart policy says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longship_framed::guest::{ProcessExited, Start};
use longship_proto::card::v1::Source;
use longship_proto::control::v1::{ContainerState, ContainerStatus, PodStatus};
use longship_proto::{Class, Failure};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tracing::warn;

use super::lifecycle::SIGTERM;
use super::prepare::PreparedContainer;
use super::{Desired, PodAccess, PodFailure};
use crate::card::Card;
use crate::guest::{Guest, Running};
use crate::logs::Log;
use crate::plan::PodPlan;
use crate::status::{StatusCell, stage};
use longship_proto::now_us;

/// The first wait before a container is started again; it doubles each time.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait between two starts, as in Kubernetes.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran so long is healthy: the next wait is the first again.
const HEALTHY: Duration = Duration::from_secs(600);
/// First output after so long does not belong to the start, microseconds.
const STARTUP_US: i64 = 60_000_000;
/// Buffer of a stream with little and with much to read, bytes.
const QUIET_BYTES: usize = 512;
const BUSY_BYTES: usize = 16 << 10;
/// How long output may take to arrive after its process has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// One container and all it needs to run.
pub(crate) struct Supervised {
    /// The card.
    pub(crate) card: Arc<Card>,
    /// The pod.
    pub(crate) plan: Arc<PodPlan>,
    /// Where in the pod's spec it stands.
    pub(crate) index: usize,
    /// Its image and process.
    pub(crate) prepared: PreparedContainer,
    /// The pod's guest.
    pub(crate) guest: Guest,
    /// The pod's status.
    pub(crate) status: StatusCell,
    /// For exec.
    pub(crate) access: Arc<PodAccess>,
    /// Whether the pod shall go: then nothing is started again.
    pub(crate) desired: watch::Receiver<Desired>,
}

impl Supervised {
    fn name(&self) -> &str {
        self.plan
            .containers
            .get(self.index)
            .map_or("", |c| c.name.as_str())
    }

    fn update(&self, change: impl FnOnce(&mut ContainerStatus)) {
        self.status.update(self.of_container(change));
    }

    fn update_soon(&self, change: impl FnOnce(&mut ContainerStatus)) {
        self.status.update_soon(self.of_container(change));
    }

    fn of_container(
        &self,
        change: impl FnOnce(&mut ContainerStatus),
    ) -> impl FnOnce(&mut PodStatus) {
        move |status| {
            if let Some(container) = status.containers.get_mut(self.index) {
                change(container);
            }
        }
    }

    /// Starts the container for the first time.
    ///
    /// # Errors
    /// What the guest refused: no such program, no such user and the like.
    pub(crate) async fn first_start(&self) -> Result<Running, PodFailure> {
        let start = self.start();
        let running = self.status.stage("container", start).await;
        running.map_err(|mut failure| {
            if let Some(rest) = failure.field.strip_prefix("process.") {
                failure.field = format!("spec.containers[{}].{rest}", self.index);
            }
            PodFailure::new("StartFailed", failure)
        })
    }

    async fn start(&self) -> Result<Running, Failure> {
        let process = self.prepared.process.clone();
        let resources = self
            .plan
            .containers
            .get(self.index)
            .and_then(|c| c.resources);
        let resources = resources.unwrap_or_default();
        let running = self
            .guest
            .start(Start {
                container: self.name().to_owned(),
                image_serial: self.prepared.image_serial.clone(),
                process: Some(process.clone()),
                cpu_millis: resources.cpu_millis,
                memory_bytes: resources.memory_bytes,
            })
            .await?;
        self.access.started(self.name(), process);
        self.update_soon(|c| {
            c.state = ContainerState::Running.into();
            c.image_digest.clone_from(&self.prepared.image.digest);
            c.started_us = now_us();
            c.finished_us = 0;
            c.reason.clear();
        });
        Ok(running)
    }

    /// Keeps the container's output and starts it again as the policy says; its
    /// last exit code when it is over.
    ///
    /// # Errors
    /// Where the guest is gone.
    pub(crate) async fn supervise(mut self, mut running: Running) -> Result<i32, Failure> {
        let log = self.card.logs.log(&self.plan.uid, self.name());
        let log = log.map_err(|e| Failure::internal(format!("open the container's log: {e}")))?;
        let mut backoff = BACKOFF_MIN;
        loop {
            let started = Instant::now();
            let exited = self.until_exit(&log, running).await?;
            self.access.ended(self.name());
            let wanted = *self.desired.borrow() == Desired::Run;
            let again = wanted && self.plan.restarts(exited.exit_code);
            self.update(|c| ended(c, &exited, again));
            if !again {
                log.close();
                return Ok(exited.exit_code);
            }
            if started.elapsed() > HEALTHY {
                backoff = BACKOFF_MIN;
            }
            running = loop {
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    _ = self.desired.wait_for(|d| *d != Desired::Run) => {
                        log.close();
                        return Ok(exited.exit_code);
                    }
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
                match self.start().await {
                    Ok(running) => break running,
                    Err(failure) if failure.class() == Class::Unavailable => return Err(failure),
                    // This container waits on; the others are none the worse.
                    Err(failure) => {
                        warn!(container = self.name(), %failure, "cannot be started again");
                        self.update(|c| "StartFailed".clone_into(&mut c.reason));
                    }
                }
            };
            self.update(|c| c.restarts += 1);
            if *self.desired.borrow() != Desired::Run {
                // The pod's SIGTERM came before there was anything to receive it.
                let _ = self.guest.signal(self.name(), SIGTERM, false).await;
            }
        }
    }

    async fn until_exit(&self, log: &Arc<Log>, running: Running) -> Result<ProcessExited, Failure> {
        let began = now_us();
        let first = First::new(log.is_empty().then(|| (self.status.clone(), began)));
        let stdout = keep(log.clone(), Source::Stdout, running.stdout, &first);
        let stderr = async {
            if let Some(stderr) = running.stderr {
                keep(log.clone(), Source::Stderr, stderr, &first).await;
            }
        };
        let output = async { tokio::join!(stdout, stderr) };
        tokio::pin!(output);
        let mut exit = running.exited;
        let exited = tokio::select! {
            _ = &mut output => exit.await,
            exited = &mut exit => {
                if tokio::time::timeout(DRAIN, output).await.is_err() {
                    warn!(container = self.name(), "output goes on after the container's end");
                }
                exited
            }
        };
        exited.map_err(|_| Failure::unavailable("the guest is gone"))
    }
}

fn ended(container: &mut ContainerStatus, exited: &ProcessExited, again: bool) {
    let state = if again {
        ContainerState::Waiting
    } else {
        ContainerState::Terminated
    };
    container.state = state.into();
    container.exit_code = exited.exit_code;
    container.finished_us = now_us();
    container.reason = match (exited.out_of_memory, exited.exit_code) {
        (true, _) => "OutOfMemory",
        (false, 0) => "Completed",
        (false, _) => "Error",
    }
    .to_owned();
}

/// Whoever sees a container's first output says when that was.
struct First(Mutex<Option<(StatusCell, i64)>>);

impl First {
    /// Nothing was seen yet of what began at that time; `None`: of what is of no interest.
    fn new(of: Option<(StatusCell, i64)>) -> Self {
        Self(Mutex::new(of))
    }

    fn seen(&self) {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let now = now_us();
        // What comes later is no part of the start.
        if let Some((status, began)) = first.filter(|(_, began)| now - began < STARTUP_US) {
            status.add_stages([stage("card", "output", began, now)]);
        }
    }
}

/// Copies a stream to the log until it ends. An idle container costs little memory:
/// the buffer is large only while there is much to read.
async fn keep(log: Arc<Log>, source: Source, mut stream: impl AsyncRead + Unpin, first: &First) {
    let mut buffer = vec![0; QUIET_BYTES];
    loop {
        // A reset means the same here as an end: no more output.
        let n = stream.read(&mut buffer).await.unwrap_or(0);
        let Some(data) = buffer.get(..n).filter(|d| !d.is_empty()) else {
            return;
        };
        if let Err(error) = log.append(source, data) {
            warn!(%error, "output of a container is lost");
        }
        first.seen();
        if n == buffer.len() && n < BUSY_BYTES {
            buffer = vec![0; BUSY_BYTES];
        } else if n < QUIET_BYTES && buffer.len() > QUIET_BYTES {
            buffer = vec![0; QUIET_BYTES];
        }
    }
}
