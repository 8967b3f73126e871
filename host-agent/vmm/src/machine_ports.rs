//! The machine's own ports (`longship_framed::machine_ports`): what a guest tells its
//! VMM without any device, and learns from it.
//!
//! KVM hands over one string instruction in pieces: input as many bytes as fit into
//! a page, output one element at a time. So a pair that is written to [`UNUSED`] may
//! come as two accesses.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use longship_framed::machine_ports::{
    ALIVE, COMMAND, COUNT, ENTROPY, IS_CLONE, IS_TEMPLATE, KIND, PARK, SIGNATURE, TIME, UNUSED,
};
use longship_framed::now_us;

use crate::memory::{GuestRam, layout};
use crate::notices::{Notice, Notices};
use crate::ports::Request;

/// The first port after the last of these.
pub(crate) const END: u16 = COMMAND + COUNT;

/// Where a machine comes from and goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It boots and runs.
    Ordinary,
    /// It boots and parks.
    Template,
    /// It was parked once.
    Clone,
}

/// The ports, with what they lead to.
pub(crate) struct MachinePorts {
    kind: Kind,
    ram: Arc<GuestRam>,
    notices: Arc<Notices>,
    /// A page frame number that waits for its count.
    half: Mutex<Option<u32>>,
    alive_us: AtomicI64,
    reclaimed: AtomicU64,
    complained: AtomicBool,
}

impl MachinePorts {
    /// The ports of a machine of this kind.
    pub(crate) fn new(kind: Kind, ram: Arc<GuestRam>, notices: Arc<Notices>) -> Self {
        Self {
            kind,
            ram,
            notices,
            half: Mutex::new(None),
            alive_us: AtomicI64::new(0),
            reclaimed: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        }
    }

    /// When the guest said for the first time that it lives, in microseconds since
    /// the Unix epoch; 0: not yet.
    pub(crate) fn alive_us(&self) -> i64 {
        self.alive_us.load(Ordering::Relaxed)
    }

    /// Bytes of RAM that the guest has given back.
    pub(crate) fn reclaimed(&self) -> u64 {
        self.reclaimed.load(Ordering::Relaxed)
    }

    /// The guest writes `data` to `port`.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<Request> {
        match port {
            COMMAND => match <[u8; 4]>::try_from(data).map(u32::from_le_bytes) {
                Ok(ALIVE) => self.alive(),
                Ok(PARK) if self.kind == Kind::Template => return Some(Request::Park),
                _ => {}
            },
            UNUSED => {
                let (words, _) = data.as_chunks::<4>();
                for word in words {
                    self.unused(u32::from_le_bytes(*word));
                }
            }
            _ => {}
        }
        None
    }

    /// The guest reads from `port` into `data`, which is all ones.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) -> Option<Request> {
        match port {
            COMMAND => fill(data, SIGNATURE),
            KIND => fill(
                data,
                match self.kind {
                    Kind::Ordinary => 0,
                    Kind::Template => IS_TEMPLATE,
                    Kind::Clone => IS_CLONE,
                },
            ),
            // A guest must never take something else for random.
            ENTROPY if !fill_randomly(data) => {
                return Some(Request::End("the host has no entropy to give"));
            }
            TIME => {
                let (times, _) = data.as_chunks_mut::<8>();
                for time in times {
                    *time = now_ns().to_le_bytes();
                }
            }
            _ => {}
        }
        None
    }

    fn alive(&self) {
        let now = now_us();
        let first = self
            .alive_us
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.notices.tell(Notice::Alive(now));
        }
    }

    /// Takes one word of a list of pairs.
    fn unused(&self, word: u32) {
        let mut half = self.half.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(frame) = half.take() else {
            *half = Some(word);
            return;
        };
        drop(half);
        let (guest, bytes) = (
            u64::from(frame) * layout::PAGE,
            u64::from(word) * layout::PAGE,
        );
        match self.ram.give_back(guest, bytes) {
            Ok(bytes) => {
                self.reclaimed.fetch_add(bytes, Ordering::Relaxed);
            }
            // It is the guest's own loss, and its chance to fill a log.
            Err(e) if !self.complained.swap(true, Ordering::Relaxed) => {
                tracing::warn!("the guest gives back what it cannot (told once): {e}");
            }
            Err(_) => {}
        }
    }
}

/// Each whole word of `data` becomes `word`.
fn fill(data: &mut [u8], word: u32) {
    let (words, _) = data.as_chunks_mut::<4>();
    words.fill(word.to_le_bytes());
}

