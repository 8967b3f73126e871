//! longship-init in clones of a template, under Longship's own VMM on a real KVM.
//!
//! Nothing here is skipped: without a KVM that runs kernels these tests fail.
#![allow(clippy::unwrap_used)] // all of it is tests

#[path = "../guest/card.rs"]
mod card;
mod machine;
#[path = "../guest/parts.rs"]
mod parts;
#[path = "../../../../host-agent/vmm/tests/played_agent/mod.rs"]
mod played_agent;

use std::time::{Duration, Instant};

use longship_framed::guest::StreamKind;
use longship_framed::guest::request::Operation;
use longship_framed::now_us;

use card::{Card, configuration, shell, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_are_pods_of_their_own() {
    let mut identities = Vec::new();
    for number in 0..3_u8 {
        let mut card = Card::boot().await;
        let heard_us = now_us();
        assert!(card.hello.clone);
        assert!(card.hello.uptime_us > card.hello.init_uptime_us);
        let mut settings = configuration();
        settings.hostname = format!("web-{number}");
        settings.machine_id = format!("{number:032x}");
        // The machine's clock is better than a message's, which is years off here.
        settings.time_us += 86_400_000_000 * 365;
        let configured = card.ask(Operation::Configure(settings)).await;
        assert_eq!(configured, None);
        let configured_us = now_us();
        let who = "echo up; cat /proc/sys/kernel/random/boot_id; dd if=/dev/urandom bs=32 count=1 \
            2>/dev/null | md5sum; cat /etc/machine-id; hostname; ls /sys/class/net";
        assert_eq!(card.ask(start("main", shell(who))).await, None);
        let started_us = now_us();
        let mut out = card.stream("main", StreamKind::Stdout).await;
        let mut said = card.until(&mut out, "up\n").await;
        let said_us = now_us();
        said += &card.until(&mut out, "lo\n").await;
        let exited = card.exited("main").await;
        let off_us = (exited.finished_us - now_us()).abs();
        assert!(off_us < 1_000_000, "the clock is {off_us} us off");

        let asked_us = card.machine.asked_us;
        let took = |until_us: i64| until_us - asked_us;
        println!(
            "clone: alive {} us, hello {} us, configured {} us, started {} us, first output {} us",
            took(card.machine.alive_us),
            took(heard_us),
            took(configured_us),
            took(started_us),
            took(said_us)
        );
        let lines: Vec<String> = said.lines().map(ToOwned::to_owned).collect();
        assert_eq!(lines.len(), 7, "{said}");
        assert_eq!(lines[3], format!("{number:032x}"));
        assert_eq!(lines[4], format!("web-{number}"));
        assert_eq!(lines[5], "eth0");
        identities.push(lines);
        card.power_off().await;
    }
    for (i, one) in identities.iter().enumerate() {
        for other in &identities[..i] {
            for line in 1..5 {
                assert_ne!(one[line], other[line]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_a_container_frees_goes_back_to_the_host() {
    const USED: u64 = 48 << 20;
    let mut card = Card::boot().await;
    let configured = card.ask(Operation::Configure(configuration())).await;
    assert_eq!(configured, None);
    let before = card.machine.reclaimed();
    let take = format!("dd if=/dev/zero of=/dev/null bs={USED} count=1 2>/dev/null; echo done");
    let (said, _) = card.run("main", shell(&take)).await;
    assert_eq!(said, "done\n");
    // The kernel reports every two seconds, and not everything at once.
    let began = Instant::now();
    let mut back = 0;
    while back < USED * 3 / 4 && began.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        back = card.machine.reclaimed() - before;
    }
    let after = began.elapsed().as_millis();
    println!("{back} of {USED} bytes came back within {after} ms");
    assert!(back >= USED * 3 / 4);
    card.power_off().await;
}
