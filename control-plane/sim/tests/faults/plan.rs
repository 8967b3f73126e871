//! What goes wrong, and when: drawn from the seed before anything runs.

use std::time::Duration;

use longship_sim::card::Behaviour;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The sizes of one simulated world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Control planes of which one leads.
    pub(crate) controls: usize,
    pub(crate) cards: usize,
    /// Clients' pods, at most at once.
    pub(crate) pods: usize,
    /// How long things go wrong.
    pub(crate) trouble: Duration,
    /// Twice that is how long a write takes.
    pub(crate) write_delay: Duration,
    /// The longest that a message is on its way.
    pub(crate) latency: Duration,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// Messages between the card and all control planes are lost.
    Partition { card: usize },
    /// Only those in one direction.
    PartitionOneWay { card: usize, to_card: bool },
    /// They wait, and come all at once in the end.
    Hold { card: usize },
    /// Clients reach no control plane.
    PartitionClient,
    /// The card's process ends, and with it what it ran.
    CrashCard { card: usize },
    /// The control plane's process ends.
    CrashControl { control: usize },
    /// Another one leads.
    Elect { control: usize },
    /// The card behaves badly.
    Behave { card: usize, behaviour: Behaviour },
    /// All cards break off and attach again.
    Storm,
    /// The control plane's clock jumps by so many seconds.
    Skew { seconds: i64 },
    /// The card's clock is wrong by so many seconds.
    SkewCard { card: usize, seconds: i64 },
    /// Messages take up to so many milliseconds.
    Slow { card: usize, millis: u64 },
}

/// A fault, from when to when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) begin: Duration,
    pub(crate) end: Duration,
    pub(crate) fault: Fault,
}

/// Everything that a seed decides beforehand.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) sizes: Sizes,
    pub(crate) faults: Vec<Planned>,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let sizes = Sizes {
            controls: random.random_range(1..=2),
            cards: random.random_range(2..=5),
            pods: random.random_range(4..=30),
            trouble: Duration::from_millis(random.random_range(3000..=15_000)),
            write_delay: Duration::from_millis(random.random_range(0..=15)),
            latency: Duration::from_millis(random.random_range(5..=50)),
        };
        let pause = random.random_range(100..=2000);
        let mut faults = Vec::new();
        let mut at = Duration::from_millis(random.random_range(100..=1500));
        while at < sizes.trouble {
            let fault = draw(&mut random, sizes);
            let lasts = Duration::from_millis(random.random_range(20..=6000));
            faults.push(Planned {
                begin: at,
                end: (at + lasts).min(sizes.trouble),
                fault,
            });
            at += Duration::from_millis(random.random_range(10..=pause));
        }
        Self { sizes, faults }
    }
}

fn draw(random: &mut StdRng, sizes: Sizes) -> Fault {
    let card = random.random_range(0..sizes.cards);
    let control = random.random_range(0..sizes.controls);
    match random.random_range(0..16) {
        0 | 1 => Fault::Partition { card },
        2 => Fault::PartitionOneWay {
            card,
            to_card: random.random_bool(0.5),
        },
        3 => Fault::Hold { card },
        4 => Fault::PartitionClient,
        5 | 6 => Fault::CrashCard { card },
        7 | 8 => Fault::CrashControl { control },
        9 => Fault::Elect { control },
        10 | 11 => Fault::Behave {
            card,
            behaviour: [Behaviour::Silent, Behaviour::Deaf, Behaviour::Stale]
                [random.random_range(0..3)],
        },
        12 => Fault::Storm,
        13 => Fault::Skew {
            seconds: random.random_range(-7200..=7200),
        },
        14 => Fault::SkewCard {
            card,
            seconds: random.random_range(-7200..=7200),
        },
        _ => Fault::Slow {
            card,
            millis: random.random_range(60..=900),
        },
    }
}
