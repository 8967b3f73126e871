//! What all tests need of the host.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use longship_eni::{BridgeEnis, EniSpec, MacAddress};
use nix::sched::{CloneFlags, setns};

/// One test at a time: some count the descriptors and threads of this process.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    assert!(
        nix::unistd::geteuid().is_root(),
        "the tests of ENIs need root: they create network namespaces"
    );
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_test_writer()
        .try_init();
    // The first runtime makes what tokio keeps for ever.
    block_on(async {});
    // A thread that the test before has joined is still to be seen for a moment.
    while threads_called(is_ours) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    alone
}

/// The ENI number `n` of a VPC 10.`net`.0.0/24, with its socket in `folder`.
pub(crate) fn spec(folder: &Path, vpc: &str, net: u8, n: u8) -> EniSpec {
    EniSpec {
        id: format!("{vpc}-{n}"),
        vpc: vpc.into(),
        mac: MacAddress::new([2, 0, 0, 0, net, n]),
        address: Ipv4Addr::new(10, net, 0, n),
        prefix_length: 24,
        gateway: Ipv4Addr::new(10, net, 0, 1),
        mtu: 1500,
        socket: folder.join(format!("{vpc}-{n}.sock")),
    }
}

/// What a program prints that runs in the namespace of `vpc`.
pub(crate) fn run_in(enis: &BridgeEnis, vpc: &str, program: &str, args: &[&str]) -> String {
    let namespace = enis.namespace(vpc).unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let output = Command::new(program).args(args).output();
            output.unwrap_or_else(|e| panic!("running {program}: {e}"))
        });
        let output = run.join().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    })
}

/// What this process holds, to show that nothing is left: open descriptors, and
/// threads.
pub(crate) fn held() -> (Vec<String>, usize) {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut descriptors: Vec<String> = links
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| !link.ends_with("/fd") && !link.contains("/proc/"))
        // Two sockets are alike but for their inodes.
        .map(|link| link.split(":[").next().unwrap_or_default().to_owned())
        .collect();
    descriptors.sort();
    (descriptors, threads_called(is_ours))
}

/// Waits until this process holds what it held `before`: a thread that has been
/// joined is still to be seen for a moment.
pub(crate) fn assert_held(before: &(Vec<String>, usize)) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while held() != *before {
        assert!(
            Instant::now() < deadline,
            "{:?} instead of {before:?}",
            held()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many threads of this process serve ENIs.
pub(crate) fn threads() -> usize {
    threads_called(|name| name == "eni")
}

fn is_ours(name: &str) -> bool {
    ["eni", "eni-netns"].contains(&name)
}

fn threads_called(wanted: impl Fn(&str) -> bool) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| wanted(comm.trim_end()))
        .count()
}

/// Runs an async test.
pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test)
}
