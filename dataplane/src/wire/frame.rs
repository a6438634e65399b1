//! One pass over the headers of an Ethernet frame: what it is, where its layers begin, and its [`Key`] for the rule
//! tables.
//!
//! Everything in the frame is hostile. The pass sees the frame's first bytes (the *window*, contiguous, at most
//! [`WINDOW_BYTES`]) and its whole length; every length field is checked against that length before it is believed,
//! and nothing behind the window is read: headers that do not fit into it make the frame malformed.

use super::{
    ETHERNET_BYTES, IPV6_BYTES, VLAN_TAG_BYTES, be16, bytes_at, checksum, ethertype, mac_bits, protocol,
};
use crate::rules::key::Key;

/// How many of a frame's first bytes are looked at: Ethernet, four tags, and the longest IPv4 header with options and
/// a TCP header make 150 bytes; IPv6 with a usual chain of extension headers stays below 256.
pub const WINDOW_BYTES: usize = 256;

/// VLAN tags that are looked through to find the network header. More make the frame malformed: else a tenant could
/// hide its addresses from the source check behind a stack of tags.
pub const MAX_VLAN_TAGS: usize = 4;

/// IPv6 extension headers that are walked. RFC 8200 names six that each occur once (destination options twice).
const MAX_EXTENSION_HEADERS: usize = 8;

/// Why a frame cannot be what it says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub &'static str);

/// What the network layer of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Network {
    /// Neither IP nor ARP.
    Other,
    /// ARP over Ethernet.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Whether an IP packet is a piece of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// A whole packet.
    Whole,
    /// The first fragment: the layer-4 header is here.
    First,
    /// A later fragment: no layer-4 header.
    Later,
}

/// Where a frame's layers begin, and what about it is neither for rules nor for admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the network header begins, in bytes from the frame's start.
    pub l3_offset: u16,
    /// Where the transport header begins; 0 where there is none to look at.
    pub l4_offset: u16,
    /// Bytes of the network packet by its own header (0 for [`Network::Other`]); the frame may be padded behind it.
    pub l3_bytes: u32,
    /// What the network layer is.
    pub network: Network,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// IPv4 type of service or IPv6 traffic class; 0 for others.
    pub traffic_class: u8,
    /// VLAN tags in front of the network header.
    pub vlan_tags: u8,
}

impl Layout {
    /// Of a frame that was not looked at.
    pub const UNKNOWN: Layout = Layout {
        l3_offset: 0,
        l4_offset: 0,
        l3_bytes: 0,
        network: Network::Other,
        fragment: Fragment::Whole,
        traffic_class: 0,
        vlan_tags: 0,
    };
}

/// A frame whose headers were found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The fields that rules match on.
    pub key: Key,
    /// Where its layers begin.
    pub layout: Layout,
}

impl std::ops::Deref for Frame {
    type Target = Layout;

    #[inline(always)]
    fn deref(&self) -> &Layout {
        &self.layout
    }
}

impl std::ops::DerefMut for Frame {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Layout {
        &mut self.layout
    }
}

impl Frame {
    /// Looks at a frame of `length` bytes whose first bytes are `window`.
    ///
    /// Errors: the first thing that is not sound, in words.
    #[inline]
    pub fn parse(window: &[u8], length: usize) -> Result<Frame, Malformed> {
        let head: [u8; ETHERNET_BYTES] =
            bytes_at(window, 0).ok_or(Malformed("shorter than an Ethernet header"))?;
        let mut ether_type = u16::from_be_bytes([head[12], head[13]]);
        let mut l3 = ETHERNET_BYTES;
        let mut vlan = 0;
        let mut tags = 0;
        while ether_type == ethertype::VLAN || ether_type == ethertype::QINQ {
            if tags == MAX_VLAN_TAGS {
                return Err(Malformed("more VLAN tags than are looked through"));
            }
            let tag: [u8; VLAN_TAG_BYTES] =
                bytes_at(window, l3).ok_or(Malformed("ends inside a VLAN tag"))?;
            if tags == 0 {
                vlan = u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff;
            }
            ether_type = u16::from_be_bytes([tag[2], tag[3]]);
            l3 += VLAN_TAG_BYTES;
            tags += 1;
        }
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = head;
        let dst = mac_bits([d0, d1, d2, d3, d4, d5]);
        let src = mac_bits([s0, s1, s2, s3, s4, s5]);
        let layout = Layout { l3_offset: l3 as u16, vlan_tags: tags as u8, ..Layout::UNKNOWN };
        let mut frame = Frame { key: Key::ethernet(dst, src, ether_type, vlan), layout };
        match ether_type {
            ethertype::IPV4 => frame.parse_ipv4(window, length)?,
            ethertype::IPV6 => frame.parse_ipv6(window, length)?,
            ethertype::ARP => frame.parse_arp(window)?,
            _ => {}
        }
        Ok(frame)
    }

