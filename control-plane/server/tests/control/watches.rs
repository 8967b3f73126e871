//! Watching pods.

use std::time::Duration;

use longship_proto::control::v1::pod_event::Type;
use longship_proto::control::v1::{ListPodsRequest, Phase, PodEvent, WatchPodsRequest};
use longship_proto::{Class, failure_of};
use longship_store::RedbOptions;
use tonic::Streaming;

use crate::card::Card;
use crate::setup::{Control, PATIENCE, answer, meta, pod, status};

async fn watch(control: &Control, request: WatchPodsRequest) -> Streaming<PodEvent> {
    answer(control.pods().await.watch_pods(request).await).unwrap()
}

async fn next(events: &mut Streaming<PodEvent>) -> (Type, String, Phase) {
    let event = tokio::time::timeout(PATIENCE, events.message()).await;
    let event = event.expect("an event in time").unwrap().unwrap();
    let kind = event.r#type();
    let pod = event.pod.unwrap();
    (kind, meta(&pod).name.clone(), status(&pod).phase())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_exists_and_then_every_change() {
    let control = Control::start().await;
    let card = Card::attach(&control, "host-1", "zone-a").await;
    control.create(pod("a", 500, 512)).await.unwrap();
    let mut elsewhere = pod("b", 500, 512);
    elsewhere.metadata.as_mut().unwrap().namespace = "other".into();
    control.create(elsewhere).await.unwrap();

    let mut all = watch(&control, WatchPodsRequest::default()).await;
    assert_eq!(
        next(&mut all).await,
        (Type::Added, "a".into(), Phase::Scheduled)
    );
    assert_eq!(
        next(&mut all).await,
        (Type::Added, "b".into(), Phase::Scheduled)
    );
    let of_a = WatchPodsRequest {
        namespace: "default".into(),
        name: "a".into(),
        ..WatchPodsRequest::default()
    };
    let mut only_a = watch(&control, of_a).await;
    assert_eq!(
        next(&mut only_a).await,
        (Type::Added, "a".into(), Phase::Scheduled)
    );

    control.create(pod("ab", 500, 512)).await.unwrap();
    let a = control.get("a").await.unwrap();
    card.report(&a, Phase::Running).await;
    control.wait_phase("a", Phase::Running).await;
    control.delete("a").await.unwrap();
    card.report(&a, Phase::Released).await;

    assert_eq!(
        next(&mut all).await,
        (Type::Added, "ab".into(), Phase::Scheduled)
    );
    for events in [&mut all, &mut only_a] {
        assert_eq!(
            next(events).await,
            (Type::Modified, "a".into(), Phase::Running)
        );
        assert_eq!(
            next(events).await,
            (Type::Modified, "a".into(), Phase::Running)
        );
        assert_eq!(
            next(events).await,
            (Type::Deleted, "a".into(), Phase::Released)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_a_list_and_after_a_restart() {
    let mut control = Control::start().await;
    control.create(pod("a", 500, 512)).await.unwrap();
    let listed = control
        .pods()
        .await
        .list_pods(ListPodsRequest::default())
        .await;
    let listed = answer(listed).unwrap();
    assert_eq!(listed.pods.len(), 1);
    assert_eq!(listed.pods[0], control.get("a").await.unwrap());
    let from = WatchPodsRequest {
        resource_version: listed.resource_version,
        ..WatchPodsRequest::default()
    };
    let mut events = watch(&control, from.clone()).await;
    control.create(pod("b", 500, 512)).await.unwrap();
    assert_eq!(
        next(&mut events).await,
        (Type::Added, "b".into(), Phase::Pending)
    );

    control.restart().await;
    let ended = tokio::time::timeout(PATIENCE, events.message())
        .await
        .unwrap();
    assert_eq!(failure_of(&ended.unwrap_err()).class(), Class::Unavailable);
    control.delete("a").await.unwrap();
    let mut events = watch(&control, from).await;
    assert_eq!(
        next(&mut events).await,
        (Type::Added, "b".into(), Phase::Pending)
    );
    assert_eq!(
        next(&mut events).await,
        (Type::Deleted, "a".into(), Phase::Released)
    );
}

/// Makes more changes than a connection buffers, with a large pod each.
async fn many_changes(control: &Control) {
    let card = Card::attach(control, "host-1", "zone-a").await;
    let mut large = pod("large", 500, 512);
    let annotations = &mut large.metadata.as_mut().unwrap().annotations;
    annotations.insert("ballast".into(), "x".repeat(60_000));
    let large = control.create(large).await.unwrap();
    for n in 0..200 {
        let mut report = status(&large).clone();
        report.set_phase(Phase::Running);
        report.message = format!("{n}");
        card.report_as(&meta(&large).uid, 1, report).await;
        control
            .wait("large", |pod| status(pod).message == n.to_string())
            .await;
    }
}

async fn read_to_the_end(events: &mut Streaming<PodEvent>) -> (usize, Class) {
    let mut read = 0;
    loop {
        match tokio::time::timeout(PATIENCE, events.message())
            .await
            .expect("an end")
        {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => return (read, failure_of(&status).class()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_not_read_ends_when_the_history_has_gone_on() {
    let control = Control::start_with(|config| {
        config.history = RedbOptions {
            log_transactions: 20,
            ..RedbOptions::default()
        };
    })
    .await;
    let mut events = watch(&control, WatchPodsRequest::default()).await;
    many_changes(&control).await;
    let (read, class) = read_to_the_end(&mut events).await;
    assert_eq!(class, Class::Exhausted);
    assert!(read < 100, "{read} events had been kept for it");
    let old = WatchPodsRequest {
        resource_version: 2,
        ..WatchPodsRequest::default()
    };
    let refused = answer(control.pods().await.watch_pods(old).await).unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Invalid, "resource_version")
    );
    assert!(refused.message.contains("list again"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_not_read_ends_when_patience_does() {
    let control = Control::start_with(|config| {
        config.watcher_patience = Duration::from_millis(300);
    })
    .await;
    let mut events = watch(&control, WatchPodsRequest::default()).await;
    many_changes(&control).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (read, class) = read_to_the_end(&mut events).await;
    assert_eq!(class, Class::Exhausted);
    assert!(read < 100, "{read} events had been kept for it");
}
