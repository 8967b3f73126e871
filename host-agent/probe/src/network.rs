//! What an ENI is made of: a TAP in a bridge, in a network namespace of its own.
//!
//! The checks do it for real, in a thread of their own with a namespace of its own,
//! and all that they make is gone with that thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::check::Check;

const TUN: &str = "tun";
const BRIDGE: &str = "bridge";
const NAMESPACE: &str = "network-namespace";
const TUN_DEVICE: &str = "/dev/net/tun";

/// Makes a bridge (`linux/sockios.h`).
const SIOCBRADDBR: libc::c_ulong = 0x89a0;

pub(crate) fn check_network() -> Vec<Check> {
    std::thread::scope(|scope| {
        scope
            .spawn(in_own_namespace)
            .join()
            .unwrap_or_else(|_| vec![Check::fail(NAMESPACE, "the check failed", "report this")])
    })
}

fn in_own_namespace() -> Vec<Check> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        let remedy = if error == nix::Error::EPERM {
            "run as root (CAP_SYS_ADMIN)"
        } else {
            "use a kernel with CONFIG_NET_NS"
        };
        // Without it the other two would have to change the host's own network.
        return vec![Check::fail(NAMESPACE, format!("unshare: {error}"), remedy)];
    }
    vec![
        Check::ok(NAMESPACE, "can be made"),
        check_tun(),
        check_bridge(),
    ]
}

fn check_tun() -> Check {
    let tun = match OpenOptions::new().read(true).write(true).open(TUN_DEVICE) {
        Ok(tun) => tun,
        Err(error) => {
            return Check::fail(
                TUN,
                format!("open {TUN_DEVICE}: {error}"),
                "modprobe tun; then mknod /dev/net/tun c 10 200 where it is still missing",
            );
        }
    };
    match make_tap(&tun) {
        Ok(()) => Check::ok(TUN, format!("{TUN_DEVICE} makes TAPs with vnet headers")),
        Err(error) => Check::fail(
            TUN,
            format!("make a TAP: {error}"),
            "run as root (CAP_NET_ADMIN) on a kernel with CONFIG_TUN",
        ),
    }
}

fn make_tap(tun: &File) -> io::Result<()> {
    let mut request = interface_request();
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI)
        .ok()
        .zip(i16::try_from(libc::IFF_VNET_HDR).ok())
        .map(|(kind, header)| kind | header)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn check_bridge() -> Check {
    match make_bridge() {
        Ok(()) => Check::ok(BRIDGE, "can be made"),
        Err(error) => Check::fail(
            BRIDGE,
            format!("make a bridge: {error}"),
            "modprobe bridge, or use a kernel with CONFIG_BRIDGE; run as root (CAP_NET_ADMIN)",
        ),
    }
}

fn make_bridge() -> io::Result<()> {
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let name = c"probe0";
    // SAFETY: SIOCBRADDBR reads a NUL-terminated name, which is a static.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), SIOCBRADDBR, name.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn interface_request() -> libc::ifreq {
    // SAFETY: ifreq is plain C data, for which all zeroes are valid: an empty name,
    // which lets the kernel choose one.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn the_hosts_own_network_stays_as_it_was() {
        let before = std::fs::read_to_string("/proc/self/net/dev").unwrap();
        let names = |text: &str| -> Vec<String> {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, _)| name.trim().to_owned())
                .collect()
        };
        let checks = check_network();
        let after = std::fs::read_to_string("/proc/self/net/dev").unwrap();
        assert_eq!(names(&before), names(&after));
        assert_eq!(checks[0].name, NAMESPACE);
        for check in &checks {
            let needs_remedy = check.verdict != Verdict::Ok;
            assert_eq!(needs_remedy, !check.remedy.is_empty(), "{check:?}");
        }
    }
}
