//! The card's end of the control channel: one guest's init over vsock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_framed::guest::{
    Configure, Exec, FromGuest, Hello, Port, PowerOff, Process, ProcessExited, Reply, Request,
    Resize, Signal, Start, StreamHeader, StreamKind, WindowSize, from_guest, request::Operation,
};
use longship_framed::{FrameError, read_frame_async, write_frame_async};
use longship_proto::{Class, Failure};
use longship_vsock::{Incoming, VsockDevice, VsockStream};
use tokio::io::{AsyncWrite, ReadHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// Vsock ports the card listens at for its guests.
pub(crate) const PORTS: [u32; 2] = [Port::Control as u32, Port::Stream as u32];

/// How long init may take to answer one request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stream may take from its connection to its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process's streams may take once it was started.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;
/// Requests on their way to init.
const REQUESTS: usize = 32;

/// A guest that has its vsock device. Dropping the last clone ends the channel.
#[derive(Clone)]
pub(crate) struct Guest {
    shared: Arc<Shared>,
    _tasks: Arc<Tasks>,
}

struct Tasks {
    acceptor: JoinHandle<()>,
    // The backend lives as long as somebody may speak to the guest. The lock only
    // makes it shareable; nobody takes it.
    _device: Mutex<VsockDevice>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

struct Shared {
    hello: watch::Sender<Option<Hello>>,
    state: Mutex<State>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Nothing is begun any more.
    closed: bool,
    control: Option<mpsc::Sender<Request>>,
    replies: HashMap<u64, oneshot::Sender<Reply>>,
    streams: HashMap<(String, StreamKind), oneshot::Sender<VsockStream>>,
    exits: HashMap<String, oneshot::Sender<ProcessExited>>,
}

/// Where a process's input goes.
pub(crate) type Stdin = Box<dyn AsyncWrite + Send + Unpin>;

/// A process in the guest and its streams.
pub(crate) struct Running {
    /// Standard input, where it was asked for. Dropping it tells the guest that its
    /// client is gone; shutting it down is the end of the input.
    pub(crate) stdin: Option<Stdin>,
    /// Standard output, or all that a terminal shows.
    pub(crate) stdout: ReadHalf<VsockStream>,
    /// Standard error; none with a terminal.
    pub(crate) stderr: Option<ReadHalf<VsockStream>>,
    /// Fires when the process ended; an error when the guest is gone.
    pub(crate) exited: oneshot::Receiver<ProcessExited>,
}

impl Guest {
    /// Takes over a device and the connections that come through it.
    pub(crate) fn new(device: VsockDevice, incoming: mpsc::Receiver<Incoming>) -> Self {
        let shared = Arc::new(Shared {
            hello: watch::channel(None).0,
            state: Mutex::default(),
            next_id: AtomicU64::new(1),
        });
        let acceptor = tokio::spawn(accept(shared.clone(), incoming));
        Self {
            shared,
            _tasks: Arc::new(Tasks {
                acceptor,
                _device: Mutex::new(device),
            }),
        }
    }

    /// Waits until init has said hello.
    ///
    /// # Errors
    /// `Unavailable` when the channel ended first.
    pub(crate) async fn hello(&self) -> Result<Hello, Failure> {
        let mut hello = self.shared.hello.subscribe();
        let said = hello.wait_for(Option::is_some).await;
        said.ok().and_then(|h| h.clone()).ok_or_else(gone)
    }

    /// Sets up what is common to the pod.
    ///
    /// # Errors
    /// What init refused, or `Unavailable`.
    pub(crate) async fn configure(&self, configure: Configure) -> Result<(), Failure> {
        self.call(Operation::Configure(configure)).await
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What init refused, or `Unavailable`.
    pub(crate) async fn start(&self, start: Start) -> Result<Running, Failure> {
        let process = start.container.clone();
        let spec = start.process.clone().unwrap_or_default();
        self.spawn(&process, &spec, Operation::Start(start)).await
    }

    /// Runs one more process, called `process`, in a container.
    ///
    /// # Errors
    /// What init refused, or `Unavailable`.
    pub(crate) async fn exec(
        &self,
        container: &str,
        process: &str,
        spec: Process,
    ) -> Result<Running, Failure> {
        let exec = Exec {
            container: container.to_owned(),
            process: process.to_owned(),
            spec: Some(spec.clone()),
        };
        self.spawn(process, &spec, Operation::Exec(exec)).await
    }

    /// Sends a signal to a process, or with `all` to its whole container.
    ///
    /// # Errors
    /// What init refused, or `Unavailable`.
    pub(crate) async fn signal(
        &self,
        process: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), Failure> {
        self.call(Operation::Signal(Signal {
            process: process.to_owned(),
            signal,
            all,
        }))
        .await
    }

    /// Tells a terminal its new size.
    ///
    /// # Errors
    /// What init refused, or `Unavailable`.
    pub(crate) async fn resize(&self, process: &str, window: WindowSize) -> Result<(), Failure> {
        let resize = Resize {
            process: process.to_owned(),
            window: Some(window),
        };
        self.call(Operation::Resize(resize)).await
    }

    /// Asks the guest to power off; it does not answer.
    pub(crate) async fn power_off(&self) {
        let control = self.state().control.clone();
        if let Some(control) = control {
            let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
            let operation = Some(Operation::PowerOff(PowerOff {}));
            // A guest that is gone already is off as well.
            let _ = control.send(Request { id, operation }).await;
        }
    }

    /// Gives the guest up: whoever waits for it learns that it is gone.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    async fn call(&self, operation: Operation) -> Result<(), Failure> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        let control = {
            let mut state = self.state();
            if state.closed {
                return Err(gone());
            }
            state.replies.insert(id, reply);
            state.control.clone()
        };
        let answer = async {
            let control = control.ok_or_else(gone)?;
            control
                .send(Request {
                    id,
                    operation: Some(operation),
                })
                .await
                .map_err(|_| gone())?;
            replied.await.map_err(|_| gone())
        };
        let answer = tokio::time::timeout(REPLY_TIMEOUT, answer).await;
        self.state().replies.remove(&id);
        let reply = answer
            .map_err(|_| Failure::unavailable("the guest's init does not answer"))
            .and_then(|reply| reply)?;
        reply.failure.map_or(Ok(()), Err)
    }

    /// Registers for what the process will send before it can send anything.
    async fn spawn(
        &self,
        process: &str,
        spec: &Process,
        operation: Operation,
    ) -> Result<Running, Failure> {
        let kinds: &[StreamKind] = match (spec.tty, spec.stdin) {
            (true, _) => &[StreamKind::Tty],
            (false, true) => &[StreamKind::Stdout, StreamKind::Stderr, StreamKind::Stdin],
            (false, false) => &[StreamKind::Stdout, StreamKind::Stderr],
        };
        let (exit, exited) = oneshot::channel();
        let mut streams = Vec::new();
        {
            let mut state = self.state();
            if state.closed {
                return Err(gone());
            }
            if state.exits.contains_key(process) {
                return Err(Failure::conflict(format!(
                    "process `{process}` runs already"
                )));
            }
            state.exits.insert(process.to_owned(), exit);
            for kind in kinds {
                let (stream, received) = oneshot::channel();
                state.streams.insert((process.to_owned(), *kind), stream);
                streams.push(received);
            }
        }
        let started = async {
            self.call(operation).await?;
            let mut opened = Vec::new();
            for stream in streams {
                let stream = tokio::time::timeout(STREAM_TIMEOUT, stream).await;
                opened.push(stream.ok().and_then(Result::ok).ok_or_else(|| {
                    Failure::unavailable(format!("the guest opened no stream for `{process}`"))
                })?);
            }
            Ok::<_, Failure>(opened)
        };
        let opened = match started.await {
            Ok(opened) => opened,
            Err(failure) => {
                self.forget(process);
                if failure.class() == Class::Unavailable {
                    // It may run all the same, where nobody would ever end it.
                    let _ = self.signal(process, SIGKILL, false).await;
                }
                return Err(failure);
            }
        };
        let mut opened = opened.into_iter();
        let Some(output) = opened.next() else {
            return Err(Failure::internal("a process without streams"));
        };
        let (stdout, input) = tokio::io::split(output);
        if spec.tty {
            let stdin: Stdin = Box::new(input);
            return Ok(Running {
                stdin: Some(stdin),
                stdout,
                stderr: None,
                exited,
            });
        }
        let stderr = opened.next().map(|stream| tokio::io::split(stream).0);
        let stdin = opened.next().map(|stream| Box::new(stream) as Stdin);
        Ok(Running {
            stdin,
            stdout,
            stderr,
            exited,
        })
    }

    fn forget(&self, process: &str) {
        let mut state = self.state();
        state.exits.remove(process);
        state.streams.retain(|(p, _), _| p != process);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        *self.state() = State {
            closed: true,
            ..State::default()
        };
    }

    fn hand_over(&self, header: &StreamHeader, stream: VsockStream) {
        let key = (header.process.clone(), header.kind());
        match self.state().streams.remove(&key) {
            // Nobody waits any more: dropping the stream resets it.
            Some(waiting) => drop(waiting.send(stream)),
            None => debug!(
                process = header.process,
                "the guest opened a stream nobody asked for"
            ),
        }
    }

    fn receive(&self, message: FromGuest) {
        match message.message {
            Some(from_guest::Message::Hello(hello)) => {
                self.hello.send_replace(Some(hello));
            }
            Some(from_guest::Message::Reply(reply)) => {
                if let Some(waiting) = self.state().replies.remove(&reply.id) {
                    let _ = waiting.send(reply);
                }
            }
            Some(from_guest::Message::Exited(exited)) => {
                if let Some(waiting) = self.state().exits.remove(&exited.process) {
                    let _ = waiting.send(exited);
                }
            }
            None => warn!("the guest sent an empty message"),
        }
    }
}

fn gone() -> Failure {
    Failure::unavailable("the guest is gone")
}

/// Accepts what the guest connects, until the device ends.
async fn accept(shared: Arc<Shared>, mut incoming: mpsc::Receiver<Incoming>) {
    let mut control: Option<JoinHandle<()>> = None;
    while let Some(Incoming { port, stream }) = incoming.recv().await {
        if port == Port::Control as u32 {
            // Init connects again when its connection broke; the new one counts.
            if let Some(old) = control.take() {
                old.abort();
            }
            control = Some(tokio::spawn(serve_control(shared.clone(), stream)));
        } else {
            tokio::spawn(serve_stream(shared.clone(), stream));
        }
    }
    if let Some(control) = control {
        control.abort();
    }
    shared.close();
}

async fn serve_control(shared: Arc<Shared>, stream: VsockStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (requests, mut queued) = mpsc::channel::<Request>(REQUESTS);
    {
        let mut state = shared.state();
        if state.closed {
            return;
        }
        state.control = Some(requests);
    }
    let write = async {
        while let Some(request) = queued.recv().await {
            write_frame_async(&mut writer, &request).await?;
        }
        Ok::<(), FrameError>(())
    };
    let read = async {
        while let Some(message) = read_frame_async::<FromGuest>(&mut reader).await? {
            shared.receive(message);
        }
        Ok::<(), FrameError>(())
    };
    let ended = tokio::select! { r = write => r, r = read => r };
    if let Err(error) = ended {
        warn!(%error, "the guest's control connection broke");
    }
    let mut state = shared.state();
    state.control = None;
    state.replies.clear();
}

async fn serve_stream(shared: Arc<Shared>, mut stream: VsockStream) {
    let header = read_frame_async::<StreamHeader>(&mut stream);
    match tokio::time::timeout(HEADER_TIMEOUT, header).await {
        Ok(Ok(Some(header))) => shared.hand_over(&header, stream),
        Ok(Ok(None)) | Err(_) => debug!("a stream of the guest ended before its header"),
        Ok(Err(error)) => warn!(%error, "a stream of the guest has no usable header"),
    }
}
