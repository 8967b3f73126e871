//! Port I/O: the serial port, the reset line, PCI's configuration mechanism, the
//! machine's own ports. Everything else reads as all ones and takes writes silently.

use std::sync::Arc;

use longship_framed::machine_ports::COMMAND;

use crate::machine_ports::{self, MachinePorts};
use crate::pci::bus::PciBus;
use crate::serial::SerialPort;

/// Interrupt of the serial port.
pub(crate) const SERIAL_IRQ: u32 = 4;
/// First port of the serial port; it has eight.
const SERIAL: u16 = 0x3F8;
/// Status and command port of the keyboard controller.
const KEYBOARD: u16 = 0x64;
/// The command that pulses the reset line (`reboot=k`).
const PULSE_RESET: u8 = 0xFE;
/// `CONFIG_ADDRESS` and `CONFIG_DATA` (PCI 3.0, 3.2.2.3.2).
const PCI_ADDRESS: u16 = 0xCF8;
const PCI_DATA: u16 = 0xCFC;

/// What the guest asks of the machine by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// To be reset: the machine ends.
    Reset,
    /// To stand still and be cloned, once this instruction has ended.
    Park,
    /// Nothing that can be done: the machine ends, for this reason.
    End(&'static str),
}

/// All ports of a machine.
pub(crate) struct Ports {
    serial: Arc<SerialPort>,
    pci: Arc<PciBus>,
    machine: Arc<MachinePorts>,
}

impl Ports {
    /// The ports in front of these devices.
    pub(crate) fn new(
        serial: Arc<SerialPort>,
        pci: Arc<PciBus>,
        machine: Arc<MachinePorts>,
    ) -> Self {
        Self {
            serial,
            pci,
            machine,
        }
    }

    /// The guest writes `data` to `port`.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<Request> {
        match port {
            SERIAL..=0x3FF => {
                // String output is many bytes for the one register.
                for byte in data {
                    self.serial.write(offset(port, SERIAL), *byte);
                }
            }
            KEYBOARD if data.contains(&PULSE_RESET) => return Some(Request::Reset),
            PCI_ADDRESS => self.pci.write_address(data),
            PCI_DATA..=0xCFF => self.pci.write_data(offset(port, PCI_DATA), data),
            COMMAND..machine_ports::END => return self.machine.write(port, data),
            _ => {}
        }
        None
    }

    /// The guest reads from `port` into `data`.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) -> Option<Request> {
        data.fill(0xFF);
        match port {
            SERIAL..=0x3FF => {
                for byte in data {
                    *byte = self.serial.read(offset(port, SERIAL));
                }
            }
            // Idle: a kernel that waits to send its command need not wait.
            KEYBOARD => data.fill(0),
            PCI_ADDRESS => self.pci.read_address(data),
            PCI_DATA..=0xCFF => self.pci.read_data(offset(port, PCI_DATA), data),
            COMMAND..machine_ports::END => return self.machine.read(port, data),
            _ => {}
        }
        None
    }
}

/// How far `port` lies after `first`, at most seven here.
fn offset(port: u16, first: u16) -> u8 {
    let [low, _] = port.wrapping_sub(first).to_le_bytes();
    low & 7
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::machine_ports::Kind;
    use crate::memory::{GuestRam, Profile, RamPlan};
    use crate::notices::Notices;

    fn ports() -> Ports {
        let irq = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let plan = RamPlan {
            bytes: 32 << 20,
            profile: Profile::Direct,
        };
        let ram = Arc::new(GuestRam::new(plan).unwrap());
        let notices = Arc::new(Notices::new().unwrap());
        Ports::new(
            Arc::new(SerialPort::new(irq, None)),
            Arc::new(PciBus::new()),
            Arc::new(MachinePorts::new(Kind::Template, ram, notices)),
        )
    }

    #[test]
    fn only_the_reset_command_resets() {
        let ports = ports();
        assert_eq!(ports.write(0x64, &[0xFE]), Some(Request::Reset));
        assert_eq!(ports.write(0x64, &[0xFF]), None);
        assert_eq!(ports.write(0x60, &[0xFE]), None);
        let mut status = [0xAA];
        ports.read(0x64, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn ports_without_a_device_read_as_ones() {
        let mut data = [0; 4];
        ports().read(0x1234, &mut data);
        assert_eq!(data, [0xFF; 4]);
        ports().read(machine_ports::END, &mut data);
        assert_eq!(data, [0xFF; 4]);
    }

    #[test]
    fn the_machines_own_ports_are_among_them() {
        let ports = ports();
        let mut data = [0; 4];
        ports.read(COMMAND, &mut data);
        assert_eq!(data, *b"LSHP");
        let park = longship_framed::machine_ports::PARK.to_le_bytes();
        assert_eq!(ports.write(COMMAND, &park), Some(Request::Park));
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (prop_oneof![
                    0x3F0_u16..0x402, 0xCF0_u16..0xD04, 0x2EF0_u16..0x2F20, any::<u16>()
                ],
                 prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200),
        ) {
            let ports = ports();
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
