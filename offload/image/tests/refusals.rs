//! What is refused, with which reason, and that nothing is left of it.

mod parts;

use std::process::Command;
use std::time::{Duration, Instant};

use parts::fake::{Answer, Fake, answer};
use parts::image::{Layer, Layout};
use parts::registry::Registry;
use parts::{Store, run};

fn small() -> Layout {
    Layout::new([
        Layer::new().file("one", vec![1; 100_000]).finish(),
        Layer::new().file("two", b"2").finish(),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_images_and_tags_are_not_found() {
    let layout = small();
    let registry = Registry::start();
    let reference = registry.push(&layout.path(), "v1", "app:v1", &[]);
    let store = Store::new();
    let zeros = "0".repeat(64);
    for unknown in [
        format!("{}/none:v1", registry.address),
        format!("{reference}2"),
        format!("{}/app@sha256:{zeros}", registry.address),
        "oci:/nonexistent/layout:v1".to_owned(),
        format!("{}2", layout.reference()),
        format!("oci:{}@sha256:{zeros}", layout.path().display()),
    ] {
        let (reason, text) = store.refusal(&unknown).await;
        assert_eq!(reason, "ImageNotFound", "{text}");
        assert!(text.contains(&unknown), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn references_that_are_none_are_invalid() {
    let store = Store::new();
    for reference in ["", "Upper", "a b", "host/../x", "oci:relative"] {
        assert_eq!(store.refusal(reference).await.0, "InvalidReference");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_blob_is_a_digest_mismatch() {
    for which in ["layer", "configuration", "manifest"] {
        let layout = small();
        let (manifest_digest, manifest) = layout.manifest();
        let digest = match which {
            "layer" => layout.layer(0),
            "configuration" => manifest["config"]["digest"].as_str().unwrap().to_owned(),
            _ => manifest_digest,
        };
        let path = layout.blob(&digest);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (reason, text) = Store::new().refusal(&layout.reference()).await;
        assert_eq!(reason, "DigestMismatch", "{text}");
        assert!(text.contains(which) && text.contains(&digest), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_whose_blob_was_changed_is_found_out() {
    let layout = small();
    let registry = Registry::start();
    let reference = registry.push(&layout.path(), "v1", "app:v1", &[]);
    let digest = layout.layer(0);
    let path = registry.blob(&digest);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (reason, text) = Store::new().refusal(&reference).await;
    assert_eq!(reason, "DigestMismatch", "{text}");
    assert!(text.contains(&digest), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_layer_is_named() {
    let layout = small();
    let digest = layout.layer(0);
    let path = layout.blob(&digest);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    let (reason, text) = Store::new().refusal(&layout.reference()).await;
    assert_eq!(reason, "LayerTruncated", "{text}");
    assert!(text.contains(&digest), "{text}");

    // Every digest is right, but the archive ends inside a file.
    let mut archive = Layer::new().file("one", vec![1; 5000]).finish();
    archive.truncate(3000);
    let digests = Layout::raw(&archive, &archive, "tar");
    let (reason, text) = Store::new().refusal(&digests.reference()).await;
    assert_eq!(reason, "LayerTruncated", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_write_outside_their_root_are_refused() {
    for (layer, entry) in [
        (Layer::new().file("../evil", b"x"), "../evil"),
        (Layer::new().file("a/../../evil", b"x"), "a/../../evil"),
        (Layer::new().file("/etc/evil", b"x"), "/etc/evil"),
        (
            Layer::new().symlink("out", "../..").file("out/evil", b"x"),
            "out/evil",
        ),
        (Layer::new().hard_link("evil", "../../etc/passwd"), "evil"),
    ] {
        let archive = layer.finish();
        let layout = Layout::raw(&archive, &archive, "tar");
        let (reason, text) = Store::new().refusal(&layout.reference()).await;
        assert_eq!(reason, "LayerEscapesRoot", "{text}");
        assert!(text.contains(&format!("{entry:?}")), "{text}");
        assert!(text.contains(&layout.layer(0)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_over_the_limit_is_refused_compressed_or_not() {
    // Zeros: a small blob, a large archive.
    let layout = Layout::new([Layer::new().file("zeros", vec![0; 4 << 20]).finish()]);
    let (reason, text) = Store::with_limit(1 << 20)
        .refusal(&layout.reference())
        .await;
    assert_eq!(reason, "ImageTooLarge", "{text}");
    assert!(text.contains("unpack to more than 1048576 bytes"), "{text}");
    let (reason, text) = Store::with_limit(100).refusal(&layout.reference()).await;
    assert_eq!(reason, "ImageTooLarge", "{text}");
    assert!(text.contains("100 bytes even compressed"), "{text}");
    let enough = Store::with_limit(5 << 20);
    enough.store.prepare(&layout.reference()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_fails_or_breaks_off_is_unavailable() {
    let layout = small();
    let registry = Registry::start();
    let reference = registry.push(&layout.path(), "v1", "app:v1", &[]);
    let address = registry.address.clone();
    registry.stop();
    let started = Instant::now();
    let (reason, text) = Store::new().refusal(&reference).await;
    assert_eq!(reason, "RegistryUnavailable", "{text}");
    assert!(text.contains(&address), "{text}");
    assert!(started.elapsed() < Duration::from_secs(5));

    let failing = Fake::start(|_| answer(503, "busy"));
    let (reason, text) = Store::new().refusal(&failing.reference()).await;
    assert_eq!(reason, "RegistryUnavailable", "{text}");
    assert!(text.contains("503"), "{text}");

    let layer = layout.layer(0);
    let breaking = Fake::serving(&layout, move |request| {
        request.path.ends_with(&layer).then(|| Answer {
            announced: Some(1000),
            ..answer(200, vec![0x1f, 0x8b, 8])
        })
    });
    let (reason, text) = Store::new().refusal(&breaking.reference()).await;
    assert_eq!(reason, "RegistryUnavailable", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_password_denies() {
    let fake = Fake::start(|_| Answer {
        headers: vec![("www-authenticate", r#"Basic realm="here""#.to_owned())],
        ..answer(
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
        )
    });
    let (reason, text) = Store::new().refusal(&fake.reference()).await;
    assert_eq!(reason, "RegistryDenied", "{text}");
    assert!(text.contains("authentication required"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_end_is_not_read_to_its_end() {
    let fake = Fake::start(|_| answer(200, vec![b' '; 16 << 20]));
    assert_eq!(
        Store::new().refusal(&fake.reference()).await.0,
        "ImageTooLarge"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_for_us_is_refused() {
    let layout = small();
    run(Command::new("umoci").args([
        "config",
        "--image",
        &layout.image("v1"),
        "--architecture=arm64",
    ]));
    let (reason, text) = Store::new().refusal(&layout.reference()).await;
    assert_eq!(reason, "UnsupportedPlatform", "{text}");
    assert!(text.contains("linux/arm64"), "{text}");

    for (body, expected) in [
        ("no json", "ManifestInvalid"),
        ("{}", "UnsupportedMediaType"),
        (r#"{"schemaVersion":1}"#, "UnsupportedMediaType"),
        (r#"{"schemaVersion":2}"#, "ManifestInvalid"),
        (
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}"#,
            "UnsupportedMediaType",
        ),
    ] {
        let fake = Fake::start(move |_| answer(200, body));
        let (reason, text) = Store::new().refusal(&fake.reference()).await;
        assert_eq!(reason, expected, "{text}");
    }
    let foreign = small();
    let changed = foreign.manifest().1.to_string().replace(
        "image.layer.v1.tar+gzip",
        "image.layer.nondistributable.v1.tar+gzip",
    );
    let fake = Fake::start(move |_| answer(200, changed.clone()));
    let (reason, text) = Store::new().refusal(&fake.reference()).await;
    assert_eq!(reason, "UnsupportedMediaType", "{text}");
    assert!(text.contains("nondistributable"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_layer_does_not_wait_for_a_slow_one() {
    let layout = small();
    let (bad, slow) = (layout.layer(0), layout.layer(1));
    let fake = Fake::serving(&layout, move |request| {
        if request.path.ends_with(&slow) {
            std::thread::sleep(Duration::from_secs(20));
        }
        request.path.ends_with(&bad).then(|| answer(404, "{}"))
    });
    let started = Instant::now();
    assert_eq!(
        Store::new().refusal(&fake.reference()).await.0,
        "ImageNotFound"
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}
