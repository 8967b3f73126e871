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

/// Why not all of a gang has room.
#[derive(Debug)]
struct Failed {
    declined: Declined,
    /// How many found room before.
    fits: usize,
    /// What is in the way of the next, where it was asked for.
    shortage: Option<Box<Shortage>>,
}

impl Fleet {
    /// Holds places for all, or for none; the answers in the same order.
    ///
    /// # Errors
    /// The [`Declined`] of the first that got no place. With `one_zone`, of the last
    /// zone tried.
    pub fn reserve_gang(&mut self, gang: &Gang) -> Result<Vec<Placed>, Declined> {
        self.try_gang(gang, false).map_err(|failed| failed.declined)
    }

    /// How many of a gang there is room for, and why there is none for the next; for a
    /// gang of one zone, in the last that was tried. `None` where all have room.
    pub(crate) fn explain_gang(&mut self, gang: &Gang) -> Option<(usize, Shortage)> {
        match self.try_gang(gang, true) {
            Ok(places) => {
                let before = self.take_news();
                self.undo(places);
                self.news = before;
                None
            }
            Err(failed) => Some((failed.fits, *failed.shortage.unwrap_or_default())),
        }
    }

    fn try_gang(&mut self, gang: &Gang, explain: bool) -> Result<Vec<Placed>, Failed> {
        let before = self.take_news();
        let tried = self.try_zones(gang, explain);
        // What was only tried is no news to those that wait: they would try for ever.
        let since = self.take_news();
        self.news = match tried {
            Ok(_) => before.and(since),
            Err(_) => before,
        };
        tried
    }

    fn try_zones(&mut self, gang: &Gang, explain: bool) -> Result<Vec<Placed>, Failed> {
        if !gang.one_zone {
            return self.reserve_all(&gang.pods, None, explain);
        }
        let zones: Vec<String> = self.zones().map(str::to_owned).collect();
        let mut failed = Failed {
            declined: Declined::NoRoom,
            fits: 0,
            shortage: None,
        };
        for zone in zones {
            failed = match self.reserve_all(&gang.pods, Some(&zone), explain) {
                Err(failed) => failed,
                placed => return placed,
            };
            // Another zone changes nothing.
            if !matches!(failed.declined, Declined::NoRoom | Declined::Limit(_)) {
                break;
            }
        }
        Err(failed)
    }

    fn reserve_all(
        &mut self,
        pods: &[(PodId, PodTemplate)],
        zone: Option<&String>,
        explain: bool,
    ) -> Result<Vec<Placed>, Failed> {
        // The largest first: they have the fewest places to choose from.
        let mut order: Vec<usize> = (0..pods.len()).collect();
        order.sort_by_key(|&at| {
            let spec = &pods[at].1;
            let cpu = u64::from(spec.cpu_millis) * 1_000_000;
            let size = (spec.gpus, spec.memory_bytes / 4 + cpu);
            (std::cmp::Reverse(size), at)
        });
        let mut placed: Vec<(usize, Placed)> = Vec::with_capacity(pods.len());
        for at in order {
            let (pod, spec) = &pods[at];
            let mut spec = std::borrow::Cow::Borrowed(spec);
            let outcome = match zone {
                Some(zone) if !may_be_in(&spec, zone) => Err(Declined::NoRoom),
                Some(zone) => {
                    spec.to_mut().zones = Zones::AnyOf(vec![zone.clone()]);
                    self.reserve(*pod, &spec)
                }
                None => self.reserve(*pod, &spec),
            };
            match outcome {
                Ok(place) => placed.push((at, place)),
                Err(declined) => {
                    let shortage = explain.then(|| Box::new(self.explain_known(&spec)));
                    let fits = placed.len();
                    self.undo(placed.into_iter().map(|(_, place)| place).collect());
                    return Err(Failed {
                        declined,
                        fits,
                        shortage,
                    });
                }
            }
        }
        placed.sort_by_key(|(at, _)| *at);
        Ok(placed.into_iter().map(|(_, place)| place).collect())
    }

    fn undo(&mut self, places: Vec<Placed>) {
        for place in places.into_iter().rev() {
            // It was reserved just now.
            let _ = self.roll_back(place.ticket);
        }
    }
}

fn may_be_in(spec: &PodTemplate, zone: &String) -> bool {
    let named = spec.zones.named();
    named.is_empty() || named.contains(zone)
}
