//! Lists in pages, and by labels.

use std::collections::BTreeSet;

use longship_proto::Class;
use longship_proto::control::v1::pod_event::Type;
use longship_proto::control::v1::{ListPodsRequest, ListPodsResponse, Pod, WatchPodsRequest};

use crate::setup::{Control, PATIENCE, answer, meta, pod};

pub(crate) fn labelled(name: &str, labels: &[(&str, &str)]) -> Pod {
    let mut pod = pod(name, 250, 128);
    let owned = labels
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()));
    pod.metadata.as_mut().unwrap().labels = owned.collect();
    pod
}

async fn list(control: &Control, request: ListPodsRequest) -> ListPodsResponse {
    answer(control.pods().await.list_pods(request).await).unwrap()
}

fn names(pods: &[Pod]) -> Vec<&str> {
    pods.iter().map(|pod| meta(pod).name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_every_pod_once_and_a_watch_brings_them_up_to_date() {
    let control = Control::start().await;
    for n in 0..23 {
        control
            .create(pod(&format!("pod-{n:02}"), 250, 128))
            .await
            .unwrap();
    }
    let mut seen: Vec<String> = Vec::new();
    let mut version = None;
    let mut token = String::new();
    let mut pages = 0;
    loop {
        let request = ListPodsRequest {
            limit: 5,
            page_token: token,
            ..ListPodsRequest::default()
        };
        let page = list(&control, request).await;
        assert!(page.pods.len() <= 5);
        assert_eq!(
            *version.get_or_insert(page.resource_version),
            page.resource_version
        );
        seen.extend(names(&page.pods).into_iter().map(str::to_owned));
        pages += 1;
        token = page.next_page_token;
        if pages == 2 {
            // Behind what has been read, and before: the watch tells of both.
            control.create(pod("aaa", 250, 128)).await.unwrap();
            control.delete("pod-01").await.unwrap();
        }
        if token.is_empty() {
            break;
        }
    }
    let wanted: Vec<String> = (0..23).map(|n| format!("pod-{n:02}")).collect();
    assert_eq!((seen, pages), (wanted, 5));
    let request = WatchPodsRequest {
        resource_version: version.unwrap(),
        ..WatchPodsRequest::default()
    };
    let mut events = answer(control.pods().await.watch_pods(request).await).unwrap();
    let mut told = BTreeSet::new();
    while told.len() < 2 {
        let event = tokio::time::timeout(PATIENCE, events.message())
            .await
            .unwrap();
        let event = event.unwrap().unwrap();
        told.insert((meta(event.pod.as_ref().unwrap()).name.clone(), event.r#type));
    }
    let told: Vec<_> = told.into_iter().collect();
    assert_eq!(
        told,
        [
            ("aaa".to_owned(), i32::from(Type::Added)),
            ("pod-01".to_owned(), i32::from(Type::Deleted))
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_where_it_is_full_and_exactly_full_is_the_last() {
    let control = Control::start().await;
    for name in ["a", "b", "c", "d"] {
        control.create(pod(name, 250, 128)).await.unwrap();
    }
    for (limit, more) in [(3, true), (4, false), (5, false), (0, false)] {
        let request = ListPodsRequest {
            limit,
            ..ListPodsRequest::default()
        };
        let page = list(&control, request).await;
        assert_eq!(!page.next_page_token.is_empty(), more, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_choose_what_is_listed_and_watched() {
    let control = Control::start().await;
    for (name, labels) in [
        ("a", &[("app", "web"), ("tier", "front")][..]),
        ("b", &[("app", "web")]),
        ("c", &[("app", "db")]),
        ("d", &[]),
    ] {
        control.create(labelled(name, labels)).await.unwrap();
    }
    for (selector, wanted) in [
        ("app=web", &["a", "b"][..]),
        ("app in (web,db),!tier", &["b", "c"]),
        ("!app", &["d"]),
        ("app", &["a", "b", "c"]),
        ("app=web,app=db", &[]),
    ] {
        let request = |page_token| ListPodsRequest {
            label_selector: selector.into(),
            limit: 1,
            page_token,
            ..ListPodsRequest::default()
        };
        let mut found = Vec::new();
        let mut page = list(&control, request(String::new())).await;
        loop {
            found.append(&mut page.pods);
            if page.next_page_token.is_empty() {
                break;
            }
            page = list(&control, request(page.next_page_token)).await;
        }
        assert_eq!(names(&found), wanted, "{selector}");
    }
    let request = WatchPodsRequest {
        label_selector: "app=web".into(),
        bookmarks: true,
        ..WatchPodsRequest::default()
    };
    let mut events = answer(control.pods().await.watch_pods(request).await).unwrap();
    for name in ["c2", "b2"] {
        let app = if name == "b2" { "web" } else { "db" };
        control
            .create(labelled(name, &[("app", app)]))
            .await
            .unwrap();
    }
    control.delete("c").await.unwrap();
    control.delete("a").await.unwrap();
    let mut told = Vec::new();
    while told.len() < 5 {
        let event = tokio::time::timeout(PATIENCE, events.message())
            .await
            .unwrap();
        let event = event.unwrap().unwrap();
        let name = event.pod.as_ref().map(|pod| meta(pod).name.clone());
        told.push((event.r#type(), name.unwrap_or_default()));
    }
    let wanted = [
        (Type::Added, "a"),
        (Type::Added, "b"),
        (Type::Bookmark, ""),
        (Type::Added, "b2"),
        (Type::Deleted, "a"),
    ];
    assert_eq!(told, wanted.map(|(kind, name)| (kind, name.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_list_is_refused_with_its_field() {
    let control = Control::start().await;
    for name in ["a", "b"] {
        control.create(pod(name, 250, 128)).await.unwrap();
    }
    let one = ListPodsRequest {
        limit: 1,
        ..ListPodsRequest::default()
    };
    let token = list(&control, one.clone()).await.next_page_token;
    assert!(!token.is_empty());
    let with = |change: fn(&mut ListPodsRequest)| {
        let mut request = one.clone();
        change(&mut request);
        request
    };
    let mut other = with(|r| r.label_selector = "app".into());
    other.page_token.clone_from(&token);
    for (field, request) in [
        ("namespace", with(|r| r.namespace = "A".into())),
        (
            "label_selector",
            with(|r| r.label_selector = "a in b".into()),
        ),
        ("limit", with(|r| r.limit = 5001)),
        ("page_token", with(|r| r.page_token = "???".into())),
        ("page_token", other),
    ] {
        let refused = answer(control.pods().await.list_pods(request).await).unwrap_err();
        assert_eq!(
            (refused.class(), refused.field.as_str()),
            (Class::Invalid, field)
        );
    }
    let watch = WatchPodsRequest {
        label_selector: "a,,b".into(),
        ..WatchPodsRequest::default()
    };
    let refused = answer(control.pods().await.watch_pods(watch).await).unwrap_err();
    assert_eq!(refused.field, "label_selector");
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_come_while_nothing_changes_and_can_be_watched_from() {
    let control = Control::start_with(|config| {
        config.bookmark_interval = std::time::Duration::from_millis(100);
    })
    .await;
    let request = |resource_version| WatchPodsRequest {
        bookmarks: true,
        resource_version,
        ..WatchPodsRequest::default()
    };
    let mut events = answer(control.pods().await.watch_pods(request(0)).await).unwrap();
    let mut next = async || {
        let event = tokio::time::timeout(PATIENCE, events.message())
            .await
            .unwrap();
        event.unwrap().unwrap()
    };
    let first = next().await;
    assert_eq!(first.r#type(), Type::Bookmark, "nothing exists");
    let made = control.create(pod("a", 250, 128)).await.unwrap();
    let (mut added, mut version) = (0, 0);
    while version < meta(&made).resource_version {
        let event = next().await;
        match event.r#type() {
            Type::Bookmark => version = event.resource_version,
            Type::Added => added += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(added, 1);
    let mut later = answer(control.pods().await.watch_pods(request(version)).await).unwrap();
    control.create(pod("b", 250, 128)).await.unwrap();
    loop {
        let event = tokio::time::timeout(PATIENCE, later.message())
            .await
            .unwrap();
        let event = event.unwrap().unwrap();
        if event.r#type() == Type::Added {
            assert_eq!(meta(event.pod.as_ref().unwrap()).name, "b");
            break;
        }
    }
}
