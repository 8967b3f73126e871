//! How fast guest code runs in ring 0.
//!
//! Some nested KVMs run guest user code natively but interpret guest kernel code,
//! a thousand times slower and not completely: a Linux guest never gets up there.
//! They look like any other KVM until one counts instructions. So a guest of six
//! bytes counts in ring 0 for a few milliseconds.

use std::io;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::check::Check;

/// From how many loop instructions a second on ring 0 counts as native. What
/// interprets it reaches some millions, an emulated processor with
/// virtualization hundreds of millions (less on a busy machine), a real one
/// thousands of millions.
pub const NATIVE_RATE: f64 = 50e6;

/// How long the guest counts in one run.
const RUN: Duration = Duration::from_millis(5);

/// The first native run counts, or the best of so many, since any other load of the
/// machine only makes it slower.
const RUNS_MAX: u32 = 20;

/// 32-bit protected mode:
/// ```text
/// 0: inc eax
/// 1: jnz 0
/// 3: inc edx
/// 4: jmp 0
/// ```
/// so that edx:eax counts the rounds, of two instructions each.
const COUNTING: [u8; 6] = [0x40, 0x75, 0xfd, 0x42, 0xeb, 0xfa];

const PAGE: usize = 4096;

/// Why the guest could not count.
#[derive(Debug, thiserror::Error)]
pub enum Ring0Error {
    /// KVM refused a step.
    #[error("{step}: {error}")]
    Kvm {
        /// What was being done.
        step: &'static str,
        /// What KVM said.
        error: io::Error,
    },
    /// The guest stopped by itself, which its loop never does.
    #[error("the counting guest stopped: {0}")]
    Stopped(String),
}

/// What the guest counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ring0Speed {
    /// Instructions that the guest executed in its best run.
    pub instructions: u64,
    /// How long that run took.
    pub elapsed: Duration,
}

impl Ring0Speed {
    /// Instructions a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate of two digits is enough")]
        let instructions = self.instructions as f64;
        instructions / self.elapsed.as_secs_f64()
    }

    /// Whether a Linux guest can run at that speed.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.rate() >= NATIVE_RATE
    }
}

/// Lets a guest count in ring 0 for 5 ms, and again, up to 20 times, until it does so at
/// native speed.
///
/// # Errors
/// [`Ring0Error`] where KVM cannot even do that.
pub fn measure_ring0(kvm: &Kvm) -> Result<Ring0Speed, Ring0Error> {
    let mut best: Option<Ring0Speed> = None;
    for _ in 0..RUNS_MAX {
        let speed = count_once(kvm)?;
        if speed.is_native() {
            return Ok(speed);
        }
        if best.is_none_or(|best| speed.rate() > best.rate()) {
            best = Some(speed);
        }
    }
    best.ok_or_else(|| Ring0Error::Stopped("it never ran".to_owned()))
}

pub(crate) fn check_speed(kvm: &Kvm) -> Check {
    const NAME: &str = "kvm-speed";
    match measure_ring0(kvm) {
        Ok(speed) => {
            let rate = format!("guest ring 0 runs {}", per_second(speed.rate()));
            if speed.is_native() {
                Check::ok(NAME, rate)
            } else {
                Check::fail(
                    NAME,
                    format!("{rate}: this KVM interprets guest kernels"),
                    "use a host whose KVM has hardware support (not a nested one without), or the \
                     testbed: longship-testbed run -- COMMAND",
                )
            }
        }
        Err(error) => Check::fail(
            NAME,
            error.to_string(),
            "this KVM cannot run the smallest guest; use the testbed: longship-testbed run -- \
             COMMAND",
        ),
    }
}

fn per_second(rate: f64) -> String {
    if rate >= 1e9 {
        format!("{:.1} G instructions/s", rate / 1e9)
    } else {
        format!("{:.1} M instructions/s", rate / 1e6)
    }
}

/// One page of zeroed memory for the guest; unmapped when dropped.
struct Page(NonNull<u8>);

