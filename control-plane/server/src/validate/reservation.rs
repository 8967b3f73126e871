//! A capacity reservation that somebody wants.

use longship_proto::Failure;
use longship_proto::control::v1::CapacityReservation;

use super::names::dns_label;
use super::placement::{flavor, zones};

const COUNT: std::ops::RangeInclusive<u32> = 1..=10_000;
/// The latest end from now on, in microseconds: a year.
const MAX_US: i64 = 366 * 24 * 3600 * 1_000_000;

/// Checks a reservation. What only the server sets is left out.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn reservation(
    given: CapacityReservation,
    now_us: i64,
) -> Result<CapacityReservation, Failure> {
    dns_label("reservation.name", &given.name)?;
    if !given.tenant.is_empty() {
        dns_label("reservation.tenant", &given.tenant)?;
    }
    flavor("reservation.flavor", &given.flavor)?;
    if !COUNT.contains(&given.count) {
        return Err(Failure::invalid(
            "reservation.count",
            format!("is {}; from 1 to 10000", given.count),
        ));
    }
    zones("reservation.zones", &given.zones)?;
    let left = given.ends_us.saturating_sub(now_us);
    if left <= 0 || left > MAX_US {
        return Err(Failure::invalid(
            "reservation.ends_us",
            "must be later than now, and within a year",
        ));
    }
    Ok(CapacityReservation {
        idle: 0,
        used: 0,
        ..given
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_field_is_named() {
        let valid = || CapacityReservation {
            name: "spring".into(),
            flavor: "std-0.5x1".into(),
            count: 3,
            zones: vec!["a".into(), "b".into()],
            ends_us: 2_000_000,
            ..CapacityReservation::default()
        };
        type Change = fn(&mut CapacityReservation);
        let wrong: [(&str, Change); 9] = [
            ("name", |r| r.name.clear()),
            ("tenant", |r| r.tenant = "A".into()),
            ("flavor", |r| r.flavor.clear()),
            ("flavor", |r| r.flavor = "huge".into()),
            ("count", |r| r.count = 0),
            ("count", |r| r.count = 10_001),
            ("zones[1]", |r| r.zones[1] = "a".into()),
            ("ends_us", |r| r.ends_us = 1_000_000),
            ("ends_us", |r| r.ends_us = i64::MAX),
        ];
        assert!(reservation(valid(), 1_000_000).is_ok());
        for (field, change) in wrong {
            let mut given = valid();
            change(&mut given);
            let refused = reservation(given, 1_000_000).unwrap_err();
            assert_eq!(refused.field, format!("reservation.{field}"));
        }
    }
}
