//! Follows the store for all watchers together.

use std::sync::Arc;
use std::time::Duration;

use longship_store::{Store, StoreError, Watch};

use super::audience::Audience;
use super::change::Change;
use super::recent::Recent;
use crate::records;

/// Changes that are held for watchers, at most.
const MOST: u64 = 16 << 10;
/// Their bytes, at most.
const MOST_BYTES: u64 = 32 << 20;
/// Between attempts to follow a store that does not answer.
const RETRY: Duration = Duration::from_millis(200);
/// A prefix that no key has, to ask for the version alone.
const NO_KEY: &str = "\u{0}";

/// What all watchers share.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) recent: Recent,
    pub(crate) audience: Audience,
}

impl Feed {
    /// Follows the store from now on, holding no more than the store's history does.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        history: (u64, u64),
    ) -> Result<Arc<Self>, StoreError> {
        let (watch, version) = follow(&*store).await?;
        let bound = |limit: u64, most: u64| usize::try_from(limit.min(most)).unwrap_or(usize::MAX);
        let feed = Arc::new(Self {
            recent: Recent::new(
                version,
                bound(history.0, MOST),
                bound(history.1, MOST_BYTES),
            ),
            audience: Audience::default(),
        });
        let task = Arc::downgrade(&feed);
        // The store is not kept open by it, nor the feed.
        let store = Arc::downgrade(&store);
        tokio::spawn(async move {
            let mut watch = watch;
            loop {
                let next = watch.next().await;
                let Some(feed) = task.upgrade() else {
                    return;
                };
                let why = match next.map(|events| Change::of_all(&events)) {
                    Ok(Ok(changes)) => {
                        feed.publish(changes);
                        continue;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(StoreError::Closed) => return,
                    Err(error) => error.to_string(),
                };
                tracing::warn!(why, "watchers have missed changes");
                watch = loop {
                    let Some(store) = store.upgrade() else {
                        return;
                    };
                    match follow(&*store).await {
                        Ok((watch, version)) => {
                            feed.recent.restart(version);
                            feed.audience.tell_all(0);
                            break watch;
                        }
                        Err(StoreError::Closed) => return,
                        Err(_) => tokio::time::sleep(RETRY).await,
                    }
                };
            }
        });
        Ok(feed)
    }

    fn publish(&self, changes: Vec<Change>) {
        let changes: Vec<Arc<Change>> = changes.into_iter().map(Arc::new).collect();
        let number = self.recent.push(&changes);
        for (number, change) in (number..).zip(&changes) {
            self.audience.tell(number, change);
        }
    }
}

async fn follow(store: &dyn Store) -> Result<(Watch, u64), StoreError> {
    let version = store.list(records::POD, NO_KEY).await?.version;
    let watch = store.watch(records::POD, "", version).await?;
    Ok((watch, version))
}
