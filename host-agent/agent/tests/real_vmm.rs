//! The agent with real VMMs. Needs root, cgroup v2, a KVM that runs guest kernels at
//! native speed, `longship-vmm` beside the agent and the guest's files, as
//! `make guest` leaves them; `make e2e` runs these tests where all that is.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod real_agent;

use std::time::Duration;

use longship_proto::Class;
use longship_proto::agent::v1::{
    DeviceHandle, DeviceType, GetHostRequest, ListSandboxesRequest, PrepareSandboxRequest,
    SandboxState, VhostUser, WatchSandboxesRequest, device_handle::Handle,
};
use real_agent::{Agent, Options, PATIENCE, exists, read, sandbox};

/// Machines that boot by themselves.
fn cold() -> Options {
    Options {
        flags: vec!["--no-templates".to_owned()],
        ..Options::default()
    }
}

#[tokio::test]
async fn a_sandbox_lives_in_its_cgroup_and_leaves_nothing() {
    let mut agent = Agent::start("life", cold()).await;
    let host = agent
        .client
        .get_host(GetHostRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(host.cpus > 0 && host.memory_bytes > 0);
    let watch = agent.client.watch_sandboxes(WatchSandboxesRequest {}).await;
    let mut watch = watch.unwrap().into_inner();

    let prepared = agent.prepare(sandbox("pod-1", 1)).await.unwrap();
    assert_eq!(prepared.state(), SandboxState::Prepared);
    let steps: Vec<(&str, &str)> = prepared
        .timeline
        .iter()
        .map(|stage| (stage.component.as_str(), stage.name.as_str()))
        .collect();
    for step in [("agent", "cgroup"), ("agent", "spawn"), ("agent", "create")] {
        assert!(steps.contains(&step), "{steps:?}");
    }
    assert!(
        steps.iter().any(|(component, _)| *component == "vmm"),
        "{steps:?}"
    );
    for stage in &prepared.timeline {
        let took = stage.end_us - stage.start_us;
        println!("  {:8} {:16} {took:>8} us", stage.component, stage.name);
    }

    let cgroup = agent.cgroup_of(&prepared);
    assert_eq!(
        read(cgroup.join("cgroup.procs")),
        format!("{}\n", prepared.pid)
    );
    assert_eq!(read(cgroup.join("cpu.max")), "max 100000\n");
    assert_eq!(read(cgroup.join("cpu.weight")), "50\n");
    assert_eq!(
        read(cgroup.join("memory.max")),
        format!("{}\n", (128 + 32 + 1) << 20)
    );

    let again = agent.prepare(sandbox("pod-1", 1)).await.unwrap();
    assert_eq!(
        again.pid, prepared.pid,
        "a repeated call must not start another VMM"
    );
    let other = PrepareSandboxRequest {
        vcpus: 2,
        ..sandbox("pod-1", 1)
    };
    assert_eq!(
        agent.prepare(other).await.unwrap_err().class(),
        Class::Conflict
    );
    let newer = agent.prepare(sandbox("pod-1", 2)).await.unwrap_err();
    assert_eq!(newer.class(), Class::Conflict, "{newer}");
    // The newer one was seen, so the older one is fenced off.
    let stale = agent.stop("pod-1", 1).await.unwrap_err();
    assert_eq!(stale.class(), Class::StaleGeneration);

    agent.stop("pod-1", 2).await.unwrap();
    agent.stop("pod-1", 2).await.unwrap();
    assert!(!cgroup.exists() && !exists(prepared.pid));
    let seen = [
        watch.message().await.unwrap().unwrap().state(),
        watch.message().await.unwrap().unwrap().state(),
    ];
    assert_eq!(seen, [SandboxState::Prepared, SandboxState::Gone]);
    let left = agent
        .client
        .list_sandboxes(ListSandboxesRequest {})
        .await
        .unwrap();
    assert!(left.into_inner().sandboxes.is_empty());

    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.process.wait().unwrap().success());
    assert!(!agent.cgroup.exists());
    assert!(!agent.folder.path().join("agent.sock").exists());
}

#[tokio::test]
async fn a_guest_boots_and_a_vmm_that_dies_is_noticed_with_its_reason() {
    let mut agent = Agent::start("exit", cold()).await;
    let watch = agent.client.watch_sandboxes(WatchSandboxesRequest {}).await;
    let mut watch = watch.unwrap().into_inner();
    let pid = agent.prepare(sandbox("pod", 1)).await.unwrap().pid;

    let nobody = DeviceHandle {
        handle: Some(Handle::VhostUser(VhostUser {
            r#type: DeviceType::Net.into(),
            socket: "/nowhere/net.sock".into(),
        })),
    };
    let refused = agent.start_sandbox("pod", vec![nobody]).await.unwrap_err();
    assert_eq!(refused.class(), Class::Unavailable);
    assert_eq!(refused.field, "devices[0].vhost_user.socket");

    // That did no harm.
    let running = agent.start_sandbox("pod", vec![]).await.unwrap();
    assert_eq!((running.state(), running.pid), (SandboxState::Running, pid));
    for stage in &running.timeline {
        let took = stage.end_us - stage.start_us;
        println!("  {:8} {:16} {took:>8} us", stage.component, stage.name);
    }
    assert_eq!(agent.start_sandbox("pod", vec![]).await.unwrap().pid, pid);
    // It boots with what is idle, and is then held to its half of a CPU.
    let cgroup = agent.cgroup_of(&running);
    let cpu_max = cgroup.join("cpu.max");
    assert_eq!(read(cpu_max.clone()), "max 100000\n");
    let give_up = tokio::time::Instant::now() + PATIENCE;
    while read(cpu_max.clone()) != "50000 100000\n" {
        assert!(
            tokio::time::Instant::now() < give_up,
            "its CPU time stays unlimited"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.try_into().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let exited = loop {
        let seen = watch.message().await.unwrap().unwrap();
        if seen.state() == SandboxState::Exited {
            break seen;
        }
    };
    let exit = exited.exit.unwrap();
    assert!(!exit.by_guest);
    assert!(exit.message.contains("signal 9"), "{}", exit.message);
    assert_eq!(exited.pid, 0);
    assert!(!cgroup.exists());

    // A newer generation takes its place without a stop between.
    let next = agent.prepare(sandbox("pod", 2)).await.unwrap();
    assert_eq!((next.state(), next.generation), (SandboxState::Prepared, 2));
    agent.stop("pod", 2).await.unwrap();
}

#[tokio::test]
async fn the_next_agent_ends_what_a_killed_one_left() {
    let mut agent = Agent::start("sweep", cold()).await;
    let left = agent.prepare(sandbox("left", 1)).await.unwrap();
    let (pid, cgroup) = (left.pid, agent.cgroup_of(&left));
    agent.restart().await;
    assert!(!cgroup.exists());
    assert!(!exists(pid) || read(format!("/proc/{pid}/status").into()).contains("State:\tZ"));
    let left = agent
        .client
        .list_sandboxes(ListSandboxesRequest {})
        .await
        .unwrap();
    assert!(left.into_inner().sandboxes.is_empty());

    // Ended properly, an agent takes its sandboxes along.
    let pid = agent.prepare(sandbox("left", 1)).await.unwrap().pid;
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.process.wait().unwrap().success());
    assert!(!agent.cgroup.exists() && !exists(pid));
}
