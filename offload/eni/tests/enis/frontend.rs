//! The backend, driven by a frontend of our own.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use longship_eni::{BridgeEnis, EniProvider, EniSpec, EniStats};

use crate::driver::Driver;
use crate::host::{alone, assert_held, block_on, held, run_in, spec, threads};
use crate::network::cpu_time;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a frame that should not come.
const NEVER: Duration = Duration::from_millis(300);

fn arp_request(spec: &EniSpec, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(spec.mac.octets());
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(spec.mac.octets());
    frame.extend(spec.address.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// Whether the frame tells that `target` is at some MAC.
fn is_reply_from(frame: &[u8], target: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06])
        && frame.get(21) == Some(&2)
        && frame.get(28..32) == Some(&target.octets())
}

#[test]
fn the_gateway_answers_and_counts_agree() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let enis = BridgeEnis::new();
        let spec = spec(folder.path(), "blue", 5, 2);
        enis.prepare(spec.clone()).await.unwrap();
        let mut guest = Driver::connect(&spec.socket, 16);
        let config = guest.config(20);
        assert_eq!(config[..6], spec.mac.octets());
        // Link up, one pair of rings, the MTU; zeros behind what is offered.
        assert_eq!(
            config[6..],
            [1, 0, 1, 0, 0xdc, 0x05, 0, 0, 0, 0, 0, 0, 0, 0]
        );

        let request = arp_request(&spec, spec.gateway);
        guest.send(&request);
        let reply = guest.receive(SOON).expect("an answer of the gateway");
        assert!(is_reply_from(&reply, spec.gateway));
        assert_eq!(reply[6..12], [0x0e, 0x67, 10, 5, 0, 1]);
        let expected = EniStats {
            tx_packets: 1,
            tx_bytes: request.len() as u64,
            rx_packets: 1,
            rx_bytes: reply.len() as u64,
            ..EniStats::default()
        };
        assert_eq!(enis.stats(&spec.id), Some(expected));
    });
}

#[test]
fn spoofed_frames_reach_nobody() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let enis = BridgeEnis::new();
        let specs = [2, 3].map(|n| spec(folder.path(), "blue", 5, n));
        for spec in &specs {
            enis.prepare(spec.clone()).await.unwrap();
        }
        let [own, victim] = &specs;
        let mut attacker = Driver::connect(&own.socket, 16);
        let mut neighbour = Driver::connect(&victim.socket, 16);
        let as_victim = arp_request(victim, own.gateway);
        let own_mac = EniSpec {
            mac: own.mac,
            ..victim.clone()
        };
        let as_gateway = EniSpec {
            mac: own.mac,
            address: own.gateway,
            ..own.clone()
        };
        attacker.send(&as_victim);
        attacker.send(&arp_request(&own_mac, own.gateway));
        attacker.send(&arp_request(&as_gateway, victim.address));
        let mut ipv6 = arp_request(own, own.gateway);
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        attacker.send(&ipv6);
        assert_eq!(neighbour.receive(NEVER), None);
        assert_eq!(attacker.receive(NEVER), None);
        let stats = enis.stats(&own.id).unwrap();
        assert_eq!((stats.dropped_spoofed, stats.dropped_unsupported), (3, 1));
        assert_eq!(stats.tx_packets, 0);
        // The bridge has learned nothing of it: a frame for the victim's MAC
        // goes to the victim alone.
        let learned = run_in(&enis, "blue", "bridge", &["fdb"]);
        let victims = learned
            .lines()
            .filter(|l| l.contains(&victim.mac.to_string()));
        assert_eq!(victims.count(), 0, "{learned}");
    });
}

#[test]
fn pods_of_one_vpc_meet_and_those_of_two_do_not() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let enis = BridgeEnis::new();
        let a = spec(folder.path(), "blue", 5, 2);
        let b = spec(folder.path(), "blue", 5, 3);
        // The same subnet and even the same address as `b`.
        let stranger = EniSpec {
            id: "red-3".into(),
            vpc: "red".into(),
            socket: folder.path().join("red-3.sock"),
            ..b.clone()
        };
        let mut guests = Vec::new();
        for spec in [&a, &b, &stranger] {
            enis.prepare(spec.clone()).await.unwrap();
            guests.push(Driver::connect(&spec.socket, 16));
        }
        let request = arp_request(&a, b.address);
        guests[0].send(&request);
        assert_eq!(guests[1].receive(SOON).as_deref(), Some(&request[..]));
        assert_eq!(guests[2].receive(NEVER), None);
    });
}

#[test]
fn one_frontend_after_the_other_is_served_and_none_holds_up_the_end() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let before = held();
    block_on(async {
        let enis = BridgeEnis::new();
        let spec = spec(folder.path(), "blue", 5, 2);
        enis.prepare(spec.clone()).await.unwrap();
        // A thread gets its name only when it runs.
        while threads() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let idle = held();
        for protocol in [true, false, true] {
            let mut guest = Driver::connect_as(&spec.socket, 16, protocol);
            guest.send(&arp_request(&spec, spec.gateway));
            assert!(is_reply_from(&guest.receive(SOON).unwrap(), spec.gateway));
            println!("with a frontend: {} threads", threads());
        }
        // One that talks nonsense, and one that says nothing.
        use std::io::Write;
        let mut nonsense = std::os::unix::net::UnixStream::connect(&spec.socket).unwrap();
        nonsense.write_all(&[0xff; 64]).unwrap();
        drop(nonsense);
        let silent = std::os::unix::net::UnixStream::connect(&spec.socket).unwrap();
        let waiting = Driver::connect_later(&spec.socket);
        drop(silent);
        let mut guest = waiting.join().unwrap();
        guest.send(&arp_request(&spec, spec.gateway));
        assert!(is_reply_from(&guest.receive(SOON).unwrap(), spec.gateway));
        drop(guest);
        assert_held(&idle);

        let guest = Driver::connect(&spec.socket, 16);
        let half = std::os::unix::net::UnixStream::connect(&spec.socket).unwrap();
        let started = Instant::now();
        enis.release(&spec.id).await.unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
        assert!(!spec.socket.exists());
        drop((guest, half));
    });
    assert_held(&before);
}

#[test]
fn without_buffers_nothing_is_lost_but_what_overflows_and_nobody_spins() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let enis = BridgeEnis::new();
        let specs = [2, 3].map(|n| spec(folder.path(), "blue", 5, n));
        for spec in &specs {
            enis.prepare(spec.clone()).await.unwrap();
        }
        let [from, to] = &specs;
        let mut sender = Driver::connect(&from.socket, 16);
        let mut sleeper = Driver::connect(&to.socket, 0);
        let frame = arp_request(from, to.address);
        for _ in 0..300 {
            sender.send(&frame);
        }
        let began = cpu_time();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let spent = cpu_time() - began;
        assert!(
            spent < Duration::from_millis(50),
            "{spent:?} of CPU while nobody takes packets"
        );
        assert_eq!(enis.stats(&to.id).unwrap().rx_packets, 0);
        sleeper.add_buffers(32);
        for _ in 0..300 {
            assert_eq!(sleeper.receive(SOON).as_deref(), Some(&frame[..]));
        }
        // 300 were used; the rest of the buffers is the guest's again.
        assert_eq!(sleeper.stop_receiving(), 300);
        sender.send(&frame);
        assert_eq!(sleeper.receive(NEVER), None);
    });
}
