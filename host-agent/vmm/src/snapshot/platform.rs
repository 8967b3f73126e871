//! What a machine has besides its processors and its RAM: interrupt controllers,
//! timer, and the registers of what the VMM itself plays.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use vm_superio::serial::SerialState;

use crate::pci::bus::PciBus;
use crate::serial::SerialPort;
use crate::snapshot::SnapshotError;
use crate::snapshot::format::{FormatError, Reader, Writer};

const CONTROLLERS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What KVM keeps for a whole VM. There are no message routes: they come with devices.
pub(super) struct PlatformState {
    controllers: [kvm_irqchip; 3],
    /// In machines that have one.
    pit: Option<kvm_pit_state2>,
}

impl PlatformState {
    /// Reads it from `vm`, of which no processor runs.
    pub(super) fn capture(vm: &VmFd, with_pit: bool) -> Result<Self, SnapshotError> {
        let failed = |what| move |source| SnapshotError::Capture { what, source };
        let mut controllers = [kvm_irqchip::default(); 3];
        for (controller, id) in controllers.iter_mut().zip(CONTROLLERS) {
            controller.chip_id = id;
            vm.get_irqchip(controller)
                .map_err(failed("its interrupt controllers"))?;
        }
        let pit = with_pit.then(|| vm.get_pit2()).transpose();
        Ok(Self {
            controllers,
            pit: pit.map_err(failed("its timer"))?,
        })
    }

    /// Whether the machine needs a PIT.
    pub(super) fn has_pit(&self) -> bool {
        self.pit.is_some()
    }

    /// Puts it into `vm`, whose processors are there already.
    pub(super) fn apply(&self, vm: &VmFd) -> Result<(), SnapshotError> {
        let failed = |what| move |source| SnapshotError::Apply { what, source };
        for (controller, id) in self.controllers.iter().zip(CONTROLLERS) {
            let controller = kvm_irqchip {
                chip_id: id,
                ..*controller
            };
            vm.set_irqchip(&controller)
                .map_err(failed("its interrupt controllers"))?;
        }
        if let Some(pit) = &self.pit {
            vm.set_pit2(pit).map_err(failed("its timer"))?;
        }
        Ok(())
    }

    /// One with a PIT.
    #[cfg(test)]
    pub(super) fn sample() -> Self {
        Self {
            controllers: [kvm_irqchip::default(); 3],
            pit: Some(kvm_pit_state2::default()),
        }
    }

    /// Adds it to a body.
    pub(super) fn write(&self, to: &mut Writer) {
        for controller in &self.controllers {
            to.put(controller);
        }
        to.put_all(self.pit.as_slice());
    }

    /// Takes it from a body.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let mut controllers = [kvm_irqchip::default(); 3];
        for controller in &mut controllers {
            *controller = from.take("the interrupt controllers")?;
        }
        Ok(Self {
            controllers,
            pit: from.take_all("the timer", 1)?.pop(),
        })
    }
}

/// `CONFIG_ADDRESS` of the host bridge's command, and of its interrupt line: all that
/// a guest can change of it.
const BRIDGE: [u32; 2] = [0x8000_0004, 0x8000_003C];

/// Registers of the serial port and of PCI's host bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BoardState {
    /// The serial port; nothing is ever received.
    pub(crate) serial: SerialState,
    /// `CONFIG_ADDRESS`.
    pci_address: [u8; 4],
    /// The host bridge's registers, as [`BRIDGE`] lists them.
    bridge: [[u8; 4]; 2],
}

impl BoardState {
    /// Reads it from a machine that stands still and has no devices.
    pub(crate) fn of(serial: &SerialPort, pci: &PciBus) -> Self {
        let mut pci_address = [0; 4];
        pci.read_address(&mut pci_address);
        let bridge = BRIDGE.map(|register| {
            let mut value = [0; 4];
            pci.write_address(&register.to_le_bytes());
            pci.read_data(0, &mut value);
            value
        });
        pci.write_address(&pci_address);
        Self {
            serial: serial.state(),
            pci_address,
            bridge,
        }
    }

    /// Puts what is PCI's of it into `pci`, in which bits that no guest can change stay
    /// as they are.
    pub(crate) fn put_back(&self, pci: &PciBus) {
        for (register, value) in BRIDGE.into_iter().zip(&self.bridge) {
            pci.write_address(&register.to_le_bytes());
            pci.write_data(0, value);
        }
        pci.write_address(&self.pci_address);
    }

    /// Adds it to a body.
    pub(super) fn write(&self, to: &mut Writer) {
        let port = &self.serial;
        to.put(&[
            port.baud_divisor_low,
            port.baud_divisor_high,
            port.interrupt_enable,
            port.interrupt_identification,
            port.line_control,
            port.line_status,
            port.modem_control,
            port.modem_status,
            port.scratch,
        ]);
        to.put(&self.pci_address);
        to.put(&self.bridge);
    }

    /// Takes it from a body.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = from.take("the serial port")?;
        Ok(Self {
            serial: SerialState {
                baud_divisor_low,
                baud_divisor_high,
                interrupt_enable,
                interrupt_identification,
                line_control,
                line_status,
                modem_control,
                modem_status,
                scratch,
                in_buffer: Vec::new(),
            },
            pci_address: from.take("PCI's address")?,
            bridge: from.take("PCI's host bridge")?,
        })
    }
}
