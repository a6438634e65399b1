//! The flow cache of one worker: bounded, exact-match, set-associative.
//!
//! A set is sixteen entries and, apart from them, sixteen tags of 15 bits: half a line tells which entry to look at, so that a
//! lookup costs three lines however large the cache is, and the packets of a burst fetch theirs side by side ([`Lookup`]).
//!
//! An entry carries the generation of the tables that it was decided by, and is as good as none when they have moved on: a
//! rule change never walks the cache. A new flow takes a free place; else that of a flow that is out of date, or brought
//! only a single packet, if it can be not just now; else of the one that was used longest ago, but only once that is [`REST`]
//! ago. So
//! a stream of packets that each begin a flow fights for places with itself: flows that go on keep theirs. Nobody outside
//! can aim at a set, since the hash is seeded by the host.

use crate::action::PackedAction;
use crate::flows::key::{FlowKey, Head, Tail};
use crate::flows::listing::{FlowCopy, Piece};
use forebay_pipeline::prefetch::{prefetch, prefetch_two_lines};
use forebay_pipeline::tsc;
use forebay_sriov::HugeSlice;
use std::io;
use std::time::Duration;
use wide::u16x16;
use zerocopy::FromZeros;

/// Entries of a set: of 16, one flow in 1,250 finds its set full when the cache is half full; of 8, one in 120.
pub(super) const WAYS: usize = 16;
/// A flow that goes on is not put out for a new one before it has rested so long: a keep-alive or two of a
/// request-response protocol, and short enough that a cache full of dead flows serves new ones within a second.
const REST: Duration = Duration::from_millis(500);
/// Time-stamp cycles of a tick: 2^20 cycles are some 0.3 to 0.5 ms, and 2^32 ticks some 20 days.
pub(super) const TICK_BITS: u32 = 20;

/// Tags of a set; 0 is a free place.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(32))]
struct Set {
    tags: [u16; WAYS],
}

/// What was decided about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(C)]
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

/// A flow: two cache lines, the first of which has all that a lookup compares and writes.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(128))]
struct Entry {
    head: Head,
    /// Tick of the newest packet.
    used: u32,
    packets: u32,
    bytes: u64,
    decision: Decision,
    tail: Tail,
}

const _: () = assert!(size_of::<Entry>() == 128);

/// A way of a set, for a new flow.
enum Choice {
    /// Nobody has it.
    Free(usize),
    /// Another flow has it.
    Taken(usize),
}

/// The flow cache of one worker.
pub struct FlowCache {
    sets: HugeSlice<Set>,
    entries: HugeSlice<Entry>,
    set_mask: usize,
    now: u32,
    rest: u32,
}

/// The tag of a hash: its upper bits, and one that is set, so that it is never 0. The lower bits choose the set.
#[inline(always)]
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

impl Set {
    /// The places whose tag is `tag`, a bit each.
    #[inline(always)]
    fn matching(&self, tag: u16) -> u32 {
        u16x16::from(self.tags).simd_eq(u16x16::splat(tag)).to_bitmask()
    }

    /// The way that a new flow with that hash takes if it may.
    #[inline(always)]
    fn first_choice(&self, hash: u64) -> Choice {
        match self.matching(0) {
            0 => Choice::Taken((hash >> 32) as usize % WAYS),
            free => Choice::Free(free.trailing_zeros() as usize),
        }
    }
}

impl FlowCache {
    /// A cache for `entries` flows, rounded up to a power of two of at least 64. Memory (130 bytes a flow) is taken from the
    /// system at once, where it can give it so: later, packets would wait for it.
    ///
    /// # Errors
    /// The system has no address space of that size to give.
    pub fn new(entries: usize) -> io::Result<FlowCache> {
        let count = (entries / WAYS).max(4).next_power_of_two();
        let rest = tsc::from_duration(REST) >> TICK_BITS;
        let (sets, entries) = (HugeSlice::new(count)?, HugeSlice::new(count * WAYS)?);
        sets.populate(0..count);
        entries.populate(0..count * WAYS);
        Ok(FlowCache { sets, entries, set_mask: count - 1, now: 0, rest: rest.max(1) as u32 })
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

    /// The cache, to look for a burst's flows.
    #[inline(always)]
    pub fn lookup(&mut self) -> Lookup<'_> {
        let FlowCache { sets, entries, set_mask, now, .. } = self;
        Lookup { sets, entries, set_mask: *set_mask, now: *now }
    }

