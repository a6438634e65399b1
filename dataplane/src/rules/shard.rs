//! Some two dozen rules of a tuple, those whose hashes fall together: the unit that a change copies.
//!
//! A shard is one cache line (how many entries, a byte of each one's hash, the best precedence) and one array of words:
//! entries, best rank first, then where each id ends, then the ids. Shards never change; a change makes a new array.
//! Invariant: entries are sorted by precedence downwards, then by tag, then by id. Two entries that match one key have
//! the same tag, so the first entry that matches is the best one.

use super::entry::{Id, Layout, PackedKey};
use super::table::TableRule;
use forebay_pipeline::prefetch::prefetch_address;
use std::cmp::Ordering;
use std::sync::Arc;
use wide::u8x32;

/// Entries that have a tag; those behind them are compared without. The line has no room for more.
const TAGGED: usize = 32;

/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// One shard.
#[derive(Clone, Default)]
#[repr(align(64))]
pub struct Shard {
    body: Arc<[u64]>,
    best: u64,
    count: u32,
    tags: [u8; TAGGED],
}

/// A rule of a shard.
#[derive(Clone, Copy)]
pub struct EntryRef<'a> {
    /// Its words.
    pub words: &'a [u64],
    /// Its id.
    pub id: Id<'a>,
    /// The hash of its value.
    pub hash: u64,
}

/// The byte of a hash that tags an entry: not one of those that choose the shard.
#[inline(always)]
fn tag(hash: u64) -> u8 {
    (hash >> 56) as u8
}

impl EntryRef<'_> {
    fn rank<const W: usize>(&self, layout: &Layout<W>, other: &EntryRef<'_>) -> Ordering {
        (layout.precedence(other.words).cmp(&layout.precedence(self.words)))
            .then(tag(self.hash).cmp(&tag(other.hash)))
            .then_with(|| self.id.cmp(&other.id))
    }
}

impl Shard {
    /// A shard of entries in any order; `scratch` is only there to be used again.
    pub fn build<const W: usize>(
        layout: &Layout<W>,
        entries: &mut [EntryRef<'_>],
        scratch: &mut Vec<u64>,
    ) -> Shard {
        entries.sort_unstable_by(|a, b| a.rank(layout, b));
        Shard::of_sorted(layout, entries, scratch)
    }

    fn of_sorted<const W: usize>(layout: &Layout<W>, entries: &[EntryRef<'_>], body: &mut Vec<u64>) -> Shard {
        let Some(first) = entries.first() else { return Shard::default() };
        body.clear();
        entries.iter().for_each(|entry| body.extend_from_slice(entry.words));
        let mut end = 0;
        for pair in entries.chunks(2) {
            let mut word = 0;
            for (index, EntryRef { id, .. }) in pair.iter().enumerate() {
                end += id.words.len() as u64;
                word |= (end << 3 | u64::from(id.padding)) << (32 * index);
            }
            body.push(word);
        }
        entries.iter().for_each(|entry| body.extend_from_slice(entry.id.words));
        let mut tags = [0; TAGGED];
        for (tagged, entry) in tags.iter_mut().zip(entries) {
            *tagged = tag(entry.hash);
        }
        Shard {
            body: body.as_slice().into(),
            best: layout.precedence(first.words),
            count: entries.len() as u32,
            tags,
        }
    }

    /// The number of rules.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// The best precedence; 0 without rules.
    #[inline(always)]
    pub fn best(&self) -> u64 {
        self.best
    }

    #[inline(always)]
    fn entry<const W: usize>(&self, layout: &Layout<W>, index: usize) -> &[u64] {
        let stride = layout.stride();
        &self.body[index * stride..][..stride]
    }

    fn end<const W: usize>(&self, layout: &Layout<W>, index: usize) -> (usize, u32) {
        let word = self.body[self.len() * layout.stride() + index / 2] >> (32 * (index % 2));
        ((word as u32 >> 3) as usize, word as u32 & 7)
    }

    /// The id of an entry.
    pub fn id<const W: usize>(&self, layout: &Layout<W>, index: usize) -> Id<'_> {
        let ids = &self.body[self.len() * layout.stride() + self.len().div_ceil(2)..];
        let start = if index == 0 { 0 } else { self.end(layout, index - 1).0 };
        let (end, padding) = self.end(layout, index);
        Id { words: &ids[start..end], padding }
    }

    /// Every rule, best first.
    pub fn entries<const W: usize>(&self, layout: &Layout<W>) -> impl Iterator<Item = EntryRef<'_>> {
        (0..self.len()).map(|index| {
            let words = self.entry(layout, index);
            EntryRef { words, id: self.id(layout, index), hash: layout.hash_of_entry(words) }
        })
    }

    /// The places with the tag of a hash, a bit each; those behind the last entry have tag 0.
    #[inline(always)]
    fn with_tag(&self, hash: u64) -> u32 {
        u8x32::from(self.tags).simd_eq(u8x32::splat(tag(hash))).to_bitmask()
    }

    /// Some entry may match by its tag.
    #[inline(always)]
    pub fn likely_has(&self, hash: u64) -> bool {
        self.len() > TAGGED || self.with_tag(hash) != 0
    }

