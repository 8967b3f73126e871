//! One VMM: its process, cgroup, channel, and what it and its guest print.

mod backends;
mod ending;
mod error;
mod launch;
mod machine;

use std::os::fd::OwnedFd;
use std::time::Duration;

use longship_framed::vmm as wire;
use longship_framed::vmm::request::Operation;
use longship_proto::agent::v1::SandboxExit;
use tokio::time::Instant;

pub(crate) use backends::connect;
pub(crate) use error::{VmmError, prepare};

use crate::cgroup::{Cgroup, Share};
use crate::channel::{Channel, ChannelError};
use crate::process::Process;
use crate::tail::Tail;
use crate::template::Counted;

/// Between a VMM's word that it ends and its end; then it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// For a killed process to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A VMM process with all that belongs to it. Dropping it ends it and removes its
/// cgroup; [`Vmm::end`] does the same without blocking and says why it ended.
#[derive(Debug)]
pub(crate) struct Vmm {
    // Dropped before its cgroup is removed.
    process: Process,
    cgroup: Cgroup,
    channel: Channel,
    console: Tail,
    /// The console's other end, until the machine gets it.
    console_end: Option<OwnedFd>,
    log: Tail,
    /// Set once it has said that it ends.
    kill_at: Option<Instant>,
    /// Where it is a template's clone in use.
    counted: Option<Counted>,
}

/// What a VMM does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VmmEvent {
    /// The guest did its first act, at this time (microseconds since the Unix epoch).
    Alive(i64),
    /// It has ended, or should have.
    Over,
}

impl Vmm {
    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// It is counted as a template's clone from now to its end.
    pub(crate) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }

    /// Whether its process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// Memory that is charged to its cgroup, in bytes.
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.cgroup.charged_bytes()
    }

    /// Gives it a share of CPU time against others.
    ///
    /// # Errors
    /// [`VmmError::Cgroup`].
    pub(crate) fn set_share(&self, share: Share) -> Result<(), VmmError> {
        Ok(self.cgroup.set_share(share)?)
    }

    /// Holds it to this much CPU time, thousandths of a CPU.
    ///
    /// # Errors
    /// [`VmmError::Cgroup`].
    pub(crate) fn limit_cpu(&self, millis: u32) -> Result<(), VmmError> {
        Ok(self.cgroup.limit_cpu(millis)?)
    }

    /// Waits for what it does next by itself. Cancel-safe.
    pub(crate) async fn event(&mut self) -> VmmEvent {
        loop {
            tokio::select! {
                _ = self.process.ended() => return VmmEvent::Over,
                heard = self.channel.alive(), if self.kill_at.is_none() => match heard {
                    Some(alive_us) => return VmmEvent::Alive(alive_us),
                    None => self.kill_at = Some(Instant::now() + END_PATIENCE),
                },
                () = sleep_until(self.kill_at), if self.kill_at.is_some() => return VmmEvent::Over,
            }
        }
    }

    /// Asks it to end, and lets it for a moment.
    pub(crate) async fn ask_to_end(&mut self) {
        let stop = Operation::Stop(wire::Stop {});
        // Whatever it answers, its end is what counts, and `end` sees to that.
        let _ = self.channel.call(stop, &[], END_PATIENCE).await;
        let _ = tokio::time::timeout(END_PATIENCE, self.process.ended()).await;
    }

    /// Ends it whatever it does, gives everything back, and says how it ended.
    pub(crate) async fn end(mut self) -> SandboxExit {
        // A process that has ended, or ends now by itself, has its own reason.
        let brief = Duration::from_millis(20);
        let mut ending = tokio::time::timeout(brief, self.process.ended()).await.ok();
        if ending.is_none() {
            if let Err(error) = self.cgroup.kill() {
                tracing::warn!("kill a VMM: {error}");
            }
            ending = tokio::time::timeout(KILL_PATIENCE, self.process.ended())
                .await
                .ok();
        }
        let out_of_memory = self.cgroup.ran_out_of_memory();
        let exited = self.channel.last_words().await;
        let console_tail = self.console.finish().await;
        let log = self.log.finish().await;
        if let Err(error) = self.cgroup.remove().await {
            tracing::warn!("{error}");
        }
        let ending = ending.and_then(Result::ok);
        let (by_guest, message) = ending::reason(exited, ending, out_of_memory, &log);
        SandboxExit {
            by_guest,
            message,
            console_tail,
        }
    }

    /// Ends it after `error`; where that came from its end, the end is the reason.
    pub(crate) async fn end_with(self, error: VmmError) -> (VmmError, SandboxExit) {
        let exit = self.end().await;
        let error = match error {
            VmmError::Call {
                step,
                error: ChannelError::Closed | ChannelError::Send(_),
                ..
            } => VmmError::Ended {
                step,
                reason: exit.message.clone(),
            },
            other => other,
        };
        (error, exit)
    }
}

/// Sleeps until then; for ever where there is no such time.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
