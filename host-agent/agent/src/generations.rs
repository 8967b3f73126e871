//! The newest generation seen of each sandbox, also of those that are gone: a late
//! call of an older one must not bring it back.

use std::collections::{HashMap, VecDeque};

use longship_framed::error::Failure;

use crate::request::SandboxId;

/// The oldest are forgotten beyond this many; by then no call of theirs is under way.
const REMEMBERED: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    newest: HashMap<SandboxId, u64>,
    order: VecDeque<SandboxId>,
}

impl Generations {
    /// Lets a call of `generation` pass, and fences all older ones off from now on.
    ///
    /// # Errors
    /// `StaleGeneration` where a newer one was seen.
    pub(crate) fn admit(&mut self, id: &SandboxId, generation: u64) -> Result<(), Failure> {
        match self.newest.get_mut(id) {
            Some(newest) if *newest > generation => Err(Failure::stale(format!(
                "generation {generation} of sandbox {id} is stale: {newest} was seen"
            ))),
            Some(newest) => {
                *newest = generation;
                Ok(())
            }
            None => {
                if self.order.len() >= REMEMBERED
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.newest.remove(&oldest);
                }
                self.newest.insert(id.clone(), generation);
                self.order.push_back(id.clone());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use longship_framed::error::Class;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_call_passes_after_a_newer_one(generations in prop::collection::vec(0_u64..9, 1..40)) {
            let mut seen = Generations::default();
            let id = SandboxId::parse("pod").unwrap();
            let mut newest = 0;
            for generation in generations {
                match seen.admit(&id, generation) {
                    Ok(()) => prop_assert!(generation >= newest),
                    Err(failure) => {
                        prop_assert_eq!(failure.class(), Class::StaleGeneration);
                        prop_assert!(generation < newest);
                    }
                }
                newest = newest.max(generation);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Generations::default();
        for n in 0..REMEMBERED + 10 {
            seen.admit(&SandboxId::parse(&format!("p{n}")).unwrap(), 1)
                .unwrap();
        }
        assert_eq!(seen.newest.len(), REMEMBERED);
        assert_eq!(seen.order.len(), REMEMBERED);
    }
}
