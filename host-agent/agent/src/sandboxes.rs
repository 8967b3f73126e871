//! Which call reaches which sandbox: idempotence, fencing and capacity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_framed::error::Failure;
use longship_proto::agent::v1::{HostUsage, Sandbox, SandboxState, SandboxUsage};
use tokio::sync::{mpsc, oneshot};

use crate::board::Board;
use crate::generations::Generations;
use crate::host::Host;
use crate::machines::Machines;
use crate::request::{Device, SandboxId, Spec};
use crate::sandbox::{Command, Finished, SandboxTask};
use crate::usage::{self, Subject};

/// Commands that may wait for a sandbox; calls beyond wait to be taken in.
const WAITING: usize = 8;
/// For all sandboxes to end when the agent does.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// All sandboxes of the host.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    host: Arc<Host>,
    machines: Arc<Machines>,
    board: Arc<Board>,
    registry: Arc<Mutex<Registry>>,
    /// Counting walks all page tables: one at a time.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Registry {
    live: HashMap<SandboxId, Entry>,
    generations: Generations,
    /// The agent ends: nothing new is taken in.
    closed: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    spec: Spec,
    commands: mpsc::Sender<Command>,
}

/// What is to be done for a Prepare.
enum Admission {
    /// It is there, or on its way: its task answers.
    Ask(Entry),
    /// An older generation of it has ended and has to be cleared away first.
    Replace(Entry),
}

