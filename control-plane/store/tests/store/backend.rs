//! A store of any kind, that can be closed and opened again.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use longship_store::{
    EtcdOptions, EtcdStore, Leadership, MemoryStore, RedbOptions, RedbStore, Store, Transaction,
};
use longship_test_etcd::Etcd;

/// Longer than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Of the leader; longer than etcd is ever away here.
pub(crate) const TTL: Duration = Duration::from_secs(20);

/// Where a store's data lies.
pub(crate) enum Backend {
    Embedded { dir: tempfile::TempDir },
    Etcd { etcd: Etcd, prefix: String },
    Memory { store: OnceLock<MemoryStore> },
}

/// An open store that may be written to.
pub(crate) struct Open {
    pub(crate) store: Arc<dyn Store>,
    leadership: Option<Leadership>,
}

impl Backend {
    pub(crate) fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::Embedded { dir }
    }

    pub(crate) fn etcd() -> Self {
        let etcd = Etcd::start();
        let prefix = "/longship/".into();
        Self::Etcd { etcd, prefix }
    }

    pub(crate) fn memory() -> Self {
        let store = OnceLock::new();
        Self::Memory { store }
    }

    /// A new, empty place, with the same etcd.
    pub(crate) fn empty_again(&mut self, number: u64) {
        match self {
            Self::Embedded { .. } => *self = Self::embedded(),
            Self::Memory { .. } => *self = Self::memory(),
            Self::Etcd { prefix, .. } => *prefix = format!("/longship/{number}/"),
        }
    }

    pub(crate) fn is_etcd(&self) -> bool {
        matches!(self, Self::Etcd { .. })
    }

    pub(crate) async fn open(&self, history: RedbOptions) -> Open {
        match self {
            Self::Embedded { dir } => {
                let store = RedbStore::open(&dir.path().join("store.redb"), history).unwrap();
                Open {
                    store: Arc::new(store),
                    leadership: None,
                }
            }
            Self::Memory { store } => {
                let store = store.get_or_init(|| MemoryStore::new(history, Duration::ZERO));
                Open {
                    store: Arc::new(store.lead()),
                    leadership: None,
                }
            }
            Self::Etcd { etcd, prefix } => {
                let store = connect(etcd, prefix, history).await;
                let leadership = store.lead("http://me", TTL).await.unwrap();
                Open {
                    store: Arc::new(store),
                    leadership: Some(leadership),
                }
            }
        }
    }
}

impl Open {
    pub(crate) async fn close(self) {
        if let Some(leadership) = self.leadership {
            leadership.resign().await;
        }
    }
}

pub(crate) async fn connect(etcd: &Etcd, prefix: &str, history: RedbOptions) -> EtcdStore {
    connect_to(etcd.url(), prefix, history).await
}

pub(crate) async fn connect_to(url: String, prefix: &str, history: RedbOptions) -> EtcdStore {
    let options = EtcdOptions {
        prefix: prefix.into(),
        history,
        compact_every: Duration::from_millis(50),
        ..EtcdOptions::new(vec![url])
    };
    EtcdStore::connect(options).await.unwrap()
}

pub(crate) fn put(key: &str, value: &[u8]) -> Transaction {
    Transaction::new().put("pod", key, value.to_vec(), longship_store::Expect::Any)
}
