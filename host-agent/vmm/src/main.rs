//! One microVM. The agent starts one for each pod, with a socketpair; see the
//! library for what it does.

use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use longship_vmm::End;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use tracing_subscriber::filter::LevelFilter;

/// One microVM, told what to do by the agent that started it.
#[derive(Parser)]
#[command(name = "longship-vmm", version)]
struct Arguments {
    /// The open descriptor of the channel to the agent
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(RawFd).range(3..))]
    control_fd: RawFd,
}

fn main() -> ExitCode {
    share_one_heap();
    let arguments = Arguments::parse();
    let level = std::env::var("LONGSHIP_LOG").ok();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(
            level
                .and_then(|level| level.parse::<LevelFilter>().ok())
                .unwrap_or(LevelFilter::WARN),
        )
        .init();
    // A vCPU's thread that panicked must not leave a machine that does not run.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    match run(&arguments) {
        Ok(End::Stopped | End::GuestReset) => ExitCode::SUCCESS,
        Ok(End::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One heap for all threads. None of them allocates much; a heap for each costs page
/// tables and a reservation of 64 MiB.
fn share_one_heap() {
    // SAFETY: this changes how memory is allocated from here on, and nothing else.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn run(arguments: &Arguments) -> anyhow::Result<End> {
    let fd = arguments.control_fd;
    // SAFETY: the caller of this program hands this descriptor over to it, and
    // nothing else in the process, which has just begun, knows of it. If it is
    // not open, the next line says so before it is used.
    let channel = unsafe { UnixStream::from_raw_fd(fd) };
    let kind = getsockopt(&channel, sockopt::SockType)
        .with_context(|| format!("--control-fd {fd} is no open socket"))?;
    anyhow::ensure!(
        kind == SockType::Stream,
        "--control-fd {fd} is no stream socket"
    );
    Ok(longship_vmm::serve(&channel)?)
}
