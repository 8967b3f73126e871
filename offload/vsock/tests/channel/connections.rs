//! How connections begin, in both directions, and what refuses them.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use longship_vsock::{MAX_CONNECTIONS, VsockDevice, VsockError};
use tokio::io::AsyncWriteExt;

use crate::guest::{CID, Guest, PORT, Packet, REQUEST, RESPONSE, RST, RW, SHUTDOWN, World, packet};

#[test]
fn a_guest_connects_and_both_sides_talk() {
    let mut w = World::new();
    for (rings, without) in [(3, 0), (2, 0), (2, 1 << 29), (3, 1 << 28)] {
        let mut guest = Guest::with(&w.device, rings, without);
        assert_eq!(guest.driver.config(8), CID.to_le_bytes());
        guest.open(5000, 1 << 20);
        let mut stream = w.accept();
        assert_eq!((stream.host_port(), stream.guest_port()), (PORT, 5000));
        guest.send(&packet(RW, 5000, b"hello from the guest"));
        assert_eq!(w.read(&mut stream, 20), b"hello from the guest");
        w.write(&mut stream, b"hello from the card");
        let got = guest.receive();
        assert_eq!((got.op, &*got.data), (RW, &b"hello from the card"[..]));
        assert_eq!(got.fwd_cnt, 20);
    }
}

#[test]
fn what_nobody_listens_to_is_reset_and_a_foreign_source_is_ignored() {
    let w = World::new();
    let mut guest = Guest::new(&w.device);
    let mut refused = |change: &dyn Fn(&mut Packet)| {
        let mut request = packet(REQUEST, 5000, &[]);
        change(&mut request);
        guest.send(&request);
        let answer = guest.receive();
        assert_eq!((answer.op, answer.kind), (RST, 1));
        assert_eq!((answer.src, answer.dst), (request.dst, request.src));
    };
    refused(&|p| p.dst.1 = 1);
    refused(&|p| p.dst.0 = 3);
    refused(&|p| p.kind = 2);
    refused(&|p| p.op = RW);
    refused(&|p| p.op = 0);
    refused(&|p| p.op = 999);
    refused(&|p| p.op = SHUTDOWN);
    let mut foreign = packet(REQUEST, 5000, &[]);
    foreign.src.0 = CID + 1;
    guest.send(&foreign);
    // A reset is never answered, or two sides could reset each other for ever.
    guest.send(&packet(RST, 5000, &[]));
    assert!(guest.silent());
}

#[test]
fn the_host_connects_to_the_guest() {
    let w = World::new();
    let mut guest = Guest::new(&w.device);
    w.runtime.block_on(async {
        let connect = w.device.connect(77);
        let answer = async {
            let request = guest.receive();
            assert_eq!((request.op, request.dst), (REQUEST, (CID, 77)));
            let mut response = packet(RESPONSE, 77, &[]);
            response.dst = request.src;
            guest.send(&response);
            request.src.1
        };
        let (stream, host_port) = tokio::join!(connect, answer);
        let mut stream = stream.unwrap();
        assert_eq!((stream.guest_port(), stream.host_port()), (77, host_port));
        stream.write_all(b"hi").await.unwrap();
        assert_eq!(guest.receive().data, b"hi");

        let refuse = async {
            let request = guest.receive();
            let mut reset = packet(RST, 78, &[]);
            reset.dst = request.src;
            guest.send(&reset);
        };
        let (refused, ()) = tokio::join!(w.device.connect(78), refuse);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);

        // Nobody waits any longer: the guest is told.
        let patience = Duration::from_millis(50);
        let given_up = tokio::time::timeout(patience, w.device.connect(79)).await;
        assert!(given_up.is_err());
        assert_eq!(guest.receive().op, REQUEST);
        assert_eq!(guest.receive().op, RST);
    });
}

#[test]
fn a_connection_asked_for_before_the_guest_is_there_is_made_when_it_comes() {
    let w = World::new();
    let device = &w.device;
    w.runtime.block_on(async {
        let mut connect = Box::pin(device.connect(77));
        let early = tokio::time::timeout(Duration::from_millis(30), &mut connect).await;
        assert!(early.is_err());
        let mut guest = Guest::new(device);
        let request = guest.receive();
        let mut response = packet(RESPONSE, 77, &[]);
        response.dst = request.src;
        guest.send(&response);
        connect.await.unwrap();
    });
}

#[test]
fn connections_are_limited_and_those_that_ended_make_room() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    for round in 0..3 {
        let mut streams = Vec::new();
        for i in 0..MAX_CONNECTIONS as u32 {
            guest.open(5000 + i, 1000);
            streams.push(w.accept());
        }
        guest.send(&packet(REQUEST, 9000, &[]));
        assert_eq!(guest.receive().op, RST, "round {round}");
        for (i, stream) in (0..).zip(streams) {
            drop(stream);
            let shut = guest.receive();
            assert_eq!((shut.op, shut.flags), (SHUTDOWN, 3));
            guest.send(&packet(RST, 5000 + i, &[]));
        }
    }
}

#[test]
fn stop_resets_the_streams_and_ends_the_receiver_at_once() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    let begin = Instant::now();
    w.device.stop();
    w.device.stop();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(!w.device.socket().exists());
    let e = w.read_end(&mut stream).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
    assert!(w.runtime.block_on(stream.write_all(b"x")).is_err());
    assert!(w.runtime.block_on(w.incoming.recv()).is_none());
    let e = w.runtime.block_on(w.device.connect(1)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotConnected);

    // Nobody ever connected.
    let begin = Instant::now();
    drop(World::new());
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_new_frontend_starts_afresh() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut old = w.accept();
    drop(guest);
    let e = w.read_end(&mut old).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    guest.send(&packet(RW, 5000, b"again"));
    assert_eq!(w.read(&mut stream, 5), b"again");
}

#[test]
fn nobody_who_takes_connections_means_no_connections() {
    let w = World::new();
    drop(w.incoming);
    let mut guest = Guest::new(&w.device);
    guest.send(&packet(REQUEST, 5000, &[]));
    assert_eq!(guest.receive().op, RST);
}

#[test]
fn reserved_context_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 40] {
        let e = VsockDevice::serve(&path, cid, &[]).unwrap_err();
        assert!(matches!(e, VsockError::Cid(_)), "{e}");
        assert!(!path.exists());
    }
}
