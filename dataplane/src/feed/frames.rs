//! The packets that are fed: UDP datagrams of the tenant or, through a tunnel, of its peers; valid in every checksum.
//!
//! Flow `f` of a host with `r` rules belongs to rule `f mod r` and differs from the rule's other flows by its ports. The
//! order of flows has no pattern but is always the same: neighbouring packets shall not need neighbouring memory.

use super::host::{Host, OTHER_MAC, TENANT_MAC, UPLINK_MAC};
use super::{Direction, Flows};
use crate::wire::vxlan::{Checksum, Patch, Template};
use crate::wire::{ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, UDP_BYTES, checksum, ethertype, protocol};
use forebay_sriov::Packet;
use std::net::IpAddr;

/// Destination port of the first flows.
const FIRST_PORT: u16 = 0x2000;
/// 2^32 divided by the golden ratio, made odd: multiples of it visit every 32-bit number once, far from one another.
const STRIDE: u32 = 0x9e37_79b1;

/// The flows, one for each packet, for ever.
pub enum Order {
    /// Every flow once, then again.
    Known {
        /// All flows, shuffled.
        flows: Vec<u32>,
        /// Which comes next.
        next: usize,
    },
    /// The number of the last new flow.
    New(u32),
}

impl Order {
    /// The order of these flows.
    pub fn new(flows: Flows) -> Order {
        match flows {
            Flows::Known(count) => {
                let mut flows: Vec<u32> = (0..count.max(1)).collect();
                flows.sort_unstable_by_key(|flow| flow.wrapping_mul(STRIDE));
                Order::Known { flows, next: 0 }
            }
            Flows::New => Order::New(0),
        }
    }

    /// The flow of the next packet.
    pub fn next_flow(&mut self) -> u32 {
        match self {
            Order::Known { flows, next } => {
                let flow = flows[*next];
                *next = if *next + 1 == flows.len() { 0 } else { *next + 1 };
                flow
            }
            Order::New(last) => {
                *last = last.wrapping_add(STRIDE);
                *last
            }
        }
    }
}

/// The frames of a host's flows.
pub struct Frames {
    host: Host,
    /// The frame of a flow, but for the peer's address, the ports and the checksums.
    inner: Vec<u8>,
    /// The outer headers by rule, of packets from the underlay.
    outer: Vec<Template>,
    /// Bytes in front of the tenant's frame, as received and as sent.
    head: usize,
    head_out: usize,
}

impl Frames {
    /// The frames that this host receives.
    pub fn new(host: &Host) -> Frames {
        let outer: Vec<Template> = (0..host.rules).filter_map(|rule| host.tunnel_in(rule)).collect();
        let tunnel_bytes = outer.first().map_or(0, Template::len);
        let (outer, head, head_out) = match host.direction {
            Direction::Encapsulate => (Vec::new(), 0, tunnel_bytes),
            Direction::Decapsulate => (outer, tunnel_bytes, 0),
        };
        Frames { host: *host, inner: datagram(host), outer, head, head_out }
    }

    /// Bytes of a frame, as it is received.
    pub fn len(&self) -> usize {
        self.head + self.host.frame_bytes
    }

    /// Writes the frame of a flow over `frame`, which is as long.
    pub fn write(&self, flow: u32, frame: &mut [u8]) {
        let (rule, nth) = (flow % self.host.rules, flow / self.host.rules);
        let (outer, inner) = frame.split_at_mut(self.head);
        inner.copy_from_slice(&self.inner);
        let here_first = self.host.direction == Direction::Encapsulate;
        let (l3, l4) = inner[ETHERNET_BYTES..].split_at_mut(self.l3_bytes());
        l4[..2].copy_from_slice(&(nth as u16).to_be_bytes());
        l4[2..4].copy_from_slice(&FIRST_PORT.wrapping_add((nth >> 16) as u16).to_be_bytes());
        match (self.host.tenant(), self.host.peer(rule)) {
            (IpAddr::V6(tenant), IpAddr::V6(peer)) => {
                let (src, dst) = if here_first { (tenant, peer) } else { (peer, tenant) };
                l3[8..24].copy_from_slice(&src.octets());
                l3[24..40].copy_from_slice(&dst.octets());
                let sum = checksum::pseudo_v6(src, dst, protocol::UDP, l4.len() as u32);
                let field = checksum::udp_field(checksum::add(sum, l4));
                l4[6..8].copy_from_slice(&field.to_be_bytes());
            }
            (IpAddr::V4(tenant), IpAddr::V4(peer)) => {
                let (src, dst) = if here_first { (tenant, peer) } else { (peer, tenant) };
                l3[12..16].copy_from_slice(&src.octets());
                l3[16..20].copy_from_slice(&dst.octets());
                let field = checksum::of(l3);
                l3[10..12].copy_from_slice(&field.to_be_bytes());
            }
            // Both addresses are of the host's family.
            _ => {}
        }
        if let Some(template) = self.outer.get(rule as usize) {
            wrap(template, flow, outer, inner);
        }
    }

    fn l3_bytes(&self) -> usize {
        if self.host.ipv6 { IPV6_BYTES } else { IPV4_BYTES }
    }

