//! Pods that are clones: each is a machine of its own, whoever can reach its memory.

use std::time::{SystemTime, UNIX_EPOCH};

use longship_e2e::{Longship, Registry, busybox_layout, eventually};
use serde_json::Value;

/// How far a clone's clock may be from its host's.
const CLOCK_TOLERANCE: f64 = 0.05;

fn pod(name: &str, image: &str, profile: &str, script: &str) -> String {
    let script = Value::from(script);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Always\n  \
         memoryProfile: {profile}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    \
         image: {image}\n    command: [sh, -c, {script}]\n    resources: {{limits: {{cpu: 1, memory: 256Mi}}}}\n"
    )
}

fn running(longship: &Longship, name: &str) {
    eventually(240, &format!("{name} runs"), || {
        longship.pod(name)["status"]["phase"] == "Running"
    });
}

/// What `script` prints in the pod.
fn exec(longship: &Longship, pod: &str, script: &str) -> String {
    longship
        .cli(&["exec", pod, "--", "sh", "-c", script])
        .ok()
        .stdout
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is set").as_secs_f64()
}

/// The pod's time of day in seconds.
fn time_in(longship: &Longship, pod: &str) -> f64 {
    let printed = exec(longship, pod, "adjtimex");
    let field = |name: &str| -> f64 {
        let (_, rest) = printed.split_once(name).expect("the field is printed");
        let number = rest.lines().next().map(str::trim);
        number.and_then(|n| n.parse().ok()).expect("a number")
    };
    field("time.tv_sec:") + field("time.tv_usec:") / 1e6
}

#[test]
fn two_clones_of_one_template_are_two_machines() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up_with(&["--cpus", "8"]);
    let identity = "cat /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | sha256sum; \
                    cat /etc/machine-id; cat /sys/class/net/eth0/address; \
                    ip -4 -o addr show dev eth0 | grep -o 'inet [0-9.]*'; hostname";
    let names = ["one", "two"];
    for name in names {
        let yaml = pod(name, &image, "dense", "exec sleep 10000");
        longship.create(&yaml).ok();
    }
    let [one, two] = names.map(|name| {
        running(&longship, name);
        exec(&longship, name, identity)
    });
    let pairs: Vec<_> = one.lines().zip(two.lines()).collect();
    assert_eq!(pairs.len(), 6, "{one}\n{two}");
    for (one, two) in pairs {
        assert!(!one.is_empty() && one != two, "both have {one:?}");
    }
    for name in names {
        let before = now();
        let told = time_in(&longship, name);
        let after = now();
        assert!(
            (before - CLOCK_TOLERANCE..after + CLOCK_TOLERANCE).contains(&told),
            "{name} says {told}, between {before} and {after} here"
        );
    }
    let template = &longship.templates()[0];
    assert_eq!(template["state"], "ready", "{template:#}");
    assert!(template["clones"].as_u64() >= Some(2), "{template:#}");
    for name in names {
        longship.delete(name);
    }
    longship.assert_nothing_held();
}

#[test]
fn disks_network_and_channel_serve_both_memory_profiles() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up_with(&["--cpus", "8"]);
    for profile in ["dense", "direct"] {
        let yaml = pod(profile, &image, profile, "exec httpd -f -h /");
        longship.create(&yaml).ok();
        running(&longship, profile);
        // The scratch disk, read again from the disk; the image's too.
        let disk = exec(
            &longship,
            profile,
            "head -c 4000000 /dev/urandom > /blob; sync; sha256sum < /blob; \
             echo 3 > /proc/sys/vm/drop_caches 2>/dev/null; sha256sum < /blob; sha256sum < /bin/busybox",
        );
        let sums: Vec<&str> = disk.lines().collect();
        assert_eq!(sums.len(), 3, "{disk}");
        assert_eq!(sums[0], sums[1], "{profile}: the scratch disk");
        let busybox = longship_e2e::run_to_end(
            std::process::Command::new("sh").args(["-c", "sha256sum < /bin/busybox"]),
        );
        assert_eq!(format!("{}\n", sums[2]), busybox.stdout, "{profile}: image");
        // The channel: the same bytes come out of it.
        let fetch = format!("$LONGSHIP exec {profile} -- cat /blob | sha256sum");
        let channel = longship_e2e::run_to_end(
            std::process::Command::new("sh")
                .args(["-c", &fetch])
                .env("LONGSHIP", longship_e2e::binary("longship"))
                .env("LONGSHIP_SERVER", "http://127.0.0.1:7700"),
        );
        assert_eq!(channel.stdout.trim_end(), sums[0], "{profile}: the channel");
        // The network, from the other profile's pod below.
        let address = longship.pod(profile)["status"]["eni"]["address"].clone();
        let fetch = format!(
            "wget -q -O - http://{}/blob | sha256sum",
            address.as_str().unwrap()
        );
        let client = if profile == "dense" {
            "direct"
        } else {
            "dense"
        };
        let name = format!("client-{client}");
        longship
            .create(&pod(&name, &image, client, "exec sleep 10000"))
            .ok();
        running(&longship, &name);
        assert_eq!(
            exec(&longship, &name, &fetch).trim_end(),
            sums[0],
            "{client} fetches from {profile}"
        );
        longship.delete(&name);
    }
    for pod in longship.usage()["pods"].as_array().unwrap() {
        assert_eq!(pod["sandbox"]["memoryProfile"], pod["name"], "{pod:#}");
    }
    longship.delete("dense");
    longship.delete("direct");
    longship.assert_nothing_held();
}

#[test]
fn memory_that_a_pod_frees_goes_back_to_the_host() {
    let registry = Registry::start();
    let image = registry.push(&busybox_layout(), "busybox:1");
    let longship = Longship::up_with(&["--cpus", "8"]);
    for profile in ["dense", "direct"] {
        let yaml = pod(profile, &image, profile, "exec sleep 10000");
        longship.create(&yaml).ok();
        running(&longship, profile);
        let guest = || {
            let usage = longship.usage();
            let sandbox = &usage["pods"][0]["sandbox"];
            sandbox["guestBytes"].as_u64().unwrap_or_default()
        };
        let idle = guest();
        exec(
            &longship,
            profile,
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>&1",
        );
        let full = guest();
        assert!(full > idle + (44 << 20), "{profile}: {idle} then {full}");
        exec(&longship, profile, "rm /dev/shm/x");
        // Free memory is reported each two seconds, in pieces.
        eventually(120, "the host has it again", || guest() < idle + (20 << 20));
        longship.delete(profile);
    }
    longship.assert_nothing_held();
}
