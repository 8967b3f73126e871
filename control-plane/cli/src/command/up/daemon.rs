//! Daemons as child processes: started in order, ended in reverse, and missed at once
//! when one ends by itself. What they log goes to standard error, a line each with the
//! daemon's name.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::error::CliError;

/// Between SIGTERM and SIGKILL. A daemon ends what it serves first.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// For the last lines of a daemon that has ended to arrive.
const LOG_PATIENCE: Duration = Duration::from_millis(500);

/// A daemon to start.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Daemon {
    /// The daemon `name`, found in `folder`.
    ///
    /// # Errors
    /// That it is not there.
    pub(crate) fn new(name: &'static str, folder: &Path) -> Result<Self, CliError> {
        let program = folder.join(name);
        if !program.is_file() {
            return Err(CliError::Other(format!(
                "{} is missing: it belongs beside this program",
                program.display()
            )));
        }
        Ok(Self {
            name,
            program,
            arguments: Vec::new(),
        })
    }

    pub(crate) fn switch(&mut self, flag: &str) {
        self.arguments.push(flag.into());
    }

    pub(crate) fn flag(&mut self, flag: &str, value: impl Into<OsString>) {
        self.arguments.push(flag.into());
        self.arguments.push(value.into());
    }
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    child: Child,
    log: Log,
}

/// What a daemon says, passed on as it comes.
#[derive(Debug)]
struct Log {
    /// The last `error: …`, without that word.
    error: Arc<Mutex<Option<String>>>,
    readers: JoinSet<()>,
}

impl Log {
    fn of(child: &mut Child, name: &'static str) -> Self {
        let mut log = Self {
            error: Arc::default(),
            readers: JoinSet::new(),
        };
        if let Some(stdout) = child.stdout.take() {
            log.readers
                .spawn(pass_on(stdout, name, Arc::clone(&log.error)));
        }
        if let Some(stderr) = child.stderr.take() {
            log.readers
                .spawn(pass_on(stderr, name, Arc::clone(&log.error)));
        }
        log
    }

    /// Waits a moment for what the daemon said last.
    async fn finish(&mut self) {
        let all = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LOG_PATIENCE, all).await;
    }
}

async fn pass_on(
    output: impl AsyncRead + Unpin,
    name: &'static str,
    error: Arc<Mutex<Option<String>>>,
) {
    let short = name.strip_prefix("longship-").unwrap_or(name);
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(said) = line.strip_prefix("error: ") {
            *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.to_owned());
        }
        eprintln!("{short}: {line}");
    }
}

/// The daemons that run, in order of their start.
#[derive(Debug, Default)]
pub(crate) struct Daemons {
    running: Vec<Running>,
}

impl Daemons {
    /// Starts one more.
    ///
    /// # Errors
    /// [`CliError::File`] at its program.
    pub(crate) fn start(&mut self, daemon: Daemon) -> Result<(), CliError> {
        let mut command = std::process::Command::new(&daemon.program);
        command
            .args(&daemon.arguments)
            // What is passed on line by line is no terminal's.
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for this command, which ends them in order.
            .process_group(0);
        // SAFETY: prctl(2) is a plain system call, fine between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Where this command is killed, its daemons end too.
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into)
            });
        }
        let mut child = Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| CliError::File {
                path: daemon.program,
                error,
            })?;
        self.running.push(Running {
            name: daemon.name,
            log: Log::of(&mut child, daemon.name),
            child,
        });
        Ok(())
    }

    /// Waits for `work`, unless a daemon ends first.
    ///
    /// # Errors
    /// That a daemon ended, and why; or what `work` meets.
    pub(crate) async fn or_died<T>(
        &mut self,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        tokio::select! {
            biased;
            error = self.died() => Err(error),
            done = work => done,
        }
    }

    /// Waits until one has ended by itself, and says why.
    async fn died(&mut self) -> CliError {
        loop {
            for daemon in &mut self.running {
                if let Ok(Some(status)) = daemon.child.try_wait() {
                    return daemon.obituary(status).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends all, the last that was started first.
    ///
    /// # Errors
    /// Where one had to be killed.
    pub(crate) async fn stop(&mut self) -> Result<(), CliError> {
        let mut killed = Vec::new();
        while let Some(mut daemon) = self.running.pop() {
            if let Some(pid) = daemon.child.id().and_then(|id| i32::try_from(id).ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            if tokio::time::timeout(END_PATIENCE, daemon.child.wait())
                .await
                .is_err()
            {
                let _ = daemon.child.kill().await;
                killed.push(daemon.name);
            }
            daemon.log.finish().await;
        }
        if killed.is_empty() {
            Ok(())
        } else {
            Err(CliError::Other(format!(
                "had to kill {}: it did not end within {} s",
                killed.join(", "),
                END_PATIENCE.as_secs()
            )))
        }
    }
}

impl Running {
    /// How it ended, by its own last error where it said one.
    async fn obituary(&mut self, status: ExitStatus) -> CliError {
        self.log.finish().await;
        let said = self
            .log
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let why = said.unwrap_or_else(|| status.to_string());
        CliError::Other(format!("{} ended: {why}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn daemon(folder: &Path, name: &'static str, script: &str) -> Daemon {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Daemon::new(name, folder).unwrap()
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("longship-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test]
    async fn the_one_that_ends_is_named_with_its_reason() {
        let folder = folder("died");
        let mut daemons = Daemons::default();
        daemons
            .start(daemon(&folder, "fine", "exec sleep 1000"))
            .unwrap();
        let script = "echo error: --listen 1: in use >&2; exit 1";
        daemons.start(daemon(&folder, "broken", script)).unwrap();
        let error = daemons
            .or_died::<()>(std::future::pending())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "broken ended: --listen 1: in use");
        daemons.stop().await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn they_end_in_reverse_order() {
        let folder = folder("order");
        let order = folder.join("order");
        let script = |name: &str| {
            let order = order.display();
            format!(
                "trap 'echo {name} >> {order}; exit 0' TERM; echo up >> {order}; while :; do sleep 0.01; done"
            )
        };
        let mut daemons = Daemons::default();
        daemons
            .start(daemon(&folder, "first", &script("first")))
            .unwrap();
        daemons
            .start(daemon(&folder, "second", &script("second")))
            .unwrap();
        while std::fs::read_to_string(&order).unwrap_or_default() != "up\nup\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemons.stop().await.unwrap();
        let said = std::fs::read_to_string(&order).unwrap();
        assert_eq!(said, "up\nup\nsecond\nfirst\n");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_daemon_that_is_not_there_is_named() {
        let error = Daemon::new("longship-none", Path::new("/nowhere")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nowhere/longship-none is missing"),
            "{error}"
        );
    }
}
