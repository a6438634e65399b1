//! The flow cache of one worker: bounded, exact-match, set-associative.
//!
//! A set is eight entries and, apart from them, eight tags of 16 bits: one line tells which entry to look at, so that a
//! lookup costs three lines however large the cache is, and a burst fetches all of them side by side (the caller first
//! calls [`FlowCache::prefetch_set`] for every packet, then [`FlowCache::candidate`], then [`FlowCache::hit`]).
//!
//! An entry carries the generation of the tables that it was decided by, and is as good as none when they have moved on: a
//! rule change never walks the cache. A new flow takes the place of one that is out of date; else of the one that was
//! used longest ago among those that brought only a single packet; else of the one that was used longest ago, but only
//! once that is [`REST`] ago. So a stream of packets that each begin a flow fights for places with itself: flows
//! that go on keep theirs. Nobody outside can aim at a set, since the hash is seeded by the host.

use crate::action::PackedAction;
use crate::flows::key::{FLOW_WORDS, FlowKey};
use forebay_pipeline::prefetch::{prefetch, prefetch_two_lines};
use forebay_pipeline::tsc;
use forebay_sriov::HugeSlice;
use std::io;
use std::time::Duration;
use wide::u16x8;
use zerocopy::FromZeros;

/// Entries of a set.
const WAYS: usize = 8;
/// A flow that goes on is not put out for a new one before it has rested so long: a keep-alive or two of a
/// request-response protocol, and short enough that a cache full of dead flows serves new ones within a second.
const REST: Duration = Duration::from_millis(500);
/// Time-stamp cycles of a tick: 2^20 cycles are some 0.3 to 0.5 ms, and 2^32 ticks some 20 days.
const TICK_BITS: u32 = 20;

/// Tags of a set; 0 is a free place.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(16))]
struct Set {
    tags: [u16; WAYS],
}

/// What was decided about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is done.
    pub action: PackedAction,
    /// Slot of the rule's counters; [`NO_SLOT`] where no rule decided.
    pub slot: u32,
    /// Hash of the flow, for the outer source port.
    pub flow_hash: u16,
    /// Hash of the flow without its ports, for the choice of a worker.
    pub affinity: u16,
}

/// No rule decided.
pub const NO_SLOT: u32 = u32::MAX;

/// A flow: two cache lines, the first of which is key only.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(128))]
struct Entry {
    words: [u64; FLOW_WORDS],
    generation: u32,
    slot: u32,
    /// Tick of the newest packet.
    used: u32,
    flow_hash: u16,
    affinity: u16,
    action: PackedAction,
    packets: u32,
    bytes: u64,
}

const _: () = assert!(size_of::<Entry>() == 128);

/// The flow cache of one worker.
pub struct FlowCache {
    sets: HugeSlice<Set>,
    entries: HugeSlice<Entry>,
    set_mask: usize,
    now: u32,
    rest: u32,
}

/// No entry has the tag.
const NO_CANDIDATE: u32 = u32::MAX;

