//! What a guest's processors say of themselves (Intel SDM volume 2, CPUID; AMD
//! APM volume 3, appendix E).
//!
//! It is what KVM supports, with this machine's topology: one package, one
//! thread a core, APIC ids from 0 upwards.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const FEATURES: u32 = 1;
const CACHES_INTEL: u32 = 4;
const POWER: u32 = 6;
const TOPOLOGY: u32 = 0xB;
const TOPOLOGY_V2: u32 = 0x1F;
const CORES_AMD: u32 = 0x8000_0008;
const CACHES_AMD: u32 = 0x8000_001D;
const IDS_AMD: u32 = 0x8000_001E;

/// Bits of [`FEATURES`] in ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Bit of [`FEATURES`] in EDX: there may be more than one logical processor.
const MANY: u32 = 1 << 28;
/// Bit of [`POWER`] in EAX: the APIC timer never stops.
const ARAT: u32 = 1 << 2;

/// The place of one processor among all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topology {
    /// APIC id.
    pub(crate) id: u8,
    /// Number of processors.
    pub(crate) count: u8,
}

impl Topology {
    /// Bits of an APIC id that tell processors apart.
    fn id_bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    /// APIC ids set aside for the package.
    fn ids(self) -> u32 {
        1 << self.id_bits()
    }
}

/// The width of physical addresses in bits.
pub(crate) fn physical_address_bits(supported: &CpuId) -> u32 {
    supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == CORES_AMD)
        .map_or(36, |entry| entry.eax & 0xFF)
}

/// CPUID of the processor at `place`, from what KVM supports. The timer of its
/// APIC can be set to a time of the TSC where `tsc_deadline`.
pub(crate) fn for_processor(
    supported: &CpuId,
    place: Topology,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let id = u32::from(place.id);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            FEATURES => {
                entry.ebx = (entry.ebx & 0xFFFF) | (place.ids() << 16) | (id << 24);
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
                set(&mut entry.edx, MANY, place.count > 1);
            }
            CACHES_INTEL => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { place.ids() - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3FFF) | (sharing << 14) | ((place.ids() - 1) << 26);
            }
            POWER => entry.eax |= ARAT,
            CORES_AMD => {
                entry.ecx =
                    (entry.ecx & !0xF0FF) | (u32::from(place.count) - 1) | (place.id_bits() << 12);
            }
            CACHES_AMD => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { place.ids() - 1 } else { 0 };
                entry.eax = (entry.eax & !(0xFFF << 14)) | (sharing << 14);
            }
            IDS_AMD => {
                entry.eax = id;
                entry.ebx = id & 0xFF;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    let last_basic = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    for leaf in [TOPOLOGY, TOPOLOGY_V2] {
        if leaf <= last_basic {
            entries.extend(topology_leaf(leaf, place));
        }
    }
    entries
}

/// One thread a core; all cores in the package; the end.
fn topology_leaf(leaf: u32, place: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: (kind << 8) | index,
        edx: u32::from(place.id),
        padding: [0; 3],
    };
    [
        level(0, 0, 1, 1),
        level(1, place.id_bits(), u32::from(place.count), 2),
        level(2, 0, 0, 0),
    ]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0xD),
            leaf(FEATURES, 0),
            leaf(TOPOLOGY, 7),
            leaf(CORES_AMD, 48),
            leaf(IDS_AMD, 99),
        ])
        .unwrap()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries
            .iter()
            .filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    #[test]
    fn every_processor_has_its_own_id_everywhere() {
        for id in 0..6 {
            let entries = for_processor(&supported(), Topology { id, count: 6 }, true);
            let features = find(&entries, FEATURES, 0);
            assert_eq!(features.ebx >> 24, u32::from(id));
            assert_eq!((features.ebx >> 16) & 0xFF, 8);
            assert_ne!(features.edx & MANY, 0);
            assert_ne!(features.ecx & TSC_DEADLINE, 0);
            let cores = find(&entries, TOPOLOGY, 1);
            assert_eq!((cores.eax, cores.ebx, cores.edx), (3, 6, u32::from(id)));
            assert_eq!(find(&entries, CORES_AMD, 0).ecx, 0x3005);
            assert_eq!(find(&entries, IDS_AMD, 0).eax, u32::from(id));
            // Beyond the last basic leaf.
            assert!(!entries.iter().any(|e| e.function == TOPOLOGY_V2));
        }
        assert_eq!(physical_address_bits(&supported()), 48);
    }

    #[test]
    fn one_processor_is_alone() {
        let entries = for_processor(&supported(), Topology { id: 0, count: 1 }, false);
        let features = find(&entries, FEATURES, 0);
        assert_eq!(features.edx & MANY, 0);
        assert_eq!(features.ecx, HYPERVISOR);
        assert_eq!(find(&entries, TOPOLOGY, 1).eax, 0);
    }
}
