//! Which image a container gets: the pull policy, before the image store is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longship_image::reference::{Reference, Selector};
use longship_image::{Image, ImageError, ImageStore};
use longship_proto::Failure;
use longship_proto::control::v1::ImagePullPolicy;
use tracing::{debug, warn};

use crate::journal::Journal;

/// Images by reference, pulled as the policy of each container says.
pub(crate) struct Images {
    store: ImageStore,
    journal: Arc<Journal>,
    /// What each reference stood for when it was last looked up.
    known: Mutex<HashMap<String, Known>>,
}

/// What a reference stood for.
#[derive(Debug, Clone)]
enum Known {
    /// From before this process: the digest alone.
    Digest(String),
    Image(Arc<Image>),
}

/// Why there is no image: one CamelCase word, and what happened.
pub(crate) type Refusal = (&'static str, Failure);

impl Images {
    /// The images of `store`; what references stand for is kept in `journal`.
    pub(crate) fn new(store: ImageStore, journal: Arc<Journal>) -> Self {
        let known = journal.references();
        let known = known.into_iter().map(|(r, d)| (r, Known::Digest(d)));
        Self {
            store,
            known: Mutex::new(known.collect()),
            journal,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that `reference` stands for, pulled where it has to be.
    ///
    /// # Errors
    /// The image store's, or `ImageNotPresent` where the policy forbids to pull.
    pub(crate) async fn get(
        &self,
        reference: &str,
        policy: ImagePullPolicy,
    ) -> Result<Arc<Image>, Refusal> {
        let parsed = reference
            .parse::<Reference>()
            .map_err(|e| (e.reason(), Failure::from(e)))?;
        if looks_up_each_time(&parsed, policy) {
            return self.look_up(reference).await;
        }
        let known = self.known().get(reference).cloned();
        if let Some(Known::Image(image)) = &known
            && image.disk.exists()
        {
            return Ok(image.clone());
        }
        let digest = match (&known, digest_of(&parsed)) {
            (_, Some(digest)) => Some(digest),
            (Some(Known::Digest(digest)), None) => Some(digest.clone()),
            (Some(Known::Image(image)), None) => Some(image.digest.clone()),
            (None, None) => None,
        };
        if policy == ImagePullPolicy::Never {
            return self.stored(reference, digest.as_deref()).await;
        }
        if let Some(digest) = digest {
            match self.store.prepare(&pinned(&parsed, &digest)).await {
                Ok(image) => return Ok(self.remember(reference, image).await),
                // It may be gone from here and from there; the tag may have moved.
                Err(error) => debug!(reference, digest, %error, "looking it up again"),
            }
        }
        self.look_up(reference).await
    }

    async fn look_up(&self, reference: &str) -> Result<Arc<Image>, Refusal> {
        let image = self.store.prepare(reference).await.map_err(refusal)?;
        Ok(self.remember(reference, image).await)
    }

    async fn stored(&self, reference: &str, digest: Option<&str>) -> Result<Arc<Image>, Refusal> {
        if let Some(digest) = digest {
            let images = self.store.list().await.map_err(refusal)?;
            if let Some(image) = images.into_iter().find(|i| i.digest == digest) {
                return Ok(self.remember(reference, image).await);
            }
        }
        let text = format!("{reference} is not on this card, and the pull policy is Never");
        Err(("ImageNotPresent", Failure::not_found(text)))
    }

    async fn remember(&self, reference: &str, image: Image) -> Arc<Image> {
        let image = Arc::new(image);
        let before = self
            .known()
            .insert(reference.to_owned(), Known::Image(image.clone()));
        let same = match before {
            Some(Known::Digest(digest)) => digest == image.digest,
            Some(Known::Image(before)) => before.digest == image.digest,
            None => false,
        };
        if !same
            && let Err(error) = self
                .journal
                .remember_reference(reference, &image.digest)
                .await
        {
            // Then it is looked up once more after a restart.
            warn!(reference, %error, "what the reference stands for is not written down");
        }
        image
    }
}

fn refusal(error: ImageError) -> Refusal {
    (error.reason(), error.into())
}

/// As in Kubernetes: `latest` may point elsewhere at any time, other tags are taken to
/// stay. A layout lies on this card, so that looking it up costs no network.
fn looks_up_each_time(reference: &Reference, policy: ImagePullPolicy) -> bool {
    match policy {
        ImagePullPolicy::Always => true,
        ImagePullPolicy::IfNotPresent | ImagePullPolicy::Never => false,
        ImagePullPolicy::Unspecified => match reference {
            Reference::Registry(r) => {
                matches!(&r.selector, Selector::Tag(tag) if tag == "latest")
            }
            Reference::Layout(l) => !matches!(l.selector, Some(Selector::Digest(_))),
        },
    }
}

fn digest_of(reference: &Reference) -> Option<String> {
    let selector = match reference {
        Reference::Registry(r) => Some(&r.selector),
        Reference::Layout(l) => l.selector.as_ref(),
    };
    match selector {
        Some(Selector::Digest(digest)) => Some(digest.to_string()),
        Some(Selector::Tag(_)) | None => None,
    }
}

/// The same image, by its content.
fn pinned(reference: &Reference, digest: &str) -> String {
    match reference {
        Reference::Registry(r) => format!("{}/{}@{digest}", r.registry, r.repository),
        Reference::Layout(l) => format!("oci:{}@{digest}", l.directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_what_may_have_moved_is_looked_up_each_time() {
        let by_digest = format!("host.example/a@{DIGEST}");
        for (reference, policy, each_time) in [
            ("busybox", ImagePullPolicy::Unspecified, true),
            ("busybox:latest", ImagePullPolicy::Unspecified, true),
            ("busybox:1", ImagePullPolicy::Unspecified, false),
            (&by_digest, ImagePullPolicy::Unspecified, false),
            ("oci:/srv/image", ImagePullPolicy::Unspecified, true),
            ("oci:/srv/image:1", ImagePullPolicy::Unspecified, true),
            ("oci:/srv/image:1", ImagePullPolicy::IfNotPresent, false),
            ("busybox:latest", ImagePullPolicy::IfNotPresent, false),
            ("busybox:1", ImagePullPolicy::Always, true),
            ("busybox", ImagePullPolicy::Never, false),
        ] {
            let parsed = reference.parse().unwrap();
            assert_eq!(
                looks_up_each_time(&parsed, policy),
                each_time,
                "{reference} {policy:?}"
            );
        }
    }

    #[test]
    fn a_pinned_reference_names_the_same_repository_by_digest() {
        for (reference, wanted) in [
            ("busybox:1", format!("docker.io/library/busybox@{DIGEST}")),
            (
                "h.example:5000/a/b:1",
                format!("h.example:5000/a/b@{DIGEST}"),
            ),
            ("oci:/srv/image:1", format!("oci:/srv/image@{DIGEST}")),
        ] {
            let pinned = pinned(&reference.parse().unwrap(), DIGEST);
            assert_eq!(pinned, wanted);
            assert_eq!(digest_of(&pinned.parse().unwrap()).unwrap(), DIGEST);
        }
    }
}
