//! The command against a real control plane: pods in batches, networks, labels, hosts,
//! and how each refusal ends.
#![allow(clippy::unwrap_used)] // the helpers are tests too

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// The other package's program is built first: nothing says that it has been.
fn control_plane() -> PathBuf {
    let longship = PathBuf::from(env!("CARGO_BIN_EXE_longship"));
    let folder = longship.parent().unwrap().to_owned();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "-q", "-p", "longship-control"]);
    build.args(["--bin", "longship-control"]);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    build.arg("--target-dir").arg(folder.parent().unwrap());
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().unwrap().success());
    folder.join("longship-control")
}

/// A control plane, ended with the test whatever becomes of it.
struct Served {
    process: Child,
    url: String,
    _state: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Served {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut command = Command::new(control_plane());
        command
            .args(["--listen", "127.0.0.1:0", "--state"])
            .arg(state.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.env_remove("RUST_LOG").spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = lines.find(|line| line.as_ref().unwrap().contains("listening"));
        let line = line.expect("it listens").unwrap();
        let (_, address) = line.rsplit_once("address=").unwrap();
        let url = format!("http://{}", address.trim());
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            process,
            url,
            _state: state,
        }
    }

    /// Runs the command with something on its standard input.
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longship"));
        command.args(["--server", &self.url]).args(arguments);
        for name in ["SERVER", "CA", "TOKEN", "CERT", "KEY"] {
            command.env_remove(format!("LONGSHIP_{name}"));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn done(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error with which it ends, its exit code checked.
    fn refused(&self, code: i32, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }
}

fn pod(name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec:\n  containers: [{{name: c, image: nginx}}]\n{more}"
    )
}

#[test]
fn pods_come_in_batches_are_found_by_label_and_changed() {
    let served = Served::start();
    for hundreds in [0..600, 600..1100] {
        let count = hundreds.len();
        let many: String = hundreds.map(|n| pod(&format!("pod-{n:04}"), "")).collect();
        let printed = served.done(&["create", "-f", "-"], &many);
        assert_eq!(printed.lines().count(), count);
    }
    // More than a page.
    let listed = served.done(&["get", "pods"], "");
    assert_eq!(listed.lines().count(), 1101, "with its header");
    let found = served.done(&["get", "pods", "-l", "app in (pod-0007,pod-1099)"], "");
    assert_eq!(found.lines().count(), 3, "{found}");

    served.done(&["label", "pod", "pod-0007", "app=web", "tier=front"], "");
    served.done(&["label", "pod", "pod-0007", "tier-"], "");
    served.done(&["annotate", "pod", "pod-0007", "note=a b"], "");
    let yaml = served.done(&["get", "pods", "pod-0007", "-o", "yaml"], "");
    assert!(
        yaml.contains("app: web") && yaml.contains("note: a b"),
        "{yaml}"
    );
    assert!(!yaml.contains("tier"), "{yaml}");
    let wrong = served.refused(1, &["label", "pod", "pod-0007", "a b=c"], "");
    assert!(wrong.contains("set_labels[a b]"), "{wrong}");
    served.refused(2, &["label", "pod", "pod-0007", "nothing"], "");
    let gone = served.refused(1, &["label", "pod", "nobody", "a=b"], "");
    assert!(gone.contains("no pod default/nobody"), "{gone}");
}

#[test]
fn a_batch_with_a_mistake_creates_nothing_and_one_with_a_taken_name_the_rest() {
    let served = Served::start();
    let spread = "  topologySpreadConstraints:\n  - {maxSkew: 0, topologyKey: zone}\n";
    let wrong = format!("{}{}", pod("a", ""), pod("b", spread));
    let refused = served.refused(1, &["create", "-f", "-"], &wrong);
    let field = "pods[1].spec.placement.constraints[0].max_skew";
    assert!(refused.contains(field), "{refused}");
    let unread = format!("{}{}", pod("a", ""), pod("b", "  priority: high\n"));
    let refused = served.refused(1, &["create", "-f", "-"], &unread);
    assert!(refused.contains("spec.priority"), "{refused}");
    served.done(&["create", "-f", "-"], &pod("b", ""));
    let output = served.run(
        &["create", "-f", "-"],
        &[pod("a", ""), pod("b", ""), pod("c", "")].concat(),
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "pod/a created\npod/c created\n");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("pod default/b exists"), "{error}");
    for _ in 0..2 {
        let arguments = ["create", "-f", "-", "--gang", "--idempotency-key", "k"];
        let gang = [pod("d", ""), pod("e", "")].concat();
        assert_eq!(
            served.done(&arguments, &gang),
            "pod/d created\npod/e created\n"
        );
    }
    let other = ["create", "-f", "-", "--idempotency-key", "k"];
    let refused = served.refused(1, &other, &pod("f", ""));
    assert!(refused.contains("idempotency_key"), "{refused}");
    served.refused(2, &["create"], "");
    served.refused(2, &["create", "-f", "-", "--one-zone"], "");
}

