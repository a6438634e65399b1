//! Frames, built without the code under test.

use crate::harness::{PEER_MAC, UPLINK_MAC, VM1, mac};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, UdpHeader};

pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0x55];
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Addresses by their text.
pub fn v4(text: &str) -> [u8; 4] {
    text.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

pub fn v6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

/// A payload that is not all alike.
pub fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + 3) as u8).collect()
}

/// UDP over IPv4 from VM1.
pub fn udp4(dst: &str, length: usize) -> Vec<u8> {
    frame4(mac(VM1), OTHER_MAC, "10.1.0.1", dst, 0, length)
}

/// UDP over IPv6 from VM1.
pub fn udp6(dst: &str, length: usize) -> Vec<u8> {
    frame6(mac(VM1), OTHER_MAC, "fd00:1::1", dst, 0, length)
}

/// UDP over IPv4, type of service `tos`.
pub fn frame4(from: [u8; 6], to: [u8; 6], src: &str, dst: &str, tos: u8, length: usize) -> Vec<u8> {
    let mut ip = Ipv4Header::new((8 + length) as u16, 64, IpNumber::UDP, v4(src), v4(dst)).unwrap();
    ip.dscp = (tos >> 2).try_into().unwrap();
    ip.ecn = (tos & 3).try_into().unwrap();
    ip.header_checksum = ip.calc_header_checksum();
    let udp = UdpHeader::with_ipv4_checksum(4000, 5000, &ip, &payload(length)).unwrap();
    let mut out = Vec::new();
    Ethernet2Header { source: from, destination: to, ether_type: EtherType::IPV4 }.write(&mut out).unwrap();
    ip.write(&mut out).unwrap();
    udp.write(&mut out).unwrap();
    out.extend(payload(length));
    out
}

/// UDP over IPv6, traffic class `class`.
pub fn frame6(from: [u8; 6], to: [u8; 6], src: &str, dst: &str, class: u8, length: usize) -> Vec<u8> {
    let ip = Ipv6Header {
        traffic_class: class,
        flow_label: 0x2_1234u32.try_into().unwrap(),
        payload_length: (8 + length) as u16,
        next_header: IpNumber::UDP,
        hop_limit: 64,
        source: v6(src),
        destination: v6(dst),
    };
    let udp = UdpHeader::with_ipv6_checksum(4000, 5000, &ip, &payload(length)).unwrap();
    let mut out = Vec::new();
    Ethernet2Header { source: from, destination: to, ether_type: EtherType::IPV6 }.write(&mut out).unwrap();
    ip.write(&mut out).unwrap();
    udp.write(&mut out).unwrap();
    out.extend(payload(length));
    out
}

/// TCP over IPv4 from VM1.
pub fn tcp4(dst: &str, port: u16, length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2(mac(VM1), OTHER_MAC)
        .ipv4(v4("10.1.0.1"), v4(dst), 64)
        .tcp(4000, port, 1, 1000)
        .write(&mut out, &payload(length))
        .unwrap();
    out
}

/// A frame that is neither IP nor ARP.
pub fn layer2(from: [u8; 6], to: [u8; 6], length: usize) -> Vec<u8> {
    let mut out = [&to[..], &from, &[0x88, 0xb5]].concat();
    out.extend(payload(length));
    out
}

/// The frame with a tag pushed.
pub fn tagged(frame: &[u8], tpid: u16, tci: u16) -> Vec<u8> {
    [&frame[..12], &tpid.to_be_bytes(), &tci.to_be_bytes(), &frame[12..]].concat()
}

/// Outer headers: who sends, to whom, how.
#[derive(Clone, Debug)]
pub struct Outer {
    pub macs: ([u8; 6], [u8; 6]),
    pub src: String,
    pub dst: String,
    pub ttl: u8,
    pub class: u8,
    pub vni: u32,
    pub source_port: u16,
    pub checksum: bool,
}

impl Outer {
    /// From the peer to this host.
    pub fn to_us(vni: u32) -> Outer {
        Outer {
            macs: (PEER_MAC, UPLINK_MAC),
            src: "192.0.2.2".into(),
            dst: "192.0.2.1".into(),
            ttl: 64,
            class: 0,
            vni,
            source_port: 50_000,
            checksum: false,
        }
    }

    /// As [`Outer::to_us`], over IPv6 and with a checksum.
    pub fn to_us_v6(vni: u32) -> Outer {
        Outer { src: "2001:db8::2".into(), dst: "2001:db8::1".into(), checksum: true, ..Outer::to_us(vni) }
    }

