//! `compare`: the cold start of Longship's VMM beside QEMU's `microvm` machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use longship_proto::now_us;

use crate::arguments::{Files, Machine, Programs};
use crate::document::{Axis, Chart, Figure, Findings};
use crate::environment::Clock;
use crate::error::BenchError;
use crate::smaps::{Own, own_memory};
use crate::subject::initramfs;
use crate::subject::qemu::{self, Qemu, first_byte};
use crate::subject::vmm::{Guest, Vmm};
use crate::subject::workshop::Workshop;
use crate::summary::{number, signed};

/// Longship's VMM against QEMU's `microvm` machine: the same kernel, initramfs,
/// virtual CPUs and memory, one after the other in the same run
#[derive(Debug, Args)]
pub(crate) struct Compare {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    machine: Machine,
    /// Rounds; each starts every VMM once
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Rounds before, which do not count
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u32,
}

/// What both kernels are told: a console, and nothing that costs time or says much.
const COMMON: &str = "console=ttyS0 quiet loglevel=0 panic=-1 8250.nr_uarts=1 random.trust_cpu=on \
                      i8042.noaux i8042.nomux i8042.dumbkbd";
/// How each machine is reset, and where PCI is or that there is none.
const OF_LONGSHIP: &str = "reboot=k pci=conf1";
const OF_QEMU: &str = "reboot=t pci=off";
/// For a guest to become idle before its VMM's memory is looked at.
const CALM: Duration = Duration::from_millis(100);

/// One of what is compared.
#[derive(Debug)]
enum Contender {
    Longship,
    /// Longship's VMM with the init of its pods, which says itself when it begins.
    LongshipInit,
    Qemu {
        program: PathBuf,
        version: String,
    },
}

/// Samples of one contender.
#[derive(Debug, Default)]
struct Samples {
    total: Vec<f64>,
    first_run: Vec<f64>,
    exits: Vec<f64>,
    resident: Vec<f64>,
    anonymous: Vec<f64>,
    guest: Vec<f64>,
}

impl Compare {
    pub(crate) fn run(&self) -> Result<Findings, BenchError> {
        let files = self.programs.find()?;
        let vmm = files.program("longship-vmm")?;
        let workshop = Workshop::new()?;
        let tiny = workshop.path().join("tiny.cpio");
        initramfs::write(&tiny)?;
        let bench = Bench {
            machine: self.machine,
            vmm: workshop.copy(&vmm)?,
            kernel: workshop.copy(&files.kernel)?,
            initramfs: workshop.copy(&files.initramfs)?,
            tiny,
        };
        let mut notes = vec![
            "From before the VMM is spawned until the first byte of /init arrives; /init is a \
             program of 34 bytes of code that writes one line to its console. `longship, \
             longship-init`: until the VMM says that the pods' own init has begun."
                .to_owned(),
        ];
        let mut contenders = vec![(Contender::Longship, Samples::default())];
        if bench.says_when_alive(&files)? {
            contenders.push((Contender::LongshipInit, Samples::default()));
        }
        match qemu::find() {
            Some((program, version)) => {
                notes.push(format!("QEMU {version}, microvm, qboot, PVH."));
                contenders.push((Contender::Qemu { program, version }, Samples::default()));
            }
            None => {
                notes.push("There is no QEMU on this machine: nothing to compare with.".to_owned())
            }
        }
        for round in 0..self.warm_up.saturating_add(self.rounds) {
            // Every second round goes backwards, so that none is always the first.
            let backwards = round % 2 == 1;
            let count = contenders.len();
            for place in 0..count {
                let place = if backwards { count - 1 - place } else { place };
                let Some((contender, samples)) = contenders.get_mut(place) else {
                    continue;
                };
                let start = bench.start(contender)?;
                if round >= self.warm_up {
                    samples.add(&start);
                }
            }
        }
        Ok(findings(contenders, notes))
    }
}

/// What it takes to start each contender.
struct Bench {
    machine: Machine,
    vmm: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    tiny: PathBuf,
}

/// One start.
struct Start {
    total_ms: f64,
    first_run_ms: Option<f64>,
    /// Exits to user space until then.
    exits: Option<f64>,
    own: Own,
}

