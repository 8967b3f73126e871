//! A backup is taken while the server runs, and a server starts from it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use longship_control::{CopyError, backup, restore};

use crate::setup::{Control, pod};

fn program(arguments: &[&str], state: &Path, file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longship-control"));
    command.args(arguments).arg("--state").arg(state).arg(file);
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_server_holds_is_backed_up_and_served_again() {
    let control = Control::start().await;
    let dir = tempfile::tempdir().unwrap();
    for n in 0..20 {
        control
            .create(pod(&format!("pod-{n}"), 500, 512))
            .await
            .unwrap();
    }
    let file = dir.path().join("backup");
    let output = program(&["backup"], &control.config.state_dir, &file);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("objects, version"), "{text}");
    control.create(pod("later", 500, 512)).await.unwrap();

    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds secrets");

    let state = dir.path().join("restored");
    let output = program(&["restore"], &state, &file);
    assert!(output.status.success(), "{output:?}");
    let restored = Control::start_with(|config| config.state_dir = state.clone()).await;
    for n in 0..20 {
        let name = format!("pod-{n}");
        let (old, new) = (control.get(&name).await, restored.get(&name).await);
        assert_eq!(old.unwrap(), new.unwrap());
    }
    restored.get("later").await.unwrap_err();

    // Without the server it is read from the store itself.
    let (cold, still) = (dir.path().join("cold"), dir.path().join("still"));
    restore(&cold, &file).unwrap();
    backup(&cold, &still).unwrap();
    assert_eq!(
        std::fs::read(&still).unwrap(),
        std::fs::read(&file).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_overwritten_and_nothing_damaged_is_used() {
    let control = Control::start().await;
    control.create(pod("one", 500, 512)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let running = &control.config.state_dir;
    backup(running, &file).unwrap();
    let again = backup(running, &file).unwrap_err();
    assert!(matches!(again, CopyError::Exists(_)), "{again}");
    let over = restore(running, &file).unwrap_err();
    assert!(matches!(over, CopyError::Exists(_)), "{over}");
    let none = backup(dir.path(), &dir.path().join("none")).unwrap_err();
    assert!(matches!(none, CopyError::NoStore(_)), "{none}");

    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = dir.path().join("damaged");
    std::fs::write(&damaged, bytes).unwrap();
    let state = dir.path().join("state");
    let refused = program(&["restore"], &state, &damaged);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("no backup that can be used"), "{text}");
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    restore(&state, &file).unwrap();
}
