//! The rules that look at least at the same bits (the *common* mask): a persistent hash table of shards.
//!
//! A key's hash of the common bits names the shard. The number of shards grows and shrinks by one at a time (linear
//! hashing: W. Litwin, "Linear hashing: a new tool for file and table addressing", 1980), so no change pays for many.
//! Shards stand in a tree of three levels; a change copies one path of it, and clones share the rest.
//! Reference for relaxed masks: J. Daly et al., "TupleMerge: fast software packet processing for online packet
//! classification", 2019.

use super::entry::{Id, Layout, PackedKey};
use super::ladder::Class;
use super::pattern::Pattern;
use super::shard::{EntryRef, Shard};
use super::table::{ARC_BYTES, TableRule};
use super::tuple_build::{Encoded, by_shard};
use forebay_pipeline::prefetch::{prefetch, prefetch_address};
use std::sync::Arc;

/// Rules per shard, on average. More make changes dearer, fewer waste lines; twice as many are in a shard that is
/// about to be split, and still nearly all have a tag.
const SHARD_RULES: usize = 18;
/// Shards of a leaf: 1 KiB is copied, and 16 counts are touched, by a change.
const LEAF: usize = 16;
/// Before an array of cache lines, its counts take a line.
const LINE_BYTES: usize = 64;
/// Leaves of a branch.
const BRANCH: usize = 32;

#[derive(Clone)]
struct Leaf {
    best: u64,
    shards: Arc<[Shard]>,
}

#[derive(Clone)]
struct Branch {
    best: u64,
    leaves: Arc<[Leaf]>,
}

/// A hash table of rules.
#[derive(Clone)]
pub struct Tuple<const W: usize> {
    layout: Layout<W>,
    class: Class<W>,
    rules: usize,
    shards: usize,
    best: u64,
    branches: Vec<Branch>,
}

/// A rule that a tuple found.
#[derive(Clone, Copy)]
pub struct Found<'a, const W: usize> {
    tuple: &'a Tuple<W>,
    shard: &'a Shard,
    index: usize,
}

impl<'a, const W: usize> Found<'a, W> {
    /// Its words.
    #[inline(always)]
    fn words(&self) -> &'a [u64] {
        self.shard.words(&self.tuple.layout, self.index)
    }

    /// Its precedence.
    #[inline(always)]
    pub fn precedence(&self) -> u64 {
        self.tuple.layout.precedence(self.words())
    }

    /// Its id.
    pub fn id(&self) -> Id<'a> {
        self.shard.id(&self.tuple.layout, self.index)
    }

    /// What it says.
    #[inline(always)]
    pub fn hit(&self) -> super::entry::Hit {
        self.tuple.layout.hit(self.words())
    }
}

/// A pattern has ranges of ports that are not in its mask.
pub fn is_ranged<const W: usize>(pattern: &Pattern<W>) -> bool {
    (pattern.src_port, pattern.dst_port) != ((0, u16::MAX), (0, u16::MAX))
}

/// The shard of a hash among so many.
#[inline(always)]
pub fn shard_of(hash: u64, shards: usize) -> usize {
    let mask = shards.next_power_of_two() - 1;
    let index = hash as usize & mask;
    if index < shards { index } else { index & (mask >> 1) }
}

/// The shard that a new last one takes from, and gives back to: it differs in the highest bit.
fn buddy(last: usize) -> usize {
    last & !(1 << last.ilog2())
}

impl<const W: usize> Tuple<W> {
    /// A tuple for the rules of a class.
    pub fn new(class: Class<W>) -> Tuple<W> {
        let layout = Layout::new(&class.common, &class.allowed, class.ranged);
        Tuple { layout, class, rules: 0, shards: 0, best: 0, branches: Vec::new() }
    }

