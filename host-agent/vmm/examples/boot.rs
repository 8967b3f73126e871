//! Boots a guest as the agent would, its serial port on the standard output:
//!
//! ```text
//! boot --kernel VMLINUX [--initramfs FILE] [--vcpus N] [--memory MIB]
//!      [--command-line TEXT] [--net SOCKET] [--blk SOCKET]… [--vsock SOCKET]
//! ```
//!
//! The VMM is the `longship-vmm` beside the examples' folder, or `--vmm PATH`.

#![allow(clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../tests/played_agent/mod.rs"]
mod played_agent;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use longship_framed::vmm::DeviceType;
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
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1 pci=conf1")]
    command_line: String,
    #[arg(long)]
    net: Vec<PathBuf>,
    #[arg(long)]
    blk: Vec<PathBuf>,
    #[arg(long)]
    vsock: Vec<PathBuf>,
    #[arg(long)]
    vmm: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let vmm = arguments.vmm.clone().unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().with_file_name("longship-vmm")
    });
    let began = Instant::now();
    let mut vmm = Vmm::spawn(&vmm);
    let kernel = File::open(&arguments.kernel).unwrap();
    let initramfs = arguments
        .initramfs
        .as_ref()
        .map(|path| File::open(path).unwrap());
    let console = File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    let created = vmm.create(
        arguments.vcpus,
        arguments.memory << 20,
        &arguments.command_line,
        &kernel,
        initramfs.as_ref(),
        Some(&console),
    );
    let mut replies = vec![created];
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
    let mut failed = false;
    for reply in replies {
        for step in &reply.steps {
            eprintln!("{:>10} {:>8} µs", step.name, step.end_us - step.start_us);
        }
        if let Some(failure) = &reply.failure {
            eprintln!("refused: {failure}");
            failed = true;
        }
    }
    if failed {
        return ExitCode::FAILURE;
    }
    let exited = vmm.exited();
    eprintln!("{} after {:?}", exited.message, began.elapsed());
    match vmm.wait().code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