/// The tag of a hash: its upper bits, never 0. The lower bits choose the set.
#[inline(always)]
fn tag(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

impl Set {
    /// The places whose tag is `tag`, a bit each.
    #[inline(always)]
    fn matching(&self, tag: u16) -> u32 {
        u16x8::from(self.tags).simd_eq(u16x8::splat(tag)).to_bitmask()
    }
}

impl FlowCache {
    /// A cache for `entries` flows, rounded up to a power of two of at least 64. Memory (136 bytes a flow) is taken from
    /// the system as flows come.
    ///
    /// # Errors
    /// The system has no address space of that size to give.
    pub fn new(entries: usize) -> io::Result<FlowCache> {
        let sets = (entries / WAYS).max(8).next_power_of_two();
        let rest = tsc::from_duration(REST) >> TICK_BITS;
        Ok(FlowCache {
            sets: HugeSlice::new(sets)?,
            entries: HugeSlice::new(sets * WAYS)?,
            set_mask: sets - 1,
            now: 0,
            rest: rest.max(1) as u32,
        })
    }

    /// The most flows that it holds.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Takes note of the time: once per burst.
    #[inline(always)]
    pub fn tick(&mut self, now: u64) {
        self.now = (now >> TICK_BITS) as u32;
    }

    #[inline(always)]
    fn set_of(&self, hash: u64) -> usize {
        hash as usize & self.set_mask
    }

    /// Asks for the tags that [`FlowCache::candidate`] will read.
    #[inline(always)]
    pub fn prefetch_set(&self, key: &FlowKey) {
        if let Some(set) = self.sets.get(self.set_of(key.hash)) {
            prefetch(set);
        }
    }

    /// Where the flow may stand; asks for the entry, which [`FlowCache::hit`] will read.
    #[inline(always)]
    pub fn candidate(&self, key: &FlowKey) -> u32 {
        let set = self.set_of(key.hash);
        let Some(tags) = self.sets.get(set) else { return NO_CANDIDATE };
        let matching = tags.matching(tag(key.hash));
        if matching == 0 {
            return NO_CANDIDATE;
        }
        let place = set * WAYS + matching.trailing_zeros() as usize;
        if let Some(entry) = self.entries.get(place) {
            prefetch_two_lines(entry);
        }
        place as u32
    }

    /// The flow's decision, if it stands at its candidate (or, with the same tag, elsewhere in the set) and was made by the
    /// tables of that generation. Counts a packet of `bytes` bytes.
    #[inline(always)]
    pub fn hit(&mut self, key: &FlowKey, generation: u32, bytes: u32) -> Option<Decision> {
        let now = self.now;
        let mut entry = self.entries.get_mut(key.candidate as usize)?;
        if !key.is(&entry.words) {
            let place = self.find_elsewhere(key)?;
            entry = self.entries.get_mut(place)?;
        }
        if entry.generation != generation {
            return None;
        }
        entry.used = now;
        entry.packets = entry.packets.wrapping_add(1);
        entry.bytes += u64::from(bytes);
        Some(Decision {
            action: entry.action,
            slot: entry.slot,
            flow_hash: entry.flow_hash,
            affinity: entry.affinity,
        })
    }

    /// Two flows of one set have the same tag: once in some ten thousand lookups of a full cache.
    #[cold]
    #[inline(never)]
    fn find_elsewhere(&self, key: &FlowKey) -> Option<usize> {
        self.find(self.set_of(key.hash), key)
    }

    fn find(&self, set: usize, key: &FlowKey) -> Option<usize> {
        let mut matching = self.sets.get(set)?.matching(tag(key.hash));
        while matching != 0 {
            let place = set * WAYS + matching.trailing_zeros() as usize;
            if self.entries.get(place).is_some_and(|entry| key.is(&entry.words)) {
                return Some(place);
            }
            matching &= matching - 1;
        }
        None
    }

    /// Remembers what was decided about a flow, whose first packet had `bytes` bytes. False where every place of its set
    /// belongs to a flow that goes on.
    pub fn learn(&mut self, key: &FlowKey, generation: u32, decision: Decision, bytes: u32) -> bool {
        let set = self.set_of(key.hash);
        let place = self.find(set, key).or_else(|| self.place_for_new(set, generation, key.words[7]));
        let Some(place) = place else { return false };
        let now = self.now;
        let (Some(entry), Some(tags)) = (self.entries.get_mut(place), self.sets.get_mut(set)) else {
            return false;
        };
        // The same flow, decided anew, goes on counting.
        let (packets, total) = if key.is(&entry.words) { (entry.packets, entry.bytes) } else { (0, 0) };
        let Decision { action, slot, flow_hash, affinity } = decision;
        *entry = Entry {
            words: key.words,
            generation,
            slot,
            used: now,
            flow_hash,
            affinity,
            action,
            packets: packets.wrapping_add(1),
            bytes: total + u64::from(bytes),
        };
        tags.tags[place % WAYS] = tag(key.hash);
        true
    }

    /// The place in a set that a new flow may take. `generation` is that of the new flow's tables: it tells only of
    /// entries from the same `scope` whether they are out of date.
    fn place_for_new(&self, set: usize, generation: u32, scope: u64) -> Option<usize> {
        let tags = self.sets.get(set)?.tags;
        let mut best: Option<(u32, usize)> = None;
        for (way, tag) in tags.into_iter().enumerate() {
            let place = set * WAYS + way;
            let entry = self.entries.get(place)?;
            if tag == 0 || (entry.words[7] == scope && entry.generation != generation) {
                return Some(place);
            }
            let age = self.now.wrapping_sub(entry.used);
            let goes_on = entry.packets > 1;
            if goes_on && age < self.rest {
                continue;
            }
            // Single packets go before flows that rest; among each, the one that was used longest ago.
            let rank = if goes_on { age.min(u32::MAX / 2) } else { (u32::MAX / 2).saturating_add(age) };
            if best.is_none_or(|(most, _)| rank > most) {
                best = Some((rank, place));
            }
        }
        best.map(|(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Action, PortId};

    /// A key of a flow with this number; flows of one `set` (modulo the cache's sets) share it.
    fn key(number: u64, set: u64) -> FlowKey {
        let mut key = FlowKey::NONE;
        key.words[0] = number;
        key.words[7] = 5;
        key.hash = number << 48 | set;
        key
    }

    fn decision(port: u16) -> Decision {
        let action = Action::Deliver { port: PortId(port), pop_vlan: false, push_vlan: 0 };
        Decision { action: action.into(), slot: u32::from(port), flow_hash: 1, affinity: 2 }
    }

    fn find(cache: &mut FlowCache, mut key: FlowKey, generation: u32) -> Option<u32> {
        key.candidate = cache.candidate(&key);
        cache.hit(&key, generation, 100).map(|decision| decision.slot)
    }

    fn small() -> FlowCache {
        FlowCache::new(64).unwrap()
    }

    #[test]
    fn what_was_learned_is_found_until_the_tables_move_on() {
        let mut cache = small();
        assert_eq!(cache.capacity(), 64);
        assert_eq!(find(&mut cache, key(1, 0), 7), None);
        assert!(cache.learn(&key(1, 0), 7, decision(3), 100));
        assert_eq!(find(&mut cache, key(1, 0), 7), Some(3));
        assert_eq!(find(&mut cache, key(1, 0), 8), None);
        assert!(cache.learn(&key(1, 0), 8, decision(4), 100));
        assert_eq!(find(&mut cache, key(1, 0), 8), Some(4));
        assert_eq!(find(&mut cache, key(1, 0), 7), None);
    }

    #[test]
    fn flows_with_the_same_tag_are_told_apart() {
        let mut cache = small();
        let twin = |number: u64| FlowKey { hash: 9 << 48 | 3, ..key(number, 3) };
        for number in 1..=8 {
            assert!(cache.learn(&twin(number), 1, decision(number as u16), 100));
        }
        for number in 1..=8 {
            assert_eq!(find(&mut cache, twin(number), 1), Some(number as u32));
        }
        assert_eq!(find(&mut cache, twin(9), 1), None);
    }

    #[test]
    fn a_flood_of_new_flows_leaves_flows_that_go_on() {
        let mut cache = small();
        for number in 1..=6 {
            assert!(cache.learn(&key(number, 2), 1, decision(number as u16), 100));
            assert_eq!(find(&mut cache, key(number, 2), 1), Some(number as u32));
        }
        for number in 100..5000 {
            assert!(cache.learn(&key(number, 2), 1, decision(9), 100), "the other two places serve");
        }
        for number in 1..=6 {
            assert_eq!(find(&mut cache, key(number, 2), 1), Some(number as u32));
        }
    }

    #[test]
    fn a_set_full_of_flows_that_go_on_takes_no_new_one_until_they_rest() {
        let mut cache = small();
        for number in 1..=8 {
            assert!(cache.learn(&key(number, 2), 1, decision(1), 100));
            assert!(find(&mut cache, key(number, 2), 1).is_some());
        }
        assert!(!cache.learn(&key(9, 2), 1, decision(2), 100));
        assert!(cache.learn(&key(9, 3), 1, decision(2), 100), "another set has room");
        cache.now += cache.rest / 2;
        (2..=8).for_each(|number| assert!(find(&mut cache, key(number, 2), 1).is_some()));
        cache.now += cache.rest / 2 + 1;
        assert!(cache.learn(&key(9, 2), 1, decision(2), 100));
        assert_eq!(find(&mut cache, key(1, 2), 1), None, "the one that rested longest is out");
        (2..=8).for_each(|number| assert!(find(&mut cache, key(number, 2), 1).is_some()));
    }

    #[test]
    fn flows_of_tables_that_moved_on_give_their_places_away() {
        let mut cache = small();
        for number in 1..=8 {
            assert!(cache.learn(&key(number, 2), 1, decision(1), 100));
            assert!(find(&mut cache, key(number, 2), 1).is_some());
        }
        assert!(cache.learn(&key(9, 2), 2, decision(2), 100));
        assert_eq!(find(&mut cache, key(9, 2), 2), Some(2));
    }
}