    fn parse_arp(&mut self, window: &[u8]) -> Result<(), Malformed> {
        let head: [u8; 8] =
            bytes_at(window, usize::from(self.l3_offset)).ok_or(Malformed("ends inside an ARP header"))?;
        // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4 (RFC 826).
        if head[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(Malformed("ARP that is not IPv4 over Ethernet"));
        }
        if window.len() < usize::from(self.l3_offset) + super::arp::ARP_BYTES {
            return Err(Malformed("ends inside an ARP packet"));
        }
        self.network = Network::Arp;
        Ok(())
    }

    #[inline]
    fn parse_ipv4(&mut self, window: &[u8], length: usize) -> Result<(), Malformed> {
        let l3 = usize::from(self.l3_offset);
        let head: [u8; 20] = bytes_at(window, l3).ok_or(Malformed("ends inside an IPv4 header"))?;
        let header_bytes = usize::from(head[0] & 0x0f) * 4;
        if head[0] >> 4 != 4 || header_bytes < 20 {
            return Err(Malformed("IPv4 version or header length is wrong"));
        }
        let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if total < header_bytes || l3 + total > length {
            return Err(Malformed("IPv4 total length is not within the frame"));
        }
        let header = window.get(l3..l3 + header_bytes).ok_or(Malformed("ends inside the IPv4 options"))?;
        if checksum::of(header) != 0 {
            return Err(Malformed("IPv4 header checksum is wrong"));
        }
        let fragment = u16::from_be_bytes([head[6], head[7]]);
        self.fragment = match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        self.network = Network::Ipv4;
        self.l3_bytes = total as u32;
        self.traffic_class = head[1];
        let src = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        let dst = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
        self.key.set_ipv4(src, dst, head[9], head[1] >> 2);
        self.parse_transport(window, l3 + header_bytes, total - header_bytes, head[9])
    }

    #[inline]
    fn parse_ipv6(&mut self, window: &[u8], length: usize) -> Result<(), Malformed> {
        let l3 = usize::from(self.l3_offset);
        let head: [u8; IPV6_BYTES] = bytes_at(window, l3).ok_or(Malformed("ends inside an IPv6 header"))?;
        if head[0] >> 4 != 6 {
            return Err(Malformed("IPv6 version is wrong"));
        }
        let payload = usize::from(u16::from_be_bytes([head[4], head[5]]));
        if l3 + IPV6_BYTES + payload > length {
            return Err(Malformed("IPv6 payload length is not within the frame"));
        }
        self.network = Network::Ipv6;
        self.l3_bytes = (IPV6_BYTES + payload) as u32;
        self.traffic_class = (head[0] << 4) | (head[1] >> 4);
        let (next, l4) = self.skip_extensions(window, head[6], l3 + IPV6_BYTES, l3 + IPV6_BYTES + payload)?;
        let src: [u8; 16] = bytes_at(&head, 8).unwrap_or_default();
        let dst: [u8; 16] = bytes_at(&head, 24).unwrap_or_default();
        self.key.set_ipv6(u128::from_be_bytes(src), u128::from_be_bytes(dst), next, self.traffic_class >> 2);
        self.parse_transport(window, l4, l3 + IPV6_BYTES + payload - l4, next)
    }