impl Bench {
    fn guest<'a>(&'a self, command_line: &'a str, initramfs: &'a Path) -> Guest<'a> {
        Guest {
            vcpus: self.machine.vcpus,
            memory_bytes: self.machine.memory_bytes(),
            command_line,
            kernel: &self.kernel,
            initramfs,
        }
    }

    fn start(&self, contender: &Contender) -> Result<Start, BenchError> {
        match contender {
            Contender::Longship => self.longship(false),
            Contender::LongshipInit => self.longship(true),
            Contender::Qemu { program, .. } => self.qemu(program),
        }
    }

    fn longship(&self, own_init: bool) -> Result<Start, BenchError> {
        let line = format!("{COMMON} {OF_LONGSHIP}");
        let initramfs = if own_init {
            &self.initramfs
        } else {
            &self.tiny
        };
        let began = now_us();
        let (mut vmm, mut console) = Vmm::boot(&self.vmm, &self.guest(&line, initramfs))?;
        let done = if own_init {
            vmm.alive_us()?
        } else {
            first_byte("longship-vmm", &mut console)?;
            now_us()
        };
        let stats = vmm.stats()?;
        std::thread::sleep(CALM);
        Ok(Start {
            total_ms: between(began, done),
            first_run_ms: Some(between(began, stats.first_run_us)),
            exits: Some(number(stats.exits)),
            own: own_memory(vmm.pid(), self.machine.memory_bytes())?,
        })
    }

    fn qemu(&self, program: &Path) -> Result<Start, BenchError> {
        let line = format!("{COMMON} {OF_QEMU}");
        let began = now_us();
        let (qemu, mut console) = Qemu::boot(program, &self.guest(&line, &self.tiny))?;
        first_byte("QEMU", &mut console)?;
        let total_ms = between(began, now_us());
        std::thread::sleep(CALM);
        Ok(Start {
            total_ms,
            first_run_ms: None,
            exits: None,
            own: own_memory(qemu.pid(), self.machine.memory_bytes())?,
        })
    }

    /// Whether the initramfs has an init that tells the VMM when it begins.
    fn says_when_alive(&self, files: &Files) -> Result<bool, BenchError> {
        let init = std::fs::read(&files.initramfs)
            .map_err(crate::error::file("read", &files.initramfs))?;
        let signature = longship_framed::machine_ports::SIGNATURE.to_le_bytes();
        Ok(init
            .windows(signature.len())
            .any(|bytes| bytes == signature))
    }
}

fn between(from_us: i64, to_us: i64) -> f64 {
    signed(to_us.saturating_sub(from_us)) / 1000.0
}

impl Samples {
    fn add(&mut self, start: &Start) {
        let mb = |bytes| number(bytes) / 1e6;
        self.total.push(start.total_ms);
        self.first_run.extend(start.first_run_ms);
        self.exits.extend(start.exits);
        self.resident.push(mb(start.own.resident));
        self.anonymous.push(mb(start.own.anonymous));
        self.guest.push(mb(start.own.guest));
    }
}

fn findings(contenders: Vec<(Contender, Samples)>, notes: Vec<String>) -> Findings {
    let unit = Clock::of_environment().unit();
    let mut findings = Findings {
        notes,
        ..Findings::default()
    };
    let (mut starts, mut sizes) = (Vec::new(), Vec::new());
    for (contender, samples) in contenders {
        let (id, name) = match &contender {
            Contender::Longship => ("longship", "longship-vmm".to_owned()),
            Contender::LongshipInit => (
                "longship-init",
                "longship-vmm with longship-init".to_owned(),
            ),
            Contender::Qemu { version, .. } => ("qemu", format!("QEMU {version} microvm")),
        };
        let total = Figure::of(
            format!("compare.{id}.cold"),
            format!("{name}: spawn → init"),
            unit,
            samples.total,
        );
        starts.extend(total.iter().map(|figure| figure.spread(&name)));
        let first_run = Figure::of(
            format!("compare.{id}.first-run"),
            format!("{name}: spawn → first KVM_RUN"),
            unit,
            samples.first_run,
        );
        let exits = Figure::of(
            format!("compare.{id}.exits"),
            format!("{name}: KVM exits to user space until init"),
            "",
            samples.exits,
        );
        let memory = [
            ("rss", "RSS without guest RAM", samples.resident),
            (
                "anonymous",
                "anonymous without guest RAM",
                samples.anonymous,
            ),
            ("guest", "resident guest RAM", samples.guest),
        ]
        .map(|(part, title, samples)| {
            let id = format!("compare.{id}.{part}");
            Figure::of(id, format!("{name}: {title}"), "MB", samples)
        });
        let [rss, _, _] = &memory;
        sizes.extend(rss.iter().map(|figure| figure.spread(&name)));
        findings
            .figures
            .extend(total.into_iter().chain(first_run).chain(exits));
        findings.figures.extend(memory.into_iter().flatten());
    }
    findings.charts = vec![
        Chart::Spread {
            title: "Cold start: spawn → init".to_owned(),
            x: Axis::new("time", unit),
            rows: starts,
        },
        Chart::Spread {
            title: "VMM's resident memory without guest RAM".to_owned(),
            x: Axis::new("memory", "MB"),
            rows: sizes,
        },
    ];
    findings
}
