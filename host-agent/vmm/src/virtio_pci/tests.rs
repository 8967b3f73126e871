use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::memory::layout::{BAR_WINDOW, MIN_MEMORY};
use crate::memory::{Profile, RamPlan};
use crate::pci::bus::PciBus;
use crate::pci::msix::tests::NotedRoutes;

/// A queue that is served: its number, size, rings.
type ServedQueue = (u16, u16, Rings);

/// What a device did to its backend.
#[derive(Debug, Default)]
struct Served {
    running: Option<(u64, Vec<ServedQueue>)>,
    starts: usize,
    call_changes: Vec<u16>,
}

struct NotedBackend {
    served: Arc<Mutex<Served>>,
    refuse: Arc<AtomicBool>,
    /// It no longer says that it has stopped.
    hang: Arc<AtomicBool>,
    /// Addresses in this process that it can reach.
    ram: std::ops::Range<u64>,
}

impl Backend for NotedBackend {
    fn start(&mut self, features: u64, vrings: &[Vring<'_>]) -> Result<(), BackendError> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(BackendError {
                doing: "starting".to_owned(),
                reason: "refused".to_owned(),
                silent: false,
            });
        }
        for vring in vrings {
            let rings = vring.rings;
            let size = u64::from(vring.size);
            assert!(self.ram.contains(&rings.descriptors));
            assert!(rings.descriptors + 16 * size <= self.ram.end);
            assert!(self.ram.contains(&rings.driver) && rings.driver + 2 * size < self.ram.end);
            assert!(self.ram.contains(&rings.device) && rings.device + 8 * size < self.ram.end);
        }
        assert_eq!(features & 1 << 33, 0, "no backend translates addresses");
        let mut served = self.served.lock().unwrap();
        assert!(served.running.is_none(), "started twice");
        let queues = vrings.iter().map(|v| (v.index, v.size, v.rings)).collect();
        served.running = Some((features, queues));
        served.starts += 1;
        Ok(())
    }

    fn set_call(&mut self, queue: u16, _: &EventFd) -> Result<(), BackendError> {
        self.served.lock().unwrap().call_changes.push(queue);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), BackendError> {
        let running = self.served.lock().unwrap().running.take();
        assert!(running.is_some(), "stopped without a start");
        if self.hang.load(Ordering::Relaxed) {
            return Err(BackendError {
                doing: "stopping".to_owned(),
                reason: "no answer".to_owned(),
                silent: true,
            });
        }
        Ok(())
    }
}

/// Doorbells that note where they are.
#[derive(Default)]
struct NotedDoorbells(Mutex<Vec<u64>>);

impl Doorbells for NotedDoorbells {
    fn connect(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let mut doorbells = self.0.lock().unwrap();
        if doorbells.contains(&address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        doorbells.push(address);
        Ok(())
    }

    fn disconnect(&self, address: u64, _: &EventFd) {
        let mut doorbells = self.0.lock().unwrap();
        let at = doorbells.iter().position(|at| *at == address);
        doorbells.swap_remove(at.expect("a doorbell that was not connected"));
    }
}

/// A bus with one device, seen from both its sides.
struct Machine {
    bus: PciBus,
    plan: RamPlan,
    /// Memory that the backend reaches: guest address, and address here.
    shared: (u64, u64),
    served: Arc<Mutex<Served>>,
    refuse: Arc<AtomicBool>,
    hang: Arc<AtomicBool>,
    notices: Arc<Notices>,
    doorbells: Arc<NotedDoorbells>,
    routes: Arc<NotedRoutes>,
}

const BAR: u64 = BAR_WINDOW.start + BAR_BYTES as u64;
/// CONFIG_ADDRESS of 00:01.0.
const DEVICE_1: u32 = 0x8000_0800;
const FEATURES: u64 = 1 << 32 | 1 << 5;
const DENSE: RamPlan = RamPlan {
    bytes: MIN_MEMORY,
    profile: Profile::Dense { window: 2 << 20 },
};

impl Machine {
    fn new() -> Self {
        Self::with(RamPlan::direct(MIN_MEMORY))
    }

