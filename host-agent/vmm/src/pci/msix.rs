//! MSI-X (PCI 3.0, 6.8.2): a table of messages, each raised by an eventfd.
//!
//! Whoever raises a vector writes its eventfd. While the vector can be delivered,
//! KVM waits on that eventfd; while it is masked, nobody does, so the eventfd
//! itself holds the pending interrupt, and KVM finds it when it is unmasked.

use std::io;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// Message control: the function's vectors are on; all of them are masked.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// Where an MSI goes and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Message {
    /// Address, which names the processor.
    pub(crate) address: u64,
    /// Data, which names its vector.
    pub(crate) data: u32,
}

/// Something that turns eventfds into interrupts. KVM, but in tests.
pub(crate) trait MessageRoutes: Send + Sync {
    /// A number for one more route.
    fn allocate(&self) -> io::Result<u32>;
    /// From now on, `event` sends `message`; also if it was written before.
    fn connect(&self, route: u32, event: &EventFd, message: Message) -> io::Result<()>;
    /// From now on, `event` keeps what is written to it.
    fn disconnect(&self, route: u32, event: &EventFd);
}

struct Vector {
    message: Message,
    masked: bool,
    event: EventFd,
    route: u32,
    connected: Option<Message>,
}

/// The vectors of one function.
pub(crate) struct Msix {
    vectors: Vec<Vector>,
    control: u16,
    routes: Arc<dyn MessageRoutes>,
}

impl Msix {
    /// `count` vectors, all masked, switched off.
    pub(crate) fn new(count: u16, routes: Arc<dyn MessageRoutes>) -> io::Result<Self> {
        let vectors = (0..count)
            .map(|_| {
                Ok(Vector {
                    message: Message::default(),
                    masked: true,
                    event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
                    route: routes.allocate()?,
                    connected: None,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            vectors,
            control: 0,
            routes,
        })
    }

    /// Number of vectors.
    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// What raises vector `index`.
    pub(crate) fn event(&self, index: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(index)).map(|v| &v.event)
    }

    /// The guest has written message control.
    pub(crate) fn set_control(&mut self, control: u16) {
        self.control = control;
        for index in 0..self.vectors.len() {
            self.update(index);
        }
    }

    /// Forgets interrupts that are held.
    pub(crate) fn drain(&self) {
        for vector in self.vectors.iter().filter(|v| v.connected.is_none()) {
            let _ = vector.event.read();
        }
    }

    /// The guest reads the table.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((index, at)) = self.place(offset, data.len()) else {
            return;
        };
        if let Some(vector) = self.vectors.get(index) {
            let bytes = entry(vector);
            for (to, from) in data.iter_mut().zip(bytes.iter().skip(at)) {
                *to = *from;
            }
        }
    }

    /// The guest writes the table.
    pub(crate) fn write_table(&mut self, offset: u64, data: &[u8]) {
        let Some((index, at)) = self.place(offset, data.len()) else {
            return;
        };
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let mut bytes = entry(vector);
        for (to, from) in bytes.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
        let (address, rest) = bytes.split_at(8);
        let (message_data, control) = rest.split_at(4);
        vector.message = Message {
            address: address.try_into().map_or(0, u64::from_le_bytes),
            data: message_data.try_into().map_or(0, u32::from_le_bytes),
        };
        vector.masked = control.first().is_some_and(|byte| byte & 1 != 0);
        self.update(index);
    }

    /// The guest reads the pending bits: one a vector, eight bytes at a time.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (offset..).zip(data) {
            let first = usize::try_from(index.saturating_mul(8)).unwrap_or(usize::MAX);
            *byte = (0..8)
                .filter(|bit| self.is_pending(first.saturating_add(*bit)))
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// Entry and byte of an access of 4 or 8 aligned bytes; others do nothing.
    fn place(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let index = usize::try_from(offset / ENTRY).ok()?;
        let at = usize::try_from(offset % ENTRY).ok()?;
        let natural = matches!(len, 4 | 8) && at % len == 0;
        (natural && index < self.vectors.len()).then_some((index, at))
    }

    fn is_pending(&self, index: usize) -> bool {
        self.vectors
            .get(index)
            .is_some_and(|v| v.connected.is_none() && is_raised(&v.event))
    }

    /// Connects or disconnects a vector so that it is as the guest has set it.
    fn update(&mut self, index: usize) {
        let on = self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let wanted = (on && !vector.masked).then_some(vector.message);
        if wanted == vector.connected {
            return;
        }
        if vector.connected.take().is_some() {
            self.routes.disconnect(vector.route, &vector.event);
        }
        if let Some(message) = wanted {
            match self.routes.connect(vector.route, &vector.event, message) {
                Ok(()) => vector.connected = Some(message),
                // The guest's own nonsense, or it has used up KVM's routes.
                Err(e) => tracing::debug!("vector {index} to {message:x?}: {e}"),
            }
        }
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        self.set_control(0);
    }
}

