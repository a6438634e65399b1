//! Plain frames, looked at by a few wide loads: is the frame sound, and what are the fields of its flow's key?
//!
//! Plain are IPv4 without options or IPv6 without extension headers, untagged, unfragmented, with TCP, UDP, or a protocol whose
//! payload nobody looks at: only these have keys, and all else takes the way of the rule tables. What differs between
//! packets of a flow (lengths, checksums, ECN) is checked here, packet by packet, as strictly as
//! [`Frame::parse`](crate::wire::frame::Frame::parse) does: a property test holds the two together.

use crate::flows::key::{FlowKey, HEAD_WORDS, Scope, Seed};
use crate::wire::frame::{Fragment, Layout, Network};
use crate::wire::{ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, UDP_BYTES, le64, protocol};

/// A frame of a plain shape: the fields of its key, but for where the packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    words: [u64; HEAD_WORDS],
    /// Of an IPv6 frame.
    more: Option<[u64; 3]>,
}

/// Protocols whose packets have no key: somebody looks at what they carry.
const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let special = [
        protocol::ICMP,
        protocol::IGMP,
        protocol::DCCP,
        protocol::ICMPV6,
        protocol::SCTP,
        protocol::UDP_LITE,
        protocol::HOP_BY_HOP,
        protocol::ROUTING,
        protocol::FRAGMENT,
        protocol::AH,
        protocol::DESTINATION_OPTIONS,
    ];
    let mut at = 0;
    while at < special.len() {
        table[special[at] as usize] = true;
        at += 1;
    }
    table
};

/// Bytes that a frame must have to be looked at here: Ethernet, IPv4 and UDP headers.
const LEAST_V4_BYTES: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;
/// The same with IPv6.
const LEAST_V6_BYTES: usize = ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES;

/// In word 1: EtherType and the byte behind it, which is version and header length in IPv4.
const TYPE_AND_VERSION: u64 = 0x00ff_ffff_0000_0000;
const IPV4_PLAIN: u64 = 0x0045_0008_0000_0000;
/// In word 1: EtherType and the IP version.
const TYPE_AND_V6: u64 = 0x00f0_ffff_0000_0000;
const IPV6_PLAIN: u64 = 0x0060_dd86_0000_0000;
/// Word 1 without the ECN bits of IPv4.
const NOT_ECN_V4: u64 = 0xfcff_ffff_ffff_ffff;
/// Word 1 without the ECN bits and flow label of IPv6.
const NOT_ECN_V6: u64 = 0xc0ff_ffff_ffff_ffff;
/// In word 2 of IPv4: "more fragments" and the offset. DF and the reserved bit do not matter.
const FRAGMENT: u64 = 0xff3f << 32;
/// Word 2 but for the protocol.
const PROTOCOL: u64 = 0xff << 56;
/// Word 3 of IPv4 without the checksum.
const ADDRESSES: u64 = !0xffff;
/// Word 4 of IPv4: the rest of the destination, and the ports.
const PORTS: u64 = 0xffff_ffff_ffff;
const NO_PORTS: u64 = 0xffff;

/// Whether the checksum of an IPv4 header without options is right, of which these are the words at the frame's bytes 8, 16,
/// 24 and 32: the sum of its 16-bit words is a multiple of 0xffff, which is odd, so that one product with its inverse tells
/// (H. Warren, "Hacker's Delight", section 10-17).
#[inline(always)]
fn ipv4_sum_is_right([w1, w2, w3, w4]: [u64; 4]) -> bool {
    /// 0xffff times this is 1 modulo 2^64.
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    const _: () = assert!(INVERSE.wrapping_mul(0xffff) == 1);
    // What is carried out of the word comes in again below: 2^64 is 1 modulo 0xffff.
    let (sum, carry) = w2.overflowing_add(w3);
    let (sum, carry) = sum.overflowing_add((w1 >> 48) + (w4 & 0xffff) + u64::from(carry));
    (sum + u64::from(carry)).wrapping_mul(INVERSE) <= u64::MAX / 0xffff
}

/// The bytes of the packet that an Ethernet frame carries, by the words at its bytes 8 to 39, where that is whole IPv4 without
/// options and has a right checksum.
#[inline(always)]
pub fn whole_ipv4_bytes(words: [u64; 4]) -> Option<u16> {
    let [w1, w2, ..] = words;
    let differs = w1 & TYPE_AND_VERSION ^ IPV4_PLAIN | w2 & FRAGMENT;
    (differs == 0 && ipv4_sum_is_right(words)).then_some((w2 as u16).swap_bytes())
}

