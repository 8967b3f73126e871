//! Credit, and data in quantity.

use std::io::ErrorKind;
use std::time::Duration;

use longship_vhost_user::driver::PATIENCE;
use longship_vsock::BUFFER_BYTES;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest::{CREDIT_REQUEST, CREDIT_UPDATE, Guest, RST, RW, SHUTDOWN, World, packet};

#[test]
fn a_reader_that_does_not_read_stops_the_guest_by_credit() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    let full = vec![7; BUFFER_BYTES];
    guest.send(&packet(RW, 5000, &full));
    assert!(guest.silent(), "credit without anything read");
    assert_eq!(w.read(&mut stream, 1), [7]);
    assert!(guest.silent(), "an update for every byte");
    w.read(&mut stream, BUFFER_BYTES / 2);
    let update = guest.receive();
    assert_eq!(update.op, CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt as usize, BUFFER_BYTES / 2 + 1);
    // One byte more than the credit is against the rules.
    guest.send(&packet(RW, 5000, &vec![8; BUFFER_BYTES / 2 + 2]));
    assert_eq!(guest.receive().op, RST);
    let rest = w.read(&mut stream, BUFFER_BYTES / 2 - 1);
    assert!(rest.iter().all(|b| *b == 7));
    let e = w.read_end(&mut stream).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1000);
    let mut stream = w.accept();
    w.write(&mut stream, &[1; 2500]);
    let first = guest.receive();
    assert_eq!((first.op, first.data.len()), (RW, 1000));
    assert_eq!(guest.receive().op, CREDIT_REQUEST);
    assert!(guest.silent());
    let mut update = packet(CREDIT_UPDATE, 5000, &[]);
    // An answer that brings no credit is not asked for again.
    (update.buf_alloc, update.fwd_cnt) = (1000, 0);
    guest.send(&update);
    assert!(guest.silent());
    (update.buf_alloc, update.fwd_cnt) = (1000, 400);
    guest.send(&update);
    assert_eq!(guest.receive().data.len(), 400);
    assert_eq!(guest.receive().op, CREDIT_REQUEST);
    (update.buf_alloc, update.fwd_cnt) = (5000, 1400);
    guest.send(&update);
    assert_eq!(guest.receive().data.len(), 1100);
    // A writer waits where the buffer is full, and goes on with new credit.
    let too_much = vec![2; BUFFER_BYTES + 10_000];
    let write = async {
        let written = tokio::time::timeout(Duration::from_millis(50), stream.write_all(&too_much));
        written.await.is_err()
    };
    assert!(w.runtime.block_on(write), "the buffer has no bound");
    assert!(guest.receive().data.len() <= 5000);
}

/// Megabytes both ways at once, with the guest keeping to its credit.
#[test]
fn much_data_arrives_whole_in_both_directions() {
    const TOTAL: usize = 4 << 20;
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 32 << 10);
    let stream = w.accept();
    let byte = |i: usize| (i.wrapping_mul(31) >> 3) as u8;
    let card = std::thread::spawn(move || {
        w.runtime.block_on(async {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let write = async {
                let data: Vec<u8> = (0..TOTAL).map(byte).collect();
                writer.write_all(&data).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let read = async {
                let mut data = Vec::new();
                reader.read_to_end(&mut data).await.unwrap();
                data
            };
            tokio::join!(write, read).1
        })
    });
    let (mut sent, mut host_consumed) = (0, 0_u32);
    let mut got: Vec<u8> = Vec::new();
    let mut shut = false;
    while sent < TOTAL || !shut {
        let room = BUFFER_BYTES - (sent - host_consumed as usize);
        let n = room.min(TOTAL - sent).min(1 + sent % 9000);
        if n > 0 {
            let data: Vec<u8> = (sent..sent + n).map(byte).collect();
            let mut data = packet(RW, 5000, &data);
            (data.buf_alloc, data.fwd_cnt) = (32 << 10, got.len() as u32);
            guest.send(&data);
            sent += n;
        }
        let patience = if n > 0 { Duration::ZERO } else { PATIENCE };
        while let Some(p) = guest.receive_for(patience) {
            assert!([RW, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN].contains(&p.op));
            host_consumed = p.fwd_cnt;
            shut |= p.op == SHUTDOWN;
            got.extend(&p.data);
            let mut update = packet(CREDIT_UPDATE, 5000, &[]);
            (update.buf_alloc, update.fwd_cnt) = (32 << 10, got.len() as u32);
            guest.send(&update);
            if n == 0 {
                break;
            }
        }
    }
    let mut done = packet(SHUTDOWN, 5000, &[]);
    done.flags = 2;
    guest.send(&done);
    assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)) && got.len() == TOTAL);
    let data = card.join().unwrap();
    assert!(data.iter().enumerate().all(|(i, b)| *b == byte(i)) && data.len() == TOTAL);
}
