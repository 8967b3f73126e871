//! What strangers cost a real process.

use std::time::{Duration, Instant};

use longship_proto::control::v1::ListPodsRequest;
use longship_proto::control::v1::pods_client::PodsClient;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::callers::With;
use crate::certificates::Ca;
use crate::process::{Running, command, start_by};

const MIB: u64 = 1 << 20;

fn resident_bytes(running: &Running) -> u64 {
    let path = format!("/proc/{}/status", running.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// A server with TLS in a process of its own.
fn secured(ca: &Ca, dir: &std::path::Path) -> (Running, String) {
    let files = ca.files(dir);
    let mut command = command("127.0.0.1:0", &dir.join("state"));
    command.arg("--tls-cert").arg(&files.cert);
    command.arg("--tls-key").arg(&files.key);
    command.arg("--client-ca").arg(&files.client_ca);
    start_by(command)
}

async fn connect(ca: &Ca, address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
    let endpoint = endpoint.tls_config(ca.trusted()).unwrap();
    endpoint.connect().await.unwrap()
}

/// How long a connection lasts on which nobody who is known calls.
const STRANGER: Duration = Duration::from_secs(10);

/// Calls with so many tokens that nobody made, each another one, over one connection at
/// a time: it ends when the patience with it does, and another one is made.
async fn refused(ca: &Ca, address: &str, from: u64, count: u64) {
    const AT_ONCE: u64 = 64;
    let (mut channel, mut since) = (connect(ca, address).await, Instant::now());
    for at in (from..from + count).step_by(64) {
        if since.elapsed() > STRANGER / 2 {
            (channel, since) = (connect(ca, address).await, Instant::now());
        }
        let mut calls = JoinSet::new();
        for n in at..at + AT_ONCE {
            let value = format!("Bearer {n:016x}.{}", "A".repeat(43));
            let with = With(Some(value.parse().unwrap()));
            let mut pods = PodsClient::new(InterceptedService::new(channel.clone(), with));
            calls.spawn(async move {
                let listed = pods.list_pods(ListPodsRequest::default()).await;
                let refused = listed.unwrap_err();
                let ended = since.elapsed() >= STRANGER;
                let known = refused.code() == Code::Unauthenticated;
                assert!(known || ended, "{refused:?}");
            });
        }
        calls.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_leave_nothing_behind() {
    const CONNECTIONS: u64 = 4;
    const CALLS: u64 = 4096;
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let (running, address) = secured(&ca, dir.path());
    let flood = async |round: u64| {
        let from = |n| (round * CONNECTIONS + n) * CALLS;
        tokio::join!(
            refused(&ca, &address, from(0), CALLS),
            refused(&ca, &address, from(1), CALLS),
            refused(&ca, &address, from(2), CALLS),
            refused(&ca, &address, from(3), CALLS),
        );
        resident_bytes(&running)
    };
    // The first fills what is kept for the next calls.
    let before = flood(0).await;
    let begun = Instant::now();
    let mut after = 0;
    for round in 1..=2 {
        after = flood(round).await;
    }
    let calls = 2 * CONNECTIONS * CALLS;
    let rate = calls as f64 / begun.elapsed().as_secs_f64();
    let (from, to) = (before / 1024, after / 1024);
    println!("{calls} bad tokens, {rate:.0} a second: {from} KiB before, {to} KiB after");
    assert!(
        after < before + 2 * MIB,
        "{before} bytes before, {after} after"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_cost_little_and_are_given_up() {
    const CONNECTIONS: u64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let (running, address) = secured(&ca, dir.path());
    let before = resident_bytes(&running);
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    // Meanwhile others are served.
    refused(&ca, &address, 0, 64).await;
    let after = resident_bytes(&running);
    let each = after.saturating_sub(before) / CONNECTIONS;
    println!("{CONNECTIONS} silent connections: {each} bytes each");
    assert!(each < 64 << 10, "{before} bytes before, {after} after");
    for tcp in &mut silent {
        // The end, or a reset, when the patience with it is over.
        assert!(matches!(tcp.read(&mut [0; 64]).await, Ok(0) | Err(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_operators_token_is_made_in_the_store() {
    use longship_proto::control::v1::ListTokensRequest;
    use longship_proto::control::v1::tenants_client::TenantsClient;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let make = || {
        let mut make = std::process::Command::new(env!("CARGO_BIN_EXE_longship-control"));
        make.args(["token", "--role", "operator", "--state"]);
        make.arg(&state).output().unwrap()
    };
    let made = make();
    assert!(made.status.success(), "{made:?}");
    let token = String::from_utf8(made.stdout).unwrap();
    let ca = Ca::new();
    let (_running, address) = secured(&ca, dir.path());
    let value = format!("Bearer {}", token.trim()).parse().unwrap();
    let channel = connect(&ca, &address).await;
    let with = With(Some(value));
    let mut tenants = TenantsClient::new(InterceptedService::new(channel, with));
    let listed = tenants.list_tokens(ListTokensRequest::default()).await;
    let listed = listed.unwrap().into_inner().tokens;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, token.split('.').next().unwrap());
    // The server has the store now.
    let error = crate::process::fails(&make());
    assert!(
        error.contains("another process has this store open"),
        "{error}"
    );
}