    /// Remembers what was decided about a flow, whose first packet had `bytes` bytes. False where every place of its set
    /// belongs to a flow that goes on.
    pub fn learn(&mut self, key: &FlowKey, decision: Decision, bytes: u32) -> bool {
        let set = self.set_of(key.hash);
        let is_it = |entry: &Entry| key.is_flow(&entry.head, &entry.tail);
        let known = find(&self.sets, &self.entries, set, key.hash, is_it);
        let place = known.or_else(|| self.place_for_new(set, key));
        let Some(place) = place else { return false };
        let now = self.now;
        let (Some(entry), Some(tags)) = (self.entries.get_mut(place), self.sets.get_mut(set)) else {
            return false;
        };
        // The same flow, decided anew, goes on counting.
        let (packets, total) = if known.is_some() { (entry.packets, entry.bytes) } else { (0, 0) };
        *entry = Entry {
            head: key.head,
            used: now,
            packets: packets.wrapping_add(1),
            bytes: total + u64::from(bytes),
            decision,
            tail: if key.head.has_tail() { key.tail } else { Tail::default() },
        };
        tags.tags[place % WAYS] = tag(key.hash);
        true
    }

    /// The place in a set that a new flow with that `key` may take.
    fn place_for_new(&self, set: usize, key: &FlowKey) -> Option<usize> {
        let first = match self.sets.get(set)?.first_choice(key.hash) {
            Choice::Free(way) => return Some(set * WAYS + way),
            Choice::Taken(way) => way,
        };
        let (mut single, mut rested) = (None, None::<(u32, usize)>);
        // From anywhere in the set on, and mostly not far: each look at an entry is one at a line of memory.
        for step in 0..WAYS {
            let place = set * WAYS + (first + step) % WAYS;
            let entry = self.entries.get(place)?;
            let age = self.now.wrapping_sub(entry.used);
            // The generation is of the key's own tables: it tells only of entries from the same scope.
            let is_old = entry.head.is_outdated_by(&key.head);
            let is_single = entry.packets == 1;
            if is_old || (is_single && age > 0) {
                return Some(place);
            }
            if is_single {
                single = Some(place);
            } else if age >= self.rest && rested.is_none_or(|(most, _)| age > most) {
                rested = Some((age, place));
            }
        }
        single.or(rested.map(|(_, place)| place))
    }

    /// Copies the flows that stand in the sets from `set` on, until the piece is full or so many sets have been looked at.
    /// Returns the set to go on with; `None` behind the last. Places that never had a flow are not touched.
    pub(super) fn copy(&self, set: usize, now: u64, piece: &mut Piece) -> Option<usize> {
        let now = (now >> TICK_BITS) as u32;
        for (set, tags) in self.sets.iter().enumerate().skip(set) {
            if !piece.has_room_for(WAYS) {
                return Some(set);
            }
            piece.sets += 1;
            for (way, _) in tags.tags.iter().enumerate().filter(|(_, tag)| **tag != 0) {
                let Some(entry) = self.entries.get(set * WAYS + way) else { continue };
                piece.push(FlowCopy {
                    head: entry.head.words,
                    tail: entry.tail,
                    generation: entry.head.generation,
                    idle_ticks: now.wrapping_sub(entry.used),
                    packets: entry.packets,
                    bytes: entry.bytes,
                    decision: entry.decision,
                });
            }
        }
        None
    }
}

/// The place of the entry in a set that has the hash's tag and of which `is_it` is true.
fn find(
    sets: &[Set],
    entries: &[Entry],
    set: usize,
    hash: u64,
    is_it: impl Fn(&Entry) -> bool,
) -> Option<usize> {
    let mut matching = sets.get(set)?.matching(tag(hash));
    while matching != 0 {
        let place = set * WAYS + matching.trailing_zeros() as usize;
        if entries.get(place).is_some_and(&is_it) {
            return Some(place);
        }
        matching &= matching - 1;
    }
    None
}

