//! Third parties on both sides: QEMU as the frontend, Linux as the driver.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use longship_eni::{BridgeEnis, EniProvider, EniSpec};
use longship_vhost_user::qemu::{Dma, Frontend, Machine, busybox_initramfs, kernel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::{alone, assert_held, block_on, held, spec};

/// The guests' `/init`. The server serves a file and prints its checksum; the
/// client does what a pod does, and then what it should not.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /dev /proc /sys /www /tmp
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for word in $(cat /proc/cmdline); do
    case $word in role=*|ip=*|mtu=*|gw=*|peer=*) export "$word" ;; esac
done
say() { echo "TEST $1=$2"; }
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then say "$name" yes; else say "$name" no; fi; }
say mac "$(cat /sys/class/net/eth0/address)"
ip link set lo up
ip addr add "$ip/24" dev eth0
ip link set eth0 mtu "$mtu" up
for i in 1 2 3 4 5 6 7 8 9 10; do
    [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] && break
    sleep 0.2
done
say carrier "$(cat /sys/class/net/eth0/carrier)"
if [ "$role" = server ]; then
    dd if=/dev/urandom of=/www/large bs=1M count=8 2>/dev/null
    echo "hello from $ip" >/www/index.html
    httpd -h /www
    say sum "$(sha256sum </www/large | cut -d' ' -f1)"
    while :; do sleep 1000; done
fi
try gateway ping -c 3 -W 2 "$gw"
say page "$(wget -q -O - "http://$peer/")"
say sum "$(wget -q -O - "http://$peer/large" | sha256sum | cut -d' ' -f1)"
other=${ip%.*}.77
ip addr add "$other/24" dev eth0
try spoofed_address ping -I "$other" -c 2 -W 1 "$gw"
try spoofed_to_peer ping -I "$other" -c 2 -W 1 "$peer"
ip addr del "$other/24" dev eth0
try still ping -c 1 -W 2 "$gw"
mac=$(cat /sys/class/net/eth0/address)
ip link set eth0 down
ip link set eth0 address 02:00:00:00:00:77
ip link set eth0 up
try spoofed_mac ping -c 2 -W 1 "$gw"
ip link set eth0 down
ip link set eth0 address "$mac"
ip link set eth0 up
try again ping -c 1 -W 2 "$gw"
say end yes
while :; do sleep 1000; done
"#;

/// A guest that says `TEST key=value`.
struct Guest(Machine);

impl Guest {
    /// Boots a guest with the ENI of `spec`. The words of `role` are for its
    /// `/init`.
    fn boot(initramfs: &Path, spec: &EniSpec, dma: Dma, role: &str) -> Self {
        let kernel = kernel(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        let card = Frontend {
            // QEMU 7.2 crashes with MSI-X here under TCG; without it works everywhere.
            device: &format!("virtio-net-pci,vectors=0,mac={}", spec.mac),
            socket: &spec.socket,
            network: true,
        };
        let words = format!("quiet {role}");
        Self(Machine::boot(&kernel, initramfs, &words, dma, &[card]))
    }

    /// Waits for the value of `key`.
    fn result(&mut self, key: &str) -> String {
        let wanted = format!("TEST {key}=");
        let line = self.0.wait_for(&wanted);
        line.split_once(&wanted).unwrap().1.to_owned()
    }
}

#[test]
fn two_linux_guests_under_qemu_talk_and_cannot_spoof() {
    talk(Dma::Direct);
}

#[test]
fn guests_that_ask_the_platform_for_memory_do_the_same() {
    talk(Dma::Platform);
}

fn talk(dma: Dma) {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let image = busybox_initramfs(folder.path(), INIT);
    let before = held();
    block_on(async {
        let enis = BridgeEnis::new();
        let a = spec(folder.path(), "qemu", 6, 2);
        let mut b = spec(folder.path(), "qemu", 6, 3);
        // What init would set from the control plane; QEMU passes no MTU on.
        b.mtu = 1400;
        for spec in [&a, &b] {
            enis.prepare(spec.clone()).await.unwrap();
        }
        let mut server = Guest::boot(&image, &a, dma, "role=server ip=10.6.0.2 mtu=1500");
        assert_eq!(server.result("mac"), a.mac.to_string());
        assert_eq!(server.result("carrier"), "1");
        let sum = server.result("sum");
        assert_eq!(sum.len(), 64);

        // From the card, as a probe would.
        let at = SocketAddrV4::new(a.address, 80);
        let mut card = enis.dial("qemu", at).await.unwrap();
        assert_eq!(card.peer_addr().unwrap(), at.into());
        card.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        card.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello from 10.6.0.2\n"), "{answer}");
        // Nobody listens there.
        let refused = enis.dial("qemu", SocketAddrV4::new(a.address, 81)).await;
        assert!(refused.is_err());

        let role = "role=client ip=10.6.0.3 mtu=1400 gw=10.6.0.1 peer=10.6.0.2";
        let mut client = Guest::boot(&image, &b, dma, role);
        assert_eq!(client.result("carrier"), "1");
        assert_eq!(client.result("gateway"), "yes");
        assert_eq!(client.result("page"), "hello from 10.6.0.2");
        let (started, sent) = (Instant::now(), enis.stats(&a.id).unwrap());
        assert_eq!(client.result("sum"), sum);
        let (seconds, now) = (started.elapsed().as_secs_f64(), enis.stats(&a.id).unwrap());
        println!(
            "8 MiB from guest to guest in {seconds:.2} s, in {} frames",
            now.tx_packets - sent.tx_packets
        );
        assert!(now.tx_bytes - sent.tx_bytes > 8 << 20);
        assert_eq!(
            now.rx_dropped + now.dropped_malformed + now.tx_failed,
            0,
            "{now:?}"
        );

        let honest = enis.stats(&b.id).unwrap();
        assert_eq!(honest.dropped_spoofed, 0);
        assert_eq!(client.result("spoofed_address"), "no");
        let spoofed = enis.stats(&b.id).unwrap().dropped_spoofed;
        assert!(spoofed > 0);
        assert_eq!(client.result("spoofed_to_peer"), "no");
        assert_eq!(client.result("still"), "yes");
        let spoofed = enis.stats(&b.id).unwrap().dropped_spoofed;
        assert_eq!(client.result("spoofed_mac"), "no");
        assert!(enis.stats(&b.id).unwrap().dropped_spoofed > spoofed);
        assert_eq!(client.result("again"), "yes");
        client.result("end");
        // Linux speaks IPv6 unasked; it goes nowhere.
        let stats = enis.stats(&b.id).unwrap();
        assert!(stats.dropped_unsupported > 0);
        println!("{stats:?}");

        // A VMM that is killed, and another that takes its place.
        drop(client);
        let mut client = Guest::boot(&image, &b, dma, role);
        assert_eq!(client.result("gateway"), "yes");
        assert_eq!(client.result("sum"), sum);
        let started = Instant::now();
        enis.release(&a.id).await.unwrap();
        enis.release(&b.id).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(2));
    });
    assert_held(&before);
}
