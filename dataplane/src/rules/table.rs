//! The compiled rule table: a persistent tuple space. Changed by the control side, read by the workers.
//!
//! Rules that look at the same bits share a [`Tuple`]: a hash table from the masked key to the rules with that value. A
//! lookup asks the tuples in the order of the best precedence that each holds and stops when no later one can win.
//! References: V. Srinivasan, S. Suri, G. Varghese, "Packet classification using tuple space search", 1999;
//! P. Bagwell, "Ideal hash trees", 2001, for the sharing of what a change does not touch.
//!
//! A table is a value: a clone costs one count, and a later change to either of the two copies the few nodes on the way
//! to the rule. What a clone shows never changes.

pub use super::entry::Hit;
use super::entry::{Id, PackedKey};
use super::pattern::Pattern;
use super::shard::Shard;
use super::tuple::{Found, Tuple, is_ranged};
use crate::action::Action;
use forebay_pipeline::prefetch::prefetch;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// A rule ready to be put into a table of `W`-word keys.
#[derive(Clone, Debug)]
pub struct TableRule<const W: usize> {
    /// Which packets match.
    pub pattern: Pattern<W>,
    /// How the rule ranks ([`super::pattern::precedence`]).
    pub precedence: u64,
    /// The user's name for it: the smaller one wins among equals.
    pub id: Arc<str>,
    /// Slot of the rule's counters.
    pub slot: u32,
    /// What is done.
    pub action: Action,
    /// The rule decides even about what is trapped otherwise.
    pub names_layer2: bool,
}

/// Bytes of the two counts in front of what an `Arc` points to.
pub(super) const ARC_BYTES: usize = 16;

/// Keys that are looked up together. 64 misses of the cache are more than a core can have under way, and what is noted
/// of each still stays in the first-level cache.
const BATCH: usize = 64;

/// Tuples whose shards a lookup of one key fetches at once.
const AHEAD: usize = 8;

#[derive(Clone)]
struct Root<const W: usize> {
    /// The tuple that holds the best rule first.
    tuples: Vec<Arc<Tuple<W>>>,
    rules: usize,
}

/// Rules over keys of `W` words.
#[derive(Clone)]
pub struct Table<const W: usize> {
    /// `None` without rules: an empty table has nothing on the heap.
    root: Option<Arc<Root<W>>>,
}

impl<const W: usize> Default for Table<W> {
    fn default() -> Self {
        Table { root: None }
    }
}

/// The best rule so far for one key.
#[derive(Clone, Copy)]
struct Best<'a, const W: usize> {
    precedence: u64,
    found: Option<Found<'a, W>>,
}

impl<'a, const W: usize> Best<'a, W> {
    const NONE: Best<'a, W> = Best { precedence: 0, found: None };

    /// A rule of this precedence could still win.
    #[inline(always)]
    fn may_lose_to(&self, precedence: u64) -> bool {
        self.found.is_none() || precedence >= self.precedence
    }

    #[inline(always)]
    fn offer(&mut self, found: Found<'a, W>) {
        let precedence = found.precedence();
        let wins = match &self.found {
            None => true,
            Some(_) if precedence != self.precedence => precedence > self.precedence,
            Some(best) => found.id() < best.id(),
        };
        if wins {
            *self = Best { precedence, found: Some(found) };
        }
    }

    #[inline(always)]
    fn hit(&self) -> Option<Hit> {
        self.found.map(|found| found.hit())
    }
}

impl<const W: usize> Root<W> {
    #[inline(always)]
    fn lookup(&self, key: &[u64; W]) -> Option<Hit> {
        let mut best = Best::NONE;
        for tuples in self.tuples.chunks(AHEAD) {
            let mut seen: [Option<(PackedKey<W>, &Shard)>; AHEAD] = [None; AHEAD];
            for (tuple, seen) in tuples.iter().zip(&mut seen) {
                if !best.may_lose_to(tuple.best()) {
                    break;
                }
                let key = tuple.key(key);
                let shard = tuple.shard_of(&key);
                prefetch(shard);
                *seen = Some((key, shard));
            }
            for (tuple, seen) in tuples.iter().zip(&seen) {
                let Some((key, shard)) = seen else { return best.hit() };
                if !best.may_lose_to(tuple.best()) {
                    return best.hit();
                }
                if let Some(found) = tuple.find(shard, key) {
                    best.offer(found);
                }
            }
        }
        best.hit()
    }

