//! A rule as words of a shard: its packed value and mask, its rank, and what a lookup hands out.
//!
//! | words | what |
//! |---|---|
//! | k | the packed value |
//! | k | the packed mask |
//! | 0 or 1 | the ranges of ports, in tuples that have some |
//! | 1 | the precedence |
//! | 1 | slot (32), kind of action and flags (32) |
//! | 2 | the action's fields |
//!
//! Plain words instead of a struct: `k` differs by tuple, a copy of a shard is one `memcpy`, and a hit touches one or
//! two cache lines. Ids are only needed among equals and stand behind the entries, eight bytes a word.

use super::packing::{Packing, hash};
use super::pattern::Pattern;
use super::table::TableRule;
use crate::action::{Action, PortId, TunnelRef};
use crate::counters::DropReason;
use std::cmp::Ordering;

/// What a lookup found: all that the packet path needs to know of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Slot of the rule's counters.
    pub slot: u32,
    /// What is done.
    pub action: Action,
    /// The rule decides even about what is trapped otherwise.
    pub names_layer2: bool,
}

/// Words behind value, mask and ranges: precedence, slot and flags, two of the action.
const TAIL_WORDS: usize = 4;

const KIND: u64 = 3;
const FORWARD: u64 = 0;
const DELIVER: u64 = 1;
const TRAP: u64 = 2;
const DROP: u64 = 3;
/// An inner destination MAC, or a tag to pop.
const OPTION: u64 = 4;
const NAMES_LAYER2: u64 = 8;

impl Hit {
    fn encode(&self) -> [u64; 3] {
        let (kind, fields) = match self.action {
            Action::Forward { tunnel, inner_dst_mac, push_vlan } => {
                let [a, b, c, d, e, f] = inner_dst_mac.unwrap_or_default();
                let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
                let option = if inner_dst_mac.is_some() { OPTION } else { 0 };
                let tunnel = u64::from(tunnel.slot) << 32 | u64::from(tunnel.generation);
                (FORWARD | option, [tunnel, mac << 16 | u64::from(push_vlan)])
            }
            Action::Deliver { port, pop_vlan, push_vlan } => {
                let option = if pop_vlan { OPTION } else { 0 };
                (DELIVER | option, [u64::from(port.0), u64::from(push_vlan)])
            }
            Action::Trap => (TRAP, [0, 0]),
            Action::Drop(reason) => (DROP, [reason as u64, 0]),
        };
        let layer2 = if self.names_layer2 { NAMES_LAYER2 } else { 0 };
        [u64::from(self.slot) << 32 | kind | layer2, fields[0], fields[1]]
    }

    #[inline(always)]
    fn decode(head: u64, fields: [u64; 2]) -> Hit {
        let option = head & OPTION != 0;
        let action = match head & KIND {
            FORWARD => {
                let [a, b, c, d, e, f, ..] = fields[1].to_be_bytes();
                let tunnel = TunnelRef { slot: (fields[0] >> 32) as u32, generation: fields[0] as u32 };
                let inner_dst_mac = option.then_some([a, b, c, d, e, f]);
                Action::Forward { tunnel, inner_dst_mac, push_vlan: fields[1] as u16 }
            }
            DELIVER => {
                let (port, push_vlan) = (PortId(fields[0] as u16), fields[1] as u16);
                Action::Deliver { port, pop_vlan: option, push_vlan }
            }
            TRAP => Action::Trap,
            _ => Action::Drop(*DropReason::ALL.get(fields[0] as usize).unwrap_or(&DropReason::RuleDrop)),
        };
        Hit { slot: (head >> 32) as u32, action, names_layer2: head & NAMES_LAYER2 != 0 }
    }
}

