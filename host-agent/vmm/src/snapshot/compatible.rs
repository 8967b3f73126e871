//! Whether this host's processor can go on with what another one began.
//!
//! What counts is what KVM can give to guests here: [`kvm_ioctls::Kvm`]'s supported
//! CPUID, held against the CPUID that the template's guest has seen.

use kvm_bindings::kvm_cpuid_entry2;

/// Why it cannot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Incompatible {
    #[error("it is from a processor of {template:?}, this one is of {host:?}")]
    Vendor { template: String, host: String },
    #[error(
        "it is from processor model {template:#x} (family, model, stepping), this one is {host:#x}"
    )]
    Model { template: u32, host: u32 },
    #[error(
        "its guest uses features that this host lacks: CPUID {leaf:#x}.{index} {register} {bits:#x}"
    )]
    Features {
        leaf: u32,
        index: u32,
        register: &'static str,
        bits: u32,
    },
    #[error("its guest sets timers to times of the TSC, which KVM here cannot do")]
    TscDeadline,
    #[error("it tells no CPUID leaf {0:#x}")]
    Missing(u32),
}

/// CPUID leaf 1, ECX: set by the VMM or, when the guest switches XSAVE on, by KVM.
const OWN_FEATURES: u32 = TSC_DEADLINE | 1 << 27 | 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1, EDX: the APIC, which a guest can switch off, and hyper-threading,
/// which tells of the machine's topology.
const OWN_FEATURES_EDX: u32 = 1 << 9 | 1 << 28;
/// CPUID leaf 7, ECX: set when the guest switches protection keys on.
const OWN_EXTENDED: u32 = 1 << 4;

const NONE: u32 = u32::MAX;

/// Leaf, index, and for EAX, EBX, ECX, EDX the bits that are no features: identity,
/// numbers, and what is this machine's own doing.
const FEATURE_LEAVES: &[(u32, u32, [u32; 4])] = &[
    (1, 0, [NONE, NONE, OWN_FEATURES, OWN_FEATURES_EDX]),
    (7, 0, [NONE, 0, OWN_EXTENDED, 0]),
    (7, 1, [0, 0, NONE, 0]),
    (7, 2, [NONE, NONE, NONE, 0]),
    // Which components XSAVE knows, and its ways.
    (0xD, 0, [0, NONE, NONE, 0]),
    (0xD, 1, [0, NONE, 0, 0]),
    // What KVM offers to guests.
    (0x4000_0001, 0, [0, NONE, NONE, NONE]),
    (0x8000_0001, 0, [NONE, NONE, 0, 0]),
    (0x8000_0007, 0, [NONE, NONE, NONE, 0]),
    (0x8000_0008, 0, [NONE, 0, NONE, NONE]),
    (0x8000_000A, 0, [NONE, NONE, NONE, 0]),
    (0x8000_0021, 0, [0, NONE, NONE, NONE]),
];

/// Checks that a host which supports `host`, and timers set to times of the TSC where
/// `tsc_deadline`, can run what has seen `template`.
pub(super) fn check(
    template: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
    tsc_deadline: bool,
) -> Result<(), Incompatible> {
    let (theirs, ours) = (vendor(template)?, vendor(host)?);
    if theirs != ours {
        return Err(Incompatible::Vendor {
            template: theirs,
            host: ours,
        });
    }
    let model = |entries| {
        find(entries, 1, 0)
            .map(|entry| entry.eax)
            .ok_or(Incompatible::Missing(1))
    };
    let (theirs, ours) = (model(template)?, model(host)?);
    if theirs != ours {
        return Err(Incompatible::Model {
            template: theirs,
            host: ours,
        });
    }
    // KVM tells of this one by itself.
    let timer = find(template, 1, 0).is_some_and(|entry| entry.ecx & TSC_DEADLINE != 0);
    if timer && !tsc_deadline {
        return Err(Incompatible::TscDeadline);
    }
    for (leaf, index, ignored) in FEATURE_LEAVES {
        let Some(theirs) = find(template, *leaf, *index) else {
            continue;
        };
        let ours = find(host, *leaf, *index).copied().unwrap_or_default();
        let registers = [
            ("EAX", theirs.eax, ours.eax),
            ("EBX", theirs.ebx, ours.ebx),
            ("ECX", theirs.ecx, ours.ecx),
            ("EDX", theirs.edx, ours.edx),
        ];
        for ((register, theirs, ours), ignored) in registers.into_iter().zip(ignored) {
            let bits = theirs & !ours & !ignored;
            if bits != 0 {
                return Err(Incompatible::Features {
                    leaf: *leaf,
                    index: *index,
                    register,
                    bits,
                });
            }
        }
    }
    Ok(())
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries
        .iter()
        .find(|entry| entry.function == leaf && entry.index == index)
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> Result<String, Incompatible> {
    let entry = find(entries, 0, 0).ok_or(Incompatible::Missing(0))?;
    let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
    Ok(String::from_utf8_lossy(bytes.as_flattened()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// "AuthenticAMD", a model, a few features.
    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65]),
            leaf(1, 0, [0x00A1_0F11, 0x0101, 0x8000_0201, 0x0789]),
            leaf(7, 0, [1, 0x0200, 0, 0]),
            leaf(7, 1, [0x20, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 0x21, 0x2000_0800]),
        ]
    }

    #[test]
    fn the_same_processor_and_one_with_more_features_will_do() {
        assert_eq!(check(&host(), &host(), false), Ok(()));
        let mut more = host();
        more[2].ebx |= 1 << 16;
        assert_eq!(check(&host(), &more, false), Ok(()));
        // OSXSAVE and hyper-threading are not the host's.
        let mut running = host();
        running[1].ecx |= 1 << 27;
        running[1].edx |= 1 << 28;
        assert_eq!(check(&running, &host(), true), Ok(()));
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        let mut intel = host();
        intel[0] = leaf(0, 0, [0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]);
        assert_eq!(
            check(&host(), &intel, true).unwrap_err().to_string(),
            "it is from a processor of \"AuthenticAMD\", this one is of \"GenuineIntel\""
        );
        let mut stepping = host();
        stepping[1].eax += 1;
        assert!(matches!(
            check(&host(), &stepping, true),
            Err(Incompatible::Model { .. })
        ));
        let mut less = host();
        less[3].eax = 0;
        assert_eq!(
            check(&host(), &less, true).unwrap_err().to_string(),
            "its guest uses features that this host lacks: CPUID 0x7.1 EAX 0x20"
        );
        less.remove(3);
        assert!(check(&host(), &less, true).is_err());
        assert_eq!(check(&[], &host(), true), Err(Incompatible::Missing(0)));
        let mut timer = host();
        timer[1].ecx |= TSC_DEADLINE;
        assert_eq!(check(&timer, &host(), true), Ok(()));
        assert_eq!(
            check(&timer, &host(), false),
            Err(Incompatible::TscDeadline)
        );
    }
}
