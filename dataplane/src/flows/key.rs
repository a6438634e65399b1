//! The exact-match key of a packet's flow: its fields, as they stand in the packet.
//!
//! A key stands for everything that the checks of admission and the rules look at, so that packets with equal keys share
//! one decision: MACs, EtherType, addresses, protocol, ports, DSCP, and where the packet came from (the port, or the
//! tunnel and its ends). What differs between packets of a flow (lengths, checksums, ECN) is not in it: [`super::shape`] checks it.
//!
//! | word | egress, and the inner packet of ingress |
//! |---|---|
//! | 0, 1 | where from: [`Scope`] |
//! | 2, 3 | MACs, EtherType, IP version, DSCP, as they stand in the packet |
//! | 4, 5 | IPv4: protocol, addresses, ports; IPv6: the source |
//! | tail | only where anything is IPv6: the destination, ports and next header, the outer source's second half |

use crate::rules::key::Key;
use crate::wire::protocol;
use wide::u64x2;

/// The low 48 bits.
const MAC_MASK: u64 = 0xffff_ffff_ffff;
/// Words of every key.
pub const HEAD_WORDS: usize = 6;
/// Words that a key has more where the inner or the outer packet is IPv6.
pub const TAIL_WORDS: usize = 4;

/// A flow's key, with its hash. Of IPv4 flows it is one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct FlowKey {
    /// The fields that every key has.
    pub head: [u64; HEAD_WORDS],
    /// Their hash, and that of the tail where there is one.
    pub hash: u64,
    /// Where the flow cache may have it: scratch space of the lookup.
    pub candidate: u32,
    /// The generation of the tables that decide about its packets.
    pub generation: u32,
    /// The other fields: stale where [`FlowKey::has_tail`] does not say that they count.
    pub tail: [u64; TAIL_WORDS],
}

impl FlowKey {
    /// A key that no packet has.
    pub const NONE: FlowKey =
        FlowKey { head: [0; HEAD_WORDS], hash: 0, candidate: 0, generation: 0, tail: [0; TAIL_WORDS] };

    /// Whether the tail counts.
    #[inline(always)]
    pub fn has_tail(&self) -> bool {
        self.head[0] & (INNER_IPV6 | OUTER_IPV6) != 0
    }

    /// Whether these are the key's words. Those of the head are compared side by side.
    #[inline(always)]
    pub fn is(&self, head: &[u64; HEAD_WORDS], tail: &[u64; TAIL_WORDS]) -> bool {
        let [a0, a1, a2, a3, a4, a5] = self.head;
        let [b0, b1, b2, b3, b4, b5] = *head;
        let pair = |a, b| u64x2::new([a, b]);
        let differ = pair(a0, a1) ^ pair(b0, b1) | pair(a2, a3) ^ pair(b2, b3) | pair(a4, a5) ^ pair(b4, b5);
        let [even, odd] = differ.to_array();
        even | odd == 0 && (!self.has_tail() || self.tail == *tail)
    }
}

/// Where a packet came from: words 0 and 1, and the last one of the tail.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    word: u64,
    source: [u64; 2],
    generation: u32,
}

/// Bit of word 0: ingress.
pub(super) const INGRESS: u64 = 1 << 63;
/// Bit of word 0: the outer packet is IPv6.
pub(super) const OUTER_IPV6: u64 = 1 << 62;
/// Bit of word 0: the inner packet, or the only one, is IPv6.
pub(super) const INNER_IPV6: u64 = 1 << 61;

impl Scope {
    /// A tenant's port, whose tables have that generation.
    #[inline(always)]
    pub fn egress(port: u16, generation: u32) -> Scope {
        Scope { word: u64::from(port), source: [0; 2], generation }
    }

    /// A VXLAN of an uplink: `local` tells which of its addresses the outer packet was sent to. Network and outer source are
    /// as they stand in the packet, read from the little end.
    #[inline(always)]
    pub fn vxlan_v4(uplink: u16, vni: u32, local: u16, source: u32, generation: u32) -> Scope {
        let word = INGRESS | scope_bits(uplink, vni, local);
        Scope { word, source: [u64::from(source), 0], generation }
    }