/// Ports of a packet within the ranges of a rule, all four in one word.
#[inline(always)]
pub fn ports_within(ranges: u64, word6: u64) -> bool {
    let (src, dst) = ((word6 >> 48) as u16, (word6 >> 32) as u16);
    let [src_first, src_last, dst_first, dst_last] =
        [(ranges >> 48) as u16, (ranges >> 32) as u16, (ranges >> 16) as u16, ranges as u16];
    (src_first <= src) & (src <= src_last) & (dst_first <= dst) & (dst <= dst_last)
}

fn ranges_of<const W: usize>(pattern: &Pattern<W>) -> u64 {
    let word = |range: (u16, u16)| u64::from(range.0) << 16 | u64::from(range.1);
    word(pattern.src_port) << 32 | word(pattern.dst_port)
}

/// Where the fields of a tuple's entries stand, and how keys are hashed.
#[derive(Clone, Debug)]
pub struct Layout<const W: usize> {
    packing: Packing<W>,
    /// What of it is hashed.
    hashed: Packing<W>,
    /// The packed bits that all rules of the tuple look at.
    common: [u64; W],
    ranged: bool,
}

/// A key as a tuple sees it.
#[derive(Clone, Copy)]
pub struct PackedKey<const W: usize> {
    /// The packed words.
    pub words: [u64; W],
    /// The key's word 6, for ranges of ports.
    pub ports: u64,
    /// The hash of the bits that all rules of the tuple look at.
    pub hash: u64,
}

impl<const W: usize> Layout<W> {
    /// A layout for rules that look at least at `common`, at most at `allowed`, and have ranges of ports or not.
    pub fn new(common: &[u64; W], allowed: &[u64; W], ranged: bool) -> Layout<W> {
        let packing = Packing::new(allowed);
        let hashed = packing.part(common);
        let common = packing.pack(common);
        Layout { packing, hashed, common, ranged }
    }

    /// Words of an entry.
    #[inline(always)]
    pub fn stride(&self) -> usize {
        self.tail() + TAIL_WORDS
    }

    #[inline(always)]
    fn tail(&self) -> usize {
        2 * self.packing.words() + usize::from(self.ranged)
    }

    /// Packs a key of this hash.
    #[inline(always)]
    pub fn key(&self, key: &[u64; W], hash: u64) -> PackedKey<W> {
        PackedKey { words: self.packing.pack(key), ports: key[6], hash }
    }

    /// The hash of a key, without packing all of it.
    #[inline(always)]
    pub fn hash_of_key(&self, key: &[u64; W]) -> u64 {
        self.hash(&self.hashed.pack(key))
    }

    #[inline(always)]
    fn hash(&self, packed: &[u64]) -> u64 {
        let k = self.packing.words();
        hash(&packed[..k], &self.common[..k])
    }

    /// The hash of a rule's value: that of every key that it matches.
    pub fn hash_of_rule(&self, pattern: &Pattern<W>) -> u64 {
        self.hash_of_key(&pattern.value)
    }

    /// The hash of an entry.
    pub fn hash_of_entry(&self, entry: &[u64]) -> u64 {
        self.hash(entry)
    }

    /// Writes a rule as an entry.
    pub fn encode(&self, rule: &TableRule<W>, out: &mut Vec<u64>) {
        self.encode_pattern(&rule.pattern, out);
        out.push(rule.precedence);
        let TableRule { slot, action, names_layer2, .. } = *rule;
        out.extend(Hit { slot, action, names_layer2 }.encode());
    }

    /// Writes the part of an entry that says how the rule ranks and what is done.
    pub fn encode_tail(&self, rule: &TableRule<W>, entry: &mut [u64]) {
        let TableRule { slot, action, names_layer2, precedence, .. } = *rule;
        let [head, a, b] = Hit { slot, action, names_layer2 }.encode();
        entry[self.tail()..].copy_from_slice(&[precedence, head, a, b]);
    }

