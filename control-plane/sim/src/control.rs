//! The control plane's process, started here and ended with its handle.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// How long it may take until it listens.
const START: Duration = Duration::from_secs(60);
/// Lines of its log that are kept.
const LOG_LINES: usize = 30;

/// Why a process did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It could not be started.
    #[error("start {}: {error}", .binary.display())]
    Start {
        /// The program.
        binary: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It ended, or did not listen in time.
    #[error("longship-control does not listen; it said last:\n{log}")]
    NoListener {
        /// The end of its log.
        log: String,
    },
}

/// How a process is started.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// The program.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A running `longship-control`; it is killed when this is dropped.
#[derive(Debug)]
pub struct ControlProcess {
    child: Child,
    address: String,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl ControlProcess {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// Any [`ControlError`].
    pub async fn start(options: &ControlOptions) -> Result<Self, ControlError> {
        let mut command = Command::new(&options.binary);
        command
            .args(&options.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| ControlError::Start {
            binary: options.binary.clone(),
            error,
        })?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let address = match child.stderr.take() {
            Some(stderr) => tokio::time::timeout(START, listening(stderr, Arc::clone(&log))).await,
            None => Ok(None),
        };
        match address {
            Ok(Some(address)) => Ok(Self {
                child,
                address,
                log,
            }),
            Ok(None) | Err(_) => Err(ControlError::NoListener { log: text(&log) }),
        }
    }

    /// Where it listens, `ADDRESS:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id; `None` once it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Ends it at once (SIGKILL).
    pub async fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().await;
    }
}

fn text(log: &Mutex<VecDeque<String>>) -> String {
    let lines = log.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

/// Reads its log until it says its address; the rest is read in a task.
async fn listening(stderr: ChildStderr, log: Arc<Mutex<VecDeque<String>>>) -> Option<String> {
    let mut lines = BufReader::new(stderr).lines();
    let keep = move |line: &str| {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(line.to_owned());
    };
    loop {
        let line = lines.next_line().await.ok()??;
        keep(&line);
        let found = line
            .contains("listening")
            .then(|| line.split_once("address="));
        if let Some((_, rest)) = found.flatten() {
            let address = rest.split_whitespace().next()?.to_owned();
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    keep(&line);
                }
            });
            return Some(address);
        }
    }
}
