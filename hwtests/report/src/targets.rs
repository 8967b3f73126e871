//! What has been promised: each line with the figure that shows it.

/// A promise.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What is promised.
    pub title: &'static str,
    /// Which report, and which figure in it; its median counts.
    pub figure: (&'static str, &'static str),
    /// What Firecracker needs for the same in the same place; empty: it does not do it.
    pub firecracker: &'static str,
    /// Of the bounds; empty for a count.
    pub unit: &'static str,
    /// What must be reached first.
    pub first: Bound,
    /// Where it shall go.
    pub goal: Bound,
}

/// What the median must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// No more than that.
    AtMost(f64),
    /// No less than that.
    AtLeast(f64),
}

impl Bound {
    /// Whether a measured value keeps it.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

const fn at_most(
    title: &'static str,
    figure: (&'static str, &'static str),
    unit: &'static str,
    firecracker: &'static str,
    first: f64,
    goal: f64,
) -> Target {
    Target {
        title,
        figure,
        firecracker,
        unit,
        first: Bound::AtMost(first),
        goal: Bound::AtMost(goal),
    }
}

const fn at_least(
    title: &'static str,
    figure: (&'static str, &'static str),
    unit: &'static str,
    firecracker: &'static str,
    first: f64,
    goal: f64,
) -> Target {
    Target {
        title,
        figure,
        firecracker,
        unit,
        first: Bound::AtLeast(first),
        goal: Bound::AtLeast(goal),
    }
}

/// All of them.
pub const TARGETS: [Target; 20] = [
    at_most(
        "spawn → init, cold, lean kernel, 1 vCPU, 128 MiB",
        ("compare", "compare.longship.cold"),
        "ims",
        "127",
        120.0,
        90.0,
    ),
    at_most(
        "clone: request at the agent → guest's first act",
        ("start", "start.clone"),
        "ims",
        "20.8",
        20.0,
        10.0,
    ),
    at_most(
        "warm pool: request → guest's first act",
        ("start", "start.warm"),
        "ims",
        "",
        5.0,
        2.0,
    ),
    at_most(
        "pod from clone: request at the card → container's first output",
        ("pod-start", "burst.pod.from-card"),
        "ims",
        "",
        120.0,
        60.0,
    ),
    at_most(
        "VMM memory without guest RAM: RSS",
        ("overhead", "overhead.vmm.rss"),
        "MB",
        "4.0",
        4.0,
        2.5,
    ),
    at_most(
        "VMM memory without guest RAM: anonymous",
        ("overhead", "overhead.vmm.anonymous"),
        "MB",
        "0.3",
        0.5,
        0.3,
    ),
    at_most(
        "host memory an idle clone (of 32 alive)",
        ("clones", "density.sandbox.lost"),
        "MB",
        "1.4 to 1.9",
        4.0,
        1.4,
    ),
    at_least(
        "clones started a second, eight at a time",
        ("clones-burst", "burst.sandbox.rate"),
        "1/s",
        "23.5",
        20.0,
        50.0,
    ),
    at_most(
        "host memory an idle busybox pod, all in",
        ("pods", "density.pod.lost"),
        "MB",
        "",
        16.0,
        6.0,
    ),
    at_least(
        "pods alive at once in 8 GiB",
        ("pods", "density.pod.alive"),
        "",
        "",
        200.0,
        200.0,
    ),
    at_most(
        "of them, that did not answer",
        ("pods", "density.pod.silent"),
        "",
        "",
        0.0,
        0.0,
    ),
    at_most(
        "start of a pod, last of many against first",
        ("pods-growth", "density.pod.growth.latency"),
        "%",
        "",
        20.0,
        20.0,
    ),
    at_most(
        "failures of 100 pods at once",
        ("pods-burst", "burst.pod.failures"),
        "",
        "",
        0.0,
        0.0,
    ),
    at_most(
        "control plane: 10,000 pods on 1,000 cards, create → Running",
        ("control-pods", "pods.seconds"),
        "s",
        "",
        10.0,
        10.0,
    ),
    at_most(
        "the same, 500 pods",
        ("control-pods-500", "pods.seconds"),
        "s",
        "",
        1.0,
        1.0,
    ),
    at_most(
        "10,000 pods: etcd to the embedded store",
        ("control-stores", "stores.ratio"),
        "",
        "",
        3.0,
        3.0,
    ),
    at_most(
        "a change of one of 100,000 pods → 1,000 watchers, 99th percentile",
        ("control-watch", "watch.change.p99"),
        "ms",
        "",
        100.0,
        100.0,
    ),
    at_most(
        "leader killed under load: acknowledged pods lost",
        ("control-failover", "failover.lost"),
        "",
        "",
        0.0,
        0.0,
    ),
    at_most(
        "leader killed under load: pods duplicated",
        ("control-failover", "failover.duplicated"),
        "",
        "",
        0.0,
        0.0,
    ),
    at_most(
        "10,000 pods, all in batches of 100",
        ("control-pods-batch", "pods.seconds"),
        "s",
        "",
        10.0,
        10.0,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_at_its_value() {
        assert!(Bound::AtMost(2.0).holds(2.0) && !Bound::AtMost(2.0).holds(2.01));
        assert!(Bound::AtLeast(2.0).holds(2.0) && !Bound::AtLeast(2.0).holds(1.99));
    }

    #[test]
    fn a_goal_is_no_weaker_than_what_comes_first() {
        for target in TARGETS {
            let stricter = match (target.first, target.goal) {
                (Bound::AtMost(first), Bound::AtMost(goal)) => goal <= first,
                (Bound::AtLeast(first), Bound::AtLeast(goal)) => goal >= first,
                _ => false,
            };
            assert!(stricter, "{}", target.title);
        }
    }
}
