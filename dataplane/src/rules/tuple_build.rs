//! The first rules of a tuple: written side by side, then sorted into shards.

use super::entry::{Id, Layout};
use super::shard::EntryRef;
use super::table::TableRule;
use super::tuple::shard_of;

/// Rules as entries, one behind the other, in the order in which they came.
pub struct Encoded {
    words: Vec<u64>,
    stride: usize,
    ids: Vec<u64>,
    /// Where each id ends, and its padding.
    ends: Vec<(u32, u32)>,
    hashes: Vec<u64>,
}

impl Encoded {
    /// Writes rules as entries of a layout; they come with their hashes.
    pub fn new<const W: usize>(layout: &Layout<W>, rules: &[(&TableRule<W>, u64)]) -> Encoded {
        let stride = layout.stride();
        let (mut words, mut ids) =
            (Vec::with_capacity(rules.len() * stride), Vec::with_capacity(rules.len() * 2));
        let mut ends = Vec::with_capacity(rules.len() + 1);
        ends.push((0, 0));
        for (rule, _) in rules {
            layout.encode(rule, &mut words);
            let padding = Id::encode(&rule.id, &mut ids);
            ends.push((ids.len() as u32, padding));
        }
        Encoded { words, stride, ids, ends, hashes: rules.iter().map(|(_, hash)| *hash).collect() }
    }

    /// The entry of a rule.
    pub fn entry(&self, index: usize) -> EntryRef<'_> {
        let (start, (end, padding)) = (self.ends[index].0, self.ends[index + 1]);
        let id = Id { words: &self.ids[start as usize..end as usize], padding };
        EntryRef { words: &self.words[index * self.stride..][..self.stride], id, hash: self.hashes[index] }
    }
}

/// A counting sort: where the rules of each shard start in the order, and the order.
pub fn by_shard<const W: usize>(rules: &[(&TableRule<W>, u64)], shards: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; shards + 1];
    rules.iter().for_each(|(_, hash)| starts[shard_of(*hash, shards) + 1] += 1);
    (0..shards).for_each(|shard| starts[shard + 1] += starts[shard]);
    let (mut next, mut order) = (starts.clone(), vec![0u32; rules.len()]);
    for (index, (_, hash)) in rules.iter().enumerate() {
        let at = &mut next[shard_of(*hash, shards)];
        order[*at as usize] = index as u32;
        *at += 1;
    }
    (starts, order)
}
