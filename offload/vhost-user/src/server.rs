//! The socket of a device and the thread that serves it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::device::Device;
use crate::frontend::FrontendState;
use crate::serve::{Control, serve};

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

impl Server {
    /// Serves `device` at `socket`, which is listening when this returns. A
    /// socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind then.
    pub fn start<D: Device>(socket: &Path, device: D) -> Result<Self, ServeError> {
        let failed = |source: io::Error| ServeError::Thread {
            path: socket.to_owned(),
            source,
        };
        let state = FrontendState::new(device).map_err(|e| failed(io::Error::other(e)))?;
        let control = Arc::new(Control::new().map_err(failed)?);
        let listener = listen(socket)?;
        let (running, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(D::NAME.into())
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
    /// request that is being served, but not for ever: false where the thread is
    /// stuck in it, and the device with it.
    pub fn stop(&mut self) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        self.control.stop();
        let _ = fs::remove_file(&self.socket);
        let socket = self.socket.display();
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP_LIMIT) {
            tracing::error!(
                %socket,
                "a request is still in the kernel; the device's thread ends when it returns"
            );
            return false;
        }
        if thread.join().is_err() {
            tracing::error!(%socket, "the device's thread panicked");
        }
        true
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
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
    // Whoever can connect has the device.
    let ready = fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .and_then(|()| listener.set_nonblocking(true));
    ready.map_err(|source| {
        let _ = fs::remove_file(path);
        failed(source)
    })?;
    Ok(listener)
}
