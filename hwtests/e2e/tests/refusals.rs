//! Bad input: a clear error that names the field or the file, the right exit code,
//! and nothing left behind.

use std::process::Command;

use longship_e2e::{
    Layout, Longship, Process, Registry, Residue, binary, busybox_layout, eventually, guest_file,
    run_to_end, up_command,
};
use nix::sys::signal::Signal;

/// A tar entry: name, type flag, link target, content.
type Entry<'a> = (&'a str, u8, &'a str, &'a [u8]);

/// A ustar archive with exactly these names, which `tar` itself would not write.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, kind, link, content) in entries {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000755\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = *kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Runs `image` and expects the pod to fail with `reason`, saying `text`.
fn run_refused(longship: &Longship, image: &str, reason: &str, text: &str) {
    let ran = longship.cli(&[
        "run",
        "--rm",
        "--restart",
        "Never",
        "--name",
        "bad",
        "--image",
        image,
    ]);
    assert_ne!(ran.code, Some(0), "{ran:#?}");
    for expected in [reason, "spec.containers[0]", text] {
        assert!(
            ran.stderr.contains(expected),
            "`{expected}` is not said: {ran:#?}"
        );
    }
    longship.assert_nothing_held();
}

#[test]
fn images_that_are_unknown_damaged_hostile_or_too_large() {
    let registry = Registry::start();
    let good = busybox_layout();
    let reference = registry.push(&good, "busybox:1");
    let longship = Longship::up_with(&["--max-image-bytes", "50000000"]);

    run_refused(
        &longship,
        &registry.unknown("nothing:1"),
        "ImageNotFound",
        "nothing",
    );
    run_refused(
        &longship,
        "127.0.0.1:1/none:1",
        "RegistryUnavailable",
        "127.0.0.1:1",
    );
    run_refused(
        &longship,
        "oci:/no/such/layout",
        "ImageNotFound",
        "/no/such/layout",
    );

    // A byte of the layer changed in the registry: same length, other digest.
    let blob = registry.blob(&good.layer());
    let whole = std::fs::read(&blob).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&blob, &damaged).unwrap();
    run_refused(&longship, &reference, "DigestMismatch", &good.layer());
    // Cut short, in a layout, where nobody announces a length.
    let cut = busybox_layout();
    let layer = cut.layer();
    std::fs::write(cut.blob_path(&layer), &whole[..middle]).unwrap();
    run_refused(&longship, &cut.reference(), "LayerTruncated", &layer);

    let escapes: [(&str, &[Entry<'_>]); 4] = [
        ("../evil", &[("../evil", b'0', "", b"x")]),
        ("/evil", &[("/evil", b'0', "", b"x")]),
        (
            "out/evil",
            &[
                ("out", b'2', "../../tmp", b""),
                ("out/evil", b'0', "", b"x"),
            ],
        ),
        ("hard", &[("hard", b'1', "../../etc/passwd", b"")]),
    ];
    for (name, entries) in escapes {
        let layout = Layout::with_layer(&tar(entries));
        run_refused(&longship, &layout.reference(), "LayerEscapesRoot", name);
    }
    assert!(!std::path::Path::new("/tmp/evil").exists() && !std::path::Path::new("/evil").exists());

    let big = vec![0_u8; 60_000_000];
    let layout = Layout::with_layer(&tar(&[("big", b'0', "", &big)]));
    run_refused(&longship, &layout.reference(), "ImageTooLarge", "50000000");

    // An image without a command, and a program that it does not have.
    let layout = Layout::with_layer(&tar(&[("etc/hello", b'0', "", b"x")]));
    run_refused(&longship, &layout.reference(), "StartFailed", "/bin/sh");

    // The registry mended, the same reference works: nothing bad was kept.
    std::fs::write(&blob, &whole).unwrap();
    let ran = longship.cli(&[
        "run",
        "--rm",
        "--restart",
        "Never",
        "--name",
        "good",
        "--image",
        &reference,
        "--",
        "echo",
        "fine",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "fine\n"),
        "{ran:#?}"
    );
    longship.assert_nothing_held();
}

#[test]
fn absolute_symlinks_in_layers_stay_legal_and_resolve_inside_the_root() {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let layout = Layout::with_layer(&tar(&[
        ("usr/bin/busybox", b'0', "", &busybox),
        ("bin", b'2', "/usr/bin", b""),
        ("bin/sh", b'2', "/usr/bin/busybox", b""),
        ("bin/echo", b'1', "bin/busybox", b""),
    ]));
    let longship = Longship::up();
    let ran = longship.cli(&[
        "run",
        "--rm",
        "--restart",
        "Never",
        "--name",
        "links",
        "--image",
        &layout.reference(),
        "--",
        "sh",
        "-c",
        "/usr/bin/echo inside",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "inside\n"),
        "{ran:#?}"
    );
}

#[test]
fn pods_that_make_no_sense_are_refused_by_their_fields_path() {
    let longship = Longship::up();
    let pod =
        |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
    let cases = [
        ("{containers: []}", "spec.containers"),
        ("{containers: [{name: c}]}", "spec.containers[0].image"),
        (
            "{containers: [{name: c, image: 'not a reference'}]}",
            "spec.containers[0].image",
        ),
        (
            "{containers: [{name: C_, image: a}]}",
            "spec.containers[0].name",
        ),
        (
            "{containers: [{name: c, image: a}, {name: c, image: a}]}",
            "spec.containers[1].name",
        ),
        (
            "{containers: [{name: c, image: a, resources: {limits: {memory: 1Mi}}}]}",
            "spec.containers[0].resources",
        ),
        (
            "{containers: [{name: c, image: a, resources: {limits: {memory: lots}}}]}",
            "memory",
        ),
        (
            "{containers: [{name: c, image: a, resources: {limits: {memory: 900Ti}}}]}",
            "spec.containers[0].resources",
        ),
        (
            "{containers: [{name: c, image: a, env: [{name: 'A=B', value: x}]}]}",
            "spec.containers[0].env[0].name",
        ),
        (
            "{containers: [{name: c, image: a}], hostname: 'a b'}",
            "spec.hostname",
        ),
        ("{containers: [{name: c, image: a}], colour: red}", "colour"),
        (
            "{containers: [{name: c, image: a}], nodeSelector: {topology.kubernetes.io/zone: nowhere}}",
            "spec.zone",
        ),
    ];
    for (spec, field) in cases {
        longship.create(&pod(spec)).refused(1, &[field]);
    }
    let flavor = pod("{containers: [{name: c, image: a}]}").replace(
        "{name: p}",
        "{name: p, annotations: {longship.dev/flavor: huge-1000x1000}}",
    );
    longship
        .create(&flavor)
        .refused(1, &["spec.flavor", "huge-1000x1000"]);
    longship.create("kind: Deployment\n").refused(1, &["kind"]);
    longship.create("{{{{").refused(1, &["pod.yaml"]);
    longship
        .cli(&["create", "-f", "/no/such/file.yaml"])
        .refused(1, &["/no/such/file.yaml"]);
    longship
        .cli(&["get", "pod", "nobody"])
        .refused(1, &["nobody"]);
    longship.cli(&["logs", "nobody"]).refused(1, &["nobody"]);
    longship
        .cli(&["delete", "pod", "nobody"])
        .refused(1, &["nobody"]);
    longship.cli(&["run"]).refused(2, &["--image"]);
    let listed = longship.cli(&["get", "pods", "-o", "json"]).ok().stdout;
    assert!(!listed.contains("\"uid\""), "{listed}");
    longship.assert_nothing_held();
}

#[test]
fn daemons_that_cannot_start_say_why_and_leave_nothing() {
    let before = Residue::now();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (kernel, initramfs) = (guest_file("vmlinux"), guest_file("initramfs.cpio"));
    let (kernel, initramfs) = (
        kernel.display().to_string(),
        initramfs.display().to_string(),
    );
    let agent = |kernel: &str, kvm: &str| {
        run_to_end(Command::new(binary("longship-agent")).args([
            "--listen",
            &format!("unix:{}", at("agent.sock")),
            "--runtime-dir",
            &at("run"),
            "--kernel",
            kernel,
            "--initramfs",
            &initramfs,
            "--kvm",
            kvm,
        ]))
    };
    agent("/bin/true.txt", "/dev/kvm").refused(1, &["--kernel", "/bin/true.txt"]);
    let text = at("text");
    std::fs::write(&text, "no kernel at all").unwrap();
    agent(&text, "/dev/kvm").refused(1, &["--kernel", &text]);
    agent(&kernel, "/dev/no-kvm").refused(1, &["--kvm", "/dev/no-kvm"]);
    agent(&kernel, "/dev/null").refused(1, &["/dev/null"]);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    run_to_end(Command::new(binary("longship-control")).args([
        "--listen",
        &address,
        "--state",
        &at("c"),
    ]))
    .refused(1, &["--listen", &address]);
    run_to_end(Command::new(binary("longship-card")).args([
        "--listen",
        &address,
        "--state",
        &at("k"),
        "--runtime-dir",
        &at("kr"),
        "--host",
        "h",
        "--zone",
        "z",
        "--admin",
        &format!("unix:{}", at("card.sock")),
    ]))
    .refused(1, &["--listen", &address]);
    run_to_end(Command::new(binary("longship-card")).args(["--host", "h"])).refused(2, &["--zone"]);
    drop(taken);

    // A whole Longship whose port is taken takes itself down.
    let taken = std::net::TcpListener::bind("127.0.0.1:7700").unwrap();
    run_to_end(&mut up_command(directory.path(), &[])).refused(1, &["7700"]);
    drop(taken);
    before.assert_nothing_new();
}

#[test]
fn a_run_that_is_killed_half_way_leaves_nothing() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    let output = std::env::temp_dir().join("longship-e2e-killed");
    for wait_ms in [300_u64, 1500, 6000] {
        let mut run = Process::spawn(
            &mut longship.command(&[
                "run",
                "--rm",
                "--restart",
                "Never",
                "--name",
                "half",
                "--image",
                &image,
                "--",
                "sleep",
                "10000",
            ]),
            &output,
        );
        std::thread::sleep(std::time::Duration::from_millis(wait_ms));
        run.signal(Signal::SIGTERM);
        eventually(120, "the killed run ends", || run.ended().is_some());
        eventually(120, "its pod is released", || {
            longship.cli(&["get", "pod", "half"]).code == Some(1)
                && longship.held().trim().is_empty()
        });
    }
    longship.assert_nothing_held();
    std::fs::remove_file(output).unwrap();
}

#[test]
fn without_its_card_a_pod_waits_and_says_so() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let directory = tempfile::tempdir().unwrap();
    let mut control = Process::spawn(
        Command::new(binary("longship-control"))
            .args(["--listen", "127.0.0.1:7700", "--state"])
            .arg(directory.path().join("state")),
        &directory.path().join("log"),
    );
    let cli = |arguments: &[&str]| {
        run_to_end(
            Command::new(binary("longship"))
                .args(arguments)
                .env("LONGSHIP_SERVER", "http://127.0.0.1:7700"),
        )
    };
    eventually(120, "the control plane answers", || {
        cli(&["get", "pods"]).code == Some(0)
    });
    cli(&[
        "run",
        "--rm",
        "--timeout",
        "3s",
        "--name",
        "waits",
        "--image",
        &image,
        "--",
        "true",
    ])
    .refused(1, &["waits"]);
    eventually(10, "the pod that never ran is gone", || {
        cli(&["get", "pod", "waits"]).code == Some(1)
    });
    assert_eq!(control.terminate(), Some(0));
    cli(&["get", "pods"]).refused(1, &["127.0.0.1:7700"]);
}
