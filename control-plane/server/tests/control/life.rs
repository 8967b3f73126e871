//! The life of a pod, through restarts of the control plane.

use longship_proto::Class;
use longship_proto::control::v1::{
    Container, CreatePodRequest, HostState, MemoryProfile, Phase, Resources,
};

use crate::card::{Card, held, register};
use crate::setup::{Control, meta, pod, spec, status};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_from_create_to_released() {
    let control = Control::start().await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    assert_eq!(card.lease_ms, 10_000);
    assert!(card.assignments.is_empty());

    let created = control.create(pod("web", 500, 700)).await.unwrap();
    assert_eq!(meta(&created).namespace, "default");
    assert_eq!(meta(&created).generation, 1);
    assert!(meta(&created).created_us > 0 && meta(&created).resource_version > 0);
    assert_eq!(spec(&created).hostname, "web");
    assert_eq!(spec(&created).termination_grace_seconds, Some(30));
    assert_eq!(spec(&created).memory_profile(), MemoryProfile::Dense);
    let state = status(&created);
    assert_eq!(state.phase(), Phase::Scheduled);
    assert_eq!(
        (state.host.as_str(), state.zone.as_str()),
        ("host-1", "zone-a")
    );
    let flavor = state.flavor.as_ref().unwrap();
    assert_eq!((flavor.name.as_str(), flavor.vcpus), ("std-0.5x1", 1));
    let eni = state.eni.as_ref().unwrap();
    assert_eq!(
        (eni.address.as_str(), eni.mac.as_str()),
        ("10.88.0.2", "02:00:0a:58:00:02")
    );
    let stage = &state.timeline[0];
    assert_eq!(
        (stage.name.as_str(), stage.component.as_str()),
        ("schedule", "control")
    );
    assert!(stage.start_us == meta(&created).created_us && stage.end_us >= stage.start_us);

    let assigned = card.next_assigned().await;
    assert_eq!(assigned, created);
    for phase in [Phase::Preparing, Phase::Starting, Phase::Running] {
        card.report(&assigned, phase).await;
    }
    let running = control.wait_phase("web", Phase::Running).await;
    let stages: Vec<&str> = status(&running)
        .timeline
        .iter()
        .map(|s| s.name.as_str())
        .collect();
    assert_eq!(stages, ["schedule", "image"]);
    assert!(meta(&running).resource_version > meta(&created).resource_version);

    let deleted = control.delete("web").await.unwrap();
    assert!(meta(&deleted).deleted_us > 0);
    assert_eq!(status(&deleted).phase(), Phase::Running);
    let assigned = card.next_assigned().await;
    assert_eq!(assigned, deleted);
    let again = control.delete("web").await.unwrap();
    assert_eq!(again, deleted, "deleting twice changes nothing");

    card.report(&assigned, Phase::Stopping).await;
    control.wait_phase("web", Phase::Stopping).await;
    card.report(&assigned, Phase::Released).await;
    control.wait_gone("web").await;
    assert_eq!(
        control.delete("web").await.unwrap_err().class(),
        Class::NotFound
    );
    let host = &control.hosts().await[0];
    assert_eq!(host.free, host.capacity);
    assert_eq!(host.pods, 0);

    let next = control.create(pod("next", 500, 700)).await.unwrap();
    assert_eq!(status(&next).eni.as_ref().unwrap().address, "10.88.0.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_again_after_a_restart() {
    let mut control = Control::start().await;
    let card = Card::attach(&control, "host-1", "zone-a").await;
    let web = control.create(pod("web", 2000, 1024)).await.unwrap();
    let mut blue = pod("blue", 1000, 512);
    blue.spec.as_mut().unwrap().vpc = "blue".into();
    let blue = control.create(blue).await.unwrap();
    card.report(&web, Phase::Running).await;
    let web = control.wait_phase("web", Phase::Running).await;
    let waits = control.create(pod("waits", 2000, 1024)).await.unwrap();
    assert_eq!(status(&waits).phase(), Phase::Pending);
    let before = control.hosts().await;
    let key = card.token_key.clone();

    control.restart().await;

    assert_eq!(control.get("web").await.unwrap(), web);
    assert_eq!(control.get("blue").await.unwrap(), blue);
    let after = control.hosts().await;
    assert!(
        after[0].state() != HostState::Ready,
        "no card has attached yet"
    );
    assert_eq!(
        (after[0].free, after[0].pods),
        (before[0].free, before[0].pods)
    );

    let mut again = register("host-1", "zone-a");
    again.held = vec![
        held(&meta(&web).uid),
        held("6f3c1e5e-0000-4000-8000-000000000000"),
    ];
    let mut card = Card::attach_as(&control, again).await.unwrap();
    assert_eq!(card.assignments, [web.clone(), blue.clone()]);
    assert_eq!(
        card.next_release().await,
        "6f3c1e5e-0000-4000-8000-000000000000"
    );
    assert_eq!(card.token_key, key);

    // Not placed a second time, and the address is not given twice.
    let more = control.create(pod("more", 250, 128)).await.unwrap();
    assert_eq!(status(&more).eni.as_ref().unwrap().address, "10.88.0.3");
    let mut green = pod("green", 250, 128);
    green.spec.as_mut().unwrap().vpc = "green".into();
    let green = control.create(green).await.unwrap();
    assert_eq!(status(&green).eni.as_ref().unwrap().address, "10.90.0.2");
    assert_eq!(
        status(&control.get("waits").await.unwrap()).phase(),
        Phase::Pending
    );

    // The pod that waited before the restart gets the place that comes free after it.
    control.delete("web").await.unwrap();
    card.report(&web, Phase::Released).await;
    let placed = control.wait_phase("waits", Phase::Scheduled).await;
    assert_eq!(status(&placed).host, "host-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_room_waits_with_a_reason_and_gets_its_place() {
    let control = Control::start().await;
    let waits = control.create(pod("early", 1000, 512)).await.unwrap();
    assert_eq!(status(&waits).phase(), Phase::Pending);
    assert_eq!(status(&waits).reason, "Unschedulable");
    assert_eq!(status(&waits).message, "no host has registered yet");
    assert_eq!(status(&waits).timeline[0].end_us, 0);

    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let placed = control.wait_phase("early", Phase::Scheduled).await;
    assert!(status(&placed).reason.is_empty() && status(&placed).message.is_empty());
    let stage = &status(&placed).timeline[0];
    assert!(stage.end_us > stage.start_us, "waiting counts: {stage:?}");
    assert_eq!(meta(&card.next_assigned().await).name, "early");

    let large = control.create(pod("large", 4000, 512)).await.unwrap();
    assert_eq!(
        status(&large).message,
        "no host has 4 CPUs free: the largest gap is 3 CPUs"
    );
    // Nobody has seen it, so it goes at once.
    let gone = control.delete("large").await.unwrap();
    assert_eq!(status(&gone).phase(), Phase::Released);
    assert_eq!(
        control.get("large").await.unwrap_err().class(),
        Class::NotFound
    );

    let large = control.create(pod("large", 4000, 512)).await.unwrap();
    assert_eq!(status(&large).phase(), Phase::Pending);
    // What is over needs no CPU any more.
    card.report(&placed, Phase::Failed).await;
    control.wait_phase("large", Phase::Scheduled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_and_backward_reports_change_nothing() {
    let control = Control::start().await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let other = Card::attach(&control, "host-2", "zone-a").await;
    let web = control.create(pod("web", 500, 512)).await.unwrap();
    let web = match status(&web).host.as_str() {
        "host-1" => card.next_assigned().await,
        host => panic!("on {host}"),
    };
    card.report(&web, Phase::Failed).await;
    let failed = control.wait_phase("web", Phase::Failed).await;

    let mut later = status(&web).clone();
    later.set_phase(Phase::Succeeded);
    card.report_as(&meta(&web).uid, 0, later.clone()).await;
    card.report_as(&meta(&web).uid, 2, later).await;
    card.report(&web, Phase::Running).await;
    card.report(&web, Phase::Pending).await;
    card.report(&web, Phase::Released).await;
    other.report(&web, Phase::Stopping).await;
    // All of these have been heard once something after them has been answered.
    card.report_as(
        "6f3c1e5e-0000-4000-8000-000000000000",
        1,
        status(&web).clone(),
    )
    .await;
    assert_eq!(
        card.next_release().await,
        "6f3c1e5e-0000-4000-8000-000000000000"
    );
    assert_eq!(control.get("web").await.unwrap(), failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_card_says_is_bounded_and_limited_to_what_it_may_say() {
    let control = Control::start().await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    control.create(pod("web", 500, 512)).await.unwrap();
    let web = card.next_assigned().await;
    let mut lies = status(&web).clone();
    lies.set_phase(Phase::Running);
    lies.host = "host-9".into();
    lies.flavor = None;
    lies.eni = None;
    lies.message = "ü".repeat(1 << 20);
    lies.timeline = vec![lies.timeline[0].clone(); 1000];
    card.report_as(&meta(&web).uid, 1, lies).await;
    let running = control.wait_phase("web", Phase::Running).await;
    assert_eq!(status(&running).host, "host-1");
    assert_eq!(status(&running).flavor, status(&web).flavor);
    assert_eq!(status(&running).eni, status(&web).eni);
    assert_eq!(status(&running).timeline, status(&web).timeline);
    assert_eq!(status(&running).message.len(), 4096);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_unique_in_their_namespace_only() {
    let control = Control::start().await;
    control.create(pod("web", 0, 0)).await.unwrap();
    let refused = control.create(pod("web", 0, 0)).await.unwrap_err();
    assert_eq!(refused.class(), Class::Conflict);
    assert_eq!(refused.field, "metadata.name");
    let mut elsewhere = pod("web", 0, 0);
    elsewhere.metadata.as_mut().unwrap().namespace = "other".into();
    control.create(elsewhere).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once_never_share_a_place_or_an_address() {
    let control = Control::start().await;
    for host in ["host-1", "host-2", "host-3"] {
        let card = Card::attach(&control, host, "zone-a").await;
        // Held open by its task, as it would be by a card.
        tokio::spawn(async move {
            let mut card = card;
            while let Ok(Some(_)) = card.next().await {}
        });
    }
    let channel = control.channel().await;
    let creating: Vec<_> = (0..60)
        .map(|n| {
            let mut client =
                longship_proto::control::v1::pods_client::PodsClient::new(channel.clone());
            let mut pod = pod(&format!("pod-{n}"), 200, 0);
            pod.spec.as_mut().unwrap().containers.push(Container {
                name: "sidecar".into(),
                image: "hello".into(),
                resources: Some(Resources {
                    cpu_millis: 50,
                    memory_bytes: 100 << 20,
                    ..Resources::default()
                }),
                ..Container::default()
            });
            let request = CreatePodRequest {
                pod: Some(pod),
                ..CreatePodRequest::default()
            };
            tokio::spawn(async move { client.create_pod(request).await.unwrap().into_inner() })
        })
        .collect();
    let mut addresses = std::collections::BTreeSet::new();
    let mut placed = 0;
    for created in creating {
        let created = created.await.unwrap();
        if status(&created).phase() == Phase::Scheduled {
            placed += 1;
            assert!(addresses.insert(status(&created).eni.clone().unwrap().address));
        }
    }
    // Three hosts of 4 CPUs take 16 pods of a quarter each.
    assert_eq!(placed, 48);
    for host in control.hosts().await {
        assert_eq!(host.pods, 16, "{host:?}");
        assert_eq!(host.free.unwrap().cpu_millis, 0);
    }
}