    #[inline(always)]
    fn lookup_batch(&self, keys: &[[u64; W]], out: &mut [Option<Hit>]) {
        let mut best = [Best::NONE; BATCH];
        let empty = PackedKey { words: [0; W], ports: 0, hash: 0 };
        let mut seen: [(PackedKey<W>, Option<&Shard>, u8); BATCH] = [(empty, None, 0); BATCH];
        for tuple in &self.tuples {
            let mut open = 0;
            for (index, (key, best)) in keys.iter().zip(&best).enumerate() {
                if best.may_lose_to(tuple.best()) {
                    let key = tuple.key(key);
                    let shard = tuple.shard_of(&key);
                    prefetch(shard);
                    seen[open] = (key, Some(shard), index as u8);
                    open += 1;
                }
            }
            if open == 0 {
                break;
            }
            for (key, shard, _) in &seen[..open] {
                if let Some(shard) = shard {
                    tuple.prefetch_entry(shard, key);
                }
            }
            for (key, shard, index) in &seen[..open] {
                if let Some(found) = shard.and_then(|shard| tuple.find(shard, key)) {
                    best[usize::from(*index)].offer(found);
                }
            }
        }
        for (out, best) in out.iter_mut().zip(&best) {
            *out = best.hit();
        }
    }

    fn insert(&mut self, rule: &TableRule<W>) {
        let pattern = &rule.pattern;
        let at = self.tuples.iter().position(|tuple| tuple.fits(pattern)).unwrap_or_else(|| {
            self.tuples.push(Arc::new(Tuple::new(&pattern.mask, &pattern.mask, is_ranged(pattern))));
            self.tuples.len() - 1
        });
        Arc::make_mut(&mut self.tuples[at]).insert(rule);
        self.rules += 1;
        self.rank();
    }

    fn remove(&mut self, at: usize, position: (usize, usize)) {
        Arc::make_mut(&mut self.tuples[at]).remove(position);
        if self.tuples[at].len() == 0 {
            self.tuples.remove(at);
        }
        self.rules -= 1;
        self.rank();
    }

    fn rank(&mut self) {
        self.tuples.sort_by_key(|tuple| Reverse(tuple.best()));
    }
}

impl<const W: usize> Table<W> {
    /// A table of these rules, whose ids differ. The time is linear in their number but for sorting.
    pub fn compile(rules: impl IntoIterator<Item = TableRule<W>>) -> Table<W> {
        let rules: Vec<TableRule<W>> = rules.into_iter().collect();
        if rules.is_empty() {
            return Table::default();
        }
        let mut alike: HashMap<([u64; W], bool), Vec<&TableRule<W>>> = HashMap::new();
        for rule in &rules {
            alike.entry((rule.pattern.mask, is_ranged(&rule.pattern))).or_default().push(rule);
        }
        let tuples = alike
            .into_iter()
            .map(|((mask, ranged), rules)| Arc::new(Tuple::build(Tuple::new(&mask, &mask, ranged), &rules)));
        let mut root = Root { tuples: tuples.collect(), rules: rules.len() };
        root.rank();
        Table { root: Some(Arc::new(root)) }
    }

    /// The best rule for a packet with these words.
    #[inline]
    pub fn lookup(&self, key: &[u64; W]) -> Option<Hit> {
        self.root.as_ref()?.lookup(key)
    }

    /// The best rule for each of these keys, as [`Table::lookup`] finds it, with the cache misses of up to 64 keys
    /// under way at once. Where one slice is longer, its rest is left alone.
    #[inline]
    pub fn lookup_batch(&self, keys: &[[u64; W]], out: &mut [Option<Hit>]) {
        for (keys, out) in keys.chunks(BATCH).zip(out.chunks_mut(BATCH)) {
            match &self.root {
                Some(root) => root.lookup_batch(keys, out),
                None => out.iter_mut().take(keys.len()).for_each(|out| *out = None),
            }
        }
    }

