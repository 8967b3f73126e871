//! The socket of an ENI and the thread that serves its frontends, one after the
//! other.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{
    BackendReqHandler, Error as VhostUserError, VhostUserBackendReqHandlerMut,
};

use super::early::take_vring_enable;
use super::session::{RECEIVE, Session};
use crate::EniError;
use crate::net::Device;

/// How long [`Server::stop`] waits for the thread.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// Pause after an error of the kernel that may pass, such as too few descriptors.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Stack of the thread in bytes; what is not touched costs nothing.
const STACK: usize = 256 << 10;

/// A device that is being served, until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Server {
    socket: PathBuf,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// What another thread needs to end the device's.
#[derive(Debug)]
struct Control {
    wake: EventFd,
    frontend: Mutex<Frontend>,
}

/// Who is served now.
#[derive(Debug)]
enum Frontend {
    None,
    /// Shut down to get the thread out of a half-received message.
    Connected(UnixStream),
    /// The server is being stopped.
    NoMore,
}

impl Server {
    /// Serves `device` at `socket`, which is listening when this returns. A
    /// socket that a dead process left there is replaced.
    pub(crate) fn start(socket: &Path, device: Device) -> Result<Self, EniError> {
        let failed = |doing, source| EniError::Socket {
            path: socket.to_owned(),
            doing,
            source,
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| failed("creating an eventfd", e.into()))?;
        let session =
            Session::new(device).map_err(|e| failed("making its rings", io::Error::other(e)))?;
        let control = Arc::new(Control {
            wake,
            frontend: Mutex::new(Frontend::None),
        });
        let listener = listen(socket)?;
        let (running, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("eni".into())
            .stack_size(STACK)
            .spawn({
                let control = control.clone();
                move || {
                    let _running = running;
                    serve(&listener, &control, session);
                }
            })
            .map_err(|e| {
                let _ = fs::remove_file(socket);
                failed("starting its thread", e)
            })?;
        Ok(Self {
            socket: socket.to_owned(),
            control,
            thread: Some(thread),
            ended,
        })
    }

    /// Ends the connection and the thread and removes the socket. False where
    /// the thread is stuck, and the device with it.
    pub(crate) fn stop(&mut self) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        let frontend = std::mem::replace(&mut *self.control.frontend(), Frontend::NoMore);
        if let Frontend::Connected(connection) = frontend {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let _ = self.control.wake.write(1);
        let _ = fs::remove_file(&self.socket);
        let socket = self.socket.display();
        match self.ended.recv_timeout(STOP_LIMIT) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::error!(%socket, "the backend does not stop; its thread is left alone");
                false
            }
            _ => {
                if thread.join().is_err() {
                    tracing::error!(%socket, "the backend's thread panicked");
                }
                true
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Control {
    fn frontend(&self) -> MutexGuard<'_, Frontend> {
        self.frontend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes who is served, unless the server is being stopped.
    fn set_frontend(&self, now: Frontend) {
        let mut frontend = self.frontend();
        if !matches!(*frontend, Frontend::NoMore) {
            *frontend = now;
        }
    }

    fn is_stopping(&self) -> bool {
        matches!(*self.frontend(), Frontend::NoMore)
    }
}

fn listen(path: &Path) -> Result<UnixListener, EniError> {
    let failed = |doing| {
        move |source| EniError::Socket {
            path: path.to_owned(),
            doing,
            source,
        }
    };
    let in_use = |message: &str| EniError::Conflict {
        field: "socket",
        message: format!("{} {message}", path.display()),
    };
    if let Ok(there) = fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err(in_use("exists and is no socket"));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(in_use("is served by another process"));
        }
        fs::remove_file(path).map_err(failed("removing what a dead process left"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listening"))?;
    // Whoever can connect has the ENI.
    let mode = fs::Permissions::from_mode(0o600);
    if let Err(e) = fs::set_permissions(path, mode) {
        let _ = fs::remove_file(path);
        return Err(failed("setting its mode")(e));
    }
    Ok(listener)
}

/// A frontend that is being served.
struct Connection {
    stream: UnixStream,
    handler: BackendReqHandler<Mutex<Session>>,
}

/// What a wait ended with.
#[derive(Debug, Default)]
struct Ready {
    socket: bool,
    packets: bool,
    kicks: [bool; 2],
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &UnixListener, control: &Control, session: Session) {
    // Shared with the handler of messages only, on this thread.
    let session = Arc::new(Mutex::new(session));
    let mut connection: Option<Connection> = None;
    loop {
        let socket = connection
            .as_ref()
            .map_or(listener.as_fd(), |open| open.stream.as_fd());
        let ready = wait(&control.wake, socket, &lock(&session));
        if control.is_stopping() {
            return;
        }
        if ready.socket {
            match &mut connection {
                None => connection = accept(listener, control, &session),
                Some(open) => {
                    if let Err(e) = message(open, &session) {
                        let mut session = lock(&session);
                        tracing::debug!(tap = session.device.name(), "frontend is gone: {e}");
                        session.disconnect();
                        control.set_frontend(Frontend::None);
                        connection = None;
                    }
                }
            }
        }
        let mut session = lock(&session);
        for (ring, kicked) in session.rings.iter_mut().zip(ready.kicks) {
            if kicked {
                ring.take_kick();
            }
        }
        if ready.packets {
            session.rings[RECEIVE].wake();
        }
        session.work();
    }
}

fn accept(
    listener: &UnixListener,
    control: &Control,
    session: &Arc<Mutex<Session>>,
) -> Option<Connection> {
    let accepted = listener.accept().and_then(|(stream, _)| {
        let (copy, other) = (stream.try_clone()?, stream.try_clone()?);
        control.set_frontend(Frontend::Connected(copy));
        let handler = BackendReqHandler::from_stream(other, session.clone());
        Ok(Connection { stream, handler })
    });
    match accepted {
        Ok(connection) => {
            tracing::debug!(tap = lock(session).device.name(), "frontend connected");
            Some(connection)
        }
        Err(e) => {
            tracing::warn!(
                tap = lock(session).device.name(),
                "accepting a frontend: {e}"
            );
            std::thread::sleep(RETRY_AFTER);
            None
        }
    }
}

/// Serves one message of the frontend. An error is the end of the connection.
fn message(open: &mut Connection, session: &Mutex<Session>) -> Result<(), VhostUserError> {
    if !lock(session).has_features()
        && let Some((index, enable)) = take_vring_enable(&open.stream)
    {
        return lock(session).set_vring_enable(index, enable);
    }
    match open.handler.handle_request() {
        Err(VhostUserError::SocketRetry(_)) => Ok(()),
        done => done,
    }
}

/// Sleeps until there is something to do.
fn wait(wake: &EventFd, socket: BorrowedFd<'_>, session: &Session) -> Ready {
    let on = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds = vec![on(wake.as_fd()), on(socket)];
    // A TAP with packets that nobody takes would be readable all the time.
    let packets = session.rings[RECEIVE].takes_packets();
    fds.extend(packets.then(|| on(session.device.packets())));
    let first_kick = fds.len();
    fds.extend(session.rings.iter().filter_map(|r| r.kick()).map(on));
    let due = session.rings.iter().any(|ring| ring.is_due());
    let timeout = if due {
        PollTimeout::ZERO
    } else {
        PollTimeout::NONE
    };
    if let Err(e) = poll(&mut fds, timeout) {
        if e != nix::Error::EINTR {
            tracing::error!(tap = session.device.name(), "waiting: {e}");
            std::thread::sleep(RETRY_AFTER);
        }
        return Ready::default();
    }
    let fired = |i: usize| fds.get(i).is_some_and(|fd| fd.any().unwrap_or(true));
    let mut next_kick = first_kick..;
    let kicks = session
        .rings
        .each_ref()
        .map(|ring| ring.kick().is_some() && next_kick.next().is_some_and(&fired));
    Ready {
        socket: fired(1),
        packets: packets && fired(2),
        kicks,
    }
}