    /// Writes the part of an entry that says which packets match.
    pub fn encode_pattern(&self, pattern: &Pattern<W>, out: &mut Vec<u64>) {
        let k = self.packing.words();
        out.extend_from_slice(&self.packing.pack(&pattern.value)[..k]);
        out.extend_from_slice(&self.packing.pack(&pattern.mask)[..k]);
        out.extend(self.ranged.then(|| ranges_of(pattern)));
    }

    /// Whether an entry matches a packed key.
    #[inline(always)]
    pub fn matches(&self, entry: &[u64], key: &PackedKey<W>) -> bool {
        let k = self.packing.words();
        let (value, mask) = entry[..2 * k].split_at(k);
        let differ =
            (value.iter().zip(mask).zip(&key.words)).fold(0, |differ, ((v, m), w)| differ | (v ^ w) & m);
        differ == 0 && (!self.ranged || ports_within(entry[2 * k], key.ports))
    }

    /// Whether an entry has this pattern, written by [`Layout::encode_pattern`].
    pub fn is_pattern(&self, entry: &[u64], pattern: &[u64]) -> bool {
        entry[..self.tail()] == *pattern
    }

    /// The precedence of an entry.
    #[inline(always)]
    pub fn precedence(&self, entry: &[u64]) -> u64 {
        entry[self.tail()]
    }

    /// What an entry says.
    #[inline(always)]
    pub fn hit(&self, entry: &[u64]) -> Hit {
        let tail = self.tail();
        Hit::decode(entry[tail + 1], [entry[tail + 2], entry[tail + 3]])
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        self.packing.memory_bytes() + self.hashed.memory_bytes()
    }
}

/// An id as words: bytes from high to low, zeros behind the last one, so that words compare as strings do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<'a> {
    /// The words.
    pub words: &'a [u64],
    /// Zero bytes in the last word; tells `"a"` from `"a\0"`.
    pub padding: u32,
}

impl Id<'_> {
    /// The first 16 bytes.
    #[inline(always)]
    pub fn head(&self) -> [u64; 2] {
        [self.words.first().copied().unwrap_or(0), self.words.get(1).copied().unwrap_or(0)]
    }

    /// The words of a string, and how many zero bytes follow it.
    pub fn encode(text: &str, out: &mut Vec<u64>) -> u32 {
        for chunk in text.as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            out.push(u64::from_be_bytes(bytes));
        }
        (text.len().next_multiple_of(8) - text.len()) as u32
    }
}

impl Ord for Id<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.words.cmp(other.words).then(other.padding.cmp(&self.padding))
    }
}

impl PartialOrd for Id<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (any::<[u32; 2]>(), any::<Option<[u8; 6]>>(), any::<u16>()).prop_map(
                |(t, inner_dst_mac, push_vlan)| {
                    let tunnel = TunnelRef { slot: t[0], generation: t[1] };
                    Action::Forward { tunnel, inner_dst_mac, push_vlan }
                }
            ),
            (any::<[u16; 2]>(), any::<bool>()).prop_map(|(n, pop_vlan)| Action::Deliver {
                port: PortId(n[0]),
                pop_vlan,
                push_vlan: n[1]
            }),
            Just(Action::Trap),
            proptest::sample::select(DropReason::ALL).prop_map(Action::Drop),
        ]
    }

    proptest! {
        #[test]
        fn hits_come_back_as_they_went_in(slot in any::<u32>(), action in action(), names_layer2 in any::<bool>()) {
            let hit = Hit { slot, action, names_layer2 };
            let [head, a, b] = hit.encode();
            prop_assert_eq!(Hit::decode(head, [a, b]), hit);
        }

        #[test]
        fn ids_rank_as_strings_do(a in "[a\0-]{0,18}", b in "[a\0-]{0,18}") {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            let (pad_a, pad_b) = (Id::encode(&a, &mut left), Id::encode(&b, &mut right));
            let (left, right) = (Id { words: &left, padding: pad_a }, Id { words: &right, padding: pad_b });
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
        }
    }
}
