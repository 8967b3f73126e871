//! Templates: what can be worked out of them once is kept, so that the next pod made
//! from the same template is placed at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{BY_RANK, Choice, Fleet, Template, Use};
use crate::amount::Amount;
use crate::flavor::MAX_GPUS;
use crate::levels::{MAX_DISKS, MAX_ENIS};
use crate::placement::Prepared;
use crate::reason::Refusal;
use crate::selector::{Labels, Selector};
use crate::slab::number;
use crate::table::Table;
use crate::template::{PodTemplate, Rule, Topology, Zones};

/// Templates that nobody uses any more are kept up to this many, for those that come
/// again.
const IDLE_KEPT: usize = 4096;

impl Fleet {
    /// Checks a template without placing anything.
    ///
    /// # Errors
    /// The [`Refusal`] that placing a pod of it would give.
    pub fn check(&self, spec: &PodTemplate) -> Result<(), Refusal> {
        self.check_zones(spec)?;
        if !self.known_templates.contains_key(spec) {
            self.choices(spec)?;
        }
        Ok(())
    }

    /// Keeps a template ready: a pod of it need not be compared with all others then.
    /// It is kept until [`Fleet::forget`].
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn prepare(&mut self, spec: &PodTemplate) -> Result<Prepared, Refusal> {
        let template = self.intern(spec)?;
        self.hold_template(template);
        Ok(Prepared(template))
    }

    /// Keeps a template ready no more. Its pods stay.
    pub fn forget(&mut self, prepared: Prepared) {
        self.drop_template(prepared.0);
    }

    /// The template's number; worked out where it is new.
    pub(crate) fn intern(&mut self, spec: &PodTemplate) -> Result<u32, Refusal> {
        if let Some(&template) = self.known_templates.get(spec) {
            self.check_zones(spec)?;
            return Ok(template);
        }
        self.check_zones(spec)?;
        let choices = self.choices(spec)?;
        if self.idle_templates > IDLE_KEPT {
            self.sweep();
        }
        let tenant = self.ensure_tenant(&spec.tenant);
        let zones = spec.zones.named().iter();
        let zones = zones
            .filter_map(|zone| self.zone_names.get(zone).copied())
            .collect();
        let mut uses = Vec::new();
        for constraint in &spec.constraints {
            let (topology, selector) = (constraint.topology, &constraint.selector);
            let known = self.terms.find(tenant, topology, selector);
            let term = known.unwrap_or_else(|| self.add_term(tenant, topology, selector));
            self.terms.entries[term].users += 1;
            uses.push(Use {
                term,
                rule: constraint.rule,
                required: constraint.required,
                own: selector.matches(&spec.labels),
            });
        }
        let spec = Arc::new(spec.clone());
        let template = self.templates.insert(Template {
            matched: self.terms_that_mean(tenant, &spec.labels),
            spec: Arc::clone(&spec),
            tenant,
            choices,
            zones,
            uses,
            refs: 0,
        });
        let owner = &mut self.tenants[tenant as usize];
        owner.templates.insert(template);
        for (key, value) in &spec.labels {
            let values = owner.labelled.entry(key.clone()).or_default();
            values.entry(value.clone()).or_default().insert(template);
        }
        self.known_templates.insert(spec, template);
        self.idle_templates += 1;
        Ok(template)
    }

    /// One more pod or queue needs the template.
    pub(crate) fn hold_template(&mut self, template: u32) {
        let refs = &mut self.templates[template].refs;
        *refs += 1;
        if *refs == 1 {
            self.idle_templates -= 1;
        }
    }

    /// One less does.
    pub(crate) fn drop_template(&mut self, template: u32) {
        let refs = &mut self.templates[template].refs;
        *refs -= 1;
        if *refs == 0 {
            self.idle_templates += 1;
        }
    }

    fn check_zones(&self, spec: &PodTemplate) -> Result<(), Refusal> {
        if matches!(&spec.zones, Zones::AnyOf(zones) | Zones::InOrder(zones) if zones.is_empty()) {
            return Err(Refusal::NoZones);
        }
        for zone in spec.zones.named() {
            let number = self.zone_names.get(zone);
            if number.is_none_or(|&number| self.zones[number as usize].hosts == 0) {
                return Err(Refusal::UnknownZone {
                    zone: zone.clone(),
                    known: self.zones().map(str::to_owned).collect(),
                });
            }
        }
        Ok(())
    }

    /// The flavors that the template accepts, and what a pod takes as each.
    pub(super) fn choices(&self, spec: &PodTemplate) -> Result<Vec<Choice>, Refusal> {
        for (asked, most, refusal) in [
            (spec.enis, MAX_ENIS, Refusal::Enis(spec.enis)),
            (spec.disks, MAX_DISKS, Refusal::Disks(spec.disks)),
            (spec.gpus, MAX_GPUS, Refusal::Gpus(spec.gpus)),
        ] {
            if asked > most {
                return Err(refusal);
            }
        }
        let skewless = |rule| matches!(rule, Rule::Spread { max_skew: 0 });
        if spec
            .constraints
            .iter()
            .any(|constraint| skewless(constraint.rule))
        {
            return Err(Refusal::Skew);
        }
        let (cpu, memory, gpus) = (spec.cpu_millis, spec.memory_bytes, spec.gpus);
        let mut flavors = Vec::new();
        if spec.flavors.is_empty() {
            let family = spec.family.as_deref();
            if let Some(family) = family
                && !self.flavors.iter().any(|flavor| flavor.family == family)
            {
                return Err(Refusal::UnknownFamily(family.to_owned()));
            }
            flavors.push(self.flavors.round_up(cpu, memory, gpus, family)?);
        } else if spec.family.is_some() {
            return Err(Refusal::FamilyAndFlavors);
        }
        for name in &spec.flavors {
            flavors.push(self.flavors.named(name, cpu, memory, gpus)?);
        }
        let choices = flavors.into_iter().map(|flavor| {
            let takes = Amount::of_pod(
                flavor.cpu_millis,
                flavor.memory_bytes,
                flavor.gpus,
                spec.enis.max(1),
                spec.disks,
            );
            let position = self.flavors.position(&flavor.name).unwrap_or_default();
            Choice {
                flavor: u16::try_from(position).unwrap_or(u16::MAX),
                family: self
                    .families
                    .get(&flavor.family)
                    .copied()
                    .unwrap_or_default(),
                takes,
                need: self.levels.of_need(takes),
            }
        });
        Ok(choices.collect())
    }

