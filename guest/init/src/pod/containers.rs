//! Containers in, containers out.

use std::time::{Duration, Instant};

use longship_framed::error::Failure;
use longship_framed::guest::{FromGuest, ProcessExited, from_guest};

use super::{Container, Kept, MOST_KEPT, MOST_PROCESSES, Outcome, Pod, Process};
use crate::console;
use crate::container::{Cgroup, Limits, RootPlan, WritableLayer, start};
use crate::events::Events;
use crate::spec::ContainerSpec;

/// What could not be finished is tried again after this.
pub(super) const FINISH_AGAIN: Duration = Duration::from_millis(10);

/// How long the card may leave a stream alone after its process has ended,
/// before what is left of it is given up.
const STALLED: Duration = Duration::from_secs(10);

impl Pod {
    /// Starts a container; its first process reports how that went.
    pub(super) fn start(
        &mut self,
        request: u64,
        spec: ContainerSpec,
        events: &mut Events,
    ) -> Result<Outcome, Failure> {
        let configuration = self.configuration.as_ref();
        let configuration =
            configuration.ok_or_else(|| Failure::conflict("the pod is not configured yet"))?;
        let name = spec.name;
        if self.processes.contains_key(&name) {
            return Err(Failure::conflict(format!("{name:?} runs already")));
        }
        self.check_room()?;
        let hostname = configuration.hostname.clone();
        let image = self.disks.image(&spec.image_serial)?;
        self.started += 1;
        let layer = WritableLayer::create(&name, self.started, &image)?;
        let limits = Limits {
            cpu_millis: spec.cpu_millis,
            memory_bytes: spec.memory_bytes,
        };
        let cgroup = Cgroup::create(&name, limits)?;
        let root = RootPlan {
            image: &image,
            layer: &layer,
            etc: &self.etc,
        };
        let spawned = start(&self.namespaces, &cgroup, &root, &spec.process, &hostname);
        let process = spawned.and_then(|s| Process::new(name.clone(), request, s, 0, events));
        let process = match process {
            Ok(process) => process,
            Err(failed) => {
                // The first failure is the one to tell.
                let _ = cgroup.kill_all();
                let _ = cgroup.remove();
                return Err(failed.into());
            }
        };
        self.kept.retain(|kept| kept.exited.process != name);
        let container = Container {
            cgroup,
            _layer: layer,
            hostname,
        };
        self.containers.insert(name.clone(), container);
        self.processes.insert(name, process);
        Ok(Outcome::Later)
    }

    /// # Errors
    /// Exhausted where there are as many processes as there may be.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        if self.processes.len() < MOST_PROCESSES {
            return Ok(());
        }
        let text = format!("{MOST_PROCESSES} processes have been started and run");
        Err(Failure::exhausted(text))
    }

    /// Finishes what can be finished of the processes that have ended.
    pub(super) fn finish_ended(&mut self, card_is_there: bool, now: Instant, events: &Events) {
        let ended = self.processes.iter().filter(|(_, p)| p.ended.is_some());
        let names: Vec<String> = ended.map(|(name, _)| name.clone()).collect();
        for name in names {
            if self.streams_are_finished(&name, card_is_there, now, events)
                && self.container_is_removed(&name)
            {
                self.tell_ending(&name, card_is_there);
            }
        }
    }

    fn streams_are_finished(
        &mut self,
        name: &str,
        card_is_there: bool,
        now: Instant,
        events: &Events,
    ) -> bool {
        let tokens = self.processes.get(name).map(|p| p.relays.clone());
        let mut finished = true;
        for token in tokens.unwrap_or_default() {
            let Some(relay) = self.relays.get_mut(&token) else {
                continue;
            };
            let idle = now.saturating_duration_since(relay.progress());
            if !relay.is_finished() && card_is_there && idle > STALLED {
                console::warning!("{name}: the card does not take the rest of a stream");
                relay.abandon(events);
            }
            finished &= relay.is_finished();
        }
        finished
    }

    /// Removes the container whose first process `name` was, if it was one.
    fn container_is_removed(&mut self, name: &str) -> bool {
        let Some(container) = self.containers.get(name) else {
            return true;
        };
        match container.cgroup.remove() {
            Ok(false) => return false,
            Ok(true) => {}
            // It will not get better, and the container is gone in any case.
            Err(failed) => console::warning!("{name}: {failed}"),
        }
        self.containers.remove(name);
        true
    }

    /// The last that is heard of a process: its exit, or why it never started.
    fn tell_ending(&mut self, name: &str, card_is_there: bool) {
        let Some(process) = self.processes.remove(name) else {
            return;
        };
        if let Some(request) = process.request {
            let failure = process.failure.unwrap_or_else(|| {
                Failure::internal(format!("{name:?} ended while it was being set up"))
            });
            return self.reply(request, Some(failure));
        }
        let Some(ended) = process.ended else {
            return;
        };
        let exited = ProcessExited {
            process: name.to_owned(),
            exit_code: ended.ending.exit_code(),
            signal: ended.ending.signal(),
            out_of_memory: ended.out_of_memory,
            started_us: process.started_us,
            finished_us: ended.finished_us,
        };
        let of_container = process.container == name;
        if of_container || !card_is_there {
            if self.kept.len() >= MOST_KEPT {
                self.kept.remove(0);
            }
            let exited = exited.clone();
            self.kept.push(Kept {
                exited,
                of_container,
            });
        }
        self.outbox.push(FromGuest {
            message: Some(from_guest::Message::Exited(exited)),
        });
    }
}
