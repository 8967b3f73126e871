//! From nothing to a VMM that waits to be told what machine to be.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::Vmm;
use super::error::{VmmError, prepare};
use crate::cgroup::{Cgroup, Share};
use crate::channel::Channel;
use crate::host::Host;
use crate::process::{CONTROL_FD, Child, Command, Process};
use crate::shape::Shape;
use crate::tail::Tail;
use crate::timeline::{Timeline, now_us};

/// How much of a guest's console is kept, bytes.
const CONSOLE_KEPT: usize = 16 << 10;
/// How much of a VMM's own log is kept, bytes.
const LOG_KEPT: usize = 4 << 10;

impl Vmm {
    /// Starts the process in a cgroup of its own, with the limits of such a machine.
    ///
    /// # Errors
    /// [`VmmError`]; nothing is left then.
    pub(crate) async fn launch(
        host: &Arc<Host>,
        shape: Shape,
        share: Share,
        timeline: &mut Timeline,
    ) -> Result<Self, VmmError> {
        let permit = host.stages.cgroup.enter().await;
        let started = now_us();
        let cgroup = blocking({
            let host = Arc::clone(host);
            move || Ok(host.cgroups.create(shape, share)?)
        });
        let cgroup = cgroup.await?;
        timeline.add_agent("cgroup", started);
        drop(permit);

        let _permit = host.stages.process.enter().await;
        let started = now_us();
        let (console, console_end) = Tail::new(CONSOLE_KEPT).map_err(prepare("console"))?;
        let (log, log_end) = Tail::new(LOG_KEPT).map_err(prepare("log"))?;
        let (ours, theirs) = UnixStream::pair().map_err(prepare("make a socket pair"))?;
        let command = command(host, theirs, log_end);
        let (cgroup, child) = blocking(move || spawn(cgroup, command)).await?;
        let process = Process::watch(child).map_err(prepare("watch the VMM"))?;
        let channel = Channel::new(ours).map_err(prepare("channel"))?;
        timeline.add_agent("spawn", started);
        Ok(Self {
            process,
            cgroup,
            channel,
            console,
            console_end: Some(console_end),
            log,
            kill_at: None,
            counted: None,
        })
    }
}

/// What this gives ends with its drop, so that nothing is left where nobody takes it.
fn spawn(mut cgroup: Cgroup, command: Command) -> Result<(Cgroup, Child), VmmError> {
    let folder = cgroup.folder().ok_or(std::io::ErrorKind::NotFound);
    let child = command.spawn(folder.map_err(|kind| prepare("cgroup")(kind.into()))?)?;
    cgroup.close_folder();
    Ok((cgroup, child))
}

fn command(host: &Host, control: UnixStream, stderr: OwnedFd) -> Command {
    let log_filter = std::env::var("RUST_LOG")
        .ok()
        .and_then(|filter| CString::new(format!("RUST_LOG={filter}")).ok());
    Command {
        program: host.vmm.clone(),
        arguments: vec![
            c"longship-vmm".to_owned(),
            c"--control-fd".to_owned(),
            CString::new(CONTROL_FD.to_string()).unwrap_or_default(),
        ],
        environment: log_filter.into_iter().collect(),
        control: control.into(),
        stderr,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
) -> Result<T, VmmError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(prepare("run a blocking step")(std::io::Error::other(error))),
    }
}