/// A flow cache in which flows are looked for, in four steps, each of which asks for the memory that the next one needs: for
/// the sets, [`Lookup::begin`]; for the entries, [`Lookup::look`]; then [`Lookup::find`] and [`Lookup::flow`].
pub struct Lookup<'a> {
    sets: &'a [Set],
    entries: &'a mut [Entry],
    set_mask: usize,
    now: u32,
}

impl Lookup<'_> {
    /// Asks for the set of a key that has just been written.
    #[inline(always)]
    pub fn begin(&self, key: &FlowKey) {
        if let Some(set) = self.sets.get(key.hash as usize & self.set_mask) {
            prefetch(set);
        }
    }

    /// Finds where each flow may stand and asks for the entries.
    #[inline(always)]
    pub fn look(&self, keys: &mut [FlowKey]) {
        for key in keys {
            let set = key.hash as usize & self.set_mask;
            let matching = self.sets.get(set).map_or(0, |set| set.matching(tag(key.hash)));
            let place = match matching {
                0 => usize::MAX,
                _ => set * WAYS + matching.trailing_zeros() as usize,
            };
            if let Some(entry) = self.entries.get(place) {
                prefetch_two_lines(entry);
            }
            key.candidate = place as u32;
        }
    }

    /// The flow's decision, if it stands at its candidate (or, with the same tag, elsewhere in the set: then that is its
    /// candidate) and was made by the tables of the key's generation.
    #[inline(always)]
    pub fn find(&self, key: &mut FlowKey) -> Option<&Decision> {
        let mut entry = self.entries.get(key.candidate as usize)?;
        if !key.is(&entry.head, &entry.tail) {
            let place = self.find_elsewhere(key)?;
            key.candidate = place as u32;
            entry = self.entries.get(place)?;
        }
        Some(&entry.decision)
    }

    /// Asks for the entry that a flow is likely to get that was not found, if it is learned.
    #[inline(always)]
    pub fn expect(&self, key: &FlowKey) {
        let set = key.hash as usize & self.set_mask;
        let Some(Choice::Free(way) | Choice::Taken(way)) =
            self.sets.get(set).map(|set| set.first_choice(key.hash))
        else {
            return;
        };
        if let Some(entry) = self.entries.get(set * WAYS + way) {
            prefetch_two_lines(entry);
        }
    }

    /// What was decided about a flow that was found.
    #[inline(always)]
    pub fn decision(&self, key: &FlowKey) -> Option<&Decision> {
        Some(&self.entries.get(key.candidate as usize)?.decision)
    }

    /// A flow that was found.
    #[inline(always)]
    pub fn flow(&mut self, key: &FlowKey) -> Option<Flow<'_>> {
        let now = self.now;
        let Entry { used, packets, bytes, decision, .. } = self.entries.get_mut(key.candidate as usize)?;
        Some(Flow { decision, now, used, packets, bytes })
    }

    /// Two flows of one set have the same tag, once in some thousand lookups of a full cache; or the tables have moved on.
    #[cold]
    #[inline(never)]
    fn find_elsewhere(&self, key: &FlowKey) -> Option<usize> {
        let set = key.hash as usize & self.set_mask;
        find(self.sets, self.entries, set, key.hash, |entry| key.is(&entry.head, &entry.tail))
    }
}

/// A flow that was found.
pub struct Flow<'a> {
    /// What was decided about it.
    pub decision: &'a Decision,
    now: u32,
    used: &'a mut u32,
    packets: &'a mut u32,
    bytes: &'a mut u64,
}

