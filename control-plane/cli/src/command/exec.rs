//! `longship exec`

use std::io::{self, Read, Write};

use clap::Args;
use longship_proto::card::v1::exec_input::Input;
use longship_proto::card::v1::exec_output::Output;
use longship_proto::card::v1::{ExecInput, ExecOutput, ExecStart, StdinClosed};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::card::PodStreams;
use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::signals::EndSignals;
use crate::terminal::{RawTerminal, window_size};

/// Inputs on their way to the card.
const IN_FLIGHT: usize = 16;

/// Run a command in a container, and exit with its code.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Pass standard input on.
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the command a terminal.
    #[arg(long, short = 't')]
    tty: bool,
    /// Which container; needed where there are several.
    #[arg(long, short = 'c', default_value = "")]
    container: String,
    /// Name of the pod.
    pod: String,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let mut server = Server::connect(address).await?;
        let mut streams = PodStreams::open(&mut server, namespace, &self.pod).await?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let start = ExecStart {
            pod_uid: streams.uid().to_owned(),
            container: self.container,
            command: self.command,
            tty: self.tty,
            stdin: self.stdin,
            window: self.tty.then(window_size).flatten(),
        };
        send(&sender, Input::Start(start)).await;
        let output = match streams.exec(ReceiverStream::new(receiver)).await {
            Ok(output) => output,
            Err(error) => return not_started(error),
        };
        // From here on: raw, and restored whatever happens.
        let terminal = if self.tty && self.stdin {
            RawTerminal::enter()
                .map_err(|error| CliError::Other(format!("set up the terminal: {error}")))?
        } else {
            None
        };
        if self.stdin {
            forward_stdin(sender.clone());
        }
        if self.tty {
            forward_window(sender.clone())?;
        }
        let result = print_output(output, &sender, terminal.is_some()).await;
        drop(terminal);
        result.or_else(not_started)
    }
}

/// What cannot be run gives 127, as in a shell.
fn not_started(error: CliError) -> Result<u8, CliError> {
    match error {
        CliError::Failure(failure) if failure.field == "command" => {
            eprintln!("error: {failure}");
            Ok(127)
        }
        other => Err(other),
    }
}

async fn send(sender: &mpsc::Sender<ExecInput>, input: Input) {
    // A card that does not listen any more says why on the other stream.
    let _ = sender.send(ExecInput { input: Some(input) }).await;
}

/// Reads standard input in a thread, since a read of a terminal cannot be cancelled.
fn forward_stdin(sender: mpsc::Sender<ExecInput>) {
    std::thread::spawn(move || {
        let mut chunk = vec![0; 4096];
        let mut stdin = io::stdin().lock();
        loop {
            let input = match stdin.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => Input::StdinClosed(StdinClosed {}),
                Ok(n) => Input::Stdin(chunk.get(..n).unwrap_or_default().to_vec()),
            };
            let last = matches!(input, Input::StdinClosed(_));
            let sent = sender.blocking_send(ExecInput { input: Some(input) });
            if last || sent.is_err() {
                return;
            }
        }
    });
}

/// Tells the remote terminal whenever the local one changes its size.
fn forward_window(sender: mpsc::Sender<ExecInput>) -> Result<(), CliError> {
    let mut changes = signal(SignalKind::window_change())
        .map_err(|error| CliError::Other(format!("catch signals: {error}")))?;
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some(size) = window_size() {
                send(&sender, Input::Resize(size)).await;
            }
        }
    });
    Ok(())
}

/// Prints until the command's exit code comes, and gives that. Signals go to the
/// command; a second one ends the wait for it.
async fn print_output(
    mut output: Streaming<ExecOutput>,
    sender: &mpsc::Sender<ExecInput>,
    raw: bool,
) -> Result<u8, CliError> {
    let mut signals = EndSignals::catch()?;
    let mut signalled = false;
    loop {
        let message = tokio::select! {
            message = output.message() => message?,
            signal = signals.next() => {
                // In raw mode Ctrl-C is a byte, so this came from somebody else.
                if signalled || raw {
                    return Err(CliError::Interrupted { signal, note: String::new() });
                }
                signalled = true;
                send(sender, Input::Signal(signal.into())).await;
                continue;
            }
        };
        let written = match message.and_then(|message| message.output) {
            Some(Output::ExitCode(code)) => return Ok(exit_code(code)),
            Some(Output::Stdout(data)) => write(&mut io::stdout().lock(), &data),
            Some(Output::Stderr(data)) => write(&mut io::stderr().lock(), &data),
            None => {
                let gone = "the card closed the stream before the command ended";
                return Err(longship_proto::Failure::unavailable(gone).into());
            }
        };
        written.map_err(|error| CliError::Other(format!("write the output: {error}")))?;
    }
}

/// A process's exit code as this one's.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(1)
}

fn write(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.flush()
}
