//! A rule's match as mask and value over the words of a key, and how rules rank among each other.

use super::key::{FLAG_IP, FLAG_IPV4, FLAG_IPV6, FLAG_PORTS, KEY_WORDS, Key};
use super::rule::{Match, Opaque};
use crate::wire::mac_bits;
use ipnet::IpNet;
use std::net::IpAddr;

/// Words of an ingress key: those of the inner packet, then the tunnel's.
///
/// | word | high to low bits |
/// |---|---|
/// | 7 | opaque field (32), tunnel type (8), family flags (8), uplink's port number plus one (16) |
/// | 8, 9 | outer destination, IPv4 in the high half of word 8 |
/// | 10, 11 | outer source, likewise |
pub const INGRESS_WORDS: usize = KEY_WORDS + 5;

/// Tunnel type in word 7: VXLAN.
const TUNNEL_VXLAN: u64 = 1;
const OPAQUE_AND_TYPE: u64 = 0xffff_ffff_ff00_0000;

/// Which packets match: `key & mask == value`, and the ports lie in the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern<const W: usize> {
    /// The bits that count.
    pub mask: [u64; W],
    /// What they must be.
    pub value: [u64; W],
    /// Source ports, inclusive; all where the mask has decided.
    pub src_port: (u16, u16),
    /// Destination ports, inclusive.
    pub dst_port: (u16, u16),
}

/// Every layer-4 port.
const ALL_PORTS: (u16, u16) = (0, u16::MAX);

/// An address as two words, IPv4 in the high half of the first, and its family flag.
pub fn address_words(address: IpAddr) -> ([u64; 2], u64) {
    match address {
        IpAddr::V4(address) => ([u64::from(u32::from(address)) << 32, 0], FLAG_IPV4),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            ([(bits >> 64) as u64, bits as u64], FLAG_IPV6)
        }
    }
}

/// The leading `length` ones over two words.
pub(super) fn prefix_mask(length: u8) -> [u64; 2] {
    let bits = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    [(bits >> 64) as u64, bits as u64]
}

impl<const W: usize> Pattern<W> {
    fn any() -> Pattern<W> {
        Pattern { mask: [0; W], value: [0; W], src_port: ALL_PORTS, dst_port: ALL_PORTS }
    }

    fn require(&mut self, word: usize, mask: u64, value: u64) {
        self.mask[word] |= mask;
        self.value[word] |= value & mask;
    }

    fn require_prefix(&mut self, word: usize, flags: (usize, u32), net: IpNet) {
        let (address, family) = address_words(net.network());
        let mask = prefix_mask(net.prefix_len());
        self.require(word, mask[0], address[0]);
        self.require(word + 1, mask[1], address[1]);
        self.require(flags.0, (FLAG_IPV4 | FLAG_IPV6) << flags.1, family << flags.1);
    }

    fn require_port(&mut self, shift: u32, range: (u16, u16)) -> (u16, u16) {
        self.require(6, FLAG_PORTS, FLAG_PORTS);
        if range.0 == range.1 {
            self.require(6, 0xffff << shift, u64::from(range.0) << shift);
            return ALL_PORTS;
        }
        range
    }

    fn require_match(&mut self, matches: &Match) {
        if let Some(mac) = matches.dst_mac {
            self.require(0, !0 << 16, mac_bits(mac.0) << 16);
        }
        if let Some(ethertype) = matches.ethertype {
            self.require(0, 0xffff, u64::from(ethertype));
        }
        if let Some(mac) = matches.src_mac {
            self.require(1, !0 << 16, mac_bits(mac.0) << 16);
        }
        if let Some(vlan) = matches.vlan {
            self.require(1, 0xffff, u64::from(vlan));
        }
        if let Some(net) = matches.src {
            self.require_prefix(2, (6, 0), net);
        }
        if let Some(net) = matches.dst {
            self.require_prefix(4, (6, 0), net);
        }
        if let Some(proto) = matches.proto {
            self.require(6, 0xff << 24, u64::from(proto) << 24);
        }
        if let Some(dscp) = matches.dscp {
            self.require(6, 0xff << 16, u64::from(dscp) << 16);
        }
        if let Some(range) = matches.src_port {
            self.src_port = self.require_port(48, range);
        }
        if let Some(range) = matches.dst_port {
            self.dst_port = self.require_port(32, range);
        }
        self.require_ip(matches);
    }

    /// Protocol and DSCP 0 are also what a key without an IP header has: an IP header is required then.
    fn require_ip(&mut self, matches: &Match) {
        let needs_ip = matches.proto.is_some() || matches.dscp.is_some();
        if needs_ip && self.mask[6] & (FLAG_IPV4 | FLAG_IPV6) == 0 {
            self.require(6, FLAG_IP, FLAG_IP);
        }
    }
}

impl Pattern<KEY_WORDS> {
    /// The pattern of an egress rule.
    pub fn egress(matches: &Match) -> Pattern<KEY_WORDS> {
        let mut pattern = Pattern::any();
        pattern.require_match(matches);
        pattern
    }
}

impl Pattern<INGRESS_WORDS> {
    /// The pattern of an ingress rule; `uplink` is the number of the port that it names.
    pub fn ingress(
        matches: &Match,
        tunnel: Opaque,
        local: Option<IpAddr>,
        remote: Option<IpNet>,
        uplink: Option<u16>,
    ) -> Pattern<INGRESS_WORDS> {
        let mut pattern = Pattern::any();
        pattern.require_match(matches);
        pattern.require(KEY_WORDS, OPAQUE_AND_TYPE, opaque_bits(tunnel));
        if let Some(uplink) = uplink {
            pattern.require(KEY_WORDS, 0xffff, u64::from(uplink) + 1);
        }
        if let Some(local) = local {
            pattern.require_prefix(KEY_WORDS + 1, (KEY_WORDS, 16), IpNet::from(local));
        }
        if let Some(remote) = remote {
            pattern.require_prefix(KEY_WORDS + 3, (KEY_WORDS, 16), remote);
        }
        pattern
    }
}

/// Opaque field and tunnel type as they stand in word 7.
#[inline(always)]
pub fn opaque_bits(tunnel: Opaque) -> u64 {
    match tunnel {
        Opaque::Vxlan(vni) => u64::from(vni) << 32 | TUNNEL_VXLAN << 24,
    }
}

/// The words that a packet out of a tunnel is looked up by: `outer` is the key of the outer packet.
#[inline(always)]
pub fn ingress_words(inner: &Key, outer: &Key, tunnel: Opaque, uplink: u16) -> [u64; INGRESS_WORDS] {
    let [i0, i1, i2, i3, i4, i5, i6] = inner.0;
    let [_, _, o2, o3, o4, o5, o6] = outer.0;
    let family = (o6 & (FLAG_IPV4 | FLAG_IPV6)) << 16;
    [i0, i1, i2, i3, i4, i5, i6, opaque_bits(tunnel) | family | (u64::from(uplink) + 1), o4, o5, o2, o3]
}

/// How a rule ranks: the higher wins. Priority, then the length of the destination prefix, then of the source prefix;
/// among equals the smaller id wins, which the table compares itself.
pub fn precedence(priority: u32, matches: &Match) -> u64 {
    let length = |net: Option<IpNet>| u64::from(net.map_or(0, |net| net.prefix_len()));
    u64::from(priority) << 16 | length(matches.dst) << 8 | length(matches.src)
}