    /// Adds a rule whose id is not in the table: a rule that replaces another comes after its removal.
    pub fn insert(&mut self, rule: TableRule<W>) {
        let empty = || Arc::new(Root { tuples: Vec::new(), rules: 0 });
        Arc::make_mut(self.root.get_or_insert_with(empty)).insert(&rule);
    }

    /// Removes the rule with this pattern, precedence and id. Whether it was there.
    pub fn remove(&mut self, pattern: &Pattern<W>, precedence: u64, id: &str) -> bool {
        let Some(root) = &mut self.root else { return false };
        let mut words = Vec::new();
        let padding = Id::encode(id, &mut words);
        let id = Id { words: &words, padding };
        let places = root.tuples.iter().enumerate();
        let Some((at, position)) =
            places.filter_map(|(at, tuple)| Some((at, tuple.position(pattern, precedence, id)?))).next()
        else {
            return false;
        };
        Arc::make_mut(root).remove(at, position);
        if root.rules == 0 {
            self.root = None;
        }
        true
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.rules)
    }

    /// No rules.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Bytes on the heap: the sizes of all allocations that the table refers to, without the allocator's own. What
    /// clones share is counted in each.
    pub fn memory_bytes(&self) -> usize {
        let Some(root) = &self.root else { return 0 };
        let tuples = root.tuples.iter().map(|tuple| ARC_BYTES + size_of::<Tuple<W>>() + tuple.memory_bytes());
        ARC_BYTES + size_of::<Root<W>>() + root.tuples.capacity() * size_of::<usize>() + tuples.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::DropReason;
    use crate::rules::key::Key;
    use crate::rules::pattern::{INGRESS_WORDS, ingress_words, precedence};
    use crate::rules::reference::{ReferenceTable, arbitrary};
    use crate::rules::rule::{Opaque, Rule, Scope};
    use proptest::prelude::*;

    fn egress_rule(slot: usize, rule: &Rule) -> TableRule<7> {
        TableRule {
            pattern: Pattern::egress(&rule.matches),
            precedence: precedence(rule.priority, &rule.matches),
            id: rule.id.clone(),
            slot: slot as u32,
            action: Action::Drop(DropReason::RuleDrop),
            names_layer2: false,
        }
    }

    fn egress(rules: &[Rule]) -> Table<7> {
        Table::compile(rules.iter().enumerate().map(|(slot, rule)| egress_rule(slot, rule)))
    }

    fn ingress_rule(slot: usize, rule: &Rule) -> TableRule<INGRESS_WORDS> {
        let Scope::Ingress(scope) = &rule.scope else { panic!("not ingress: {rule:?}") };
        let uplink = scope.uplink.as_ref().map(|name| name.parse().unwrap());
        TableRule {
            pattern: Pattern::ingress(&rule.matches, scope.tunnel, scope.local, scope.remote, uplink),
            precedence: precedence(rule.priority, &rule.matches),
            id: rule.id.clone(),
            slot: slot as u32,
            action: Action::Trap,
            names_layer2: false,
        }
    }

    fn ingress(rules: &[Rule]) -> Table<INGRESS_WORDS> {
        Table::compile(rules.iter().enumerate().map(|(slot, rule)| ingress_rule(slot, rule)))
    }

    /// The slots that a table finds for these keys; one by one and in a batch they are the same.
    fn slots<const W: usize>(table: &Table<W>, keys: &[[u64; W]]) -> Vec<Option<u32>> {
        let single: Vec<_> = keys.iter().map(|key| table.lookup(key)).collect();
        let mut batch = vec![None; keys.len()];
        table.lookup_batch(keys, &mut batch);
        assert_eq!(single, batch);
        single.into_iter().map(|hit| hit.map(|hit| hit.slot)).collect()
    }

    /// Inserts and removes the rules that the steps name, in turns, and compares the table after each with one that is
    /// compiled of the same rules; clones of every state must show that state to the end.
    fn change<const W: usize>(rules: &[TableRule<W>], steps: &[usize], keys: &[[u64; W]]) {
        let mut table = Table::default();
        let (mut there, mut kept) = (vec![false; rules.len()], Vec::new());
        for step in steps {
            let at = step % rules.len();
            let rule = &rules[at];
            if there[at] {
                assert!(table.remove(&rule.pattern, rule.precedence, &rule.id));
                assert!(!table.remove(&rule.pattern, rule.precedence, &rule.id));
            } else {
                table.insert(rule.clone());
            }
            there[at] = !there[at];
            let present = rules.iter().zip(&there).filter(|(_, there)| **there).map(|(rule, _)| rule.clone());
            let compiled = Table::compile(present);
            assert_eq!(table.len(), compiled.len());
            let found = slots(&table, keys);
            assert_eq!(found, slots(&compiled, keys));
            kept.push((table.clone(), found));
        }
        for (table, found) in kept {
            assert_eq!(slots(&table, keys), found);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn the_table_agrees_with_the_reference(
            rules in arbitrary::egress_rules(0..60),
            keys in proptest::collection::vec(arbitrary::key(), 1..60),
        ) {
            let (table, reference) = (egress(&rules), ReferenceTable::new(rules.clone()));
            let fast = slots(&table, &keys.iter().map(|key| key.0).collect::<Vec<_>>());
            for (key, slot) in keys.iter().zip(fast) {
                let slow = reference.egress(key).map(|rule| &rule.id);
                prop_assert_eq!(slot.map(|slot| &rules[slot as usize].id), slow, "{:?}", key);
            }
        }

        #[test]
        fn the_ingress_table_agrees_with_the_reference(
            rules in arbitrary::ingress_rules(0..40),
            packets in proptest::collection::vec((arbitrary::key(), arbitrary::key(), 0u32..3, 0u16..3), 1..40),
        ) {
            let (table, reference) = (ingress(&rules), ReferenceTable::new(rules.clone()));
            for (inner, outer, vni, uplink) in packets {
                let words = ingress_words(&inner, &outer, Opaque::Vxlan(vni), uplink);
                let fast = table.lookup(&words).map(|hit| rules[hit.slot as usize].id.clone());
                let slow = reference.ingress(&inner, &outer, Opaque::Vxlan(vni), &uplink.to_string());
                prop_assert_eq!(fast, slow.map(|rule| rule.id.clone()), "{:?} in {:?}", inner, outer);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn changes_one_by_one_lead_to_what_a_compilation_gives(
            rules in arbitrary::egress_rules(1..80),
            steps in proptest::collection::vec(any::<usize>(), 0..160),
            keys in proptest::collection::vec(arbitrary::key(), 1..90),
        ) {
            let rules: Vec<_> = rules.iter().enumerate().map(|(slot, rule)| egress_rule(slot, rule)).collect();
            change(&rules, &steps, &keys.iter().map(|key| key.0).collect::<Vec<_>>());
        }

        #[test]
        fn ingress_changes_one_by_one_lead_to_what_a_compilation_gives(
            rules in arbitrary::ingress_rules(1..40),
            steps in proptest::collection::vec(any::<usize>(), 0..80),
            packets in proptest::collection::vec((arbitrary::key(), arbitrary::key(), 0u32..3, 0u16..3), 1..40),
        ) {
            let rules: Vec<_> = rules.iter().enumerate().map(|(slot, rule)| ingress_rule(slot, rule)).collect();
            let words = packets.iter().map(|(inner, outer, vni, uplink)| {
                ingress_words(inner, outer, Opaque::Vxlan(*vni), *uplink)
            });
            change(&rules, &steps, &words.collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_empty_table_matches_nothing() {
        assert!(Table::<7>::default().lookup(&Key::ethernet(1, 2, 3, 0).0).is_none());
        assert!(egress(&[]).is_empty());
    }
}
