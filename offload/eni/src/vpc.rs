//! A VPC on this card: its namespace, and the bridge with the gateway.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::{self, LinkError};
use crate::namespace::{Namespace, NamespaceThread};
use crate::netlink::Netlink;
use crate::tap::Tap;
use crate::{EniError, EniSpec, MacAddress};

/// Name of every VPC's bridge, in its own namespace.
const BRIDGE: &str = "vpc0";

/// A VPC that some ENI of this card is in.
#[derive(Debug)]
pub(crate) struct Vpc {
    name: String,
    gateway: Ipv4Addr,
    gateway_mac: MacAddress,
    prefix_length: u8,
    /// Goes into namespaces for all VPCs.
    thread: Arc<NamespaceThread>,
    /// Made when the first TAP needs it.
    network: Mutex<Option<Arc<Network>>>,
}

/// What there is of a VPC in the kernel.
#[derive(Debug)]
struct Network {
    namespace: Namespace,
    netlink: Mutex<Netlink>,
    /// Index of the bridge.
    bridge: u32,
}

impl Network {
    fn netlink(&self) -> MutexGuard<'_, Netlink> {
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vpc {
    /// The VPC of `spec`, of which nothing exists yet.
    pub(crate) fn of(spec: &EniSpec, thread: Arc<NamespaceThread>) -> Self {
        Self {
            name: spec.vpc.clone(),
            gateway: spec.gateway,
            gateway_mac: spec.gateway_mac(),
            prefix_length: spec.prefix_length,
            thread,
            network: Mutex::new(None),
        }
    }

    /// Creates a TAP on the VPC's bridge, and the bridge first if it is not there.
    pub(crate) fn create_tap(&self, name: &str, mtu: u16) -> Result<Tap, EniError> {
        let network = self.network()?;
        let created = {
            let name = name.to_owned();
            self.enter(&network.namespace, move || Tap::create(&name))?
        };
        let (tap, index) = created?;
        link::attach(&mut network.netlink(), index, network.bridge, mtu)
            .map_err(|e| self.refused(e))?;
        Ok(tap)
    }

    /// Removes a TAP whose descriptor somebody still has.
    pub(crate) fn remove_tap(&self, name: &str) -> Result<(), EniError> {
        let network = self.network()?;
        link::remove(&mut network.netlink(), name).map_err(|e| self.refused(e))
    }

    /// Runs `work` on a thread inside the VPC's namespace.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EniError> {
        self.enter(&self.network()?.namespace, work)
    }

    /// A descriptor of its namespace.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, EniError> {
        let network = self.network()?;
        let copy = network.namespace.as_fd().try_clone_to_owned();
        copy.map_err(|e| self.failed("copying its descriptor", e))
    }

    fn network(&self) -> Result<Arc<Network>, EniError> {
        let mut made = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = &*made {
            return Ok(network.clone());
        }
        let created = self.thread.create();
        let namespace = created.map_err(|e| self.failed("creating it", e))?;
        let netlink = self.enter(&namespace, || configure_ip().and_then(|()| Netlink::open()))?;
        let mut netlink = netlink.map_err(|e| self.failed("configuring IP", e))?;
        let bridge = link::loopback_up(&mut netlink)
            .and_then(|()| {
                let (mac, length) = (self.gateway_mac, self.prefix_length);
                link::create_bridge(&mut netlink, BRIDGE, mac, self.gateway, length)
            })
            .map_err(|e| self.refused(e))?;
        tracing::debug!(vpc = self.name, gateway = %self.gateway, "VPC namespace created");
        let network = Network {
            namespace,
            netlink: Mutex::new(netlink),
            bridge,
        };
        Ok(made.insert(Arc::new(network)).clone())
    }

    fn enter<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EniError> {
        let ran = self.thread.run(namespace, work);
        ran.map_err(|e| self.failed("entering it", e))
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> EniError {
        EniError::Namespace {
            vpc: self.name.clone(),
            doing,
            source,
        }
    }

    fn refused(&self, LinkError { doing, source }: LinkError) -> EniError {
        EniError::Link {
            vpc: self.name.clone(),
            doing,
            source,
        }
    }
}

/// No forwarding, and no IPv6 at all: neither addresses of its own nor router
/// advertisements believed. A new namespace copies IPv4's settings from the
/// first one, so forwarding has to be switched off.
fn configure_ip() -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        match std::fs::write(&path, "1") {
            // A kernel without IPv6 has nothing to switch off.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}