impl Layout {
    /// Of a frame that has a [`Shape`].
    #[inline(always)]
    pub fn of_plain(bytes: &[u8]) -> Layout {
        let Some(head) = bytes.first_chunk::<LEAST_V4_BYTES>() else { return Layout::UNKNOWN };
        let at = |place| usize::from(u16::from_be_bytes([head[place], head[place + 1]]));
        let class = at(ETHERNET_BYTES);
        let (network, header_bytes, protocol, traffic_class, l3_bytes) = match class >> 12 {
            4 => (Network::Ipv4, IPV4_BYTES, head[23], class, at(16)),
            _ => (Network::Ipv6, IPV6_BYTES, head[20], class >> 4, IPV6_BYTES + at(18)),
        };
        let has_ports = matches!(protocol, protocol::UDP | protocol::TCP);
        Layout {
            l3_offset: ETHERNET_BYTES as u16,
            l4_offset: if has_ports { (ETHERNET_BYTES + header_bytes) as u16 } else { 0 },
            l3_bytes: l3_bytes as u32,
            network,
            fragment: Fragment::Whole,
            traffic_class: traffic_class as u8,
            vlan_tags: 0,
        }
    }
}

/// The ECN field of a frame that has a [`Shape`].
#[inline(always)]
pub fn ecn_of_plain(bytes: &[u8], is_v6: bool) -> u8 {
    let class = bytes.get(ETHERNET_BYTES + 1).copied().unwrap_or(0);
    (if is_v6 { class >> 4 } else { class }) & 3
}

impl Shape {
    /// Looks at a frame of `length` bytes, of which the first are contiguous in `bytes`. `None` where its shape is not plain,
    /// or where something about it is not sound: the full parse tells which.
    #[inline(always)]
    pub fn of(bytes: &[u8], length: usize) -> Option<Shape> {
        Shape::of_v4(bytes, length).or_else(|| Shape::of_v6(bytes, length))
    }

    /// As [`Shape::of`], for IPv4 only.
    #[inline(always)]
    pub fn of_v4(bytes: &[u8], length: usize) -> Option<Shape> {
        let head = bytes.first_chunk::<LEAST_V4_BYTES>()?;
        let [w0, w1, w2, w3, w4] =
            [le64(head, 0), le64(head, 8), le64(head, 16), le64(head, 24), le64(head, 32)];
        let total = usize::from(whole_ipv4_bytes([w1, w2, w3, w4])?);
        if ETHERNET_BYTES + total > length {
            return None;
        }
        let udp_bytes = usize::from(((w4 >> 48) as u16).swap_bytes());
        let (l4, payload) = (ETHERNET_BYTES + IPV4_BYTES, total as isize - IPV4_BYTES as isize);
        let has_ports = transport(bytes, l4, (w2 >> 56) as u8, udp_bytes, payload)?;
        let ports = if has_ports { PORTS } else { NO_PORTS };
        let words = [w0, w1 & NOT_ECN_V4, w2 & PROTOCOL, w3 & ADDRESSES, w4 & ports];
        Some(Shape { words, more: None })
    }

    /// As [`Shape::of`], for IPv6 only.
    #[inline(always)]
    pub fn of_v6(bytes: &[u8], length: usize) -> Option<Shape> {
        let head = bytes.first_chunk::<LEAST_V6_BYTES>()?;
        let (w0, w1) = (le64(head, 0), le64(head, 8));
        let payload = usize::from(u16::from_be_bytes([head[18], head[19]]));
        let l4 = ETHERNET_BYTES + IPV6_BYTES;
        if w1 & TYPE_AND_V6 != IPV6_PLAIN || l4 + payload > length {
            return None;
        }
        let udp_bytes = usize::from(u16::from_be_bytes([head[58], head[59]]));
        let has_ports = transport(bytes, l4, head[20], udp_bytes, payload as isize)?;
        let ports = if has_ports { le64(head, 54) & 0xffff_ffff } else { 0 };
        let words = [w0, w1 & NOT_ECN_V6, u64::from(head[20]) << 56, le64(head, 22), le64(head, 30)];
        Some(Shape { words, more: Some([le64(head, 38), le64(head, 46), ports]) })
    }

