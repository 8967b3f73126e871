//! The host's agent: sandboxes from spawn to clean-up.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use longship_agent::{Config, Host, Listen};

/// The host's agent: runs one VMM process for each sandbox that a card asks for.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where cards reach the agent: `unix:PATH` or HOST:PORT.
    #[arg(long, default_value = "unix:/run/longship/agent.sock")]
    listen: Listen,
    /// Folder for what the agent keeps while it runs.
    #[arg(long, default_value = "/run/longship/agent")]
    runtime_dir: PathBuf,
    /// Guest kernel: an ELF vmlinux or a bzImage.
    #[arg(long)]
    kernel: PathBuf,
    /// Guest's initramfs.
    #[arg(long)]
    initramfs: PathBuf,
    /// The VMM; where it is not given, `longship-vmm` beside this program.
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// The KVM device.
    #[arg(long, default_value = "/dev/kvm")]
    kvm: PathBuf,
    /// The cgroup (v2) in which each sandbox gets one of its own.
    #[arg(long, default_value = "/sys/fs/cgroup/longship")]
    cgroup: PathBuf,
    /// Memory for sandboxes, in bytes; where it is not given, seven eighths of what is free now,
    /// without what templates may hold.
    #[arg(long)]
    memory: Option<u64>,
    /// CPUs for sandboxes; where it is not given, all.
    #[arg(long)]
    cpus: Option<u32>,
    /// Boot every machine by itself instead of cloning it from a template.
    #[arg(long)]
    no_templates: bool,
    /// Memory for templates and warm clones, in bytes; where it is not given, an eighth of
    /// the host's.
    #[arg(long, value_name = "BYTES")]
    template_memory: Option<u64>,
    /// Paused clones that wait for a sandbox, of each template that was asked for lately.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm_pool: usize,
    /// Sandboxes that may be at one stage of their start at once; where it is not given, one
    /// more than there are CPUs.
    #[arg(long, value_name = "N")]
    parallel_starts: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let host = Host::open(Config {
        runtime_dir: arguments.runtime_dir,
        kernel: arguments.kernel,
        initramfs: arguments.initramfs,
        vmm: arguments.vmm,
        kvm: arguments.kvm,
        cgroup: arguments.cgroup,
        memory_bytes: arguments.memory,
        cpus: arguments.cpus,
        templates: !arguments.no_templates,
        template_memory: arguments.template_memory,
        warm_pool: arguments.warm_pool,
        parallel_starts: arguments.parallel_starts,
    })?;
    // The agent is idle nearly always; more workers would only cost memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(longship_agent::serve(host, arguments.listen))?;
    // Stray blocking calls must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(())
}
