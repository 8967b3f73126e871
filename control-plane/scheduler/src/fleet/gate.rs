//! Whether a template's constraints let a pod into a zone or onto a host.

use super::{Fleet, Template};
use crate::shortage::Cause;
use crate::template::{Rule, Topology};
use crate::terms::{Counts, Term};

/// One thing to look at.
#[derive(Debug, Clone, Copy)]
struct Check<'a> {
    counts: &'a Counts,
    /// The fewest and the most that may be there.
    least: u32,
    most: u32,
    cause: Cause,
}

impl Check<'_> {
    fn refuses(&self, domain: u32) -> Option<Cause> {
        let count = self.counts.at(domain);
        (count < self.least || count > self.most).then_some(self.cause)
    }
}

/// A template's constraints, measured against where pods are now.
#[derive(Debug, Default)]
pub(super) struct Gate<'a> {
    zones: Vec<Check<'a>>,
    hosts: Vec<Check<'a>>,
}

impl<'a> Gate<'a> {
    /// With the constraints that are required, or with all.
    pub(super) fn new(fleet: &'a Fleet, template: &'a Template, required_only: bool) -> Self {
        let mut gate = Self::default();
        for used in &template.uses {
            if required_only && !used.required {
                continue;
            }
            let term = &fleet.terms.entries[used.term];
            let cause = match (used.rule, term.topology) {
                (Rule::With, Topology::Zone) => Cause::NotWithZone,
                (Rule::With, Topology::Host) => Cause::NotWithHost,
                (Rule::Apart, Topology::Zone) => Cause::ApartZone,
                (Rule::Apart, Topology::Host) => Cause::ApartHost,
                (Rule::Spread { .. }, Topology::Zone) => Cause::SkewZone,
                (Rule::Spread { .. }, Topology::Host) => Cause::SkewHost,
            };
            let (least, most) = match used.rule {
                // The first of its kind may be anywhere.
                Rule::With if used.own && term.members.is_empty() => (0, u32::MAX),
                Rule::With => (1, u32::MAX),
                Rule::Apart => (0, 0),
                Rule::Spread { max_skew } => {
                    let fewest = fleet.fewest(template, term);
                    let most = fewest.saturating_add(max_skew) - u32::from(used.own);
                    (0, most)
                }
            };
            if (least, most) != (0, u32::MAX) {
                gate.push(term, &term.members, least, most, cause);
            }
        }
        for &term in &template.matched {
            let term = &fleet.terms.entries[term];
            if !term.guards.is_empty() {
                let cause = match term.topology {
                    Topology::Zone => Cause::GuardedZone,
                    Topology::Host => Cause::GuardedHost,
                };
                gate.push(term, &term.guards, 0, 0, cause);
            }
        }
        gate
    }

    fn push(&mut self, term: &Term, counts: &'a Counts, least: u32, most: u32, cause: Cause) {
        let checks = match term.topology {
            Topology::Zone => &mut self.zones,
            Topology::Host => &mut self.hosts,
        };
        checks.push(Check {
            counts,
            least,
            most,
            cause,
        });
    }

    /// Why the zone is out; `None`: it is not.
    pub(super) fn zone(&self, zone: u32) -> Option<Cause> {
        self.zones.iter().find_map(|check| check.refuses(zone))
    }

    /// Why the host is out, its zone aside; `None`: it is not.
    pub(super) fn host(&self, host: u32) -> Option<Cause> {
        self.hosts.iter().find_map(|check| check.refuses(host))
    }

    pub(super) fn looks_at_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// Where the pod must be on a host with certain others, the hosts of one such
    /// kind, in no order: there is no need to look at any other.
    pub(super) fn only_on(&self) -> Option<impl Iterator<Item = u32> + use<'a>> {
        let with = self.hosts.iter().find(|check| check.least > 0)?;
        Some(with.counts.domains())
    }
}

impl Fleet {
    /// The fewest members that any zone or host has in which the template's pods may
    /// be, full or not, as long as it takes pods.
    fn fewest(&self, template: &Template, term: &Term) -> u32 {
        let zones = self.zones_of(template).iter().copied();
        match term.topology {
            Topology::Zone => {
                let open = zones.filter(|&zone| {
                    let mut cells = self.cells_of(template, zone);
                    cells.any(|cell| self.cells[cell as usize].open > 0)
                });
                open.map(|zone| term.members.at(zone))
                    .min()
                    .unwrap_or_default()
            }
            Topology::Host => {
                let mut fewest = u32::MAX;
                for cell in zones.flat_map(|zone| self.cells_of(template, zone)) {
                    let open = self.cells[cell as usize].open;
                    let covered = term.covered.get(&cell);
                    let with_members: u32 = covered.map_or(0, |counts| counts.values().sum());
                    if with_members < open {
                        return 0;
                    }
                    let least = covered.and_then(|counts| counts.first_key_value());
                    fewest = fewest.min(least.map_or(u32::MAX, |(count, _)| *count));
                }
                if fewest == u32::MAX { 0 } else { fewest }
            }
        }
    }

    /// The zones that a template names; all where it names none.
    pub(super) fn zones_of<'a>(&'a self, template: &'a Template) -> &'a [u32] {
        match template.zones.is_empty() {
            true => &self.all_zones,
            false => &template.zones,
        }
    }

    /// The cells of a zone whose hosts can take one of the template's flavors.
    pub(super) fn cells_of<'a>(
        &'a self,
        template: &'a Template,
        zone: u32,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let choices = template.choices.iter().enumerate();
        let first_of_family = choices.filter(|(at, choice)| {
            let before = &template.choices[..*at];
            before.iter().all(|earlier| earlier.family != choice.family)
        });
        first_of_family.filter_map(move |(_, choice)| self.cell_of(zone, choice.family))
    }
}
