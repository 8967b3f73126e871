//! A server with TLS: whom it lets in, as whom, and what a stranger costs it.

use std::time::Duration;

use longship_control::{Config, Server, StartError, TlsFiles};
use longship_proto::control::v1::Role;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{CreatePodRequest, GetPodAccessRequest, ListPodsRequest};
use longship_proto::{Class, token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::callers::{
    Client, FOR_CARDS, FOR_EDITORS, FOR_EVERYBODY, FOR_OPERATORS, FOR_VIEWERS, With, may_only,
};
use crate::card::{Card, register};
use crate::certificates::Ca;
use crate::setup::{Control, PATIENCE, answer, pod};
use crate::tenants::{pod_in, tenant};

/// A server with TLS, all of whose helpers call as an operator.
async fn secured(change: impl FnOnce(&mut Config)) -> (Control, Ca) {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let files = ca.files(dir.path());
    let mut control = Control::start_with(|config| {
        config.tls = Some(files);
        change(config);
    })
    .await;
    let ann = ca.client(&["longship://operator/ann"]);
    control.operator = Some(ca.trusted().identity(ann.identity()));
    (control, ca)
}

fn silent(channel: Channel) -> Client {
    InterceptedService::new(channel, With::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_who_calls() {
    let (control, ca) = secured(|_| {}).await;
    let operators = [FOR_EVERYBODY, FOR_VIEWERS, FOR_EDITORS, FOR_OPERATORS];
    let denied = Code::PermissionDenied;
    let unknown = Code::Unauthenticated;
    let card = ["longship://card/host-1"];
    let two = ["longship://card/host-1", "longship://operator/ann"];
    for (who, uris, allowed, code) in [
        (
            "an operator",
            &["longship://operator/ann"][..],
            &operators[..],
            denied,
        ),
        ("a card", &card, &[FOR_EVERYBODY, FOR_CARDS], denied),
        ("nobody in particular", &[], &[FOR_EVERYBODY], unknown),
        ("two at once", &two, &[FOR_EVERYBODY], unknown),
        (
            "another kind",
            &["longship://tenant/red"],
            &[FOR_EVERYBODY],
            unknown,
        ),
    ] {
        let identity = ca.client(uris).identity();
        let channel = control.connect(Some(ca.trusted().identity(identity))).await;
        may_only(&silent(channel.unwrap()), who, allowed, code).await;
    }
    // Without a certificate nobody is known; with a token, whose it is.
    let channel = control.connect(Some(ca.trusted())).await.unwrap();
    may_only(
        &silent(channel.clone()),
        "nobody",
        &[FOR_EVERYBODY],
        unknown,
    )
    .await;
    control.put_tenant(tenant("red", &["shop"])).await.unwrap();
    let token = control.token("red", Role::Viewer).await.token;
    let value = format!("Bearer {token}").parse().unwrap();
    let viewer = InterceptedService::new(channel, With(Some(value)));
    may_only(&viewer, "a viewer", &[FOR_EVERYBODY, FOR_VIEWERS], denied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_another_cas_certificate_does_not_come_in() {
    let (control, ca) = secured(|_| {}).await;
    let other = Ca::new();
    let uri = "longship://operator/ann";
    let foreign = other.client(&[uri]).identity();
    let expired = ca.expired(uri).identity();
    for (who, tls) in [
        ("another CA's", ca.trusted().identity(foreign)),
        ("expired", ca.trusted().identity(expired)),
        // The client finds out that this is not its server.
        ("not trusting it", other.trusted()),
    ] {
        // TLS 1.3: a client learns of the refusal when it first reads.
        let refused = match control.connect(Some(tls)).await {
            Err(_) => true,
            Ok(channel) => {
                let mut pods = PodsClient::new(channel);
                let listed = pods.list_pods(ListPodsRequest::default()).await;
                let status = listed.unwrap_err();
                !matches!(
                    status.code(),
                    Code::Unauthenticated | Code::PermissionDenied
                )
            }
        };
        assert!(refused, "{who}");
    }
    // Nor does who speaks no TLS at all.
    let plain = Channel::from_shared(format!("http://{}", control.address)).unwrap();
    if let Ok(channel) = plain.connect().await {
        let mut pods = PodsClient::new(channel);
        pods.list_pods(ListPodsRequest::default())
            .await
            .unwrap_err();
    }
    control.hosts().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_speaks_for_its_own_host_only() {
    let (control, ca) = secured(|_| {}).await;
    let identity = ca.client(&["longship://card/host-1"]).identity();
    let tls = ca.trusted().identity(identity);
    let channel = control.connect(Some(tls.clone())).await.unwrap();
    let refused = Card::attach_over(channel.clone(), register("host-2", "zone-a")).await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.class(), Class::Denied);
    assert_eq!(refused.field, "register.host");
    let one = Card::attach_over(channel, register("host-1", "zone-a")).await;
    let one = one.unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(control.hosts().await.len(), 1);

    // Its key opens its own pods' streams, and no other card's.
    let identity = ca.client(&["longship://card/host-2"]).identity();
    let tls = ca.trusted().identity(identity);
    let channel = control.connect(Some(tls)).await.unwrap();
    let two = Card::attach_over(channel, register("host-2", "zone-b")).await;
    let two = two.unwrap_or_else(|refused| panic!("{refused}"));
    let mut web = pod("web", 500, 512);
    web.spec.get_or_insert_default().zone = "zone-a".into();
    control.create(web).await.unwrap();
    let request = GetPodAccessRequest {
        namespace: String::new(),
        name: "web".into(),
    };
    let access = answer(control.pods().await.get_pod_access(request).await).unwrap();
    let verify = |key: &[u8]| token::verify(key, &access.token, &access.pod_uid, 0);
    assert_eq!(verify(&one.token_key), Ok(()));
    assert_eq!(verify(&two.token_key), Err(token::TokenError::Signature));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_a_namespace_that_nobody_claims_is_nobodys() {
    let (control, _ca) = secured(|_| {}).await;
    let refused = control.create(pod_in("bench", "web")).await.unwrap_err();
    assert_eq!(refused.class(), Class::NotFound);
    assert_eq!(refused.field, "metadata.namespace");
    control.create(pod("web", 500, 512)).await.unwrap();
    control.put_tenant(tenant("red", &["bench"])).await.unwrap();
    control.create(pod_in("bench", "web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_not_waited_for() {
    let patience = Duration::from_millis(300);
    let (control, ca) = secured(|config| config.stranger_patience = patience).await;
    // Two that begin no handshake, one that begins and stops.
    let begun = Instant::now();
    let mut silent = Vec::new();
    for first in [&b""[..], b"", &[0x16, 0x03, 0x01]] {
        let mut tcp = TcpStream::connect(control.address).await.unwrap();
        tcp.write_all(first).await.unwrap();
        silent.push(tcp);
    }
    for tcp in &mut silent {
        let read = tokio::time::timeout(PATIENCE, tcp.read(&mut [0; 64])).await;
        // The end, or a reset.
        assert!(matches!(read.unwrap(), Ok(0) | Err(_)));
    }
    assert!(begun.elapsed() >= patience);

    // One with TLS, but nothing to say who it is: it may ask for health only.
    let stranger = control.connect(Some(ca.trusted())).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(stranger);
    let watched = health.watch(tonic_health::pb::HealthCheckRequest::default());
    let mut statuses = watched.await.unwrap().into_inner();
    statuses.message().await.unwrap().unwrap();
    let ended = tokio::time::timeout(PATIENCE, statuses.message()).await;
    assert!(!matches!(ended.unwrap(), Ok(Some(_))));

    // Who is known may be silent.
    let known = control.channel().await;
    let mut pods = PodsClient::new(known);
    pods.list_pods(ListPodsRequest::default()).await.unwrap();
    tokio::time::sleep(3 * patience).await;
    pods.list_pods(ListPodsRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_may_be_wait_for_their_turn() {
    let (control, _ca) = secured(|config| {
        config.max_connections = 4;
        config.stranger_patience = Duration::from_millis(500);
    })
    .await;
    let mut strangers = Vec::new();
    for _ in 0..12 {
        strangers.push(TcpStream::connect(control.address).await.unwrap());
    }
    // It gets its turn when those before it have been given up.
    let connected = tokio::time::timeout(PATIENCE, control.channel());
    let mut pods = PodsClient::new(connected.await.unwrap());
    pods.list_pods(ListPodsRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_messages_are_bounded() {
    let (control, ca) = secured(|_| {}).await;
    let channel = control.connect(Some(ca.trusted())).await.unwrap();
    let value = format!("Bearer {}", "A".repeat(64 << 10)).parse().unwrap();
    let mut large = PodsClient::new(InterceptedService::new(channel, With(Some(value))));
    large
        .list_pods(ListPodsRequest::default())
        .await
        .unwrap_err();

    let mut big = pod("big", 500, 512);
    let annotations = &mut big.metadata.get_or_insert_default().annotations;
    annotations.insert("a".into(), "b".repeat(10 << 20));
    let request = CreatePodRequest {
        pod: Some(big),
        ..CreatePodRequest::default()
    };
    let mut pods = control.pods().await;
    let refused = pods.create_pod(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_for_others_is_not_open_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let mut config = Config::new(everywhere, dir.path().join("state"));
    let refused = Server::start(&config).await.err().unwrap();
    assert!(matches!(refused, StartError::Open(_)), "{refused}");
    assert!(refused.to_string().contains("--insecure-open"), "{refused}");
    assert!(!dir.path().join("state").exists());
    config.insecure_open = true;
    Server::start(&config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let good = ca.files(dir.path());
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing");
    let other = ca.files(tempfile::tempdir().unwrap().keep().as_path()).key;
    let with = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = good.clone();
        change(&mut files);
        files
    };
    for (files, flag) in [
        (with(&|files| files.cert.clone_from(&missing)), "--tls-cert"),
        (with(&|files| files.cert.clone_from(&empty)), "--tls-cert"),
        (with(&|files| files.key.clone_from(&empty)), "--tls-key"),
        (with(&|files| files.key.clone_from(&other)), "--tls-cert"),
        (
            with(&|files| files.client_ca.clone_from(&empty)),
            "--client-ca",
        ),
    ] {
        let mut config = Config::new("127.0.0.1:0".parse().unwrap(), dir.path().join("state"));
        config.tls = Some(files);
        let refused = Server::start(&config).await.err().unwrap().to_string();
        assert!(refused.starts_with(flag), "{refused}");
    }
}
