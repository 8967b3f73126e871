//! Measures what sandboxes and pods cost: how long starts take and where the time
//! goes, what memory is lost, how many start a second.

mod arguments;
mod available;
mod cpu;
mod error;
mod measure;
mod smaps;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use longship_report::document::{Document, Findings, check_writable, write};
use longship_report::{document, environment, show, summary};

use crate::error::BenchError;
use crate::measure::burst::Burst;
use crate::measure::compare::Compare;
use crate::measure::density::Density;
use crate::measure::overhead::Overhead;
use crate::measure::start::Start;
use crate::measure::throughput::Throughput;

/// Measures what sandboxes and pods cost.
///
/// It starts what it measures itself and ends it again. It needs root and a usable
/// /dev/kvm. Times are wall-clock milliseconds, or, where LONGSHIP_CLOCK=icount says that
/// this is a virtual host that counts instructions, millions of them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// Write the report there as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report there as one HTML page
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Name of the report; where it is not given, the benchmark's
    #[arg(long, global = true, value_name = "NAME")]
    label: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    Start(Start),
    Overhead(Overhead),
    Density(Density),
    Burst(Burst),
    Compare(Compare),
    Throughput(Throughput),
    /// Put reports together, beside what was promised
    Report {
        /// Reports, as written by --json
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    // Hundreds of pods take more descriptors than a shell is usually given; children
    // inherit the limit. Where it cannot be raised, whoever runs out says so.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    for path in [&arguments.json, &arguments.html].into_iter().flatten() {
        check_writable(path)?;
    }
    let (name, findings) = match &arguments.benchmark {
        Benchmark::Report { files } => return report(files, &arguments),
        Benchmark::Start(start) => ("start", block_on(start.run())?),
        Benchmark::Overhead(overhead) => ("overhead", block_on(overhead.run())?),
        Benchmark::Density(density) => ("density", block_on(density.run())?),
        Benchmark::Burst(burst) => ("burst", block_on(burst.run())?),
        Benchmark::Compare(compare) => ("compare", compare.run()?),
        Benchmark::Throughput(throughput) => ("throughput", block_on(throughput.run())?),
    };
    let document = Document::new("longship-bench", name, arguments.label.clone(), findings);
    document.publish(arguments.json.as_ref(), arguments.html.as_ref())?;
    Ok(())
}

/// On one thread, on which the daemons are started too: they end with it.
fn block_on(
    benchmark: impl Future<Output = Result<Findings, BenchError>>,
) -> anyhow::Result<Findings> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(benchmark);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(outcome?)
}

fn report(files: &[PathBuf], arguments: &Arguments) -> anyhow::Result<()> {
    let documents: Vec<Document> = files
        .iter()
        .map(|path| Document::read(path))
        .collect::<Result<_, _>>()?;
    anyhow::ensure!(
        arguments.json.is_none(),
        "--json: reports are put together as HTML only"
    );
    let promises = show::promises::promises(&documents);
    println!("{}\n{}", promises.title, show::text::table(&promises));
    if let Some(path) = &arguments.html {
        write(path, &show::html::page(&documents))?;
        println!("{}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_flags_are_taken() {
        for good in [
            "start --rounds 3 --origins cold,warm --json /dev/null",
            "overhead --pods --origin warm --idle 0",
            "density --count 200 --pods --profile direct --memory-mib 256",
            "burst --count 100 --concurrency 8 --stop",
            "compare --vcpus 2 --html /dev/null",
            "throughput --rounds 1",
            "report a.json b.json",
        ] {
            let words = ["longship-bench"].into_iter().chain(good.split(' '));
            assert!(Arguments::try_parse_from(words).is_ok(), "{good}");
        }
    }

    #[test]
    fn bad_flags_are_refused() {
        for bad in [
            "",
            "start --rounds 0",
            "start --origins lukewarm",
            "start --memory-mib 127",
            "start --memory-mib 32",
            "start --memory-mib many",
            "compare --vcpus 0",
            "burst --count 0",
            "burst --concurrency 0",
            "density --points 1",
            "density --profile sparse",
            "throughput --disk-mib -1",
            "report",
        ] {
            let words = ["longship-bench"]
                .into_iter()
                .chain(bad.split(' ').filter(|word| !word.is_empty()));
            let refused = Arguments::try_parse_from(words).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_is_refused_first() {
        let refused = check_writable(std::path::Path::new("/nonexistent/report.json")).unwrap_err();
        assert!(refused.to_string().contains("/nonexistent/report.json"));
    }
}
