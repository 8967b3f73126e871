//! A backup holds the store as it was at one version, and is used whole or not at all.

use std::path::Path;
use std::sync::Arc;

use longship_store::{
    BackupError, Expect, RedbOptions, RedbStore, Store, StoreError, Transaction, check_backup,
    restore,
};

use crate::backend::put;

fn open(path: &Path) -> RedbStore {
    RedbStore::open(path, RedbOptions::default()).unwrap()
}

async fn filled(dir: &Path) -> (Arc<RedbStore>, Vec<u8>) {
    let store = Arc::new(open(&dir.join("store.redb")));
    for n in 0..50_u8 {
        let both = put(&format!("pod-{n}"), &vec![n; usize::from(n) * 100]);
        let both = both.put("host", &n.to_string(), vec![n], Expect::Any);
        store.commit(both).await.unwrap();
    }
    store
        .commit(Transaction::new().delete("pod", "pod-7", Expect::Any))
        .await
        .unwrap();
    let mut backup = Vec::new();
    let written = store.backup(&mut backup).unwrap();
    assert_eq!((written.version, written.objects), (51, 99));
    assert_eq!(check_backup(&backup[..]).unwrap(), written);
    (store, backup)
}

#[tokio::test]
async fn what_was_backed_up_is_there_again_in_the_same_versions() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = filled(dir.path()).await;
    store.commit(put("later", b"")).await.unwrap();
    let path = dir.path().join("restored.redb");
    restore(&backup[..], &path).unwrap();
    let restored = open(&path);
    for kind in ["pod", "host"] {
        let mut wanted = store.list(kind, "").await.unwrap();
        wanted.objects.retain(|object| object.key != "later");
        wanted.version = 51;
        assert_eq!(restored.list(kind, "").await.unwrap(), wanted);
    }
    // It goes on from there; what happened before cannot be watched.
    assert!(matches!(
        restored.watch("pod", "", 50).await,
        Err(StoreError::TooOld { .. })
    ));
    let mut watch = restored.watch("pod", "", 51).await.unwrap();
    assert_eq!(restored.commit(put("new", b"")).await.unwrap(), 52);
    assert_eq!(watch.next().await.unwrap()[0].object.key, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_of_one_version_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("store.redb")));
    let writing = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..300_u64 {
                // Always together, so that half of it would show.
                let both = put("a", &n.to_le_bytes());
                let both = both.put("pod", "b", n.to_le_bytes().to_vec(), Expect::Any);
                store.commit(both).await.unwrap();
            }
        })
    };
    let mut seen = 0;
    while !writing.is_finished() {
        let mut backup = Vec::new();
        let written = store.backup(&mut backup).unwrap();
        let path = dir.path().join(format!("{seen}.redb"));
        restore(&backup[..], &path).unwrap();
        let listing = open(&path).list("pod", "").await.unwrap();
        assert_eq!(listing.version, written.version);
        let values: Vec<_> = listing.objects.iter().map(|o| &o.value).collect();
        assert!(values.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(listing.objects.iter().all(|o| o.version == written.version));
        seen += 1;
    }
    writing.await.unwrap();
    assert!(seen > 1);
}

#[tokio::test]
async fn a_damaged_backup_is_refused_wherever_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, backup) = filled(dir.path()).await;
    let path = dir.path().join("restored.redb");
    let refused = |bytes: &[u8], what: &str| {
        let refused = restore(bytes, &path).unwrap_err();
        assert!(
            matches!(refused, BackupError::Damaged(_) | BackupError::Layout(_)),
            "{what}: {refused}"
        );
        assert!(!path.exists(), "{what}");
        assert!(!dir.path().join("restored.redb.part").exists(), "{what}");
    };
    for at in (0..backup.len())
        .step_by(backup.len() / 60)
        .chain([16, 20, 27])
    {
        let mut damaged = backup.clone();
        damaged[at] ^= 1;
        refused(&damaged, &format!("byte {at}"));
        refused(&backup[..at], &format!("cut at {at}"));
    }
    refused(&backup[..backup.len() - 1], "cut at its end");
    refused(&[&backup[..], b"x"].concat(), "longer");
    refused(b"", "empty");
    // Lengths that would take all memory are not believed.
    let mut large = backup[..28].to_vec();
    large.push(1);
    large.extend([0xff; 18]);
    refused(&large, "too large");
    let mut newer = backup.clone();
    newer[16] = 2;
    assert!(matches!(
        restore(&newer[..], &path),
        Err(BackupError::Layout(2))
    ));
    restore(&backup[..], &path).unwrap();
    assert!(matches!(
        restore(&backup[..], &path),
        Err(BackupError::Exists(_))
    ));
}
