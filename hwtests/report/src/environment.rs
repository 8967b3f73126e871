//! Where it was measured, and with which clock.

use serde::{Deserialize, Serialize};

/// What a reader must know of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// What times are measured with.
    pub clock: Clock,
    /// Release of the host's kernel.
    pub kernel: String,
    /// As the kernel names it.
    pub cpu_model: String,
    /// How many it has.
    pub cpus: u32,
    /// How much memory it has, in bytes.
    pub memory_bytes: u64,
    /// Whether it is the testbed's virtual host.
    pub testbed: bool,
    /// When, microseconds since the Unix epoch.
    pub time_us: i64,
}

/// What a millisecond is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// A thousandth of a second.
    #[default]
    Wall,
    /// A million executed instructions of the virtual host, which has one CPU.
    Instructions,
}

impl Clock {
    /// As the environment says it: `LONGSHIP_CLOCK=icount` where instructions are
    /// counted, since nothing in a virtual host can tell.
    pub fn of_environment() -> Self {
        match std::env::var("LONGSHIP_CLOCK").as_deref() {
            Ok("icount") => Self::Instructions,
            _ => Self::Wall,
        }
    }

    /// The unit of times.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Wall => "ms",
            Self::Instructions => "ims",
        }
    }

    /// For a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Wall => "wall clock",
            Self::Instructions => "instructions (1 ims: 1 M instructions of the virtual host)",
        }
    }
}

impl Environment {
    /// This machine, now.
    pub fn look() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Self {
            clock: Clock::of_environment(),
            kernel,
            cpu_model: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism()
                .ok()
                .and_then(|cpus| u32::try_from(cpus.get()).ok())
                .unwrap_or(0),
            memory_bytes: memory_bytes(
                &std::fs::read_to_string("/proc/meminfo").unwrap_or_default(),
            ),
            testbed: std::env::var_os("LONGSHIP_TESTBED").is_some(),
            time_us: longship_proto::now_us(),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model.trim())
}

/// `MemTotal`; 0 where the kernel does not say it.
fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_model_is_read() {
        let text = "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\nmodel name\t: other\n";
        assert_eq!(cpu_model(text), Some("QEMU TCG CPU version 2.5+"));
        assert_eq!(cpu_model("processor : 0\n"), None);
    }

    #[test]
    fn this_machine_is_described() {
        let environment = Environment::look();
        assert!(environment.cpus > 0 && environment.memory_bytes > 0);
        assert!(!environment.kernel.is_empty());
    }
}
