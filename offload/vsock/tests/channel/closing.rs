//! How connections end.

use std::io::ErrorKind;

use tokio::io::AsyncWriteExt;

use crate::guest::{CREDIT_REQUEST, CREDIT_UPDATE, Guest, RST, RW, SHUTDOWN, World, packet};

#[test]
fn each_side_may_close_its_half() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    let mut done = packet(SHUTDOWN, 5000, &[]);
    done.flags = 2;
    guest.send(&packet(RW, 5000, b"last words"));
    guest.send(&done);
    assert_eq!(w.read(&mut stream, 10), b"last words");
    assert_eq!(w.read_end(&mut stream).unwrap(), 0);
    w.write(&mut stream, b"still here");
    assert_eq!(guest.receive().data, b"still here");
    w.runtime.block_on(stream.shutdown()).unwrap();
    let shut = guest.receive();
    assert_eq!((shut.op, shut.flags), (SHUTDOWN, 2));
    let e = w.runtime.block_on(stream.write_all(b"x")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BrokenPipe);
    drop(stream);
    let shut = guest.receive();
    assert_eq!((shut.op, shut.flags), (SHUTDOWN, 3));
}

#[test]
fn a_guest_that_closes_is_confirmed_and_its_last_data_stays_readable() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    guest.send(&packet(RW, 5000, b"bye"));
    let mut close = packet(SHUTDOWN, 5000, &[]);
    close.flags = 3;
    guest.send(&close);
    assert_eq!(guest.receive().op, RST);
    assert_eq!(w.read(&mut stream, 3), b"bye");
    assert_eq!(w.read_end(&mut stream).unwrap(), 0);
    let e = w.runtime.block_on(stream.write_all(b"x")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BrokenPipe);
    // The ports can be used again while the old stream is still held.
    guest.open(5000, 1 << 20);
    let mut second = w.accept();
    w.write(&mut second, b"new");
    assert_eq!(guest.receive().data, b"new");
}

#[test]
fn a_dropped_stream_sends_what_was_written_and_then_closes() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 10);
    let mut stream = w.accept();
    w.write(&mut stream, b"more than fits at once");
    drop(stream);
    let mut got = guest.receive();
    let mut text: Vec<u8> = Vec::new();
    while got.flags != 3 {
        text.extend(&got.data);
        let mut update = packet(CREDIT_UPDATE, 5000, &[]);
        (update.buf_alloc, update.fwd_cnt) = (10, text.len() as u32);
        if got.op == CREDIT_REQUEST || got.op == RW {
            guest.send(&update);
        }
        got = guest.receive();
    }
    assert_eq!(text, b"more than fits at once");
    // What is on its way meanwhile is thrown away, not answered with a reset,
    // which could cost the guest what it has not read yet.
    guest.send(&packet(RW, 5000, b"too late"));
    assert!(guest.silent());
    guest.send(&packet(RST, 5000, &[]));
}