    /// Begins to count for a term: its tenant's templates are looked at once, and the
    /// pods of those that it means.
    fn add_term(&mut self, tenant: u32, topology: Topology, selector: &Selector) -> u32 {
        let term = self.terms.insert(tenant, topology, selector);
        let owner = &mut self.tenants[tenant as usize];
        let none = BTreeSet::new();
        let candidates = match selector.labels.first_key_value() {
            Some((key, value)) => {
                let values = owner.terms.entry(key.clone()).or_default();
                values.entry(value.clone()).or_default().push(term);
                let labelled = owner.labelled.get(key);
                labelled
                    .and_then(|values| values.get(value))
                    .unwrap_or(&none)
            }
            None => {
                owner.open_terms.push(term);
                &owner.templates
            }
        };
        let mut meant = BTreeSet::new();
        for &template in candidates {
            let entry = &mut self.templates[template];
            if selector.matches(&entry.spec.labels) {
                entry.matched.push(term);
                if entry.refs > 0 {
                    meant.insert(template);
                }
            }
        }
        if !meant.is_empty() {
            let chains = self.tenants[tenant as usize].ranks.values();
            let pods = chains.flat_map(|chain| chain.iter::<BY_RANK, _>(&self.pods));
            for (_, held) in
                pods.filter(|(_, held)| held.pod.is_some() && meant.contains(&held.template))
            {
                let site = self.site(held.host);
                self.terms.entries[term].join(site);
            }
        }
        term
    }

    fn terms_that_mean(&self, tenant: u32, labels: &Labels) -> Vec<u32> {
        let owner = &self.tenants[tenant as usize];
        let by_label = labels
            .iter()
            .filter_map(|(key, value)| owner.terms.get(key)?.get(value));
        let candidates = by_label.flatten().chain(&owner.open_terms);
        let meant = candidates.filter(|term| self.terms.entries[**term].selector.matches(labels));
        meant.copied().collect()
    }

    /// Forgets templates that nobody uses, and terms that no template uses.
    fn sweep(&mut self) {
        let idle = self
            .templates
            .iter()
            .filter(|(_, template)| template.refs == 0);
        let idle: Vec<u32> = idle.map(|(slot, _)| slot).collect();
        let mut unused = BTreeSet::new();
        for template in idle {
            let Some(removed) = self.templates.remove(template) else {
                continue;
            };
            self.known_templates.remove(&removed.spec);
            let owner = &mut self.tenants[removed.tenant as usize];
            owner.templates.remove(&template);
            for (key, value) in &removed.spec.labels {
                forget(&mut owner.labelled, key, value, |templates| {
                    templates.remove(&template);
                    templates.is_empty()
                });
            }
            for used in removed.uses {
                let users = &mut self.terms.entries[used.term].users;
                *users -= 1;
                if *users == 0 {
                    unused.insert(used.term);
                }
            }
        }
        self.idle_templates = 0;
        let meant = self
            .templates
            .iter()
            .filter(|(_, template)| template.matched.iter().any(|term| unused.contains(term)));
        for template in meant.map(|(slot, _)| slot).collect::<Vec<u32>>() {
            let matched = &mut self.templates[template].matched;
            matched.retain(|term| !unused.contains(term));
        }
        for term in unused {
            self.remove_term(term);
        }
    }

    /// Forgets a term that no template knows of any more.
    fn remove_term(&mut self, term: u32) {
        let Some(removed) = self.terms.remove(term) else {
            return;
        };
        let owner = &mut self.tenants[removed.tenant as usize];
        match removed.selector.labels.first_key_value() {
            Some((key, value)) => forget(&mut owner.terms, key, value, |terms| {
                terms.retain(|one| *one != term);
                terms.is_empty()
            }),
            None => owner.open_terms.retain(|one| *one != term),
        }
    }

    /// How many templates are known; for tests and metrics.
    #[must_use]
    pub fn templates(&self) -> u32 {
        number(self.templates.len())
    }
}

/// Changes what is kept under a label, and drops the entry once that is empty.
fn forget<T>(
    kept: &mut Table<String, Table<String, T>>,
    key: &str,
    value: &str,
    change: impl FnOnce(&mut T) -> bool,
) {
    let Some(values) = kept.get_mut(key) else {
        return;
    };
    if values.get_mut(value).is_some_and(change) {
        values.remove(value);
        if values.is_empty() {
            kept.remove(key);
        }
    }
}
