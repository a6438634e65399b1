//! The traffic: which frames the flows consist of.
//!
//! A flow is a UDP five-tuple. Flow `i` of `n` belongs to rule `i * rules / n`, so that the rules share the flows evenly,
//! and all of them are hit where there are as many flows. Frames come in an order without pattern but always the same
//! one: neighbouring packets shall not happen to need neighbouring memory, and two runs shall be comparable.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use crate::error::BenchError;

/// Longest frame: Ethernet header and an MTU of 1500.
pub(crate) const MOST_FRAME_BYTES: u16 = 14 + 1500;
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

/// The tenant whose port is measured.
pub(crate) const TENANT: Station = Station {
    mac: [2, 0, 0, 0, 1, 1],
    ipv4: Ipv4Addr::new(172, 16, 0, 1),
    ipv6: Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1),
};
/// MAC of the tenant's peers, as the tenant sees them.
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The host under test in the underlay.
pub(crate) const HERE: Station = Station {
    mac: [2, 0, 0, 0, 0, 1],
    ipv4: Ipv4Addr::new(192, 0, 2, 1),
    ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
};
/// The host at the other end of the tunnels.
pub(crate) const THERE: Station = Station {
    mac: [2, 0, 0, 0, 0, 2],
    ipv4: Ipv4Addr::new(192, 0, 2, 2),
    ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
};

/// Shortest frame: Ethernet, IP and UDP headers.
pub(crate) fn least_frame_bytes(ipv6: bool) -> u16 {
    if ipv6 { 14 + 40 + 8 } else { 14 + 20 + 8 }
}

/// The flows of a benchmark, and the rules that they are spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flows {
    /// Flows, from 1 to a million.
    pub count: u32,
    /// Rules, from 1 to a million.
    pub rules: u32,
    /// Bytes of a tenant's frame, without its checksum.
    pub frame_bytes: usize,
    /// IPv6 instead of IPv4, inside and outside.
    pub ipv6: bool,
}

impl Flows {
    /// How many rules have at least one flow.
    pub(crate) fn rules_hit(&self) -> u32 {
        self.count.min(self.rules)
    }

    /// The network that rule `rule` leads to or from; each has its own.
    pub(crate) fn vni(rule: u32) -> u32 {
        1 + rule
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

    /// The frames that the tenant sends, one for each flow.
    pub(crate) fn egress_frames(&self) -> impl Iterator<Item = Result<Vec<u8>, BenchError>> + '_ {
        self.order().into_iter().map(|flow| self.inner(flow, true))
    }

