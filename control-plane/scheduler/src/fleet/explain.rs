//! Why a pod has no place: counted only when somebody asks.

use super::gate::Gate;
use super::{Fleet, Host, Template};
use crate::amount::Amount;
use crate::reason::Refusal;
use crate::shortage::{Cause, Shortage};
use crate::template::PodTemplate;

impl Fleet {
    /// Looks at every host of the zones that a pod may be in, and counts what is in
    /// its way. What [`Fleet::reserve`] leaves out, since it costs time that grows
    /// with the hosts.
    ///
    /// # Errors
    /// The [`Refusal`] that placing it would give.
    pub fn explain(&mut self, spec: &PodTemplate) -> Result<Shortage, Refusal> {
        let template = self.intern(spec)?;
        Ok(self.explain_template(template))
    }

    /// As [`Fleet::explain`], for what was found right before: at most its zones have
    /// gone since.
    pub(super) fn explain_known(&mut self, spec: &PodTemplate) -> Shortage {
        self.explain(spec).unwrap_or_else(|_| Shortage {
            zones: spec.zones.named().to_vec(),
            ..Shortage::default()
        })
    }

    pub(crate) fn explain_template(&self, template: u32) -> Shortage {
        let template = &self.templates[template];
        let smallest = template.choices.iter().min_by_key(|choice| {
            let flavor = self.flavors.at(usize::from(choice.flavor));
            flavor.map(crate::flavor::Flavor::weight)
        });
        let takes = smallest.map(|choice| choice.takes).unwrap_or_default();
        let flavor = smallest.and_then(|choice| self.flavors.at(usize::from(choice.flavor)));
        let mut shortage = Shortage {
            flavor: flavor.map(|flavor| flavor.name.clone()).unwrap_or_default(),
            takes,
            zones: template.spec.zones.named().to_vec(),
            limit: self.check_limits(template.tenant, takes).err(),
            ..Shortage::default()
        };
        let gate = Gate::new(self, template, true);
        let zones = self.zones_of(template);
        for (slot, host) in self.hosts.iter() {
            let zone = self.cells[host.cell as usize].zone;
            if !zones.contains(&zone) {
                continue;
            }
            shortage.hosts += 1;
            if host.is_open() {
                shortage.largest = shortage.largest.most(self.room(slot));
            }
            match self.cause(template, &gate, slot, host, zone) {
                Some(cause) => *shortage.causes.entry(cause).or_default() += 1,
                None => shortage.fitting += 1,
            }
        }
        shortage
    }

    /// What keeps a pod of the template off a host.
    fn cause(
        &self,
        template: &Template,
        gate: &Gate<'_>,
        slot: u32,
        host: &Host,
        zone: u32,
    ) -> Option<Cause> {
        if !host.ready {
            return Some(Cause::Unreachable);
        }
        if host.cordoned {
            return Some(Cause::Cordoned);
        }
        if !host.used.minus(self.shared(slot)).fits(host.capacity) {
            return Some(Cause::Shrunk);
        }
        let family = self.cells[host.cell as usize].family;
        let free = self.room(slot);
        let of_family = template
            .choices
            .iter()
            .filter(|choice| choice.family == family);
        let lacks = of_family.map(|choice| lack(choice.takes, free));
        // A flavor that lacks nothing counts, else what the last resort lacks.
        let lacks = lacks.reduce(|one, next| if one.is_none() { one } else { next });
        match lacks {
            None => Some(Cause::OtherFamily),
            Some(None) => gate.zone(zone).or_else(|| gate.host(slot)),
            Some(lack) => lack,
        }
    }
}

fn lack(takes: Amount, free: Amount) -> Option<Cause> {
    let cpu = takes.cpu_millis > free.cpu_millis;
    let memory = takes.memory_bytes > free.memory_bytes;
    if takes.pods > free.pods {
        Some(Cause::Pods)
    } else if cpu && memory {
        Some(Cause::CpuAndMemory)
    } else if cpu {
        Some(Cause::Cpu)
    } else if memory {
        Some(Cause::Memory)
    } else if takes.enis > free.enis {
        Some(Cause::Enis)
    } else if takes.disks > free.disks {
        Some(Cause::Disks)
    } else if takes.gpus > free.gpus {
        Some(Cause::Gpus)
    } else {
        None
    }
}
