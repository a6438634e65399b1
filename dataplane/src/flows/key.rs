//! The exact-match key of a packet's flow: its fields, as they stand in the packet.
//!
//! A key stands for everything that the checks of admission and the rules look at, so that packets with equal keys share
//! one decision: MACs, EtherType, addresses, protocol, ports, DSCP, and where the packet came from (the port, or the
//! tunnel and its ends). What differs between packets of a flow (lengths, checksums, ECN) is not in it: [`super::shape`] checks it.
//!
//! | word | egress, and the inner packet of ingress, as they stand in the packet |
//! |---|---|
//! | 0, 1 | MACs, EtherType, IP version, DSCP |
//! | 2 | protocol; where from: [`Scope`] |
//! | 3, 4 | IPv4: addresses, ports, and the outer IPv4 source around them; IPv6: the source |
//! | tail | only where anything is IPv6: destination, ports and outer IPv4 source; outer IPv6 source |

use crate::action::PortId;
use crate::rules::key::Key;
use crate::snapshot::MAX_PORTS;
use crate::wire::{protocol, vxlan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wide::u64x2;
use zerocopy::FromZeros;

/// The low 48 bits.
const MAC_MASK: u64 = 0xffff_ffff_ffff;
/// Words of every key.
pub const HEAD_WORDS: usize = 5;

/// What a key has more where the inner or the outer packet is IPv6, in words of 32 bits: the inner destination, ports, and the
/// outer source.
pub type Tail = [u32; 9];

/// What every key has.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C, align(16))]
pub struct Head {
    /// The fields.
    pub words: [u64; HEAD_WORDS],
    /// The generation of the tables that decide about the flow's packets.
    pub generation: u64,
}

/// A flow's key, with its hash. Of IPv4 flows it is one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct FlowKey {
    /// The fields that every key has.
    pub head: Head,
    /// Hash of the fields.
    pub hash: u64,
    /// Where the flow cache may have it: scratch space of the lookup.
    pub candidate: u32,
    /// The other fields: stale where [`Head::has_tail`] does not say that they count.
    pub tail: Tail,
}

impl Head {
    /// Whether the key's tail counts.
    #[inline(always)]
    pub fn has_tail(&self) -> bool {
        self.words[SCOPE] & (INNER_IPV6 | OUTER_IPV6) != 0
    }

    /// From the same place as `newer`, but decided by other tables: the generation is of that place's tables.
    #[inline(always)]
    pub fn is_outdated_by(&self, newer: &Head) -> bool {
        let place = |head: &Head| head.words[SCOPE] << 8;
        place(self) == place(newer) && self.generation != newer.generation
    }

    /// The same fields and the same generation, compared side by side.
    #[inline(always)]
    fn is(&self, other: &Head) -> bool {
        let [[a0, a1, a2, a3, a4], [b0, b1, b2, b3, b4]] = [self.words, other.words];
        let pair = |a, b| u64x2::new([a, b]);
        let differ = pair(a0, a1) ^ pair(b0, b1)
            | pair(a2, a3) ^ pair(b2, b3)
            | pair(a4, self.generation) ^ pair(b4, other.generation);
        let [even, odd] = differ.to_array();
        even | odd == 0
    }
}

impl FlowKey {
    /// A key that no packet has.
    pub const NONE: FlowKey =
        FlowKey { head: Head { words: [0; HEAD_WORDS], generation: 0 }, hash: 0, candidate: 0, tail: [0; 9] };

    /// Whether this head and tail are of the same flow, decided about by the same tables.
    #[inline(always)]
    pub fn is(&self, head: &Head, tail: &Tail) -> bool {
        self.head.is(head) && (!self.head.has_tail() || self.tail == *tail)
    }

    /// As [`FlowKey::is`], whatever tables decided.
    #[inline(always)]
    pub fn is_flow(&self, head: &Head, tail: &Tail) -> bool {
        self.head.words == head.words && (!self.head.has_tail() || self.tail == *tail)
    }

    /// The frame is IPv6.
    #[inline(always)]
    pub fn is_ipv6(&self) -> bool {
        self.head.words[SCOPE] & INNER_IPV6 != 0
    }

    /// What stands in front of the frame in the packet that the key was written for.
    #[inline(always)]
    pub fn outer(&self) -> OuterHeaders {
        OuterHeaders(self.head.words[SCOPE] & (INGRESS | OUTER_IPV6))
    }
}

/// What stands in front of a frame: nothing, or VXLAN over one IP version, without tags or options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeaders(u64);

impl OuterHeaders {
    /// Their bytes.
    #[inline(always)]
    pub fn len(self) -> usize {
        match self.0 {
            0 => 0,
            INGRESS => vxlan::V4_BYTES,
            _ => vxlan::V6_BYTES,
        }
    }

    /// Nothing.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The tunnel is over IPv6.
    #[inline(always)]
    pub fn is_ipv6(self) -> bool {
        self.0 & OUTER_IPV6 != 0
    }
}

