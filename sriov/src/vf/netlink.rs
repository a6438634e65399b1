//! Routing netlink: what a PF sets for its VFs, and what the host's own network needs (rtnetlink(7)).
//!
//! The library is asynchronous and these calls are rare, so each runs on a thread of its own with a runtime of its own:
//! that works whether or not the caller is inside a runtime.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfLinkState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use super::safety::HostNetwork;
use super::settings::{LinkState, Setting, VfSettings};

/// Bytes of an Ethernet address, of the 32 that the kernel has room for.
const MAC_BYTES: usize = 6;

pub(super) fn host_network() -> io::Result<HostNetwork> {
    with_handle(async |handle| {
        let mut network = HostNetwork::default();
        // One after the other: a socket carries one listing at a time (EBUSY).
        let v4 = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let mut routes: Vec<RouteMessage> = v4.try_collect().await.map_err(plain)?;
        let v6 = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
        routes.extend(v6.try_collect::<Vec<_>>().await.map_err(plain)?);
        let mut indexes: Vec<u32> = routes.iter().filter(|route| is_default(route)).flat_map(ways).collect();
        indexes.sort_unstable();
        indexes.dedup();

        let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(plain)?;
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(plain)?;
        for link in &links {
            let Some(name) = name_of(link) else { continue };
            if indexes.binary_search(&link.header.index).is_ok() {
                network.default_route.push(name.to_owned());
            }
            for address in addresses.iter().filter(|address| address.header.index == link.header.index) {
                let own = address.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(own) | AddressAttribute::Address(own) => Some(*own),
                    _ => None,
                });
                network.addresses.extend(own.map(|own: IpAddr| (name.to_owned(), own)));
            }
        }
        Ok(network)
    })
}

pub(super) fn vf_settings(pf_interface: &str, index: u32) -> io::Result<VfSettings> {
    with_handle(async |handle| {
        let link = link(&handle, pf_interface).await?;
        let all = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::VfInfoList(all) => Some(all),
            _ => None,
        });
        let own = all.into_iter().flatten().find(|info| info.0.iter().any(|value| is_about(value, index)));
        own.map(settings).ok_or_else(|| io::Error::other("the PF's driver tells nothing of this VF"))
    })
}

pub(super) fn set_vf(pf_interface: &str, index: u32, setting: Setting) -> io::Result<()> {
    with_handle(async |handle| {
        let link = link(&handle, pf_interface).await?;
        let mut change = LinkMessage::default();
        change.header.index = link.header.index;
        change.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info(index, setting)])]));
        handle.link().set(change).execute().await.map_err(plain)
    })
}

/// Runs a conversation with the kernel.
fn with_handle<T: Send>(talk: impl AsyncFnOnce(Handle) -> io::Result<T> + Send) -> io::Result<T> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            talk(handle).await
        })
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netlink".into()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the netlink library broke down")))
    })
}

async fn link(handle: &Handle, name: &str) -> io::Result<LinkMessage> {
    let request = handle.link().get().match_name(name.to_owned());
    let request = request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::Vf]);
    let mut links = std::pin::pin!(request.execute());
    links.try_next().await.map_err(plain)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The kernel's own error, where it is one.
fn plain(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

/// The interfaces that a route leads through.
fn ways(route: &RouteMessage) -> Vec<u32> {
    let each = route.attributes.iter().map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    each.flatten().collect()
}

fn is_about(value: &VfInfo, index: u32) -> bool {
    match value {
        VfInfo::Mac(mac) => mac.vf_id == index,
        VfInfo::Vlan(vlan) => vlan.vf_id == index,
        _ => false,
    }
}

fn settings(info: &LinkVfInfo) -> VfSettings {
    let mut settings = VfSettings::default();
    for value in &info.0 {
        match value {
            VfInfo::Mac(value) => {
                let mut mac = [0; MAC_BYTES];
                mac.copy_from_slice(&value.mac[..MAC_BYTES]);
                settings.mac = Some(mac);
            }
            VfInfo::Vlan(value) => settings.vlan = u16::try_from(value.vlan_id).ok(),
            VfInfo::SpoofCheck(value) => settings.spoof_check = Some(value.enabled),
            VfInfo::Trust(value) => settings.trust = Some(value.enabled),
            VfInfo::LinkState(value) => {
                settings.link_state = match value.state {
                    VfLinkState::Auto => Some(LinkState::Auto),
                    VfLinkState::Enable => Some(LinkState::Enable),
                    VfLinkState::Disable => Some(LinkState::Disable),
                    _ => None,
                }
            }
            VfInfo::Rate(value) => {
                settings.min_rate_mbps = Some(value.min_tx_rate);
                settings.max_rate_mbps = Some(value.max_tx_rate);
            }
            _ => {}
        }
    }
    settings
}

fn info(index: u32, setting: Setting) -> VfInfo {
    match setting {
        Setting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(index, &mac)),
        Setting::Vlan(id) => VfInfo::Vlan(VfInfoVlan::new(index, u32::from(id), 0)),
        Setting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, on)),
        Setting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(index, on)),
        Setting::LinkState(state) => {
            let state = match state {
                LinkState::Auto => VfLinkState::Auto,
                LinkState::Enable => VfLinkState::Enable,
                LinkState::Disable => VfLinkState::Disable,
            };
            VfInfo::LinkState(VfInfoLinkState::new(index, state))
        }
        Setting::Rate { min_mbps, max_mbps } => VfInfo::Rate(VfInfoRate::new(index, min_mbps, max_mbps)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_the_loopback_and_of_what_is_not_there() {
        let network = host_network().unwrap();
        let loopback: Vec<_> = network.addresses.iter().filter(|(name, _)| name == "lo").collect();
        assert!(loopback.iter().any(|(_, address)| address.is_loopback()), "{network:?}");
        assert!(!network.default_route.contains(&"lo".to_owned()));
        assert!(vf_settings("lo", 0).is_err());
        let error = vf_settings("no-such-if", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(set_vf("lo", 0, Setting::Vlan(7)).is_err());
    }

    #[test]
    fn the_calls_work_within_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { host_network().unwrap() });
    }

    #[test]
    fn settings_are_read_as_they_are_written() {
        let all = VfSettings {
            mac: Some([2, 0, 0, 0, 1, 1]),
            vlan: Some(100),
            spoof_check: Some(false),
            trust: Some(true),
            link_state: Some(LinkState::Disable),
            min_rate_mbps: Some(10),
            max_rate_mbps: Some(1000),
        };
        let values: Vec<VfInfo> =
            all.each(&VfSettings::default()).into_iter().map(|setting| info(3, setting)).collect();
        assert!(values.iter().any(|value| is_about(value, 3)));
        assert_eq!(settings(&LinkVfInfo(values)), all);
    }
}
