//! The socket of a device and the thread that serves it.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

use crate::device::{Device, RingError};
use crate::frontend::FrontendState;

/// How long [`Server::stop`] waits for a request that is being served.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Stack of a device's thread in bytes; only what is touched costs memory.
const STACK: usize = 256 << 10;

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process serves this socket.
    #[error("serving {0}: another backend is listening there")]
    InUse(PathBuf),
    /// There is something at the path that is no socket.
    #[error("serving {0}: the path exists and is no socket")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("serving {path}: {source}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread or its event descriptor cannot be made.
    #[error("starting the thread of {path}: {source}")]
    Thread {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A device that is being served, until it is stopped or dropped.
///
/// One frontend after the other: who connects while another is connected waits
/// until that one is gone.
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// What another thread needs to end the device's.
#[derive(Debug)]
struct Control {
    stopping: AtomicBool,
    wake: EventFd,
    /// Shut down to get the thread out of a half-received message.
    connection: Mutex<Option<UnixStream>>,
}

impl Server {
    /// Serves `device` at `socket`, which is listening when this returns. A
    /// socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind then.
    pub fn start(socket: &Path, device: impl Device) -> Result<Self, ServeError> {
        let failed = |source: io::Error| ServeError::Thread {
            path: socket.to_owned(),
            source,
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| failed(e.into()))?;
        let state = FrontendState::new(device).map_err(|e| failed(io::Error::other(e)))?;
        let control = Arc::new(Control {
            stopping: AtomicBool::new(false),
            wake,
            connection: Mutex::new(None),
        });
        let listener = listen(socket)?;
        let (running, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .stack_size(STACK)
            .spawn({
                let control = control.clone();
                let socket = socket.to_owned();
                move || {
                    let _running = running;
                    serve(&socket, &listener, &control, state);
                }
            })
            .map_err(|source| {
                let _ = fs::remove_file(socket);
                failed(source)
            })?;
        Ok(Self {
            socket: socket.to_owned(),
            control,
            thread: Some(thread),
            ended,
        })
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the connection and the thread and removes the socket. Waits for the
    /// request that is being served, but not for ever.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.control.stopping.store(true, Ordering::SeqCst);
        let _ = self.control.wake.write(1);
        if let Some(connection) = lock(&self.control.connection).as_ref() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let _ = fs::remove_file(&self.socket);
        match self.ended.recv_timeout(STOP_LIMIT) {
            Err(mpsc::RecvTimeoutError::Timeout) => tracing::error!(
                socket = %self.socket.display(),
                "a request is still in the kernel; the device's thread ends when it returns"
            ),
            _ => {
                if thread.join().is_err() {
                    tracing::error!(socket = %self.socket.display(), "the device's thread panicked");
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Bind {
        path: path.to_owned(),
        source,
    };
    if let Ok(there) = fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(ServeError::InUse(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(|source| {
        let _ = fs::remove_file(path);
        failed(source)
    })?;
    Ok(listener)
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

fn serve<D: Device>(
    path: &Path,
    listener: &UnixListener,
    control: &Control,
    state: FrontendState<D>,
) {
    let state = Arc::new(Mutex::new(state));
    let mut connection: Option<Connection<D>> = None;
    loop {
        let ready = wait(listener, control, &lock(&state));
        if control.stopping.load(Ordering::SeqCst) {
            break;
        }
        if ready.socket {
            match &mut connection {
                None => connection = accept(listener, control, &state),
                Some(open) => {
                    if let Err(e) = message(open) {
                        tracing::debug!(socket = %path.display(), "frontend is gone: {e}");
                        connection = None;
                        *lock(&control.connection) = None;
                        lock(&state).disconnect();
                    }
                }
            }
        }
        work(path, &ready, &mut lock(&state));
    }
    lock(&state).disconnect();
}

fn accept<D: Device>(
    listener: &UnixListener,
    control: &Control,
    state: &Arc<Mutex<FrontendState<D>>>,
) -> Option<Connection<D>> {
    // Whoever gave up before being accepted is no error.
    let (stream, _) = listener.accept().ok()?;
    let mut shared = lock(&control.connection);
    *shared = Some(stream.try_clone().ok()?);
    Some(BackendReqHandler::from_stream(stream, state.clone()))
}

/// Serves one message of the frontend. An error is the end of the connection.
fn message<D: Device>(connection: &mut Connection<D>) -> Result<(), VhostUserError> {
    match connection.handle_request() {
        Err(VhostUserError::SocketRetry(_)) => Ok(()),
        Err(e @ (VhostUserError::Disconnected | VhostUserError::SocketBroken(_))) => Err(e),
        Err(e) => {
            tracing::warn!("vhost-user frontend: {e}");
            Err(e)
        }
        Ok(()) => Ok(()),
    }
}

/// Sleeps until there is something to do.
fn wait<D: Device>(listener: &UnixListener, control: &Control, state: &FrontendState<D>) -> Ready {
    let connection = lock(&control.connection);
    let socket = connection
        .as_ref()
        .map_or(listener.as_fd(), |connected| connected.as_fd());
    let mut fds = vec![
        PollFd::new(control.wake.as_fd(), PollFlags::POLLIN),
        PollFd::new(socket, PollFlags::POLLIN),
    ];
    let device = state.device.wake_up();
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
            std::thread::sleep(Duration::from_millis(100));
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
fn work<D: Device>(path: &Path, ready: &Ready, state: &mut FrontendState<D>) {
    let FrontendState {
        device,
        rings,
        memory,
        ..
    } = state;
    if ready.device {
        let done = device.woken(rings, memory);
        stop_if_broken(path, rings, done);
    }
    for (index, kick) in ready.rings.iter().enumerate() {
        if *kick == Kick::Dead || (*kick == Kick::Kicked && !rings[index].consume_kick()) {
            tracing::warn!(socket = %path.display(), ring = index, "the kick descriptor is no eventfd");
            rings[index].fail();
            continue;
        }
        let due = rings[index].take_deferred() | (*kick == Kick::Kicked);
        if due && rings[index].is_running() {
            let done = device.process(index, rings, memory);
            stop_if_broken(path, rings, done);
        }
    }
}

fn stop_if_broken(path: &Path, rings: &mut [crate::Vring], done: Result<(), RingError>) {
    if let Err(broken) = done {
        tracing::warn!(socket = %path.display(), "stopped: {broken}");
        if let Some(ring) = rings.get_mut(broken.ring) {
            ring.fail();
        }
    }
}
