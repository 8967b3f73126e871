//! `longship wait`

use std::time::Duration;

use clap::{Args, ValueEnum};
use longship_proto::control::v1::Phase;

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show::{self, names};
use crate::watch::{PodWatch, Seen, is_finished, phase_of};

/// Wait until a pod runs, has finished, or is deleted.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// What it is.
    kind: Kind,
    /// Which one.
    name: String,
    /// What to wait for.
    #[arg(long = "for", value_name = "STATE")]
    state: State,
    /// Give up after this long.
    #[arg(long, default_value = "60s", value_parser = crate::duration::parse)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "pods", alias = "po")]
    Pod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Its containers run.
    Running,
    /// Its containers have ended for good.
    Finished,
    /// It is there no more.
    Deleted,
}

impl Wait {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let Kind::Pod = self.kind;
        let server = Server::connect(address).await?;
        let mut watch = PodWatch::new(&server, namespace, &self.name);
        let mut phase = Phase::Unspecified;
        let reached = tokio::time::timeout(self.timeout, self.reach(&mut watch, &mut phase)).await;
        match reached {
            Ok(result) => result?,
            Err(_) => {
                return Err(CliError::Other(format!(
                    "pod {} is {} after {} s",
                    self.name,
                    names::phase(phase),
                    self.timeout.as_secs()
                )));
            }
        }
        let state = match self.state {
            State::Running => "runs",
            State::Finished => "has finished",
            State::Deleted => "is deleted",
        };
        show::print(&format!("pod/{} {state}\n", self.name))?;
        Ok(0)
    }

    async fn reach(&self, watch: &mut PodWatch, phase: &mut Phase) -> Result<(), CliError> {
        let mut seen_once = false;
        loop {
            let pod = match watch.next().await? {
                Seen::Pod(pod) => pod,
                Seen::Gone if self.state == State::Deleted => return Ok(()),
                Seen::Gone if seen_once => {
                    return Err(CliError::Other(format!("pod {} was deleted", self.name)));
                }
                Seen::Gone => {
                    let message = format!("there is no pod {}", self.name);
                    return Err(longship_proto::Failure::not_found(message).into());
                }
            };
            seen_once = true;
            *phase = phase_of(&pod);
            match self.state {
                State::Running if *phase == Phase::Running => return Ok(()),
                State::Running if is_finished(&pod) => {
                    let status = pod.status.unwrap_or_default();
                    return Err(CliError::Other(format!(
                        "pod {} is {}: {} {}",
                        self.name,
                        names::phase(*phase),
                        status.reason,
                        status.message
                    )));
                }
                State::Finished if is_finished(&pod) => return Ok(()),
                _ => {}
            }
        }
    }
}
