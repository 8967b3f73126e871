//! Runs a command in a virtual bare-metal host with a true `/dev/kvm`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use longship_testbed::{MachineError, Testbed, TestbedError};

/// The virtual bare-metal host: a machine with a true KVM, in software emulation.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command in it, in this working directory, with this machine's files.
    ///
    /// The command runs as root, sees this machine's whole file system, and may change
    /// anything: all changes are gone when it ends, but for those in shared
    /// directories. The exit code is the command's; 124 when its time ran out; 125 when
    /// the virtual host could not be started, or was lost.
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Memory of the virtual host; changed files count too
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Number of CPUs [default: 2, or 1 where QEMU is older than 8 or instructions are counted]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Count instructions: one nanosecond passes with each, so that times are exact costs
    #[arg(long)]
    icount: bool,
    /// End the virtual host after this time
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// A directory the command may really write to
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// A variable of the command's environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Show the virtual host's console
    #[arg(long)]
    console: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE"))
}

fn main() -> ExitCode {
    let Command::Run(run) = Cli::parse().command;
    let mut testbed = Testbed::new()
        .memory(run.memory)
        .exact(run.icount)
        .show_console(run.console);
    if let Some(cpus) = run.cpus {
        testbed = testbed.cpus(cpus);
    }
    if let Some(seconds) = run.timeout {
        testbed = testbed.timeout(Duration::from_secs(seconds));
    }
    for directory in run.share {
        testbed = testbed.share(directory);
    }
    for (name, value) in run.env {
        testbed = testbed.env(name, value);
    }
    match testbed.run(run.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(match error {
                TestbedError::Machine(MachineError::TimedOut { .. }) => 124,
                _ => 125,
            })
        }
    }
}
