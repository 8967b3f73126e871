//! What may change of a pod while it lives.

use longship_proto::Class;
use longship_proto::Failure;
use longship_proto::control::v1::placement_constraint::Rule;
use longship_proto::control::v1::pod_event::Type;
use longship_proto::control::v1::{
    DeletePodRequest, PatchPodRequest, Phase, Placement, PlacementConstraint, Pod, WatchPodsRequest,
};

use crate::card::Card;
use crate::lists::labelled;
use crate::setup::{Control, PATIENCE, answer, meta, status};

fn of(name: &str) -> PatchPodRequest {
    PatchPodRequest {
        name: name.into(),
        ..PatchPodRequest::default()
    }
}

fn set(name: &str, key: &str, value: &str) -> PatchPodRequest {
    PatchPodRequest {
        set_labels: [(key.to_owned(), value.to_owned())].into(),
        ..of(name)
    }
}

async fn patch(control: &Control, request: PatchPodRequest) -> Result<Pod, Failure> {
    answer(control.pods().await.patch_pod(request).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_annotations_and_grace_change_and_the_generation_stays() {
    let mut control = Control::start().await;
    let mut card = Card::attach(&control, "host-1", "zone-a").await;
    let before = control
        .create(labelled("a", &[("app", "web"), ("x", "1")]))
        .await
        .unwrap();
    card.next_assigned().await;
    let before = control
        .wait_phase(&meta(&before).name, Phase::Scheduled)
        .await;
    let mut request = set("a", "app", "db");
    request.remove_labels = vec!["x".into(), "gone".into()];
    request.set_annotations = [("note".to_owned(), "ü".to_owned())].into();
    request.termination_grace_seconds = Some(7);
    request.if_resource_version = meta(&before).resource_version;
    let after = patch(&control, request.clone()).await.unwrap();
    assert!(meta(&after).resource_version > meta(&before).resource_version);
    assert_eq!(meta(&after).generation, meta(&before).generation);
    assert_eq!(
        meta(&after).labels,
        [("app".to_owned(), "db".to_owned())].into()
    );
    assert_eq!(meta(&after).annotations["note"], "ü");
    assert_eq!(
        after.spec.as_ref().unwrap().termination_grace_seconds,
        Some(7)
    );
    let told = card.next_assigned().await;
    assert_eq!(told.spec.unwrap().termination_grace_seconds, Some(7));

    let refused = patch(&control, request.clone()).await.unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Conflict, "if_resource_version")
    );
    request.if_resource_version = 0;
    let same = patch(&control, request).await.unwrap();
    assert_eq!(same, after, "asking again changes nothing");
    control.restart().await;
    assert_eq!(control.get("a").await.unwrap(), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_by_labels_tells_who_enters_and_who_leaves() {
    let control = Control::start().await;
    control
        .create(labelled("a", &[("app", "web")]))
        .await
        .unwrap();
    control
        .create(labelled("b", &[("app", "db")]))
        .await
        .unwrap();
    let request = |resource_version| WatchPodsRequest {
        label_selector: "app=web".into(),
        resource_version,
        ..WatchPodsRequest::default()
    };
    let mut live = answer(control.pods().await.watch_pods(request(0)).await).unwrap();
    let first = tokio::time::timeout(PATIENCE, live.message())
        .await
        .unwrap();
    let first = first.unwrap().unwrap();
    for (name, app) in [("a", "db"), ("b", "web"), ("b", "db"), ("a", "web")] {
        patch(&control, set(name, "app", app)).await.unwrap();
    }
    // From the history it is the same as live.
    let version = first.resource_version;
    let mut later = answer(control.pods().await.watch_pods(request(version)).await).unwrap();
    for events in [&mut live, &mut later] {
        let mut told = Vec::new();
        while told.len() < 4 {
            let event = tokio::time::timeout(PATIENCE, events.message())
                .await
                .unwrap();
            let event = event.unwrap().unwrap();
            // A wait for a place may be told between.
            if event.r#type() != Type::Modified {
                let name = meta(event.pod.as_ref().unwrap()).name.clone();
                told.push((event.r#type(), name));
            }
        }
        let wanted = [
            (Type::Deleted, "a"),
            (Type::Added, "b"),
            (Type::Deleted, "b"),
            (Type::Added, "a"),
        ];
        assert_eq!(told, wanted.map(|(kind, name)| (kind, name.to_owned())));
    }
}

fn apart_from_web(mut pod: Pod) -> Pod {
    pod.spec.as_mut().unwrap().placement = Some(Placement {
        constraints: vec![PlacementConstraint {
            label_selector: "app=web".into(),
            rule: Some(Rule::Apart(true)),
            ..PlacementConstraint::default()
        }],
        ..Placement::default()
    });
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_goes_by_the_new_labels() {
    let control = Control::start().await;
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    control
        .create(labelled("a", &[("app", "web")]))
        .await
        .unwrap();
    control.wait_phase("a", Phase::Scheduled).await;
    let shy = apart_from_web(labelled("shy", &[]));
    control.create(shy).await.unwrap();
    let waits = control
        .wait("shy", |pod| !status(pod).message.is_empty())
        .await;
    assert_eq!(status(&waits).phase(), Phase::Pending, "{waits:?}");
    patch(&control, set("a", "app", "db")).await.unwrap();
    control.wait_phase("shy", Phase::Scheduled).await;
    // And whoever gets the label may not come where it is.
    control
        .create(labelled("late", &[("app", "web")]))
        .await
        .unwrap();
    let late = control
        .wait("late", |pod| !status(pod).message.is_empty())
        .await;
    assert_eq!(status(&late).phase(), Phase::Pending);
    // One that waits is looked at anew with its new labels.
    patch(&control, set("late", "app", "db")).await.unwrap();
    control.wait_phase("late", Phase::Scheduled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_patch_is_refused_with_its_field() {
    let control = Control::start().await;
    let many: Vec<(String, String)> = (0..60).map(|n| (format!("k{n}"), String::new())).collect();
    let mut full = labelled("a", &[]);
    full.metadata.as_mut().unwrap().labels = many.into_iter().collect();
    control.create(full).await.unwrap();
    let with = |change: fn(&mut PatchPodRequest)| {
        let mut request = of("a");
        change(&mut request);
        request
    };
    let more = |from: u32| {
        (from..from + 5)
            .map(|n| (format!("k{n}"), String::new()))
            .collect()
    };
    let mut too_many = of("a");
    too_many.set_labels = more(60);
    let mut enough = of("a");
    enough.set_labels = more(56);
    for (field, wrong) in [
        ("name", with(|r| r.name = "A".into())),
        (
            "set_labels[a b]",
            with(|r| drop(r.set_labels.insert("a b".into(), String::new()))),
        ),
        (
            "set_labels[a]",
            with(|r| drop(r.set_labels.insert("a".into(), " ".into()))),
        ),
        ("set_labels", too_many),
        (
            "remove_labels[1]",
            with(|r| r.remove_labels = vec!["a".into(), "/".into()]),
        ),
        (
            "remove_labels[0]",
            with(|r| {
                r.remove_labels = vec!["a".into()];
                r.set_labels.insert("a".into(), String::new());
            }),
        ),
        (
            "set_annotations",
            with(|r| drop(r.set_annotations.insert("a".into(), "x".repeat(256 << 10)))),
        ),
        (
            "remove_annotations[0]",
            with(|r| r.remove_annotations = vec!["-".into()]),
        ),
        (
            "termination_grace_seconds",
            with(|r| r.termination_grace_seconds = Some(3601)),
        ),
    ] {
        let refused = patch(&control, wrong).await.unwrap_err();
        assert_eq!(
            (refused.class(), refused.field.as_str()),
            (Class::Invalid, field)
        );
    }
    patch(&control, enough).await.unwrap();
    let nobody = patch(&control, of("nobody")).await.unwrap_err();
    assert_eq!(nobody.class(), Class::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_may_insist_on_the_very_pod() {
    let control = Control::start().await;
    let a = control.create(labelled("a", &[])).await.unwrap();
    let delete = |if_uid: &str| DeletePodRequest {
        name: "a".into(),
        if_uid: if_uid.into(),
        ..DeletePodRequest::default()
    };
    let other = delete("6f3c1e5e-0000-4000-8000-000000000000");
    let refused = answer(control.pods().await.delete_pod(other).await).unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Conflict, "if_uid")
    );
    let this = delete(&meta(&a).uid);
    answer(control.pods().await.delete_pod(this).await).unwrap();
    control.wait_gone("a").await;
}
