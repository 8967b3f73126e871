//! Labels that change while a pod has its place.

use super::Fleet;
use crate::placement::{PlacementError, PodId};
use crate::selector::Labels;
use crate::template::{PodTemplate, Zones};

impl Fleet {
    /// Gives a pod other labels: selectors mean it by these from now on. It keeps its
    /// place, as in Kubernetes, even where it would not get it any more.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`].
    pub fn relabel(&mut self, pod: PodId, labels: &Labels) -> Result<(), PlacementError> {
        let slot = self.by_id.get(&pod).copied();
        let slot = slot.ok_or(PlacementError::NotPlaced(pod))?;
        let before = self.pods[slot].template;
        if self.templates[before].spec.labels == *labels {
            return Ok(());
        }
        let spec = PodTemplate {
            labels: labels.clone(),
            ..PodTemplate::clone(&self.templates[before].spec)
        };
        let after = match self.intern(&spec) {
            Ok(after) => after,
            // Its zones have no hosts any more. It has its place all the same.
            Err(_) => self.intern(&PodTemplate {
                zones: Zones::Any,
                ..spec
            })?,
        };
        self.hold_template(after);
        self.count_terms(slot, false);
        self.pods[slot].template = after;
        self.count_terms(slot, true);
        self.drop_template(before);
        let tenant = self.templates[after].tenant;
        self.news.tenants.insert(tenant);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::Amount;
    use crate::flavor::{Flavors, STANDARD_FAMILY};
    use crate::fleet::HostFacts;
    use crate::policy::Policy;
    use crate::selector::Selector;
    use crate::template::{Constraint, Rule, Topology};

    #[test]
    fn selectors_mean_a_pod_by_its_new_labels_and_all_counts_stay_right() {
        let mut fleet = Fleet::new(Flavors::standard(), Policy::default());
        let facts = HostFacts {
            name: "host".into(),
            zone: "zone".into(),
            family: STANDARD_FAMILY.into(),
            capacity: Amount {
                memory_bytes: 64 << 30,
                cpu_millis: 64_000,
                pods: 100,
                enis: 100,
                disks: 100,
                gpus: 0,
            },
        };
        fleet.set_host(facts).unwrap();
        fleet.set_ready("host", true).unwrap();
        let web = Labels::from([("app".into(), "web".into())]);
        let db = Labels::from([("app".into(), "db".into())]);
        let labelled = |labels: &Labels| PodTemplate {
            labels: labels.clone(),
            ..PodTemplate::default()
        };
        let apart = PodTemplate {
            constraints: vec![Constraint {
                selector: Selector::label("app", "web"),
                topology: Topology::Host,
                rule: Rule::Apart,
                required: true,
            }],
            ..PodTemplate::default()
        };
        fleet.reserve(PodId(1), &labelled(&web)).unwrap();
        assert!(fleet.reserve(PodId(2), &apart).is_err());
        fleet.relabel(PodId(1), &db).unwrap();
        fleet.audit().unwrap();
        fleet.reserve(PodId(2), &apart).unwrap();
        // It stays, though it would not get its place now.
        fleet.relabel(PodId(1), &web).unwrap();
        fleet.audit().unwrap();
        assert!(fleet.reserve(PodId(3), &labelled(&web)).is_err());
        fleet.reserve(PodId(3), &labelled(&db)).unwrap();
        assert_eq!(
            fleet.relabel(PodId(9), &web),
            Err(PlacementError::NotPlaced(PodId(9)))
        );
    }
}
