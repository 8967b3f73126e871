//! Debian's docker-registry on a loopback port.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::run;

pub struct Registry {
    pub address: String,
    server: Child,
    directory: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            directory.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry (Debian package docker-registry)");
        let mut registry = Self {
            address,
            server,
            directory,
        };
        let started = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            if registry.server.try_wait().unwrap().is_some()
                || started.elapsed() > Duration::from_secs(20)
            {
                let _ = registry.server.kill();
                let mut said = String::new();
                let mut stderr = registry.server.stderr.take().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                panic!("the registry did not start: {said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Copies an image of an OCI layout to `name` of this registry, and gives its
    /// reference.
    pub fn push(&self, layout: &Path, tag: &str, name: &str, options: &[&str]) -> String {
        let reference = format!("{}/{name}", self.address);
        run(Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
            ])
            .args(options)
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{reference}")));
        reference
    }

    /// The directory in which the registry keeps its blobs.
    pub fn blob(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.directory
            .path()
            .join("data/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    pub fn stop(mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
