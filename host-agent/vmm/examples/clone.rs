//! Makes a template and clones of it as the agent would, and says where the time goes:
//!
//! ```text
//! clone --kernel VMLINUX [--initramfs FILE] [--vcpus N] [--memory MIB] [--window MIB]
//!       [--command-line TEXT] [--clones N] [--hold SECONDS] [--vmm PATH]
//! ```
//!
//! `--window 0`: profile DIRECT. Without an initramfs, the guest's only program parks,
//! says that it lives, and sleeps.
//!
//! The VMM is the `longship-vmm` beside the examples' folder, or `--vmm PATH`.

#![allow(clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../tests/guest_program/mod.rs"]
mod guest_program;
#[path = "../tests/played_agent/mod.rs"]
mod played_agent;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use guest_program::Program;
use longship_framed::now_us;
use longship_framed::vmm::{Create, MemoryProfile, Reply};
use played_agent::{Template, Vmm, memfd};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initramfs: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// The DMA window in MiB.
    #[arg(long, default_value_t = 4)]
    window: u64,
    #[arg(
        long,
        default_value = "quiet reboot=k panic=-1 pci=conf1 8250.nr_uarts=0 tsc=reliable random.trust_cpu=on"
    )]
    command_line: String,
    #[arg(long, default_value_t = 9)]
    clones: usize,
    /// Let all clones live at the same time, and so many seconds longer.
    #[arg(long, value_name = "SECONDS")]
    hold: Option<u64>,
    #[arg(long)]
    vmm: Option<PathBuf>,
}

/// How long things took, in microseconds, by name and in the order of their first
/// appearance.
#[derive(Default)]
struct Times {
    names: Vec<String>,
    taken: BTreeMap<String, Vec<i64>>,
}

impl Times {
    fn add(&mut self, name: &str, us: i64) {
        if !self.taken.contains_key(name) {
            self.names.push(name.to_owned());
        }
        self.taken.entry(name.to_owned()).or_default().push(us);
    }

    fn add_steps(&mut self, of: &str, reply: &Reply) {
        for step in &reply.steps {
            self.add(
                &format!("  {of} {}", step.name),
                step.end_us - step.start_us,
            );
        }
    }

    /// Median, least, most.
    fn print(&self) {
        println!(
            "{:<26} {:>9} {:>9} {:>9}  µs",
            "", "median", "least", "most"
        );
        for name in &self.names {
            let mut taken = self.taken.get(name).unwrap().clone();
            taken.sort_unstable();
            let at = |index: usize| taken.get(index).unwrap();
            let last = taken.len() - 1;
            println!(
                "{name:<26} {:>9} {:>9} {:>9}",
                at(last / 2),
                at(0),
                at(last)
            );
        }
    }
}

/// Parks, says that it lives, sleeps for ever.
fn sleeper() -> File {
    Program::new()
        // ioperm
        .call(173, &[0x2F00, 0x14, 1])
        // mov edx, 0x2f00; mov eax, 2; out dx, eax; mov eax, 1; out dx, eax
        .code(&[0xBA, 0x00, 0x2F, 0, 0, 0xB8, 2, 0, 0, 0, 0xEF])
        .code(&[0xB8, 1, 0, 0, 0, 0xEF])
        // pause
        .call(34, &[])
        .spin()
        .initramfs()
}

fn template(arguments: &Arguments, program: &Path) -> Template {
    let mut vmm = Vmm::spawn(program);
    let initramfs = arguments
        .initramfs
        .as_ref()
        .map_or_else(sleeper, |path| File::open(path).unwrap());
    let memory = memfd(arguments.memory << 20);
    let profile = match arguments.window {
        0 => MemoryProfile::Direct,
        _ => MemoryProfile::Dense,
    };
    let create = Create {
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory << 20,
        command_line: arguments.command_line.clone(),
        profile: profile.into(),
        dma_window_bytes: arguments.window << 20,
        ..Create::default()
    };
    let kernel = File::open(&arguments.kernel).unwrap();
    let created = vmm.create_as(create, &kernel, Some(&initramfs), None, Some(&memory));
    assert_eq!(created.failure, None);
    vmm.boot();
    vmm.into_template(memory)
}

fn main() {
    let arguments = Arguments::parse();
    let program = arguments.vmm.clone().unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().with_file_name("longship-vmm")
    });
    let began = now_us();
    let template = template(&arguments, &program);
    let resident = {
        use std::os::unix::fs::MetadataExt;
        template.memory.metadata().unwrap().blocks() * 512
    };
    println!(
        "template: {} µs, {resident} bytes of memory, {} bytes of state",
        now_us() - began,
        template.state.metadata().unwrap().len()
    );
    let mut times = Times::default();
    let mut kept = Vec::new();
    for _ in 0..arguments.clones {
        let asked = now_us();
        let mut vmm = Vmm::spawn(&program);
        let spawned = now_us();
        let restored = vmm.restore(&template, None);
        assert_eq!(restored.failure, None);
        let replied = now_us();
        let booted = vmm.boot();
        let alive = vmm.alive();
        times.add("request → alive", alive - asked);
        times.add("  spawn", spawned - asked);
        let first = restored.steps.first().unwrap().start_us;
        times.add("  start of the process", first - spawned);
        times.add_steps("restore", &restored);
        let last = restored.steps.last().unwrap().end_us;
        times.add("  reply", replied - last);
        let run = vmm.stats().first_run_us;
        times.add("  boot → first entry", run - replied);
        times.add_steps("boot", &booted);
        times.add("  first entry → alive", alive - run);
        if arguments.hold.is_some() {
            kept.push(vmm);
        } else {
            let began = now_us();
            vmm.stop();
            vmm.wait();
            times.add("stop", now_us() - began);
        }
    }
    times.print();
    if let Some(seconds) = arguments.hold {
        std::thread::sleep(Duration::from_secs(seconds));
    }
}
