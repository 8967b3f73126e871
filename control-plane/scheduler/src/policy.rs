//! Which of the hosts that fit is taken.

/// Which of the hosts with room is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The one with the least left over, so that large gaps stay whole.
    Pack,
    /// The emptiest, so that pods share the least.
    #[default]
    Spread,
}
