//! The task that owns one sandbox from its preparation to its end. It does one
//! thing at a time, so nothing of a sandbox is ever shared or locked.

use std::sync::Arc;
use std::time::Duration;

use longship_framed::error::Failure;
use longship_proto::agent::v1::Sandbox;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::board::Board;
use crate::cgroup::Share;
use crate::machines::Machines;
use crate::request::{Device, Spec};
use crate::stages::Place;
use crate::state::{Event, State};
use crate::timeline::Timeline;
use crate::vmm::{Vmm, VmmError, VmmEvent, connect, sleep_until};

/// How long a guest may boot with whatever CPU time is idle, before it is held to its
/// own. A quarter of a CPU would make every boot four times as long.
const BOOT_BOOST: Duration = Duration::from_secs(10);

/// How long a guest that does nothing may keep others from starting.
const FIRST_ACT_PATIENCE: Duration = Duration::from_secs(1);

/// Where the answer to a command goes.
pub(crate) type Answer = oneshot::Sender<Result<Sandbox, Failure>>;

/// What a sandbox can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer once the machine is built.
    Prepare(Answer),
    /// Attach these devices and boot.
    Start(Vec<Device>, Answer),
    /// End and give everything back.
    Stop(oneshot::Sender<()>),
}

/// Why a sandbox's task has come to its end.
#[derive(Debug)]
pub(crate) enum Finished {
    /// It could not be prepared.
    Failed(Failure),
    /// It was stopped; who asked is to be told.
    Stopped(Option<oneshot::Sender<()>>),
}

/// One sandbox.
#[derive(Debug)]
pub(crate) struct SandboxTask {
    machines: Arc<Machines>,
    board: Arc<Board>,
    spec: Spec,
    state: State,
    shown: Sandbox,
    vmm: Option<Vmm>,
    /// When its CPU time is to be limited.
    limit_cpu_at: Option<Instant>,
    /// Its place among those that start, until its first act or this time.
    starting: Option<(Place, Instant)>,
    /// What it was started with.
    devices: Option<Vec<Device>>,
}

impl SandboxTask {
    pub(crate) fn new(machines: Arc<Machines>, board: Arc<Board>, spec: Spec) -> Self {
        let shown = Sandbox {
            id: spec.id.to_string(),
            generation: spec.generation,
            ..Sandbox::default()
        };
        Self {
            machines,
            board,
            spec,
            state: State::Preparing,
            shown,
            vmm: None,
            limit_cpu_at: None,
            starting: None,
            devices: None,
        }
    }

    /// Prepares it, then does as it is told until it is stopped.
    pub(crate) async fn run(mut self, commands: &mut mpsc::Receiver<Command>) -> Finished {
        let mut early = Vec::new();
        let stopped = tokio::select! {
            // What only the beginning and the end need is boxed: the task is there for as
            // long as the sandbox.
            prepared = Box::pin(self.prepare()) => match prepared {
                Ok(()) => None,
                Err(failure) => return Finished::Failed(failure),
            },
            // It may have to wait its turn; who stops it does not.
            stopped = stop_among(commands, &mut early) => Some(stopped),
        };
        if let Some(stopped) = stopped {
            let message = format!("sandbox {} was stopped while it was prepared", self.spec.id);
            for command in early {
                if let Command::Prepare(answer) = command {
                    drop(answer.send(Err(Failure::conflict(message.clone()))));
                }
            }
            Box::pin(self.stop()).await;
            return Finished::Stopped(stopped);
        }
        for command in early {
            self.obey(command).await;
        }
        loop {
            let give_place_at = self.starting.as_ref().map(|(_, until)| *until);
            let command = tokio::select! {
                command = commands.recv() => command,
                event = event(&mut self.vmm) => {
                    match event {
                        VmmEvent::Alive(alive_us) => self.alive(alive_us),
                        VmmEvent::Over => Box::pin(self.exited()).await,
                    }
                    continue;
                }
                () = sleep_until(give_place_at), if give_place_at.is_some() => {
                    self.starting = None;
                    continue;
                }
                () = sleep_until(self.limit_cpu_at), if self.limit_cpu_at.is_some() => {
                    self.limit_cpu();
                    continue;
                }
            };
            match command {
                Some(Command::Stop(answer)) => {
                    Box::pin(self.stop()).await;
                    return Finished::Stopped(Some(answer));
                }
                Some(command) => self.obey(command).await,
                None => {
                    Box::pin(self.stop()).await;
                    return Finished::Stopped(None);
                }
            }
        }
    }

    /// Does what leaves it in being.
    async fn obey(&mut self, command: Command) {
        match command {
            // Who asked may have gone; what was done stays done.
            Command::Prepare(answer) => drop(answer.send(Ok(self.shown.clone()))),
            Command::Start(devices, answer) => {
                drop(answer.send(Box::pin(self.start(devices)).await))
            }
            Command::Stop(_) => {}
        }
    }

