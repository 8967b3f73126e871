//! The life of a sandbox, and all its transitions.
//!
//! ```text
//! Preparing ─▶ Prepared ─▶ Starting ─▶ Running
//!     │ │          │           │          │
//!     │ │          └───────────┴────┬─────┘
//!     │ │               ▼           ▼
//!     │ │           Exited ───▶ Stopping ──▶ Gone
//!     │ └───────────────────────▶            ▲
//!     └──────────────────────────────────────┘
//! ```

use longship_proto::agent::v1::SandboxState;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its VMM is being spawned and builds the machine.
    Preparing,
    /// The machine is there; nothing runs and no device is attached.
    Prepared,
    /// Devices are being attached.
    Starting,
    /// The vCPUs run.
    Running,
    /// The VMM has ended by itself; its reason is still to be had.
    Exited,
    /// What is left is being given back.
    Stopping,
    /// Nothing is left.
    Gone,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The VMM has built the machine.
    Built,
    /// The machine could not be built; what there was of it has been given back.
    BuildFailed,
    /// Its devices are to be attached.
    Start,
    /// The vCPUs have been started.
    Booted,
    /// The VMM has ended, or had to be ended because it could not go on.
    Ended,
    /// Nobody wants it any more.
    Stop,
    /// Everything has been given back.
    Released,
}

impl State {
    /// The state after `event`; `None` where that cannot happen in this one.
    pub(crate) fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Preparing, Event::Built) => Some(Self::Prepared),
            (Self::Preparing, Event::BuildFailed) | (Self::Stopping, Event::Released) => {
                Some(Self::Gone)
            }
            (Self::Prepared, Event::Start) => Some(Self::Starting),
            (Self::Starting, Event::Booted) => Some(Self::Running),
            (Self::Prepared | Self::Starting | Self::Running, Event::Ended) => Some(Self::Exited),
            (
                Self::Preparing | Self::Prepared | Self::Starting | Self::Running | Self::Exited,
                Event::Stop,
            ) => Some(Self::Stopping),
            _ => None,
        }
    }

    /// What a card is told. The states between are not for cards: a call that
    /// brings a sandbox through one answers when it is over.
    pub(crate) fn shown(self) -> SandboxState {
        match self {
            Self::Preparing | Self::Prepared | Self::Starting => SandboxState::Prepared,
            Self::Running => SandboxState::Running,
            Self::Exited | Self::Stopping => SandboxState::Exited,
            Self::Gone => SandboxState::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [Event; 7] = [
        Event::Built,
        Event::BuildFailed,
        Event::Start,
        Event::Booted,
        Event::Ended,
        Event::Stop,
        Event::Released,
    ];

    /// All states that a history of events leads through; events that cannot
    /// happen are passed over, as a sandbox refuses them.
    fn history(events: &[usize]) -> Vec<State> {
        let mut states = vec![State::Preparing];
        for index in events {
            let last = *states.last().unwrap();
            states.extend(last.after(EVENTS[*index]));
        }
        states
    }

    proptest! {
        #[test]
        fn a_sandbox_never_goes_back_and_never_runs_twice(
            events in prop::collection::vec(0..EVENTS.len(), 0..60),
        ) {
            let rank = |state: State| match state {
                State::Preparing => 0,
                State::Prepared => 1,
                State::Starting => 2,
                State::Running => 3,
                State::Exited => 4,
                State::Stopping => 5,
                State::Gone => 6,
            };
            let states = history(&events);
            for pair in states.windows(2) {
                prop_assert!(rank(pair[0]) < rank(pair[1]), "{states:?}");
            }
        }

        #[test]
        fn nothing_runs_that_was_not_prepared_and_started(
            events in prop::collection::vec(0..EVENTS.len(), 0..60),
        ) {
            let states = history(&events);
            if states.contains(&State::Running) {
                prop_assert_eq!(
                    &states[..4],
                    &[State::Preparing, State::Prepared, State::Starting, State::Running]
                );
            }
        }

        #[test]
        fn whatever_happened_a_stop_and_a_release_end_it(
            events in prop::collection::vec(0..EVENTS.len(), 0..60),
        ) {
            let state = *history(&events).last().unwrap();
            let after_build = state.after(Event::Built).unwrap_or(state);
            let stopping = after_build.after(Event::Stop).unwrap_or(after_build);
            let end = stopping.after(Event::Released).unwrap_or(stopping);
            prop_assert_eq!(end, State::Gone);
        }

        #[test]
        fn cards_see_states_only_in_the_order_of_their_numbers(
            events in prop::collection::vec(0..EVENTS.len(), 0..60),
        ) {
            let shown: Vec<i32> =
                history(&events).iter().map(|state| i32::from(state.shown())).collect();
            prop_assert!(shown.is_sorted(), "{shown:?}");
        }
    }
}
