//! Plain frames, looked at by a few wide loads: is the frame sound, and what are the fields of its flow's key?
//!
//! Plain are IPv4 without options or IPv6 without extension headers, untagged, unfragmented, with TCP, UDP, or a protocol whose
//! payload nobody looks at: only these have keys, and all else takes the way of the rule tables. What differs between
//! packets of a flow (lengths, checksums, ECN) is checked here, packet by packet, as strictly as
//! [`Frame::parse`](crate::wire::frame::Frame::parse) does: a property test holds the two together.

use crate::flows::key::{FlowKey, Scope, wide};
use crate::wire::frame::{Fragment, Layout, Network};
use crate::wire::{ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, UDP_BYTES, le64, protocol};

/// A frame of a plain shape: the fields of its key, and what its packet says beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The fields of the key, but for where the packet came from.
    words: [u64; 7],
    /// Where the layers begin, and what differs from packet to packet.
    pub layout: Layout,
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
/// Of the eight bytes from the TTL on: protocol and source, not TTL and checksum.
const PROTO_AND_SOURCE: u64 = 0xffff_ffff_0000_ff00;

#[inline(always)]
fn le32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn b16<const N: usize>(bytes: &[u8; N], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Whether the checksum of an IPv4 header without options is right, of which these are the first 20 bytes (of `c` the lower
/// half): the sum of its words is a multiple of 0xffff, which is odd, so that one product with its inverse tells (H. Warren,
/// "Hacker's Delight", section 10-17).
#[inline(always)]
fn ipv4_sum_is_right(a: u64, b: u64, c: u64) -> bool {
    /// 0xffff times this is 1 modulo 2^64.
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    const _: () = assert!(INVERSE.wrapping_mul(0xffff) == 1);
    // What is carried out of the word comes in again below: 2^64 is 1 modulo 0xffff.
    let (sum, carry) = a.overflowing_add(b);
    let (sum, carry) = sum.overflowing_add((c & 0xffff_ffff) + u64::from(carry));
    (sum + u64::from(carry)).wrapping_mul(INVERSE) <= u64::MAX / 0xffff
}

/// Whether an Ethernet frame carries a whole IPv4 packet without options, of `total` bytes, with a right checksum, by the
/// words at its bytes 8, 14, 22 and 30.
#[inline(always)]
pub fn is_whole_ipv4(w1: u64, a: u64, b: u64, c: u64, total: u16) -> bool {
    // In `a`, from the version on: total length, and not a fragment: neither "more fragments" nor an offset. DF and the
    // reserved bit do not matter.
    w1 & TYPE_AND_VERSION == IPV4_PLAIN
        && a >> 48 & 0xff3f == 0
        && (a >> 16) as u16 == total.swap_bytes()
        && ipv4_sum_is_right(a, b, c)
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
        Shape::of_ipv4(bytes, length, |_| ())
    }

    /// As [`Shape::of`], for IPv6 only.
    #[inline(always)]
    pub fn of_v6(bytes: &[u8], length: usize) -> Option<Shape> {
        let head = bytes.first_chunk::<LEAST_V6_BYTES>()?;
        let (w0, w1) = (le64(head, 0), le64(head, 8));
        if w1 & TYPE_AND_V6 != IPV6_PLAIN {
            return None;
        }
        Shape::of_ipv6(bytes, head, [w0, w1], length)
    }

    /// As [`Shape::of_v4`], and writes the key of the frame that came from `scope`, hashed with `seed`: as soon as the
    /// fields are there, so that nothing has to be kept meanwhile. Where there is no shape, the key is none.
    #[inline(always)]
    pub fn write_v4(
        bytes: &[u8],
        length: usize,
        scope: Scope,
        seed: u64,
        key: &mut FlowKey,
    ) -> Option<Shape> {
        Shape::of_ipv4(bytes, length, |words| key.write(words, None, scope, seed))
    }

    /// `early` gets the fields of the key before the frame is known to be sound.
    #[inline(always)]
    fn of_ipv4(bytes: &[u8], length: usize, early: impl FnOnce([u64; 4])) -> Option<Shape> {
        let head = bytes.first_chunk::<LEAST_V4_BYTES>()?;
        let (w0, w1) = (le64(head, 0), le64(head, 8));
        if w1 & TYPE_AND_VERSION != IPV4_PLAIN {
            return None;
        }
        // From the version to the offset; from the TTL to the source; from the destination to the ports.
        let (a, b, c) = (le64(head, 14), le64(head, 22), le64(head, 30));
        let kind = Kind::of((b >> 8) as u8)?;
        let words =
            [w0, w1 & NOT_ECN_V4, b & PROTO_AND_SOURCE, c & (u64::from(kind.ports()) << 32 | 0xffff_ffff)];
        early(words);
        // Not a fragment: neither "more fragments" nor an offset. DF and the reserved bit do not matter.
        let whole = a >> 48 & 0xff3f == 0;
        let total = usize::from(((a >> 16) as u16).swap_bytes());
        if !whole || ETHERNET_BYTES + total > length || !ipv4_sum_is_right(a, b, c) {
            return None;
        }
        let l4 = ETHERNET_BYTES + IPV4_BYTES;
        let l4_offset = kind.check(bytes, l4, b16(head, 38), total as isize - IPV4_BYTES as isize)?;
        let layout = layout(Network::Ipv4, l4_offset, total, (a >> 8) as u8);
        let [w0, w1, w2, w3] = words;
        Some(Shape { words: [w0, w1, w2, w3, 0, 0, 0], layout })
    }

    #[inline(always)]
    fn of_ipv6(
        bytes: &[u8],
        head: &[u8; LEAST_V6_BYTES],
        [w0, w1]: [u64; 2],
        length: usize,
    ) -> Option<Shape> {
        let payload = b16(head, 18);
        let l4 = ETHERNET_BYTES + IPV6_BYTES;
        if l4 + payload > length {
            return None;
        }
        let kind = Kind::of(head[20])?;
        let l4_offset = kind.check(bytes, l4, b16(head, 58), payload as isize)?;
        let words = [
            w0,
            w1 & NOT_ECN_V6,
            le64(head, 22),
            le64(head, 30),
            le64(head, 38),
            le64(head, 46),
            u64::from(le32(head, 54) & kind.ports()) | u64::from(head[20]) << 32,
        ];
        let class = head[14] << 4 | head[15] >> 4;
        Some(Shape { words, layout: layout(Network::Ipv6, l4_offset, IPV6_BYTES + payload, class) })
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
        let protocol = match self.layout.network {
            Network::Ipv4 => self.words[2] >> 8,
            _ => self.words[6] >> 32,
        };
        protocol as u8 == protocol::UDP
    }

    /// Source and destination of an IPv4 packet.
    #[inline(always)]
    pub fn ipv4_ends(&self) -> (u32, u32) {
        (((self.words[2] >> 32) as u32).swap_bytes(), (self.words[3] as u32).swap_bytes())
    }

    /// Source of an IPv6 packet as it stands in the packet, and its destination.
    #[inline(always)]
    pub fn ipv6_ends(&self) -> ([u64; 2], u128) {
        let [_, _, s0, s1, d0, d1, _] = self.words;
        ([s0, s1], wide(d0, d1))
    }

    /// The sum of both addresses, as in a pseudo-header.
    #[inline(always)]
    pub fn address_sum(&self) -> u64 {
        let halves = |word: u64| {
            let word = word.swap_bytes();
            (word >> 32) + (word & 0xffff_ffff)
        };
        match self.layout.network {
            Network::Ipv4 => {
                let (source, destination) = self.ipv4_ends();
                u64::from(source) + u64::from(destination)
            }
            _ => {
                let [_, _, a, b, c, d, _] = self.words;
                halves(a) + halves(b) + halves(c) + halves(d)
            }
        }
    }

    /// Writes the key of the frame that came from `scope`, hashed with `seed`.
    #[inline(always)]
    pub fn write_key(&self, scope: Scope, seed: u64, key: &mut FlowKey) {
        let [w0, w1, w2, w3, w4, w5, w6] = self.words;
        let is_v6 = self.layout.network == Network::Ipv6;
        key.write([w0, w1, w2, w3], is_v6.then_some([w4, w5, w6]), scope, seed);
    }
}

/// How much of the transport header is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Udp,
    Tcp,
    /// Nothing.
    Opaque,
}

