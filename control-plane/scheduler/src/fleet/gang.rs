//! Gangs: pods that are of use only together.

use super::Fleet;
use crate::placement::{Placed, PodId};
use crate::reason::Declined;
use crate::shortage::Shortage;
use crate::template::{PodTemplate, Zones};

/// Pods that get their places all together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Each pod with what it asks for.
    pub pods: Vec<(PodId, PodTemplate)>,
    /// All in one zone, whichever.
    pub one_zone: bool,
}

impl Fleet {
    /// Holds places for all, or for none; the answers in the same order.
    ///
    /// # Errors
    /// The [`Declined`] of the first that got no place. With `one_zone`, of the last
    /// zone tried.
    pub fn reserve_gang(&mut self, gang: &Gang) -> Result<Vec<Placed>, Declined> {
        if !gang.one_zone {
            return self.reserve_all(&gang.pods, None);
        }
        let zones: Vec<String> = self.zones().map(str::to_owned).collect();
        let mut declined = Declined::NoRoom;
        for zone in zones {
            match self.reserve_all(&gang.pods, Some(&zone)) {
                // Another zone changes nothing.
                Err(error @ (Declined::Refused(_) | Declined::AlreadyPlaced { .. })) => {
                    return Err(error);
                }
                Err(error) => declined = error,
                placed => return placed,
            }
        }
        Err(declined)
    }

    /// How many of a gang there is room for, and why there is none for the next; for a
    /// gang of one zone, in the last that was tried. `None` where all could be placed.
    pub(crate) fn explain_gang(&mut self, gang: &Gang) -> Option<(usize, Shortage)> {
        let mut placed: Vec<Placed> = Vec::new();
        let mut found = None;
        for (pod, spec) in &gang.pods {
            match self.reserve(*pod, spec) {
                Ok(place) => placed.push(place),
                Err(_) => {
                    let shortage = self.explain(spec).ok();
                    found = shortage.map(|shortage| (placed.len(), shortage));
                    break;
                }
            }
        }
        for place in placed.into_iter().rev() {
            let _ = self.roll_back(place.ticket);
        }
        found
    }

    fn reserve_all(
        &mut self,
        pods: &[(PodId, PodTemplate)],
        zone: Option<&String>,
    ) -> Result<Vec<Placed>, Declined> {
        // The largest first: they have the fewest places to choose from.
        let mut order: Vec<usize> = (0..pods.len()).collect();
        order.sort_by_key(|&at| {
            let spec = &pods[at].1;
            let size = (
                spec.gpus,
                spec.memory_bytes / 4 + u64::from(spec.cpu_millis) * 1_000_000,
            );
            (std::cmp::Reverse(size), at)
        });
        let mut placed: Vec<(usize, Placed)> = Vec::with_capacity(pods.len());
        for at in order {
            let (pod, spec) = &pods[at];
            let outcome = match zone {
                None => self.reserve(*pod, spec),
                Some(zone) if !may_be_in(spec, zone) => Err(Declined::NoRoom),
                Some(zone) => {
                    let mut spec = spec.clone();
                    spec.zones = Zones::AnyOf(vec![zone.clone()]);
                    self.reserve(*pod, &spec)
                }
            };
            match outcome {
                Ok(place) => placed.push((at, place)),
                Err(error) => {
                    // The last first, so that victims are pardoned as they were named.
                    for (_, place) in placed.into_iter().rev() {
                        // It was reserved just now.
                        let _ = self.roll_back(place.ticket);
                    }
                    return Err(error);
                }
            }
        }
        placed.sort_by_key(|(at, _)| *at);
        Ok(placed.into_iter().map(|(_, place)| place).collect())
    }
}

fn may_be_in(spec: &PodTemplate, zone: &String) -> bool {
    let named = spec.zones.named();
    named.is_empty() || named.contains(zone)
}
