//! Points in time and lengths of it. Longship counts microseconds since the Unix epoch.

pub(crate) use longship_proto::now_us;

const SECOND_US: i64 = 1_000_000;
const DAY_S: i64 = 86_400;

/// RFC 3339 in UTC, whole seconds; `None` for 0, which is "not yet".
pub(crate) fn rfc3339(time_us: i64) -> Option<String> {
    if time_us == 0 {
        return None;
    }
    let seconds = time_us.div_euclid(SECOND_US);
    let (day, of_day) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
    ))
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar.
/// Years begin in March here, so that a leap day is a year's last.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let days = days + 719_468;
    let era = days.div_euclid(ERA);
    let of_era = days.rem_euclid(ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// How long ago, in its two largest units at most: `45s`, `12m`, `3h10m`, `5d`.
pub(crate) fn age(time_us: i64, now_us: i64) -> String {
    if time_us == 0 {
        return "-".to_owned();
    }
    let seconds = now_us.saturating_sub(time_us).max(0) / SECOND_US;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d", seconds / DAY_S),
    }
}

/// A length of time: `0.4 ms`, `12 ms`, `3.21 s`.
pub(crate) fn length(us: i64) -> String {
    match us {
        i64::MIN..=9_999 => format!("{}.{} ms", us / 1000, us.rem_euclid(1000) / 100),
        10_000..=999_999 => format!("{} ms", us / 1000),
        _ => format!("{}.{:02} s", us / SECOND_US, us % SECOND_US / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_in_rfc_3339() {
        let at = |seconds: i64| rfc3339(seconds * SECOND_US).unwrap();
        assert_eq!(at(1), "1970-01-01T00:00:01Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(rfc3339(0), None);
    }

    #[test]
    fn lengths_have_a_unit_that_fits() {
        assert_eq!(length(400), "0.4 ms");
        assert_eq!(length(12_345), "12 ms");
        assert_eq!(length(3_219_999), "3.21 s");
        let second = SECOND_US;
        assert_eq!(age(second, 46 * second), "45s");
        assert_eq!(age(second, 11_461 * second), "3h11m");
        assert_eq!(age(0, 5), "-");
        assert_eq!(age(10 * second, second), "0s");
    }
}
