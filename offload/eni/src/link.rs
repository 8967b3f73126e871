//! Changes of network devices, over rtnetlink. Every function here acts on the
//! namespace of the thread that calls it.

use std::io;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage, State,
};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};
use tokio_stream::StreamExt;

use crate::MacAddress;

/// Packets that the kernel keeps for a guest that does not take them; what
/// comes then is dropped.
const TAP_QUEUE: u32 = 512;

/// How long the kernel may take to notice that a device is up. It does that on
/// a work queue, mostly within milliseconds.
const UP_LIMIT: Duration = Duration::from_secs(5);
const UP_POLL: Duration = Duration::from_millis(1);

/// A change that the kernel refused.
#[derive(Debug)]
pub(crate) struct LinkError {
    /// What was being done, to which device.
    pub(crate) doing: String,
    /// Why it failed.
    pub(crate) source: io::Error,
}

/// Brings the loopback device up.
pub(crate) fn loopback_up() -> Result<(), LinkError> {
    let index = index_of("lo")?;
    talk("setting lo up", async |netlink: Handle| {
        let up = LinkUnspec::new_with_index(index).up().build();
        netlink.link().set(up).execute().await
    })
}

/// Creates a bridge that is up and has `address`. It neither speaks STP nor
/// snoops on multicast, so a port forwards at once and it needs no timers.
pub(crate) fn create_bridge(
    name: &str,
    mac: MacAddress,
    address: Ipv4Addr,
    prefix_length: u8,
) -> Result<(), LinkError> {
    talk(
        format!("creating the bridge {name}"),
        async |netlink: Handle| {
            let bridge = LinkBridge::new(name)
                .address(mac.octets().to_vec())
                .mcast_snooping(false)
                .build();
            netlink.link().add(bridge).execute().await
        },
    )?;
    let index = index_of(name)?;
    let doing = format!("giving {name} the address {address}/{prefix_length}");
    talk(doing, async |netlink: Handle| {
        let add = netlink.address().add(index, address.into(), prefix_length);
        add.execute().await
    })
}

/// Makes `tap` a port of `bridge` and brings it up. Frames pass when this returns.
pub(crate) fn attach(tap: &str, bridge: &str, mtu: u16) -> Result<(), LinkError> {
    let (index, controller) = (index_of(tap)?, index_of(bridge)?);
    talk(
        format!("attaching {tap} to {bridge}"),
        async |netlink: Handle| {
            let port = LinkUnspec::new_with_index(index)
                .mtu(mtu.into())
                .txqueuelen(TAP_QUEUE)
                .controller(controller)
                .up()
                .build();
            netlink.link().set(port).execute().await?;
            // Until then the bridge drops what the TAP brings, or what goes to
            // the gateway.
            let deadline = Instant::now() + UP_LIMIT;
            while !is_forwarding(&look_up(&netlink, index).await?)
                || !is_up(&look_up(&netlink, controller).await?)
            {
                if Instant::now() > deadline {
                    return Err(rtnetlink::Error::RequestFailed);
                }
                tokio::time::sleep(UP_POLL).await;
            }
            Ok(())
        },
    )
}

async fn look_up(netlink: &Handle, index: u32) -> Result<LinkMessage, rtnetlink::Error> {
    let mut found = pin!(netlink.link().get().match_index(index).execute());
    let first = found.next().await;
    first.unwrap_or(Err(rtnetlink::Error::RequestFailed))
}

fn is_up(link: &LinkMessage) -> bool {
    let up = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::OperState(State::Up));
    link.attributes.iter().any(up)
}

fn is_forwarding(port: &LinkMessage) -> bool {
    let forwarding = InfoBridgePort::State(BridgePortState::Forwarding);
    port.attributes.iter().any(|attribute| {
        let LinkAttribute::LinkInfo(info) = attribute else {
            return false;
        };
        info.iter().any(|part| match part {
            LinkInfo::PortData(InfoPortData::BridgePort(state)) => state.contains(&forwarding),
            _ => false,
        })
    })
}

/// Removes a device.
pub(crate) fn remove(name: &str) -> Result<(), LinkError> {
    let index = index_of(name)?;
    talk(format!("removing {name}"), async |netlink: Handle| {
        netlink.link().del(index).execute().await
    })
}

fn index_of(name: &str) -> Result<u32, LinkError> {
    if_nametoindex(name).map_err(|e| LinkError {
        doing: format!("looking for {name}"),
        source: e.into(),
    })
}

/// One exchange with the kernel, on a socket of this thread's namespace.
fn talk(
    doing: impl Into<String>,
    exchange: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error>,
) -> Result<(), LinkError> {
    let done = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let (connection, netlink, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                exchange(netlink).await.map_err(|e| match e {
                    rtnetlink::Error::NetlinkError(answer) => answer.to_io(),
                    other => io::Error::other(other),
                })
            })
    };
    done().map_err(|source| LinkError {
        doing: doing.into(),
        source,
    })
}
