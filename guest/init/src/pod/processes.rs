//! Processes in containers: from the fork to the ending.

use std::os::fd::{AsFd, OwnedFd};

use longship_framed::error::Failure;
use longship_framed::guest::{StreamHeader, StreamKind};
use nix::sys::epoll::EpollFlags;
use nix::unistd::Pid;

use super::{Ended, Outcome, Pod, Process};
use crate::container::{Spawned, exec};
use crate::events::Events;
use crate::failed::{Doing, Failed};
use crate::process::{Ending, Report, receive};
use crate::relay::{Ends, Relay};
use crate::spec::ProcessSpec;
use crate::{clock, console};

impl Process {
    /// A process that has been forked and will report.
    pub(super) fn new(
        container: String,
        request: u64,
        spawned: Spawned,
        oom_kills_before: u64,
        events: &mut Events,
    ) -> Result<Self, Failed> {
        let token = events.token();
        events.arm(spawned.report.as_fd(), token, EpollFlags::EPOLLIN)?;
        Ok(Self {
            container,
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            request: Some(request),
            report: Some((token, spawned.report)),
            ready: false,
            failure: None,
            ends: spawned.streams,
            terminal: None,
            relays: Vec::new(),
            oom_kills_before,
            started_us: clock::now_us(),
            ended: None,
        })
    }

    /// The two sides of each stream that this process has.
    fn take_streams(&mut self) -> Result<Vec<(StreamKind, Ends)>, Failed> {
        if let Some(master) = self.terminal.take() {
            let sink = master.try_clone().doing(|| "duplicate a terminal")?;
            let ends = Ends {
                source: Some(master),
                sink: Some(sink),
            };
            return Ok(vec![(StreamKind::Tty, ends)]);
        }
        let output = |fd: OwnedFd| Ends {
            source: Some(fd),
            sink: None,
        };
        let input = |fd: OwnedFd| Ends {
            source: None,
            sink: Some(fd),
        };
        let streams = [
            (StreamKind::Stdin, self.ends.stdin.take().map(input)),
            (StreamKind::Stdout, self.ends.stdout.take().map(output)),
            (StreamKind::Stderr, self.ends.stderr.take().map(output)),
        ];
        let present = streams.into_iter().filter_map(|(kind, e)| Some((kind, e?)));
        Ok(present.collect())
    }
}

impl Pod {
    /// Starts one more process in a container; it reports how that went.
    pub(super) fn exec(
        &mut self,
        request: u64,
        container_name: &str,
        name: String,
        spec: &ProcessSpec,
        events: &mut Events,
    ) -> Result<Outcome, Failure> {
        let missing = || {
            let mut failure = Failure::not_found(format!("no container {container_name:?} runs"));
            failure.field = "container".to_owned();
            failure
        };
        let container = self.containers.get(container_name).ok_or_else(missing)?;
        let first = self.processes.get(container_name).ok_or_else(missing)?;
        if first.report.is_some() || first.ended.is_some() {
            return Err(missing());
        }
        if self.processes.contains_key(&name) {
            return Err(Failure::conflict(format!("{name:?} runs already")));
        }
        self.check_room()?;
        let oom_kills = container.cgroup.oom_kills();
        let (cgroup, pidfd) = (&container.cgroup, first.pidfd.as_fd());
        let spawned = exec(&self.namespaces, cgroup, pidfd, spec, &container.hostname)
            // The container is ending, which has not been heard of yet.
            .map_err(|failed| match failed.errno() {
                Some(libc::ENOMEM | libc::ESRCH) => missing(),
                _ => failed.into(),
            })?;
        let container = container_name.to_owned();
        let process = Process::new(container, request, spawned, oom_kills, events)?;
        self.processes.insert(name, process);
        Ok(Outcome::Later)
    }

    /// Hears what a process that was forked has to report.
    pub(super) fn hear(&mut self, name: &str, events: &mut Events) {
        while let Some(process) = self.processes.get_mut(name) {
            let Some((token, socket)) = &process.report else {
                return;
            };
            match receive(socket) {
                Report::Nothing => {
                    if let Err(failed) = events.arm(socket.as_fd(), *token, EpollFlags::EPOLLIN) {
                        console::error!("{name}: {failed}");
                    }
                    return;
                }
                Report::Ready(terminal) => {
                    process.ready = true;
                    process.terminal = terminal;
                }
                Report::Failed(failure) => process.failure = Some(failure),
                Report::Closed => {
                    events.forget(socket);
                    process.report = None;
                    if process.ready && process.failure.is_none() {
                        self.program_runs(name, events);
                    }
                    // Else it ends now, and that is when all is undone.
                    return;
                }
            }
        }
    }

    /// The program has been started: its streams are, too.
    fn program_runs(&mut self, name: &str, events: &mut Events) {
        let Some(process) = self.processes.get_mut(name) else {
            return;
        };
        process.started_us = clock::now_us();
        let request = process.request.take();
        let lasting = process.container == name;
        match process.take_streams() {
            Ok(streams) => {
                for (kind, ends) in streams {
                    let token = events.token();
                    let header = StreamHeader {
                        process: name.to_owned(),
                        kind: kind.into(),
                    };
                    let mut relay = Relay::new(token, header, ends, lasting);
                    relay.step(EpollFlags::empty(), events);
                    process.relays.push(token);
                    self.relays.insert(token, relay);
                }
            }
            Err(failed) => console::error!("{name}: {failed}"),
        }
        if let Some(request) = request {
            self.reply(request, None);
        }
    }

    /// A process has ended. Most are strangers: a container's own children that
    /// outlived their parents do not come here, but init's background work does.
    pub(crate) fn ended(&mut self, pid: Pid, ending: Ending, events: &mut Events) {
        let of = |p: &Process| p.pid == pid && p.ended.is_none();
        let Some(name) = self.processes.iter().find(|(_, p)| of(p)) else {
            return;
        };
        let name = name.0.clone();
        // What it said last comes before its end.
        self.hear(&name, events);
        let Some(process) = self.processes.get_mut(&name) else {
            return;
        };
        let container = self.containers.get(&process.container);
        let kills = container.map_or(0, |container| container.cgroup.oom_kills());
        let killed = ending == Ending::Killed(libc::SIGKILL);
        process.ended = Some(Ended {
            ending,
            out_of_memory: killed && kills > process.oom_kills_before,
            finished_us: clock::now_us(),
        });
        for token in &process.relays {
            if let Some(relay) = self.relays.get_mut(token) {
                relay.drain(events);
                relay.step(EpollFlags::empty(), events);
            }
        }
        // With the first process of a pid namespace all others have ended
        // (pid_namespaces(7)), unless one was just on its way in.
        if process.container == name
            && let Some(container) = container
            && let Err(failed) = container.cgroup.kill_all()
        {
            console::warning!("{name}: {failed}");
        }
    }
}