    fn with(plan: RamPlan) -> Self {
        let ram = Arc::new(GuestRam::new(plan).unwrap());
        let shared = ram.shared()[0].at;
        let served = Arc::<Mutex<Served>>::default();
        let refuse = Arc::<AtomicBool>::default();
        let hang = Arc::<AtomicBool>::default();
        let notices = Arc::new(Notices::new().unwrap());
        let doorbells = Arc::<NotedDoorbells>::default();
        let routes = Arc::<NotedRoutes>::default();
        let wiring = Wiring {
            ram,
            routes: Arc::<NotedRoutes>::clone(&routes),
            doorbells: Arc::<NotedDoorbells>::clone(&doorbells),
            notices: Arc::clone(&notices),
        };
        let backend = NotedBackend {
            served: Arc::clone(&served),
            refuse: Arc::clone(&refuse),
            hang: Arc::clone(&hang),
            ram: shared.host..shared.host + shared.bytes,
        };
        let model = DeviceModel {
            id: 1,
            class: [2, 0, 0],
            features: FEATURES,
            queue_sizes: vec![256, 256],
            config: vec![2, 0, 0, 0, 0, 1],
        };
        let bus = PciBus::new();
        let base = bus.next_bar().unwrap();
        let device = VirtioPci::new(model, base, &wiring, Box::new(backend)).unwrap();
        bus.add(Box::new(device));
        Self {
            bus,
            plan,
            shared: (shared.guest, shared.host),
            served,
            refuse,
            hang,
            notices,
            doorbells,
            routes,
        }
    }

    fn config(&self, offset: u8) -> u32 {
        let address = DEVICE_1 | u32::from(offset & 0xFC);
        self.bus.write_address(&address.to_le_bytes());
        let mut data = [0; 4];
        self.bus.read_data(0, &mut data);
        u32::from_le_bytes(data) >> (8 * (offset & 3))
    }

