//! Amounts as a person writes them.

/// `1 CPU`, `0.25 CPUs`, `16 CPUs`.
#[must_use]
pub fn cpus_text(millis: u32) -> String {
    if millis == 1000 {
        return "1 CPU".into();
    }
    format!("{} CPUs", thousandths(u64::from(millis)))
}

/// `128 MiB`, `1.5 GiB`; rounded down to a thousandth of its unit.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        let whole = bytes >> shift;
        if whole > 0 {
            let rest = bytes - (whole << shift);
            let thousandths_of_rest = (u128::from(rest) * 1000) >> shift;
            let thousandths_of_rest = u64::try_from(thousandths_of_rest).unwrap_or(999);
            return format!("{} {unit}", thousandths(whole * 1000 + thousandths_of_rest));
        }
    }
    format!("{bytes} bytes")
}

/// A count of thousandths as a decimal without trailing zeros.
pub(crate) fn thousandths(n: u64) -> String {
    let text = format!("{}.{:03}", n / 1000, n % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_a_person_writes_them() {
        for (millis, text) in [
            (250, "0.25 CPUs"),
            (1000, "1 CPU"),
            (1500, "1.5 CPUs"),
            (16_000, "16 CPUs"),
            (0, "0 CPUs"),
        ] {
            assert_eq!(cpus_text(millis), text);
        }
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (128 << 20, "128 MiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 30) - 1, "1023.999 MiB"),
            (1 << 42, "4 TiB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
        let largest = bytes_text(u64::MAX);
        assert!(largest.starts_with("16777215.999"), "{largest}");
    }
}
