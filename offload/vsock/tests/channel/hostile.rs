//! Packets that no driver sends.

use std::time::Duration;

use proptest::prelude::*;

use crate::guest::{CID, Guest, PORT, Packet, REQUEST, RESPONSE, RW, World, packet};

fn any_packet() -> impl Strategy<Value = Packet> {
    let likely = |value: u64| prop_oneof![9 => Just(value), 1 => any::<u64>()];
    (
        (likely(CID), likely(2)),
        (0_u32..4, prop_oneof![9 => Just(PORT), 1 => any::<u32>()]),
        (prop_oneof![9 => Just(1_u16), 1 => any::<u16>()], 0_u16..9),
        any::<(u32, u32, u32)>(),
        prop::option::weighted(0.2, any::<u32>()),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(cids, ports, (kind, op), numbers, len, data)| Packet {
            src: (cids.0, ports.0),
            dst: (cids.1, ports.1),
            kind,
            op,
            flags: numbers.0,
            buf_alloc: numbers.1,
            fwd_cnt: numbers.2,
            len,
            data,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_sends_the_next_connection_works(
        packets in prop::collection::vec(any_packet(), 1..40),
    ) {
        let mut w = World::new();
        let mut guest = Guest::new(&w.device);
        for packet in &packets {
            guest.send(packet);
            while let Some((head, len)) = guest.driver.take_used(0) {
                let (at, _) = guest.buffers.remove(&head).unwrap();
                Packet::parse(&guest.driver.read(at, len));
                guest.refill();
                guest.driver.kick(0);
            }
        }
        while w.incoming.try_recv().is_ok() {}
        while guest.receive_for(Duration::from_millis(5)).is_some() {}
        guest.send(&packet(REQUEST, 5000, &[]));
        let mut answer = guest.receive();
        while answer.dst.1 != 5000 {
            answer = guest.receive();
        }
        prop_assert_eq!(answer.op, RESPONSE);
        let mut stream = w.accept();
        guest.send(&packet(RW, 5000, b"fine"));
        prop_assert_eq!(w.read(&mut stream, 4), b"fine");
    }
}