fn now_ns() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(elapsed.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Fills all of `data` with random bytes of the host's kernel; says whether it could.
fn fill_randomly(mut data: &mut [u8]) -> bool {
    while !data.is_empty() {
        // SAFETY: the kernel writes at most as many bytes as `data` has.
        let got = unsafe { libc::getrandom(data.as_mut_ptr().cast(), data.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => data = data.get_mut(got..).unwrap_or_default(),
            Err(_) if nix::Error::last() == nix::Error::EINTR => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{Profile, RamPlan};

    const MEMORY: u64 = 64 << 20;
    const WINDOW: u64 = 4 << 20;

    fn ports(kind: Kind) -> MachinePorts {
        let plan = RamPlan {
            bytes: MEMORY,
            profile: Profile::Dense { window: WINDOW },
        };
        let ram = Arc::new(GuestRam::new(plan).unwrap());
        MachinePorts::new(kind, ram, Arc::new(Notices::new().unwrap()))
    }

    fn read<const N: usize>(ports: &MachinePorts, port: u16) -> [u8; N] {
        let mut data = [0xFF; N];
        assert_eq!(ports.read(port, &mut data), None);
        data
    }

    fn give_back(ports: &MachinePorts, words: &[u32]) -> u64 {
        let before = ports.reclaimed();
        for word in words {
            assert_eq!(ports.write(UNUSED, &word.to_le_bytes()), None);
        }
        ports.reclaimed() - before
    }

    #[test]
    fn a_machine_says_what_it_is() {
        for (kind, word) in [
            (Kind::Ordinary, 0),
            (Kind::Template, IS_TEMPLATE),
            (Kind::Clone, IS_CLONE),
        ] {
            let ports = ports(kind);
            assert_eq!(read(&ports, COMMAND), *b"LSHP");
            assert_eq!(u32::from_le_bytes(read(&ports, KIND)), word);
            let park = ports.write(COMMAND, &PARK.to_le_bytes());
            assert_eq!(park.is_some(), kind == Kind::Template);
        }
    }

    #[test]
    fn a_guest_lives_once() {
        let ports = ports(Kind::Ordinary);
        assert_eq!(ports.alive_us(), 0);
        for _ in 0..3 {
            ports.write(COMMAND, &ALIVE.to_le_bytes());
        }
        let heard: Vec<Notice> = ports.notices.take().collect();
        assert_eq!(heard, [Notice::Alive(ports.alive_us())]);
    }

    #[test]
    fn entropy_is_as_long_as_it_is_asked_for_and_never_twice_the_same() {
        let ports = ports(Kind::Clone);
        let (one, other): ([u8; 1024], [u8; 1024]) = (read(&ports, ENTROPY), read(&ports, ENTROPY));
        for (one, other) in one.chunks(16).zip(other.chunks(16)) {
            assert_ne!(one, other);
            assert_ne!(one, [0xFF; 16]);
        }
    }

    #[test]
    fn time_comes_in_eight_bytes() {
        let ports = ports(Kind::Clone);
        let before = now_ns();
        let time = u64::from_le_bytes(read(&ports, TIME));
        assert!((before..=now_ns()).contains(&time));
        assert_eq!(read(&ports, TIME), [0xFF; 4]);
        assert_eq!(read::<12>(&ports, TIME)[8..], [0xFF; 4]);
    }

    #[test]
    fn what_is_given_back_is_counted_and_the_rest_refused() {
        let ports = ports(Kind::Ordinary);
        assert_eq!(give_back(&ports, &[0x1000, 4]), 4 * 4096);
        assert_eq!(give_back(&ports, &[0x1000, 1, 0x2000, 2]), 3 * 4096);
        // Outside, across the end, in the window, everything at once.
        let pages = u32::try_from(MEMORY >> 12).unwrap();
        for pair in [
            [pages, 1],
            [pages - 1, 2],
            [pages - 1, 1],
            [0, u32::MAX],
            [u32::MAX, u32::MAX],
        ] {
            assert_eq!(give_back(&ports, &pair), 0, "{pair:x?}");
        }
        // One slice, as other hypervisors and KVM's fast path hand it over.
        let both = [0x1000_u32, 1, 0x1001, 1].map(u32::to_le_bytes);
        ports.write(UNUSED, both.as_flattened());
        assert_eq!(ports.reclaimed(), 9 * 4096);
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (COMMAND - 2..END + 2, prop::collection::vec(any::<u8>(), 0..40),
                 any::<bool>()), 0..100),
        ) {
            let ports = ports(Kind::Template);
            for (port, mut data, write) in accesses {
                if write {
                    ports.write(port, &data);
                } else {
                    ports.read(port, &mut data);
                }
            }
        }
    }
}