impl Kind {
    /// `None` where the protocol is special.
    #[inline(always)]
    fn of(protocol: u8) -> Option<Kind> {
        match protocol {
            protocol::UDP => Some(Kind::Udp),
            protocol::TCP => Some(Kind::Tcp),
            protocol => (!SPECIAL[usize::from(protocol)]).then_some(Kind::Opaque),
        }
    }

    /// The mask of the ports in a key.
    #[inline(always)]
    fn ports(self) -> u32 {
        if self == Kind::Opaque { 0 } else { u32::MAX }
    }

    /// Checks the transport header as far as anyone looks at it, and that there is a payload at all, of not less than no bytes.
    /// Returns the header's offset, 0 where nobody looks.
    #[inline(always)]
    fn check(self, bytes: &[u8], l4: usize, udp_bytes: usize, payload: isize) -> Option<usize> {
        match self {
            Kind::Udp => (udp_bytes >= UDP_BYTES && udp_bytes as isize <= payload).then_some(l4),
            Kind::Tcp => {
                let header = bytes.get(l4..l4 + TCP_BYTES)?;
                let header_bytes = usize::from(header[12] >> 4) * 4;
                (header_bytes >= TCP_BYTES && header_bytes as isize <= payload).then_some(l4)
            }
            Kind::Opaque => (payload >= 0).then_some(0),
        }
    }
}

