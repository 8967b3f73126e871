//! `longship pki`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::error::CliError;
use crate::pki::{Authority, Subject};
use crate::show;

/// Make the certificates by which the control plane, cards and operators know each other.
#[derive(Debug, Args)]
pub(crate) struct Pki {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Init(Init),
    Issue(Issue),
}

/// Make a CA. Whoever has its key can be anybody: keep the directory to yourself.
#[derive(Debug, Args)]
struct Init {
    /// Directory for the CA and for what it signs.
    dir: PathBuf,
}

/// Make a key, and have the CA sign its certificate; again before that expires.
#[derive(Debug, Args)]
struct Issue {
    /// Directory of the CA.
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Where clients reach that card, as IP address or DNS name.
    #[arg(long, value_name = "NAME", requires = "card")]
    address: Vec<String>,
    /// How long it is good for.
    #[arg(long, value_name = "N", default_value_t = 365,
          value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SubjectFlags {
    /// For the card of that host.
    #[arg(long, value_name = "HOST")]
    card: Option<String>,
    /// For a control plane, by the IP addresses and DNS names under which it is reached.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    control: Vec<String>,
    /// For an operator's tools.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
}

impl Pki {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        match self.action {
            Action::Init(init) => {
                let ca = Authority::create(&init.dir)?;
                show::print(&format!("{}\n", ca.display()))?;
            }
            Action::Issue(issue) => {
                let subject = match (issue.subject.card, issue.subject.operator) {
                    (Some(host), _) => Subject::Card {
                        host,
                        addresses: issue.address,
                    },
                    (None, Some(name)) => Subject::Operator { name },
                    (None, None) => Subject::Control {
                        names: issue.subject.control,
                    },
                };
                let issued = Authority::open(&issue.dir)?.issue(&subject, issue.days)?;
                let (cert, key) = (issued.cert.display(), issued.key.display());
                show::print(&format!("{cert}\n{key}\n"))?;
            }
        }
        Ok(0)
    }
}
