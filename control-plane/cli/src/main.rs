//! The longship command.

mod card;
mod command;
mod credentials;
mod duration;
mod error;
mod manifest;
mod pki;
mod progress;
mod server;
mod show;
mod signals;
mod terminal;
mod together;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::credentials::CredentialFlags;
use crate::server::ServerAddress;

/// Runs containers in microVMs of their own.
#[derive(Debug, Parser)]
#[command(name = "longship", version)]
struct Cli {
    /// Address of the control plane; of several, separated by commas, the one that leads.
    #[arg(
        long,
        global = true,
        env = "LONGSHIP_SERVER",
        default_value = "http://127.0.0.1:7700"
    )]
    server: ServerAddress,
    #[command(flatten)]
    credentials: CredentialFlags,
    /// Namespace of pods.
    #[arg(long, short = 'n', global = true, default_value = "default")]
    namespace: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<command::up::Up>),
    Run(Box<command::run::Run>),
    Create(command::create::Create),
    Apply(command::apply::Apply),
    Get(command::get::Get),
    Describe(command::describe::Describe),
    Top(command::top::Top),
    Logs(command::logs::Logs),
    Exec(command::exec::Exec),
    Delete(command::delete::Delete),
    Label(command::change::Label),
    Annotate(command::change::Annotate),
    Cordon(command::host::Cordon),
    Uncordon(command::host::Uncordon),
    Drain(command::host::Drain),
    Remove(command::host::Remove),
    Wait(command::wait::Wait),
    Pki(command::pki::Pki),
    Doctor(command::doctor::Doctor),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        // What needs no server runs without it, and without a runtime.
        Command::Doctor(doctor) => doctor.run(),
        Command::Pki(pki) => pki.run(),
        command => cli.credentials.read().and_then(|credentials| {
            let server = cli.server.with(credentials);
            in_runtime(run(command, server, cli.namespace))
        }),
    };
    let code = match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    };
    // Not by returning: a thread may wait for standard input for ever.
    std::process::exit(code.into())
}

fn in_runtime(
    work: impl Future<Output = Result<u8, error::CliError>>,
) -> Result<u8, error::CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error::CliError::Other(format!("start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

async fn run(
    command: Command,
    server: ServerAddress,
    namespace: String,
) -> Result<u8, error::CliError> {
    match command {
        Command::Up(up) => up.run().await,
        Command::Run(run) => run.run(&server, &namespace).await,
        Command::Create(create) => create.run(&server, &namespace).await,
        Command::Apply(apply) => apply.run(&server, &namespace).await,
        Command::Get(get) => get.run(&server, &namespace).await,
        Command::Describe(describe) => describe.run(&server, &namespace).await,
        Command::Top(top) => top.run().await,
        Command::Logs(logs) => logs.run(&server, &namespace).await,
        Command::Exec(exec) => exec.run(&server, &namespace).await,
        Command::Delete(delete) => delete.run(&server, &namespace).await,
        Command::Label(label) => label.run(&server, &namespace).await,
        Command::Annotate(annotate) => annotate.run(&server, &namespace).await,
        Command::Cordon(cordon) => cordon.run(&server).await,
        Command::Uncordon(uncordon) => uncordon.run(&server).await,
        Command::Drain(drain) => drain.run(&server).await,
        Command::Remove(remove) => remove.run(&server).await,
        Command::Wait(wait) => wait.run(&server, &namespace).await,
        Command::Doctor(doctor) => doctor.run(),
        Command::Pki(pki) => pki.run(),
    }
}
