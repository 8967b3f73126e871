//! The common configuration structure (virtio 1.2, 4.1.4.3): the driver's state
//! machine. It says what to do and does nothing itself.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};

use crate::virtio_pci::queue::{NO_VECTOR, Queue};

const DRIVER_OK: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER_OK);
const FEATURES_OK: u8 = status_bit(VIRTIO_CONFIG_S_FEATURES_OK);
const NEEDS_RESET: u8 = status_bit(VIRTIO_CONFIG_S_NEEDS_RESET);
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// What a driver cannot do without, where it is offered.
const REQUIRED: u64 = VERSION_1 | 1 << VIRTIO_F_ACCESS_PLATFORM;

/// The low byte: all status bits lie there.
const fn status_bit(bit: u32) -> u8 {
    let [low, _, _, _] = bit.to_le_bytes();
    low
}

/// What a write of the driver asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// Start serving the enabled queues.
    Start,
    /// Stop serving; [`CommonConfig::reset`] has been done.
    Stop,
    /// A queue interrupts by another vector from now on.
    Vector {
        queue: u16,
    },
}

/// State of the structure.
pub(crate) struct CommonConfig {
    device_features: u64,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    vectors: u16,
    queues: Vec<Queue>,
}

impl CommonConfig {
    /// A device that offers `features` and queues of at most `queue_sizes`, and
    /// has `vectors` MSI-X vectors.
    pub(crate) fn new(features: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            device_features: features | VERSION_1,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            vectors,
            queues: queue_sizes.iter().map(|size| Queue::new(*size)).collect(),
        }
    }

    /// The features that both sides have agreed on.
    pub(crate) fn features(&self) -> u64 {
        self.driver_features & self.device_features
    }

    /// All queues, by number.
    pub(crate) fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The vector of configuration changes.
    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// The device has failed: the driver must reset it. Says whether the driver
    /// is to be told by an interrupt.
    pub(crate) fn fail(&mut self) -> bool {
        self.status |= NEEDS_RESET;
        self.generation = self.generation.wrapping_add(1);
        self.status & DRIVER_OK != 0
    }

    fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        let generation = self.generation;
        *self = Self::new(self.device_features, &sizes, self.vectors);
        self.generation = generation;
    }

    /// The driver reads a field.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |field: fn(&Queue) -> u64| queue.map_or(0, field);
        let value = match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select.into(),
            (0x04, 4) => half(self.device_features, self.device_feature_select),
            (0x08, 4) => self.driver_feature_select.into(),
            (0x0C, 4) => half(self.driver_features, self.driver_feature_select),
            (0x10, 2) => self.config_vector.into(),
            (0x12, 2) => self.queues.len() as u64,
            (0x14, 1) => self.status.into(),
            (0x15, 1) => self.generation.into(),
            (0x16, 2) => self.queue_select.into(),
            // A queue that does not exist has size 0.
            (0x18, 2) => of_queue(|q| q.size.into()),
            (0x1A, 2) => queue.map_or(NO_VECTOR, |q| q.vector).into(),
            (0x1C, 2) => of_queue(|q| q.enabled.into()),
            // Every queue has its own doorbell.
            (0x1E, 2) => queue.map_or(0, |_| self.queue_select.into()),
            (0x20, 4 | 8) => of_queue(|q| q.descriptors),
            (0x24, 4) => of_queue(|q| q.descriptors >> 32),
            (0x28, 4 | 8) => of_queue(|q| q.driver),
            (0x2C, 4) => of_queue(|q| q.driver >> 32),
            (0x30, 4 | 8) => of_queue(|q| q.device),
            (0x34, 4) => of_queue(|q| q.device >> 32),
            _ => 0,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// The driver writes a field. Writes to read-only fields, of another width
    /// than the field's, or at the wrong time do nothing.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let long = u64::from_le_bytes(bytes);
        let [a, b, c, d, ..] = bytes;
        let (word, short) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([a, b]));
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = word,
            (0x08, 4) => self.driver_feature_select = word,
            (0x0C, 4) if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_feature_select, word);
            }
            (0x10, 2) => self.config_vector = self.checked_vector(short),
            (0x14, 1) => return self.write_status(a),
            (0x16, 2) => self.queue_select = short,
            (0x1A, 2) => {
                let vector = self.checked_vector(short);
                let select = usize::from(self.queue_select);
                if let Some(queue) = self.queues.get_mut(select) {
                    queue.vector = vector;
                    return Effect::Vector {
                        queue: self.queue_select,
                    };
                }
            }
            _ => self.write_queue(offset, data.len(), long),
        }
        Effect::Nothing
    }

    /// Fields of the selected queue that hold while it is enabled.
    fn write_queue(&mut self, offset: u64, len: usize, value: u64) {
        let started = self.status & DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.enabled || started {
            return;
        }
        match (offset, len) {
            (0x18, 2) => {
                if let Ok(size) = u16::try_from(value)
                    && size.is_power_of_two()
                    && size <= queue.max_size
                {
                    queue.size = size;
                }
            }
            (0x1C, 2) => queue.enabled = value == 1,
            (0x20 | 0x24, 4 | 8) => set_part(&mut queue.descriptors, offset - 0x20, len, value),
            (0x28 | 0x2C, 4 | 8) => set_part(&mut queue.driver, offset - 0x28, len, value),
            (0x30 | 0x34, 4 | 8) => set_part(&mut queue.device, offset - 0x30, len, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Stop;
        }
        let before = self.status;
        // The driver only ever adds bits, and NEEDS_RESET is not its own.
        let mut added = value & !before & !NEEDS_RESET;
        let required = self.device_features & REQUIRED;
        let acceptable = self.driver_features & !self.device_features == 0
            && self.driver_features & required == required;
        if added & FEATURES_OK != 0 && !acceptable {
            added &= !FEATURES_OK;
        }
        if (before | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 && before & NEEDS_RESET == 0 {
            Effect::Start
        } else {
            Effect::Nothing
        }
    }

    /// A vector that the function has, or none.
    fn checked_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }
}