    /// A tuple of rules of a class, with at most `most` in a bucket, and the rules that found no room.
    pub fn build(class: Class<W>, rules: Vec<&TableRule<W>>, most: usize) -> (Tuple<W>, Vec<&TableRule<W>>) {
        let empty = Tuple::new(class);
        let hashes: Vec<u64> = rules.iter().map(|rule| empty.layout.hash_of_rule(&rule.pattern)).collect();
        let mut order: Vec<(u64, u32)> = hashes.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut crowded: Vec<&TableRule<W>> = Vec::new();
        let mut is_kept = vec![true; rules.len()];
        for run in order.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > most) {
            for (_, rule) in &run[most..] {
                crowded.push(rules[*rule as usize]);
                is_kept[*rule as usize] = false;
            }
        }
        // In the order in which they came, which is how they stand in memory.
        let kept = rules.iter().zip(hashes).zip(is_kept);
        let kept: Vec<(&TableRule<W>, u64)> =
            kept.filter(|(_, kept)| *kept).map(|((rule, hash), _)| (*rule, hash)).collect();
        (empty.filled(&kept), crowded)
    }

    /// The tuple with its first rules.
    fn filled(mut self, rules: &[(&TableRule<W>, u64)]) -> Tuple<W> {
        let shards = rules.len().div_ceil(SHARD_RULES);
        let encoded = Encoded::new(&self.layout, rules);
        let (starts, order) = by_shard(rules, shards);
        let (mut entries, mut scratch) = (Vec::new(), Vec::new());
        let mut built = starts.windows(2).map(|range| {
            let members = &order[range[0] as usize..range[1] as usize];
            entries.clear();
            entries.extend(members.iter().map(|index| encoded.entry(*index as usize)));
            Shard::build(&self.layout, &mut entries, &mut scratch)
        });
        let mut branches = Vec::with_capacity(shards.div_ceil(LEAF * BRANCH));
        for first in (0..shards).step_by(LEAF * BRANCH) {
            let in_branch = (shards - first).min(LEAF * BRANCH);
            let leaves = (0..in_branch).step_by(LEAF).map(|first| {
                let shards: Arc<[Shard]> = built.by_ref().take((in_branch - first).min(LEAF)).collect();
                Leaf { best: best_shard(&shards), shards }
            });
            let leaves: Arc<[Leaf]> = leaves.collect();
            branches.push(Branch { best: best_leaf(&leaves), leaves });
        }
        drop(built);
        self.best = branches.iter().map(|branch| branch.best).max().unwrap_or(0);
        (self.rules, self.shards, self.branches) = (rules.len(), shards, branches);
        self
    }

    /// A rule with this pattern may stand here.
    pub fn fits(&self, pattern: &Pattern<W>) -> bool {
        let within = |inner: &[u64; W], outer: &[u64; W]| inner.iter().zip(outer).all(|(i, o)| i & !o == 0);
        is_ranged(pattern) <= self.class.ranged
            && within(&self.class.common, &pattern.mask)
            && within(&pattern.mask, &self.class.allowed)
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// The best precedence of its rules.
    #[inline(always)]
    pub fn best(&self) -> u64 {
        self.best
    }

    /// What its rules have in common.
    pub fn class(&self) -> &Class<W> {
        &self.class
    }

    /// Bits that are hashed.
    pub fn bits(&self) -> u32 {
        self.class.common.iter().map(|word| word.count_ones()).sum()
    }

    #[inline(always)]
    fn shard(&self, index: usize) -> &Shard {
        &self.branches[index / (LEAF * BRANCH)].leaves[index / LEAF % BRANCH].shards[index % LEAF]
    }

    /// The key as this tuple sees it.
    #[inline(always)]
    pub fn key(&self, key: &[u64; W], hash: u64) -> PackedKey<W> {
        self.layout.key(key, hash)
    }

    /// The key's hash.
    #[inline(always)]
    pub fn hash(&self, key: &[u64; W]) -> u64 {
        self.layout.hash_of_key(key)
    }

    /// The shard of a key's hash; there is none in an empty tuple.
    #[inline(always)]
    pub fn shard_of(&self, hash: u64) -> &Shard {
        self.shard(shard_of(hash, self.shards))
    }

    /// Whether [`Tuple::find`] may find something; what it will read is fetched.
    #[inline(always)]
    pub fn prefetch_entries(&self, shard: &Shard, hash: u64) -> bool {
        shard.prefetch_likely(&self.layout, hash)
    }

    /// The best rule of a shard for a key.
    #[inline(always)]
    pub fn find<'a>(&'a self, shard: &'a Shard, key: &PackedKey<W>) -> Option<Found<'a, W>> {
        shard.find(&self.layout, key).map(|index| Found { tuple: self, shard, index })
    }

    /// The rules that stand in one bucket with this pattern.
    pub fn bucket_len(&self, pattern: &Pattern<W>) -> usize {
        if self.shards == 0 {
            return 0;
        }
        let hash = self.layout.hash_of_rule(pattern);
        self.shard(shard_of(hash, self.shards)).bucket_len(&self.layout, hash)
    }

    /// Fetches what a change of a rule with this pattern reads: first its shard, then, when that is there, the counts of
    /// everything that a copy of the path shares.
    pub fn prefetch_shard(&self, pattern: &Pattern<W>) {
        if self.shards > 0 {
            prefetch(self.shard(shard_of(self.layout.hash_of_rule(pattern), self.shards)));
        }
    }

    /// Fetches what a replacement of a rule with this pattern reads in its shard.
    pub fn prefetch_body(&self, pattern: &Pattern<W>) {
        if self.shards > 0 {
            let hash = self.layout.hash_of_rule(pattern);
            let shard = self.shard_of(hash);
            if shard.prefetch_likely(&self.layout, hash) {
                shard.prefetch_counts();
            }
        }
    }

    fn prefetch_path(&self, index: usize) {
        let branch = &self.branches[index / (LEAF * BRANCH)];
        let leaf = &branch.leaves[index / LEAF % BRANCH];
        if Arc::strong_count(&branch.leaves) > 1 {
            branch.leaves.iter().for_each(|leaf| {
                prefetch_address(leaf.shards.as_ptr().cast::<u8>().wrapping_sub(LINE_BYTES));
            });
        }
        if Arc::strong_count(&branch.leaves) > 1 || Arc::strong_count(&leaf.shards) > 1 {
            leaf.shards.iter().for_each(Shard::prefetch_counts);
        }
    }

    /// Puts a shard in the place of another, copying what clones share.
    fn put(&mut self, index: usize, shard: Shard) {
        self.change(index, |_, place| *place = shard);
    }

    /// Changes a shard, copying what clones share.
    fn change(&mut self, index: usize, change: impl FnOnce(&Layout<W>, &mut Shard)) {
        let branch = &mut self.branches[index / (LEAF * BRANCH)];
        let leaf = &mut Arc::make_mut(&mut branch.leaves)[index / LEAF % BRANCH];
        let shard = &mut Arc::make_mut(&mut leaf.shards)[index % LEAF];
        let best = shard.best();
        change(&self.layout, shard);
        if shard.best() == best {
            return;
        }
        leaf.best = best_shard(&leaf.shards);
        branch.best = best_leaf(&branch.leaves);
        self.best = self.branches.iter().map(|branch| branch.best).max().unwrap_or(0);
    }

    /// Adds a shard behind the last one.
    fn push(&mut self, shard: Shard) {
        let index = self.shards;
        self.shards += 1;
        if index.is_multiple_of(LEAF * BRANCH) {
            self.branches.push(Branch { best: 0, leaves: Arc::default() });
        }
        let branch = &mut self.branches[index / (LEAF * BRANCH)];
        if index.is_multiple_of(LEAF) {
            let leaf = Leaf { best: shard.best(), shards: Arc::new([shard]) };
            branch.leaves = branch.leaves.iter().cloned().chain([leaf]).collect();
        } else {
            let leaf = &mut Arc::make_mut(&mut branch.leaves)[index / LEAF % BRANCH];
            leaf.best = leaf.best.max(shard.best());
            leaf.shards = leaf.shards.iter().cloned().chain([shard]).collect();
        }
        branch.best = best_leaf(&branch.leaves);
    }

    /// Takes the last shard away.
    fn pop(&mut self) -> Shard {
        self.shards -= 1;
        let index = self.shards;
        let shard = self.shard(index).clone();
        let branch = &mut self.branches[index / (LEAF * BRANCH)];
        if index.is_multiple_of(LEAF) {
            branch.leaves = branch.leaves[..index / LEAF % BRANCH].into();
        } else {
            let leaf = &mut Arc::make_mut(&mut branch.leaves)[index / LEAF % BRANCH];
            leaf.shards = leaf.shards[..index % LEAF].into();
            leaf.best = best_shard(&leaf.shards);
        }
        branch.best = best_leaf(&branch.leaves);
        if index.is_multiple_of(LEAF * BRANCH) {
            self.branches.pop();
        }
        shard
    }

    fn grow(&mut self) {
        if self.shards == 0 {
            return self.push(Shard::default());
        }
        let (new, from) = (self.shards, buddy(self.shards));
        let old = self.shard(from).clone();
        let entries: Vec<EntryRef<'_>> = old.entries(&self.layout).collect();
        let (mut moved, mut kept): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| shard_of(entry.hash, new + 1) == new);
        let mut scratch = Vec::new();
        let moved = Shard::build(&self.layout, &mut moved, &mut scratch);
        let kept = Shard::build(&self.layout, &mut kept, &mut scratch);
        self.push(moved);
        self.put(from, kept);
    }

    fn shrink(&mut self) {
        let last = self.pop();
        if self.shards == 0 {
            return;
        }
        let into = buddy(self.shards);
        let old = self.shard(into).clone();
        let mut entries: Vec<_> = old.entries(&self.layout).chain(last.entries(&self.layout)).collect();
        self.put(into, Shard::build(&self.layout, &mut entries, &mut Vec::new()));
    }

    /// Adds a rule, which must be [`Tuple::fits`].
    pub fn insert(&mut self, rule: &TableRule<W>) {
        self.rules += 1;
        if self.shards * SHARD_RULES < self.rules {
            self.grow();
        }
        let index = shard_of(self.layout.hash_of_rule(&rule.pattern), self.shards);
        self.prefetch_path(index);
        let shard = self.shard(index).with(&self.layout, rule);
        self.put(index, shard);
    }

    /// Where a rule stands, if it stands here: shard and entry.
    pub fn position(&self, pattern: &Pattern<W>, precedence: u64, id: Id<'_>) -> Option<(usize, usize)> {
        if self.shards == 0 || !self.fits(pattern) {
            return None;
        }
        let hash = self.layout.hash_of_rule(pattern);
        let shard = shard_of(hash, self.shards);
        if !self.shard(shard).likely_has(hash) {
            return None;
        }
        let mut words = Vec::with_capacity(self.layout.stride());
        self.layout.encode_pattern(pattern, &mut words);
        let index = self.shard(shard).position(&self.layout, (hash, &words), precedence, id)?;
        Some((shard, index))
    }

    /// Removes the rule at a [`Tuple::position`].
    pub fn remove(&mut self, (shard, index): (usize, usize)) {
        self.prefetch_path(shard);
        let without = self.shard(shard).without(&self.layout, index);
        self.put(shard, without);
        self.rules -= 1;
        // Half a shard of slack, so that a rule that comes and goes does not split and merge each time.
        if self.rules + SHARD_RULES / 2 < (self.shards - 1) * SHARD_RULES || self.rules == 0 {
            self.shrink();
        }
    }

    /// Puts a rule in the place of the one at a [`Tuple::position`], whose pattern and id it has.
    pub fn replace(&mut self, (shard, index): (usize, usize), rule: &TableRule<W>) {
        self.prefetch_path(shard);
        self.change(shard, |layout, shard| shard.replace(layout, index, rule));
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        let mut bytes = self.layout.memory_bytes() + self.branches.capacity() * size_of::<Branch>();
        for branch in &self.branches {
            bytes += ARC_BYTES + size_of_val(&*branch.leaves);
            for leaf in branch.leaves.iter() {
                bytes += LINE_BYTES + size_of_val(&*leaf.shards);
                bytes += leaf.shards.iter().map(Shard::memory_bytes).sum::<usize>();
            }
        }
        bytes
    }
}

fn best_shard(shards: &[Shard]) -> u64 {
    shards.iter().map(Shard::best).max().unwrap_or(0)
}

fn best_leaf(leaves: &[Leaf]) -> u64 {
    leaves.iter().map(|leaf| leaf.best).max().unwrap_or(0)
}
