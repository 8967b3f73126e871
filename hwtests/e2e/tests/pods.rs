//! Pods that run: the whole path from the command line to a process in a guest.

use longship_e2e::{Longship, Process, Registry, busybox_layout, eventually};

/// A pod with one container `c` that runs `script` in a shell.
fn pod(name: &str, image: &str, restart: &str, script: &str) -> String {
    let script = serde_json::Value::from(script);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 10\n  containers:\n  - name: c\n    image: {image}\n    \
         command: [sh, -c, {script}]\n"
    )
}

fn phase(longship: &Longship, name: &str) -> String {
    longship.pod(name)["status"]["phase"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn wait_for(longship: &Longship, name: &str, wanted: &str) {
    eventually(240, &format!("{name} is {wanted}"), || {
        let phase = phase(longship, name);
        assert!(
            wanted == "Failed" || phase != "Failed",
            "{:#}",
            longship.pod(name)
        );
        phase == wanted
    });
}

#[test]
fn a_pod_from_a_registry_prints_and_ends_with_its_own_exit_code() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    let ran = longship.cli(&[
        "run",
        "--rm",
        "--restart",
        "Never",
        "--name",
        "seven",
        "--image",
        &image,
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(ran.code, Some(7), "{ran:#?}");
    assert_eq!(ran.stdout, "out\n");
    assert!(ran.stderr.contains("err\n"), "{ran:#?}");
    longship
        .cli(&["get", "pod", "seven"])
        .refused(1, &["seven"]);
    longship.assert_nothing_held();
}

#[test]
fn a_container_finds_what_an_image_expects_of_its_surroundings() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: env}}\nspec:\n  restartPolicy: Never\n  \
         hostname: box\n  dnsConfig: {{nameservers: [10.0.0.53]}}\n  containers:\n  - name: c\n    \
         image: {image}\n    workingDir: /tmp/made/here\n    env: [{{name: COLOUR, value: red}}]\n    \
         command: [sh, -c, 'pwd; hostname; echo $COLOUR $PATH $HOME; id -u; cat /etc/resolv.conf; \
         grep -c . /etc/machine-id; echo $$; test -w / && touch /new && echo writable; \
         test -d /proc/1 && echo proc; echo x > /dev/null && echo null; head -c 4 /dev/zero | wc -c; \
         ls /dev/pts/ptmx; cat /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -n 1; \
         dmesg 2>&1 | head -n 1; mount -t tmpfs x /mnt 2>&1 | head -n 1']\n"
    );
    longship.create(&yaml).ok();
    wait_for(&longship, "env", "Succeeded");
    let printed = longship.cli(&["logs", "env"]).ok().stdout;
    for line in [
        "/tmp/made/here",
        "box",
        "red /bin /root",
        "0",
        "nameserver 10.0.0.53",
        "1",
        "writable",
        "proc",
        "null",
        "4",
    ] {
        assert!(
            printed.lines().any(|l| l == line),
            "`{line}` is missing in:\n{printed}"
        );
    }
    longship.delete("env");
    longship.assert_nothing_held();
}

#[test]
fn pods_of_a_vpc_reach_each_other_and_only_with_their_own_addresses() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    longship
        .create(&pod("web", &image, "Always", "exec httpd -f -h /srv/www"))
        .ok();
    wait_for(&longship, "web", "Running");
    let address = longship.pod("web")["status"]["eni"]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let gateway = longship.pod("web")["status"]["eni"]["gateway"]
        .as_str()
        .unwrap()
        .to_owned();

    let fetch = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do wget -q -O - http://{address}/index.html && break; sleep 1; done; \
         ping -c 1 -W 5 {gateway} >/dev/null && echo gateway; \
         ip addr add 10.88.99.99/16 dev eth0 2>/dev/null; \
         ping -c 1 -W 2 -I 10.88.99.99 {gateway} >/dev/null || echo spoof dropped"
    );
    let ran = longship.cli(&[
        "run",
        "--rm",
        "--restart",
        "Never",
        "--name",
        "client",
        "--image",
        &image,
        "--",
        "sh",
        "-c",
        &fetch,
    ]);
    assert_eq!(
        ran.stdout, "A page from a pod of its own kernel.\ngateway\nspoof dropped\n",
        "{ran:#?}"
    );

    // Another VPC is another world.
    let yaml = pod(
        "far",
        &image,
        "Never",
        &format!("wget -T 3 -q -O - http://{address}/ || echo unreachable"),
    )
    .replace(
        "metadata: {name: far}",
        "metadata: {name: far, annotations: {longship.dev/vpc: other}}",
    );
    longship.create(&yaml).ok();
    wait_for(&longship, "far", "Succeeded");
    assert_eq!(longship.cli(&["logs", "far"]).ok().stdout, "unreachable\n");
    longship.delete("far");
    longship.delete("web");
    longship.assert_nothing_held();
}

