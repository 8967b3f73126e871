//! Images that cards keep ready.

use longship_proto::Class;
use longship_proto::control::v1::image_caches_client::ImageCachesClient;
use longship_proto::control::v1::{
    CachedImage, DeleteImageCacheRequest, ImageCache, ListImageCachesRequest, PutImageCacheRequest,
};

use crate::card::Card;
use crate::setup::{Control, PATIENCE, answer};

fn cache(name: &str, images: &[&str], zones: &[&str]) -> ImageCache {
    ImageCache {
        name: name.into(),
        images: images.iter().map(|one| (*one).to_owned()).collect(),
        zones: zones.iter().map(|one| (*one).to_owned()).collect(),
        ..ImageCache::default()
    }
}

async fn put(control: &Control, cache: ImageCache) -> Result<ImageCache, longship_proto::Failure> {
    let mut client = ImageCachesClient::new(control.channel().await);
    let cache = Some(cache);
    answer(client.put_image_cache(PutImageCacheRequest { cache }).await)
}

async fn list(control: &Control) -> Vec<ImageCache> {
    let mut client = ImageCachesClient::new(control.channel().await);
    let listed = client
        .list_image_caches(ListImageCachesRequest::default())
        .await;
    answer(listed).unwrap().caches
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_are_told_what_to_keep_and_what_they_say_is_counted() {
    let mut control = Control::start().await;
    let mut a = Card::attach(&control, "host-1", "zone-a").await;
    let mut b = Card::attach(&control, "host-2", "zone-b").await;
    put(&control, cache("web", &["nginx:1", "redis:7"], &[]))
        .await
        .unwrap();
    put(&control, cache("more", &["nginx:1", "etcd:3"], &["zone-b"]))
        .await
        .unwrap();
    a.wait_images(&["nginx:1", "redis:7"]).await;
    b.wait_images(&["etcd:3", "nginx:1", "redis:7"]).await;
    a.report_images(&[("nginx:1", ""), ("other:1", "")]).await;
    b.report_images(&[("nginx:1", ""), ("redis:7", "no such tag")])
        .await;
    let one = |image: &str, ready, wanted, message: &str| CachedImage {
        image: image.into(),
        ready,
        wanted,
        message: message.into(),
    };
    let wanted = [
        (
            "more",
            vec![one("nginx:1", 1, 1, ""), one("etcd:3", 0, 1, "")],
        ),
        (
            "web",
            vec![
                one("nginx:1", 2, 2, ""),
                one("redis:7", 0, 2, "no such tag"),
            ],
        ),
    ];
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let caches = list(&control).await;
        let seen = caches
            .iter()
            .map(|one| (one.name.as_str(), one.status.clone()));
        if seen.eq(wanted.clone()) {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "still {caches:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    // The caches outlive the process; what cards have they say again.
    control.restart().await;
    let names: Vec<String> = list(&control)
        .await
        .into_iter()
        .map(|one| one.name)
        .collect();
    assert_eq!(names, ["more", "web"]);
    let mut a = Card::attach(&control, "host-1", "zone-a").await;
    a.wait_images(&["nginx:1", "redis:7"]).await;
    put(&control, cache("web", &["redis:8"], &[]))
        .await
        .unwrap();
    a.wait_images(&["redis:8"]).await;
    let mut client = ImageCachesClient::new(control.channel().await);
    let delete = DeleteImageCacheRequest {
        tenant: String::new(),
        name: "web".into(),
    };
    answer(client.delete_image_cache(delete.clone()).await).unwrap();
    a.wait_images(&[]).await;
    let gone = answer(client.delete_image_cache(delete).await).unwrap_err();
    assert_eq!(gone.class(), Class::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_too_many_caches_are_refused_with_the_field() {
    let control = Control::start().await;
    for (field, wrong) in [
        ("cache.name", cache("A", &["a"], &[])),
        ("cache.images", cache("a", &[], &[])),
        ("cache.images", cache("a", &["x"; 33], &[])),
        ("cache.images[1]", cache("a", &["x", "Y"], &[])),
        ("cache.images[1]", cache("a", &["x", "x"], &[])),
        ("cache.zones[0]", cache("a", &["x"], &["Z"])),
    ] {
        let refused = put(&control, wrong).await.unwrap_err();
        assert_eq!(
            (refused.class(), refused.field.as_str()),
            (Class::Invalid, field)
        );
    }
    for n in 0..16 {
        put(&control, cache(&format!("c-{n}"), &["x"], &[]))
            .await
            .unwrap();
    }
    let refused = put(&control, cache("one-more", &["x"], &[]))
        .await
        .unwrap_err();
    assert_eq!(refused.class(), Class::Exhausted);
    put(&control, cache("c-3", &["y"], &[])).await.unwrap();
}
