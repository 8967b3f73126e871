//! The sizes of machine that requests are rounded up to.

use crate::quantity::thousandths;
use crate::reason::Refusal;

/// Flavors come in steps of a quarter of a CPU.
pub const CPU_STEP_MILLIS: u32 = 250;
/// The family of the standard flavors, and of hosts that name none.
pub const STANDARD_FAMILY: &str = "std";
/// More distinct amounts of memory than the index of free room tells apart.
pub(crate) const MAX_MEMORY_SIZES: usize = 48;
/// The most GPUs that a flavor may have.
pub const MAX_GPUS: u32 = 16;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What one CPU weighs in bytes of memory when two flavors are compared: the
/// usual 1 : 4 of machines, so that "smallest" is what leaves most for others.
const BYTES_A_CPU: u64 = 4 * GIB;

/// A size of machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flavor {
    /// Unique; `std-CPUSxGIB` in the standard table.
    pub name: String,
    /// The kind of host that it is for.
    pub family: String,
    /// Thousandths of a CPU the pod may use; a multiple of [`CPU_STEP_MILLIS`].
    pub cpu_millis: u32,
    /// Guest memory in bytes; a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// GPUs, each a pod's own.
    pub gpus: u32,
}

impl Flavor {
    fn standard(cpu_millis: u32, memory_bytes: u64) -> Self {
        let gib_thousandths = memory_bytes * 1000 / GIB;
        Self {
            name: format!(
                "std-{}x{}",
                thousandths(u64::from(cpu_millis)),
                thousandths(gib_thousandths)
            ),
            family: STANDARD_FAMILY.into(),
            cpu_millis,
            memory_bytes,
            gpus: 0,
        }
    }

    /// Virtual CPUs the guest sees: enough to use all of `cpu_millis`.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.cpu_millis.div_ceil(1000)
    }

    pub(crate) fn weight(&self) -> u128 {
        u128::from(self.cpu_millis) * u128::from(BYTES_A_CPU) / 1000 + u128::from(self.memory_bytes)
    }
}

/// Why a table of flavors cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlavorTableError {
    /// Nothing could ever be placed.
    #[error("the table has no flavor")]
    Empty,
    /// Two flavors have one name.
    #[error("two flavors are named `{0}`")]
    Duplicate(String),
    /// CPU is zero or no multiple of the step.
    #[error("flavor `{0}`: CPU must be a multiple of {CPU_STEP_MILLIS} millis, and not 0")]
    Cpu(String),
    /// Memory is zero or no multiple of 2 MiB.
    #[error("flavor `{0}`: memory must be a multiple of 2 MiB, and not 0")]
    Memory(String),
    /// It has no family.
    #[error("flavor `{0}` has no family")]
    Family(String),
    /// More GPUs than any host has.
    #[error("flavor `{0}`: at most {MAX_GPUS} GPUs")]
    Gpus(String),
    /// More sizes than are told apart.
    #[error("the table has {0} distinct amounts of memory; at most {MAX_MEMORY_SIZES}")]
    TooManySizes(usize),
}

/// The flavors there are, the smallest first.
#[derive(Debug, Clone)]
pub struct Flavors {
    sorted: Vec<Flavor>,
}

impl Flavors {
    /// A table of the operator's own.
    ///
    /// # Errors
    /// Any [`FlavorTableError`].
    pub fn new(mut flavors: Vec<Flavor>) -> Result<Self, FlavorTableError> {
        if flavors.is_empty() {
            return Err(FlavorTableError::Empty);
        }
        let mut names = std::collections::BTreeSet::new();
        for flavor in &flavors {
            if flavor.cpu_millis == 0 || flavor.cpu_millis % CPU_STEP_MILLIS != 0 {
                return Err(FlavorTableError::Cpu(flavor.name.clone()));
            }
            if flavor.memory_bytes == 0 || flavor.memory_bytes % (2 * MIB) != 0 {
                return Err(FlavorTableError::Memory(flavor.name.clone()));
            }
            if flavor.family.is_empty() {
                return Err(FlavorTableError::Family(flavor.name.clone()));
            }
            if flavor.gpus > MAX_GPUS {
                return Err(FlavorTableError::Gpus(flavor.name.clone()));
            }
            if !names.insert(flavor.name.as_str()) {
                return Err(FlavorTableError::Duplicate(flavor.name.clone()));
            }
        }
        let sizes: std::collections::BTreeSet<u64> =
            flavors.iter().map(|flavor| flavor.memory_bytes).collect();
        if sizes.len() > MAX_MEMORY_SIZES {
            return Err(FlavorTableError::TooManySizes(sizes.len()));
        }
        flavors.sort_by(|a, b| (a.weight(), &a.name).cmp(&(b.weight(), &b.name)));
        Ok(Self { sorted: flavors })
    }

    /// The standard ladder: 0.25 CPUs with 128 MiB up to 16 CPUs with 64 GiB, from
    /// half a GiB to four GiB a CPU (and smaller steps below one CPU).
    #[must_use]
    pub fn standard() -> Self {
        let mut sorted = Vec::new();
        let ladder: [(u32, &[u64]); 7] = [
            (250, &[128, 256, 512, 1024]),
            (500, &[256, 512, 1024, 2048]),
            (1000, &[512, 1024, 2048, 4096]),
            (2000, &[1024, 2048, 4096, 8192]),
            (4000, &[2048, 4096, 8192, 16_384]),
            (8000, &[4096, 8192, 16_384, 32_768]),
            (16_000, &[8192, 16_384, 32_768, 65_536]),
        ];
        for (cpu_millis, sizes) in ladder {
            sorted.extend(
                sizes
                    .iter()
                    .map(|mib| Flavor::standard(cpu_millis, mib * MIB)),
            );
        }
        sorted.sort_by_key(Flavor::weight);
        Self { sorted }
    }

