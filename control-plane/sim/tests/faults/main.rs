//! The real control plane on a simulated network with simulated cards: random histories of
//! partitions, delays, lost messages, crashes, elections and wrong clocks. After any of
//! them nothing acknowledged is lost, nothing runs twice, no host has promised too much,
//! whoever waits knows why, and once nothing is wrong any more everything comes right.
//!
//! Every history is a process of its own, and everything in it follows from its seed.
//!
//! - `LONGSHIP_SIM_SEED=N` plays the history of that seed, and prints it;
//! - `LONGSHIP_SIM_SEEDS=N` plays so many histories instead of the usual number;
//! - `LONGSHIP_SIM_FIRST=N` is the first seed; else they begin at 1.
#![allow(clippy::unwrap_used)] // all of it is a test

mod clients;
mod determinism;
mod invariants;
mod network;
mod plan;
mod world;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use invariants::Written;
use plan::Plan;
use world::World;

/// Histories that are played.
const SEEDS: u64 = 200;
/// Every so many a history is played twice, to see that it repeats.
const REPEAT: u64 = 25;
/// How often the invariants are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Everything is right by then, after nothing is wrong any more.
const CONVERGENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Some(seed) = number("LONGSHIP_SIM_SEED") {
        return one(seed);
    }
    // As `cargo test -- --list` asks for.
    if std::env::args().any(|argument| argument == "--list") {
        println!("random_histories: test");
        return ExitCode::SUCCESS;
    }
    all(
        number("LONGSHIP_SIM_FIRST").unwrap_or(1),
        number("LONGSHIP_SIM_SEEDS").unwrap_or(SEEDS),
    )
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect(variable))
}

/// Plays many, as many at a time as there are CPUs.
fn all(first: u64, count: u64) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    if let Err(why) = play(seed) {
                        println!("seed {seed}: {why}");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{count} histories from seed {first} on, {} failed, {seconds:.1} s",
        failed.len()
    );
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!(
        "again: LONGSHIP_SIM_SEED={} cargo test -p longship-sim --test faults",
        failed[0]
    );
    ExitCode::FAILURE
}

/// Plays one in a process of its own; some twice.
fn play(seed: u64) -> Result<(), String> {
    let first = run(seed)?;
    if seed.is_multiple_of(REPEAT) {
        let second = run(seed)?;
        if first != second {
            let differ = first.lines().zip(second.lines()).find(|(a, b)| a != b);
            return Err(format!("the second time it went otherwise: {differ:?}"));
        }
    }
    Ok(())
}

fn run(seed: u64) -> Result<String, String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .env("LONGSHIP_SIM_SEED", seed.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = error.lines().rev().take(6).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(format!("{}\n  {}", output.status, last.join("\n  ")))
}

/// Plays one here.
fn one(seed: u64) -> ExitCode {
    // First of all: what is drawn once, at the first use, must come from the seed too.
    determinism::begin(seed);
    let plan = Plan::of(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut history = vec![format!("{:?}", plan.sizes)];
    let played = history_of(seed, &plan, &runtime, &mut history);
    for line in &history {
        println!("{line}");
    }
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn history_of(
    seed: u64,
    plan: &Plan,
    runtime: &tokio::runtime::Runtime,
    history: &mut Vec<String>,
) -> Result<(), String> {
    let mut world = World::new(seed, plan);
    let mut lines = BTreeMap::new();
    let mut looked = Duration::ZERO;
    let mut look = |world: &World<'_>, history: &mut Vec<String>| {
        let written = Written::read(world, runtime);
        tell(&mut lines, &written, world.elapsed(), history);
        invariants::always(world, &written)
            .map_err(|why| format!("after {:?}: {why}", world.elapsed()))?;
        Ok::<_, String>(written)
    };
    while world.elapsed() < plan.sizes.trouble {
        world.step(history)?;
        if world.elapsed() - looked >= LOOK {
            looked = world.elapsed();
            look(&world, history)?;
        }
    }
    history.push(format!("{:?} nothing is wrong any more", world.elapsed()));
    world.heal();
    world.clients.with(|ledger| ledger.stop = true);
    let give_up = world.elapsed() + CONVERGENCE;
    loop {
        world.step(history)?;
        if world.elapsed() - looked < LOOK {
            continue;
        }
        looked = world.elapsed();
        let written = look(&world, history)?;
        match invariants::converged(&world, &written) {
            Ok(()) => break,
            Err(why) if world.elapsed() > give_up => {
                return Err(format!("it does not come right: {why}"));
            }
            Err(_) => {}
        }
    }
    history.push(format!("{:?} all is well", world.elapsed()));
    Ok(())
}

/// Writes down what has changed.
fn tell(
    lines: &mut BTreeMap<String, String>,
    written: &Written,
    now: Duration,
    history: &mut Vec<String>,
) {
    let new = written.lines();
    for (name, line) in &new {
        if lines.get(name) != Some(line) {
            history.push(format!("{now:?} {name}: {line}"));
        }
    }
    for name in lines.keys().filter(|name| !new.contains_key(*name)) {
        history.push(format!("{now:?} {name}: gone"));
    }
    *lines = new;
}
