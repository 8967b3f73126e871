//! A VPC on this card: its namespace, and the bridge with the gateway.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use crate::link::{self, LinkError};
use crate::namespace::Namespace;
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
    /// Made when the first TAP needs it.
    namespace: Mutex<Option<Arc<Namespace>>>,
}

impl Vpc {
    /// The VPC of `spec`, of which nothing exists yet.
    pub(crate) fn of(spec: &EniSpec) -> Self {
        Self {
            name: spec.vpc.clone(),
            gateway: spec.gateway,
            gateway_mac: spec.gateway_mac(),
            prefix_length: spec.prefix_length,
            namespace: Mutex::new(None),
        }
    }

    /// Creates a TAP on the VPC's bridge, and the bridge first if it is not there.
    pub(crate) fn create_tap(&self, name: &str, mtu: u16) -> Result<Tap, EniError> {
        self.enter(&*self.namespace()?, || {
            let tap = Tap::create(name)?;
            link::attach(name, BRIDGE, mtu).map_err(|e| self.refused(e))?;
            Ok(tap)
        })
    }

    /// Removes a TAP whose descriptor somebody still has.
    pub(crate) fn remove_tap(&self, name: &str) -> Result<(), EniError> {
        self.enter(&*self.namespace()?, || {
            link::remove(name).map_err(|e| self.refused(e))
        })
    }

    /// Runs `work` on a thread inside the VPC's namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, EniError> {
        self.enter(&*self.namespace()?, || Ok(work()))
    }

    /// A descriptor of its namespace.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, EniError> {
        use std::os::fd::AsFd;
        let namespace = self.namespace()?;
        let copy = namespace.as_fd().try_clone_to_owned();
        copy.map_err(|e| self.failed("copying its descriptor", e))
    }

    fn namespace(&self) -> Result<Arc<Namespace>, EniError> {
        let mut made = self
            .namespace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = &*made {
            return Ok(namespace.clone());
        }
        let namespace = Namespace::create().map_err(|e| self.failed("creating it", e))?;
        self.enter(&namespace, || {
            configure_ip().map_err(|e| self.failed("configuring IP", e))?;
            link::loopback_up()
                .and_then(|()| {
                    link::create_bridge(BRIDGE, self.gateway_mac, self.gateway, self.prefix_length)
                })
                .map_err(|e| self.refused(e))
        })?;
        tracing::debug!(vpc = self.name, gateway = %self.gateway, "VPC namespace created");
        Ok(made.insert(Arc::new(namespace)).clone())
    }

    fn enter<T: Send>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> Result<T, EniError> + Send,
    ) -> Result<T, EniError> {
        let ran = namespace.run(work);
        ran.map_err(|e| self.failed("entering it", e))?
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
