//! What a simulated card is told to do wrong.

/// How a card behaves while its stream is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// As a card should.
    #[default]
    Sound,
    /// It sends nothing, not even heartbeats; pods go on.
    Silent,
    /// It does not read what it is sent.
    Deaf,
    /// It says everything twice, and the second time as if of an older generation.
    Stale,
}

/// Orders to a card; the newest count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Orders {
    /// How it behaves from now on.
    pub behaviour: Behaviour,
    /// Rises each time that the card shall break its stream off and attach again.
    pub reattach: u64,
    /// It keeps no stream at all.
    pub away: bool,
}
