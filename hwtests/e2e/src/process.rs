//! A child process that cannot outlive its test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running child whose output goes to a file.
pub struct Process {
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; its standard output and error go to `output`.
    pub fn spawn(command: &mut Command, output: &Path) -> Self {
        let file = File::create(output).expect("create the child's output file");
        let other = file.try_clone().expect("duplicate a descriptor");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(other)
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        Self {
            child,
            output: output.to_owned(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Whether it has ended, and with which code (`None` inside: by a signal).
    pub fn ended(&mut self) -> Option<Option<i32>> {
        self.child
            .try_wait()
            .expect("wait for a child")
            .map(|status| status.code())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended just now; whoever cares looks at `ended`.
        let _ = kill(self.pid(), signal);
    }

    /// Asks it to end and waits; its exit code. Panics when it does not end in 30 s.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(code) = self.ended() {
                return code;
            }
            assert!(
                Instant::now() < give_up,
                "a child ignores SIGTERM:\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have children of its own to take down.
        self.signal(Signal::SIGTERM);
        let give_up = Instant::now() + Duration::from_secs(10);
        while self.ended().is_none() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