#[test]
fn exec_carries_both_directions_the_exit_code_and_a_terminal() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    longship
        .create(&pod("box", &image, "Always", "exec sleep 10000"))
        .ok();
    wait_for(&longship, "box", "Running");

    let ran = longship.cli(&[
        "exec",
        "box",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 3",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(3), "out\n", "err\n")
    );

    // Standard input, more than any buffer on the way, comes back unchanged.
    let sum = "head -c 3000000 /dev/urandom > /tmp/longship-e2e-in; sha256sum < /tmp/longship-e2e-in; \
               $LONGSHIP exec -i box -- sha256sum < /tmp/longship-e2e-in; rm /tmp/longship-e2e-in";
    let ran = longship_e2e::run_to_end(
        std::process::Command::new("sh")
            .args(["-c", sum])
            .env("LONGSHIP", longship_e2e::binary("longship"))
            .env("LONGSHIP_SERVER", "http://127.0.0.1:7700"),
    );
    let sums: Vec<&str> = ran.stdout.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{ran:#?}");

    // A terminal: script(1) gives the CLI one.
    let tty = format!(
        "stty rows 31 cols 97; {} exec -it box -- sh -c 'tty; stty size; exit 5'",
        longship_e2e::binary("longship").display()
    );
    let ran = longship_e2e::run_to_end(
        std::process::Command::new("script")
            .args(["-q", "-e", "-c", &tty, "/dev/null"])
            .env("LONGSHIP_SERVER", "http://127.0.0.1:7700"),
    );
    assert_eq!(ran.code, Some(5), "{ran:#?}");
    assert!(
        ran.stdout.contains("/dev/pts/") && ran.stdout.contains("31 97"),
        "{ran:#?}"
    );

    longship
        .cli(&["exec", "box", "--", "no-such-program"])
        .refused(127, &["no-such-program"]);
    longship
        .cli(&["exec", "nobody", "--", "true"])
        .refused(1, &["nobody"]);
    longship.delete("box");
    longship.assert_nothing_held();
}

#[test]
fn restarts_follow_the_policy_and_deletion_gives_time_to_end() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    // Its neighbour breaks the first connection and serves all later ones, so `retry`
    // fails at least once, whatever the machine's speed, and then works.
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: retry}}\nspec:\n  restartPolicy: OnFailure\n  \
         containers:\n  - name: retry\n    image: {image}\n    \
         command: [sh, -c, 'echo run; wget -q -O /dev/null http://127.0.0.1:8080/']\n  \
         - name: neighbour\n    image: {image}\n    \
         command: [sh, -c, 'nc -l -p 8080 -e true; exec httpd -f -p 8080 -h /srv/www']\n"
    );
    longship.create(&yaml).ok();
    let retry_status = || longship.pod("retry")["status"]["containerStatuses"][0].clone();
    eventually(240, "`retry` has worked", || {
        let status = retry_status();
        status["exitCode"] == 0 && status["state"] == "Terminated"
    });
    let restarts = retry_status()["restartCount"].as_u64().unwrap_or_default();
    let logs = longship.cli(&["logs", "retry", "-c", "retry"]).ok().stdout;
    let runs = u64::try_from(logs.matches("run\n").count()).unwrap();
    assert!(
        restarts >= 1 && runs == restarts + 1,
        "{runs} runs: {:#}",
        longship.pod("retry")
    );

    longship
        .create(&pod(
            "graceful",
            &image,
            "Always",
            "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 1; done",
        ))
        .ok();
    wait_for(&longship, "graceful", "Running");
    let log = std::env::temp_dir().join("longship-e2e-follow");
    let mut follower = Process::spawn(&mut longship.command(&["logs", "-f", "graceful"]), &log);
    eventually(120, "the follower sees the first line", || {
        follower.output().contains("ready")
    });
    longship.delete("graceful");
    eventually(120, "the follower ends", || follower.ended().is_some());
    assert!(
        follower.output().ends_with("bye\n"),
        "{}",
        follower.output()
    );
    std::fs::remove_file(log).unwrap();
    longship.delete("retry");
    longship.assert_nothing_held();
}

