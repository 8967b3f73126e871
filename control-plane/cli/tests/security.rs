//! What `docs/security.md` says to type, typed: real processes on the loopback address.
#![allow(clippy::unwrap_used)] // the helpers are tests too

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use longship_proto::control::v1::cards_client::CardsClient;
use longship_proto::control::v1::{FromCard, HostCapacity, Register, from_card, to_card};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

const DOC: &str = include_str!("../../../docs/security.md");

/// Folder of both programs. The other package's is built first: nothing says that it has
/// been.
fn programs() -> PathBuf {
    let longship = PathBuf::from(env!("CARGO_BIN_EXE_longship"));
    let folder = longship.parent().unwrap().to_owned();
    let mut build = Command::new(env!("CARGO"));
    build.args([
        "build",
        "-q",
        "-p",
        "longship-control",
        "--bin",
        "longship-control",
    ]);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    build.arg("--target-dir").arg(folder.parent().unwrap());
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().unwrap().success());
    folder
}

/// The lines of the n-th block of commands.
fn block(n: usize) -> Vec<&'static str> {
    let after = DOC.split("```sh\n").nth(n + 1).unwrap();
    after.split("```").next().unwrap().lines().collect()
}

struct Shell {
    programs: PathBuf,
    folder: tempfile::TempDir,
    address: String,
    environment: Vec<(&'static str, String)>,
}

impl Shell {
    fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            programs: programs(),
            folder: tempfile::tempdir().unwrap(),
            address: free.local_addr().unwrap().to_string(),
            environment: Vec::new(),
        }
    }

    /// What is typed, on this test's own port.
    fn command(&self, line: &str) -> Command {
        let line = line.replace("127.0.0.1:7700", &self.address);
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-euc", &format!("exec {line}")]);
        shell.env("PATH", format!("{}:{path}", self.programs.display()));
        shell.env_remove("RUST_LOG").stdin(Stdio::null());
        shell.current_dir(self.folder.path());
        for name in ["SERVER", "CA", "TOKEN", "CERT", "KEY"] {
            shell.env_remove(format!("LONGSHIP_{name}"));
        }
        shell.envs(self.environment.iter().cloned());
        shell
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What it prints.
    fn done(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// With which error it ends.
    fn refused(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(!output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts a server, and waits until it listens.
    fn serve(&self, line: &str) -> Server {
        let mut command = self.command(line);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let server = Server(child);
        let listens = lines.any(|line| line.unwrap().contains("listening"));
        assert!(listens, "{line}");
        std::thread::spawn(move || lines.for_each(drop));
        server
    }

    fn file(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(path)).unwrap()
    }

    /// Attaches with that certificate as the card of that host.
    async fn attach(&self, name: &str, host: &str) -> Result<(), Code> {
        let identity = Identity::from_pem(
            self.file(&format!("pki/{name}.crt")),
            self.file(&format!("pki/{name}.key")),
        );
        let ca = Certificate::from_pem(self.file("pki/ca.crt"));
        let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity);
        let endpoint = Channel::from_shared(format!("https://{}", self.address)).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
        let register = Register {
            host: host.into(),
            zone: "zone-a".into(),
            capacity: Some(HostCapacity {
                cpu_millis: 4000,
                memory_bytes: 8 << 30,
                pods: 10,
                ..HostCapacity::default()
            }),
            endpoint: "https://127.0.0.1:7702".into(),
            ..Register::default()
        };
        let first = FromCard {
            message: Some(from_card::Message::Register(register)),
        };
        // The stream stays open: a card that says nothing more is still attached.
        let open = tokio_stream::StreamExt::chain(
            tokio_stream::once(first),
            tokio_stream::pending::<FromCard>(),
        );
        let attached = CardsClient::new(channel).attach(open).await;
        let mut answers = attached.map_err(|status| status.code())?.into_inner();
        let first = answers.message().await.map_err(|status| status.code())?;
        let first = first.and_then(|first| first.message);
        assert!(matches!(first, Some(to_card::Message::Registered(_))));
        Ok(())
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_says_works_as_it_is_written() {
    let mut shell = Shell::new();
    let five = block(0);
    let [init, server, operator, control, token] = five[..] else {
        panic!("not five commands: {five:?}");
    };
    for line in [init, server, operator] {
        shell.done(line);
    }
    let pki = shell.folder.path().join("pki");
    assert_eq!(mode(&pki), 0o700);
    for key in ["ca.key", "control.key", "operator-ann.key"] {
        assert_eq!(mode(&pki.join(key)), 0o600, "{key}");
    }
    // A second CA would make the first one's certificates worthless.
    assert!(shell.refused(init).contains("ca.key"));

    let running = shell.serve(control);
    let printed = shell.done(token);
    let secret = printed.trim().to_owned();
    assert_eq!(secret.len(), 16 + 1 + 43, "{secret}");

    // A card, with the certificate that is made for it.
    let cards = block(2);
    shell.done(cards[0]);
    assert!(cards[1].contains("--tls-cert pki/card-host-1.crt"));
    shell.attach("card-host-1", "host-1").await.unwrap();
    let other = shell.attach("card-host-1", "host-2").await;
    assert_eq!(other, Err(Code::PermissionDenied));
    let operator = shell.attach("operator-ann", "host-1").await;
    assert_eq!(operator, Err(Code::PermissionDenied));

    // The operator, by certificate.
    let url = format!("https://{}", shell.address);
    shell.environment = vec![
        ("LONGSHIP_SERVER", url.clone()),
        ("LONGSHIP_CA", "pki/ca.crt".into()),
        ("LONGSHIP_CERT", "pki/operator-ann.crt".into()),
        ("LONGSHIP_KEY", "pki/operator-ann.key".into()),
    ];
    let tenants = block(3);
    shell.done(tenants[0]);
    let viewer = shell.done(tenants[1]).trim().to_owned();
    let shown = shell.done(tenants[2]);
    let red = shown.lines().find(|line| line.starts_with("red")).unwrap();
    for part in ["shop,test", "0 of 100", "0 of 50", "0 of 200Gi"] {
        assert!(red.contains(part), "{shown}");
    }
    let tokens = shell.done(tenants[3]);
    let id = viewer.split('.').next().unwrap();
    let line = tokens.lines().find(|line| line.starts_with(id)).unwrap();
    assert!(
        line.contains("viewer") && line.contains("dashboard"),
        "{line}"
    );
    assert!(!tokens.contains(&viewer), "{tokens}");

    // The tenant, by its token; and not after it has been revoked.
    let operator = std::mem::take(&mut shell.environment);
    let as_viewer = |token: &str| {
        vec![
            ("LONGSHIP_SERVER", url.clone()),
            ("LONGSHIP_CA", "pki/ca.crt".into()),
            ("LONGSHIP_TOKEN", token.to_owned()),
        ]
    };
    shell.environment = as_viewer(&viewer);
    let get = block(1)[1];
    shell.done(&format!("{get} -n shop"));
    assert!(
        shell
            .refused(&format!("{get} -n default"))
            .contains("no tenant has")
    );
    assert!(
        shell
            .refused("longship get hosts")
            .contains("operators only")
    );
    assert!(
        shell
            .refused("longship delete pod web -n shop")
            .contains("editors")
    );
    shell.environment = operator;
    shell.done(&tenants[4].replace("ID", id));
    shell.environment = as_viewer(&viewer);
    let refused = shell.refused(&format!("{get} -n shop"));
    assert!(refused.contains("revoked"), "{refused}");

    // The first token still is the default tenant's editor's, after a restart too.
    shell.environment = as_viewer(&secret);
    shell.done(get);
    drop(running);
    let _running = shell.serve(control);
    shell.done(get);
    // And nothing is to be had without one, or from whom the CA does not know.
    shell.environment = as_viewer("");
    let refused = shell.refused(get);
    assert!(refused.contains("say who you are"), "{refused}");
    shell.environment = vec![("LONGSHIP_SERVER", url.clone())];
    let refused = shell.refused(get);
    assert!(refused.contains("cannot reach"), "{refused}");
}
