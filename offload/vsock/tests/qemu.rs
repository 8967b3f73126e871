//! A real Linux behind a foreign frontend: QEMU boots the guest kernel with
//! longship-init, which says Hello and runs a process over our channel.

#![allow(clippy::unwrap_used, reason = "a test's own steps")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use longship_framed::guest::{
    Configure, FromGuest, Hello, Port, PowerOff, Process, ProcessExited, Request, Start,
    StreamHeader, StreamKind, from_guest, request,
};
use longship_framed::{read_frame_async, write_frame_async};
use longship_vhost_user::qemu::{Dma, Frontend, Machine, kernel, last_line_of};
use longship_volume::{BlockDevice, Disk};
use longship_vsock::{Incoming, VsockDevice, VsockStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);
const CONTROL: u32 = Port::Control as u32;
const STREAM: u32 = Port::Stream as u32;

/// Bytes that go through the guest and come back.
const TOTAL: usize = 8 << 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The initramfs with longship-init: `$LONGSHIP_INITRAMFS`, or a built one.
fn initramfs() -> PathBuf {
    match std::env::var_os("LONGSHIP_INITRAMFS") {
        Some(path) => PathBuf::from(path),
        None => last_line_of(&root().join("guest/init/build.sh")).join("initramfs.cpio"),
    }
}

/// An image with busybox and nothing else, served as a disk.
fn serve_image(dir: &Path) -> BlockDevice {
    let content = dir.join("image");
    fs::create_dir_all(content.join("bin")).unwrap();
    fs::copy("/bin/busybox", content.join("bin/busybox")).unwrap();
    let disk = dir.join("image.erofs");
    let made = Command::new("mkfs.erofs")
        .arg("--quiet")
        .args([&disk, &content])
        .status()
        .unwrap_or_else(|e| panic!("mkfs.erofs (`make setup`): {e}"));
    assert!(made.success());
    let disk = Disk {
        file: File::open(disk).unwrap(),
        read_only: true,
        serial: "busybox".into(),
    };
    BlockDevice::serve(&dir.join("image.sock"), disk).unwrap()
}

/// The control connection, seen from the card.
struct Control {
    stream: VsockStream,
    next_id: u64,
}

impl Control {
    async fn next(&mut self) -> from_guest::Message {
        let message = timeout(PATIENCE, read_frame_async::<FromGuest>(&mut self.stream)).await;
        let message = message.expect("init is silent").unwrap();
        message.expect("init is gone").message.unwrap()
    }

    async fn send(&mut self, operation: request::Operation) {
        self.next_id += 1;
        let request = Request {
            id: self.next_id,
            operation: Some(operation),
        };
        write_frame_async(&mut self.stream, &request).await.unwrap();
    }

    async fn do_(&mut self, operation: request::Operation) {
        self.send(operation).await;
        match self.next().await {
            from_guest::Message::Reply(reply) => {
                assert_eq!(reply.id, self.next_id);
                assert_eq!(reply.failure, None);
            }
            other => panic!("{other:?} instead of a reply"),
        }
    }
}

async fn accept(incoming: &mut Receiver<Incoming>, port: u32) -> VsockStream {
    let next = timeout(PATIENCE, incoming.recv()).await;
    let next = next.expect("the guest does not connect").unwrap();
    assert_eq!(next.port, port);
    next.stream
}

/// The streams of process `cat`: standard input, and output.
async fn streams(incoming: &mut Receiver<Incoming>) -> (VsockStream, VsockStream) {
    let (mut input, mut output) = (None, None);
    while input.is_none() || output.is_none() {
        let mut stream = accept(incoming, STREAM).await;
        let header: StreamHeader = read_frame_async(&mut stream).await.unwrap().unwrap();
        assert_eq!(header.process, "cat");
        match header.kind() {
            StreamKind::Stdin => input = Some(stream),
            StreamKind::Stdout => output = Some(stream),
            _ => {}
        }
    }
    (input.unwrap(), output.unwrap())
}

async fn talk(control: VsockStream, mut incoming: Receiver<Incoming>) {
    let mut control = Control {
        stream: control,
        next_id: 0,
    };
    let hello = control.next().await;
    let from_guest::Message::Hello(Hello {
        protocol: 1,
        uptime_us,
        ..
    }) = hello
    else {
        panic!("{hello:?} instead of Hello")
    };
    assert!(uptime_us > 0);
    let configure = Configure {
        hostname: "pod".into(),
        time_us: 1_700_000_000_000_000,
        entropy: vec![7; 32],
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        ..Configure::default()
    };
    control.do_(request::Operation::Configure(configure)).await;
    let process = Process {
        argv: vec!["/bin/busybox".into(), "cat".into()],
        stdin: true,
        ..Process::default()
    };
    let start = Start {
        container: "cat".into(),
        image_serial: "busybox".into(),
        process: Some(process),
        ..Start::default()
    };
    control.do_(request::Operation::Start(start)).await;

    let (mut input, mut output) = streams(&mut incoming).await;
    let data: Vec<u8> = (0_u32..).flat_map(u32::to_le_bytes).take(TOTAL).collect();
    let write = async {
        input.write_all(&data).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let read = async {
        // A reader that is slow at first: the guest has to wait, not to lose.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut back = Vec::new();
        output.read_to_end(&mut back).await.unwrap();
        back
    };
    let ((), back) = timeout(PATIENCE, async { tokio::join!(write, read) })
        .await
        .unwrap();
    assert!(back == data, "{} of {TOTAL} bytes came back", back.len());

    let exited = control.next().await;
    let from_guest::Message::Exited(ProcessExited {
        process,
        exit_code: 0,
        ..
    }) = exited
    else {
        panic!("{exited:?} instead of a clean exit")
    };
    assert_eq!(process, "cat");
    control
        .send(request::Operation::PowerOff(PowerOff {}))
        .await;
    let end = timeout(PATIENCE, control.stream.read(&mut [0]))
        .await
        .unwrap();
    assert!(!matches!(end, Ok(1..)), "init says more after its end");
}

#[test]
fn init_behind_qemu_says_hello_and_runs_a_process_over_the_channel() {
    runs_a_process(Dma::Direct);
}

#[test]
fn init_that_asks_the_platform_for_memory_does_the_same() {
    runs_a_process(Dma::Platform);
}

fn runs_a_process(dma: Dma) {
    let (kernel, initramfs) = (kernel(&root()), initramfs());
    let dir = tempfile::tempdir().unwrap();
    let image = serve_image(dir.path());
    let socket = dir.path().join("vsock.sock");
    let (device, mut incoming) = VsockDevice::serve(&socket, 5, &[CONTROL, STREAM]).unwrap();
    let devices = [
        Frontend {
            device: "vhost-user-vsock-pci",
            socket: device.socket(),
            network: false,
        },
        Frontend {
            device: "vhost-user-blk-pci,num-queues=1",
            socket: image.socket(),
            network: false,
        },
    ];
    let machine = Machine::boot(&kernel, &initramfs, "", dma, &devices);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // Where the guest dies, its console is what tells why.
        let control = timeout(PATIENCE, incoming.recv()).await;
        match control {
            Ok(Some(Incoming {
                port: CONTROL,
                stream,
            })) => talk(stream, incoming).await,
            other => panic!("{other:?} instead of a connection to the control port"),
        }
    });
    machine.wait_for_end();
}