#[test]
fn what_there_is_beside_pods_is_created_shown_and_deleted() {
    let served = Served::start();
    served.done(&["create", "vpc", "blue", "--cidr", "10.1.0.0/16"], "");
    let subnet = [
        "create",
        "subnet",
        "web",
        "--vpc",
        "blue",
        "--cidr",
        "10.1.1.0/24",
    ];
    served.done(&subnet, "");
    let shown = served.done(&["get", "vpcs"], "");
    assert!(
        shown.contains("blue") && shown.contains("10.1.1.0/24"),
        "{shown}"
    );
    let json = served.done(&["get", "vpcs", "blue", "-o", "json"], "");
    assert!(json.contains("\"cidr\": \"10.1.0.0/16\""), "{json}");
    for (arguments, field) in [
        (
            &["create", "vpc", "red", "--cidr", "8.8.0.0/16"][..],
            "vpc.cidr",
        ),
        (
            &[
                "create",
                "subnet",
                "x",
                "--vpc",
                "blue",
                "--cidr",
                "10.1.1.0/28",
            ],
            "subnet.cidr",
        ),
        (
            &[
                "create",
                "subnet",
                "x",
                "--vpc",
                "red",
                "--cidr",
                "10.1.1.0/28",
            ],
            "vpc",
        ),
        (&["delete", "vpc", "green"], "name"),
        (
            &[
                "create",
                "reservation",
                "r",
                "--flavor",
                "huge",
                "--count",
                "1",
                "--for",
                "1h",
            ],
            "reservation.flavor",
        ),
        (
            &["create", "imagecache", "c", "--image", "Bad"],
            "cache.images[0]",
        ),
        (&["get", "pods", "-l", "a in b"], "label_selector"),
        (&["get", "vpcs", "green"], "there is no vpc green"),
        (&["cordon", "host", "h-1"], "h-1"),
        (&["drain", "host", "H"], "name"),
    ] {
        let refused = served.refused(1, arguments, "");
        assert!(refused.contains(field), "{arguments:?}: {refused}");
    }
    served.refused(2, &["delete", "subnet", "web"], "");
    served.done(&["delete", "subnet", "web", "--vpc", "blue"], "");
    served.done(&["delete", "vpc", "blue"], "");

    let cache = [
        "create",
        "imagecache",
        "web",
        "--image",
        "nginx:1",
        "--zone",
        "a",
    ];
    served.done(&cache, "");
    let shown = served.done(&["get", "imagecaches"], "");
    assert!(shown.contains("0 of 0"), "{shown}");
    served.done(&["delete", "imagecache", "web"], "");
    for kind in ["zones", "hosts", "reservations", "imagecaches"] {
        let empty = served.done(&["get", kind, "-o", "json"], "");
        assert!(empty.contains("\"items\": []"), "{kind}: {empty}");
    }
}
