//! A real etcd (Debian's `etcd-server`) on free ports of the loopback address, with its
//! data in a temporary directory. Tests kill it, pause it and start it again.
//!
//! What fails here panics with the reason: a test cannot go on without it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // made for tests only

mod link;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use link::{Link, State};

/// Longer than any start takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// One etcd. It ends with this value, and its data with it.
#[derive(Debug)]
pub struct Etcd {
    dir: tempfile::TempDir,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// Where there is no etcd, or it does not start.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = free_ports();
        let mut etcd = Self {
            dir,
            client,
            peer,
            child: None,
        };
        etcd.restart();
        etcd
    }

    /// Where it serves clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again, where it does not run, on the same data and ports.
    ///
    /// # Panics
    /// Where there is no etcd, or it does not start.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            return;
        }
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "test", "--log-outputs", "stderr"])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            // A lease can be no shorter than 15 heartbeats: one second here.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = command.stderr(log).spawn();
        let child = child.expect("etcd is needed here: apt-get install etcd-server");
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while !self.healthy() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() || Instant::now() > until {
                let log = std::fs::read_to_string(self.dir.path().join("log"));
                panic!("etcd does not start: {ended:?}\n{}", log.unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it where it stands, as a machine that hangs does.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Removes a key behind everybody's back.
    ///
    /// # Panics
    /// Where that fails.
    pub fn remove(&self, key: &str) {
        use base64::Engine;
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let body = format!("{{\"key\":\"{key}\"}}");
        let answer = self.http(&format!(
            "POST /v3/kv/deleterange HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let answer = answer.unwrap();
        assert!(answer.contains("\"deleted\":\"1\""), "{answer}");
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    fn healthy(&self) -> bool {
        let answer = self.http("GET /health HTTP/1.0\r\n\r\n");
        answer.is_ok_and(|answer| answer.contains("\"true\""))
    }

    /// etcd answers the simplest HTTP too.
    fn http(&self, request: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address of this machine, with its port, on which nobody listens now.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn free_address() -> String {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    held.local_addr().unwrap().to_string()
}

fn free_ports() -> (u16, u16) {
    // Both are held until both are known, so that they differ.
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [client, peer] = held.map(|held| held.local_addr().unwrap().port());
    (client, peer)
}
