//! Requests that are asked twice.

use std::collections::BTreeSet;

use longship_proto::control::v1::{
    CreatePodRequest, CreatePodsRequest, Gang, ListPodsRequest, Phase, Pod, PodResult, pod_result,
};
use longship_proto::{Class, Failure};

use crate::lists::labelled;
use crate::setup::{Control, answer, meta, pod, status};

async fn create(control: &Control, pod: Pod, key: &str) -> Result<Pod, Failure> {
    let request = CreatePodRequest {
        pod: Some(pod),
        idempotency_key: key.into(),
    };
    answer(control.pods().await.create_pod(request).await)
}

async fn create_many(
    control: &Control,
    pods: &[Pod],
    key: &str,
    gang: Option<Gang>,
) -> Result<Vec<PodResult>, Failure> {
    let request = CreatePodsRequest {
        pods: pods.to_vec(),
        idempotency_key: key.into(),
        gang,
    };
    let answered = answer(control.pods().await.create_pods(request).await);
    answered.map(|answered| answered.results)
}

fn uids(results: &[PodResult]) -> Vec<String> {
    let uid = |result: &PodResult| match result.result.as_ref().unwrap() {
        pod_result::Result::Pod(pod) => meta(pod).uid.clone(),
        pod_result::Result::Failure(failure) => format!("{:?}", failure.class()),
    };
    results.iter().map(uid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_is_answered_with_the_same_pod_also_after_a_restart() {
    let mut control = Control::start().await;
    let labels: Vec<(String, String)> = (0..20).map(|n| (format!("k{n}"), n.to_string())).collect();
    let labels: Vec<(&str, &str)> = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let wanted = || labelled("web", &labels);
    let first = create(&control, wanted(), "key-1").await.unwrap();
    for _ in 0..3 {
        let again = create(&control, wanted(), "key-1").await.unwrap();
        assert_eq!(meta(&again).uid, meta(&first).uid);
    }
    control.restart().await;
    let again = create(&control, wanted(), "key-1").await.unwrap();
    assert_eq!(meta(&again).uid, meta(&first).uid);

    let other = create(&control, pod("web", 500, 128), "key-1")
        .await
        .unwrap_err();
    assert_eq!(
        (other.class(), other.field.as_str()),
        (Class::Conflict, "idempotency_key")
    );
    let without = create(&control, wanted(), "").await.unwrap_err();
    assert_eq!(without.field, "metadata.name", "{without}");

    control.delete("web").await.unwrap();
    control.wait_gone("web").await;
    let gone = create(&control, wanted(), "key-1").await.unwrap();
    assert_eq!(meta(&gone).uid, meta(&first).uid);
    assert_eq!(
        status(&gone).phase(),
        Phase::Released,
        "it is not created anew"
    );
    let new = create(&control, wanted(), "key-2").await.unwrap();
    assert_ne!(meta(&new).uid, meta(&first).uid);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_with_one_key_create_one_pod() {
    let control = Control::start().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut client = control.pods().await;
        calls.spawn(async move {
            let request = CreatePodRequest {
                pod: Some(pod("web", 250, 128)),
                idempotency_key: "the same".into(),
            };
            let created = client.create_pod(request).await.unwrap().into_inner();
            created.metadata.unwrap().uid
        });
    }
    let uids: BTreeSet<String> = calls.join_all().await.into_iter().collect();
    assert_eq!(uids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_as_the_first_time_failures_too() {
    let mut control = Control::start().await;
    control.create(pod("b", 250, 128)).await.unwrap();
    let pods = ["a", "b", "c"].map(|name| pod(name, 250, 128));
    let first = create_many(&control, &pods, "batch", None).await.unwrap();
    let wanted = uids(&first);
    assert_eq!(wanted[1], "Conflict");
    control.delete("b").await.unwrap();
    control.wait_gone("b").await;
    let again = create_many(&control, &pods, "batch", None).await.unwrap();
    assert_eq!(uids(&again), wanted);
    control.restart().await;
    let again = create_many(&control, &pods, "batch", None).await.unwrap();
    assert_eq!(uids(&again), wanted);
    for other in [&pods[..2], &pods[1..]] {
        let refused = create_many(&control, other, "batch", None)
            .await
            .unwrap_err();
        assert_eq!(refused.field, "idempotency_key");
    }
    let gang = Some(Gang { one_zone: false });
    let refused = create_many(&control, &pods, "batch", gang)
        .await
        .unwrap_err();
    assert_eq!(refused.field, "idempotency_key");

    // Of which nothing was created nothing is remembered.
    let existing = &pods[..1];
    let refused = create_many(&control, existing, "other", None)
        .await
        .unwrap();
    assert_eq!(uids(&refused), ["Conflict"]);
    control.delete("a").await.unwrap();
    control.wait_gone("a").await;
    let created = create_many(&control, existing, "other", None)
        .await
        .unwrap();
    assert_ne!(uids(&created), ["Conflict"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_is_created_once_and_waits_together() {
    let mut control = Control::start().await;
    let gang = Some(Gang { one_zone: true });
    let pods = ["a", "b", "c"].map(|name| pod(name, 2000, 128));
    let first = create_many(&control, &pods, "gang", gang).await.unwrap();
    let again = create_many(&control, &pods, "gang", gang).await.unwrap();
    assert_eq!(uids(&again), uids(&first));
    control.restart().await;
    let again = create_many(&control, &pods, "gang", gang).await.unwrap();
    assert_eq!(uids(&again), uids(&first));
    // 4 CPUs hold two of three: all wait.
    let _one = crate::card::Card::attach(&control, "host-1", "zone-a").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let list = control
        .pods()
        .await
        .list_pods(ListPodsRequest::default())
        .await;
    let listed = answer(list).unwrap().pods;
    assert!(
        listed.iter().all(|pod| status(pod).host.is_empty()),
        "{listed:?}"
    );
    let _two = crate::card::Card::attach(&control, "host-2", "zone-a").await;
    for name in ["a", "b", "c"] {
        control.wait_phase(name, Phase::Scheduled).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_pod_refuses_the_batch_with_its_field() {
    let control = Control::start().await;
    let mut pods: Vec<Pod> = (0..5).map(|n| pod(&format!("p-{n}"), 250, 128)).collect();
    pods[3].spec.as_mut().unwrap().zone = "Zone".into();
    let refused = create_many(&control, &pods, "", None).await.unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Invalid, "pods[3].spec.zone")
    );
    let list = control
        .pods()
        .await
        .list_pods(ListPodsRequest::default())
        .await;
    assert!(answer(list).unwrap().pods.is_empty());
    for key in ["x".repeat(65), "a\nb".into(), "ü".into()] {
        let refused = create(&control, pod("a", 250, 128), &key)
            .await
            .unwrap_err();
        assert_eq!(
            (refused.class(), refused.field.as_str()),
            (Class::Invalid, "idempotency_key")
        );
    }
}