    /// Makes a packet that came out as long as one that goes in; false where it had another length than it should.
    pub fn restore(&self, packet: &mut Packet) -> bool {
        packet.len() == self.head_out + self.host.frame_bytes
            && packet.trim_front(self.head_out)
            && packet.prepend(self.head).is_some()
    }
}

/// The tenant's or the peer's frame: Ethernet, IP and UDP headers, and zeros.
fn datagram(host: &Host) -> Vec<u8> {
    let (dst_mac, src_mac) = match host.direction {
        Direction::Encapsulate => (OTHER_MAC, TENANT_MAC),
        Direction::Decapsulate => (TENANT_MAC, OTHER_MAC),
    };
    let mut frame = [dst_mac, src_mac].concat();
    let network_bytes = (host.frame_bytes - ETHERNET_BYTES) as u16;
    let udp_bytes = if host.ipv6 {
        let udp_bytes = network_bytes - IPV6_BYTES as u16;
        frame.extend(ethertype::IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(udp_bytes.to_be_bytes());
        frame.extend([protocol::UDP, 64]);
        frame.extend([0; 32]);
        udp_bytes
    } else {
        frame.extend(ethertype::IPV4.to_be_bytes());
        frame.extend([0x45, 0]);
        frame.extend(network_bytes.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol::UDP]);
        frame.extend([0; 10]);
        network_bytes - IPV4_BYTES as u16
    };
    frame.extend([0; 4]);
    frame.extend(udp_bytes.to_be_bytes());
    frame.resize(host.frame_bytes, 0);
    frame
}

/// Writes the outer headers in front of the inner frame.
fn wrap(template: &Template, flow: u32, outer: &mut [u8], inner: &[u8]) {
    let checksum = Checksum::Sum(if template.covers_payload() { checksum::add(0, inner) } else { 0 });
    let flow_hash = flow.wrapping_mul(STRIDE) >> 16;
    let patch = Patch { next_hop: UPLINK_MAC, inner_bytes: inner.len(), ecn: 0, flow_hash, checksum };
    if let Some(outer) = outer.first_chunk_mut() {
        template.write_v6(outer, &patch);
    } else if let Some(outer) = outer.first_chunk_mut() {
        template.write_v4(outer, &patch);
    }
}

const _: () = assert!(super::LEAST_FRAME_BYTES as usize >= ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{InternetSlice, SlicedPacket, TransportSlice};
    use std::collections::HashSet;

    /// Addresses and ports of a frame whose lengths and checksums are right.
    fn five_tuple(frame: &[u8]) -> (String, String, u16, u16) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
        let header = udp.to_header();
        let (src, dst, computed) = match packet.net.unwrap() {
            InternetSlice::Ipv4(ip) => {
                let ip = ip.header();
                assert_eq!(ip.to_header().calc_header_checksum(), ip.header_checksum());
                let computed = header.calc_checksum_ipv4(&ip.to_header(), udp.payload());
                (ip.source_addr().to_string(), ip.destination_addr().to_string(), computed.unwrap())
            }
            InternetSlice::Ipv6(ip) => {
                let ip = ip.header();
                let computed = header.calc_checksum_ipv6(&ip.to_header(), udp.payload());
                (ip.source_addr().to_string(), ip.destination_addr().to_string(), computed.unwrap())
            }
            InternetSlice::Arp(_) => panic!("ARP"),
        };
        // Over IPv4 a tunnel has none.
        assert!(header.checksum == computed || header.checksum == 0);
        (src, dst, header.source_port, header.destination_port)
    }

    #[test]
    fn frames_of_every_kind_are_valid_and_flows_differ() {
        for direction in [Direction::Encapsulate, Direction::Decapsulate] {
            for (ipv6, frame_bytes) in [(false, 64), (true, 64), (false, 62), (true, 1900)] {
                let host = Host { direction, rules: 10, ipv6, frame_bytes };
                let frames = Frames::new(&host);
                let mut frame = vec![0; frames.len()];
                let head = frame.len() - frame_bytes;
                assert_eq!(head > 0, direction == Direction::Decapsulate);
                let mut seen = HashSet::new();
                for flow in 0..100 {
                    frames.write(flow, &mut frame);
                    let own = five_tuple(&frame[head..]);
                    let tenant = if head == 0 { &own.0 } else { &own.1 };
                    assert_eq!(*tenant, host.tenant().to_string());
                    seen.insert(own);
                    if head > 0 {
                        assert_eq!(five_tuple(&frame).3, 4789);
                    }
                }
                assert_eq!(seen.len(), 100);
            }
        }
    }

    #[test]
    fn known_flows_come_in_turn_and_new_ones_never_again() {
        let mut known = Order::new(Flows::Known(50));
        let rounds: Vec<Vec<u32>> = (0..2).map(|_| (0..50).map(|_| known.next_flow()).collect()).collect();
        assert_eq!(rounds[0], rounds[1]);
        assert_eq!(rounds[0].iter().collect::<HashSet<_>>().len(), 50);
        let mut new = Order::new(Flows::New);
        assert_eq!((0..10_000).map(|_| new.next_flow()).collect::<HashSet<_>>().len(), 10_000);
    }
}
