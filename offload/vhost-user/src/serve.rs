//! What the thread of a device does: it waits for its frontend, the kicks and
//! the device itself, and lets the device work.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{
    BackendReqHandler, Error as VhostUserError, VhostUserBackendReqHandlerMut,
};

use crate::device::{Device, RingError};
use crate::early::take_vring_enable;
use crate::frontend::FrontendState;
use crate::quota::LogQuota;
use crate::vring::Vring;

/// Pause after an error of the kernel that may pass, such as too few descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What another thread needs to end the device's.
#[derive(Debug)]
pub(crate) struct Control {
    stopping: AtomicBool,
    wake: EventFd,
    /// Shut down to get the thread out of a half-received message.
    connection: Mutex<Option<UnixStream>>,
}

impl Control {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            stopping: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            connection: Mutex::new(None),
        })
    }

    /// Has the thread end as soon as it can.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = self.wake.write(1);
        if let Some(connection) = self.connection().as_ref() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn connection(&self) -> MutexGuard<'_, Option<UnixStream>> {
        lock(&self.connection)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Connection<D> = BackendReqHandler<Mutex<FrontendState<D>>>;

/// What a wait ended with.
#[derive(Debug, Default)]
struct Ready {
    socket: bool,
    device: bool,
    /// One entry a ring.
    rings: Vec<Kick>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kick {
    #[default]
    None,
    Kicked,
    /// The descriptor is of no use.
    Dead,
}

pub(crate) fn serve<D: Device>(
    path: &Path,
    listener: &UnixListener,
    control: &Control,
    state: FrontendState<D>,
) {
    let state = Arc::new(Mutex::new(state));
    let mut connection: Option<Connection<D>> = None;
    let log = LogQuota::default();
    loop {
        let ready = wait(listener, control, &lock(&state));
        if control.is_stopping() {
            break;
        }
        if ready.socket {
            match &mut connection {
                None => match accept(listener, control, &state) {
                    Ok(accepted) => connection = accepted,
                    Err(e) => {
                        if let Some(omitted) = log.next() {
                            let socket = path.display();
                            tracing::warn!(%socket, omitted, "accepting a frontend: {e}");
                        }
                        std::thread::sleep(RETRY_AFTER);
                    }
                },
                Some(open) => {
                    if let Err(e) = message(open, control, &state, &log) {
                        tracing::debug!(socket = %path.display(), "frontend is gone: {e}");
                        connection = None;
                        *control.connection() = None;
                        lock(&state).disconnect();
                    }
                }
            }
        }
        work(path, &ready, &mut lock(&state), &log);
    }
    lock(&state).disconnect();
}

fn accept<D: Device>(
    listener: &UnixListener,
    control: &Control,
    state: &Arc<Mutex<FrontendState<D>>>,
) -> io::Result<Option<Connection<D>>> {
    let (stream, _) = match listener.accept() {
        Ok(accepted) => accepted,
        // Whoever gave up before being accepted is no error.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e),
    };
    *control.connection() = Some(stream.try_clone()?);
    tracing::debug!(device = D::NAME, "frontend connected");
    Ok(Some(BackendReqHandler::from_stream(stream, state.clone())))
}

/// Serves one message of the frontend. An error is the end of the connection.
fn message<D: Device>(
    open: &mut Connection<D>,
    control: &Control,
    state: &Mutex<FrontendState<D>>,
    log: &LogQuota,
) -> Result<(), VhostUserError> {
    if !lock(state).has_features()
        && let Some((ring, enable)) = control.connection().as_ref().and_then(take_vring_enable)
    {
        return lock(state).set_vring_enable(ring, enable);
    }
    match open.handle_request() {
        Err(VhostUserError::SocketRetry(_)) => Ok(()),
        Err(e @ (VhostUserError::Disconnected | VhostUserError::SocketBroken(_))) => Err(e),
        Err(e) => {
            if let Some(omitted) = log.next() {
                tracing::warn!(device = D::NAME, omitted, "vhost-user frontend: {e}");
            }
            Err(e)
        }
        Ok(()) => Ok(()),
    }
}

/// Sleeps until there is something to do.
fn wait<D: Device>(listener: &UnixListener, control: &Control, state: &FrontendState<D>) -> Ready {
    let connection = control.connection();
    let socket = connection
        .as_ref()
        .map_or(listener.as_fd(), |connected| connected.as_fd());
    let mut fds = vec![
        PollFd::new(control.wake.as_fd(), PollFlags::POLLIN),
        PollFd::new(socket, PollFlags::POLLIN),
    ];
    let device = state.device.wake_up(&state.rings);
    fds.extend(device.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    let first_kick = fds.len();
    let kicked: Vec<usize> = (0..state.rings.len())
        .filter(|i| state.rings[*i].kick().is_some())
        .collect();
    fds.extend(
        state
            .rings
            .iter()
            .filter_map(|ring| ring.kick())
            .map(|kick| PollFd::new(kick.as_fd(), PollFlags::POLLIN)),
    );
    let deferred = state.rings.iter().any(|ring| ring.is_deferred());
    let timeout = if deferred {
        PollTimeout::ZERO
    } else {
        PollTimeout::NONE
    };
    let mut ready = Ready {
        rings: vec![Kick::None; state.rings.len()],
        ..Ready::default()
    };
    if let Err(e) = poll(&mut fds, timeout) {
        if e != nix::Error::EINTR {
            tracing::error!("waiting for a vhost-user device: {e}");
            std::thread::sleep(RETRY_AFTER);
        }
        return ready;
    }
    let fired = |i: usize| fds.get(i).is_some_and(|fd| fd.any().unwrap_or(true));
    ready.socket = fired(1);
    ready.device = device.is_some() && fired(2);
    for (fd, ring) in fds[first_kick..].iter().zip(kicked) {
        let events = fd.revents().unwrap_or(PollFlags::POLLERR);
        ready.rings[ring] = if events.contains(PollFlags::POLLIN) {
            Kick::Kicked
        } else if events.is_empty() {
            Kick::None
        } else {
            Kick::Dead
        };
    }
    ready
}

/// Lets the device do what there is to do.
fn work<D: Device>(path: &Path, ready: &Ready, state: &mut FrontendState<D>, log: &LogQuota) {
    let FrontendState {
        device,
        rings,
        memory,
        ..
    } = state;
    if ready.device {
        let done = device.woken(rings, memory);
        stop_if_broken(path, rings, done, log);
    }
    for (index, kick) in ready.rings.iter().enumerate() {
        if *kick == Kick::Dead || (*kick == Kick::Kicked && !rings[index].consume_kick()) {
            if let Some(omitted) = log.next() {
                let socket = path.display();
                tracing::warn!(%socket, ring = index, omitted, "the kick descriptor is no eventfd");
            }
            rings[index].fail();
            continue;
        }
        let due = rings[index].take_deferred() | (*kick == Kick::Kicked);
        if due && rings[index].is_running() {
            let done = device.process(index, rings, memory);
            stop_if_broken(path, rings, done, log);
        }
    }
}

fn stop_if_broken(path: &Path, rings: &mut [Vring], done: Result<(), RingError>, log: &LogQuota) {
    if let Err(broken) = done {
        if let Some(omitted) = log.next() {
            tracing::warn!(socket = %path.display(), omitted, "stopped: {broken}");
        }
        if let Some(ring) = rings.get_mut(broken.ring) {
            ring.fail();
        }
    }
}