    /// Walks the extension headers from `at`; returns the upper-layer protocol and where it begins.
    #[inline]
    fn skip_extensions(
        &mut self,
        window: &[u8],
        mut next: u8,
        mut at: usize,
        end: usize,
    ) -> Result<(u8, usize), Malformed> {
        for _ in 0..MAX_EXTENSION_HEADERS {
            let bytes = match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    (usize::from(
                        be16(window, at).ok_or(Malformed("ends inside an IPv6 extension header"))? & 0xff,
                    ) + 1)
                        * 8
                }
                protocol::AH => {
                    (usize::from(
                        be16(window, at).ok_or(Malformed("ends inside an IPv6 extension header"))? & 0xff,
                    ) + 2)
                        * 4
                }
                protocol::FRAGMENT => 8,
                _ => return Ok((next, at)),
            };
            if at + bytes > end || at + bytes > window.len() {
                return Err(Malformed("IPv6 extension header is not within the packet"));
            }
            if next == protocol::FRAGMENT {
                let field = be16(window, at + 2).unwrap_or(0);
                self.fragment = match (field >> 3, field & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                if self.fragment == Fragment::Later {
                    // What follows is a piece of the upper layer, whatever it looks like.
                    return Ok((window.get(at).copied().unwrap_or(0), at + bytes));
                }
            }
            next = window.get(at).copied().unwrap_or(0);
            at += bytes;
        }
        Err(Malformed("more IPv6 extension headers than are walked"))
    }

    /// Looks at the transport header at `l4`, of which (with its payload) the packet holds `bytes` bytes.
    #[inline]
    fn parse_transport(
        &mut self,
        window: &[u8],
        l4: usize,
        bytes: usize,
        protocol: u8,
    ) -> Result<(), Malformed> {
        if self.fragment == Fragment::Later {
            return Ok(());
        }
        let least = match protocol {
            protocol::TCP => 20,
            protocol::UDP | protocol::UDP_LITE => 8,
            protocol::SCTP | protocol::DCCP => 12,
            protocol::ICMP | protocol::ICMPV6 => 4,
            _ => return Ok(()),
        };
        let header = window.get(l4..l4 + least).filter(|_| bytes >= least);
        let header = header.ok_or(Malformed("ends inside the transport header"))?;
        self.l4_offset = l4 as u16;
        if protocol == protocol::ICMP || protocol == protocol::ICMPV6 {
            return Ok(());
        }
        let (src, dst) = (be16(header, 0).unwrap_or(0), be16(header, 2).unwrap_or(0));
        if protocol == protocol::TCP {
            let header_bytes = usize::from(header[12] >> 4) * 4;
            if header_bytes < 20 || header_bytes > bytes {
                return Err(Malformed("TCP data offset is not within the segment"));
            }
        } else if protocol == protocol::UDP {
            let length = usize::from(be16(header, 4).unwrap_or(0));
            // A first fragment carries the length of the whole datagram.
            if length < 8 || (length > bytes && self.fragment == Fragment::Whole) {
                return Err(Malformed("UDP length is not within the packet"));
            }
        }
        self.key.set_ports(src, dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn udp4() -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 1, 0, 1], [10, 1, 0, 2], 64)
            .udp(1000, 2000)
            .write(&mut out, b"hello")
            .unwrap();
        out
    }

    fn parse(bytes: &[u8]) -> Result<Frame, Malformed> {
        Frame::parse(&bytes[..bytes.len().min(WINDOW_BYTES)], bytes.len())
    }

    #[test]
    fn an_ipv4_udp_frame() {
        let frame = parse(&udp4()).unwrap();
        assert_eq!(frame.network, Network::Ipv4);
        assert_eq!((frame.l3_offset, frame.l4_offset, frame.l3_bytes), (14, 34, 33));
        assert_eq!(frame.key.proto(), protocol::UDP);
        assert_eq!(frame.key.ports(), Some((1000, 2000)));
        assert_eq!(frame.key.ipv4(), Some((0x0a01_0001, 0x0a01_0002)));
    }

    #[test]
    fn tags_are_looked_through_and_the_outermost_is_the_key() {
        let mut bytes = udp4();
        bytes.splice(12..12, [0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x20, 0x64]);
        let frame = parse(&bytes).unwrap();
        assert_eq!((frame.key.vlan(), frame.vlan_tags, frame.l3_offset), (7, 2, 22));
        assert_eq!(frame.key.ports(), Some((1000, 2000)));
        let mut deep = udp4();
        for _ in 0..=MAX_VLAN_TAGS {
            deep.splice(12..12, [0x81, 0x00, 0x00, 0x01]);
        }
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn every_truncation_is_malformed() {
        let whole = udp4();
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes were taken for a frame");
        }
    }

    #[test]
    fn wrong_lengths_and_checksums_are_malformed() {
        for (at, value) in [(14, 0x44), (14, 0x65), (17, 0xff), (24, 0xaa), (39, 0xff), (39, 0x07)] {
            let mut bytes = udp4();
            bytes[at] = value;
            assert!(parse(&bytes).is_err(), "byte {at} = {value:#x} was accepted");
        }
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut bytes = udp4();
        bytes[20..22].copy_from_slice(&[0x00, 0x10]);
        bytes[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum::of(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        let frame = parse(&bytes).unwrap();
        assert_eq!((frame.fragment, frame.key.ports()), (Fragment::Later, None));
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv6([1; 16], [2; 16], 64)
            .udp(1, 2)
            .write(&mut bytes, &[0; 4])
            .unwrap();
        let udp = bytes.split_off(54);
        bytes.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend(&udp);
        bytes[20] = protocol::HOP_BY_HOP;
        bytes[18..20].copy_from_slice(&28u16.to_be_bytes());
        let frame = parse(&bytes).unwrap();
        assert_eq!((frame.key.proto(), frame.key.ports(), frame.l4_offset), (17, Some((1, 2)), 70));
        bytes[55] = 9;
        assert!(parse(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_point_behind_the_frame(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(frame) = parse(&bytes) {
                prop_assert!(usize::from(frame.l3_offset) <= bytes.len());
                prop_assert!(usize::from(frame.l3_offset) + frame.l3_bytes as usize <= bytes.len());
                prop_assert!(usize::from(frame.l4_offset) <= bytes.len());
            }
        }

        #[test]
        fn mutated_frames_never_point_behind_the_frame(at in 0usize..47, value: u8, cut in 0usize..48) {
            let mut bytes = udp4();
            let at = at.min(bytes.len() - 1);
            bytes[at] = value;
            bytes.truncate(cut);
            if let Ok(frame) = parse(&bytes) {
                prop_assert!(usize::from(frame.l3_offset) + frame.l3_bytes as usize <= bytes.len());
            }
        }
    }
}
