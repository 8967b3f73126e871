//! Findings for people: on a terminal, and as one HTML page.

pub mod html;
pub mod promises;
pub mod svg;
pub mod text;

/// A value with as many digits as it deserves.
pub fn show(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_about_three_digits() {
        let shown = [0.0, 0.01234, 0.5, 1.234, 20.84, 127.3, -3.21].map(show);
        assert_eq!(
            shown,
            ["0", "0.0123", "0.50", "1.23", "20.8", "127", "-3.21"]
        );
    }
}
