//! The card's side of the protocol, one thing after the other.

use std::time::Duration;

use longship_framed::error::Failure;
use longship_framed::guest::request::Operation;
use longship_framed::guest::{
    Configure, Exec, FromGuest, Hello, Interface, PowerOff, Process, ProcessExited, Reply, Request,
    Signal, Start, StreamHeader, StreamKind, from_guest,
};
use longship_framed::{read_frame_async, write_frame_async};
use longship_vsock::{Incoming, VsockStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::machine::Machine;

pub(crate) const MAC: &str = "02:00:00:00:00:2a";

/// How long anything may take; generous, for emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came from the guest and was not asked for yet.
#[derive(Debug)]
enum Came {
    Hello(Hello),
    Reply(Reply),
    Exited(ProcessExited),
    Stream(StreamHeader, VsockStream),
    /// The control connection, to write on.
    Control(WriteHalf<VsockStream>),
}

/// A card with one guest.
pub(crate) struct Card {
    pub(crate) machine: Machine,
    pub(crate) hello: Hello,
    control: WriteHalf<VsockStream>,
    came: mpsc::UnboundedReceiver<Came>,
    waiting: Vec<Came>,
    next_id: u64,
}

impl Card {
    /// Boots a guest and waits for its Hello.
    pub(crate) async fn boot() -> Self {
        let (machine, mut incoming) = Machine::boot().await;
        let (sender, mut came) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Incoming { port, stream }) = incoming.recv().await {
                tokio::spawn(serve(port, stream, sender.clone()));
            }
        });
        let first = tokio::time::timeout(PATIENCE, came.recv()).await;
        let Ok(Some(Came::Control(control))) = first else {
            panic!("no control connection; console:\n{}", machine.console());
        };
        let mut card = Self {
            machine,
            hello: Hello::default(),
            control,
            came,
            waiting: Vec::new(),
            next_id: 1,
        };
        card.hello = card.hello().await;
        card
    }

    /// Boots a guest and configures it.
    pub(crate) async fn configured() -> Self {
        let mut card = Self::boot().await;
        let configured = card.ask(Operation::Configure(configuration())).await;
        assert_eq!(configured, None);
        card
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        self.next("Hello", |came| match came {
            Came::Hello(hello) => Ok(hello),
            other => Err(other),
        })
        .await
    }

    /// Drops the control connection and waits for the next one's Hello.
    pub(crate) async fn hang_up(&mut self) {
        // Dropping half of it would leave the other open.
        self.control.shutdown().await.unwrap();
        self.control = self
            .next("control connection", |came| match came {
                Came::Control(control) => Ok(control),
                other => Err(other),
            })
            .await;
        self.hello().await;
    }

    /// Sends a request without waiting for its answer.
    pub(crate) async fn send(&mut self, operation: Operation) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            id,
            operation: Some(operation),
        };
        write_frame_async(&mut self.control, &request)
            .await
            .unwrap();
        id
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask(&mut self, operation: Operation) -> Option<Failure> {
        if let Operation::Start(Start { container, .. }) = &operation {
            // Nobody has asked for these of an earlier container of that name.
            self.waiting.retain(
                |came| !matches!(came, Came::Stream(header, _) if header.process == *container),
            );
        }
        let id = self.send(operation).await;
        let reply = self.next("reply", |came| match came {
            Came::Reply(reply) if reply.id == id => Ok(reply),
            other => Err(other),
        });
        reply.await.failure
    }

    pub(crate) async fn exited(&mut self, process: &str) -> ProcessExited {
        self.next(&format!("exit of {process}"), |came| match came {
            Came::Exited(exited) if exited.process == process => Ok(exited),
            other => Err(other),
        })
        .await
    }

    pub(crate) async fn stream(&mut self, process: &str, kind: StreamKind) -> VsockStream {
        self.next(&format!("{kind:?} of {process}"), |came| match came {
            Came::Stream(header, stream) if header.process == process && header.kind() == kind => {
                Ok(stream)
            }
            other => Err(other),
        })
        .await
    }

    /// Reads a stream of a process to its end.
    pub(crate) async fn all_of(&mut self, process: &str, kind: StreamKind) -> String {
        let mut stream = self.stream(process, kind).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        let what = || format!("{kind:?} of {process} does not end: {bytes:?}");
        read.unwrap_or_else(|_| panic!("{}", what())).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Reads a stream until `text` has come.
    pub(crate) async fn until(&self, stream: &mut VsockStream, text: &str) -> String {
        let mut heard = String::new();
        let mut buffer = [0; 4096];
        while !heard.contains(text) {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
            let got = read
                .unwrap_or_else(|_| panic!("no {text:?} in {heard:?}"))
                .unwrap();
            assert!(got > 0, "ended without {text:?}: {heard:?}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..got]));
        }
        heard
    }

    /// Starts the container `name` and lets it end: what it printed on both
    /// outputs, and its exit.
    pub(crate) async fn run(&mut self, name: &str, process: Process) -> (String, ProcessExited) {
        let started = self.ask(start(name, process)).await;
        assert_eq!(started, None, "start of {name}");
        let out = self.all_of(name, StreamKind::Stdout).await;
        let err = self.all_of(name, StreamKind::Stderr).await;
        (out + &err, self.exited(name).await)
    }

    /// Runs a command in a container and lets it end.
    pub(crate) async fn exec(
        &mut self,
        container: &str,
        name: &str,
        process: Process,
    ) -> (String, ProcessExited) {
        let started = self.ask(exec(container, name, process)).await;
        assert_eq!(started, None, "exec of {name}");
        let out = self.all_of(name, StreamKind::Stdout).await;
        let err = self.all_of(name, StreamKind::Stderr).await;
        (out + &err, self.exited(name).await)
    }

    pub(crate) async fn signal(&mut self, process: &str, signal: i32, all: bool) {
        let process = process.to_owned();
        let operation = Operation::Signal(Signal {
            process,
            signal,
            all,
        });
        assert_eq!(self.ask(operation).await, None);
    }

    /// Powers the guest off; what it printed.
    pub(crate) async fn power_off(mut self) -> String {
        self.send(Operation::PowerOff(PowerOff {})).await;
        tokio::task::spawn_blocking(move || {
            self.machine.wait_for_end(Duration::from_secs(20));
            self.machine.console()
        })
        .await
        .unwrap()
    }

    /// The first thing that `pick` takes, of what has come or will come.
    async fn next<T>(&mut self, what: &str, mut pick: impl FnMut(Came) -> Result<T, Came>) -> T {
        let mut found = None;
        for came in std::mem::take(&mut self.waiting) {
            match (&found, pick_if(found.is_none(), came, &mut pick)) {
                (None, Ok(this)) => found = Some(this),
                (_, Ok(_)) => unreachable!("only one is picked"),
                (_, Err(other)) => self.waiting.push(other),
            }
        }
        if let Some(found) = found {
            return found;
        }
        loop {
            let came = tokio::time::timeout(PATIENCE, self.came.recv()).await;
            let Ok(Some(came)) = came else {
                panic!("no {what}; there is {:?}", self.waiting);
            };
            match pick(came) {
                Ok(this) => return this,
                Err(other) => self.waiting.push(other),
            }
        }
    }
}

fn pick_if<T>(
    wanted: bool,
    came: Came,
    pick: &mut impl FnMut(Came) -> Result<T, Came>,
) -> Result<T, Came> {
    if wanted { pick(came) } else { Err(came) }
}

/// Serves one connection of the guest.
async fn serve(port: u32, mut stream: VsockStream, sender: mpsc::UnboundedSender<Came>) {
    // A test that has ended takes nothing any more.
    if port == 1024 {
        let (reader, writer) = tokio::io::split(stream);
        let _ = sender.send(Came::Control(writer));
        return read_control(reader, sender).await;
    }
    if let Ok(Some(header)) = read_frame_async::<StreamHeader>(&mut stream).await {
        let _ = sender.send(Came::Stream(header, stream));
    }
}

async fn read_control(mut reader: ReadHalf<VsockStream>, sender: mpsc::UnboundedSender<Came>) {
    while let Ok(Some(message)) = read_frame_async::<FromGuest>(&mut reader).await {
        let came = match message.message.expect("a message") {
            from_guest::Message::Hello(hello) => Came::Hello(hello),
            from_guest::Message::Reply(reply) => Came::Reply(reply),
            from_guest::Message::Exited(exited) => Came::Exited(exited),
        };
        let _ = sender.send(came);
    }
}

/// A good configuration for QEMU's own network.
pub(crate) fn configuration() -> Configure {
    Configure {
        hostname: "web-0".into(),
        interfaces: vec![Interface {
            mac: MAC.into(),
            name: "eth0".into(),
            address: "10.0.2.15".into(),
            prefix_length: 24,
            gateway: "10.0.2.2".into(),
            mtu: 1400,
        }],
        nameservers: vec!["10.0.2.3".into()],
        search: vec!["svc.local".into()],
        time_us: 1_800_000_000_000_000,
        entropy: (0..32).collect(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        scratch_serial: "scratch".into(),
    }
}

/// A process that runs a shell command.
pub(crate) fn shell(command: &str) -> Process {
    argv(&["sh", "-c", command])
}

pub(crate) fn argv(argv: &[&str]) -> Process {
    Process {
        argv: argv.iter().map(ToString::to_string).collect(),
        ..Process::default()
    }
}

pub(crate) fn start(name: &str, process: Process) -> Operation {
    Operation::Start(Start {
        container: name.into(),
        image_serial: "image".into(),
        process: Some(process),
        cpu_millis: 0,
        memory_bytes: 0,
    })
}

pub(crate) fn exec(container: &str, name: &str, process: Process) -> Operation {
    Operation::Exec(Exec {
        container: container.into(),
        process: name.into(),
        spec: Some(process),
    })
}