/// Where a packet came from: the lower bits of word 2, and the outer source.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    word: u64,
    source_v4: u32,
    source_v6: [u64; 2],
    generation: u32,
}

/// The word that a scope is in, below the protocol. Its lowest bits tell the port.
const SCOPE: usize = 2;
const PORT: u64 = INGRESS - 1;
const _: () = assert!(PORT as usize >= MAX_PORTS - 1);
/// Bit of a scope: ingress.
pub(super) const INGRESS: u64 = 1 << 13;
/// Bit of a scope: the outer packet is IPv6.
pub(super) const OUTER_IPV6: u64 = 1 << 14;
/// Bit of a scope: the inner packet, or the only one, is IPv6.
pub(super) const INNER_IPV6: u64 = 1 << 15;

impl Scope {
    /// A tenant's port, whose tables have that generation.
    #[inline(always)]
    pub fn egress(port: u16, generation: u32) -> Scope {
        Scope { word: u64::from(port) & PORT, source_v4: 0, source_v6: [0; 2], generation }
    }

    /// A VXLAN of an uplink: `local` tells which of its addresses the outer packet was sent to. Network and outer source are
    /// as they stand in the packet, read from the little end.
    #[inline(always)]
    pub fn vxlan_v4(uplink: u16, vni: u32, local: u16, source: u32, generation: u32) -> Scope {
        let word = INGRESS | scope_bits(uplink, vni, local);
        Scope { word, source_v4: source, source_v6: [0; 2], generation }
    }

    /// As [`Scope::vxlan_v4`], over IPv6; `source` is in two words.
    #[inline(always)]
    pub fn vxlan_v6(uplink: u16, vni: u32, local: u16, source: [u64; 2], generation: u32) -> Scope {
        let word = INGRESS | OUTER_IPV6 | scope_bits(uplink, vni, local);
        Scope { word, source_v4: 0, source_v6: source, generation }
    }
}

#[inline(always)]
fn scope_bits(uplink: u16, vni: u32, local: u16) -> u64 {
    u64::from(uplink) & PORT | u64::from(vni & 0x00ff_ffff) << 16 | u64::from(local) << 40
}

/// A secret of which hashes are made: nobody outside should know it.
#[derive(Clone, Copy, Debug)]
pub struct Seed([u64; 4]);

impl From<u64> for Seed {
    fn from(seed: u64) -> Seed {
        Seed([seed, seed.rotate_left(16), seed.rotate_left(32), seed.rotate_left(48)])
    }
}

impl FlowKey {
    /// Writes the fields: all that a plain frame has, `v6` those that only IPv6 has.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        words: [u64; HEAD_WORDS],
        v6: Option<[u64; 3]>,
        scope: Scope,
        Seed([a, b, c, d]): Seed,
    ) {
        let [w0, w1, w2, mut w3, mut w4] = words;
        let source = u64::from(scope.source_v4);
        let w2 = w2 | scope.word | if v6.is_some() { INNER_IPV6 } else { 0 };
        if v6.is_none() {
            w3 |= source & 0xffff;
            w4 |= source >> 16 << 48;
        }
        let mut hash = fold(w0 ^ a, w1 ^ b) ^ fold(w3 ^ c, w4 ^ d);
        let mut last = GOLDEN;
        self.head = Head { words: [w0, w1, w2, w3, w4], generation: u64::from(scope.generation) };
        if v6.is_some() || scope.word & OUTER_IPV6 != 0 {
            let [w5, w6, ports] = v6.unwrap_or_default();
            let [s0, s1] = match v6 {
                Some(_) if scope.word & OUTER_IPV6 == 0 => [source, 0],
                _ => scope.source_v6,
            };
            if v6.is_some() {
                hash ^= fold(w5 ^ b, w6 ^ c);
            }
            hash = fold(hash ^ s0, s1 ^ d);
            last ^= ports;
            let low = |word: u64| word as u32;
            let high = |word: u64| (word >> 32) as u32;
            self.tail =
                [low(w5), high(w5), low(w6), high(w6), low(ports), low(s0), high(s0), low(s1), high(s1)];
        }
        // Flows of one subnet differ in a few bits of one factor, which reach only some bits of a product: so there is one more.
        // By now nobody outside knows the hash, and cannot make up in one field for what differs in another.
        self.hash = fold(hash ^ w2, last);
    }

    /// What rules look at, of the frame that the key was written for.
    #[inline]
    pub fn fields(&self) -> Key {
        fields(&self.head.words, &self.tail)
    }
}

