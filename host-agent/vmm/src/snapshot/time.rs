//! A guest's two clocks, which must go on together: kvmclock, kept by KVM for the
//! whole VM, and the TSC of its processors. A kernel that finds one of them leaping
//! against the other stops trusting it.
//!
//! KVM tells kvmclock with the host's TSC of the same instant, and takes the distance of
//! a guest's TSC from the host's (Documentation/virt/kvm/devices/vcpu.rst,
//! `KVM_VCPU_TSC_OFFSET`): with both, nothing depends on how long a call takes. Where
//! it cannot, values are set, and the clocks differ by what passes between two calls.

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clock_data,
    kvm_device_attr, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::snapshot::SnapshotError;
use crate::snapshot::format::{FormatError, Reader, Writer};
use crate::snapshot::processor::{TSC, read_msrs};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xE1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xE2, kvm_device_attr);

/// A clone's TSC may be slower or faster than the template's by one part in this many
/// (250 ppm, KVM's own default) before its rate is to be changed.
const TOLERANCE: u32 = 4000;
/// How far from every other value a TSC is set first: KVM takes values that are
/// within a second of each other for one and the same.
const FAR: u64 = 1 << 41;

/// Both clocks, at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimeState {
    /// Rate and value of the TSC, the same on all processors.
    tsc_khz: u32,
    tsc: u64,
    /// Nanoseconds of kvmclock.
    clock: u64,
}

/// How the processors get their TSC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tsc {
    /// They have it.
    Set,
    /// By this value, with their other MSRs.
    Value(u64),
}

impl Tsc {
    /// Values to be set, in order, for the first processor or another one.
    pub(super) fn values(self, first: bool) -> impl Iterator<Item = u64> {
        // A value near what the counter of a new VM has now would be ignored: kernels
        // before 6.7 take it for the same one. So the first processor goes far away and
        // comes back; the others then join it.
        let values = match self {
            Self::Set => [None, None],
            Self::Value(tsc) => [first.then_some(tsc.wrapping_add(FAR)), Some(tsc)],
        };
        values.into_iter().flatten()
    }
}

impl TimeState {
    /// Reads both from a machine that stands still.
    pub(super) fn capture(vm: &VmFd, vcpus: &[VcpuFd]) -> Result<Self, SnapshotError> {
        let failed = |what| move |source| SnapshotError::Capture { what, source };
        let now = vm.get_clock().map_err(failed("its clock"))?;
        let (mut tsc, mut tsc_khz) = (0, 0);
        for vcpu in vcpus {
            tsc_khz = vcpu.get_tsc_khz().map_err(failed("its TSC's rate"))?;
            let found = match offset(vcpu) {
                Some(offset) if now.flags & KVM_CLOCK_HOST_TSC != 0 => {
                    now.host_tsc.wrapping_add(offset)
                }
                _ => read_msrs(vcpu, &[TSC])
                    .map_err(failed("its TSC"))?
                    .first()
                    .map_or(0, |entry: &kvm_msr_entry| entry.data),
            };
            // Not before what any of them has seen.
            tsc = found.max(tsc);
        }
        Ok(Self {
            tsc_khz,
            tsc,
            clock: now.clock,
        })
    }

    /// Lets kvmclock go on in `vm`, and the TSC of its processors, which are new.
    ///
    /// The clocks go on where they stood: what has passed since is no time in which the
    /// guest could have missed anything, and a leap would let all of its timers expire
    /// at once. Its time of day is another matter: it asks for that.
    pub(super) fn apply(&self, vm: &VmFd, vcpus: &[VcpuFd]) -> Result<Tsc, SnapshotError> {
        let failed = |source| SnapshotError::Apply {
            what: "its clock",
            source,
        };
        let scaled = self.apply_rate(vcpus)?;
        vm.set_clock(&kvm_clock_data {
            clock: self.clock,
            ..kvm_clock_data::default()
        })
        .map_err(failed)?;
        if !scaled {
            let now = vm.get_clock().map_err(failed)?;
            let exact = now.flags & KVM_CLOCK_HOST_TSC != 0;
            if exact && vcpus.iter().all(|vcpu| set_offset(vcpu, self.offset(&now))) {
                return Ok(Tsc::Set);
            }
        }
        Ok(Tsc::Value(self.tsc))
    }

    /// How far a guest's TSC is before the host's, as two's complement, if it goes on
    /// together with the clock that says `now`.
    fn offset(&self, now: &kvm_clock_data) -> u64 {
        let passed = u128::from(now.clock.saturating_sub(self.clock));
        let cycles = passed * u128::from(self.tsc_khz) / 1_000_000;
        let tsc = self
            .tsc
            .wrapping_add(u64::try_from(cycles).unwrap_or(u64::MAX));
        tsc.wrapping_sub(now.host_tsc)
    }

    /// Makes the TSCs count as the template's did; says whether that is another rate
    /// than the host's.
    fn apply_rate(&self, vcpus: &[VcpuFd]) -> Result<bool, SnapshotError> {
        // A KVM that cannot tell cannot be told either.
        let Some(Ok(host)) = vcpus.first().map(VcpuFd::get_tsc_khz) else {
            return Ok(false);
        };
        if host.abs_diff(self.tsc_khz) <= self.tsc_khz / TOLERANCE {
            return Ok(false);
        }
        for vcpu in vcpus {
            vcpu.set_tsc_khz(self.tsc_khz)
                .map_err(|source| SnapshotError::TscRate {
                    template: self.tsc_khz,
                    host,
                    source,
                })?;
        }
        Ok(true)
    }

    /// Adds it to a body.
    pub(super) fn write(&self, to: &mut Writer) {
        to.put(&self.tsc_khz);
        to.put(&self.tsc);
        to.put(&self.clock);
    }

    /// Takes it from a body.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            tsc_khz: from.take("the TSC's rate")?,
            tsc: from.take("the TSC")?,
            clock: from.take("the clock")?,
        })
    }
}

/// How far the TSC of `vcpu` is before the host's, where KVM tells (since Linux 5.16).
fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attribute = attribute((&raw mut offset).expose_provenance() as u64);
    // SAFETY: the ioctl reads the attribute and writes eight bytes to where it says:
    // `offset`, which lives.
    let done = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    (done == 0).then_some(offset)
}

/// Sets what [`offset`] tells; false where KVM does not take it.
fn set_offset(vcpu: &VcpuFd, offset: u64) -> bool {
    let attribute = attribute((&raw const offset).expose_provenance() as u64);
    // SAFETY: the ioctl reads the attribute and eight bytes from where it says:
    // `offset`, which lives.
    unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) == 0 }
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_goes_on_with_the_clock() {
        let state = TimeState {
            tsc_khz: 2_500_000,
            tsc: 7_000_000_000,
            clock: 2_000_000_000,
        };
        // 40 µs later: 100,000 cycles. The host has counted more than the guest, or less.
        for host_tsc in [1 << 50, 5] {
            let now = kvm_clock_data {
                clock: state.clock + 40_000,
                host_tsc,
                ..kvm_clock_data::default()
            };
            let tsc = host_tsc.wrapping_add(state.offset(&now));
            assert_eq!(tsc, 7_000_100_000);
        }
    }

    #[test]
    fn the_first_processor_comes_back_from_afar() {
        let values = |tsc: Tsc, first| tsc.values(first).collect::<Vec<u64>>();
        assert_eq!(values(Tsc::Value(5), true), [FAR + 5, 5]);
        assert_eq!(values(Tsc::Value(5), false), [5]);
        assert!(values(Tsc::Set, true).is_empty());
    }
}