    /// The VXLAN packets that the tenant's peers send, as they arrive from the underlay: one for each flow.
    pub(crate) fn ingress_frames(&self) -> impl Iterator<Item = Result<Vec<u8>, BenchError>> + '_ {
        self.order().into_iter().map(|flow| {
            let inner = self.inner(flow, false)?;
            let mut payload = vec![0; 8];
            // The I flag, and the VNI above a reserved byte (RFC 7348, section 5).
            payload[0] = 0x08;
            payload[4..].copy_from_slice(&(Self::vni(self.rule_of(flow)) << 8).to_be_bytes());
            payload.extend(inner);
            self.outer(flow, &payload)
        })
    }

    /// The rule of a flow.
    fn rule_of(&self, flow: u32) -> u32 {
        // Less than `rules`, so it fits.
        (u64::from(flow) * u64::from(self.rules) / u64::from(self.count.max(1))) as u32
    }

    fn suffix_bits(&self) -> u32 {
        let rule_bits = self.rules.next_power_of_two().ilog2();
        RULE_SPACE_BITS.saturating_sub(rule_bits).min(MOST_SUFFIX_BITS)
    }

    /// Every flow once, shuffled (Fisher and Yates) by a fixed generator.
    fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.count).collect();
        let mut state = 0;
        for last in (1..order.len()).rev() {
            order.swap(last, (splitmix(&mut state) % (last as u64 + 1)) as usize);
        }
        order
    }

    /// The tenant's frame of a flow, from the tenant to its peer or back.
    fn inner(&self, flow: u32, from_tenant: bool) -> Result<Vec<u8>, BenchError> {
        let rule = self.rule_of(flow);
        let tenant_port = FIRST_PORT + (flow % SOURCE_PORTS) as u16;
        let peer_port = FIRST_PORT + (flow / SOURCE_PORTS) as u16;
        let (peer4, peer6) = (peer_v4(rule, flow, self.suffix_bits()), peer_v6(rule, flow));
        let peer = Station { mac: PEER_MAC, ipv4: peer4, ipv6: peer6 };
        let headers = usize::from(least_frame_bytes(self.ipv6));
        let payload = vec![0; self.frame_bytes.saturating_sub(headers)];
        if from_tenant {
            self.frame(TENANT, peer, (tenant_port, peer_port), &payload)
        } else {
            self.frame(peer, TENANT, (peer_port, tenant_port), &payload)
        }
    }

    /// The tunnel's packet from the other host to this one. Over IPv4 without a UDP checksum, as RFC 7348 advises.
    fn outer(&self, flow: u32, payload: &[u8]) -> Result<Vec<u8>, BenchError> {
        let source_port = FIRST_DYNAMIC_PORT + (flow.wrapping_mul(0x9e37_79b1) % DYNAMIC_PORTS) as u16;
        let mut frame = self.frame(THERE, HERE, (source_port, VXLAN_UDP_PORT), payload)?;
        if !self.ipv6
            && let Some(checksum) = frame.get_mut(40..42)
        {
            checksum.fill(0);
        }
        Ok(frame)
    }

    fn frame(
        &self,
        from: Station,
        to: Station,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Result<Vec<u8>, BenchError> {
        let ethernet = PacketBuilder::ethernet2(from.mac, to.mac);
        let packet = if self.ipv6 {
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

/// The generator splitmix64 of Steele, Lea and Flood.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use etherparse::{InternetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn flows(count: u32, rules: u32, ipv6: bool) -> Flows {
        Flows { count, rules, frame_bytes: 64, ipv6 }
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
            [(false, 64), (true, 64), (false, 42), (true, 62), (false, 1514), (true, 1514)]
        {
            let flows = Flows { frame_bytes, ..flows(3, 1, ipv6) };
            for frame in flows.egress_frames() {
                let frame = frame.unwrap();
                assert_eq!(frame.len(), frame_bytes);
                assert_eq!(frame[6..12], TENANT.mac);
                let own = if ipv6 { TENANT.ipv6.to_string() } else { TENANT.ipv4.to_string() };
                assert_eq!(five_tuple(&frame).0, own);
            }
        }
    }

    #[test]
    fn flows_differ_and_come_in_the_same_order_each_time() {
        let flows = flows(70_000, 300, false);
        let tuples: Vec<_> = flows.egress_frames().map(|frame| five_tuple(&frame.unwrap())).collect();
        assert_eq!(tuples.iter().collect::<HashSet<_>>().len(), 70_000);
        assert_eq!(flows.order(), flows.order());
        assert_ne!(flows.order(), (0..70_000).collect::<Vec<_>>());
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
                assert_eq!(frame[..6], HERE.mac);
                assert_eq!(dst, if ipv6 { HERE.ipv6.to_string() } else { HERE.ipv4.to_string() });
                assert!(source_port >= FIRST_DYNAMIC_PORT);
                assert_eq!(port, VXLAN_UDP_PORT);
                let headers = usize::from(least_frame_bytes(ipv6));
                assert_eq!(frame.len(), headers + 8 + 64);
                assert_eq!(frame[headers], 0x08);
                networks.insert(u32::from_be_bytes(frame[headers + 4..headers + 8].try_into().unwrap()) >> 8);
                let inner = &frame[headers + 8..];
                assert_eq!(inner[..6], TENANT.mac);
                five_tuple(inner);
                let zero = frame[headers - 2..headers] == [0, 0];
                assert_eq!(zero, !ipv6, "RFC 7348 over IPv4, a checksum over IPv6");
            }
            assert_eq!(networks, (1..=10).collect());
        }
    }
}
