//! What a machine's threads tell the one that speaks with the agent.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::vcpu::Ending;

/// One thing that has happened in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The guest's init did its first act, at this time in microseconds since the
    /// Unix epoch.
    Alive(i64),
    /// The guest wants to stand still and be cloned.
    Parking,
    /// A processor has ended, and so the machine.
    Ended(Ending),
}

/// Things that have happened and that nobody has heard of yet: at most one of each
/// kind, so that no guest can make this grow.
#[derive(Debug, Default)]
struct Pending {
    alive: Option<i64>,
    parking: bool,
    ending: Option<Ending>,
}

/// Where they are told and heard.
pub(crate) struct Notices {
    event: EventFd,
    pending: Mutex<Pending>,
}

impl Notices {
    /// Nothing has happened yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            pending: Mutex::default(),
        })
    }

    /// Readable while there is something to [`Notices::take`].
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Tells of something. Of several ends, the first counts.
    pub(crate) fn tell(&self, notice: Notice) {
        let mut pending = self.lock();
        match notice {
            Notice::Alive(time_us) => pending.alive = Some(time_us),
            Notice::Parking => pending.parking = true,
            Notice::Ended(ending) => {
                pending.ending.get_or_insert(ending);
            }
        }
        // It fails only where it would overflow, and then it is readable all the same.
        let _ = self.event.write(1);
    }

    /// What has happened since the last call, in the order in which it can have.
    pub(crate) fn take(&self) -> impl Iterator<Item = Notice> + use<> {
        let mut pending = self.lock();
        let _ = self.event.read();
        let Pending {
            alive,
            parking,
            ending,
        } = std::mem::take(&mut *pending);
        [
            alive.map(Notice::Alive),
            parking.then_some(Notice::Parking),
            ending.map(Notice::Ended),
        ]
        .into_iter()
        .flatten()
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_heard_once_and_the_first_end_counts() {
        let notices = Notices::new().unwrap();
        assert_eq!(notices.take().count(), 0);
        notices.tell(Notice::Ended(Ending::Reset));
        notices.tell(Notice::Ended(Ending::Fault));
        notices.tell(Notice::Parking);
        notices.tell(Notice::Alive(7));
        let heard: Vec<Notice> = notices.take().collect();
        assert_eq!(
            heard,
            [
                Notice::Alive(7),
                Notice::Parking,
                Notice::Ended(Ending::Reset)
            ]
        );
        assert_eq!(notices.take().count(), 0);
        assert!(notices.event().read().is_err(), "still readable");
    }
}
