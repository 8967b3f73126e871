//! One exec: a client's stream on one side, a process in the guest on the other.

use std::time::Duration;

use longship_framed::guest::{Process, WindowSize};
use longship_proto::card::v1::{ExecInput, ExecOutput, ExecStart, exec_input, exec_output};
use longship_proto::{Failure, FailureExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::guest::{Guest, Running, Stdin};
use crate::pod::PodAccess;

/// How long output may take to arrive after its process has ended.
const DRAIN: Duration = Duration::from_secs(2);

const SIGKILL: i32 = 9;

type Output = mpsc::Sender<Result<ExecOutput, Status>>;

/// A process that was started for a client.
pub(crate) struct Session {
    guest: Guest,
    process: String,
    running: Running,
}

impl Session {
    /// Starts the process that the client wants, with its container's environment.
    ///
    /// # Errors
    /// What is wrong with the request, or what the guest refused.
    pub(crate) async fn begin(access: &PodAccess, start: ExecStart) -> Result<Self, Failure> {
        if start.command.is_empty() {
            return Err(Failure::invalid("command", "there is no command to run"));
        }
        let container = access.container(&start.container)?;
        let (guest, first) = access.running(&container)?;
        let spec = Process {
            argv: start.command,
            tty: start.tty,
            stdin: start.stdin,
            window: start.window.map(|w| WindowSize {
                columns: w.columns,
                rows: w.rows,
            }),
            ..first
        };
        let process = access.next_exec();
        let running = guest
            .exec(&container, &process, spec)
            .await
            .map_err(|mut failure| {
                if failure.field.starts_with("process.argv")
                    || failure.field.starts_with("spec.argv")
                {
                    failure.field = "command".to_owned();
                }
                failure
            })?;
        Ok(Self {
            guest,
            process,
            running,
        })
    }

    /// Carries the bytes both ways until the process has ended, or its client is gone.
    pub(crate) async fn serve(self, input: Streaming<ExecInput>, output: Output) {
        let Self {
            guest,
            process,
            running,
        } = self;
        let Running {
            stdin,
            stdout,
            stderr,
            exited,
        } = running;
        let client = pass_input(&guest, &process, input, stdin);
        let process_output = async {
            let stdout = pass_output(stdout, &output, exec_output::Output::Stdout);
            let stderr = async {
                if let Some(stderr) = stderr {
                    pass_output(stderr, &output, exec_output::Output::Stderr).await;
                }
            };
            tokio::join!(stdout, stderr);
        };
        let ended = async {
            tokio::pin!(process_output);
            let mut exited = exited;
            tokio::select! {
                () = &mut process_output => exited.await,
                exited = &mut exited => {
                    // A child left in the background may keep the streams open.
                    let _ = tokio::time::timeout(DRAIN, process_output).await;
                    exited
                }
            }
        };
        tokio::select! {
            exited = ended => {
                let last = match exited {
                    Ok(exited) => {
                        let code = exec_output::Output::ExitCode(exited.exit_code);
                        Ok(ExecOutput { output: Some(code) })
                    }
                    Err(_) => Err(Failure::unavailable("the guest is gone").into_status()),
                };
                let _ = output.send(last).await;
            }
            () = async {
                // Held to the end: an input that is dropped is a client that is gone.
                let _stdin = client.await;
                std::future::pending::<()>().await;
            } => {}
            () = output.closed() => {
                // Nobody is left to see it.
                let _ = guest.signal(&process, SIGKILL, false).await;
            }
        }
    }
}

/// Passes what the client sends, until it has nothing more to say; the input, shut down.
async fn pass_input(
    guest: &Guest,
    process: &str,
    mut input: Streaming<ExecInput>,
    mut stdin: Option<Stdin>,
) -> Option<Stdin> {
    // What fails here (the process has just ended) shows in the exit code.
    while let Ok(Some(message)) = input.message().await {
        match message.input {
            Some(exec_input::Input::Stdin(bytes)) => {
                if let Some(writer) = &mut stdin {
                    let _ = writer.write_all(&bytes).await;
                }
            }
            Some(exec_input::Input::StdinClosed(_)) => {
                if let Some(writer) = &mut stdin {
                    let _ = writer.shutdown().await;
                }
            }
            Some(exec_input::Input::Resize(size)) => {
                let window = WindowSize {
                    columns: size.columns,
                    rows: size.rows,
                };
                let _ = guest.resize(process, window).await;
            }
            Some(exec_input::Input::Signal(signal)) => {
                let _ = guest.signal(process, signal, false).await;
            }
            Some(exec_input::Input::Start(_)) | None => {}
        }
    }
    if let Some(writer) = &mut stdin {
        let _ = writer.shutdown().await;
    }
    stdin
}

async fn pass_output(
    mut stream: impl AsyncRead + Unpin,
    output: &Output,
    wrap: impl Fn(Vec<u8>) -> exec_output::Output,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = stream.read(&mut buffer).await.unwrap_or(0);
        let Some(data) = buffer.get(..n).filter(|d| !d.is_empty()) else {
            return;
        };
        let chunk = ExecOutput {
            output: Some(wrap(data.to_vec())),
        };
        if output.send(Ok(chunk)).await.is_err() {
            return;
        }
    }
}
