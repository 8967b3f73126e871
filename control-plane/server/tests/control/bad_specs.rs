//! Whatever is wrong in a pod is refused with the path of the field.

use longship_proto::Class;
use longship_proto::control::v1::{
    Container, CreatePodRequest, DeletePodRequest, EnvVar, GetPodRequest, Pod, PodSpec, Resources,
    WatchPodsRequest,
};

use crate::card::Card;
use crate::setup::{Control, answer, pod};

fn with(change: impl FnOnce(&mut Pod)) -> Pod {
    let mut pod = pod("web", 500, 512);
    change(&mut pod);
    pod
}

fn with_spec(change: impl FnOnce(&mut PodSpec)) -> Pod {
    with(|pod| change(pod.spec.as_mut().unwrap()))
}

fn with_container(change: impl FnOnce(&mut Container)) -> Pod {
    with_spec(|spec| change(&mut spec.containers[0]))
}

fn named(name: &str) -> Pod {
    with(|pod| pod.metadata.as_mut().unwrap().name = name.into())
}

fn labelled(key: &str, value: &str) -> Pod {
    with(|pod| {
        let labels = &mut pod.metadata.as_mut().unwrap().labels;
        labels.insert(key.into(), value.into());
    })
}

fn annotated(key: &str, value: &str) -> Pod {
    with(|pod| {
        let annotations = &mut pod.metadata.as_mut().unwrap().annotations;
        annotations.insert(key.into(), value.into());
    })
}

fn imaged(image: &str) -> Pod {
    with_container(|c| c.image = image.into())
}

fn variable(name: &str, value: &str) -> Pod {
    with_container(|c| {
        c.env.push(EnvVar {
            name: name.into(),
            value: value.into(),
        });
    })
}

fn asking(cpu_millis: u32, memory_bytes: u64) -> Pod {
    with_container(|c| {
        c.resources = Some(Resources {
            cpu_millis,
            memory_bytes,
            gpus: 0,
        });
    })
}

