//! Changes of network devices, in the namespace of the [`Netlink`] that is given.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{AddressMessageBuilder, LinkBridge, LinkUnspec};

use crate::MacAddress;
use crate::netlink::Netlink;

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

fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> LinkError {
    let doing = doing.into();
    move |source| LinkError { doing, source }
}

/// Brings the loopback device up.
pub(crate) fn loopback_up(netlink: &mut Netlink) -> Result<(), LinkError> {
    let up = LinkUnspec::new_with_name("lo").up().build();
    let change = RouteNetlinkMessage::SetLink(up);
    netlink.change(change, 0).map_err(failed("setting lo up"))
}

/// Creates a bridge that is up and has `address`; its index. It neither speaks STP
/// nor snoops on multicast, so a port forwards at once and it needs no timers.
pub(crate) fn create_bridge(
    netlink: &mut Netlink,
    name: &str,
    mac: MacAddress,
    address: Ipv4Addr,
    prefix_length: u8,
) -> Result<u32, LinkError> {
    let bridge = LinkBridge::new(name)
        .address(mac.octets().to_vec())
        .mcast_snooping(false)
        .up()
        .build();
    let new = RouteNetlinkMessage::NewLink(bridge);
    let index = netlink
        .change(new, NLM_F_CREATE | NLM_F_EXCL)
        .and_then(|()| netlink.link(LinkUnspec::new_with_name(name).build()))
        .map_err(failed(format!("creating the bridge {name}")))?
        .header
        .index;
    let add = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(index)
        .address(address, prefix_length)
        .build();
    let add = RouteNetlinkMessage::NewAddress(add);
    let doing = format!("giving {name} the address {address}/{prefix_length}");
    let added = netlink.change(add, NLM_F_CREATE | NLM_F_EXCL);
    added.map_err(failed(doing))?;
    Ok(index)
}

/// Makes the TAP `tap` a port of `bridge`, both by their indices, and brings it up.
/// Frames pass when this returns.
pub(crate) fn attach(
    netlink: &mut Netlink,
    tap: u32,
    bridge: u32,
    mtu: u16,
) -> Result<(), LinkError> {
    // A TAP has a queue of its own, whose end drops frames and never holds any back,
    // so another queue before it would always be empty: fq_codel, which some systems
    // give every device, takes 70 KiB for that. A kernel without queueing disciplines
    // has none to replace.
    if let Err(e) = netlink.change(no_queue(tap), NLM_F_CREATE | NLM_F_REPLACE) {
        tracing::debug!("leaving the TAP its queueing discipline: {e}");
    }
    let port = LinkUnspec::new_with_index(tap)
        .mtu(mtu.into())
        .txqueuelen(TAP_QUEUE)
        .controller(bridge)
        .up()
        .build();
    let attached = netlink.change(RouteNetlinkMessage::SetLink(port), 0);
    attached
        .and_then(|()| wait_until_up(netlink, tap, bridge))
        .map_err(failed("attaching the TAP to the bridge"))
}

/// Until then the bridge drops what the TAP brings, or what goes to the gateway.
fn wait_until_up(netlink: &mut Netlink, tap: u32, bridge: u32) -> io::Result<()> {
    let deadline = Instant::now() + UP_LIMIT;
    let mut look = |index| netlink.link(LinkUnspec::new_with_index(index).build());
    while !is_forwarding(&look(tap)?) || !is_up(&look(bridge)?) {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(UP_POLL);
    }
    Ok(())
}

/// That the device sends at once what it is given.
fn no_queue(index: u32) -> RouteNetlinkMessage {
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(0));
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![TcAttribute::Kind("noqueue".to_owned())];
    RouteNetlinkMessage::NewQueueDiscipline(message)
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
pub(crate) fn remove(netlink: &mut Netlink, name: &str) -> Result<(), LinkError> {
    let gone = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_name(name).build());
    let removed = netlink.change(gone, 0);
    removed.map_err(failed(format!("removing {name}")))
}
