//! Templates, clones and the warm pool, with real VMMs and guests of a few
//! instructions. Needs what `real_vmm` needs; `make e2e` runs these tests too.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod parking_guest;
mod real_agent;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use longship_proto::agent::v1::{
    MemoryProfile, PrepareSandboxRequest, Sandbox, SandboxState, TemplateState,
};
use parking_guest::{PAGES_AFTER, PAGES_BEFORE};
use real_agent::{Agent, Options, PATIENCE, exists, sandbox};

const PAGE: u64 = 4096;

/// A folder for the guest, and an agent that runs it.
async fn agent(
    name: &str,
    guest: fn(&std::path::Path) -> PathBuf,
    flags: &[&str],
) -> (tempfile::TempDir, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        kernel: Some(guest(folder.path())),
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
    };
    let agent = Agent::start(name, options).await;
    (folder, agent)
}

/// It is gone, or only to be reaped.
fn has_ended(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

fn stages(sandbox: &Sandbox) -> Vec<&str> {
    let agent = sandbox
        .timeline
        .iter()
        .filter(|stage| stage.component == "agent");
    agent.map(|stage| stage.name.as_str()).collect()
}

fn direct(id: &str) -> PrepareSandboxRequest {
    PrepareSandboxRequest {
        profile: MemoryProfile::Direct.into(),
        ..sandbox(id, 1)
    }
}

#[tokio::test]
async fn clones_of_one_template_run_and_leave_nothing() {
    let (_folder, mut agent) = agent("clones", parking_guest::parks, &["--warm-pool", "0"]).await;
    // The connection has its descriptors too.
    agent.usage().await;
    let before = agent.descriptors();
    for (profile, request) in [
        (MemoryProfile::Dense, sandbox as fn(&str, u64) -> _),
        (MemoryProfile::Direct, |id, _| direct(id)),
    ] {
        let first = agent.prepare(request("one", 1)).await.unwrap();
        assert!(stages(&first).contains(&"template"), "{:?}", stages(&first));
        let second = agent.prepare(request("two", 1)).await.unwrap();
        assert!(
            !stages(&second).contains(&"template"),
            "{:?}",
            stages(&second)
        );
        assert_eq!(agent.cgroups().len(), 2, "the template's machine has ended");
        for (id, prepared) in [("one", &first), ("two", &second)] {
            assert!(
                stages(prepared).contains(&"clone"),
                "{:?}",
                stages(prepared)
            );
            agent.start_sandbox(id, vec![]).await.unwrap();
            let alive = agent.alive(id).await;
            assert!(alive >= prepared.timeline[0].start_us);
        }
        let templates = agent.templates().await;
        let template = templates
            .iter()
            .find(|one| one.profile() == profile)
            .unwrap();
        assert_eq!(
            (template.state(), template.clones),
            (TemplateState::Ready, 2)
        );
        assert!(template.resident_bytes >= u64::from(PAGES_BEFORE) * PAGE);
        println!(
            "{profile:?}: template {} KiB, made in {} us",
            template.resident_bytes >> 10,
            template.made_in_us
        );

        // They were both told apart from the rest.
        let usage = agent.usage().await;
        assert_eq!(usage.sandboxes.len(), 2);
        for sandbox in &usage.sandboxes {
            println!("  {sandbox:?}");
            let own = match profile {
                MemoryProfile::Direct => u64::from(PAGES_BEFORE) * PAGE,
                _ => u64::from(PAGES_AFTER) * PAGE,
            };
            // And what the VMM put there: the initramfs.
            assert!((own..own + (3 << 20)).contains(&sandbox.guest_bytes));
            assert!(sandbox.vmm_bytes > 0 && sandbox.vmm_bytes < 2 << 20);
            assert!(sandbox.page_table_bytes > 0 && sandbox.kernel_bytes > 0);
            assert_eq!(sandbox.profile(), profile);
        }
        for (id, prepared) in [("one", first), ("two", second)] {
            agent.stop(id, 1).await.unwrap();
            assert!(!exists(prepared.pid));
        }
        assert!(agent.cgroups().is_empty() && agent.children().is_empty());
    }
    assert!(agent.templates().await.iter().all(|one| one.clones == 0));
    // Two files of each template stay, and nothing of the sandboxes.
    assert_eq!(agent.descriptors(), before + 4);
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.process.wait().unwrap().success());
    assert!(!agent.cgroup.exists());
}

