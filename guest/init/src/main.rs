//! PID 1 of a pod's guest: it sets the machine up, tells the card that it is
//! there, and does what the card asks until the power goes off.
//!
//! One thread, one loop: a fork at any point is then a whole process.

mod backlog;
mod clock;
mod console;
mod container;
mod control;
mod disks;
mod entropy;
mod events;
mod failed;
mod machine;
mod mounts;
mod network;
mod origin;
mod pod;
mod power;
mod process;
mod relay;
mod spec;
mod vsock;

use std::fs;
use std::os::fd::AsFd;

use longship_framed::guest::{FromGuest, Hello, from_guest};
use nix::sys::epoll::EpollFlags;
use nix::sys::resource::{Resource, setrlimit};

use control::{Control, Incoming};
use events::{Events, Token};
use failed::{Doing, Failed};
use machine::{Kind, Machine};
use origin::{Origin, Parked};
use pod::Pod;
use process::Reaper;

/// Version of the protocol with the card.
const PROTOCOL: u32 = 1;

/// Descriptors that init may have: a few for each process.
const OPEN_FILES: u64 = 524_288;

fn main() {
    let born_us = clock::uptime_us();
    let machine = Machine::open();
    let kind = machine.as_ref().map_or(Kind::Booted, Machine::kind);
    if let (Some(machine), Kind::Booted) = (&machine, kind) {
        machine.alive();
    }
    if std::process::id() != 1 {
        eprintln!(
            "error: longship-init is the first process of a pod's guest, and of nothing else"
        );
        std::process::exit(2);
    }
    console::reboot_on_panic();
    let Err(failed) = run(machine, kind, born_us);
    console::error!("{failed}");
    power::off();
}

/// Does all that can be done without a device; in a template waits to be cloned;
/// then serves the card.
fn run(
    machine: Option<Machine>,
    kind: Kind,
    born_us: i64,
) -> Result<std::convert::Infallible, Failed> {
    set_up()?;
    let init = Init::new()?;
    let origin = match machine {
        Some(machine) if kind == Kind::Template => Parked::new(machine)?.go_on()?,
        Some(machine) => Origin::booted(&machine, born_us)?,
        None => Origin::elsewhere(born_us),
    };
    init.serve(&origin)
}

/// Makes the machine one in which containers can run.
fn set_up() -> Result<(), Failed> {
    mounts::own_root()?;
    mounts::virtual_file_systems()?;
    console::open();
    // Neither is the last process that the kernel would kill, nor is its memory
    // anybody's to look at.
    fs::write("/proc/self/oom_score_adj", "-1000").doing(|| "set the OOM score")?;
    nix::sys::prctl::set_dumpable(false).doing(|| "hide init's memory")?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).doing(|| "raise a limit")?;
    disks::prepare()?;
    mounts::directory(container::ASSEMBLY)?;
    container::prepare_cgroups()?;
    network::loopback_up()?;
    network::relax()
}

/// What init works with.
struct Init {
    events: Events,
    reaper: Reaper,
    reaping: Token,
    control: Control,
    pod: Pod,
}

impl Init {
    /// # Errors
    /// The kernel's.
    fn new() -> Result<Self, Failed> {
        let mut events = Events::new()?;
        let reaper = Reaper::new()?;
        let reaping = events.token();
        events.arm(reaper.as_fd(), reaping, EpollFlags::EPOLLIN)?;
        Ok(Self {
            reaper,
            reaping,
            control: Control::new(events.token()),
            pod: Pod::new()?,
            events,
        })
    }

    /// Serves the card. Returns only where the kernel fails init itself.
    fn serve(self, origin: &Origin) -> Result<std::convert::Infallible, Failed> {
        let Self {
            mut events,
            reaper,
            reaping,
            mut control,
            mut pod,
        } = self;
        pod.began(origin);
        let mut happened: Vec<events::Event> = Vec::new();
        loop {
            let mut of_control = EpollFlags::empty();
            for event in happened.drain(..) {
                if event.token == reaping {
                    for (pid, ending) in reaper.ended() {
                        pod.ended(pid, ending, &mut events);
                    }
                    events.arm(reaper.as_fd(), reaping, EpollFlags::EPOLLIN)?;
                } else if event.token == control.token() {
                    of_control = event.flags;
                } else {
                    pod.event(event, &mut events);
                }
            }
            for incoming in control.step(of_control, &events) {
                match incoming {
                    Incoming::Connected => {
                        control.send(&hello(origin));
                        pod.tell_kept();
                    }
                    Incoming::Request(request) => pod.handle(request, &mut events),
                }
            }
            pod.tick(control.is_up(), &events);
            for message in pod.take_outbox() {
                control.send(&message);
            }
            control.flush(&events);
            if pod.is_over(control.is_flushed()) {
                pod.power_off();
            }
            let deadline = [pod.deadline(), control.deadline()].into_iter().flatten();
            happened = events.wait(deadline.min())?;
        }
    }
}

fn hello(origin: &Origin) -> FromGuest {
    FromGuest {
        message: Some(from_guest::Message::Hello(Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            init_uptime_us: origin.began_us,
            uptime_us: clock::uptime_us(),
            clone: origin.is_clone,
        })),
    }
}