/// As [`FlowKey::fields`], of a key's words.
#[inline]
pub(super) fn fields(head: &[u64; HEAD_WORDS], tail: &Tail) -> Key {
    let [w0, w1, w2, w3, w4] = *head;
    let (macs, rest) = (w0.swap_bytes(), w1.swap_bytes());
    let mut key = Key::ethernet(macs >> 16, macs << 32 & MAC_MASK | rest >> 32, (rest >> 16) as u16, 0);
    let (class, protocol) = (rest as u16, (w2 >> 56) as u8);
    let ports = if w2 & INNER_IPV6 == 0 {
        // Addresses and ports stand from the third byte of word 3 to the sixth of word 4.
        let src = (w3 >> 16) as u32;
        let dst = (w3 >> 48) as u32 | (w4 as u32) << 16;
        key.set_ipv4(src.swap_bytes(), dst.swap_bytes(), protocol, class as u8 >> 2);
        (w4 >> 16) as u32
    } else {
        let [d0, d1, d2, d3, ports, ..] = *tail;
        key.set_ipv6(wide(w3, w4), wide(word(d0, d1), word(d2, d3)), protocol, (class >> 6) as u8 & 0x3f);
        ports
    };
    if matches!(protocol, protocol::TCP | protocol::UDP) {
        key.set_ports((ports as u16).swap_bytes(), ((ports >> 16) as u16).swap_bytes());
    }
    key
}

/// The port that received a flow's packets.
#[inline]
pub(super) fn port(head: &[u64; HEAD_WORDS]) -> PortId {
    PortId((head[SCOPE] & PORT) as u16)
}

/// The VXLAN that a flow came through, and its outer source.
#[inline]
pub(super) fn tunnel(head: &[u64; HEAD_WORDS], tail: &Tail) -> Option<(u32, IpAddr)> {
    let [_, _, scope, w3, w4] = *head;
    let [.., s0, s1, s2, s3] = *tail;
    if scope & INGRESS == 0 {
        return None;
    }
    let v4 = match scope & INNER_IPV6 {
        0 => w3 as u32 & 0xffff | ((w4 >> 48) as u32) << 16,
        _ => s0,
    };
    let source = match scope & OUTER_IPV6 {
        0 => Ipv4Addr::from(v4.swap_bytes()).into(),
        _ => Ipv6Addr::from(wide(word(s0, s1), word(s2, s3))).into(),
    };
    Some((((scope >> 16) as u32 & 0x00ff_ffff).swap_bytes() >> 8, source))
}

#[inline(always)]
fn word(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// An IPv6 address of the two words that it is in a key.
#[inline(always)]
fn wide(first: u64, second: u64) -> u128 {
    u128::from(first.swap_bytes()) << 64 | u128::from(second.swap_bytes())
}

/// 2^64 divided by the golden ratio: odd, and without a pattern.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Both halves of a product in one word. A factor that is zero hides the other one: the callers mix a secret into each.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 100,000 flows from one host to a subnet find 16,384 sets of 16 full, at random some five.
    fn overflow(seed: u64, ingress: bool) -> usize {
        let mut sets = vec![0usize; 16_384];
        let mut key = FlowKey::NONE;
        for flow in 0..100_000u64 {
            let (dst, port) = (flow / 4, flow % 4);
            let words = [
                0x0102_0304_0506_0708,
                0x0045_0008_0a0b_0c0d,
                17 << 56,
                0x0b0a_0100_010a_0000 | (dst >> 16) << 56,
                (dst & 0xff) << 8 | dst >> 8 & 0xff | port << 24,
            ];
            let scope = match ingress {
                false => Scope::egress(3, 1),
                true => Scope::vxlan_v4(3, flow as u32 % 7, 1, 0x0100_000a, 1),
            };
            key.write(words, None, scope, seed.into());
            sets[key.hash as usize % 16_384] += 1;
        }
        sets.iter().map(|flows| flows.saturating_sub(16)).sum()
    }

    #[test]
    fn no_change_of_one_field_makes_up_for_that_of_another() {
        let hash = |vni: u32, ports: u64, v6: bool, source: [u64; 2]| {
            let (mut key, words) = (FlowKey::NONE, [1, 2, 17 << 56, 3, if v6 { 4 } else { 4 | ports << 16 }]);
            let scope = match v6 {
                false => Scope::vxlan_v4(1, vni, 1, source[0] as u32, 1),
                true => Scope::vxlan_v6(1, vni, 1, source, 1),
            };
            key.write(words, v6.then_some([5, 6, ports]), scope, 77.into());
            key.hash
        };
        for flip in (0..24).map(|bit| 1u32 << bit) {
            let flipped = u64::from(flip);
            let ports = 0x1f90_1234;
            for v6 in [false, true] {
                let one = hash(100, ports, v6, [0, 9]);
                assert_ne!(one, hash(100 ^ flip, ports ^ flipped, v6, [0, 9]), "network and ports");
                assert_ne!(one, hash(100, ports ^ flipped, v6, [flipped, 9]), "ports and outer source");
                assert_ne!(one, hash(100, ports ^ flipped, v6, [flipped << 32, 9]), "ports and outer source");
            }
        }
    }

    #[test]
    fn flows_of_a_subnet_spread_over_the_cache_whatever_the_seed() {
        for seed in [1, 1 << 40, u64::MAX, 0x1234_5678_9abc, 0x9e37_79b9_7f4a_7c15, 0xffff_0000_ffff_0000] {
            for ingress in [false, true] {
                let overflow = overflow(seed, ingress);
                assert!(overflow < 100, "seed {seed:#x}: {overflow} flows beyond their sets");
            }
        }
    }
}