    /// All of them, the smallest first.
    pub fn iter(&self) -> impl Iterator<Item = &Flavor> {
        self.sorted.iter()
    }

    /// The flavor of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Flavor> {
        self.sorted.iter().find(|flavor| flavor.name == name)
    }

    /// The flavor's number in the table.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.sorted.iter().position(|flavor| flavor.name == name)
    }

    /// The flavor of that number.
    pub(crate) fn at(&self, position: usize) -> Option<&Flavor> {
        self.sorted.get(position)
    }

    /// The smallest flavor that holds what is asked for (zero: no wish), of that
    /// family or of any. One with GPUs is only taken where GPUs or its family are
    /// asked for.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`].
    pub fn round_up(
        &self,
        cpu_millis: u32,
        memory_bytes: u64,
        gpus: u32,
        family: Option<&str>,
    ) -> Result<&Flavor, Refusal> {
        let of_family = |flavor: &&Flavor| match family {
            Some(family) => flavor.family == family,
            None => gpus > 0 || flavor.gpus == 0,
        };
        let mut candidates = self.sorted.iter().filter(of_family);
        let found = candidates.find(|flavor| {
            flavor.cpu_millis >= cpu_millis
                && flavor.memory_bytes >= memory_bytes
                && flavor.gpus >= gpus
        });
        found.ok_or_else(|| Refusal::TooLarge {
            cpu_millis,
            memory_bytes,
            gpus,
            largest: self
                .sorted
                .iter()
                .rfind(of_family)
                .map(|f| f.name.clone())
                .unwrap_or_default(),
        })
    }

    /// The named flavor, where it holds what is asked for.
    ///
    /// # Errors
    /// [`Refusal::UnknownFlavor`], [`Refusal::FlavorTooSmall`].
    pub fn named(
        &self,
        name: &str,
        cpu_millis: u32,
        memory_bytes: u64,
        gpus: u32,
    ) -> Result<&Flavor, Refusal> {
        let flavor = self.get(name).ok_or_else(|| Refusal::UnknownFlavor {
            flavor: name.to_owned(),
            known: self.sorted.iter().map(|f| f.name.clone()).collect(),
        })?;
        if flavor.cpu_millis < cpu_millis
            || flavor.memory_bytes < memory_bytes
            || flavor.gpus < gpus
        {
            return Err(Refusal::FlavorTooSmall {
                flavor: flavor.clone(),
                cpu_millis,
                memory_bytes,
                gpus,
            });
        }
        Ok(flavor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_standard_table_obeys_the_rules_of_any_table() {
        let standard = Flavors::standard();
        assert!(Flavors::new(standard.sorted.clone()).is_ok());
        let names: Vec<&str> = standard.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names.first(), Some(&"std-0.25x0.125"));
        assert_eq!(names.last(), Some(&"std-16x64"));
        assert!(names.contains(&"std-0.5x1"));
    }

    #[test]
    fn a_guest_sees_enough_cpus_for_its_share() {
        let standard = Flavors::standard();
        assert_eq!(standard.get("std-0.25x0.5").map(Flavor::vcpus), Some(1));
        assert_eq!(standard.get("std-1x2").map(Flavor::vcpus), Some(1));
        assert_eq!(standard.get("std-4x8").map(Flavor::vcpus), Some(4));
    }

    #[test]
    fn a_table_that_could_mislead_is_refused() {
        let flavor = |name: &str, cpu_millis, memory_bytes| Flavor {
            name: name.into(),
            family: STANDARD_FAMILY.into(),
            cpu_millis,
            memory_bytes,
            gpus: 0,
        };
        let table = |flavors: &[Flavor]| Flavors::new(flavors.to_vec()).map(|_| ());
        assert_eq!(table(&[]), Err(FlavorTableError::Empty));
        let odd = flavor("a", 300, GIB);
        assert_eq!(table(&[odd]), Err(FlavorTableError::Cpu("a".into())));
        let empty = flavor("a", 250, 0);
        assert_eq!(table(&[empty]), Err(FlavorTableError::Memory("a".into())));
        let twice = flavor("a", 250, GIB);
        assert_eq!(
            table(&[twice.clone(), twice]),
            Err(FlavorTableError::Duplicate("a".into()))
        );
    }

    proptest! {
        #[test]
        fn a_request_gets_a_flavor_that_holds_it_and_none_smaller_does(
            cpu_millis in 0_u32..17_000, memory_bytes in 0_u64..(66 * GIB),
        ) {
            let standard = Flavors::standard();
            let holds = |f: &Flavor| {
                f.cpu_millis >= cpu_millis && f.memory_bytes >= memory_bytes
            };
            match standard.round_up(cpu_millis, memory_bytes, 0, None) {
                Ok(chosen) => {
                    prop_assert!(holds(chosen));
                    let smaller = standard.iter().find(|f| {
                        *f != chosen
                            && holds(f)
                            && f.cpu_millis <= chosen.cpu_millis
                            && f.memory_bytes <= chosen.memory_bytes
                    });
                    prop_assert_eq!(smaller, None);
                }
                Err(_) => prop_assert!(!standard.iter().any(holds)),
            }
        }
    }
}
