//! Images that cards keep ready: who wants which, and who has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use longship_proto::Failure;
use longship_proto::control::v1::{CachedImage, CachedImages, ImageCache, ImageReport};
use longship_store::{Expect, Object, Transaction};
use prost::Message;

use super::command::Answer;
use super::plan::{Tell, refuse};
use super::report::shorten;
use super::state::State;
use crate::records::{self, RecordError};

/// Image caches of one tenant.
const MAX_CACHES: usize = 16;
/// Images that the cards of one zone keep, of all tenants together.
const MAX_IMAGES: usize = 1024;
/// Bytes of what a card says of an image that it cannot have.
const MAX_MESSAGE: usize = 512;

/// What can be asked about image caches.
#[derive(Debug)]
pub(crate) enum ImageCommand {
    Put {
        cache: ImageCache,
        answer: Answer<ImageCache>,
    },
    List {
        /// `None`: everybody's.
        tenant: Option<String>,
        answer: Answer<Vec<ImageCache>>,
    },
    Delete {
        tenant: String,
        name: String,
        answer: Answer<()>,
    },
}

/// All image caches, and what cards have said of their images.
#[derive(Debug, Default)]
pub(crate) struct Images {
    /// By `TENANT/NAME`.
    caches: BTreeMap<String, ImageCache>,
    /// By host and image: `None` where it is there, else why not.
    reports: HashMap<String, HashMap<String, Option<String>>>,
}

impl Images {
    /// What the cards of a zone keep.
    fn of_zone(&self, zone: &str) -> BTreeSet<&str> {
        let caches = self.caches.values();
        let wanted = caches.filter(|cache| wants(cache, zone));
        let images = wanted.flat_map(|cache| &cache.images);
        images.map(String::as_str).collect()
    }
}

/// Whether a cache is for the hosts of a zone.
fn wants(cache: &ImageCache, zone: &str) -> bool {
    cache.zones.is_empty() || cache.zones.iter().any(|one| one == zone)
}

impl State {
    pub(super) fn decide_images(&mut self, command: ImageCommand) {
        match command {
            ImageCommand::Put { cache, answer } => {
                let put = self.put_cache(cache);
                self.answer_written(answer, put);
            }
            ImageCommand::List { tenant, answer } => {
                let caches = self.list_caches(tenant.as_deref());
                self.plan.reply(false, answer, move |_| caches);
            }
            ImageCommand::Delete {
                tenant,
                name,
                answer,
            } => {
                let key = format!("{tenant}/{name}");
                if self.images.caches.remove(&key).is_none() {
                    let message = format!("no image cache `{name}`");
                    return refuse(answer, Failure::not_found(message));
                }
                let transaction = Transaction::new();
                self.plan
                    .write(transaction.delete(records::IMAGE_CACHE, &key, Expect::Any));
                self.tell_images();
                self.plan.reply(true, answer, |_| ());
            }
        }
    }