impl Flow<'_> {
    /// Counts a packet of `bytes` bytes.
    #[inline(always)]
    pub fn count(&mut self, bytes: u32) {
        *self.used = self.now;
        *self.packets = self.packets.wrapping_add(1);
        *self.bytes += u64::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Action, PortId};

    /// Flows that fill a set.
    const ALL: u64 = WAYS as u64;

    /// A key of a flow with this number; flows of one `set` (modulo the cache's sets) share it.
    fn key(number: u64, set: u64) -> FlowKey {
        let mut key = FlowKey::NONE;
        key.head.words[0] = number;
        key.hash = number << 49 | set;
        key
    }

    fn decision(port: u16) -> Decision {
        let action = Action::Deliver { port: PortId(port), pop_vlan: false, push_vlan: 0 };
        Decision { action: action.into(), slot: u32::from(port), flow_hash: 1, affinity: 2 }
    }

    fn find(cache: &mut FlowCache, mut key: FlowKey, generation: u64) -> Option<u32> {
        key.head.generation = generation;
        let mut lookup = cache.lookup();
        lookup.begin(&key);
        lookup.look(std::slice::from_mut(&mut key));
        lookup.find(&mut key)?;
        let mut flow = lookup.flow(&key)?;
        flow.count(100);
        Some(flow.decision.slot)
    }

    fn learn(
        cache: &mut FlowCache,
        mut key: FlowKey,
        generation: u64,
        decision: Decision,
        bytes: u32,
    ) -> bool {
        key.head.generation = generation;
        cache.learn(&key, decision, bytes)
    }

    fn small() -> FlowCache {
        FlowCache::new(64).unwrap()
    }

    #[test]
    fn what_was_learned_is_found_until_the_tables_move_on() {
        let mut cache = small();
        assert_eq!(cache.capacity(), 64);
        assert_eq!(find(&mut cache, key(1, 0), 7), None);
        assert!(learn(&mut cache, key(1, 0), 7, decision(3), 100));
        assert_eq!(find(&mut cache, key(1, 0), 7), Some(3));
        assert_eq!(find(&mut cache, key(1, 0), 8), None);
        assert!(learn(&mut cache, key(1, 0), 8, decision(4), 100));
        assert_eq!(find(&mut cache, key(1, 0), 8), Some(4));
        assert_eq!(find(&mut cache, key(1, 0), 7), None);
    }

    #[test]
    fn flows_with_the_same_tag_are_told_apart() {
        let mut cache = small();
        let twin = |number: u64| FlowKey { hash: 19 << 48 | 3, ..key(number, 3) };
        for number in 1..=ALL {
            assert!(learn(&mut cache, twin(number), 1, decision(number as u16), 100));
        }
        for number in 1..=ALL {
            assert_eq!(find(&mut cache, twin(number), 1), Some(number as u32));
        }
        assert_eq!(find(&mut cache, twin(ALL + 1), 1), None);
    }

    #[test]
    fn a_flood_of_new_flows_leaves_flows_that_go_on() {
        let mut cache = small();
        for number in 1..=ALL - 2 {
            assert!(learn(&mut cache, key(number, 2), 1, decision(number as u16), 100));
            assert_eq!(find(&mut cache, key(number, 2), 1), Some(number as u32));
        }
        for number in 100..5000 {
            assert!(learn(&mut cache, key(number, 2), 1, decision(9), 100), "the other two places serve");
        }
        for number in 1..=ALL - 2 {
            assert_eq!(find(&mut cache, key(number, 2), 1), Some(number as u32));
        }
    }

    #[test]
    fn a_set_full_of_flows_that_go_on_takes_no_new_one_until_they_rest() {
        let mut cache = small();
        for number in 1..=ALL {
            assert!(learn(&mut cache, key(number, 2), 1, decision(1), 100));
            assert!(find(&mut cache, key(number, 2), 1).is_some());
        }
        assert!(!learn(&mut cache, key(ALL + 1, 2), 1, decision(2), 100));
        assert!(learn(&mut cache, key(ALL + 1, 3), 1, decision(2), 100), "another set has room");
        cache.now += cache.rest / 2;
        (2..=ALL).for_each(|number| assert!(find(&mut cache, key(number, 2), 1).is_some()));
        cache.now += cache.rest / 2 + 1;
        assert!(learn(&mut cache, key(ALL + 1, 2), 1, decision(2), 100));
        assert_eq!(find(&mut cache, key(1, 2), 1), None, "the one that rested longest is out");
        (2..=ALL).for_each(|number| assert!(find(&mut cache, key(number, 2), 1).is_some()));
    }

    #[test]
    fn flows_of_tables_that_moved_on_give_their_places_away() {
        let mut cache = small();
        for number in 1..=ALL {
            assert!(learn(&mut cache, key(number, 2), 1, decision(1), 100));
            assert!(find(&mut cache, key(number, 2), 1).is_some());
        }
        assert!(learn(&mut cache, key(ALL + 1, 2), 2, decision(2), 100));
        assert_eq!(find(&mut cache, key(ALL + 1, 2), 2), Some(2));
    }
}
