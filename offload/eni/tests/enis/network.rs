//! Namespaces, bridges and TAPs: there when an ENI is, and gone with it.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use longship_eni::{BridgeEnis, EniError, EniProvider};
use serde_json::Value;

use crate::driver::Driver;
use crate::host::{alone, assert_held, block_on, held, run_in, spec, threads};

fn json(enis: &BridgeEnis, vpc: &str, args: &[&str]) -> Vec<Value> {
    let all = [&["-j", "-d"], args].concat();
    serde_json::from_str(&run_in(enis, vpc, "ip", &all)).unwrap()
}

fn names(links: &[Value]) -> Vec<&str> {
    links.iter().filter_map(|l| l["ifname"].as_str()).collect()
}

#[test]
fn a_vpc_is_a_namespace_with_a_bridge_and_an_eni_is_a_tap_on_it() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let before = held();
    block_on(async {
        let enis = BridgeEnis::new();
        let (a, b) = (
            spec(folder.path(), "net", 7, 2),
            spec(folder.path(), "net", 7, 3),
        );
        enis.prepare(a.clone()).await.unwrap();
        enis.prepare(b.clone()).await.unwrap();
        enis.prepare(a.clone()).await.unwrap();
        assert_eq!(enis.list().await.unwrap(), [a.clone(), b.clone()]);
        assert!(a.socket.exists() && b.socket.exists());

        let links = json(&enis, "net", &["link"]);
        assert_eq!(
            names(&links),
            ["lo", "vpc0", "eni020000000702", "eni020000000703"]
        );
        let bridge = &links[1];
        assert_eq!(bridge["linkinfo"]["info_kind"], "bridge");
        assert_eq!(bridge["linkinfo"]["info_data"]["stp_state"], 0);
        assert_eq!(bridge["address"], "0e:67:0a:07:00:01");
        let tap = &links[2];
        assert_eq!(tap["master"], "vpc0");
        assert_eq!(tap["mtu"], 1500);
        assert_eq!(tap["linkinfo"]["info_data"]["type"], "tap");
        assert_eq!(tap["linkinfo"]["info_data"]["vnet_hdr"], true);
        assert_eq!(tap["linkinfo"]["info_data"]["persist"], false);
        for link in &links {
            let flags = link["flags"].as_array().unwrap();
            assert!(flags.contains(&"UP".into()), "{link}");
        }
        // The gateway and no other address, so no IPv6 either.
        let addresses: Vec<(String, u64)> = json(&enis, "net", &["address"])
            .iter()
            .flat_map(|link| link["addr_info"].as_array().unwrap().clone())
            .map(|a| {
                (
                    a["local"].as_str().unwrap().to_owned(),
                    a["prefixlen"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            addresses,
            [("127.0.0.1".to_owned(), 8), ("10.7.0.1".to_owned(), 24)]
        );
        let forwarding = run_in(&enis, "net", "cat", &["/proc/sys/net/ipv4/ip_forward"]);
        assert_eq!(forwarding.trim(), "0");

        enis.release(&a.id).await.unwrap();
        enis.release(&a.id).await.unwrap();
        assert_eq!(
            names(&json(&enis, "net", &["link"])),
            ["lo", "vpc0", "eni020000000703"]
        );
        assert!(!a.socket.exists());
        assert_eq!(enis.stats(&a.id), None);
        enis.release(&b.id).await.unwrap();
        assert!(matches!(
            enis.namespace("net"),
            Err(EniError::UnknownVpc(_))
        ));
        assert!(enis.list().await.unwrap().is_empty());
    });
    assert_held(&before);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn what_contradicts_an_eni_is_refused_and_leaves_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let before = held();
    block_on(async {
        let enis = BridgeEnis::new();
        let first = spec(folder.path(), "net", 7, 2);
        enis.prepare(first.clone()).await.unwrap();
        let other = spec(folder.path(), "net", 7, 3);
        let refusals = [
            (
                "id",
                longship_eni::EniSpec {
                    id: first.id.clone(),
                    ..other.clone()
                },
            ),
            (
                "mac",
                longship_eni::EniSpec {
                    mac: first.mac,
                    ..other.clone()
                },
            ),
            (
                "address",
                longship_eni::EniSpec {
                    address: first.address,
                    ..other.clone()
                },
            ),
            (
                "socket",
                longship_eni::EniSpec {
                    socket: first.socket.clone(),
                    ..other.clone()
                },
            ),
            (
                "gateway",
                longship_eni::EniSpec {
                    prefix_length: 16,
                    ..other.clone()
                },
            ),
        ];
        for (field, wrong) in refusals {
            match enis.prepare(wrong).await {
                Err(EniError::Conflict { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
        // Sockets that are another's, or no sockets.
        let _served = UnixListener::bind(&other.socket).unwrap();
        let taken = enis.prepare(other.clone()).await;
        assert!(matches!(
            taken,
            Err(EniError::Conflict {
                field: "socket",
                ..
            })
        ));
        std::fs::remove_file(&other.socket).unwrap();
        std::fs::write(&other.socket, "precious").unwrap();
        let taken = enis.prepare(other.clone()).await;
        assert!(matches!(
            taken,
            Err(EniError::Conflict {
                field: "socket",
                ..
            })
        ));
        assert_eq!(std::fs::read(&other.socket).unwrap(), b"precious");
        assert_eq!(enis.list().await.unwrap(), std::slice::from_ref(&first));
        assert_eq!(
            names(&json(&enis, "net", &["link"])),
            ["lo", "vpc0", "eni020000000702"]
        );

        // The same in a VPC of its own: the namespace goes as well.
        let alone = longship_eni::EniSpec {
            vpc: "own".into(),
            ..other.clone()
        };
        enis.prepare(alone).await.unwrap_err();
        assert!(matches!(
            enis.namespace("own"),
            Err(EniError::UnknownVpc(_))
        ));

        // And what was refused can be had once nothing is in its way.
        std::fs::remove_file(&other.socket).unwrap();
        drop(UnixListener::bind(&other.socket).unwrap());
        enis.prepare(other.clone()).await.unwrap();
    });
    // The provider was dropped with two ENIs.
    assert_held(&before);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn many_are_prepared_and_released_at_once() {
    const COUNT: u8 = 100;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let before = held();
    block_on(async {
        let enis = BridgeEnis::new();
        let specs: Vec<_> = (2..2 + COUNT)
            .map(|n| spec(folder.path(), "many", 9, n))
            .collect();
        let started = Instant::now();
        // Each twice, and half of those who asked first lose interest.
        let mut waiting = Vec::new();
        for spec in &specs {
            for turn in 0..2 {
                let (enis, asked) = (enis.clone(), spec.clone());
                let prepared = tokio::spawn(async move { enis.prepare(asked).await });
                if turn == 0 && spec.address.octets()[3] % 2 == 0 {
                    prepared.abort();
                } else {
                    waiting.push(prepared);
                }
            }
        }
        for prepared in waiting {
            prepared.await.unwrap().unwrap();
        }
        println!("{COUNT} ENIs prepared at once in {:?}", started.elapsed());
        assert_eq!(json(&enis, "many", &["link"]).len(), 2 + usize::from(COUNT));
        assert_eq!(enis.list().await.unwrap().len(), usize::from(COUNT));
        let started = Instant::now();
        let released: Vec<_> = specs
            .into_iter()
            .map(|spec| {
                let enis = enis.clone();
                tokio::spawn(async move { enis.release(&spec.id).await })
            })
            .collect();
        for released in released {
            released.await.unwrap().unwrap();
        }
        println!("and released in {:?}", started.elapsed());
        assert!(enis.list().await.unwrap().is_empty());
    });
    assert_held(&before);
}

/// What an ENI costs the card, for density: without a frontend, and with one
/// (and its driver, which is in this process too). Guest memory is not counted.
#[test]
fn an_eni_is_one_thread_and_less_than_64_kib() {
    const COUNT: u8 = 100;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let enis = BridgeEnis::new();
        // The first pays for what all share.
        let first = spec(folder.path(), "cost", 9, 2);
        enis.prepare(first).await.unwrap();
        let before = private_kib();
        let specs: Vec<_> = (3..3 + COUNT)
            .map(|n| spec(folder.path(), "cost", 9, n))
            .collect();
        for spec in &specs {
            enis.prepare(spec.clone()).await.unwrap();
        }
        let idle = private_kib();
        let drivers: Vec<_> = specs
            .iter()
            .map(|s| Driver::connect(&s.socket, 16))
            .collect();
        let connected = private_kib();
        let each = |kib: u64| kib / u64::from(COUNT);
        let (without, with) = (each(idle - before), each(connected - before));
        println!("an ENI: {without} KiB private, {with} KiB with a frontend and its driver");
        assert!(with < 64, "{with} KiB");
        assert_eq!(threads(), 1 + usize::from(COUNT));
        let began = cpu_time();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let spent = cpu_time() - began;
        assert!(
            spent < Duration::from_millis(50),
            "{spent:?} of CPU for nothing"
        );
        drop(drivers);
    });
}

/// Memory of this process that nobody shares.
fn private_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.try_into().unwrap())
}