    /// Forgets the caches of a tenant that goes.
    pub(super) fn forget_caches_of(&mut self, tenant: &str) {
        let caches = self.images.caches.iter();
        let keys = caches.filter(|(_, cache)| cache.tenant == tenant);
        let keys: Vec<String> = keys.map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.images.caches.remove(&key);
            let transaction = Transaction::new();
            self.plan
                .write(transaction.delete(records::IMAGE_CACHE, &key, Expect::Any));
        }
        self.tell_images();
    }

    fn put_cache(&mut self, cache: ImageCache) -> Result<ImageCache, Failure> {
        let key = format!("{}/{}", cache.tenant, cache.name);
        let before = self.images.caches.get(&key).cloned();
        if before.is_none() {
            let of_tenant = self.images.caches.values();
            let count = of_tenant.filter(|one| one.tenant == cache.tenant).count();
            if count >= MAX_CACHES {
                let message = format!("the tenant has {MAX_CACHES} image caches");
                return Err(Failure::exhausted(message));
            }
        }
        self.images.caches.insert(key.clone(), cache.clone());
        let full = self
            .fleet
            .zones()
            .chain(cache.zones.iter().map(String::as_str));
        let full = full
            .map(|zone| (zone.to_owned(), self.images.of_zone(zone).len()))
            .find(|(_, count)| *count > MAX_IMAGES);
        if let Some((zone, count)) = full {
            match before {
                Some(before) => self.images.caches.insert(key, before),
                None => self.images.caches.remove(&key),
            };
            return Err(Failure {
                field: "cache.images".into(),
                ..Failure::exhausted(format!(
                    "the cards of zone `{zone}` would keep {count} images; at most {MAX_IMAGES}"
                ))
            });
        }
        if before.as_ref() != Some(&cache) {
            let bytes = cache.encode_to_vec();
            let transaction = Transaction::new();
            self.plan
                .write(transaction.put(records::IMAGE_CACHE, &key, bytes, Expect::Any));
            self.tell_images();
        }
        Ok(self.with_status(&cache))
    }

    fn list_caches(&self, tenant: Option<&str>) -> Vec<ImageCache> {
        let caches = self.images.caches.values();
        let of = caches.filter(|cache| tenant.is_none_or(|tenant| cache.tenant == tenant));
        of.map(|cache| self.with_status(cache)).collect()
    }

    /// With what cards have said of its images.
    fn with_status(&self, cache: &ImageCache) -> ImageCache {
        let mut status: Vec<CachedImage> = cache
            .images
            .iter()
            .map(|image| CachedImage {
                image: image.clone(),
                ..CachedImage::default()
            })
            .collect();
        for (host, record) in self.inventory.after("") {
            if !wants(cache, &record.zone) {
                continue;
            }
            let said = self.images.reports.get(host);
            for one in &mut status {
                one.wanted += 1;
                match said.and_then(|said| said.get(&one.image)) {
                    Some(None) => one.ready += 1,
                    Some(Some(why)) => one.message.clone_from(why),
                    None => {}
                }
            }
        }
        ImageCache {
            status,
            ..cache.clone()
        }
    }

    /// Tells every card what it is to keep, once that is written.
    fn tell_images(&mut self) {
        let hosts = self.inventory.after("").map(|(host, _)| host.to_owned());
        let hosts: Vec<String> = hosts.collect();
        let tell = hosts.into_iter().map(|host| Tell::Images { host });
        self.plan.tell.extend(tell);
    }

    /// What a host's card is to keep.
    pub(super) fn images_for(&self, host: &str) -> CachedImages {
        let zone = self.inventory.record(host).map(|record| &record.zone);
        let images = zone
            .map(|zone| self.images.of_zone(zone))
            .unwrap_or_default();
        CachedImages {
            images: images.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Takes over what a card says of the images that it is to keep. Of others it says
    /// nothing that matters.
    pub(super) fn hear_images(&mut self, host: &str, reports: Vec<ImageReport>) {
        let Some(zone) = self
            .inventory
            .record(host)
            .map(|record| record.zone.clone())
        else {
            return;
        };
        let wanted: BTreeSet<String> = self
            .images
            .of_zone(&zone)
            .into_iter()
            .map(str::to_owned)
            .collect();
        let said = self.images.reports.entry(host.to_owned()).or_default();
        said.retain(|image, _| wanted.contains(image));
        for mut report in reports {
            if wanted.contains(&report.image) {
                shorten(&mut report.message, MAX_MESSAGE);
                let why = (!report.ready).then_some(report.message);
                said.insert(report.image, why);
            }
        }
    }

    /// The host is gone, and what it has.
    pub(super) fn forget_images_of(&mut self, host: &str) {
        self.images.reports.remove(host);
    }

    /// Takes a cache over from the store.
    pub(super) fn adopt_image_cache(&mut self, object: &Object) -> Result<(), RecordError> {
        let cache: ImageCache = records::decode(object)?;
        self.images.caches.insert(object.key.clone(), cache);
        Ok(())
    }
}
