//! What is true of the embedded store's file alone.

use std::path::Path;

use longship_store::{RedbOptions, RedbStore, StoreError};

fn open(path: &Path) -> Result<RedbStore, StoreError> {
    RedbStore::open(path, RedbOptions::default())
}

#[test]
fn a_file_that_is_no_store_and_one_in_use_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    std::fs::write(&path, "this is a letter to a friend".repeat(400)).unwrap();
    let refused = open(&path).unwrap_err();
    assert!(matches!(refused, StoreError::Format { .. }), "{refused:?}");
    std::fs::remove_file(&path).unwrap();

    let store = open(&path).unwrap();
    let refused = open(&path).unwrap_err();
    assert!(matches!(refused, StoreError::Locked(_)), "{refused:?}");
    drop(store);
    open(&path).unwrap();

    let refused = open(Path::new("/nowhere/store.redb")).unwrap_err();
    assert!(matches!(refused, StoreError::Backend(_)), "{refused:?}");
}
