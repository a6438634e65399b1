//! The traffic: which frames the flows consist of.
//!
//! A flow is a UDP five-tuple. Flow `i` of `n` belongs to rule `i * rules / n`, so that the rules share the flows evenly,
//! and all of them are hit where there are as many flows. Where several cores work, each has flows, rules, a tenant and an
//! uplink of its own: a lane.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use crate::error::BenchError;
use crate::sequence::{Sequence, Sizes};

/// Longest frame: an Ethernet header and a jumbo packet as most equipment carries it.
pub(crate) const MOST_FRAME_BYTES: u16 = 9000;
/// Most lanes: a daemon takes 32 devices, and a lane has two.
pub(crate) const MOST_LANES: usize = 16;
/// Most tunnels: the remotes of a /12.
pub(crate) const MOST_TUNNELS: i64 = 1 << 20;
/// Most ports of a lane's tenants: one with a device, and one behind each VLAN tag of it.
pub(crate) const MOST_PORTS: u16 = 4095;
/// Bytes of a VLAN tag (IEEE 802.1Q), and where it stands: behind the MACs.
const VLAN_TAG_BYTES: usize = 4;
const MACS_BYTES: usize = 12;
/// Bits that the rules share in 10.0.0.0/8.
const RULE_SPACE_BITS: u32 = 24;
/// Longest suffix of a rule's IPv4 prefix: a rule is a /24 while there are at most 65536.
const MOST_SUFFIX_BITS: u32 = 8;
/// Source ports of flows, from the first that needs no privilege on; what does not fit goes into the destination port.
const FIRST_PORT: u16 = 1024;
const SOURCE_PORTS: u32 = 64_000;
const TTL: u8 = 64;
/// UDP port of VXLAN (RFC 7348).
const VXLAN_UDP_PORT: u16 = 4789;
const VXLAN_HEADER_BYTES: usize = 8;
/// First of the dynamic ports that RFC 7348 recommends as source ports.
const FIRST_DYNAMIC_PORT: u16 = 49_152;
const DYNAMIC_PORTS: u32 = 16_384;

/// A station: its MAC and its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Station {
    pub mac: [u8; 6],
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// MAC of the tenant's peers, as the tenant sees them.
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// The tenant at a port of a lane. Port 0 has the device; each other one is behind the VLAN tag of its number.
pub(crate) fn tenant(lane: u8, port: u16) -> Station {
    let [high, low] = port.to_be_bytes();
    if port > 0 {
        // In 198.18.0.0/15 (RFC 2544), and in the lane's network.
        let ipv4 = 198 << 24 | 18 << 16 | u32::from(lane) << 13 | u32::from(port);
        return Station {
            mac: [2, 0, 1, lane, high, low],
            ipv4: ipv4.into(),
            ipv6: Ipv6Addr::new(0xfd00, 2, 0, u16::from(lane), 0, 0, 1, port),
        };
    }
    Station {
        mac: [2, 0, 0, 0, 1, 1 + lane],
        ipv4: Ipv4Addr::new(172, 16, lane, 1),
        ipv6: Ipv6Addr::new(0xfd00, 2, 0, u16::from(lane), 0, 0, 0, 1),
    }
}

/// The host under test in the underlay of a lane.
pub(crate) fn here(lane: u8) -> Station {
    underlay(lane, 1)
}

/// The host at the other end of a lane's underlay, and the router to what lies behind it.
pub(crate) fn there(lane: u8) -> Station {
    underlay(lane, 2)
}

fn underlay(lane: u8, host: u8) -> Station {
    Station {
        mac: [2, 0, 0, 0, 2 * lane, host],
        ipv4: Ipv4Addr::new(192, 0, 2 + lane, host),
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(lane), 0, 0, 0, u16::from(host)),
    }
}

/// Shortest frame: Ethernet, IP and UDP headers.
pub(crate) fn least_frame_bytes(ipv6: bool) -> u16 {
    if ipv6 { 14 + 40 + 8 } else { 14 + 20 + 8 }
}

