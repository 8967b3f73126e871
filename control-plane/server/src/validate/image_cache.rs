//! An image cache that somebody wants.

use longship_proto::Failure;
use longship_proto::control::v1::ImageCache;

use super::image;
use super::names::dns_label;
use super::placement::zones;

const MAX_IMAGES: usize = 32;

/// Checks an image cache, but for its tenant. What only the server sets is left out.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn image_cache(given: ImageCache) -> Result<ImageCache, Failure> {
    dns_label("cache.name", &given.name)?;
    let count = given.images.len();
    if count == 0 || count > MAX_IMAGES {
        return Err(Failure::invalid(
            "cache.images",
            format!("has {count} images; at least 1, at most {MAX_IMAGES}"),
        ));
    }
    for (at, image) in given.images.iter().enumerate() {
        let field = format!("cache.images[{at}]");
        image::reference(&field, image)?;
        if given.images.iter().take(at).any(|before| before == image) {
            return Err(Failure::invalid(field, "is there already"));
        }
    }
    zones("cache.zones", &given.zones)?;
    Ok(ImageCache {
        status: Vec::new(),
        ..given
    })
}