impl Sandboxes {
    /// Needs a tokio runtime.
    pub(crate) fn new(host: Host) -> Self {
        let host = Arc::new(host);
        Self {
            machines: Machines::new(Arc::clone(&host)),
            host,
            board: Arc::new(Board::new()),
            registry: Arc::default(),
            counting: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn machines(&self) -> &Machines {
        &self.machines
    }

    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// Prepares a sandbox; one that is there already with this spec is shown.
    ///
    /// # Errors
    /// `StaleGeneration`, `Conflict` where another spec or an older generation that
    /// has not ended has the id, `Exhausted`, and what preparing meets.
    pub(crate) async fn prepare(&self, spec: Spec) -> Result<Sandbox, Failure> {
        loop {
            match self.admit(&spec)? {
                Admission::Replace(entry) => ask_to_stop(&entry).await,
                Admission::Ask(entry) => {
                    let (answer, answered) = oneshot::channel();
                    if entry.commands.send(Command::Prepare(answer)).await.is_ok()
                        && let Ok(result) = answered.await
                    {
                        return result;
                    }
                    // It ended in between: look again.
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Starts a sandbox.
    ///
    /// # Errors
    /// `NotFound`, `StaleGeneration`, `Conflict`, and what starting meets.
    pub(crate) async fn start(
        &self,
        id: &SandboxId,
        generation: u64,
        devices: Vec<Device>,
    ) -> Result<Sandbox, Failure> {
        let unknown = || Failure::not_found(format!("there is no sandbox {id}"));
        let entry = {
            let mut registry = self.registry();
            registry.generations.admit(id, generation)?;
            registry.live.get(id).cloned().ok_or_else(unknown)?
        };
        if entry.spec.generation != generation {
            return Err(Failure::conflict(format!(
                "generation {generation} of sandbox {id} is not prepared, {} is",
                entry.spec.generation
            )));
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Start(devices, answer);
        entry.commands.send(command).await.map_err(|_| unknown())?;
        answered.await.map_err(|_| unknown())?
    }

    /// Stops a sandbox; one that is not there is fine.
    ///
    /// # Errors
    /// `StaleGeneration`.
    pub(crate) async fn stop(&self, id: &SandboxId, generation: u64) -> Result<(), Failure> {
        let entry = {
            let mut registry = self.registry();
            registry.generations.admit(id, generation)?;
            registry.live.get(id).cloned()
        };
        if let Some(entry) = entry {
            ask_to_stop(&entry).await;
        }
        Ok(())
    }

    /// What all of them cost the host now.
    ///
    /// # Errors
    /// `Internal` where the agent is ending.
    pub(crate) async fn usage(&self) -> Result<HostUsage, Failure> {
        let _one = self.counting.lock().await;
        let subjects = self.subjects();
        let host = Arc::clone(&self.host);
        let counted = tokio::task::spawn_blocking(move || {
            let cgroups = host.cgroups.path();
            let each = subjects
                .iter()
                .filter_map(|subject| usage::of_sandbox(subject, cgroups));
            let sandboxes: Vec<SandboxUsage> = each.collect();
            (sandboxes, usage::of_agent(), longship_probe::memory())
        });
        let (sandboxes, agent_bytes, memory) = counted
            .await
            .map_err(|error| Failure::internal(format!("count the usage: {error}")))?;
        Ok(HostUsage {
            sandboxes,
            templates: self.machines.list().await,
            agent_bytes,
            available_bytes: memory.map_or(0, |memory| memory.available),
            total_bytes: memory.map_or(0, |memory| memory.total),
            warm_bytes: self.machines.warm_bytes(),
        })
    }

    /// Those that have a process.
    fn subjects(&self) -> Vec<Subject> {
        let shown = self.board.all();
        let registry = self.registry();
        let subject = |sandbox: Sandbox| {
            let id = SandboxId::parse(&sandbox.id).ok()?;
            let shape = registry.live.get(&id)?.spec.shape;
            (sandbox.pid != 0).then_some(Subject {
                id: sandbox.id,
                pid: sandbox.pid,
                shape,
            })
        };
        shown.into_iter().filter_map(subject).collect()
    }

    /// Stops all of them, at the agent's end.
    pub(crate) async fn stop_all(&self) {
        let entries: Vec<Entry> = {
            let mut registry = self.registry();
            registry.closed = true;
            registry.live.values().cloned().collect()
        };
        let stops: Vec<_> = entries
            .into_iter()
            .map(|entry| tokio::spawn(async move { ask_to_stop(&entry).await }))
            .collect();
        let all = async {
            for stop in stops {
                let _ = stop.await;
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            tracing::error!("not all sandboxes ended in time");
        }
        self.machines.close().await;
        self.host.cgroups.remove_if_empty();
    }

    fn admit(&self, spec: &Spec) -> Result<Admission, Failure> {
        let mut registry = self.registry();
        if registry.closed {
            return Err(Failure::unavailable("the agent is ending"));
        }
        registry.generations.admit(&spec.id, spec.generation)?;
        match registry.live.get(&spec.id) {
            Some(entry) if entry.spec == *spec => Ok(Admission::Ask(entry.clone())),
            Some(entry) if entry.spec.generation == spec.generation => Err(Failure::conflict(
                format!("sandbox {} is prepared already, with another spec", spec.id),
            )),
            Some(entry) => match self.board.state(&spec.id) {
                Some(SandboxState::Exited) => Ok(Admission::Replace(entry.clone())),
                _ => Err(Failure::conflict(format!(
                    "generation {} of sandbox {} has not been stopped",
                    entry.spec.generation, spec.id
                ))),
            },
            None => {
                registry.make_room(spec, self.host.memory_bytes)?;
                Ok(Admission::Ask(self.spawn(&mut registry, spec)))
            }
        }
    }

    /// Starts the sandbox's task, which takes it out of the registry at its end.
    fn spawn(&self, registry: &mut Registry, spec: &Spec) -> Entry {
        let (sender, mut commands) = mpsc::channel(WAITING);
        let entry = Entry {
            spec: spec.clone(),
            commands: sender,
        };
        registry.live.insert(spec.id.clone(), entry.clone());
        let task = SandboxTask::new(
            Arc::clone(&self.machines),
            Arc::clone(&self.board),
            spec.clone(),
        );
        let (id, all) = (spec.id.clone(), Arc::clone(&self.registry));
        tokio::spawn(async move {
            let finished = task.run(&mut commands).await;
            // First out of the registry, then answers: whoever has one finds room.
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .live
                .remove(&id);
            commands.close();
            let failure = match finished {
                Finished::Failed(failure) => Some(failure),
                Finished::Stopped(answer) => {
                    answer.map(|answer| answer.send(()));
                    None
                }
            };
            while let Some(command) = commands.recv().await {
                match (command, &failure) {
                    (Command::Stop(answer), _) => drop(answer.send(())),
                    (Command::Prepare(answer), Some(failure)) => {
                        drop(answer.send(Err(failure.clone())));
                    }
                    // Dropped: the caller looks again.
                    (Command::Prepare(_) | Command::Start(..), _) => {}
                }
            }
        });
        entry
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The scheduler counts too; this is the last line.
    fn make_room(&self, spec: &Spec, limit: u64) -> Result<(), Failure> {
        let taken = self.live.values().fold(0_u64, |sum, entry| {
            sum.saturating_add(entry.spec.shape.memory_bytes)
        });
        let free = limit.saturating_sub(taken);
        let wanted = spec.shape.memory_bytes;
        if wanted > free {
            let mib = |bytes: u64| bytes >> 20;
            return Err(Failure::exhausted(format!(
                "sandbox {} needs {} MiB of memory; {} of {} MiB are free",
                spec.id,
                mib(wanted),
                mib(free),
                mib(limit)
            )));
        }
        Ok(())
    }
}

async fn ask_to_stop(entry: &Entry) {
    let (answer, answered) = oneshot::channel();
    if entry.commands.send(Command::Stop(answer)).await.is_ok() {
        // An error means that it has ended already.
        let _ = answered.await;
    }
}

#[cfg(test)]
mod tests {
    use longship_framed::error::Class;
    use longship_proto::agent::v1::PrepareSandboxRequest;

    use super::*;

    #[test]
    fn memory_is_given_out_once() {
        let spec = |id: &str, mib: u64| {
            Spec::parse(&PrepareSandboxRequest {
                id: id.into(),
                generation: 1,
                vcpus: 1,
                memory_bytes: mib << 20,
                cpu_millis: 0,
                profile: 0,
            })
            .unwrap()
        };
        let limit = 256 << 20;
        let mut registry = Registry::default();
        registry.make_room(&spec("a", 256), limit).unwrap();
        registry.live.insert(
            SandboxId::parse("a").unwrap(),
            Entry {
                spec: spec("a", 128),
                commands: mpsc::channel(1).0,
            },
        );
        registry.make_room(&spec("b", 128), limit).unwrap();
        let refused = registry.make_room(&spec("b", 130), limit).unwrap_err();
        assert_eq!(refused.class(), Class::Exhausted);
        assert!(
            refused.message.contains("128 of 256 MiB are free"),
            "{refused}"
        );
    }
}