/// The flows of a lane, and the rules that they are spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flows {
    /// Established flows and new ones, in their order.
    pub sequence: Sequence,
    /// Rules, from 1 to a million.
    pub rules: u32,
    /// Bytes of a tenant's frames.
    pub sizes: Sizes,
    /// IPv6 instead of IPv4 inside the tunnel.
    pub ipv6: bool,
    /// IPv6 instead of IPv4 outside.
    pub underlay_ipv6: bool,
    /// Tunnels, each with its network and its remote; a network for each rule and one remote where not given.
    pub tunnels: Option<u32>,
    /// Ports of the tenants, which the rules and thereby the flows are given to in turn.
    pub ports: u16,
    /// Which lane's.
    pub lane: u8,
}

impl Flows {
    /// Flows of frames of one length over IPv4, with a network for each rule.
    #[cfg(test)]
    pub(crate) fn plain(count: u32, rules: u32, frame_bytes: usize) -> Self {
        let sizes = Sizes::Fixed(frame_bytes);
        let sequence = Sequence::new(count, sizes, false);
        Self { sequence, rules, sizes, ipv6: false, underlay_ipv6: false, tunnels: None, ports: 1, lane: 0 }
    }

    /// How many rules have at least one flow.
    pub(crate) fn rules_hit(&self) -> u32 {
        let mut hit = vec![false; self.rules as usize];
        for flow in self.sequence.order() {
            if let Some(hit) = hit.get_mut(self.rule_of(flow) as usize) {
                *hit = true;
            }
        }
        hit.into_iter().map(u32::from).sum()
    }

    /// The port of the tenant that rule `rule` belongs to.
    pub(crate) fn port(&self, rule: u32) -> u16 {
        // Less than `ports`, so it fits.
        (rule % u32::from(self.ports.max(1))) as u16
    }

    /// The network that rule `rule` leads to or from.
    pub(crate) fn vni(&self, rule: u32) -> u32 {
        let networks = self.tunnels.unwrap_or(self.rules);
        1 + u32::from(self.lane) * networks + rule % networks.max(1)
    }

    /// The other end of the tunnel that rule `rule` leads to or from: behind the router, or the router itself.
    pub(crate) fn remote(&self, rule: u32) -> Station {
        let there = there(self.lane);
        match self.tunnels.map(|tunnels| rule % tunnels.max(1)) {
            None | Some(0) => there,
            // In 100.64.0.0/10 (RFC 6598), and in fd00:3::/64.
            Some(number) => Station {
                ipv4: Ipv4Addr::from(100 << 24 | 64 << 16 | number),
                ipv6: Ipv6Addr::from(0xfd00_0003_u128 << 96 | u128::from(number)),
                ..there
            },
        }
    }

    /// The prefix of the peers that rule `rule` is about. Prefixes do not overlap.
    pub(crate) fn prefix(&self, rule: u32) -> String {
        if self.ipv6 {
            format!("{}/64", peer_v6(rule, 0))
        } else {
            let bits = self.suffix_bits();
            format!("{}/{}", peer_v4(rule, 0, bits), 32 - bits)
        }
    }

    /// Bytes of the longest frame in the underlay.
    pub(crate) fn longest_outer_bytes(&self) -> usize {
        usize::from(least_frame_bytes(self.underlay_ipv6)) + VXLAN_HEADER_BYTES + self.sizes.longest()
    }

