//! Which uplink leads to a remote, and over which next hop.

use crate::action::PortId;
use ipnet::IpNet;
use std::net::IpAddr;

/// One uplink's way to one IP version.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// The uplink.
    pub uplink: PortId,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its address with the prefix that is on its link.
    pub address: IpNet,
    /// The router for everything else.
    pub gateway: Option<IpAddr>,
}

/// The ways to the underlay.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// In the order of the config file.
    pub interfaces: Vec<Interface>,
}

/// A way to a remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The uplink.
    pub uplink: PortId,
    /// The uplink's address of the remote's IP version.
    pub source: IpAddr,
    /// Who to send it to: the remote itself on the link, else the gateway.
    pub next_hop: IpAddr,
    /// The uplink's MAC.
    pub mac: [u8; 6],
}

impl Routes {
    /// The way to `remote`: the first uplink on whose link it is, else the first with a gateway.
    ///
    /// # Errors
    /// What is missing, and the remedy.
    pub fn find(&self, remote: IpAddr) -> Result<Route, &'static str> {
        let family = |interface: &&Interface| interface.address.addr().is_ipv4() == remote.is_ipv4();
        let on_link =
            self.interfaces.iter().filter(family).find(|interface| interface.address.contains(&remote));
        if let Some(interface) = on_link {
            if interface.address.addr() == remote {
                return Err("it is the uplink's own address: a local tenant is reached by deliver");
            }
            return Ok(interface.route(remote));
        }
        let mut through = self.interfaces.iter().filter(family).peekable();
        if through.peek().is_none() {
            return Err(match remote {
                IpAddr::V4(_) => "none has an ipv4 address: give one of them ipv4",
                IpAddr::V6(_) => "none has an ipv6 address: give one of them ipv6",
            });
        }
        through
            .find_map(|interface| Some(interface.route(interface.gateway?)))
            .ok_or("it is on no uplink's link and there is no gateway: give the uplink a gateway")
    }
}

impl Interface {
    fn route(&self, next_hop: IpAddr) -> Route {
        Route { uplink: self.uplink, source: self.address.addr(), next_hop, mac: self.mac }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(number: u16, address: &str, gateway: Option<&str>) -> Interface {
        Interface {
            uplink: PortId(number),
            mac: [2, 0, 0, 0, 0, number as u8],
            address: address.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        }
    }

    #[test]
    fn links_come_before_gateways_and_the_first_before_the_second() {
        let routes = Routes {
            interfaces: vec![
                interface(0, "192.0.2.1/24", None),
                interface(1, "198.51.100.1/24", Some("198.51.100.254")),
                interface(2, "203.0.113.1/24", Some("203.0.113.254")),
                interface(1, "2001:db8::1/64", None),
            ],
        };
        let next_hop = |remote: &str| {
            routes.find(remote.parse().unwrap()).map(|route| (route.uplink.0, route.next_hop.to_string()))
        };
        assert_eq!(next_hop("192.0.2.2"), Ok((0, "192.0.2.2".into())));
        assert_eq!(next_hop("203.0.113.9"), Ok((2, "203.0.113.9".into())));
        assert_eq!(next_hop("8.8.8.8"), Ok((1, "198.51.100.254".into())));
        assert_eq!(next_hop("2001:db8::9"), Ok((1, "2001:db8::9".into())));
        assert!(next_hop("2001:db9::9").unwrap_err().contains("gateway"));
        assert!(next_hop("192.0.2.1").unwrap_err().contains("own address"));
        assert!(Routes::default().find("192.0.2.2".parse().unwrap()).unwrap_err().contains("ipv4"));
    }
}
