//! Pods that leave their host: evicted, drained, lost; and what waits together.

use std::time::Duration;

use longship_proto::Class;
use longship_proto::Failure;
use longship_proto::control::v1::capacity_client::CapacityClient;
use longship_proto::control::v1::inventory_client::InventoryClient;
use longship_proto::control::v1::tenants_client::TenantsClient;
use longship_proto::control::v1::{
    CapacityReservation, CreatePodsRequest, CreateReservationRequest, DrainHostRequest, Gang,
    HostState, ListReservationsRequest, Phase, Placement, PlacementClass, Pod, PodResult,
    PutTenantRequest, Quota, RemoveHostRequest, RestartPolicy, Tenant, UncordonHostRequest,
    pod_result,
};

use crate::card::{Card, register};
use crate::setup::{Control, answer, meta, pod, spec, status};

fn like(mut pod: Pod, restart: RestartPolicy, class: PlacementClass, preempts: bool) -> Pod {
    let spec = pod.spec.as_mut().unwrap();
    spec.set_restart_policy(restart);
    spec.placement = Some(Placement {
        class: class.into(),
        preempts,
        ..Placement::default()
    });
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_hosts_pods_begin_again_elsewhere_and_its_card_ends_what_it_has() {
    let control = Control::start_with(|config| {
        config.lease = Duration::from_millis(600);
        config.fence_after = Duration::from_millis(600);
    })
    .await;
    let mut lost = Card::attach(&control, "host-1", "zone-a").await;
    let always = control.create(pod("always", 500, 512)).await.unwrap();
    let never = like(
        pod("never", 500, 512),
        RestartPolicy::Never,
        PlacementClass::OnDemand,
        false,
    );
    let never = control.create(never).await.unwrap();
    for pod in [&always, &never] {
        lost.next_assigned().await;
        lost.report(pod, Phase::Running).await;
    }
    control.wait_phase("never", Phase::Running).await;
    let going = control.create(pod("going", 500, 512)).await.unwrap();
    lost.report(&going, Phase::Running).await;
    control.wait_phase("going", Phase::Running).await;
    control.delete("going").await.unwrap();

    control.wait_phase("always", Phase::Unknown).await;
    let failed = control.wait_phase("never", Phase::Failed).await;
    assert_eq!(status(&failed).reason, "HostLost");
    assert!(status(&failed).host.is_empty());
    let waits = control.wait_phase("always", Phase::Pending).await;
    assert_eq!((meta(&waits).generation, status(&waits).moves), (2, 1));
    control.wait_gone("going").await;
    assert_eq!(control.hosts().await[0].state(), HostState::Fenced);

    let mut other = Card::attach(&control, "host-2", "zone-a").await;
    let moved = match other.assignments.first() {
        Some(moved) => moved.clone(),
        None => other.next_assigned().await,
    };
    assert_eq!(meta(&moved).uid, meta(&always).uid);
    assert_eq!(meta(&moved).generation, 2);

    let mut again = register("host-1", "zone-a");
    again.held = [&always, &never, &going]
        .map(|pod| crate::card::held(&meta(pod).uid))
        .to_vec();
    let mut back = Card::attach_as(&control, again).await.unwrap();
    assert!(back.assignments.is_empty(), "nothing is its own any more");
    let mut released = vec![
        back.next_release().await,
        back.next_release().await,
        back.next_release().await,
    ];
    released.sort();
    let mut held = [&always, &never, &going].map(|pod| meta(pod).uid.clone());
    held.sort();
    assert_eq!(released, held);
    back.report(&always, Phase::Failed).await;
    other.report(&moved, Phase::Running).await;
    let running = control.wait_phase("always", Phase::Running).await;
    assert_eq!(status(&running).host, "host-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spot_pod_leaves_for_another_which_starts_only_then() {
    let mut control = Control::start().await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let spot = |name| {
        like(
            pod(name, 2000, 512),
            if name == "again" {
                RestartPolicy::Always
            } else {
                RestartPolicy::Never
            },
            PlacementClass::Spot,
            false,
        )
    };
    let again = control.create(spot("again")).await.unwrap();
    let once = control.create(spot("once")).await.unwrap();
    for pod in [&again, &once] {
        card.next_assigned().await;
        card.report(pod, Phase::Running).await;
    }
    control.wait_phase("once", Phase::Running).await;
    let firm = like(
        pod("firm", 4000, 512),
        RestartPolicy::Always,
        PlacementClass::OnDemand,
        true,
    );
    let firm = control.create(firm).await.unwrap();
    assert_eq!(status(&firm).phase(), Phase::Scheduled);
    assert_eq!(status(&firm).reason, "WaitsForOthers");
    for _ in 0..2 {
        let told = card.next_assigned().await;
        assert!(meta(&told).name != "firm" && meta(&told).deleted_us > 0);
    }
    let leaves = control.get("once").await.unwrap();
    assert_eq!(status(&leaves).reason, "Preempted");
    assert_eq!(meta(&leaves).deleted_us, 0, "nobody has deleted it");

    // A server that starts again still knows who waits for whom.
    control.restart().await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let names: Vec<_> = card.assignments.iter().map(|p| &meta(p).name).collect();
    assert_eq!(names, ["again", "once"]);
    card.report(&once, Phase::Released).await;
    let failed = control.wait_phase("once", Phase::Failed).await;
    assert_eq!(status(&failed).reason, "Preempted");
    card.report(&again, Phase::Released).await;
    let told = card.next_assigned().await;
    assert_eq!(
        (meta(&told).name.as_str(), meta(&told).generation),
        ("firm", 1)
    );
    let waits = control.wait_phase("again", Phase::Pending).await;
    assert_eq!((meta(&waits).generation, status(&waits).moves), (2, 1));
    assert!(
        status(&control.get("firm").await.unwrap())
            .reason
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_host_is_left_with_the_grace_given_and_can_be_removed() {
    let control = Control::start_with(|config| config.lease = Duration::from_millis(900)).await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let web = control.create(pod("web", 500, 512)).await.unwrap();
    card.next_assigned().await;
    card.report(&web, Phase::Running).await;
    control.wait_phase("web", Phase::Running).await;
    let mut inventory = InventoryClient::new(control.channel().await);
    let drain = DrainHostRequest {
        name: "host-1".into(),
        grace_seconds: Some(3),
    };
    let host = inventory.drain_host(drain).await.unwrap().into_inner();
    assert!(host.cordoned && host.draining);
    let told = card.next_assigned().await;
    assert!(meta(&told).deleted_us > 0);
    assert_eq!(spec(&told).termination_grace_seconds, Some(3));
    card.report(&told, Phase::Released).await;
    let waits = control.wait_phase("web", Phase::Pending).await;
    assert_eq!(status(&waits).moves, 1);
    let waits = control
        .wait("web", |pod| status(pod).message.contains("cordoned"))
        .await;
    assert_eq!(status(&waits).message, "the only host is cordoned");

    let name = || RemoveHostRequest {
        name: "host-1".into(),
    };
    let refused = answer(inventory.remove_host(name()).await).unwrap_err();
    assert_eq!(refused.class(), Class::Conflict);
    let uncordon = UncordonHostRequest {
        name: "host-1".into(),
    };
    let host = inventory
        .uncordon_host(uncordon)
        .await
        .unwrap()
        .into_inner();
    assert!(!host.cordoned && !host.draining);
    assert_eq!(meta(&card.next_assigned().await).generation, 2);
    drop(card);
    control.wait_phase("web", Phase::Unknown).await;
    inventory.remove_host(name()).await.unwrap();
    assert!(control.hosts().await.is_empty());
    let waits = control.wait_phase("web", Phase::Pending).await;
    assert_eq!(status(&waits).reason, "Unschedulable");
}

async fn create_gang(control: &Control, pods: Vec<Pod>) -> Vec<Result<Pod, Failure>> {
    let request = CreatePodsRequest {
        pods,
        gang: Some(Gang { one_zone: true }),
        ..CreatePodsRequest::default()
    };
    let created = control.pods().await.create_pods(request).await.unwrap();
    let results = created.into_inner().results.into_iter();
    results
        .map(|PodResult { result }| match result.unwrap() {
            pod_result::Result::Pod(pod) => Ok(*pod),
            pod_result::Result::Failure(failure) => Err(failure),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_waits_together_through_a_restart_and_is_placed_together() {
    let mut control = Control::start().await;
    let _one = Card::attach(&control, "host-1", "zone-a").await;
    let names = ["g-0", "g-1", "g-2"];
    let pods = names.map(|name| pod(name, 3000, 512)).to_vec();
    let created = create_gang(&control, pods.clone()).await;
    for pod in &created {
        let pod = pod.as_ref().unwrap();
        assert_eq!(status(pod).phase(), Phase::Pending);
        assert!(
            status(pod)
                .message
                .starts_with("1 of the 3 pods of its gang have room"),
            "{pod:?}"
        );
    }
    for again in create_gang(&control, pods).await {
        assert_eq!(again.unwrap_err().class(), Class::Conflict, "all or none");
    }
    control.restart().await;
    let _one = Card::attach(&control, "host-1", "zone-a").await;
    let _other = Card::attach(&control, "host-2", "zone-b").await;
    let _two = Card::attach(&control, "host-3", "zone-a").await;
    assert_eq!(
        status(&control.get("g-0").await.unwrap()).phase(),
        Phase::Pending,
        "zone-a has room for two"
    );
    let _three = Card::attach(&control, "host-4", "zone-a").await;
    for name in names {
        let placed = control.wait_phase(name, Phase::Scheduled).await;
        assert_eq!(status(&placed).zone, "zone-a");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_room_is_for_reserved_pods_through_a_restart() {
    let mut control = Control::start().await;
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    let reservation = |count| CreateReservationRequest {
        reservation: Some(CapacityReservation {
            name: "kept".into(),
            tenant: "default".into(),
            flavor: "std-2x2".into(),
            count,
            ends_us: longship_proto::now_us() + 3_600_000_000,
            ..CapacityReservation::default()
        }),
    };
    let mut capacity = CapacityClient::new(control.channel().await);
    let refused = answer(capacity.create_reservation(reservation(3)).await).unwrap_err();
    assert_eq!(refused.class(), Class::Exhausted);
    assert!(refused.message.contains("room for 2 of 3"), "{refused}");
    let kept = answer(capacity.create_reservation(reservation(2)).await).unwrap();
    assert_eq!((kept.idle, kept.used), (2, 0));
    let waits = control.create(pod("plain", 250, 128)).await.unwrap();
    assert_eq!(status(&waits).phase(), Phase::Pending);
    let draws = like(
        pod("draws", 2000, 2048),
        RestartPolicy::Always,
        PlacementClass::Reserved,
        false,
    );
    let drawn = control.create(draws).await.unwrap();
    assert_eq!(status(&drawn).phase(), Phase::Scheduled);

    control.restart().await;
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    let mut capacity = CapacityClient::new(control.channel().await);
    let list = ListReservationsRequest::default();
    let listed = answer(capacity.list_reservations(list).await).unwrap();
    let [kept] = &listed.reservations[..] else {
        panic!("{listed:?}");
    };
    assert_eq!((kept.idle, kept.used), (1, 1));
    assert_eq!(
        status(&control.get("plain").await.unwrap()).phase(),
        Phase::Pending
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_counts_those_that_wait_and_says_what_is_used() {
    let control = Control::start().await;
    let put = async |quota: Quota| {
        let request = PutTenantRequest {
            tenant: Some(Tenant {
                name: "default".into(),
                namespaces: vec!["default".into()],
                quota: Some(quota),
                ..Tenant::default()
            }),
            if_resource_version: 0,
        };
        let mut tenants = TenantsClient::new(control.channel().await);
        answer(tenants.put_tenant(request).await).unwrap()
    };
    put(Quota {
        pods: Some(2),
        cpu_millis: Some(1500),
        ..Quota::default()
    })
    .await;
    control.create(pod("a", 1000, 512)).await.unwrap();
    let refused = control.create(pod("b", 1000, 512)).await.unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Exhausted, "quota.cpu_millis")
    );
    assert!(refused.message.contains("has 1 CPU"), "{refused}");
    control.create(pod("b", 250, 128)).await.unwrap();
    let refused = control.create(pod("c", 250, 128)).await.unwrap_err();
    assert_eq!(refused.field, "quota.pods");
    control.delete("a").await.unwrap();
    control.create(pod("c", 250, 128)).await.unwrap();
    let tenant = put(Quota {
        creates_per_second: Some(1),
        create_burst: Some(1),
        ..Quota::default()
    })
    .await;
    assert_eq!(tenant.usage.unwrap().pods, 2);
    control.create(pod("d", 250, 128)).await.unwrap();
    let refused = control.create(pod("e", 250, 128)).await.unwrap_err();
    assert_eq!(refused.field, "quota.creates_per_second");
}
