//! Syntax of image references: the card's own rules, asked before a pod is taken.

use longship_image::validate_reference;
use longship_proto::Failure;

use super::names::shown;

/// Checks `[host[:port]/]path[:tag][@digest]` or `oci:/dir[:tag]`. Whether there is
/// such an image only the card can tell.
pub(super) fn reference(field: &str, image: &str) -> Result<(), Failure> {
    if image.is_empty() {
        return Err(Failure::invalid(field, "must not be empty"));
    }
    validate_reference(image).map_err(|error| {
        Failure::invalid(
            field,
            format!("`{}` is no image reference: {error}", shown(image)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_all_forms_are_taken() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for image in [
            "nginx",
            "library/nginx:1.27",
            "docker.io/library/nginx:1.27-alpine",
            "127.0.0.1:5000/hello:latest",
            "localhost/hello",
            "localhost:5000/a/b-c/d__e.f:V1_0",
            "oci:/srv/images/hello",
            "oci:/srv/images/hello:v1",
            &format!("registry.example.com/app@{digest}"),
            &format!("registry.example.com/app:1@{digest}"),
        ] {
            assert_eq!(reference("image", image), Ok(()), "{image}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_field() {
        for image in [
            "",
            "Nginx",
            "nginx:",
            "nginx:.x",
            "nginx@sha256:12",
            "nginx@md5:0",
            "/nginx",
            "a//b",
            "a/b/",
            "http://host/a",
            "host:99999/a",
            "host:port/a",
            "-a.b/c",
            "a..b/c",
            "a b",
            "a.-b",
            "oci:images/hello",
            "oci:/srv/../etc",
            "oci:/srv/a:b c",
            "ümlaut",
            &"a".repeat(5000),
        ] {
            let refused = reference("spec.image", image).unwrap_err();
            assert_eq!(refused.field, "spec.image", "{image}");
        }
    }
}
