//! The pod: what has been configured, which containers and processes there are,
//! and what is done when the card asks or something happens.

mod containers;
mod processes;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use longship_framed::error::Failure;
use longship_framed::guest::request::Operation;
use longship_framed::guest::{
    FromGuest, ProcessExited, Reply, Request, Resize, Signal, from_guest,
};
use nix::mount::{MntFlags, umount2};
use nix::unistd::Pid;

use crate::container::{Cgroup, Namespaces, WritableLayer};
use crate::disks::Disks;
use crate::entropy::Generator;
use crate::events::{Event, Events, Token};
use crate::failed::Failed;
use crate::origin::Origin;
use crate::process::{Ending, InitEnds};
use crate::relay::Relay;
use crate::spec::{Configuration, ContainerSpec, ProcessSpec, WindowSize, process_id, signal};
use crate::{clock, console, disks, network, power};

/// Most processes that the card may have started at one time.
const MOST_PROCESSES: usize = 512;
/// Most endings that are kept for a card that is away.
const MOST_KEPT: usize = 512;
/// How long the ending of all processes may take before the power goes off.
const POWER_OFF_GRACE: Duration = Duration::from_secs(3);

/// What a request has come to.
enum Outcome {
    Done,
    /// The reply follows when a process has reported.
    Later,
}

/// A container that runs, or is on its way in or out.
#[derive(Debug)]
struct Container {
    cgroup: Cgroup,
    /// Held for its end.
    _layer: WritableLayer,
    hostname: String,
}

/// A process that the card has asked for.
#[derive(Debug)]
struct Process {
    container: String,
    pid: Pid,
    pidfd: std::os::fd::OwnedFd,
    /// The request that waits for an answer.
    request: Option<u64>,
    /// Until the program runs.
    report: Option<(Token, UnixStream)>,
    /// All was set up, which is the last that was heard before the program.
    ready: bool,
    failure: Option<Failure>,
    /// Until the program runs; then the relays have them.
    ends: InitEnds,
    terminal: Option<std::os::fd::OwnedFd>,
    relays: Vec<Token>,
    oom_kills_before: u64,
    started_us: i64,
    ended: Option<Ended>,
}

/// How and when a process has ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    ending: Ending,
    out_of_memory: bool,
    finished_us: i64,
}

/// An ending that the card may have missed.
#[derive(Debug)]
struct Kept {
    exited: ProcessExited,
    /// It is the pod's state, told until the container is started again; an
    /// exec's is told once.
    of_container: bool,
}

/// Everything that init knows.
#[derive(Debug)]
pub(crate) struct Pod {
    namespaces: Namespaces,
    /// The clock has been set, and better than a message could.
    has_time: bool,
    configuration: Option<Configuration>,
    etc: Vec<(&'static str, String)>,
    disks: Disks,
    containers: BTreeMap<String, Container>,
    /// By their names; a container's first process has its container's.
    processes: BTreeMap<String, Process>,
    relays: BTreeMap<Token, Relay>,
    /// Containers started so far.
    started: u64,
    /// Endings that a card which comes (back) is told.
    kept: Vec<Kept>,
    /// For the card.
    outbox: Vec<FromGuest>,
    power_off: Option<Instant>,
}

impl Pod {
    /// Nothing is configured yet.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new() -> Result<Self, Failed> {
        Ok(Self {
            namespaces: Namespaces::of_init()?,
            has_time: false,
            configuration: None,
            etc: Vec::new(),
            disks: Disks::default(),
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            relays: BTreeMap::new(),
            started: 0,
            kept: Vec::new(),
            outbox: Vec::new(),
            power_off: None,
        })
    }

    /// Its life begins on a machine of this origin.
    pub(crate) fn began(&mut self, origin: &Origin) {
        self.has_time = origin.has_time;
    }

    /// What there is to tell the card since the last call.
    pub(crate) fn take_outbox(&mut self) -> Vec<FromGuest> {
        std::mem::take(&mut self.outbox)
    }

    /// A card has come: it is told what it may have missed.
    pub(crate) fn tell_kept(&mut self) {
        let exited = |kept: &Kept| FromGuest {
            message: Some(from_guest::Message::Exited(kept.exited.clone())),
        };
        // Before anything newer.
        self.outbox.splice(0..0, self.kept.iter().map(exited));
        self.kept.retain(|kept| kept.of_container);
    }

    /// Serves one request.
    pub(crate) fn handle(&mut self, request: Request, events: &mut Events) {
        let id = request.id;
        let outcome = match request.operation {
            None => Err(Failure::invalid("operation", "is missing")),
            Some(_) if self.power_off.is_some() => {
                Err(Failure::conflict("the pod is being powered off"))
            }
            Some(Operation::Configure(asked)) => asked
                .try_into()
                .and_then(|configuration| self.configure(configuration)),
            Some(Operation::Start(asked)) => {
                ContainerSpec::try_from(asked).and_then(|spec| self.start(id, spec, events))
            }
            Some(Operation::Exec(asked)) => process_id("process", &asked.process)
                .and_then(|name| Ok((name, ProcessSpec::checked("spec", asked.spec)?)))
                .and_then(|(name, spec)| self.exec(id, &asked.container, name, &spec, events)),
            Some(Operation::Signal(asked)) => self.signal(&asked),
            Some(Operation::Resize(asked)) => self.resize(&asked),
            Some(Operation::PowerOff(_)) => {
                self.begin_power_off();
                return;
            }
        };
        match outcome {
            Ok(Outcome::Done) => self.reply(id, None),
            Ok(Outcome::Later) => {}
            Err(failure) => self.reply(id, Some(failure)),
        }
    }