    /// The frames that the tenant sends.
    pub(crate) fn egress_frames(&self) -> impl Iterator<Item = Result<Vec<u8>, BenchError>> + '_ {
        self.sequence.order().into_iter().enumerate().map(|(place, flow)| {
            let frame = self.inner(place, flow, true)?;
            Ok(tagged(frame, self.port(self.rule_of(flow))))
        })
    }

    /// The VXLAN packets that the tenant's peers send, as they arrive from the underlay.
    pub(crate) fn ingress_frames(&self) -> impl Iterator<Item = Result<Vec<u8>, BenchError>> + '_ {
        self.sequence.order().into_iter().enumerate().map(|(place, flow)| {
            let inner = self.inner(place, flow, false)?;
            let mut payload = vec![0; VXLAN_HEADER_BYTES];
            // The I flag, and the VNI above a reserved byte (RFC 7348, section 5).
            payload[0] = 0x08;
            payload[4..].copy_from_slice(&(self.vni(self.rule_of(flow)) << 8).to_be_bytes());
            payload.extend(inner);
            self.outer(flow, &payload)
        })
    }

    /// The rule of a flow. New flows go on where the established ones begin.
    fn rule_of(&self, flow: u32) -> u32 {
        let count = u64::from(self.sequence.flows.max(1));
        // Less than `rules`, so it fits.
        (u64::from(flow) % count * u64::from(self.rules) / count) as u32
    }

    fn suffix_bits(&self) -> u32 {
        let rule_bits = self.rules.next_power_of_two().ilog2();
        RULE_SPACE_BITS.saturating_sub(rule_bits).min(MOST_SUFFIX_BITS)
    }

    /// The tenant's frame of a flow at a place of the sequence, from the tenant to its peer or back.
    fn inner(&self, place: usize, flow: u32, from_tenant: bool) -> Result<Vec<u8>, BenchError> {
        let rule = self.rule_of(flow);
        let tenant_port = FIRST_PORT + (flow % SOURCE_PORTS) as u16;
        let peer_port = FIRST_PORT + (flow / SOURCE_PORTS) as u16;
        let (peer4, peer6) = (peer_v4(rule, flow, self.suffix_bits()), peer_v6(rule, flow));
        let (tenant, peer) =
            (tenant(self.lane, self.port(rule)), Station { mac: PEER_MAC, ipv4: peer4, ipv6: peer6 });
        let headers = usize::from(least_frame_bytes(self.ipv6));
        let payload = vec![0; self.sizes.at(place, headers).saturating_sub(headers)];
        if from_tenant {
            frame(self.ipv6, tenant, peer, (tenant_port, peer_port), &payload)
        } else {
            frame(self.ipv6, peer, tenant, (peer_port, tenant_port), &payload)
        }
    }

    /// The tunnel's packet from the other host to this one. Over IPv4 without a UDP checksum, as RFC 7348 advises.
    fn outer(&self, flow: u32, payload: &[u8]) -> Result<Vec<u8>, BenchError> {
        let source_port = FIRST_DYNAMIC_PORT + (flow.wrapping_mul(0x9e37_79b1) % DYNAMIC_PORTS) as u16;
        let remote = self.remote(self.rule_of(flow));
        let ports = (source_port, VXLAN_UDP_PORT);
        let mut frame = frame(self.underlay_ipv6, remote, here(self.lane), ports, payload)?;
        if !self.underlay_ipv6
            && let Some(checksum) = frame.get_mut(40..42)
        {
            checksum.fill(0);
        }
        Ok(frame)
    }
}

/// The frame as it comes from a port: with the port's tag, unless the port has a device of its own.
fn tagged(mut frame: Vec<u8>, port: u16) -> Vec<u8> {
    if port > 0 && frame.len() >= MACS_BYTES {
        let [high, low] = port.to_be_bytes();
        let tag: [u8; VLAN_TAG_BYTES] = [0x81, 0x00, high, low];
        frame.splice(MACS_BYTES..MACS_BYTES, tag);
    }
    frame
}

fn frame(
    ipv6: bool,
    from: Station,
    to: Station,
    ports: (u16, u16),
    payload: &[u8],
) -> Result<Vec<u8>, BenchError> {
    let ethernet = PacketBuilder::ethernet2(from.mac, to.mac);
    let packet = if ipv6 {
        ethernet.ipv6(from.ipv6.octets(), to.ipv6.octets(), TTL)
    } else {
        ethernet.ipv4(from.ipv4.octets(), to.ipv4.octets(), TTL)
    };
    let packet = packet.udp(ports.0, ports.1);
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet
        .write(&mut frame, payload)
        .map_err(|error| BenchError::Frame { size_bytes: payload.len(), reason: error.to_string() })?;
    Ok(frame)
}

/// The peer of `flow` within the prefix of `rule` in 10.0.0.0/8.
fn peer_v4(rule: u32, flow: u32, suffix_bits: u32) -> Ipv4Addr {
    let suffix = flow & ((1 << suffix_bits) - 1);
    Ipv4Addr::from(10 << 24 | rule << suffix_bits | suffix)
}

