//! Daemons as child processes: started in order, ended in reverse, and missed at once
//! when one ends by itself.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::error::CliError;

/// Between SIGTERM and SIGKILL. A daemon ends what it serves first.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// How much of a log is searched for the reason of an end, bytes.
const LOG_TAIL: u64 = 8 << 10;

/// A daemon to start.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
}

impl Daemon {
    /// The daemon `name`, found in `folder`, with its log in `logs`.
    pub(crate) fn new(name: &'static str, folder: &Path, logs: &Path) -> Result<Self, CliError> {
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
            log: logs.join(format!("{name}.log")),
        })
    }

    pub(crate) fn flag(&mut self, flag: &str, value: impl Into<OsString>) {
        self.arguments.push(flag.into());
        self.arguments.push(value.into());
    }
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    log: PathBuf,
    child: Child,
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
    /// [`CliError::File`] at its program or log.
    pub(crate) fn start(&mut self, daemon: Daemon) -> Result<(), CliError> {
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |error| CliError::File { path, error }
        };
        let log = File::create(&daemon.log).map_err(file_error(&daemon.log))?;
        let output = log.try_clone().map_err(file_error(&daemon.log))?;
        let mut command = std::process::Command::new(&daemon.program);
        command
            .args(&daemon.arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            // A terminal's Ctrl-C is for this command, which ends them in order.
            .process_group(0);
        // SAFETY: prctl(2) is a plain system call, fine between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Where this command is killed, its daemons end too.
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into)
            });
        }
        let child = Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(file_error(&daemon.program))?;
        self.running.push(Running {
            name: daemon.name,
            log: daemon.log,
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
                    return daemon.obituary(status);
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
    fn obituary(&self, status: ExitStatus) -> CliError {
        let said = last_error(&self.log).unwrap_or_else(|| status.to_string());
        CliError::Other(format!(
            "{} ended: {said} (log: {})",
            self.name,
            self.log.display()
        ))
    }
}

/// The last `error: …` in a log, without that word.
fn last_error(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes)
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn daemon(folder: &Path, name: &'static str, script: &str) -> Daemon {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Daemon::new(name, folder, folder).unwrap()
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
        let text = error.to_string();
        assert!(
            text.starts_with("broken ended: --listen 1: in use (log: "),
            "{text}"
        );
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
        let error =
            Daemon::new("longship-none", Path::new("/nowhere"), Path::new("/")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nowhere/longship-none is missing"),
            "{error}"
        );
    }
}
