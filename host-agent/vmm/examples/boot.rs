//! Boots a guest as the agent would, its serial port on the standard output, and says
//! what it cost:
//!
//! ```text
//! boot --kernel VMLINUX [--initramfs FILE] [--vcpus N] [--memory MIB] [--dense MIB]
//!      [--command-line TEXT] [--until-alive] [--net SOCKET] [--blk SOCKET]… [--vsock SOCKET]
//! ```
//!
//! The VMM is the `longship-vmm` beside the examples' folder, or `--vmm PATH`.

#![allow(clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../tests/played_agent/mod.rs"]
mod played_agent;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use longship_framed::now_us;
use longship_framed::vmm::request::Operation;
use longship_framed::vmm::{Create, DeviceType, MemoryProfile, Reply};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use played_agent::Vmm;

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
    /// Private memory, with a DMA window of so many MiB.
    #[arg(long)]
    dense: Option<u64>,
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1 pci=conf1")]
    command_line: String,
    #[arg(long)]
    net: Vec<PathBuf>,
    #[arg(long)]
    blk: Vec<PathBuf>,
    #[arg(long)]
    vsock: Vec<PathBuf>,
    /// End as soon as init says that it lives, which longship-init does first of all.
    #[arg(long)]
    until_alive: bool,
    #[arg(long)]
    vmm: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let vmm = arguments.vmm.clone().unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().with_file_name("longship-vmm")
    });
    let kernel = sealed(&arguments.kernel);
    let initramfs = arguments.initramfs.as_ref().map(sealed);
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .unwrap();
    let (began, began_us) = (Instant::now(), now_us());
    let mut vmm = Vmm::spawn(&vmm);
    let stdout = std::io::stdout();
    let mut fds = vec![kvm.as_fd(), kernel.as_fd()];
    fds.extend(initramfs.as_ref().map(AsFd::as_fd));
    fds.push(stdout.as_fd());
    let profile = match arguments.dense {
        Some(_) => MemoryProfile::Dense,
        None => MemoryProfile::Direct,
    };
    let create = Create {
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory << 20,
        command_line: arguments.command_line.clone(),
        has_initramfs: initramfs.is_some(),
        has_console: true,
        profile: profile.into(),
        dma_window_bytes: arguments.dense.unwrap_or(0) << 20,
        has_memory: false,
    };
    let mut replies = vec![vmm.request(Operation::Create(create), &fds)];
    let devices = [
        (DeviceType::Block, &arguments.blk),
        (DeviceType::Net, &arguments.net),
        (DeviceType::Vsock, &arguments.vsock),
    ];
    for (kind, sockets) in devices {
        replies.extend(sockets.iter().map(|socket| vmm.attach(kind, socket)));
    }
    if replies.iter().all(|reply| reply.failure.is_none()) {
        replies.push(vmm.boot());
    }
    if !show(&replies) {
        return ExitCode::FAILURE;
    }
    let first_run = loop {
        match vmm.stats().first_run_us {
            0 => std::thread::yield_now(),
            at => break at,
        }
    };
    eprintln!("{:>10} {:>8} µs", "first-run", first_run - began_us);
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", vmm.child.id())).unwrap();
    let (resident, anonymous) = without_guest_memory(&smaps, arguments.memory << 10);
    eprintln!("VMM without guest RAM: {resident} KiB resident, {anonymous} KiB anonymous");
    if arguments.until_alive {
        eprintln!("{:>10} {:>8} µs", "alive", vmm.alive() - began_us);
        return ExitCode::SUCCESS;
    }
    let exited = vmm.exited();
    eprintln!("{} after {:?}", exited.message, began.elapsed());
    match vmm.wait().code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Prints what each step took; says whether all went well.
fn show(replies: &[Reply]) -> bool {
    for reply in replies {
        for step in &reply.steps {
            eprintln!("{:>10} {:>8} µs", step.name, step.end_us - step.start_us);
        }
        if let Some(failure) = &reply.failure {
            eprintln!("refused: {failure}");
        }
    }
    replies.iter().all(|reply| reply.failure.is_none())
}

/// A file in memory that nobody can change, as the agent keeps its guest files.
fn sealed(path: &PathBuf) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"guest-file", flags).unwrap());
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    io::copy(&mut file, &mut copy).unwrap();
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(copy.as_fd(), FcntlArg::F_ADD_SEALS(seals)).unwrap();
    assert!(copy.as_raw_fd() > 2);
    copy
}

/// KiB that are resident, and of them anonymous, without mappings of guest memory:
/// those of half its size or more, or between such (the window).
fn without_guest_memory(smaps: &str, memory_kib: u64) -> (u64, u64) {
    let (mut resident, mut anonymous) = (0, 0);
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), value) = (words.next(), words.next()) else {
            continue;
        };
        let kib: u64 = value.and_then(|value| value.parse().ok()).unwrap_or(0);
        match key {
            "Size:" => guest |= kib >= memory_kib / 2,
            "Rss:" if !guest => resident += kib,
            "Anonymous:" if !guest => anonymous += kib,
            _ if !key.ends_with(':') => {
                guest = line.contains("dma-window") || line.contains("guest-");
            }
            _ => {}
        }
    }
    (resident, anonymous)
}