    async fn prepare(&mut self) -> Result<(), Failure> {
        let mut timeline = Timeline::default();
        let share = Share::Sandbox(self.spec.cpu_millis);
        let machines = Arc::clone(&self.machines);
        let _busy = machines.busy();
        let got = machines.get(self.spec.shape, share, &mut timeline).await;
        match got {
            Ok(vmm) => {
                self.shown.pid = vmm.pid();
                self.shown.timeline = timeline.into_stages();
                self.vmm = Some(vmm);
                tracing::debug!(id = %self.spec.id, pid = self.shown.pid, "prepared");
                self.advance(Event::Built);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(id = %self.spec.id, "prepare: {error}");
                self.advance(Event::BuildFailed);
                Err(error.into())
            }
        }
    }

    async fn start(&mut self, devices: Vec<Device>) -> Result<Sandbox, Failure> {
        let id = &self.spec.id;
        match (self.state, &self.devices) {
            (State::Prepared, _) => {}
            (State::Running | State::Exited, Some(with)) if *with == devices => {
                return Ok(self.shown.clone());
            }
            (State::Running, _) => {
                return Err(Failure::conflict(format!(
                    "sandbox {id} runs with other devices"
                )));
            }
            _ => {
                let exit = self.shown.exit.as_ref();
                let why = exit.map_or("it has ended", |exit| exit.message.as_str());
                return Err(Failure::conflict(format!(
                    "sandbox {id} cannot be started: {why}"
                )));
            }
        }
        let machines = Arc::clone(&self.machines);
        let _busy = machines.busy();
        let mut timeline = Timeline::default();
        // Until a backend is connected to the machine, this can be tried again.
        let connected = timeline
            .measure("connect", connect(devices.clone()))
            .await?;
        let Some(vmm) = &mut self.vmm else {
            return Err(Failure::internal(format!("sandbox {id} has no VMM")));
        };
        self.devices = Some(devices);
        if let Some(next) = self.state.after(Event::Start) {
            self.state = next;
        }
        let begun = async {
            vmm.attach(connected, &mut timeline).await?;
            let place = machines.host().stages.guest.enter().await;
            vmm.boot(&mut timeline).await?;
            Ok::<_, VmmError>(place)
        };
        match begun.await {
            Ok(place) => {
                self.starting = Some((place, Instant::now() + FIRST_ACT_PATIENCE));
                self.shown.timeline = timeline.into_stages();
                tracing::debug!(id = %self.spec.id, "running");
                self.limit_cpu_at = Some(Instant::now() + BOOT_BOOST);
                self.advance(Event::Booted);
                Ok(self.shown.clone())
            }
            Err(error) => {
                tracing::warn!(id = %self.spec.id, "start: {error}");
                self.devices = None;
                let Some(vmm) = self.vmm.take() else {
                    return Err(error.into());
                };
                let (error, mut exit) = vmm.end_with(error).await;
                exit.message = error.to_string();
                self.show_exit(exit);
                Err(error.into())
            }
        }
    }

    fn limit_cpu(&mut self) {
        self.limit_cpu_at = None;
        if let Some(vmm) = &self.vmm
            && let Some(millis) = self.spec.cpu_millis
            && let Err(error) = vmm.limit_cpu(millis)
        {
            tracing::error!(id = %self.spec.id, "limit the CPU time: {error}");
        }
    }

    /// The guest did its first act.
    fn alive(&mut self, alive_us: i64) {
        self.starting = None;
        self.shown.alive_us = alive_us;
        self.board.show(&self.spec.id, self.shown.clone());
    }

    /// The VMM has ended without being asked to.
    async fn exited(&mut self) {
        self.starting = None;
        if let Some(vmm) = self.vmm.take() {
            let exit = vmm.end().await;
            tracing::debug!(id = %self.spec.id, by_guest = exit.by_guest, "exited: {}", exit.message);
            self.show_exit(exit);
        }
    }

    fn show_exit(&mut self, exit: longship_proto::agent::v1::SandboxExit) {
        self.shown.exit = Some(exit);
        self.shown.pid = 0;
        self.advance(Event::Ended);
    }

    async fn stop(&mut self) {
        if let Some(next) = self.state.after(Event::Stop) {
            self.state = next;
        }
        if let Some(mut vmm) = self.vmm.take() {
            vmm.ask_to_end().await;
            let exit = vmm.end().await;
            self.shown.exit = Some(exit);
        }
        self.shown.pid = 0;
        tracing::debug!(id = %self.spec.id, "gone");
        self.advance(Event::Released);
    }

    /// Goes to the next state and shows it.
    fn advance(&mut self, event: Event) {
        let Some(next) = self.state.after(event) else {
            tracing::error!(id = %self.spec.id, "{event:?} cannot happen in {:?}", self.state);
            return;
        };
        self.state = next;
        self.shown.state = next.shown().into();
        self.board.show(&self.spec.id, self.shown.clone());
    }
}

/// Waits for a call that stops the sandbox, or for nobody being able to; puts all other
/// commands aside. Cancel-safe.
async fn stop_among(
    commands: &mut mpsc::Receiver<Command>,
    aside: &mut Vec<Command>,
) -> Option<oneshot::Sender<()>> {
    loop {
        match commands.recv().await {
            Some(Command::Stop(answer)) => return Some(answer),
            Some(other) => aside.push(other),
            None => return None,
        }
    }
}

/// Waits for what a VMM that is there does by itself.
async fn event(vmm: &mut Option<Vmm>) -> VmmEvent {
    match vmm {
        Some(vmm) => vmm.event().await,
        None => std::future::pending().await,
    }
}
