//! The pods of the benchmark: mixed sizes, and one in three with something special.

use longship_scheduler::{
    Class, Constraint, Fallback, Labels, PodTemplate, Rule, Selector, Topology, Zones,
};

use crate::hardware::ZONES;

const TENANTS: usize = 100;
/// Replicas of a service, all alike.
const REPLICAS: usize = 40;

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the same numbers every time.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }
}

/// Templates, and the order in which pods of them come.
#[derive(Debug, Default)]
pub(crate) struct Workload {
    pub(crate) templates: Vec<PodTemplate>,
    plain: Vec<usize>,
    /// Services that do not have all of their replicas yet: template, replicas left.
    open: [Option<(usize, usize)>; 4],
    services: usize,
}

impl Workload {
    pub(crate) fn new() -> Self {
        let mut workload = Self::default();
        let mut random = Random(7);
        // What is asked for without a flavor is rounded up.
        for _ in 0..2000 {
            let mut template = sized(&mut random);
            match random.below(100) {
                // Pinned to a zone.
                0..8 => {
                    let zone = ZONES[random.below(ZONES.len())];
                    template.zones = Zones::AnyOf(vec![zone.into()]);
                }
                // Ordered fallback over zones and flavors.
                8..14 => {
                    let first = random.below(ZONES.len());
                    let zones = (0..3).map(|at| ZONES[(first + at) % ZONES.len()].to_owned());
                    template.zones = Zones::InOrder(zones.collect());
                    template.cpu_millis = 0;
                    template.memory_bytes = 0;
                    template.flavors = vec!["std-2x4".into(), "std-2x8".into(), "std-4x8".into()];
                    template.fallback = Fallback::FlavorsFirst;
                }
                14..22 => template.class = Class::Spot,
                22..24 => {
                    template.gpus = [1, 1, 2, 4][random.below(4)];
                    template.cpu_millis = 1000;
                    template.memory_bytes = 1 << 30;
                }
                24..30 => {
                    template.enis = 2;
                    template.disks = 3;
                }
                _ => {}
            }
            workload.plain.push(workload.templates.len());
            workload.templates.push(template);
        }
        workload
    }

    /// The next pod's template.
    pub(crate) fn next(&mut self, random: &mut Random) -> usize {
        let kind = match random.below(100) {
            0..10 => 0,
            10..18 => 1,
            18..21 => 2,
            21..24 => 3,
            _ => return self.plain[random.below(self.plain.len())],
        };
        let (template, left) = match self.open[kind] {
            Some(open) => open,
            None => (self.service(kind, random), REPLICAS),
        };
        self.open[kind] = (left > 1).then_some((template, left - 1));
        template
    }

    /// Replicas that must not share a host; that are spread over zones; that stay in
    /// one zone; that are spread over hosts.
    fn service(&mut self, kind: usize, random: &mut Random) -> usize {
        self.services += 1;
        let app = format!("service-{}", self.services);
        let mut template = sized(random);
        let (topology, rule) = match kind {
            0 => (Topology::Host, Rule::Apart),
            1 => (Topology::Zone, Rule::Spread { max_skew: 2 }),
            2 => (Topology::Zone, Rule::With),
            _ => (Topology::Host, Rule::Spread { max_skew: 2 }),
        };
        template.constraints = vec![Constraint {
            selector: Selector::label("app", &app),
            topology,
            rule,
            required: true,
        }];
        template.labels.insert("app".into(), app);
        self.templates.push(template);
        self.templates.len() - 1
    }
}

fn sized(random: &mut Random) -> PodTemplate {
    // Many small ones, few large ones; memory from 1 to 4 GiB a CPU.
    let cpu_millis: u32 = match random.below(100) {
        0..30 => 250,
        30..50 => 500,
        50..70 => 1000,
        70..83 => 2000,
        83..92 => 4000,
        92..97 => 8000,
        _ => 16_000,
    };
    let a_cpu = [1_u64, 2, 2, 4][random.below(4)] << 30;
    let memory_bytes = u64::from(cpu_millis) * a_cpu / 1000 * 9 / 10;
    PodTemplate {
        tenant: format!("tenant-{}", random.below(TENANTS)),
        labels: Labels::from([("team".into(), format!("team-{}", random.below(5)))]),
        cpu_millis,
        memory_bytes,
        ..PodTemplate::default()
    }
}