#[test]
fn several_containers_share_a_pods_network_and_several_cpus_are_there() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: two}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: server\n    image: {image}\n    command: [sh, -c, 'httpd -f -h /srv/www & sleep 8; kill $!']\n    \
         resources: {{limits: {{cpu: 1500m, memory: 96Mi}}}}\n  \
         - name: client\n    image: {image}\n    command: [sh, -c, 'for i in 1 2 3 4 5 6; do wget -q -O - http://127.0.0.1/ && break; sleep 1; done; \
         grep -c ^processor /proc/cpuinfo; ps | grep -c [h]ttpd']\n"
    );
    longship.create(&yaml).ok();
    eventually(240, "the pod is over", || {
        matches!(phase(&longship, "two").as_str(), "Succeeded" | "Failed")
    });
    let printed = longship.cli(&["logs", "two", "-c", "client"]).ok().stdout;
    // Two CPUs for 1.5; the other container's processes are not seen.
    assert_eq!(
        printed,
        "A page from a pod of its own kernel.\n2\n0\n",
        "{:#}",
        longship.pod("two")
    );
    longship
        .cli(&["logs", "two"])
        .refused(1, &["client", "server"]);
    longship.delete("two");
    longship.assert_nothing_held();
}

#[test]
fn the_start_up_waterfall_names_every_step_and_what_it_took() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    longship.create(&pod("w", &image, "Never", "echo x")).ok();
    wait_for(&longship, "w", "Succeeded");
    let described = longship.cli(&["describe", "pod", "w"]).ok().stdout;
    for stage in [
        "schedule",
        "image",
        "eni",
        "scratch",
        "sandbox",
        "boot",
        "kernel",
        "configure",
        "container",
    ] {
        assert!(
            described.contains(stage),
            "`{stage}` is missing in:\n{described}"
        );
    }
    for stage in longship.pod("w")["status"]["timeline"].as_array().unwrap() {
        let of = |key: &str| {
            stage[key]
                .as_i64()
                .or_else(|| stage[key].as_str()?.parse().ok())
                .unwrap()
        };
        assert!(of("startUs") > 0 && of("endUs") >= of("startUs"), "{stage}");
    }
    println!("{described}");
    longship.delete("w");
    longship.assert_nothing_held();
}

#[test]
fn what_is_stored_survives_a_restart_of_everything() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up();
    longship
        .create(&pod("done", &image, "Never", "echo kept"))
        .ok();
    longship
        .create(&pod(
            "forever",
            &image,
            "Always",
            "echo again; exec sleep 10000",
        ))
        .ok();
    wait_for(&longship, "done", "Succeeded");
    wait_for(&longship, "forever", "Running");
    let longship = longship.restart();
    // What was over stays as it was, with its log; what shall run always runs again.
    assert_eq!(phase(&longship, "done"), "Succeeded");
    wait_for(&longship, "forever", "Running");
    assert_eq!(longship.cli(&["logs", "done"]).ok().stdout, "kept\n");
    longship.delete("done");
    longship.delete("forever");
    longship.assert_nothing_held();
}
