//! What is killed comes back, and gives back what it held.

use std::path::Path;
use std::process::Command;

use longship_e2e::{
    Process, Registry, Residue, binary, busybox_layout, eventually, guest_file, run_to_end,
};
use nix::sys::signal::Signal;

fn control(directory: &Path) -> Process {
    Process::spawn(
        Command::new(binary("longship-control"))
            .args(["--listen", "127.0.0.1:7700", "--state"])
            .arg(directory.join("control")),
        &directory.join("control.log"),
    )
}

fn agent(directory: &Path) -> Process {
    Process::spawn(
        Command::new(binary("longship-agent"))
            .arg("--listen")
            .arg(format!("unix:{}", directory.join("agent.sock").display()))
            .arg("--runtime-dir")
            .arg(directory.join("agent"))
            .arg("--kernel")
            .arg(guest_file("vmlinux"))
            .arg("--initramfs")
            .arg(guest_file("initramfs.cpio")),
        &directory.join("agent.log"),
    )
}

fn card(directory: &Path, log: &str) -> Process {
    Process::spawn(
        Command::new(binary("longship-card"))
            .args(["--host", "h", "--zone", "z", "--agent"])
            .arg(format!("unix:{}", directory.join("agent.sock").display()))
            .arg("--admin")
            .arg(format!("unix:{}", directory.join("card.sock").display()))
            .arg("--state")
            .arg(directory.join("card"))
            .arg("--runtime-dir")
            .arg(directory.join("card-run")),
        &directory.join(log),
    )
}

fn cli(arguments: &[&str]) -> longship_e2e::Outcome {
    run_to_end(
        Command::new(binary("longship"))
            .args(arguments)
            .env("LONGSHIP_SERVER", "http://127.0.0.1:7700"),
    )
}

fn phase(name: &str) -> String {
    let pod = cli(&["get", "pod", name, "-o", "json"]).stdout;
    let pod: serde_json::Value = serde_json::from_str(&pod).unwrap_or_default();
    pod["status"]["phase"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_card_that_is_killed_leaves_its_pods_to_the_next() {
    let before = Residue::now();
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path();
    let mut daemons = vec![control(directory), agent(directory)];
    let first = card(directory, "card-1.log");
    eventually(240, "the host is ready", || {
        cli(&["get", "hosts", "-o", "json"])
            .stdout
            .contains("\"ready\": true")
    });
    for (name, restart) in [("again", "Always"), ("once", "Never")] {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: {restart}, \
             terminationGracePeriodSeconds: 1, containers: [{{name: c, image: '{image}', \
             command: [sleep, '10000']}}]}}\n"
        );
        let path = directory.join("pod.yaml");
        std::fs::write(&path, yaml).unwrap();
        cli(&["create", "-f", &path.to_string_lossy()]).ok();
        eventually(240, "the pod runs", || phase(name) == "Running");
    }

    first.signal(Signal::SIGKILL);
    drop(first);
    daemons.push(card(directory, "card-2.log"));
    // What may not run twice has failed; what shall always run does so again.
    eventually(240, "the pod that ran once is over", || {
        phase("once") == "Failed"
    });
    eventually(240, "the other one runs again", || {
        phase("again") == "Running" && cli(&["exec", "again", "--", "true"]).code == Some(0)
    });
    for name in ["again", "once"] {
        cli(&["delete", "pod", name, "--wait"]).ok();
    }
    let admin = format!("unix:{}", directory.join("card.sock").display());
    assert_eq!(
        cli(&["get", "held", "--card", &admin]).ok().stdout.trim(),
        ""
    );
    while let Some(mut daemon) = daemons.pop() {
        assert_eq!(daemon.terminate(), Some(0), "{}", daemon.output());
    }
    before.assert_nothing_new();
}