    /// The destination is a group, not one station.
    #[inline(always)]
    pub fn is_to_a_group(&self) -> bool {
        self.words[0] & 1 != 0
    }

    /// The source is a group, which no station is.
    #[inline(always)]
    pub fn is_from_a_group(&self) -> bool {
        self.words[0] >> 48 & 1 != 0
    }

    /// The destination MAC is this one.
    #[inline(always)]
    pub fn is_to(&self, mac: [u8; 6]) -> bool {
        let [a, b, c, d, e, f] = mac;
        self.words[0] << 16 == u64::from_le_bytes([0, 0, a, b, c, d, e, f])
    }

    /// It carries UDP, whose header is whole.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        (self.words[2] >> 56) as u8 == protocol::UDP
    }

    /// Source and destination.
    #[inline(always)]
    pub fn ends(&self) -> Ends {
        let [.., w3, w4] = self.words;
        match self.more {
            None => Ends::V4((w3 >> 16) as u32, (w3 >> 48) as u32 | (w4 as u32) << 16),
            Some([d0, d1, _]) => Ends::V6([w3, w4], [d0, d1]),
        }
    }

    /// Writes the key of the frame that came from `scope`, hashed with `seed`.
    #[inline(always)]
    pub fn write_key(&self, scope: Scope, seed: Seed, key: &mut FlowKey) {
        key.write(self.words, self.more, scope, seed);
    }
}

/// Source and destination, as they stand in the packet, read from the little end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Of IPv4.
    V4(u32, u32),
    /// Of IPv6.
    V6([u64; 2], [u64; 2]),
}

impl Ends {
    /// The sum of both addresses, as in a pseudo-header.
    #[inline(always)]
    pub fn sum(self) -> u64 {
        let halves = |word: u64| {
            let word = word.swap_bytes();
            (word >> 32) + (word & 0xffff_ffff)
        };
        match self {
            Ends::V4(source, destination) => {
                u64::from(source.swap_bytes()) + u64::from(destination.swap_bytes())
            }
            Ends::V6([a, b], [c, d]) => halves(a) + halves(b) + halves(c) + halves(d),
        }
    }
}

/// Checks the transport header at `l4` as far as anyone looks at it, and that there is a payload at all, of not less than no
/// bytes. Tells whether the key has its ports. `None` where it is not sound, or the protocol is special.
#[inline(always)]
fn transport(bytes: &[u8], l4: usize, protocol: u8, udp_bytes: usize, payload: isize) -> Option<bool> {
    match protocol {
        protocol::UDP => (udp_bytes >= UDP_BYTES && udp_bytes as isize <= payload).then_some(true),
        protocol::TCP => {
            let header = bytes.get(l4..l4 + TCP_BYTES)?;
            let header_bytes = usize::from(header[12] >> 4) * 4;
            (header_bytes >= TCP_BYTES && header_bytes as isize <= payload).then_some(true)
        }
        _ => (!SPECIAL[usize::from(protocol)] && payload >= 0).then_some(false),
    }
}