    /// Something that this pod has armed has happened.
    pub(crate) fn event(&mut self, event: Event, events: &mut Events) {
        if let Some(relay) = self.relays.get_mut(&event.token) {
            relay.step(event.flags, events);
            return;
        }
        let token = Some(event.token);
        let of = |p: &Process| p.report.as_ref().map(|(token, _)| *token);
        let name = self.processes.iter().find(|(_, p)| of(p) == token);
        if let Some(name) = name.map(|(name, _)| name.clone()) {
            self.hear(&name, events);
        }
    }

    /// What is due, and what has become possible. `card_is_there` says whether
    /// streams can make progress.
    pub(crate) fn tick(&mut self, card_is_there: bool, events: &Events) {
        let now = Instant::now();
        for relay in self.relays.values_mut() {
            if relay.deadline().is_some_and(|deadline| deadline <= now) {
                relay.step(nix::sys::epoll::EpollFlags::empty(), events);
            }
        }
        self.finish_ended(card_is_there, now, events);
        self.relays.retain(|_, relay| !relay.is_gone());
    }

    /// When [`Self::tick`] is to be called without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let relays = self.relays.values().filter_map(Relay::deadline);
        let finishing = self
            .processes
            .values()
            .any(|process| process.ended.is_some());
        let soon = finishing.then(|| Instant::now() + containers::FINISH_AGAIN);
        relays.chain(soon).chain(self.power_off).min()
    }

    /// Whether the power may go off now. `told` says whether the card has been
    /// sent all that there was to tell.
    pub(crate) fn is_over(&self, told: bool) -> bool {
        let done = told && self.processes.is_empty();
        self.power_off
            .is_some_and(|deadline| done || deadline <= Instant::now())
    }

    /// Detaches the scratch disk and ends the machine.
    pub(crate) fn power_off(&self) -> ! {
        // Processes that would not end may still use it; it is synced in any case.
        let _ = umount2("/run/longship/scratch", MntFlags::empty());
        // What a pod's density depends on is worth a line.
        let memory = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = memory
            .lines()
            .filter(|line| line.starts_with("Rss") || line.starts_with("VmHWM"));
        let resident: Vec<&str> = resident.flat_map(str::split_whitespace).collect();
        console::notice!("power off; init had {}", resident.join(" "));
        power::off()
    }

    fn begin_power_off(&mut self) {
        self.power_off = Some(Instant::now() + POWER_OFF_GRACE);
        for (name, container) in &self.containers {
            if let Err(failed) = container.cgroup.kill_all() {
                console::warning!("{name}: {failed}");
            }
        }
    }

    /// Sets the pod up. What the card has lost track of may be repeated.
    fn configure(&mut self, asked: Configuration) -> Result<Outcome, Failure> {
        if let Some(present) = &self.configuration {
            return if present.same_pod(&asked) {
                Ok(Outcome::Done)
            } else {
                Err(Failure::conflict("the pod is configured otherwise already"))
            };
        }
        let found = network::find(&asked.interfaces)?;
        disks::mount_scratch(asked.scratch_serial.as_deref())?;
        if !self.has_time {
            clock::set(asked.time)?;
        }
        Generator::open()?.add(asked.entropy)?;
        nix::unistd::sethostname(&asked.hostname)
            .map_err(|error| Failed::new("set the host name", error))?;
        network::configure(&found)?;
        self.etc = network::etc_files(&asked);
        // Random numbers that have been used are nobody's to find.
        let entropy = [0; 32];
        self.configuration = Some(Configuration { entropy, ..asked });
        Ok(Outcome::Done)
    }

    fn signal(&self, asked: &Signal) -> Result<Outcome, Failure> {
        let number = signal(asked.signal)?;
        let nothing = || Failure::not_found(format!("no process {:?} runs", asked.process));
        if asked.all {
            let container = self.containers.get(&asked.process).ok_or_else(nothing)?;
            container.cgroup.signal_all(number)?;
            return Ok(Outcome::Done);
        }
        let process = self.processes.get(&asked.process).ok_or_else(nothing)?;
        if process.ended.is_some() {
            return Err(nothing());
        }
        crate::container::send_signal(process.pid, number)?;
        Ok(Outcome::Done)
    }

    fn resize(&self, asked: &Resize) -> Result<Outcome, Failure> {
        let window = WindowSize::checked("window", asked.window)?;
        let process = self.processes.get(&asked.process);
        let process = process
            .ok_or_else(|| Failure::not_found(format!("no process {:?} runs", asked.process)))?;
        let mut relays = process.relays.iter().filter_map(|t| self.relays.get(t));
        let terminal = relays
            .find_map(Relay::terminal)
            .ok_or_else(|| Failure::conflict(format!("{:?} has no terminal", asked.process)))?;
        crate::process::resize(terminal, window)?;
        Ok(Outcome::Done)
    }

    fn reply(&mut self, id: u64, failure: Option<Failure>) {
        let reply = Reply { id, failure };
        self.outbox.push(FromGuest {
            message: Some(from_guest::Message::Reply(reply)),
        });
    }
}
