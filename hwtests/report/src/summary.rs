//! Samples and what is said of them: a median with its spread.

use serde::{Deserialize, Serialize};

/// Order statistics of some samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples.
    pub n: usize,
    /// The least.
    pub min: f64,
    /// A quarter is at most that.
    pub p25: f64,
    /// Half is at most that.
    pub median: f64,
    /// Three quarters are at most that.
    pub p75: f64,
    /// Nine tenths are at most that.
    pub p90: f64,
    /// 99 of 100 are at most that.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// Of `samples`; `None` where there is none, or one that is no number.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| sample.is_nan()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part| quantile(&sorted, part);
        Some(Self {
            n: sorted.len(),
            min: *sorted.first()?,
            p25: at(0.25)?,
            median: at(0.5)?,
            p75: at(0.75)?,
            p90: at(0.9)?,
            p99: at(0.99)?,
            max: *sorted.last()?,
        })
    }
}

/// The quantile `part` (0 to 1) of sorted samples, interpolated between the two
/// nearest (Hyndman and Fan's definition 7).
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = u32::try_from(sorted.len().checked_sub(1)?).ok()?;
    let place = part * f64::from(last);
    // The place is between 0 and `last`, so a search finds its integer part.
    let below = (0..=last).rev().find(|i| f64::from(*i) <= place)?;
    let low = sorted.get(usize::try_from(below).ok()?)?;
    let high = sorted
        .get(usize::try_from(below).ok()?.checked_add(1)?)
        .unwrap_or(low);
    Some(low + (high - low) * (place - f64::from(below)))
}

/// The median of `samples`.
pub fn median(samples: &[f64]) -> Option<f64> {
    Summary::of(samples).map(|summary| summary.median)
}

/// A count as a number for arithmetic; exact to 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "no count or size here comes near 2^53"
)]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// A signed count as a number for arithmetic; exact to 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "no time or difference here comes near 2^53"
)]
pub fn signed(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_statistics_of_known_samples() {
        // As R's quantile(c(15, 20, 35, 40, 50)) has it.
        let summary = Summary::of(&[40.0, 15.0, 50.0, 20.0, 35.0]).unwrap();
        assert_eq!(
            (summary.min, summary.p25, summary.median, summary.p75),
            (15.0, 20.0, 35.0, 40.0)
        );
        assert!((summary.p90 - 46.0).abs() < 1e-9);
        assert!((summary.p99 - 49.6).abs() < 1e-9);
        assert_eq!((summary.max, summary.n), (50.0, 5));

        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        let hundred: Vec<f64> = (1..=101).map(f64::from).collect();
        let summary = Summary::of(&hundred).unwrap();
        assert_eq!((summary.p25, summary.p90, summary.p99), (26.0, 91.0, 100.0));
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    proptest! {
        #[test]
        fn they_are_in_order_and_within_the_samples(
            samples in proptest::collection::vec(-1e9_f64..1e9, 1..200),
        ) {
            let s = Summary::of(&samples).unwrap();
            let order = [s.min, s.p25, s.median, s.p75, s.p90, s.p99, s.max];
            prop_assert!(order.windows(2).all(|pair| pair[0] <= pair[1] + 1e-6));
            let half = samples.iter().filter(|sample| **sample <= s.median + 1e-6).count();
            prop_assert!(half * 2 >= samples.len());
        }
    }
}