    /// Fetches entries that may match by their tags; whether there are some.
    #[inline(always)]
    pub fn prefetch_likely<const W: usize>(&self, layout: &Layout<W>, hash: u64) -> bool {
        let (stride, start) = (layout.stride(), self.body.as_ptr());
        let mut tagged = self.with_tag(hash);
        let likely = self.len() > TAGGED || tagged != 0;
        while tagged != 0 {
            let entry = start.wrapping_add(tagged.trailing_zeros() as usize * stride);
            prefetch_address(entry);
            prefetch_address(entry.wrapping_add(LINE_WORDS));
            tagged &= tagged - 1;
        }
        likely
    }

    /// The best entry that matches.
    #[inline(always)]
    pub fn find<const W: usize>(&self, layout: &Layout<W>, key: &PackedKey<W>) -> Option<usize> {
        let mut tagged = self.with_tag(key.hash);
        while tagged != 0 {
            let index = tagged.trailing_zeros() as usize;
            if index < self.len() && layout.matches(self.entry(layout, index), key) {
                return Some(index);
            }
            tagged &= tagged - 1;
        }
        (TAGGED..self.len()).find(|index| layout.matches(self.entry(layout, *index), key))
    }

    /// The words of an entry.
    #[inline(always)]
    pub fn words<const W: usize>(&self, layout: &Layout<W>, index: usize) -> &[u64] {
        self.entry(layout, index)
    }

    /// The entries that may have this hash.
    fn tagged(&self, hash: u64) -> impl Iterator<Item = usize> {
        let is_tagged = move |index: &usize| self.tags.get(*index).is_none_or(|known| *known == tag(hash));
        (0..self.len()).filter(is_tagged)
    }

    /// The number of entries with this hash.
    pub fn bucket_len<const W: usize>(&self, layout: &Layout<W>, hash: u64) -> usize {
        let has_hash = |index: &usize| layout.hash_of_entry(self.entry(layout, *index)) == hash;
        self.tagged(hash).filter(has_hash).count()
    }

    /// The shard with one rule more.
    pub fn with<const W: usize>(&self, layout: &Layout<W>, rule: &TableRule<W>) -> Shard {
        let (mut words, mut id) = (Vec::with_capacity(layout.stride()), Vec::new());
        layout.encode(rule, &mut words);
        let padding = Id::encode(&rule.id, &mut id);
        let new = EntryRef {
            words: &words,
            id: Id { words: &id, padding },
            hash: layout.hash_of_rule(&rule.pattern),
        };
        let mut entries: Vec<EntryRef<'_>> = Vec::with_capacity(self.len() + 1);
        entries.extend(self.entries(layout));
        let at = entries.partition_point(|entry| entry.rank(layout, &new) != Ordering::Greater);
        entries.insert(at, new);
        Shard::of_sorted(layout, &entries, &mut Vec::with_capacity(self.body.len() + 2 * layout.stride()))
    }

    /// The shard without the entry at `index`.
    pub fn without<const W: usize>(&self, layout: &Layout<W>, index: usize) -> Shard {
        let mut entries: Vec<EntryRef<'_>> = self.entries(layout).collect();
        entries.remove(index);
        Shard::of_sorted(layout, &entries, &mut Vec::with_capacity(self.body.len()))
    }

    /// Puts a rule in the place of the entry at `index`, whose pattern and id it has. Of the words, only what follows the
    /// pattern is written.
    pub fn replace<const W: usize>(&mut self, layout: &Layout<W>, index: usize, rule: &TableRule<W>) {
        if layout.precedence(self.entry(layout, index)) == rule.precedence {
            let stride = layout.stride();
            let body = Arc::make_mut(&mut self.body);
            return layout.encode_tail(rule, &mut body[index * stride..][..stride]);
        }
        let mut words = self.entry(layout, index).to_vec();
        layout.encode_tail(rule, &mut words);
        let mut entries: Vec<EntryRef<'_>> = self.entries(layout).collect();
        let old = entries.remove(index);
        let new = EntryRef { words: &words, ..old };
        let at = entries.partition_point(|entry| entry.rank(layout, &new) != Ordering::Greater);
        entries.insert(at, new);
        *self = Shard::of_sorted(layout, &entries, &mut Vec::with_capacity(self.body.len()));
    }

    /// Where the rule with this pattern (hashed, and as the layout encodes it), precedence and id stands.
    pub fn position<const W: usize>(
        &self,
        layout: &Layout<W>,
        (hash, pattern): (u64, &[u64]),
        precedence: u64,
        id: Id<'_>,
    ) -> Option<usize> {
        self.tagged(hash).find(|index| {
            let entry = self.entry(layout, *index);
            layout.precedence(entry) == precedence
                && layout.is_pattern(entry, pattern)
                && self.id(layout, *index) == id
        })
    }

    /// Fetches the counts that a copy of the shard touches.
    pub fn prefetch_counts(&self) {
        prefetch_address(self.body.as_ptr().cast::<u8>().wrapping_sub(super::table::ARC_BYTES));
    }

    /// Bytes on the heap, with the counts of the array.
    pub fn memory_bytes(&self) -> usize {
        if self.count == 0 { 0 } else { size_of_val(&*self.body) + super::table::ARC_BYTES }
    }
}
