//! One history a process, and nothing in it but what its seed says: random bytes and both
//! clocks of this program come from here, so that what the server draws (uids, keys, the
//! order of its hash maps) and what it reads from clocks repeats with the seed.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// State of the random bytes; 0: the kernel's.
static RANDOM: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds since the simulation began, plus one; 0: none has begun.
static SIMULATED: AtomicU64 = AtomicU64::new(0);
/// What the control plane's clock is wrong by, microseconds.
static SKEW: AtomicI64 = AtomicI64::new(0);

/// When simulations begin: seconds since the Unix epoch, and on the monotonic clock.
const BEGIN: i64 = 1_800_000_000;
const BEGIN_MONOTONIC: i64 = 1_000_000;
const NANOS: u64 = 1_000_000_000;

/// From now on nothing comes from outside.
pub(crate) fn begin(seed: u64) {
    // Any number but 0 will do as the state.
    RANDOM.store(seed.wrapping_mul(2).wrapping_add(1), Ordering::SeqCst);
    at(Duration::ZERO);
}

/// That much simulated time has passed.
pub(crate) fn at(elapsed: Duration) {
    let nanos = u64::try_from(elapsed.as_nanos()).unwrap();
    SIMULATED.store(nanos + 1, Ordering::SeqCst);
}

/// The wall clock that processes read is wrong by that.
pub(crate) fn set_skew(microseconds: i64) {
    SKEW.store(microseconds, Ordering::SeqCst);
}

/// The true time of day, microseconds since the Unix epoch.
pub(crate) fn true_us() -> i64 {
    let nanos = SIMULATED.load(Ordering::SeqCst).saturating_sub(1);
    BEGIN * 1_000_000 + i64::try_from(nanos / 1000).unwrap()
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn next_random() -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let state = RANDOM.fetch_add(STEP, Ordering::SeqCst).wrapping_add(STEP);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Takes the place of the C library's function, for this program only.
///
/// # Safety
/// As getrandom(2): `buffer` has `length` bytes to write to.
// SAFETY: the signature is that of the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if RANDOM.load(Ordering::SeqCst) == 0 {
        // SAFETY: the caller's promise is passed on.
        let read = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return libc::ssize_t::try_from(read).unwrap_or(-1);
    }
    // SAFETY: the caller promises so many bytes to write to.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for part in bytes.chunks_mut(8) {
        let random = next_random().to_le_bytes();
        part.copy_from_slice(&random[..part.len()]);
    }
    libc::ssize_t::try_from(length).unwrap_or(-1)
}

/// Takes the place of the C library's function, for this program only.
///
/// # Safety
/// As clock_gettime(2): `time` can be written to.
// SAFETY: the signature is that of the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let simulated = SIMULATED.load(Ordering::SeqCst);
    let (begin, skew) = match clock {
        libc::CLOCK_REALTIME => (BEGIN, SKEW.load(Ordering::SeqCst)),
        libc::CLOCK_MONOTONIC => (BEGIN_MONOTONIC, 0),
        _ => (0, 0),
    };
    if simulated == 0 || begin == 0 {
        // SAFETY: the caller's promise is passed on.
        let read = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return libc::c_int::try_from(read).unwrap_or(-1);
    }
    let nanos = i64::try_from(simulated - 1).unwrap_or(i64::MAX) + skew * 1000;
    let second = i64::try_from(NANOS).unwrap_or(i64::MAX);
    let now = libc::timespec {
        tv_sec: begin + nanos.div_euclid(second),
        tv_nsec: nanos.rem_euclid(second),
    };
    // SAFETY: the caller promises that it can be written to.
    unsafe { time.write(now) };
    0
}
