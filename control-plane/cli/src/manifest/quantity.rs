//! Quantities by Kubernetes' rules (its API reference, "Quantity"): a decimal number
//! and a suffix: `n u m`, none, `k M G T P E`, `Ki Mi Gi Ti Pi Ei`, or an exponent as
//! in `1e3`. What is finer than the unit that is wanted is rounded up.

/// Digits beyond these cannot matter for what fits the result.
const DIGITS_MAX: usize = 30;

/// Thousandths of a CPU.
///
/// # Errors
/// What is wrong with `text`.
pub(crate) fn cpu_millis(text: &str) -> Result<u32, String> {
    let millis = Quantity::parse(text)?.in_units(-3)?;
    u32::try_from(millis).map_err(|_| format!("`{text}` is too much"))
}

/// Bytes.
///
/// # Errors
/// What is wrong with `text`.
pub(crate) fn memory_bytes(text: &str) -> Result<u64, String> {
    let bytes = Quantity::parse(text)?.in_units(0)?;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is too much"))
}

/// `500m`, or `2` where it is whole.
pub(crate) fn show_cpu(millis: u32) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

/// With the largest binary suffix that leaves it whole.
pub(crate) fn show_memory(bytes: u64) -> String {
    let suffixes = [
        ("Ei", 60),
        ("Pi", 50),
        ("Ti", 40),
        ("Gi", 30),
        ("Mi", 20),
        ("Ki", 10),
    ];
    for (suffix, shift) in suffixes {
        let unit = 1_u64 << shift;
        if bytes != 0 && bytes.is_multiple_of(unit) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// `digits * 10^ten * 2^two`, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quantity {
    digits: u128,
    ten: i32,
    two: u32,
}

impl Quantity {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no quantity; write it as 500m, 0.5, 128Mi or 1G");
        if text.starts_with('-') {
            return Err(format!("`{text}` is negative"));
        }
        let body = text.strip_prefix('+').unwrap_or(text);
        let number_len = body
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, suffix) = body.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(wrong());
        }
        let (ten, two) = suffix_of(suffix).ok_or_else(wrong)?;
        let whole = whole.trim_start_matches('0');
        let fraction = fraction.trim_end_matches('0');
        if whole.len() + fraction.len() > DIGITS_MAX {
            return Err(format!("`{text}` has too many digits"));
        }
        let digits = format!("0{whole}{fraction}").parse().map_err(|_| wrong())?;
        let fraction_len = i32::try_from(fraction.len()).map_err(|_| wrong())?;
        Ok(Self {
            digits,
            ten: ten - fraction_len,
            two,
        })
    }

    /// How many units of `10^unit` it is, rounded up.
    fn in_units(self, unit: i32) -> Result<u128, String> {
        if self.digits == 0 {
            return Ok(0);
        }
        let too_much = || "is too much".to_owned();
        let scaled = self
            .digits
            .checked_mul(1_u128 << self.two.min(60))
            .ok_or_else(too_much)?;
        let ten = self.ten - unit;
        match (u32::try_from(ten), u32::try_from(-ten)) {
            (Ok(up), _) => 10_u128
                .checked_pow(up)
                .and_then(|factor| scaled.checked_mul(factor))
                .ok_or_else(too_much),
            (_, Ok(down)) => Ok(match 10_u128.checked_pow(down) {
                Some(divisor) => scaled.div_ceil(divisor),
                // Less than one unit, whatever it is.
                None => 1,
            }),
            _ => Err(too_much()),
        }
    }
}

/// The powers of ten and of two that a suffix stands for.
fn suffix_of(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let sign_less = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if sign_less.is_empty() || !sign_less.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let ten: i32 = digits.parse().ok()?;
            // Far beyond what any result holds.
            (-100..=100).contains(&ten).then_some((ten, 0))?
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_as_in_kubernetes_documentation() {
        // 128974848, 129e6, 129M, 128974848000m and 123Mi: "roughly the same value".
        assert_eq!(memory_bytes("128974848"), Ok(128_974_848));
        assert_eq!(memory_bytes("129e6"), Ok(129_000_000));
        assert_eq!(memory_bytes("129M"), Ok(129_000_000));
        assert_eq!(memory_bytes("128974848000m"), Ok(128_974_848));
        assert_eq!(memory_bytes("123Mi"), Ok(128_974_848));
        assert_eq!(cpu_millis("0.1"), Ok(100));
        assert_eq!(cpu_millis("100m"), Ok(100));
        assert_eq!(cpu_millis("2"), Ok(2000));
        assert_eq!(cpu_millis("1e-1"), Ok(100));
    }

    #[test]
    fn what_is_finer_than_the_unit_is_rounded_up() {
        assert_eq!(memory_bytes("100m"), Ok(1));
        assert_eq!(memory_bytes("1.5"), Ok(2));
        assert_eq!(cpu_millis("1n"), Ok(1));
        assert_eq!(cpu_millis("0.0005"), Ok(1));
        assert_eq!(memory_bytes("1e-99"), Ok(1));
        assert_eq!(memory_bytes("0.000n"), Ok(0));
        assert_eq!(memory_bytes("0.5Ki"), Ok(512));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            ".",
            "m",
            "1.2.3",
            "1 Gi",
            "1gi",
            "1KB",
            "1e",
            "1e+",
            "1e1.5",
            "0x10",
            "-1",
            "١",
            "1e101",
            "99Ei",
            "1Mi ",
            "NaN",
            "inf",
            "12345678901234567890123456789012",
        ] {
            assert!(memory_bytes(text).is_err(), "{text}");
        }
        assert!(cpu_millis("5M").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bytes in any::<u64>(), millis in any::<u32>()) {
            prop_assert_eq!(memory_bytes(&show_memory(bytes)), Ok(bytes));
            prop_assert_eq!(cpu_millis(&show_cpu(millis)), Ok(millis));
        }

        #[test]
        fn a_suffix_is_its_factor(number in 0_u64..1000, index in 0_usize..10) {
            let (suffix, factor) = [
                ("k", 1000_u64), ("M", 1_000_000), ("G", 1_000_000_000),
                ("T", 1_000_000_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30),
                ("Ti", 1 << 40), ("Pi", 1 << 50), ("e4", 10_000),
            ][index];
            prop_assert_eq!(memory_bytes(&format!("{number}{suffix}")), Ok(number * factor));
        }

        #[test]
        fn a_fraction_is_rounded_up_exactly(whole in 0_u32..1_000_000, micro in 0_u32..1_000_000) {
            let text = format!("{whole}.{micro:06}");
            let exact = u128::from(whole) * 1_000_000 + u128::from(micro);
            let expected = u32::try_from(exact.div_ceil(1000)).unwrap();
            prop_assert_eq!(cpu_millis(&text), Ok(expected));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}", number in "[0-9.]{0,40}(e[+-]?[0-9]{0,5}|[A-Za-z]{0,3})") {
            let _ = (memory_bytes(&text), cpu_millis(&text));
            let _ = (memory_bytes(&number), cpu_millis(&number));
        }
    }
}
