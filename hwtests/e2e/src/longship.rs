//! A whole Longship, brought up by its own command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Process, Residue, eventually};

/// Address of the control plane in the tests.
const LISTEN: &str = "127.0.0.1:7700";

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; `None`: by a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Panics unless the command ended with code 0.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Panics unless the command was refused with code `code` and says all of `texts`.
    pub fn refused(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "`{text}` is not said: {self:#?}"
            );
        }
        self
    }
}

/// Runs a command to its end.
pub fn run_to_end(command: &mut Command) -> Outcome {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// One of our release binaries, which `make` has built.
pub fn binary(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// `vmlinux` or `initramfs.cpio`, which `make guest` has built.
pub fn guest_file(name: &str) -> PathBuf {
    target().join("guest").join(name)
}

fn target() -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
}

/// Control plane, card and agent on this machine. When it is dropped it is taken
/// down, and nothing may be left.
pub struct Longship {
    running: Running,
    directory: TempDir,
}

/// The running processes, apart from the directory that outlives them.
struct Running {
    up: Process,
    before: Residue,
}

impl Longship {
    /// Brings it up and waits until a host is ready.
    pub fn up() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::up_in(directory, &[])
    }

    /// As [`Longship::up`], with more flags.
    pub fn up_with(flags: &[&str]) -> Self {
        Self::up_in(tempfile::tempdir().expect("a temporary directory"), flags)
    }

    fn up_in(directory: TempDir, flags: &[&str]) -> Self {
        let before = Residue::now();
        let mut up = Process::spawn(
            &mut up_command(directory.path(), flags),
            &directory.path().join("up.log"),
        );
        eventually(240, "Longship is up", || {
            if let Some(code) = up.ended() {
                panic!("`longship up` ended with {code:?}:\n{}", up.output());
            }
            let hosts = cli(&["get", "hosts", "-o", "json"]);
            hosts.code == Some(0) && hosts.stdout.contains("\"ready\": true")
        });
        Self {
            running: Running { up, before },
            directory,
        }
    }

    /// Takes it down and brings it up again with the same state.
    pub fn restart(self) -> Self {
        let Self { running, directory } = self;
        drop(running);
        Self::up_in(directory, &[])
    }

    /// Runs the CLI against it.
    pub fn cli(&self, arguments: &[&str]) -> Outcome {
        cli(arguments)
    }

    /// The CLI, to be started otherwise.
    pub fn command(&self, arguments: &[&str]) -> Command {
        cli_command(arguments)
    }

    /// A pod as the API has it.
    pub fn pod(&self, name: &str) -> Value {
        let got = self.cli(&["get", "pod", name, "-o", "json"]).ok();
        serde_json::from_str(&got.stdout).expect("parse a pod")
    }

    /// Makes a pod from YAML.
    pub fn create(&self, yaml: &str) -> Outcome {
        let path = self.directory.path().join("pod.yaml");
        std::fs::write(&path, yaml).expect("write a pod's YAML");
        self.cli(&["create", "-f", &path.to_string_lossy()])
    }

    /// Deletes a pod and waits until all of it is released.
    pub fn delete(&self, name: &str) {
        self.cli(&["delete", "pod", name, "--wait"]).ok();
    }

    /// What the card holds, from its journal.
    pub fn held(&self) -> String {
        self.of_card(&["get", "held"])
    }

    /// What pods, host and card use, as `longship top` has it.
    pub fn usage(&self) -> Value {
        serde_json::from_str(&self.of_card(&["top", "-o", "json"])).expect("parse the usage")
    }

    /// The host's templates.
    pub fn templates(&self) -> Vec<Value> {
        let templates = self.usage()["host"]["templates"].take();
        templates.as_array().cloned().unwrap_or_default()
    }

    /// What a command that asks the card prints.
    fn of_card(&self, arguments: &[&str]) -> String {
        let socket = self.directory.path().join("run/card.sock");
        let card = format!("unix:{}", socket.display());
        self.cli(&[arguments, &["--card", &card]].concat())
            .ok()
            .stdout
    }

    /// Panics unless the card holds nothing and keeps no socket of a pod.
    pub fn assert_nothing_held(&self) {
        let held = self.held();
        assert_eq!(
            held.lines().filter(|l| !l.trim().is_empty()).count(),
            0,
            "held:\n{held}"
        );
        let sockets = self.directory.path().join("run/card");
        let left: Vec<_> = std::fs::read_dir(&sockets)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(left.is_empty(), "sockets left: {left:?}");
    }

    /// The process id of the child called `name`.
    pub fn child(&self, name: &str) -> i32 {
        let found = run_to_end(Command::new("pgrep").args(["-x", name])).stdout;
        found
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("no single process {name}: {found}"))
    }

    /// What its processes have logged.
    pub fn log(&self) -> String {
        self.running.up.output()
    }

    /// Its own process.
    pub fn up_process(&mut self) -> &mut Process {
        &mut self.running.up
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Longship's log ---\n{}", self.up.output());
            return;
        }
        if self.up.ended().is_none() {
            let code = self.up.terminate();
            assert_eq!(
                code,
                Some(0),
                "`longship up` ended badly:\n{}",
                self.up.output()
            );
        }
        self.before.assert_nothing_new();
    }
}

/// `longship up` with everything below `directory`.
pub fn up_command(directory: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(binary("longship"));
    command
        .arg("up")
        .arg("--state")
        .arg(directory.join("state"))
        .arg("--runtime-dir")
        .arg(directory.join("run"))
        .arg("--guest")
        .arg(guest_file("vmlinux").parent().expect("a directory"))
        .args(flags);
    command
}

fn cli_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("longship"));
    command
        .args(arguments)
        .env("LONGSHIP_SERVER", format!("http://{LISTEN}"));
    command
}

fn cli(arguments: &[&str]) -> Outcome {
    run_to_end(&mut cli_command(arguments))
}
