//! The hosts of the benchmark: three sizes, one in ten with GPUs, in five zones.

use longship_scheduler::{Amount, Flavor, Flavors, Fleet, HostFacts, Policy};

pub(crate) const ZONES: [&str; 5] = ["zone-a", "zone-b", "zone-c", "zone-d", "zone-e"];
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn flavors() -> Flavors {
    let mut flavors: Vec<Flavor> = Flavors::standard().iter().cloned().collect();
    for gpus in [1_u32, 2, 4, 8] {
        flavors.push(Flavor {
            name: format!("gpu-{gpus}"),
            family: "gpu".into(),
            cpu_millis: gpus * 7_000,
            memory_bytes: u64::from(gpus) * 28 * GIB,
            gpus,
        });
    }
    Flavors::new(flavors).unwrap()
}

pub(crate) fn hosts(count: usize) -> impl Iterator<Item = HostFacts> {
    (0..count).map(|at| {
        let gpu = at % 10 == 9;
        let cpus = match at % 7 {
            0 | 1 => 32,
            2..=5 => 64,
            _ => 96,
        };
        let cpus: u32 = if gpu { 64 } else { cpus };
        HostFacts {
            name: format!("host-{at:06}"),
            zone: ZONES[at % ZONES.len()].into(),
            family: if gpu { "gpu" } else { "std" }.into(),
            capacity: Amount {
                memory_bytes: u64::from(cpus) * 4 * GIB,
                cpu_millis: cpus * 1000,
                pods: 256,
                enis: 256,
                disks: 512,
                gpus: if gpu { 8 } else { 0 },
            },
        }
    })
}

pub(crate) fn fleet(count: usize, policy: Policy) -> Fleet {
    let mut fleet = Fleet::new(flavors(), policy);
    for facts in hosts(count) {
        let name = facts.name.clone();
        fleet.set_host(facts).unwrap();
        fleet.set_ready(&name, true).unwrap();
    }
    fleet
}