/// Bytes of a TCP header without options.
const TCP_BYTES: usize = 20;

#[inline(always)]
fn layout(network: Network, l4_offset: usize, l3_bytes: usize, traffic_class: u8) -> Layout {
    Layout {
        l3_offset: ETHERNET_BYTES as u16,
        l4_offset: l4_offset as u16,
        l3_bytes: l3_bytes as u32,
        network,
        fragment: Fragment::Whole,
        traffic_class,
        vlan_tags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;
    use crate::wire::frame::{Frame, WINDOW_BYTES};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn is_right(header: &[u8; 20]) -> bool {
        ipv4_sum_is_right(le64(header, 0), le64(header, 8), u64::from(le32(header, 16)))
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
                shape.write_key(Scope::egress(1, 2), 3, &mut key);
                let by_key = Frame { key: key.fields(), layout: shape.layout };
                prop_assert_eq!(frame, Some(by_key), "{:02x?}", bytes);
            }
        }

        #[test]
        fn the_short_way_to_a_key_writes_the_same(
            kind in 0u8..2,
            changes in proptest::collection::vec((0usize..62, any::<u8>()), 0..3),
        ) {
            let mut bytes = frame(kind, 20);
            for (at, value) in changes {
                bytes[at] = value;
            }
            let bytes = repaired(bytes);
            let scope = Scope::vxlan_v6(1, 2, 3, [4, 5], 6);
            let (mut direct, mut by_shape) = (FlowKey::NONE, FlowKey::NONE);
            let written = Shape::write_v4(&bytes, bytes.len(), scope, 77, &mut direct);
            prop_assert_eq!(written, Shape::of_v4(&bytes, bytes.len()));
            if let Some(shape) = written {
                shape.write_key(scope, 77, &mut by_shape);
                prop_assert!(direct.is(&by_shape.head, &by_shape.tail));
                prop_assert_eq!((direct.hash, direct.generation), (by_shape.hash, 6));
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
                prop_assert_eq!(a.words == b.words, fields.0 == fields.1, "{:02x?}", other);
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
            shape.write_key(scope, 0x1234_5678_9abc_def1, &mut key);
            keys.insert((key.head, key.tail));
            hashes.insert(key.hash);
        }
        assert_eq!((keys.len(), hashes.len()), (scopes.len(), scopes.len()));
    }
}
