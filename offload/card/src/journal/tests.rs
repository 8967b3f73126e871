use super::*;

fn names(journal: &Journal) -> Vec<String> {
    let held = journal.held();
    held.iter()
        .map(|h| format!("{}@{}/{}/{}", h.pod_uid, h.generation, h.kind, h.name))
        .collect()
}

#[tokio::test]
async fn what_was_taken_is_still_held_after_a_restart_until_it_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    {
        let journal = Journal::open(&path).unwrap();
        let items = vec![("eni", "eth0".into()), ("sandbox", "a".into())];
        journal.take("a", 7, items).await.unwrap();
        let items = vec![("eni", "eth0".into())];
        journal.take("ab", 1, items).await.unwrap();
    }
    let journal = Journal::open(&path).unwrap();
    assert_eq!(
        names(&journal),
        ["a@7/eni/eth0", "a@7/sandbox/a", "ab@1/eni/eth0"]
    );
    assert_eq!(journal.held_for("a").len(), 2);
    assert_eq!(journal.held_for("aa"), []);
    journal.clear("a").await.unwrap();
    assert_eq!(names(&journal), ["ab@1/eni/eth0"]);
    journal.clear("unknown").await.unwrap();
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    assert_eq!(names(&journal), ["ab@1/eni/eth0"]);
}

#[tokio::test]
async fn what_a_reference_stands_for_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    {
        let journal = Journal::open(&path).unwrap();
        for digest in ["sha256:1", "sha256:2"] {
            journal.remember_reference("a:1", digest).await.unwrap();
        }
    }
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.references()["a:1"], "sha256:2");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once_all_find_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = Arc::new(Journal::open(&path).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..500_u32 {
        let journal = journal.clone();
        tasks.spawn(async move {
            let uid = format!("pod-{n}");
            let items = vec![("eni", uid.clone()), ("sandbox", uid.clone())];
            journal.take(&uid, 1, items).await.unwrap();
            if n % 2 == 0 {
                journal.clear(&uid).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let held = names(&journal);
    assert_eq!(held.len(), 500);
    drop(journal);
    assert_eq!(names(&Journal::open(&path).unwrap()), held);
}

#[tokio::test]
async fn wherever_a_crash_cuts_the_file_what_was_whole_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    {
        let journal = Journal::open(&path).unwrap();
        for uid in ["a", "b", "c"] {
            let items = vec![("sandbox", uid.to_owned())];
            journal.take(uid, 1, items).await.unwrap();
        }
    }
    let whole = std::fs::read(&path).unwrap();
    let line = whole.len() / 3;
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.held().len(), cut / line, "cut at {cut}");
        journal
            .take("d", 1, vec![("eni", "d".into())])
            .await
            .unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.held().len(), cut / line + 1);
    }
}

#[tokio::test]
async fn a_file_of_old_records_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let file = write_anew(&path, &Contents::default()).unwrap();
    let mut writer = Writer {
        path: path.clone(),
        file,
        bytes: 0,
        compact: 4096,
        contents: Arc::default(),
    };
    for n in 0..100_u32 {
        let pod_uid = format!("pod-{n}");
        let take = Record::Take {
            pod_uid: pod_uid.clone(),
            generation: 1,
            kind: "eni".into(),
            name: "x".into(),
        };
        writer.append(vec![take]).unwrap();
        if n != 50 {
            writer.append(vec![Record::Clear { pod_uid }]).unwrap();
        }
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, writer.bytes);
    }
    assert_eq!(writer.compact, COMPACT_BYTES);
    let read = read(&path).unwrap();
    assert_eq!(read.held.keys().collect::<Vec<_>>(), ["pod-50"]);
}

#[tokio::test]
async fn a_name_that_would_break_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("journal")).unwrap();
    for name in ["a\nb", "a\tb"] {
        let refused = journal.take("a", 1, vec![("eni", name.into())]).await;
        assert!(matches!(refused, Err(JournalError::Name(_))));
    }
    assert_eq!(journal.held(), []);
}

#[test]
fn a_second_card_with_the_same_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let _first = Journal::open(&path).unwrap();
    let refused = Journal::open(&path).unwrap_err();
    assert!(refused.to_string().contains("another card"), "{refused}");
}