/// The peer of `flow` within the /64 of `rule` in fd00:1::/32.
fn peer_v6(rule: u32, flow: u32) -> Ipv6Addr {
    Ipv6Addr::from(0xfd00_0001_u128 << 96 | u128::from(rule) << 64 | u128::from(flow))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use etherparse::{InternetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn flows(count: u32, rules: u32, ipv6: bool) -> Flows {
        Flows { ipv6, underlay_ipv6: ipv6, ..Flows::plain(count, rules, 64) }
    }

    /// Source and destination addresses and ports; checks every length and checksum on the way.
    fn five_tuple(frame: &[u8]) -> (String, String, u16, u16) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP in {packet:?}") };
        let header = udp.to_header();
        let (src, dst, computed) = match packet.net.unwrap() {
            InternetSlice::Ipv4(ip) => {
                let ip_header = ip.header().to_header();
                assert_eq!(ip_header.header_checksum, ip_header.calc_header_checksum());
                assert_eq!(usize::from(ip_header.total_len) + 14, frame.len());
                let computed = header.calc_checksum_ipv4(&ip_header, udp.payload()).unwrap();
                (ip.header().source_addr().to_string(), ip.header().destination_addr().to_string(), computed)
            }
            InternetSlice::Ipv6(ip) => {
                assert_eq!(usize::from(ip.header().payload_length()) + 54, frame.len());
                let computed = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap();
                (ip.header().source_addr().to_string(), ip.header().destination_addr().to_string(), computed)
            }
            InternetSlice::Arp(_) => panic!("ARP"),
        };
        assert!(header.checksum == 0 || header.checksum == computed);
        assert_eq!(usize::from(header.length), 8 + udp.payload().len());
        (src, dst, header.source_port, header.destination_port)
    }

    #[test]
    fn frames_have_the_size_and_the_tenants_addresses() {
        for (ipv6, frame_bytes) in
            [(false, 64), (true, 64), (false, 42), (true, 62), (false, 9000), (true, 9000)]
        {
            let flows = Flows { ipv6, ..Flows::plain(3, 1, frame_bytes) };
            for frame in flows.egress_frames() {
                let frame = frame.unwrap();
                assert_eq!(frame.len(), frame_bytes);
                assert_eq!(frame[6..12], tenant(0, 0).mac);
                let own = if ipv6 { tenant(0, 0).ipv6.to_string() } else { tenant(0, 0).ipv4.to_string() };
                assert_eq!(five_tuple(&frame).0, own);
            }
        }
    }

    #[test]
    fn flows_differ_and_new_ones_from_all() {
        let mut flows = flows(20_000, 300, false);
        flows.sequence.new_flows = 50_000;
        let tuples: Vec<_> = flows.egress_frames().map(|frame| five_tuple(&frame.unwrap())).collect();
        assert_eq!(tuples.iter().collect::<HashSet<_>>().len(), 70_000);
        assert_eq!(flows.rules_hit(), 300);
    }

    #[test]
    fn ports_behind_tags_have_their_rules_stations_and_tags() {
        for ipv6 in [false, true] {
            let flows = Flows { ports: 3, ..flows(6, 6, ipv6) };
            let mut seen = [0; 3];
            for frame in flows.egress_frames() {
                let mut frame = frame.unwrap();
                let tag =
                    if frame[12..14] == [0x81, 0] { u16::from_be_bytes([frame[14], frame[15]]) } else { 0 };
                if tag > 0 {
                    frame.drain(12..16);
                }
                let own = tenant(0, tag);
                assert_eq!((frame.len(), &frame[6..12]), (64, &own.mac[..]));
                let source = if ipv6 { own.ipv6.to_string() } else { own.ipv4.to_string() };
                assert_eq!(five_tuple(&frame).0, source);
                seen[usize::from(tag)] += 1;
            }
            assert_eq!(seen, [2; 3]);
        }
        assert_eq!(tenant(15, MOST_PORTS - 1).ipv4.to_string(), "198.19.239.254");
        let stations = (0..MOST_PORTS).map(|port| tenant(3, port).ipv4).collect::<HashSet<_>>();
        assert_eq!(stations.len(), usize::from(MOST_PORTS));
    }

    #[test]
    fn rules_share_the_flows_evenly() {
        for (count, rules) in [(1, 1), (1, 1000), (10, 1000), (1000, 10), (1000, 1000), (1 << 20, 1 << 20)] {
            let flows = flows(count, rules, false);
            let mut per_rule = vec![0_u32; rules as usize];
            (0..count).for_each(|flow| per_rule[flows.rule_of(flow) as usize] += 1);
            let hit = per_rule.iter().filter(|flows| **flows > 0).count();
            assert_eq!(hit as u32, flows.rules_hit());
            assert!(per_rule.iter().all(|flows| *flows <= count.div_ceil(rules)), "{count} {rules}");
        }
    }

    #[test]
    fn each_flow_is_within_the_prefix_of_its_rule_alone() {
        for (rules, ipv6) in [(1, false), (1000, false), (1 << 20, false), (1000, true)] {
            let flows = flows(2000, rules, ipv6);
            let bits = flows.suffix_bits();
            for flow in [0, 1, 999, 1999] {
                let rule = flows.rule_of(flow);
                let prefix = flows.prefix(rule);
                let (network, length) = prefix.split_once('/').unwrap();
                let peer = if ipv6 {
                    let masked = u128::from(peer_v6(rule, flow)) & u128::MAX << 64;
                    (Ipv6Addr::from(masked).to_string(), 64)
                } else {
                    let masked = u32::from(peer_v4(rule, flow, bits)) & u32::MAX << bits;
                    (Ipv4Addr::from(masked).to_string(), 32 - bits)
                };
                assert_eq!(peer, (network.to_owned(), length.parse().unwrap()));
            }
            let first: HashSet<_> = (0..rules.min(2000)).map(|rule| flows.prefix(rule)).collect();
            assert_eq!(first.len() as u32, rules.min(2000));
        }
    }

    #[test]
    fn ingress_frames_are_vxlan_to_this_host() {
        for ipv6 in [false, true] {
            let flows = flows(100, 10, ipv6);
            let mut networks = HashSet::new();
            for frame in flows.ingress_frames() {
                let frame = frame.unwrap();
                let (_, dst, source_port, port) = five_tuple(&frame);
                assert_eq!(frame[..6], here(0).mac);
                assert_eq!(dst, if ipv6 { here(0).ipv6.to_string() } else { here(0).ipv4.to_string() });
                assert!(source_port >= FIRST_DYNAMIC_PORT);
                assert_eq!(port, VXLAN_UDP_PORT);
                let headers = usize::from(least_frame_bytes(ipv6));
                assert_eq!(frame.len(), headers + 8 + 64);
                assert_eq!(frame[headers], 0x08);
                networks.insert(u32::from_be_bytes(frame[headers + 4..headers + 8].try_into().unwrap()) >> 8);
                let inner = &frame[headers + 8..];
                assert_eq!(inner[..6], tenant(0, 0).mac);
                five_tuple(inner);
                let zero = frame[headers - 2..headers] == [0, 0];
                assert_eq!(zero, !ipv6, "RFC 7348 over IPv4, a checksum over IPv6");
            }
            assert_eq!(networks, (1..=10).collect());
        }
    }

    #[test]
    fn tunnels_have_their_networks_and_remotes() {
        let flows = Flows { tunnels: Some(4), ..flows(100, 10, false) };
        let distinct = |texts: Vec<String>| texts.into_iter().collect::<HashSet<_>>().len();
        assert_eq!(distinct((0..10).map(|rule| flows.remote(rule).ipv4.to_string()).collect()), 4);
        assert_eq!(distinct((0..10).map(|rule| flows.remote(rule).ipv6.to_string()).collect()), 4);
        assert_eq!(distinct((0..10).map(|rule| flows.vni(rule).to_string()).collect()), 4);
        let sources = flows.ingress_frames().map(|frame| five_tuple(&frame.unwrap()).0);
        assert_eq!(distinct(sources.collect()), 4);
    }

    #[test]
    fn lanes_have_nothing_in_common() {
        let lane = |lane| Flows { lane, ..flows(1, 10, false) };
        let networks: HashSet<_> = (0..MOST_LANES as u8)
            .flat_map(|number| (0..10).map(move |rule| lane(number).vni(rule)))
            .collect();
        assert_eq!(networks.len(), 10 * MOST_LANES);
        let stations = |lane| [tenant(lane, 0).mac, tenant(lane, 1).mac, here(lane).mac, there(lane).mac];
        let macs: HashSet<_> = (0..MOST_LANES as u8).flat_map(stations).collect();
        assert_eq!(macs.len(), 4 * MOST_LANES);
        let outer = |frame: Vec<u8>| five_tuple(&frame).1;
        assert_eq!(outer(lane(3).ingress_frames().next().unwrap().unwrap()), "192.0.5.1");
    }
}
