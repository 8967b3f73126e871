//! What a placement costs, and how good it is: `cargo bench -p longship-scheduler`.
//!
//! Prints what `docs/SPECIFICATION.md` promises of the scheduler, and writes
//! `target/bench/scheduler/placement.{json,svg}`. `-- --quick` is a short round.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on says so and ends

mod hardware;
mod measure;
mod naive;
mod plot;
mod quality;
mod scale;
mod workload;

use serde_json::json;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let sizes: &[usize] = match quick {
        true => &[1_000, 10_000],
        false => &[1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000],
    };
    let largest = *sizes.last().unwrap();

    // First, while the process is small: what a host costs.
    let memory = measure::memory(largest);
    println!(
        "memory: {} hosts take {} bytes each; with {} pods on them {} bytes a host, {} a pod",
        memory.hosts,
        memory.bytes_a_host,
        memory.pods,
        memory.bytes_a_host_with_pods,
        memory.bytes_a_pod
    );

    println!(
        "\nhosts      fill to 70 %         at 70 %, one leaves and one comes (reserve + commit)"
    );
    println!(
        "           placements/s  mean   placements/s    mean     p50     p99   p99.9  release"
    );
    let rounds = if quick { 1 } else { 3 };
    let points: Vec<scale::Point> = sizes
        .iter()
        .map(|hosts| {
            let point = scale::median(*hosts, rounds);
            println!("{point}");
            point
        })
        .collect();
    let (first, last) = (&points[0], points.last().unwrap());
    let growth = last.churn.mean / first.churn.mean;
    let log_growth = measure::ln(last.hosts) / measure::ln(first.hosts);
    println!(
        "from {} to {} hosts a placement costs {growth:.2} times as much; log(hosts) grows {log_growth:.2} times",
        first.hosts, last.hosts
    );
    println!("\n{}", last.describe());

    let comparison = naive::compare(largest, if quick { 200 } else { 1000 });
    println!("\n{comparison}");
    println!(
        "ratio: {:.0} times the placements of filter-and-score over all nodes, {:.0} times those of one that samples",
        comparison.all_ns / last.churn.mean,
        comparison.sampled_ns / last.churn.mean
    );

    let quality = quality::compare(if quick { 200 } else { 1000 });
    println!("\n{quality}");

    let directory = measure::directory();
    let report = json!({
        "memory": memory.json(),
        "scale": points.iter().map(scale::Point::json).collect::<Vec<_>>(),
        "growth": { "cost": growth, "log_hosts": log_growth },
        "comparison": comparison.json(last.churn.mean),
        "quality": quality.json(),
    });
    std::fs::write(
        directory.join("placement.json"),
        serde_json::to_string_pretty(&report).unwrap(),
    )
    .unwrap();
    std::fs::write(
        directory.join("placement.svg"),
        plot::cost_by_hosts(&points),
    )
    .unwrap();
    println!("\nwritten: {}/placement.{{json,svg}}", directory.display());
}