    /// As this host encapsulates: don't fragment, identification 0, UDP checksum over IPv6 alone.
    pub fn from_us(vni: u32, remote: &str, source_port: u16) -> Outer {
        let is_v6 = remote.contains(':');
        Outer {
            macs: (UPLINK_MAC, PEER_MAC),
            src: if is_v6 { "2001:db8::1" } else { "192.0.2.1" }.into(),
            dst: remote.into(),
            source_port,
            checksum: is_v6,
            ..Outer::to_us(vni)
        }
    }

    /// Bytes of the headers in front of the inner frame.
    pub fn bytes(&self) -> usize {
        if self.dst.contains(':') { 70 } else { 50 }
    }

    /// Puts the headers in front of `inner`.
    pub fn wrap(&self, inner: &[u8]) -> Vec<u8> {
        let mut vxlan = vec![0x08, 0, 0, 0];
        vxlan.extend((self.vni << 8).to_be_bytes());
        vxlan.extend(inner);
        let (source, destination) = self.macs;
        let mut out = Vec::new();
        let length = (8 + vxlan.len()) as u16;
        let mut udp =
            UdpHeader { source_port: self.source_port, destination_port: 4789, length, checksum: 0 };
        if self.dst.contains(':') {
            let ip = Ipv6Header {
                traffic_class: self.class,
                flow_label: 0u32.try_into().unwrap(),
                payload_length: length,
                next_header: IpNumber::UDP,
                hop_limit: self.ttl,
                source: v6(&self.src),
                destination: v6(&self.dst),
            };
            if self.checksum {
                udp.checksum = udp.calc_checksum_ipv6(&ip, &vxlan).unwrap();
            }
            Ethernet2Header { source, destination, ether_type: EtherType::IPV6 }.write(&mut out).unwrap();
            ip.write(&mut out).unwrap();
        } else {
            let mut ip =
                Ipv4Header::new(length, self.ttl, IpNumber::UDP, v4(&self.src), v4(&self.dst)).unwrap();
            ip.dscp = (self.class >> 2).try_into().unwrap();
            ip.ecn = (self.class & 3).try_into().unwrap();
            ip.dont_fragment = true;
            ip.header_checksum = ip.calc_header_checksum();
            if self.checksum {
                udp.checksum = udp.calc_checksum_ipv4(&ip, &vxlan).unwrap();
            }
            Ethernet2Header { source, destination, ether_type: EtherType::IPV4 }.write(&mut out).unwrap();
            ip.write(&mut out).unwrap();
        }
        udp.write(&mut out).unwrap();
        out.extend(vxlan);
        out
    }
}

/// Writes the IPv4 header checksum again, of the header at `l3`.
pub fn fix_ipv4(frame: &mut [u8], l3: usize) {
    frame[l3 + 10..l3 + 12].fill(0);
    let header = &frame[l3..l3 + usize::from(frame[l3] & 15) * 4];
    let sum = internet_sum(&[header]);
    frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1071, word by word; every part but the last has an even length.
pub fn internet_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.concat().chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An ARP packet, RFC 826.
pub fn arp(
    from: [u8; 6],
    to: [u8; 6],
    operation: u16,
    sender: ([u8; 6], &str),
    target: ([u8; 6], &str),
) -> Vec<u8> {
    let op = operation.to_be_bytes();
    let (sender_ip, target_ip) = (v4(sender.1), v4(target.1));
    [&to[..], &from, &[8, 6, 0, 1, 8, 0, 6, 4], &op, &sender.0, &sender_ip, &target.0, &target_ip].concat()
}

/// An ICMPv6 message in an IPv6 packet with hop limit 255, its checksum right.
pub fn icmp6(macs: ([u8; 6], [u8; 6]), src: &str, dst: &str, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let length = (message.len() as u32).to_be_bytes();
    message[2..4].fill(0);
    let sum = internet_sum(&[&v6(src), &v6(dst), &length, &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [&macs.1[..], &macs.0, &[0x86, 0xdd, 0x60, 0, 0, 0], &length[2..], &[58, 255]].concat();
    [&head[..], &v6(src), &v6(dst), &message].concat()
}

/// A neighbor solicitation or advertisement (`kind` 135, 136) with one option (1 source, 2 target).
pub fn nd(kind: u8, flags: u8, target: &str, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &v6(target)].concat();
    if let Some((number, mac)) = option {
        message.extend([number, 1]);
        message.extend(mac);
    }
    message
}
