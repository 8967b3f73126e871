//! The result of a check.

use serde::Serialize;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Pods will run, but worse or fewer than they could.
    Warn,
    /// Pods cannot run.
    Fail,
}

/// One question about the host, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, e.g. `kvm-speed`.
    pub name: &'static str,
    /// Whether that is enough.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do about it; empty where all is well.
    pub remedy: String,
}

impl Check {
    /// All is well.
    pub(crate) fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            finding: finding.into(),
            remedy: String::new(),
        }
    }

    /// Good enough, with a `remedy` to make it better.
    pub(crate) fn warn(
        name: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Warn,
            finding: finding.into(),
            remedy: remedy.into(),
        }
    }

    /// Not good enough until `remedy` has been followed.
    pub(crate) fn fail(
        name: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Fail,
            finding: finding.into(),
            remedy: remedy.into(),
        }
    }
}

/// Whether a host with these answers can run pods.
#[must_use]
pub fn usable(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.verdict != Verdict::Fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_leaves_a_host_usable_and_a_failure_does_not() {
        let mut checks = vec![Check::ok("a", "fine"), Check::warn("b", "so so", "do")];
        assert!(usable(&checks));
        checks.push(Check::fail("c", "missing", "get one"));
        assert!(!usable(&checks));
    }

    #[test]
    fn a_check_is_plain_data_for_scripts() {
        let json = serde_json::to_value(Check::warn("x", "found", "remedy")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "name": "x", "verdict": "warn", "finding": "found", "remedy": "remedy"
            })
        );
    }
}