    /// As [`Scope::vxlan_v4`], over IPv6; `source` is in two words.
    #[inline(always)]
    pub fn vxlan_v6(uplink: u16, vni: u32, local: u16, source: [u64; 2], generation: u32) -> Scope {
        Scope { word: INGRESS | OUTER_IPV6 | scope_bits(uplink, vni, local), source, generation }
    }
}

#[inline(always)]
fn scope_bits(uplink: u16, vni: u32, local: u16) -> u64 {
    u64::from(uplink) | u64::from(vni & 0x00ff_ffff) << 16 | u64::from(local) << 40
}

impl FlowKey {
    /// Writes the fields, `v6` those that only IPv6 has.
    #[inline(always)]
    pub(super) fn write(&mut self, words: [u64; 4], v6: Option<[u64; 3]>, scope: Scope, seed: u64) {
        let ([w0, w1, w2, w3], [s0, s1]) = (words, scope.source);
        let other = seed.rotate_left(32);
        let mut hash = fold(w0 ^ seed, w1 ^ scope.word.rotate_left(24) ^ other)
            ^ fold(w2 ^ s0.rotate_left(16) ^ other, w3 ^ seed);
        let family = if v6.is_some() { INNER_IPV6 } else { 0 };
        self.head = [scope.word | family, s0, w0, w1, w2, w3];
        if v6.is_some() || scope.word & OUTER_IPV6 != 0 {
            let [w4, w5, w6] = v6.unwrap_or_default();
            if v6.is_some() {
                hash ^= fold(w4 ^ seed, w5 ^ w6.rotate_left(8) ^ other);
            }
            // The second half of an outer IPv6 source; the first one is the network's.
            if s1 != 0 {
                hash = fold(hash, s1 ^ seed);
            }
            self.tail = [w4, w5, w6, s1];
        }
        self.hash = hash;
        self.generation = scope.generation;
    }

    /// What rules look at, of the frame that the key was written for.
    #[inline]
    pub fn fields(&self) -> Key {
        fields(&self.head, &self.tail)
    }
}

/// As [`FlowKey::fields`], of a key's words.
#[inline]
pub(super) fn fields(head: &[u64; HEAD_WORDS], tail: &[u64; TAIL_WORDS]) -> Key {
    let [scope, _, w0, w1, w2, w3] = *head;
    let (macs, rest) = (w0.swap_bytes(), w1.swap_bytes());
    let mut key = Key::ethernet(macs >> 16, macs << 32 & MAC_MASK | rest >> 32, (rest >> 16) as u16, 0);
    let class = rest as u16;
    let (protocol, ports) = if scope & INNER_IPV6 == 0 {
        let protocol = (w2 >> 8) as u8;
        key.set_ipv4(((w2 >> 32) as u32).swap_bytes(), (w3 as u32).swap_bytes(), protocol, class as u8 >> 2);
        (protocol, (w3 >> 32) as u32)
    } else {
        let [w4, w5, w6, _] = *tail;
        let protocol = (w6 >> 32) as u8;
        key.set_ipv6(wide(w2, w3), wide(w4, w5), protocol, (class >> 6) as u8 & 0x3f);
        (protocol, w6 as u32)
    };
    if matches!(protocol, protocol::TCP | protocol::UDP) {
        key.set_ports((ports as u16).swap_bytes(), ((ports >> 16) as u16).swap_bytes());
    }
    key
}

/// An IPv6 address of the two words that it is in a key.
#[inline(always)]
pub(super) fn wide(first: u64, second: u64) -> u128 {
    u128::from(first.swap_bytes()) << 64 | u128::from(second.swap_bytes())
}

/// Both halves of a product in one word. A factor that is zero hides the other one: the callers mix a secret into each.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}
