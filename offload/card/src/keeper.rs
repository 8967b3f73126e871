//! Images that the control plane wants kept ready, so that pods of them start without a
//! pull.
//!
//! The card removes no image by itself, so keeping one is having it. One that is wanted
//! no more is no longer pulled, and stays until an operator makes room.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_proto::Failure;
use longship_proto::control::v1::ImageReport;
use tokio::sync::{Notify, watch};
use tracing::{debug, info};

/// More than the control plane wants of any card.
const MAX_IMAGES: usize = 4096;
/// The usual time before what could not be had is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(60);

/// What is to be kept, and what became of it.
#[derive(Debug)]
pub(crate) struct Keeper {
    wanted: watch::Sender<Vec<String>>,
    said: Mutex<Said>,
    news: Notify,
    /// Before what could not be had is tried again.
    retry: Duration,
}

#[derive(Debug, Default)]
struct Said {
    /// The newest of each image that is wanted.
    all: BTreeMap<String, ImageReport>,
    unsent: BTreeMap<String, ImageReport>,
}

impl Keeper {
    pub(crate) fn new(retry: Duration) -> Self {
        Self {
            wanted: watch::Sender::new(Vec::new()),
            said: Mutex::new(Said::default()),
            news: Notify::new(),
            retry,
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps exactly these from now on.
    pub(crate) fn want(&self, mut images: Vec<String>) {
        images.truncate(MAX_IMAGES);
        self.said().all.retain(|image, _| images.contains(image));
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != images;
            *wanted = images;
            changed
        });
    }

    /// Says everything again: the control plane may have forgotten it.
    pub(crate) fn resend(&self) {
        let mut said = self.said();
        said.unsent = said.all.clone();
        self.news.notify_one();
    }

    /// What has not been said yet; waits for something.
    pub(crate) async fn next(&self) -> Vec<ImageReport> {
        loop {
            let unsent = std::mem::take(&mut self.said().unsent);
            if !unsent.is_empty() {
                return unsent.into_values().collect();
            }
            self.news.notified().await;
        }
    }

    fn say(&self, image: &str, outcome: Result<(), Failure>) {
        let report = ImageReport {
            image: image.to_owned(),
            ready: outcome.is_ok(),
            message: outcome.err().map(|f| f.to_string()).unwrap_or_default(),
        };
        let mut said = self.said();
        if said.all.get(image) != Some(&report) {
            said.all.insert(image.to_owned(), report.clone());
            said.unsent.insert(image.to_owned(), report);
            self.news.notify_one();
        }
    }

    /// Pulls what is wanted and not there, one at a time, for as long as the card lives.
    pub(crate) async fn keep<F>(&self, pull: impl Fn(String) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut wanted = self.wanted.subscribe();
        loop {
            let images = wanted.borrow_and_update().clone();
            let mut missing = false;
            for image in images {
                if wanted.has_changed().unwrap_or(false) {
                    break;
                }
                let outcome = pull(image.clone()).await;
                match &outcome {
                    Ok(()) => debug!(image, "an image is kept"),
                    Err(error) => info!(image, %error, "an image cannot be kept"),
                }
                missing |= outcome.is_err();
                self.say(&image, outcome);
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(self.retry), if missing => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wanted_is_pulled_and_told_and_tried_again() {
        let keeper = Keeper::new(Duration::from_millis(20));
        let tries = Mutex::new(0);
        let pull = async |image: String| match image.as_str() {
            "bad" => {
                let mut tries = tries.lock().unwrap();
                *tries += 1;
                match *tries {
                    1 => Err(Failure::not_found("no such tag")),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        };
        let test = async {
            keeper.want(vec!["a".into(), "bad".into()]);
            let mut told = BTreeMap::new();
            while told.len() < 2 {
                let next = keeper.next().await;
                told.extend(next.into_iter().map(|one| (one.image.clone(), one)));
            }
            assert!(told["a"].ready && !told["bad"].ready);
            assert!(told["bad"].message.contains("no such tag"));
            let later = keeper.next().await;
            assert!(later[0].image == "bad" && later[0].ready, "after a while");
            keeper.want(vec!["a".into()]);
            keeper.resend();
            let again = keeper.next().await;
            let again: Vec<&str> = again.iter().map(|one| one.image.as_str()).collect();
            assert_eq!(again, ["a"]);
        };
        tokio::select! {
            () = test => {}
            () = keeper.keep(pull) => panic!("it ends"),
        }
    }
}