fn table() -> Vec<(&'static str, Pod)> {
    let long = "a".repeat(64);
    let mut second = pod("web", 500, 512).spec.unwrap().containers.remove(0);
    let same_name = with_spec(|spec| spec.containers.push(second.clone()));
    second.name = "second".into();
    second.image = "a b".into();
    let second_image = with_spec(|spec| spec.containers.push(second));
    vec![
        ("metadata.name", with(|pod| pod.metadata = None)),
        ("metadata.name", named("")),
        ("metadata.name", named("Web")),
        ("metadata.name", named("-web")),
        ("metadata.name", named("we.b")),
        ("metadata.name", named("../../etc")),
        ("metadata.name", named(&long)),
        (
            "metadata.namespace",
            with(|pod| pod.metadata.as_mut().unwrap().namespace = "a/b".into()),
        ),
        ("metadata.labels[a b]", labelled("a b", "x")),
        ("metadata.labels[x/y/z]", labelled("x/y/z", "x")),
        ("metadata.labels[app]", labelled("app", "with space")),
        ("metadata.annotations[]", annotated("", "x")),
        (
            "metadata.annotations",
            annotated("a", &"x".repeat(256 << 10)),
        ),
        ("", annotated("a", &"x".repeat(600_000))),
        ("spec", with(|pod| pod.spec = None)),
        ("spec.containers", with_spec(|spec| spec.containers.clear())),
        (
            "spec.containers",
            with_spec(|spec| spec.containers = vec![spec.containers[0].clone(); 17]),
        ),
        (
            "spec.containers[0].name",
            with_container(|c| c.name.clear()),
        ),
        (
            "spec.containers[0].name",
            with_container(|c| c.name = "A".into()),
        ),
        ("spec.containers[1].name", same_name),
        ("spec.containers[0].image", imaged("")),
        ("spec.containers[0].image", imaged("Upper/Case")),
        ("spec.containers[0].image", imaged("hello@sha256:123")),
        ("spec.containers[0].image", imaged("oci:relative/dir")),
        ("spec.containers[0].image", imaged("oci:/srv/../../etc")),
        ("spec.containers[1].image", second_image),
        (
            "spec.containers[0].command[0]",
            with_container(|c| c.command.push(String::new())),
        ),
        (
            "spec.containers[0].command[1]",
            with_container(|c| c.command = vec!["sh".into(), "a\0b".into()]),
        ),
        (
            "spec.containers[0].args",
            with_container(|c| c.args = vec!["x".into(); 1025]),
        ),
        (
            "spec.containers[0].args[0]",
            with_container(|c| c.args.push("\0".into())),
        ),
        ("spec.containers[0].env[0].name", variable("", "x")),
        ("spec.containers[0].env[0].name", variable("1A", "x")),
        ("spec.containers[0].env[0].name", variable("A=B", "x")),
        ("spec.containers[0].env[0].value", variable("A", "\0")),
        (
            "spec.containers[0].working_dir",
            with_container(|c| c.working_dir = "app".into()),
        ),
        ("spec.containers[0].resources.memory_bytes", asking(250, 1)),
        (
            "spec.containers[0].resources.memory_bytes",
            asking(250, (64 << 20) - 1),
        ),
        (
            "spec.containers[0].resources.memory_bytes",
            asking(250, u64::MAX),
        ),
        (
            "spec.containers[0].resources.cpu_millis",
            asking(u32::MAX, 0),
        ),
        ("spec.containers", asking(17_000, 0)),
        ("spec.containers", asking(0, 65 << 30)),
        (
            "spec.restart_policy",
            with_spec(|spec| spec.restart_policy = 9),
        ),
        (
            "spec.memory_profile",
            with_spec(|spec| spec.memory_profile = 3),
        ),
        (
            "spec.containers[0].image_pull_policy",
            with_container(|c| c.image_pull_policy = -1),
        ),
        ("spec.zone", with_spec(|spec| spec.zone = "zone-x".into())),
        ("spec.zone", with_spec(|spec| spec.zone = "Zone".into())),
        ("spec.flavor", with_spec(|spec| spec.flavor = "huge".into())),
        (
            "spec.flavor",
            with_spec(|spec| spec.flavor = "std-0.25x0.125".into()),
        ),
        ("spec.vpc", with_spec(|spec| spec.vpc = "my vpc".into())),
        (
            "spec.hostname",
            with_spec(|spec| spec.hostname = "a.b".into()),
        ),
        (
            "spec.nameservers[1]",
            with_spec(|spec| spec.nameservers = vec!["::1".into(), "dns.example".into()]),
        ),
        (
            "spec.nameservers",
            with_spec(|spec| spec.nameservers = vec!["10.0.0.1".into(); 4]),
        ),
        (
            "spec.termination_grace_seconds",
            with_spec(|spec| spec.termination_grace_seconds = Some(3601)),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_field_is_named_and_nothing_is_kept() {
    let control = Control::start().await;
    let _card = Card::attach(&control, "host-1", "zone-a").await;
    let mut client = control.pods().await;
    for (field, wrong) in table() {
        let shown: String = format!("{wrong:?}").chars().take(600).collect();
        let request = CreatePodRequest {
            pod: Some(wrong),
            ..CreatePodRequest::default()
        };
        let refused = match answer(client.create_pod(request).await) {
            Err(refused) => refused,
            Ok(_) => panic!("not refused: {field} of {shown}"),
        };
        assert_eq!(refused.class(), Class::Invalid, "{refused}");
        assert_eq!(refused.field, field, "{refused}");
        assert!(refused.message.len() > 10, "{refused}");
    }
    let refused = answer(
        client
            .create_pod(CreatePodRequest {
                pod: None,
                ..CreatePodRequest::default()
            })
            .await,
    );
    assert_eq!(refused.unwrap_err().field, "pod");
    let host = &control.hosts().await[0];
    assert_eq!(host.free, host.capacity);
    let created = control.create(pod("web", 500, 512)).await.unwrap();
    assert_eq!(created.status.unwrap().eni.unwrap().address, "10.88.0.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_is_told_to_whoever_asks_for_what_does_not() {
    let control = Control::start().await;
    let in_zone = |zone: &str| with_spec(|spec| spec.zone = zone.into());
    let refused = control.create(in_zone("zone-x")).await.unwrap_err();
    assert_eq!(refused.message, "no zone `zone-x`: there are no zones yet");
    let _a = Card::attach(&control, "host-1", "zone-a").await;
    let _b = Card::attach(&control, "host-2", "zone-b").await;
    let refused = control.create(in_zone("zone-x")).await.unwrap_err();
    assert_eq!(
        refused.message,
        "no zone `zone-x`: the zones are zone-a, zone-b"
    );
    let flavor = with_spec(|spec| spec.flavor = "huge".into());
    let refused = control.create(flavor).await.unwrap_err();
    assert!(refused.message.contains("std-0.5x1, "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_about_pods_are_checked_too() {
    let control = Control::start().await;
    let mut client = control.pods().await;
    let get = GetPodRequest {
        namespace: "a/b".into(),
        name: "web".into(),
    };
    let refused = answer(client.get_pod(get).await).unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Invalid, "namespace")
    );
    let delete = DeletePodRequest {
        name: "web".into(),
        grace_seconds: Some(100_000),
        ..DeletePodRequest::default()
    };
    let refused = answer(client.delete_pod(delete).await).unwrap_err();
    assert_eq!(
        (refused.class(), refused.field.as_str()),
        (Class::Invalid, "grace_seconds")
    );
    let watch = WatchPodsRequest {
        name: "web".into(),
        ..WatchPodsRequest::default()
    };
    let refused = answer(client.watch_pods(watch).await).unwrap_err();
    assert_eq!(refused.field, "namespace");
    let watch = WatchPodsRequest {
        resource_version: 1_000_000,
        ..WatchPodsRequest::default()
    };
    let refused = answer(client.watch_pods(watch).await).unwrap_err();
    assert_eq!(refused.field, "resource_version");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_ten_megabytes_is_refused_and_the_server_goes_on() {
    let control = Control::start().await;
    let huge = annotated("a", &"x".repeat(10 << 20));
    let refused = control.create(huge).await.unwrap_err();
    assert!(
        matches!(
            refused.class(),
            Class::Invalid | Class::Exhausted | Class::Unavailable
        ),
        "{refused}"
    );
    control.create(pod("web", 500, 512)).await.unwrap();
}
