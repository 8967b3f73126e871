//! `longship doctor`

use clap::{Args, ValueEnum};
use longship_probe::{Check, Host, Verdict, check_host, check_kvm, usable};
use serde_json::json;

use crate::error::CliError;
use crate::show::{self, Format, table};

/// Check what this host can do, and say what to do where it is not enough.
///
/// Exits with 0 where pods can run here, else with 1.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Only whether /dev/kvm runs guest ring-0 code at native speed, in one line.
    #[arg(long)]
    kvm_only: bool,
    /// The KVM device.
    #[arg(long, default_value = "/dev/kvm")]
    kvm: std::path::PathBuf,
    /// Form of the output.
    #[arg(long, short = 'o')]
    output: Option<DoctorFormat>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DoctorFormat {
    Json,
    Yaml,
}

impl Doctor {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        let host = Host { kvm: self.kvm };
        let checks = if self.kvm_only {
            check_kvm(&host)
        } else {
            check_host(&host)
        };
        let usable = usable(&checks);
        match self.output {
            Some(format) => {
                let checks: Vec<_> = checks.iter().map(document).collect();
                let all = json!({"usable": usable, "checks": checks});
                let format = match format {
                    DoctorFormat::Json => Format::Json,
                    DoctorFormat::Yaml => Format::Yaml,
                };
                show::print_document(&all, format)?;
            }
            None if self.kvm_only => show::print(&one_line(&checks))?,
            None => show::print(&report(&checks, usable))?,
        }
        Ok(u8::from(!usable))
    }
}

fn document(check: &Check) -> serde_json::Value {
    json!({
        "name": check.name,
        "verdict": match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        },
        "finding": check.finding,
        "remedy": check.remedy,
    })
}

/// What failed, or else what was found last, which is the speed.
fn one_line(checks: &[Check]) -> String {
    let failed = checks.iter().find(|check| check.verdict == Verdict::Fail);
    match (failed, checks.last()) {
        (Some(check), _) => format!("unusable: {}\n", check.finding),
        (None, Some(check)) => format!("usable: {}\n", check.finding),
        (None, None) => "unusable: nothing was checked\n".to_owned(),
    }
}

fn report(checks: &[Check], usable: bool) -> String {
    let mut text = table::checks(checks);
    let remedies = checks.iter().filter(|check| !check.remedy.is_empty());
    let remedies: String = remedies
        .map(|check| format!("  {}: {}\n", check.name, check.remedy))
        .collect();
    if !remedies.is_empty() {
        text.push_str("\nWhat to do:\n");
        text.push_str(&remedies);
    }
    text.push_str(if usable {
        "\nPods can run on this host.\n"
    } else {
        "\nPods cannot run on this host as it is.\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, verdict: Verdict, remedy: &str) -> Check {
        Check {
            name,
            verdict,
            finding: format!("{name} found"),
            remedy: remedy.into(),
        }
    }

    #[test]
    fn one_line_says_the_first_failure() {
        let fine = check("a", Verdict::Ok, "");
        let bad = check("b", Verdict::Fail, "buy one");
        assert_eq!(one_line(&[fine.clone(), bad]), "unusable: b found\n");
        assert_eq!(one_line(&[fine]), "usable: a found\n");
        assert_eq!(one_line(&[]), "unusable: nothing was checked\n");
    }

    #[test]
    fn a_report_ends_with_remedies_and_the_verdict() {
        let text = report(&[check("b", Verdict::Fail, "buy one")], false);
        assert!(text.contains("b       FAIL     b found"), "{text}");
        assert!(text.contains("\nWhat to do:\n  b: buy one\n"), "{text}");
        assert!(
            text.ends_with("cannot run on this host as it is.\n"),
            "{text}"
        );
    }
}
