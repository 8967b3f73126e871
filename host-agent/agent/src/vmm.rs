//! One VMM: its process, cgroup, channel, and what it and its guest print.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use longship_framed::error::{Class, Failure};
use longship_framed::vmm as wire;
use longship_framed::vmm::exited::Cause;
use longship_framed::vmm::request::Operation;
use longship_proto::agent::v1::SandboxExit;
use tokio::time::Instant;

use crate::cgroup::{Cgroup, CgroupError};
use crate::channel::{Channel, ChannelError};
use crate::command_line::command_line;
use crate::host::Host;
use crate::process::{CONTROL_FD, Command, Ending, Process, SpawnError};
use crate::request::{Device, Spec};
use crate::tail::Tail;
use crate::timeline::Timeline;

/// How much of a guest's console is kept, bytes.
const CONSOLE_KEPT: usize = 16 << 10;
/// How much of a VMM's own log is kept, bytes.
const LOG_KEPT: usize = 4 << 10;
/// For one request to a VMM; the slowest touches all of a large guest's memory.
const CALL_PATIENCE: Duration = Duration::from_secs(30);
/// For a vhost-user backend to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Between a VMM's word that it ends and its end; then it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// For a killed process to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What went wrong with a VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    /// Something that it needs could not be opened or made.
    #[error("{step}: {error}")]
    Prepare {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// Its cgroup could not be made.
    #[error("cgroup: {0}")]
    Cgroup(#[from] CgroupError),
    /// Its process could not be started.
    #[error("start the VMM: {0}")]
    Spawn(#[from] SpawnError),
    /// It failed at, or refused, a request.
    #[error("{step}: {error}")]
    Call {
        /// What it was asked.
        step: &'static str,
        /// The field that named what it is about; may be empty.
        field: String,
        /// Why.
        error: ChannelError,
    },
    /// It ended while it was asked something.
    #[error("{step}: {reason}")]
    Ended {
        /// What it was asked.
        step: &'static str,
        /// How it ended.
        reason: String,
    },
    /// A backend cannot be reached.
    #[error("connect to {socket}: {error}")]
    Connect {
        /// The field that named it.
        field: String,
        /// Where it should listen.
        socket: String,
        /// What the kernel said.
        error: io::Error,
    },
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        let message = error.to_string();
        match error {
            VmmError::Connect { field, .. } => Failure::new(Class::Unavailable, field, message),
            VmmError::Call {
                field,
                error: ChannelError::Refused(failure),
                ..
            } => Failure::new(failure.class(), field, message),
            VmmError::Call { field, .. } => Failure::new(Class::Internal, field, message),
            _ => Failure::internal(message),
        }
    }
}

/// A VMM process with all that belongs to it. Dropping it ends it and removes its
/// cgroup; [`Vmm::end`] does the same without blocking and says why it ended.
#[derive(Debug)]
pub(crate) struct Vmm {
    // Dropped before its cgroup is removed.
    process: Process,
    cgroup: Cgroup,
    channel: Channel,
    console: Tail,
    log: Tail,
    /// Set once it has said that it ends.
    kill_at: Option<Instant>,
}

/// A backend that has accepted the connection for one device.
#[derive(Debug)]
pub(crate) struct Connected {
    device: Device,
    socket: OwnedFd,
}

impl Vmm {
    /// Starts the process in its cgroup and has it build the machine.
    ///
    /// # Errors
    /// [`VmmError`]; nothing is left then.
    pub(crate) async fn launch(
        host: &Arc<Host>,
        spec: &Spec,
        timeline: &mut Timeline,
    ) -> Result<Self, VmmError> {
        let cgroup = timeline.measure(
            "cgroup",
            blocking({
                let (host, spec) = (Arc::clone(host), spec.clone());
                move || host.cgroups.create(&spec).map_err(VmmError::from)
            }),
        );
        let cgroup = cgroup.await?;
        let spawn_started = crate::timeline::now_us();
        let (console, console_end) = Tail::new(CONSOLE_KEPT).map_err(prepare("console"))?;
        let (log, log_end) = Tail::new(LOG_KEPT).map_err(prepare("log"))?;
        let (ours, theirs) = UnixStream::pair().map_err(prepare("make a socket pair"))?;
        let command = vmm_command(host, theirs, log_end);
        let (cgroup, spawned) = blocking(move || {
            let spawned = match cgroup.folder() {
                Some(folder) => command.spawn(folder).map_err(VmmError::from),
                None => Err(prepare("cgroup")(io::ErrorKind::NotFound.into())),
            };
            Ok((cgroup, spawned))
        })
        .await?;
        let (pid, pidfd) = spawned?;
        let process = Process::watch(pid, pidfd).map_err(prepare("watch the VMM"))?;
        let channel = Channel::new(ours).map_err(prepare("channel"))?;
        timeline.add_agent("spawn", spawn_started);
        let mut vmm = Self {
            process,
            cgroup,
            channel,
            console,
            log,
            kill_at: None,
        };
        match vmm.create(host, spec, console_end, timeline).await {
            Ok(()) => Ok(vmm),
            Err(error) => Err(vmm.end_with(error).await.0),
        }
    }

    async fn create(
        &mut self,
        host: &Host,
        spec: &Spec,
        console: OwnedFd,
        timeline: &mut Timeline,
    ) -> Result<(), VmmError> {
        let kvm = File::options()
            .read(true)
            .write(true)
            .open(&host.kvm)
            .map_err(prepare("open KVM"))?;
        let kernel = host.kernel().map_err(prepare("open the kernel"))?;
        let initramfs = host.initramfs().map_err(prepare("open the initramfs"))?;
        let create = Operation::Create(wire::Create {
            vcpus: spec.vcpus,
            memory_bytes: spec.memory_bytes,
            command_line: command_line(),
            has_initramfs: true,
            has_console: true,
        });
        let fds = [
            kvm.as_fd(),
            kernel.as_fd(),
            initramfs.as_fd(),
            console.as_fd(),
        ];
        let call = self.channel.call(create, &fds, CALL_PATIENCE);
        let steps = timeline.measure("create", call).await;
        timeline.add_vmm(steps.map_err(call_error("create the machine", ""))?);
        Ok(())
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Attaches the devices in their order, then starts the vCPUs.
    ///
    /// # Errors
    /// [`VmmError`]; the machine is of no use then.
    pub(crate) async fn start(
        &mut self,
        devices: Vec<Connected>,
        timeline: &mut Timeline,
    ) -> Result<(), VmmError> {
        let started = crate::timeline::now_us();
        for Connected { device, socket } in devices {
            let attach = Operation::Attach(wire::AttachDevice {
                r#type: device.kind.into(),
            });
            let steps = self
                .channel
                .call(attach, &[socket.as_fd()], CALL_PATIENCE)
                .await
                .map_err(call_error("attach a device", &device.field))?;
            timeline.add_vmm(steps);
        }
        timeline.add_agent("attach", started);
        let boot = Operation::Boot(wire::Boot {});
        let call = self.channel.call(boot, &[], CALL_PATIENCE);
        let steps = timeline.measure("boot", call).await;
        timeline.add_vmm(steps.map_err(call_error("boot the guest", ""))?);
        Ok(())
    }

    /// Holds the sandbox to its CPU time.
    ///
    /// # Errors
    /// [`VmmError::Cgroup`].
    pub(crate) fn limit_cpu(&self, spec: &Spec) -> Result<(), VmmError> {
        Ok(self.cgroup.limit_cpu(spec)?)
    }

    /// Waits until it has ended by itself, or should have. Cancel-safe.
    pub(crate) async fn over(&mut self) {
        loop {
            tokio::select! {
                _ = self.process.ended() => return,
                () = self.channel.over(), if self.kill_at.is_none() => {
                    self.kill_at = Some(Instant::now() + END_PATIENCE);
                }
                () = sleep_until(self.kill_at), if self.kill_at.is_some() => return,
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
        let (by_guest, message) = reason(exited, ending, out_of_memory, &log);
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

/// Connects to the backend of each device.
///
/// # Errors
/// [`VmmError::Connect`] at the first that does not accept.
pub(crate) async fn connect(devices: Vec<Device>) -> Result<Vec<Connected>, VmmError> {
    let mut connected = Vec::with_capacity(devices.len());
    for device in devices {
        let attempt = async {
            let connect = tokio::net::UnixStream::connect(&device.socket);
            let socket = tokio::time::timeout(CONNECT_PATIENCE, connect)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
                .into_std()?;
            // The VMM waits for answers.
            socket.set_nonblocking(false)?;
            Ok(socket.into())
        };
        match attempt.await {
            Ok(socket) => connected.push(Connected { device, socket }),
            Err(error) => {
                return Err(VmmError::Connect {
                    socket: device.socket.display().to_string(),
                    field: device.field,
                    error,
                });
            }
        }
    }
    Ok(connected)
}

fn vmm_command(host: &Host, control: UnixStream, stderr: OwnedFd) -> Command {
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

/// Whether the guest itself ended it, and what happened.
fn reason(
    exited: Option<wire::Exited>,
    ending: Option<Ending>,
    out_of_memory: bool,
    log: &str,
) -> (bool, String) {
    if let Some(exited) = exited {
        return match exited.cause() {
            Cause::GuestReset => (true, or(exited.message, "the guest powered off")),
            Cause::GuestFault => (false, or(exited.message, "the guest faulted")),
            Cause::Internal | Cause::Unspecified => (false, or(exited.message, "the VMM gave up")),
        };
    }
    if out_of_memory {
        let message = "the kernel ended the VMM: the sandbox's memory limit was used up";
        return (false, message.to_owned());
    }
    let message = match ending {
        Some(Ending::Code(code)) => format!("the VMM exited with code {code}"),
        Some(Ending::Signal(signal)) => format!("the VMM was ended by signal {signal}"),
        None => "the VMM did not end".to_owned(),
    };
    match log.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => (false, format!("{message}: {}", line.trim())),
        None => (false, message),
    }
}

fn or(message: String, default: &str) -> String {
    if message.is_empty() {
        default.to_owned()
    } else {
        message
    }
}

/// Sleeps until then; for ever where there is no such time.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
) -> Result<T, VmmError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(prepare("run a blocking step")(io::Error::other(error))),
    }
}

fn prepare(step: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |error| VmmError::Prepare { step, error }
}

fn call_error(step: &'static str, field: &str) -> impl FnOnce(ChannelError) -> VmmError {
    let field = field.to_owned();
    move |error| VmmError::Call { step, field, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(cause: Cause, message: &str) -> Option<wire::Exited> {
        Some(wire::Exited {
            cause: cause.into(),
            message: message.into(),
        })
    }

    #[test]
    fn the_guests_own_end_is_told_from_all_others() {
        let code = Some(Ending::Code(0));
        assert_eq!(
            reason(exited(Cause::GuestReset, ""), code, false, ""),
            (true, "the guest powered off".into())
        );
        assert_eq!(
            reason(
                exited(Cause::GuestFault, "triple fault"),
                code,
                false,
                "noise"
            ),
            (false, "triple fault".into())
        );
        assert_eq!(
            reason(
                None,
                Some(Ending::Signal(11)),
                false,
                "first\nlast words\n\n"
            ),
            (false, "the VMM was ended by signal 11: last words".into())
        );
        let (by_guest, message) = reason(None, Some(Ending::Signal(9)), true, "");
        assert!(!by_guest && message.contains("memory limit"), "{message}");
    }

    #[tokio::test]
    async fn a_backend_that_is_not_there_is_named_by_its_field() {
        let device = Device {
            kind: wire::DeviceType::Net,
            socket: "/nowhere/net.sock".into(),
            field: "devices[0].vhost_user.socket".into(),
        };
        let failure = Failure::from(connect(vec![device]).await.unwrap_err());
        assert_eq!(failure.class(), Class::Unavailable);
        assert_eq!(failure.field, "devices[0].vhost_user.socket");
        assert!(failure.message.contains("/nowhere/net.sock"), "{failure}");
    }

    #[test]
    fn what_a_vmm_refuses_keeps_its_class() {
        let refused = ChannelError::Refused(Failure::exhausted("no memory"));
        let failure = Failure::from(call_error("create the machine", "")(refused));
        assert_eq!(failure.class(), Class::Exhausted);
        assert_eq!(failure.message, "create the machine: no memory");
    }
}
