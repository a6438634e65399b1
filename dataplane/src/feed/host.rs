//! The host that the fed worker belongs to: an uplink, one tenant, and rules that each lead to a peer of its own in a
//! VXLAN network of its own. One neighbour on the underlay, known from the start.

use super::{Direction, Setup};
use crate::action::{Action, PortId, TunnelRef};
use crate::config::Traps;
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::{INGRESS_WORDS, Pattern, opaque_bits, precedence};
use crate::rules::rule::{Match, Opaque};
use crate::rules::table::{Table, TableRule};
use crate::snapshot::{
    DeviceEntry, MAX_DEVICES, PortEntry, PortRole, Snapshot, Sources, Tunnel, TunnelTable, UplinkEntry,
    VfEntry,
};
use crate::wire::vxlan::Template;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The uplink and the tenant's port.
pub const PORTS: usize = 2;
const UPLINK: PortId = PortId(0);
const TENANT: PortId = PortId(1);

/// MAC of the uplink.
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC of the neighbour that every tunnel leads through.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// MAC of the tenant.
pub const TENANT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// MAC of the tenant's peers.
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The slot of the only next hop.
pub const NEXT_HOP: u32 = 0;
/// Bytes of the longest network packet, on both sides: nothing here is too big.
pub const MTU: u16 = 9000;
/// Hop limit of the tunnels.
const TTL: u8 = 64;
/// Of every table and tunnel: they never change.
const GENERATION: u32 = 1;

/// The host, as its packets and its tables are made from it.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The way of the packets.
    pub direction: Direction,
    /// Rules of that direction.
    pub rules: u32,
    /// IPv6 inside and outside.
    pub ipv6: bool,
    /// Bytes of the tenant's frames.
    pub frame_bytes: usize,
}

impl Host {
    /// The host of a setup.
    pub fn new(setup: &Setup) -> Host {
        Host {
            direction: setup.direction,
            rules: setup.rules,
            ipv6: setup.ipv6,
            frame_bytes: usize::from(setup.frame_bytes),
        }
    }

    fn of_family(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        if self.ipv6 { v6.into() } else { v4.into() }
    }

    /// The host's address on the underlay.
    fn here(self) -> IpAddr {
        self.of_family(Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))
    }

    /// The address of the tunnels' other end.
    fn there(self) -> IpAddr {
        self.of_family(Ipv4Addr::new(192, 0, 2, 2), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2))
    }

    /// The tenant's address.
    pub fn tenant(self) -> IpAddr {
        self.of_family(Ipv4Addr::new(10, 1, 0, 1), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1))
    }

    /// The address of the peer that a rule is about.
    pub fn peer(self, rule: u32) -> IpAddr {
        let v6 = u128::from(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0)) | u128::from(rule);
        self.of_family((u32::from(Ipv4Addr::new(11, 0, 0, 0)) | rule).into(), v6.into())
    }

    fn vni(rule: u32) -> u32 {
        1 + rule
    }

    /// The outer headers that the host puts in front of a rule's packets. `None` never: both ends are of one family.
    fn tunnel_out(self, rule: u32) -> Option<Template> {
        Template::new(UPLINK_MAC, self.here(), self.there(), Self::vni(rule), TTL, 0)
    }

    /// Those that the other end puts in front of them.
    pub fn tunnel_in(self, rule: u32) -> Option<Template> {
        Template::new(PEER_MAC, self.there(), self.here(), Self::vni(rule), TTL, 0)
    }

    /// The snapshot of a host whose worker receives from one device and sends through the other.
    pub fn snapshot(self, receives: u16, sends: u16) -> Snapshot {
        let (from, to) = match self.direction {
            Direction::Encapsulate => (TENANT, UPLINK),
            Direction::Decapsulate => (UPLINK, TENANT),
        };
        let mut devices: [DeviceEntry; MAX_DEVICES] = Default::default();
        for (device, port) in [(receives, from), (sends, to)] {
            devices[usize::from(device)] = DeviceEntry { port: Some(port), vlans: None };
        }
        let entry = |id: PortId, mac, role| PortEntry {
            id,
            name: format!("port{}", id.0).into(),
            device: if id == to { sends } else { receives },
            vlan: 0,
            mtu: MTU,
            mac,
            computes_udp_checksums: false,
            up: Arc::new(AtomicBool::new(true)),
            role,
        };
        let ports = [entry(UPLINK, UPLINK_MAC, self.uplink()), entry(TENANT, TENANT_MAC, self.vf())];
        let ingress = self.rules_of(Direction::Decapsulate);
        let known = ingress.clone().map(|rule| opaque_bits(Opaque::Vxlan(Self::vni(rule))));
        Snapshot {
            ports: ports.into_iter().map(|port| Some(Arc::new(port))).collect(),
            devices,
            tunnels: self.tunnels(),
            ingress: Arc::new(Table::compile(ingress.map(ingress_rule))),
            ingress_generation: GENERATION,
            known_tunnels: Arc::new(known.collect()),
        }
    }

    fn uplink(self) -> PortRole {
        let (ipv4, ipv6) = match self.here() {
            IpAddr::V4(here) => (Some(here), None),
            IpAddr::V6(here) => (None, Some(here)),
        };
        PortRole::Uplink(UplinkEntry { locals: vec![self.here()], ipv4, ipv6 })
    }

    fn vf(self) -> PortRole {
        let rules = self.rules_of(Direction::Encapsulate).map(|rule| self.egress_rule(rule));
        PortRole::Vf(VfEntry {
            sources: Sources::new(&[IpNet::from(self.tenant())]),
            gateway_mac: None,
            traps: Traps::default(),
            rules: Arc::new(Table::compile(rules)),
            generation: GENERATION,
        })
    }

    /// The rules of that direction: none but of the one that packets go.
    fn rules_of(self, direction: Direction) -> Range<u32> {
        if direction == self.direction { 0..self.rules } else { 0..0 }
    }

    /// The tunnel of each egress rule.
    fn tunnels(self) -> TunnelTable {
        let tunnel = |template| Tunnel {
            generation: GENERATION,
            template,
            uplink: UPLINK,
            next_hop: NEXT_HOP,
            path_mtu: MTU,
        };
        self.rules_of(Direction::Encapsulate).map(|rule| self.tunnel_out(rule).map(tunnel)).collect()
    }

    /// To the rule's peer, and into its network.
    fn egress_rule(self, rule: u32) -> TableRule<KEY_WORDS> {
        let matches = Match { dst: Some(IpNet::from(self.peer(rule))), ..Match::default() };
        TableRule {
            pattern: Pattern::egress(&matches),
            precedence: precedence(0, &matches),
            id: format!("rule{rule}").into(),
            slot: rule,
            action: Action::Forward {
                tunnel: TunnelRef { slot: rule, generation: GENERATION },
                inner_dst_mac: Some(OTHER_MAC),
                push_vlan: 0,
            },
            names_layer2: false,
        }
    }
}

/// From the rule's network, to the tenant.
fn ingress_rule(rule: u32) -> TableRule<INGRESS_WORDS> {
    let matches = Match::default();
    TableRule {
        pattern: Pattern::ingress(&matches, Opaque::Vxlan(Host::vni(rule)), None, None, None),
        precedence: precedence(0, &matches),
        id: format!("rule{rule}").into(),
        slot: rule,
        action: Action::Deliver { port: TENANT, pop_vlan: false, push_vlan: 0 },
        names_layer2: false,
    }
}