    fn set_config(&self, offset: u8, data: &[u8]) {
        let address = DEVICE_1 | u32::from(offset & 0xFC);
        self.bus.write_address(&address.to_le_bytes());
        self.bus.write_data(offset & 3, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.bus.memory_write(BAR + offset, data);
    }

    fn read(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.bus.memory_read(BAR + offset, &mut data);
        data[0]
    }

    /// What the driver is to accept.
    fn features(&self) -> u64 {
        FEATURES
            | if self.plan.window().is_some() {
                1 << 33
            } else {
                0
            }
    }

    /// Does what Linux does, up to DRIVER_OK.
    fn drive(&self) {
        self.set_config(4, &[6, 4]);
        self.write(0x14, &[1]);
        self.write(0x14, &[3]);
        for select in 0..2_u32 {
            self.write(0x08, &select.to_le_bytes());
            let half = (self.features() >> (32 * select)) & 0xFFFF_FFFF;
            self.write(0x0C, &half.to_le_bytes()[..4]);
        }
        self.write(0x14, &[11]);
        for queue in 0..2_u16 {
            let base = self.shared.0 + 0x4_0000 * (u64::from(queue) + 1);
            self.write(0x16, &queue.to_le_bytes());
            self.write(0x18, &128_u16.to_le_bytes());
            self.write(0x20, &base.to_le_bytes());
            self.write(0x28, &(base + 0x1000).to_le_bytes());
            self.write(0x30, &(base + 0x2000).to_le_bytes());
            self.write(0x1A, &(queue + 1).to_le_bytes());
            self.write(0x1C, &1_u16.to_le_bytes());
        }
        self.write(0x14, &[15]);
    }
}

#[test]
fn a_driver_finds_the_device_and_all_its_capabilities() {
    let machine = Machine::new();
    assert_eq!(machine.config(0), 0x1041_1AF4);
    let mut types = Vec::new();
    let mut at = u8::try_from(machine.config(0x34) & 0xFF).unwrap();
    while at != 0 {
        let head = machine.config(at);
        match head & 0xFF {
            9 => types.push(head >> 24),
            0x11 => assert_eq!(head >> 16, 2, "three vectors"),
            other => panic!("capability {other:#x}"),
        }
        at = u8::try_from((head >> 8) & 0xFF).unwrap();
    }
    assert_eq!(types, [1, 2, 3, 4, 5]);
    // No pin: there is no INTx.
    assert_eq!(machine.config(0x3D) & 0xFF, 0);
}

#[test]
fn a_driver_starts_the_backend_with_its_rings_and_its_doorbells() {
    for plan in [RamPlan::direct(MIN_MEMORY), DENSE] {
        starts_the_backend(&Machine::with(plan));
    }
}

fn starts_the_backend(machine: &Machine) {
    machine.drive();
    let (features, queues) = machine.served.lock().unwrap().running.clone().unwrap();
    assert_eq!(features, FEATURES);
    let rings = |base: u64| Rings {
        descriptors: machine.shared.1 + base,
        driver: machine.shared.1 + base + 0x1000,
        device: machine.shared.1 + base + 0x2000,
    };
    assert_eq!(
        queues,
        [(0, 128, rings(0x4_0000)), (1, 128, rings(0x8_0000))]
    );
    assert_eq!(
        *machine.doorbells.0.lock().unwrap(),
        [BAR + 0x3000, BAR + 0x3004]
    );
    assert_eq!((machine.read(0x2000), machine.read(0x2005)), (2, 1));

    machine.write(0x14, &[0]);
    assert!(machine.served.lock().unwrap().running.is_none());
    assert!(machine.doorbells.0.lock().unwrap().is_empty());
    machine.drive();
    assert_eq!(machine.served.lock().unwrap().starts, 2);
}

#[test]
fn doorbells_follow_the_bar() {
    let machine = Machine::new();
    machine.drive();
    machine.set_config(4, &[4, 4]);
    assert!(machine.doorbells.0.lock().unwrap().is_empty());
    machine.set_config(0x10, &0xD000_0000_u32.to_le_bytes());
    machine.set_config(4, &[6, 4]);
    assert_eq!(
        *machine.doorbells.0.lock().unwrap(),
        [0xD000_3000, 0xD000_3004]
    );
    let mut status = [0];
    machine.bus.memory_read(0xD000_0014, &mut status);
    assert_eq!(status, [15]);
    machine.bus.memory_read(BAR + 0x14, &mut status);
    assert_eq!(status, [0xFF]);
}

#[test]
fn rings_that_no_backend_reaches_end_in_a_device_that_needs_a_reset() {
    let window = DENSE.window().unwrap();
    let cases = [
        (RamPlan::direct(MIN_MEMORY), MIN_MEMORY),
        // RAM, but not of the window; across its edge.
        (DENSE, 0x10_0000),
        (DENSE, window.start - 0x800),
    ];
    for (plan, descriptors) in cases {
        let machine = Machine::with(plan);
        machine.drive();
        machine.write(0x14, &[0]);
        machine.set_config(4, &[6, 4]);
        machine.write(0x14, &[3]);
        let high = machine.features() >> 32;
        machine.write(0x08, &1_u32.to_le_bytes());
        machine.write(0x0C, &high.to_le_bytes()[..4]);
        machine.write(0x14, &[11]);
        machine.write(0x20, &descriptors.to_le_bytes());
        machine.write(0x28, &machine.shared.0.to_le_bytes());
        machine.write(0x30, &machine.shared.0.to_le_bytes());
        machine.write(0x1C, &1_u16.to_le_bytes());
        machine.write(0x14, &[15]);
        assert_eq!(machine.read(0x14), 15 | 64);
        assert_eq!(machine.served.lock().unwrap().starts, 1);
    }
}

#[test]
fn a_backend_that_refuses_raises_the_configuration_interrupt() {
    let machine = Machine::new();
    machine.refuse.store(true, Ordering::Relaxed);
    machine.write(0, &[0; 4]);
    machine.set_config(4, &[6, 4]);
    machine.write(0x10, &0_u16.to_le_bytes());
    machine.drive();
    assert_eq!(machine.read(0x14) & 64, 64);
    // Held in the masked vector 0.
    assert_eq!(machine.read(0x5000), 1);
    assert_eq!((machine.read(0x1000), machine.read(0x1000)), (2, 0));
}

#[test]
fn a_backend_that_does_not_stop_ends_the_machine() {
    for hang in [false, true] {
        let machine = Machine::new();
        machine.hang.store(hang, Ordering::Relaxed);
        machine.drive();
        // The driver resets the device.
        machine.write(0x14, &[0]);
        assert_eq!(machine.read(0x14), 0);
        let heard: Vec<Notice> = machine.notices.take().collect();
        let ended = matches!(heard.as_slice(), [Notice::Ended(Ending::Failed(_))]);
        assert_eq!(ended, hang, "{heard:?}");
    }
}

#[test]
fn a_queue_changes_its_vector_while_it_runs() {
    let machine = Machine::new();
    machine.drive();
    machine.write(0x16, &1_u16.to_le_bytes());
    machine.write(0x1A, &2_u16.to_le_bytes());
    assert_eq!(machine.served.lock().unwrap().call_changes, [1]);
}

#[test]
fn the_bar_is_reached_through_configuration_space_too() {
    let machine = Machine::new();
    // The window is the last virtio capability before MSI-X.
    let window = 0x84;
    assert_eq!(machine.config(window) >> 24, 5);
    machine.set_config(window + 8, &0x14_u32.to_le_bytes());
    machine.set_config(window + 12, &1_u32.to_le_bytes());
    machine.set_config(window + 16, &[3]);
    assert_eq!(machine.config(window + 16) & 0xFF, 3);
    machine.set_config(4, &[2]);
    assert_eq!(machine.read(0x14), 3);
}

#[derive(Debug, Clone)]
enum Access {
    Address(u32),
    Data(u8, Vec<u8>, bool),
    Memory(u64, Vec<u8>, bool),
    Drive,
}

fn access() -> impl Strategy<Value = Access> {
    let bytes = prop::collection::vec(any::<u8>(), 0..9);
    let natural = prop::sample::select(vec![1_usize, 2, 4, 8])
        .prop_flat_map(|len| prop::collection::vec(any::<u8>(), len));
    let data = prop_oneof![natural, bytes];
    let register = (0_u32..64).prop_map(|r| DEVICE_1 | r << 2);
    let offset = prop_oneof![
        0_u64..0x40,
        0x3000_u64..0x3010,
        0x4000_u64..0x4040,
        0_u64..0x9000
    ];
    prop_oneof![
        2 => prop_oneof![register, any::<u32>()].prop_map(Access::Address),
        2 => (0_u8..5, data.clone(), any::<bool>()).prop_map(|(o, d, w)| Access::Data(o, d, w)),
        6 => (offset, data, any::<bool>()).prop_map(|(o, d, w)| Access::Memory(BAR + o, d, w)),
        1 => Just(Access::Drive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A hostile guest: no sequence of accesses panics, hands a ring outside of what
    /// the backend reaches to it, or leaks a doorbell or a route.
    #[test]
    fn no_guest_breaks_the_device(
        dense in any::<bool>(), accesses in prop::collection::vec(access(), 0..150),
    ) {
        let plan = if dense { DENSE } else { RamPlan::direct(MIN_MEMORY) };
        let machine = Machine::with(plan);
        for access in accesses {
            match access {
                Access::Address(address) => machine.bus.write_address(&address.to_le_bytes()),
                Access::Data(offset, data, true) => machine.bus.write_data(offset, &data),
                Access::Data(offset, mut data, false) => machine.bus.read_data(offset, &mut data),
                Access::Memory(at, data, true) => machine.bus.memory_write(at, &data),
                Access::Memory(at, mut data, false) => machine.bus.memory_read(at, &mut data),
                Access::Drive => machine.drive(),
            }
            let running = machine.served.lock().unwrap().running.is_some();
            prop_assert!(running || machine.doorbells.0.lock().unwrap().is_empty());
        }
        // Whatever it did, a driver that begins anew gets a working device.
        machine.set_config(0x10, &u32::try_from(BAR).unwrap().to_le_bytes());
        machine.set_config(4, &[6, 4]);
        machine.write(0x14, &[0]);
        prop_assert!(machine.served.lock().unwrap().running.is_none());
        machine.drive();
        prop_assert!(machine.served.lock().unwrap().running.is_some());
        let routes = Arc::clone(&machine.routes);
        drop(machine);
        prop_assert!(routes.connected.lock().unwrap().is_empty());
    }
}