/// Bytes of a TCP header without options.
const TCP_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;
    use crate::wire::frame::{Frame, WINDOW_BYTES};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn is_right(header: &[u8; 20]) -> bool {
        let mut bytes = [0; 40];
        bytes[14..34].copy_from_slice(header);
        // What stands around the header does not matter.
        (bytes[13], bytes[34]) = (7, 9);
        ipv4_sum_is_right([8, 16, 24, 32].map(|at| le64(&bytes, at)))
    }

    /// A frame of each plain shape, and of some that are not.
    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let (mut out, payload) = (Vec::new(), vec![7; payload]);
        let start = || PacketBuilder::ethernet2(MACS.0, MACS.1);
        let v4 = || start().ipv4([10, 1, 0, 1], [10, 1, 0, 2], 64);
        let v6 = || start().ipv6([1; 16], [2; 16], 64);
        let done = match kind {
            0 => v4().udp(1000, 2000).write(&mut out, &payload),
            1 => v4().tcp(1000, 2000, 1, 500).write(&mut out, &payload),
            2 => v6().udp(1000, 2000).write(&mut out, &payload),
            3 => v6().tcp(1000, 2000, 1, 500).write(&mut out, &payload),
            4 => v4().icmpv4_echo_request(1, 2).write(&mut out, &payload),
            _ => start()
                .single_vlan(5.try_into().unwrap())
                .ipv4([1; 4], [2; 4], 9)
                .udp(1, 2)
                .write(&mut out, &payload),
        };
        done.unwrap();
        out
    }

    /// Makes the IPv4 checksum right, so that more than the checksum is put to the test.
    fn repaired(mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.len() >= 34 && bytes[12..15] == [8, 0, 0x45] {
            bytes[24..26].fill(0);
            let field = checksum::of(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    fn shape(bytes: &[u8]) -> Option<Shape> {
        Shape::of(bytes, bytes.len())
    }

    fn parse(bytes: &[u8]) -> Option<Frame> {
        Frame::parse(&bytes[..bytes.len().min(WINDOW_BYTES)], bytes.len()).ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn a_shape_says_what_the_full_parse_says(
            kind in 0u8..6,
            payload in 0usize..80,
            changes in proptest::collection::vec((0usize..80, any::<u8>()), 0..4),
            cut in 0usize..20,
            repair: bool,
        ) {
            let mut bytes = frame(kind, payload);
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let bytes = if repair { repaired(bytes) } else { bytes };
            if let Some(shape) = shape(&bytes) {
                let frame = parse(&bytes);
                let mut key = FlowKey::NONE;
                shape.write_key(Scope::egress(1, 2), 3.into(), &mut key);
                let by_key = Frame { key: key.fields(), layout: Layout::of_plain(&bytes) };
                let ecn = ecn_of_plain(&bytes, by_key.network == Network::Ipv6);
                prop_assert_eq!(ecn, by_key.traffic_class & 3);
                prop_assert_eq!(frame, Some(by_key), "{:02x?}", bytes);
            }
        }

        #[test]
        fn equal_keys_mean_equal_fields(
            kind in 0u8..4,
            changes in proptest::collection::vec((0usize..74, 0u32..8), 1..3),
        ) {
            let (one, mut other) = (frame(kind, 40), frame(kind, 40));
            for (at, bit) in changes {
                let length = other.len();
                other[at % length] ^= 1 << bit;
            }
            let other = repaired(other);
            if let (Some(a), Some(b)) = (shape(&one), shape(&other)) {
                let fields = (parse(&one).unwrap().key, parse(&other).unwrap().key);
                prop_assert_eq!(a == b, fields.0 == fields.1, "{:02x?}", other);
            }
        }

        #[test]
        fn the_checksum_is_checked_as_the_sum_is(header: [u8; 20]) {
            prop_assume!(header != [0; 20]);
            prop_assert_eq!(is_right(&header), checksum::of(&header) == 0);
            let mut right = header;
            right[10..12].fill(0);
            let field = checksum::of(&right);
            right[10..12].copy_from_slice(&field.to_be_bytes());
            prop_assert!(is_right(&right));
        }
    }

    #[test]
    fn plain_shapes_have_keys_and_others_do_not() {
        let found: Vec<bool> = (0..6).map(|kind| shape(&frame(kind, 20)).is_some()).collect();
        assert_eq!(found, [true, true, true, true, false, false]);
    }

    #[test]
    fn scopes_do_not_meet() {
        let shape = shape(&frame(0, 20)).unwrap();
        let scopes = [
            Scope::egress(1, 7),
            Scope::egress(2, 7),
            Scope::vxlan_v4(1, 0, 0, 0, 7),
            Scope::vxlan_v4(1, 1, 0, 0, 7),
            Scope::vxlan_v4(1, 0, 1, 0, 7),
            Scope::vxlan_v4(1, 0, 0, 1, 7),
            Scope::vxlan_v4(0, 1 << 16, 0, 0, 7),
            Scope::vxlan_v6(1, 0, 0, [0, 0], 7),
            Scope::vxlan_v6(1, 0, 0, [1, 0], 7),
            Scope::vxlan_v6(1, 0, 0, [0, 1], 7),
        ];
        let mut keys = std::collections::HashSet::new();
        let mut hashes = std::collections::HashSet::new();
        for scope in scopes {
            let mut key = FlowKey::NONE;
            shape.write_key(scope, 0x1234_5678_9abc_def1.into(), &mut key);
            let tail = if key.head.has_tail() { key.tail } else { Default::default() };
            keys.insert((key.head.words, tail));
            hashes.insert(key.hash);
        }
        assert_eq!((keys.len(), hashes.len()), (scopes.len(), scopes.len()));
    }
}