/// Bits 0 to 31 or 32 to 63 of the features; there are no others.
fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xFFFF_FFFF,
        1 => features >> 32,
        _ => 0,
    }
}

fn set_half(features: &mut u64, select: u32, word: u32) {
    match select {
        0 => *features = (*features & !0xFFFF_FFFF) | u64::from(word),
        1 => *features = (*features & 0xFFFF_FFFF) | (u64::from(word) << 32),
        _ => {}
    }
}

/// Sets all of an address, or one half of it.
fn set_part(address: &mut u64, at: u64, len: usize, value: u64) {
    match (at, len) {
        (0, 8) => *address = value,
        (0, 4) => *address = (*address & !0xFFFF_FFFF) | (value & 0xFFFF_FFFF),
        (4, 4) => *address = (*address & 0xFFFF_FFFF) | (value << 32),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> CommonConfig {
        CommonConfig::new(1 << 5, &[256, 256], 3)
    }

    fn read16(config: &CommonConfig, offset: u64) -> u16 {
        let mut data = [0; 2];
        config.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn status(config: &CommonConfig) -> u8 {
        let mut data = [0];
        config.read(0x14, &mut data);
        data[0]
    }

    /// Does what a driver does up to DRIVER_OK, with `features` accepted.
    fn drive(config: &mut CommonConfig, features: u64) -> Effect {
        config.write(0x14, &[1]);
        config.write(0x14, &[3]);
        for select in 0..2_u32 {
            config.write(0x08, &select.to_le_bytes());
            let word = half(features, select).to_le_bytes();
            config.write(0x0C, &word[..4]);
        }
        config.write(0x14, &[3 | FEATURES_OK]);
        config.write(0x16, &1_u16.to_le_bytes());
        config.write(0x18, &64_u16.to_le_bytes());
        config.write(0x20, &0x1000_u32.to_le_bytes());
        config.write(0x24, &0x1_u32.to_le_bytes());
        config.write(0x28, &0x2000_u64.to_le_bytes());
        config.write(0x1C, &1_u16.to_le_bytes());
        config.write(0x14, &[3 | FEATURES_OK | DRIVER_OK])
    }

    #[test]
    fn a_driver_that_keeps_the_order_starts_the_device() {
        let mut config = config();
        assert_eq!(drive(&mut config, VERSION_1 | 1 << 5), Effect::Start);
        assert_eq!(config.features(), VERSION_1 | 1 << 5);
        let queue = &config.queues()[1];
        assert_eq!(
            (queue.size, queue.descriptors, queue.driver),
            (64, 0x1_0000_1000, 0x2000)
        );
        assert!(queue.enabled && !config.queues()[0].enabled);
        // Again is not a new start.
        assert_eq!(
            config.write(0x14, &[3 | FEATURES_OK | DRIVER_OK]),
            Effect::Nothing
        );
        assert_eq!(config.write(0x14, &[0]), Effect::Stop);
        assert_eq!(status(&config), 0);
        assert!(!config.queues()[1].enabled);
    }

    #[test]
    fn features_that_were_not_offered_or_no_version_1_are_refused() {
        for features in [VERSION_1 | 1 << 6, 1 << 5] {
            let mut config = config();
            assert_eq!(drive(&mut config, features), Effect::Nothing);
            assert_eq!(status(&config) & (FEATURES_OK | DRIVER_OK), 0);
        }
    }

    #[test]
    fn a_driver_that_would_use_all_memory_is_refused_where_there_is_a_window() {
        const ACCESS_PLATFORM: u64 = 1 << 33;
        let window = || CommonConfig::new(ACCESS_PLATFORM, &[256, 256], 3);
        let mut config = window();
        assert_eq!(drive(&mut config, VERSION_1), Effect::Nothing);
        assert_eq!(status(&config) & (FEATURES_OK | DRIVER_OK), 0);
        let mut config = window();
        let both = VERSION_1 | ACCESS_PLATFORM;
        assert_eq!(drive(&mut config, both), Effect::Start);
    }

    #[test]
    fn vectors_and_sizes_out_of_range_are_refused() {
        let mut config = config();
        config.write(0x1A, &2_u16.to_le_bytes());
        assert_eq!(read16(&config, 0x1A), 2);
        config.write(0x1A, &3_u16.to_le_bytes());
        assert_eq!(read16(&config, 0x1A), NO_VECTOR);
        for size in [0_u16, 3, 512] {
            config.write(0x18, &size.to_le_bytes());
            assert_eq!(read16(&config, 0x18), 256);
        }
        config.write(0x16, &2_u16.to_le_bytes());
        assert_eq!(read16(&config, 0x18), 0);
    }

    #[test]
    fn a_failed_device_does_not_start_before_its_reset() {
        let mut config = config();
        assert!(!config.fail());
        assert_eq!(drive(&mut config, VERSION_1), Effect::Nothing);
        config.write(0x14, &[0]);
        assert_eq!(drive(&mut config, VERSION_1), Effect::Start);
        assert!(config.fail());
    }

    proptest! {
        #[test]
        fn no_access_panics_and_only_reset_unstarts(
            accesses in prop::collection::vec(
                (prop_oneof![0_u64..0x40, any::<u64>()],
                 prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..300),
        ) {
            let mut config = config();
            let mut started = false;
            for (offset, mut data, write) in accesses {
                if write {
                    match config.write(offset, &data) {
                        Effect::Start => {
                            prop_assert!(!started);
                            started = true;
                        }
                        Effect::Stop => started = false,
                        Effect::Vector { queue } => prop_assert!(queue < 2),
                        Effect::Nothing => {}
                    }
                } else {
                    config.read(offset, &mut data);
                }
                prop_assert_eq!(config.features() & !(VERSION_1 | 1 << 5), 0);
            }
        }
    }
}