/// A table entry, as the guest reads it.
fn entry(vector: &Vector) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&vector.message.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&vector.message.data.to_le_bytes());
    bytes[12] = u8::from(vector.masked);
    bytes
}

/// Whether an eventfd has been written and not been read since.
fn is_raised(event: &EventFd) -> bool {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// Routes that note what is connected, and refuse a double connect.
    #[derive(Default)]
    pub(crate) struct NotedRoutes {
        pub(crate) connected: Mutex<BTreeMap<u32, Message>>,
        next: Mutex<u32>,
    }

    impl MessageRoutes for NotedRoutes {
        fn allocate(&self) -> io::Result<u32> {
            let mut next = self.next.lock().unwrap();
            *next += 1;
            Ok(*next)
        }

        fn connect(&self, route: u32, _: &EventFd, message: Message) -> io::Result<()> {
            let old = self.connected.lock().unwrap().insert(route, message);
            assert_eq!(old, None, "route {route} connected twice");
            Ok(())
        }

        fn disconnect(&self, route: u32, _: &EventFd) {
            let old = self.connected.lock().unwrap().remove(&route);
            assert!(old.is_some(), "route {route} was not connected");
        }
    }

    fn msix(count: u16) -> (Msix, Arc<NotedRoutes>) {
        let routes = Arc::new(NotedRoutes::default());
        (
            Msix::new(count, Arc::<NotedRoutes>::clone(&routes)).unwrap(),
            routes,
        )
    }

    fn set(msix: &mut Msix, vector: u64, message: Message) {
        msix.write_table(vector * 16, &message.address.to_le_bytes());
        msix.write_table(vector * 16 + 8, &message.data.to_le_bytes());
    }

    const MESSAGE: Message = Message {
        address: 0xFEE0_1000,
        data: 0x41,
    };

    #[test]
    fn a_vector_is_connected_while_it_is_on_and_not_masked() {
        let (mut msix, routes) = msix(2);
        let connected = || {
            routes
                .connected
                .lock()
                .unwrap()
                .values()
                .copied()
                .collect::<Vec<_>>()
        };
        set(&mut msix, 1, MESSAGE);
        msix.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(connected(), []);
        msix.set_control(ENABLE);
        assert_eq!(connected(), [MESSAGE]);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(connected(), []);
        msix.set_control(ENABLE);
        let moved = Message {
            data: 0x42,
            ..MESSAGE
        };
        set(&mut msix, 1, moved);
        assert_eq!(connected(), [moved]);
        msix.write_table(28, &1_u32.to_le_bytes());
        assert_eq!(connected(), []);
        msix.write_table(28, &0_u32.to_le_bytes());
        drop(msix);
        assert_eq!(connected(), []);
    }

    #[test]
    fn a_masked_vector_holds_its_interrupt() {
        let (mut msix, _) = msix(10);
        msix.set_control(ENABLE);
        let pending = |msix: &Msix| {
            let mut bits = [0xFF; 8];
            msix.read_pending(0, &mut bits);
            bits
        };
        assert_eq!(pending(&msix), [0; 8]);
        msix.event(9).unwrap().write(1).unwrap();
        assert_eq!(pending(&msix), [0, 2, 0, 0, 0, 0, 0, 0]);
        // Looking does not take it, and KVM finds it when it connects.
        assert_eq!(pending(&msix), [0, 2, 0, 0, 0, 0, 0, 0]);
        set(&mut msix, 9, MESSAGE);
        msix.write_table(9 * 16 + 12, &0_u32.to_le_bytes());
        assert_eq!(pending(&msix), [0; 8]);
        assert_eq!(msix.event(9).unwrap().read().unwrap(), 1);
    }

    #[test]
    fn the_table_reads_as_it_was_written() {
        let (mut msix, _) = msix(1);
        set(&mut msix, 0, MESSAGE);
        let mut bytes = [0; 8];
        msix.read_table(0, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), MESSAGE.address);
        msix.read_table(8, &mut bytes);
        assert_eq!(bytes, [0x41, 0, 0, 0, 1, 0, 0, 0]);
        msix.read_table(16, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    }

    proptest! {
        #[test]
        fn no_access_panics_or_confuses_the_routes(
            accesses in prop::collection::vec(
                (0_u8..4, prop_oneof![0_u64..80, any::<u64>()],
                 prop::collection::vec(any::<u8>(), 0..9)), 0..200),
        ) {
            let (mut msix, routes) = msix(4);
            for (kind, offset, mut data) in accesses {
                match kind {
                    0 => msix.write_table(offset, &data),
                    1 => msix.read_table(offset, &mut data),
                    2 => msix.read_pending(offset, &mut data),
                    _ => msix.set_control(u16::from_le_bytes([
                        data.first().copied().unwrap_or(0),
                        data.last().copied().unwrap_or(0),
                    ])),
                }
            }
            drop(msix);
            prop_assert!(routes.connected.lock().unwrap().is_empty());
        }
    }
}
