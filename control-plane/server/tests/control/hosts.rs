//! Hosts: leases, takeovers, registrations that are refused.

use std::time::Duration;

use longship_proto::Class;
use longship_proto::control::v1::{HostState, Phase, Register};

use crate::card::{Card, Change, register};
use crate::setup::{Control, meta, pod, status};

const LEASE: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_card_loses_its_lease_and_its_pods_say_so() {
    let control = Control::start_with(|config| config.lease = LEASE).await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let web = control.create(pod("web", 500, 512)).await.unwrap();
    let over = control.create(pod("over", 500, 512)).await.unwrap();
    card.report(&web, Phase::Running).await;
    card.report(&over, Phase::Succeeded).await;
    control.wait_phase("over", Phase::Succeeded).await;

    let lost = control
        .wait("web", |pod| !status(pod).reason.is_empty())
        .await;
    assert_eq!(status(&lost).reason, "HostUnreachable");
    assert!(
        status(&lost).message.contains("`host-1` is unreachable"),
        "{lost:?}"
    );
    assert_eq!(status(&lost).phase(), Phase::Unknown, "it may still run");
    assert_eq!(status(&lost).host, "host-1");
    assert!(control.hosts().await[0].state() != HostState::Ready);
    assert!(
        status(&control.get("over").await.unwrap())
            .reason
            .is_empty()
    );
    // Its stream has been ended with the reason.
    let ended = loop {
        match card.next().await {
            Ok(Some(Change::Assign(_))) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().class(), Class::Unavailable);

    let waits = control.create(pod("waits", 500, 512)).await.unwrap();
    assert_eq!(status(&waits).phase(), Phase::Pending);
    assert_eq!(status(&waits).message, "the only host is unreachable");
    let deleted = control.delete("web").await.unwrap();
    assert!(
        status(&deleted)
            .message
            .starts_with("the deletion waits for host `host-1`"),
        "{deleted:?}"
    );

    let card = Card::attach(&control, "host-1", "zone-a").await;
    let names: Vec<&str> = card
        .assignments
        .iter()
        .map(|p| meta(p).name.as_str())
        .collect();
    // The one that waited has its place as soon as the host is there.
    assert_eq!(names, ["web", "over", "waits"]);
    assert!(meta(&card.assignments[0]).deleted_us > 0);
    let web = status(&card.assignments[0]);
    assert_eq!(web.phase(), Phase::Running, "what it was");
    assert!(web.reason.is_empty());
    control.wait_phase("waits", Phase::Scheduled).await;
    card.report(&card.assignments[0], Phase::Released).await;
    control.wait_gone("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_keep_the_lease() {
    let control = Control::start_with(|config| config.lease = LEASE).await;
    let card = Card::attach(&control, "host-1", "zone-a").await;
    for _ in 0..12 {
        tokio::time::sleep(LEASE / 5).await;
        card.heartbeat().await;
    }
    assert!(
        control.hosts().await[0].state() == HostState::Ready,
        "after more than two leases"
    );
    control
        .wait_hosts(|hosts| hosts[0].state() != HostState::Ready)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_card_never_comes_back_is_unreachable_after_a_restart() {
    let mut control = Control::start_with(|config| config.lease = LEASE).await;
    let card = Card::attach(&control, "host-1", "zone-a").await;
    control.create(pod("web", 500, 512)).await.unwrap();
    drop(card);
    control.restart().await;
    let lost = control
        .wait("web", |pod| !status(pod).reason.is_empty())
        .await;
    assert_eq!(status(&lost).reason, "HostUnreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_stream_takes_over_and_the_older_one_is_fenced() {
    let control = Control::start().await;
    let mut old = Card::attach(&control, "host-1", "zone-a").await;
    control.create(pod("web", 500, 512)).await.unwrap();
    let web = old.next_assigned().await;
    let mut new = Card::attach(&control, "host-1", "zone-a").await;
    assert_eq!(new.assignments, std::slice::from_ref(&web));

    let ended = old.next().await.unwrap_err();
    assert_eq!(ended.class(), Class::Conflict);
    assert!(ended.message.contains("newer stream"), "{ended}");
    old.report(&web, Phase::Failed).await;

    new.report(&web, Phase::Running).await;
    control.wait_phase("web", Phase::Running).await;
    // The old stream's end does not take the host away from the new one.
    drop(old);
    control.create(pod("next", 500, 512)).await.unwrap();
    assert_eq!(meta(&new.next_assigned().await).name, "next");
    assert_eq!(
        status(&control.get("web").await.unwrap()).phase(),
        Phase::Running
    );
    assert!(control.hosts().await[0].state() == HostState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_stream_gets_no_pods() {
    let control = Control::start().await;
    let first = Card::attach(&control, "host-1", "zone-a").await;
    let _second = Card::attach(&control, "host-2", "zone-b").await;
    drop(first);
    let hosts = control
        .wait_hosts(|hosts| hosts[0].state() != HostState::Ready)
        .await;
    assert!(hosts[1].state() == HostState::Ready);
    let mut only_a = pod("only-a", 500, 512);
    only_a.spec.as_mut().unwrap().zone = "zone-a".into();
    let waits = control.create(only_a).await.unwrap();
    assert_eq!(
        status(&waits).message,
        "the only host in zone zone-a is unreachable"
    );
    let placed = control.create(pod("anywhere", 500, 512)).await.unwrap();
    assert_eq!(status(&placed).host, "host-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_wrong_is_refused_with_its_field() {
    let control = Control::start().await;
    let with = |change: fn(&mut Register)| {
        let mut register = register("host-1", "zone-a");
        change(&mut register);
        register
    };
    let capacity = |register: &mut Register| register.capacity.unwrap();
    for (field, wrong) in [
        ("register.host", with(|r| r.host.clear())),
        ("register.host", with(|r| r.host = "Host_1".into())),
        ("register.zone", with(|r| r.zone = "-a".into())),
        ("register.capacity", with(|r| r.capacity = None)),
        (
            "register.endpoint",
            with(|r| r.endpoint = "host:7702".into()),
        ),
        (
            "register.endpoint",
            with(|r| r.endpoint = "ftp://host".into()),
        ),
    ] {
        let refused = Card::attach_as(&control, wrong.clone())
            .await
            .err()
            .unwrap();
        assert_eq!(
            (refused.class(), refused.field.as_str()),
            (Class::Invalid, field),
            "{wrong:?}"
        );
    }
    let mut empty = register("host-1", "zone-a");
    empty.capacity = Some(longship_proto::control::v1::HostCapacity {
        memory_bytes: 0,
        ..capacity(&mut empty)
    });
    let refused = Card::attach_as(&control, empty).await.err().unwrap();
    assert_eq!(refused.field, "register.capacity.memory_bytes");
    assert!(control.hosts().await.is_empty());

    let _card = Card::attach(&control, "host-1", "zone-a").await;
    control.create(pod("web", 500, 512)).await.unwrap();
    let moved = Card::attach_as(&control, register("host-1", "zone-b")).await;
    let refused = moved.err().unwrap();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Conflict, "register.zone")
    );
    assert!(
        control.hosts().await[0].state() == HostState::Ready,
        "the card that is there stays"
    );
}
