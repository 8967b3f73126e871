//! Where this machine comes from: it has booted, or it goes on from a template.

use crate::clock;
use crate::disks::rescan_bus;
use crate::entropy::Generator;
use crate::failed::Failed;
use crate::machine::{Kind, Machine, give_back_free_memory};

/// What the pod's life began with.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The guest's uptime when init began, or went on, in microseconds.
    pub(crate) began_us: i64,
    pub(crate) is_clone: bool,
    /// The time of day is the host's own.
    pub(crate) has_time: bool,
}

impl Origin {
    /// On a machine of Longship's VMM.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn booted(machine: &Machine, began_us: i64) -> Result<Self, Failed> {
        clock::set(machine.time())?;
        Ok(Self {
            began_us,
            is_clone: false,
            has_time: true,
        })
    }

    /// On another machine, which tells nothing.
    pub(crate) fn elsewhere(began_us: i64) -> Self {
        Self {
            began_us,
            is_clone: false,
            has_time: false,
        }
    }
}

/// A template with all that its clones will need first.
#[derive(Debug)]
pub(crate) struct Parked {
    machine: Machine,
    generator: Generator,
}

impl Parked {
    /// Prepares the last of it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(machine: Machine) -> Result<Self, Failed> {
        let generator = Generator::open()?;
        give_back_free_memory();
        Ok(Self { machine, generator })
    }

    /// Waits to be cloned. In the clone: it draws other random numbers than its
    /// siblings, has the time, and then looks for its devices.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn go_on(self) -> Result<Origin, Failed> {
        self.machine.park();
        let began_us = clock::uptime_us();
        self.generator.add(self.machine.entropy())?;
        clock::set(self.machine.time())?;
        self.machine.alive();
        let is_clone = self.machine.kind() == Kind::Clone;
        drop(self.machine);
        rescan_bus();
        Ok(Origin {
            began_us,
            is_clone,
            has_time: true,
        })
    }
}