// The first one by its name, which is the order: what the kernel keeps of machines that
// have ended, to use it again, would make it lose less.
#[tokio::test]
async fn a_count_of_what_idle_clones_cost_is_what_the_host_lost() {
    let flags = ["--warm-pool", "0", "--memory", "8589934592"];
    let (_folder, agent) = agent("usage", parking_guest::parks, &flags).await;
    count_clones(agent).await;
}

#[tokio::test]
async fn a_count_of_what_idle_clones_of_linux_cost_is_what_the_host_lost() {
    let flags = ["--warm-pool", "0", "--memory", "8589934592"];
    let options = Options {
        kernel: None,
        flags: flags.map(str::to_owned).to_vec(),
    };
    count_clones(Agent::start("linux", options).await).await;
}

async fn count_clones(mut agent: Agent) {
    const CLONES: u64 = 32;
    // The template and what first use allocates are not the clones'.
    agent.prepare(sandbox("first", 1)).await.unwrap();
    agent.stop("first", 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = agent.usage().await;
    for n in 0..CLONES {
        let id = format!("pod-{n}");
        agent.prepare(sandbox(&id, 1)).await.unwrap();
        agent.start_sandbox(&id, vec![]).await.unwrap();
        agent.alive(&id).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = agent.usage().await;
    let sum = |part: fn(&longship_proto::agent::v1::SandboxUsage) -> u64| {
        after.sandboxes.iter().map(part).sum::<u64>()
    };
    let parts = [
        ("guest", sum(|one| one.guest_bytes)),
        ("window", sum(|one| one.window_bytes)),
        ("VMM", sum(|one| one.vmm_bytes)),
        ("page tables", sum(|one| one.page_table_bytes)),
        ("kernel", sum(|one| one.kernel_bytes)),
        (
            "agent",
            after.agent_bytes.saturating_sub(before.agent_bytes),
        ),
    ];
    let counted: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let lost = before.available_bytes - after.available_bytes;
    for (part, bytes) in parts {
        println!("  {part:12} {:>6} KiB a clone", bytes / CLONES >> 10);
    }
    println!(
        "  counted {} KiB a clone, lost {} KiB, shared {} KiB",
        counted / CLONES >> 10,
        lost / CLONES >> 10,
        sum(|one| one.shared_bytes) / CLONES >> 10
    );
    assert!(
        counted.abs_diff(lost) * 5 < lost,
        "counted {counted} bytes, lost {lost}"
    );
    let started = Instant::now();
    agent.usage().await;
    println!("  counting {CLONES} took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_warm_clone_is_taken_and_another_takes_its_place() {
    let (_folder, mut agent) = agent("warm", parking_guest::parks, &["--warm-pool", "2"]).await;
    let cold = agent.prepare(sandbox("cold", 1)).await.unwrap();
    assert!(stages(&cold).contains(&"clone"), "{:?}", stages(&cold));
    agent.warm(2).await;
    let usage = agent.usage().await;
    assert!(usage.warm_bytes > 0 && usage.sandboxes.len() == 1);

    let warm = agent.prepare(sandbox("warm", 1)).await.unwrap();
    assert_eq!(stages(&warm), ["pool"]);
    let cgroup = agent.cgroup_of(&warm);
    assert_eq!(real_agent::read(cgroup.join("cpu.weight")), "50\n");
    agent.start_sandbox("warm", vec![]).await.unwrap();
    agent.alive("warm").await;
    agent.warm(2).await;

    // One that died while it waited is not handed out.
    let sandboxes = [cold.pid, warm.pid];
    let mut killed = Vec::new();
    for pid in agent.children() {
        if !sandboxes.contains(&pid) {
            let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            killed.push(u32::try_from(pid.as_raw()).unwrap());
        }
    }
    assert_eq!(killed.len(), 2);
    let give_up = Instant::now() + PATIENCE;
    while !killed.iter().all(|pid| has_ended(*pid)) {
        assert!(Instant::now() < give_up, "a killed process lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let next = agent.prepare(sandbox("next", 1)).await.unwrap();
    agent.start_sandbox("next", vec![]).await.unwrap();
    agent.alive("next").await;
    assert!(exists(next.pid));
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.process.wait().unwrap().success());
    assert!(!agent.cgroup.exists());
}

#[tokio::test]
async fn warm_clones_make_room_when_memory_is_short() {
    let (_folder, mut agent) = agent("short", parking_guest::parks, &[]).await;
    agent.prepare(sandbox("pod", 1)).await.unwrap();
    agent.warm(2).await;
    // Until less than a sixteenth is left.
    let name = c"hog";
    let hog = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
    let usage = agent.usage().await;
    let all = usage.available_bytes - usage.total_bytes / 20;
    let step = 16 << 20;
    for offset in (0..all).step_by(step) {
        let offset = i64::try_from(offset).unwrap();
        let flags = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&hog, flags, offset, i64::try_from(step).unwrap()).unwrap();
    }
    agent.warm(0).await;
    let give_up = Instant::now() + PATIENCE;
    while agent.cgroups().len() > 1 {
        assert!(Instant::now() < give_up, "more than the sandbox is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Whoever asks is served all the same.
    drop(hog);
    agent.prepare(sandbox("next", 1)).await.unwrap();
}

#[tokio::test]
async fn a_template_that_fails_makes_sandboxes_boot_by_themselves() {
    let (_folder, mut agent) = agent("fallback", parking_guest::refuses_to_park, &[]).await;
    for id in ["one", "two"] {
        let prepared = agent.prepare(sandbox(id, 1)).await.unwrap();
        assert!(
            stages(&prepared).contains(&"create"),
            "{:?}",
            stages(&prepared)
        );
        agent.start_sandbox(id, vec![]).await.unwrap();
        agent.alive(id).await;
    }
    let templates = agent.templates().await;
    let [template] = &templates[..] else {
        panic!("{templates:?}");
    };
    assert_eq!(template.state(), TemplateState::Failed);
    println!("{}", template.message);
    assert!(
        template.message.contains("last words: N"),
        "{}",
        template.message
    );
    assert_eq!(agent.cgroups().len(), 2);
    // Without a template there is nothing to make in advance.
    assert_eq!(template.warm, 0);
}

#[tokio::test]
async fn an_agent_killed_while_it_makes_a_template_leaves_nothing_for_the_next() {
    let (_folder, mut agent) = agent("making", parking_guest::never_parks, &[]).await;
    let mut client = agent.client.clone();
    let waiting = tokio::spawn(async move { client.prepare_sandbox(sandbox("pod", 1)).await });
    let give_up = Instant::now() + PATIENCE;
    while agent.children().is_empty() {
        assert!(Instant::now() < give_up, "no template is being made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let making = agent.children();
    let [template] = &agent.templates().await[..] else {
        panic!("one template is being made");
    };
    assert_eq!(template.state(), TemplateState::Making);

    // Who asked can still change their mind.
    agent.stop("pod", 1).await.unwrap();
    assert!(waiting.await.unwrap().is_err());

    agent.restart().await;
    assert!(agent.cgroups().is_empty());
    for pid in making {
        assert!(has_ended(pid), "process {pid} is left");
    }
    assert!(agent.templates().await.is_empty());
}

#[tokio::test]
async fn many_at_once_all_get_their_sandbox() {
    const MANY: usize = 60;
    let flags = ["--memory", "17179869184"];
    let (_folder, mut agent) = agent("burst", parking_guest::parks, &flags).await;
    agent.prepare(sandbox("first", 1)).await.unwrap();
    for at_once in [8, MANY] {
        let started = Instant::now();
        let mut rounds = Vec::new();
        for lane in 0..at_once {
            let client = agent.client.clone();
            rounds.push(tokio::spawn(async move {
                let mut client = client;
                for n in (lane..MANY).step_by(at_once) {
                    let id = format!("pod-{at_once}-{n}");
                    let request = sandbox(&id, 1);
                    client.prepare_sandbox(request).await.unwrap();
                    let start = longship_proto::agent::v1::StartSandboxRequest {
                        id: id.clone(),
                        generation: 1,
                        devices: vec![],
                    };
                    let running = client.start_sandbox(start).await.unwrap().into_inner();
                    assert_eq!(running.state(), SandboxState::Running);
                    let stop = longship_proto::agent::v1::StopSandboxRequest { id, generation: 1 };
                    client.stop_sandbox(stop).await.unwrap();
                }
            }));
        }
        for round in rounds {
            round.await.unwrap();
        }
        let took = started.elapsed();
        println!(
            "{MANY} clones, {at_once} at once: {took:?}, {:.1}/s",
            MANY as f64 / took.as_secs_f64()
        );
    }
    agent.stop("first", 1).await.unwrap();
    agent.warm(2).await;
    assert_eq!(agent.cgroups().len(), 2);
}