impl Page {
    fn new() -> Result<Self, Ring0Error> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice
        // touches no memory that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Ring0Error::Kvm {
                step: "map the guest's page",
                error: io::Error::last_os_error(),
            });
        }
        NonNull::new(address.cast())
            .map(Self)
            .ok_or_else(|| Ring0Error::Stopped("its page is at address 0".to_owned()))
    }

    fn write(&mut self, bytes: &[u8; COUNTING.len()]) {
        // SAFETY: the page is ours, mapped writable and larger than the code; no
        // guest runs yet, so nobody else touches it.
        unsafe {
            self.0
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and PAGE long; its VM is gone before it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

fn count_once(kvm: &Kvm) -> Result<Ring0Speed, Ring0Error> {
    // Declared before the VM, so dropped after it.
    let mut page = Page::new()?;
    page.write(&COUNTING);
    let vm = kvm.create_vm().map_err(kvm_error("create a VM"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE as u64,
        userspace_addr: page.0.as_ptr() as u64,
    };
    // SAFETY: the page stays mapped for longer than the VM lives, and only this
    // VM uses it from now on.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("give the VM memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(kvm_error("create a vCPU"))?;
    enter_protected_mode(&vcpu)?;

    let started = Instant::now();
    run_for(&mut vcpu, RUN)?;
    let elapsed = started.elapsed();
    let registers = vcpu.get_regs().map_err(kvm_error("read the registers"))?;
    let rounds = ((registers.rdx & 0xffff_ffff) << 32) | (registers.rax & 0xffff_ffff);
    Ok(Ring0Speed {
        instructions: rounds.saturating_mul(2),
        elapsed,
    })
}

/// Flat 32-bit segments at ring 0, interrupts off, at address 0. The processor
/// keeps segments in hidden registers, so that no descriptor table is needed.
fn enter_protected_mode(vcpu: &VcpuFd) -> Result<(), Ring0Error> {
    let mut system = vcpu
        .get_sregs()
        .map_err(kvm_error("read the system registers"))?;
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x08,
        type_: 0b1011,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 0b0011,
        ..code
    };
    system.cs = code;
    for segment in [
        &mut system.ds,
        &mut system.es,
        &mut system.fs,
        &mut system.gs,
        &mut system.ss,
    ] {
        *segment = data;
    }
    system.cr0 |= 1;
    vcpu.set_sregs(&system)
        .map_err(kvm_error("set the system registers"))?;
    let registers = kvm_bindings::kvm_regs {
        // Bit 1 is always set (Intel SDM volume 1, 3.4.3).
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&registers)
        .map_err(kvm_error("set the registers"))
}

/// Runs the guest for `time`. A second thread then interrupts it by a signal, and
/// again every millisecond, since one that comes before the guest has been entered
/// is lost.
fn run_for(vcpu: &mut VcpuFd, time: Duration) -> Result<(), Ring0Error> {
    let kick = install_kick();
    let done = AtomicBool::new(false);
    // SAFETY: names the calling thread.
    let guest_thread = unsafe { libc::pthread_self() };
    std::thread::scope(|scope| {
        let kicker = scope.spawn(|| {
            std::thread::sleep(time);
            while !done.load(Ordering::Acquire) {
                // SAFETY: the thread waits for this one, so it still exists, and the
                // signal has a handler that does nothing.
                unsafe { libc::pthread_kill(guest_thread, kick) };
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let outcome = match vcpu.run() {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(kvm_error("run the vCPU")(error)),
            Ok(VcpuExit::Intr) => Ok(()),
            Ok(exit) => Err(Ring0Error::Stopped(format!("{exit:?}"))),
        };
        done.store(true, Ordering::Release);
        if kicker.join().is_err() {
            return Err(Ring0Error::Stopped("its timer failed".to_owned()));
        }
        outcome
    })
}

/// A real-time signal with a handler that does nothing but interrupt.
fn install_kick() -> libc::c_int {
    extern "C" fn nothing(_: libc::c_int) {}
    static INSTALLED: Once = Once::new();
    let kick = libc::SIGRTMIN() + 1;
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one: no flags, empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler is async-signal-safe, as it does nothing. Without
        // SA_RESTART the signal ends KVM_RUN.
        unsafe { libc::sigaction(kick, &raw const action, std::ptr::null_mut()) };
    });
    kick
}

fn kvm_error(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Ring0Error {
    move |error| Ring0Error::Kvm {
        step,
        error: io::Error::from_raw_os_error(error.errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_native_is_a_rate_and_not_a_time() {
        let at = |instructions, ms| Ring0Speed {
            instructions,
            elapsed: Duration::from_millis(ms),
        };
        assert!(!at(7_000, 5).is_native(), "interpreted: 1.4 M/s");
        assert!(at(1_750_000, 5).is_native(), "emulated: 350 M/s");
        assert!(at(18_500_000, 5).is_native(), "real: 3.7 G/s");
        assert!(!at(18_500_000, 5000).is_native());
    }

    #[test]
    fn rates_are_written_for_people() {
        assert_eq!(per_second(1.4e6), "1.4 M instructions/s");
        assert_eq!(per_second(3.7e9), "3.7 G instructions/s");
    }

    /// Runs a real guest wherever there is a KVM at all; where there is none the
    /// answer has to be a refusal that says so.
    #[test]
    fn the_guest_counts_and_comes_back_in_time() {
        let device = std::path::Path::new("/dev/kvm");
        let kvm = match crate::open_kvm(device) {
            Ok(kvm) => kvm,
            Err(error) => {
                assert!(error.to_string().contains("/dev/kvm"), "{error}");
                return;
            }
        };
        let started = Instant::now();
        let speed = measure_ring0(&kvm).unwrap();
        assert!(speed.instructions > 100, "{speed:?}");
        assert!(speed.elapsed >= RUN, "{speed:?}");
        let all = started.elapsed();
        assert!(all < Duration::from_secs(10), "{all:?}");
    }
}
