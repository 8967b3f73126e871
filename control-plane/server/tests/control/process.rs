//! The real process: its flags, how it fails to start, how it stops.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use longship_proto::control::v1::inventory_client::InventoryClient;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{
    CreatePodRequest, ListFlavorsRequest, ListHostsRequest, ListPodsRequest,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::setup::{PATIENCE, pod};

pub(crate) fn command(listen: &str, state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longship-control"));
    command.args(["--listen", listen, "--state"]).arg(state);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env_remove("RUST_LOG");
    command
}

/// The process, ended with the test whatever becomes of it.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it, and waits until it listens.
pub(crate) fn start(state: &Path) -> (Running, String) {
    let (running, address) = start_by(command("127.0.0.1:0", state));
    (running, format!("http://{address}"))
}

/// Starts what the command says; where it listens.
pub(crate) fn start_by(mut command: Command) -> (Running, String) {
    let child = command.spawn().unwrap();
    let mut running = Running(child);
    let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let line = lines.find(|line| line.as_ref().unwrap().contains("listening"));
    let line = line.expect("it listens").unwrap();
    let (_, address) = line.rsplit_once("address=").unwrap();
    let address = address.trim().to_owned();
    std::thread::spawn(move || lines.for_each(drop));
    (running, address)
}

fn stop(running: &mut Running, signal: Signal) -> Option<i32> {
    let pid = Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    kill(pid, signal).unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < until, "it does not stop");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn fails(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

/// All that the server serves beside health and reflection.
const SERVICES: [&str; 7] = [
    "Pods",
    "Inventory",
    "Networks",
    "Capacity",
    "ImageCaches",
    "Tenants",
    "Cards",
];

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_health_and_reflection_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut child, url) = start(dir.path());
        let channel = tonic::transport::Channel::from_shared(url).unwrap();
        let channel = channel.connect().await.unwrap();
        let mut inventory = InventoryClient::new(channel.clone());
        let flavors = inventory.list_flavors(ListFlavorsRequest {}).await.unwrap();
        assert!(flavors.into_inner().flavors.len() > 10);
        inventory
            .list_hosts(ListHostsRequest::default())
            .await
            .unwrap();

        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        for service in SERVICES {
            let request = tonic_health::pb::HealthCheckRequest {
                service: format!("longship.control.v1.{service}"),
            };
            let status = health.check(request).await.unwrap().into_inner().status;
            assert_eq!(status, 1, "{service}");
        }

        let list = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..ServerReflectionRequest::default()
        };
        let requests = tokio_stream::iter([list]);
        let mut reflection = ServerReflectionClient::new(channel.clone());
        let answers = reflection.server_reflection_info(requests).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
            panic!("{answer:?}");
        };
        let names: Vec<String> = services.service.into_iter().map(|s| s.name).collect();
        for service in SERVICES {
            let name = format!("longship.control.v1.{service}");
            assert!(names.contains(&name), "{name} of {names:?}");
        }

        // A connection that stays open does not hold it up.
        assert_eq!(stop(&mut child, signal), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, url) = start(dir.path());
    let channel = tonic::transport::Channel::from_shared(url).unwrap();
    let mut client = PodsClient::new(channel.connect().await.unwrap());
    let mut created = Vec::new();
    for n in 0..20 {
        let pod = Some(pod(&format!("pod-{n:02}"), 500, 512));
        let answered = client
            .create_pod(CreatePodRequest {
                pod,
                ..CreatePodRequest::default()
            })
            .await
            .unwrap();
        created.push(answered.into_inner());
    }
    assert_eq!(stop(&mut running, Signal::SIGKILL), None);

    let (_running, url) = start(dir.path());
    let channel = tonic::transport::Channel::from_shared(url).unwrap();
    let mut client = PodsClient::new(channel.connect().await.unwrap());
    let listed = client.list_pods(ListPodsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().pods, created);
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = command(&address, dir.path()).output().unwrap();
    assert_eq!(
        fails(&output),
        format!("error: --listen {address}: address in use")
    );
    assert!(
        !dir.path().join("control.redb").exists(),
        "nothing was created"
    );
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let output = command("127.0.0.1:0", &file).output().unwrap();
    assert_eq!(
        fails(&output),
        format!("error: --state {}: not a directory", file.display())
    );

    let below = file.join("below");
    let output = command("127.0.0.1:0", &below).output().unwrap();
    assert_eq!(
        fails(&output),
        format!("error: --state {}: not a directory", below.display())
    );

    let damaged = dir.path().join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join("control.redb"), "no store at all".repeat(1000)).unwrap();
    let error = fails(&command("127.0.0.1:0", &damaged).output().unwrap());
    assert!(
        error.contains("control.redb") && error.contains("no store"),
        "{error}"
    );
}

#[test]
fn a_store_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (mut first, _) = start(dir.path());
    let error = fails(&command("127.0.0.1:0", dir.path()).output().unwrap());
    assert!(
        error.ends_with("another process has this store open"),
        "{error}"
    );
    assert!(error.contains("control.redb"), "{error}");
    assert_eq!(stop(&mut first, Signal::SIGTERM), Some(0));
}

#[test]
fn bad_flags_exit_with_2_and_help_warns_of_the_open_api() {
    let dir = tempfile::tempdir().unwrap();
    let output = command("nowhere", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let help = Command::new(env!("CARGO_BIN_EXE_longship-control"))
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(
        text.contains("the API is open") && text.contains("loopback"),
        "{text}"
    );
}
