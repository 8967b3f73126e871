//! Simulated cards by the thousand, and what the control plane does with them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use longship_sim::bench::Bench;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Simulated cards by the thousand, and what the control plane does with them.
///
/// Everything runs on this machine's loopback; no KVM and no root is needed.
#[derive(Debug, Parser)]
#[command(name = "longship-sim", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Bench(Bench),
}

fn main() -> ExitCode {
    // Thousands of connections take more descriptors than a shell is usually given; the
    // control plane inherits the limit. Where it cannot be raised, whoever runs out says so.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.what {
        What::Bench(bench) => bench.run().await,
    }
}
