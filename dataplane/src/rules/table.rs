//! The compiled rule table: tuple space search. Immutable; compiled by the control side, read by the workers.
//!
//! Rules that look at the same bits (one mask) share a *tuple*: a hash table from the masked key to the rules with that
//! value, best first. A lookup asks the tuples in the order of the best precedence that each holds and stops when no
//! later one can win. Ranges of ports are not part of the mask: they are compared at the entries, which form a short
//! chain. Reference: V. Srinivasan, S. Suri, G. Varghese, "Packet classification using tuple space search", 1999.

use super::key::mix;
use super::pattern::Pattern;
use crate::action::Action;
use std::collections::HashMap;
use std::sync::Arc;

/// A rule ready to be compiled into a table of `W`-word keys.
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

impl<const W: usize> TableRule<W> {
    fn outranks(&self, other: &TableRule<W>) -> bool {
        (self.precedence, &other.id) > (other.precedence, &self.id)
    }

    #[inline(always)]
    fn ports_match(&self, word6: u64) -> bool {
        let (src, dst) = ((word6 >> 48) as u16, (word6 >> 32) as u16);
        let Pattern { src_port, dst_port, .. } = &self.pattern;
        src_port.0 <= src && src <= src_port.1 && dst_port.0 <= dst && dst <= dst_port.1
    }
}

/// No entry.
const NONE: u32 = u32::MAX;

/// A bucket of a tuple's hash table: a piece of the hash, and the first entry of the chain.
#[derive(Clone, Copy)]
struct Bucket {
    fingerprint: u32,
    entry: u32,
}

/// A rule and the next one with the same mask and value.
struct Entry<const W: usize> {
    rule: TableRule<W>,
    next: u32,
}

/// The rules of one mask.
struct Tuple<const W: usize> {
    mask: [u64; W],
    best: u64,
    bucket_mask: usize,
    buckets: Box<[Bucket]>,
    entries: Box<[Entry<W>]>,
}

/// Rules over keys of `W` words.
pub struct Table<const W: usize> {
    tuples: Box<[Tuple<W>]>,
    rules: usize,
}

impl<const W: usize> Default for Table<W> {
    fn default() -> Self {
        Table { tuples: Box::default(), rules: 0 }
    }
}

#[inline(always)]
fn hash<const W: usize>(words: &[u64; W]) -> u64 {
    let mut pairs = words.chunks_exact(2);
    let mut hash = 0u64;
    for pair in &mut pairs {
        hash = mix(hash.rotate_left(23) ^ pair[0], pair[1]);
    }
    if let [last] = pairs.remainder() {
        hash = mix(hash, *last);
    }
    hash
}

#[inline(always)]
fn masked<const W: usize>(words: &[u64; W], mask: &[u64; W]) -> [u64; W] {
    let mut out = *words;
    for (word, mask) in out.iter_mut().zip(mask) {
        *word &= mask;
    }
    out
}

impl<const W: usize> Tuple<W> {
    fn compile(mask: [u64; W], mut rules: Vec<TableRule<W>>) -> Tuple<W> {
        // Same values together, the best of each first.
        rules.sort_unstable_by(|a, b| {
            (a.pattern.value.cmp(&b.pattern.value))
                .then(b.precedence.cmp(&a.precedence))
                .then(a.id.cmp(&b.id))
        });
        let best = rules.iter().map(|rule| rule.precedence).max().unwrap_or(0);
        let capacity = (rules.len() * 2).next_power_of_two();
        let mut buckets = vec![Bucket { fingerprint: 0, entry: NONE }; capacity].into_boxed_slice();
        let bucket_mask = capacity - 1;
        for (index, rule) in rules.iter().enumerate() {
            let first = index == 0 || rules[index - 1].pattern.value != rule.pattern.value;
            if first {
                let hash = hash(&rule.pattern.value);
                let mut at = hash as usize & bucket_mask;
                while buckets[at].entry != NONE {
                    at = (at + 1) & bucket_mask;
                }
                buckets[at] = Bucket { fingerprint: (hash >> 32) as u32, entry: index as u32 };
            }
        }
        let chained: Vec<u32> = (1..=rules.len())
            .map(|next| match rules.get(next) {
                Some(rule) if rule.pattern.value == rules[next - 1].pattern.value => next as u32,
                _ => NONE,
            })
            .collect();
        let entries = rules.into_iter().zip(chained).map(|(rule, next)| Entry { rule, next }).collect();
        Tuple { mask, best, bucket_mask, buckets, entries }
    }

    #[inline(always)]
    fn lookup(&self, words: &[u64; W]) -> Option<&TableRule<W>> {
        let key = masked(words, &self.mask);
        let hash = hash(&key);
        let mut at = hash as usize & self.bucket_mask;
        // Half of the buckets are empty, so the probe ends.
        loop {
            let bucket = self.buckets[at];
            if bucket.entry == NONE {
                return None;
            }
            if bucket.fingerprint == (hash >> 32) as u32 {
                let first = &self.entries[bucket.entry as usize];
                if first.rule.pattern.value == key {
                    return self.first_with_ports(first, words[6]);
                }
            }
            at = (at + 1) & self.bucket_mask;
        }
    }

    #[inline(always)]
    fn first_with_ports<'a>(&'a self, mut entry: &'a Entry<W>, word6: u64) -> Option<&'a TableRule<W>> {
        loop {
            if entry.rule.ports_match(word6) {
                return Some(&entry.rule);
            }
            entry = self.entries.get(entry.next as usize)?;
        }
    }
}

impl<const W: usize> Table<W> {
    /// Compiles rules. The time is linear in their number but for sorting.
    pub fn compile(rules: impl IntoIterator<Item = TableRule<W>>) -> Table<W> {
        let mut by_mask: HashMap<[u64; W], Vec<TableRule<W>>> = HashMap::new();
        let mut count = 0;
        for rule in rules {
            by_mask.entry(rule.pattern.mask).or_default().push(rule);
            count += 1;
        }
        let mut tuples: Vec<Tuple<W>> =
            by_mask.into_iter().map(|(mask, rules)| Tuple::compile(mask, rules)).collect();
        tuples.sort_unstable_by(|a, b| b.best.cmp(&a.best).then(a.mask.cmp(&b.mask)));
        Table { tuples: tuples.into(), rules: count }
    }

    /// The best rule for a packet with these words.
    #[inline]
    pub fn lookup(&self, words: &[u64; W]) -> Option<&TableRule<W>> {
        let mut best: Option<&TableRule<W>> = None;
        for tuple in &self.tuples {
            if let Some(best) = best
                && best.precedence > tuple.best
            {
                break;
            }
            if let Some(found) = tuple.lookup(words)
                && best.is_none_or(|best| found.outranks(best))
            {
                best = Some(found);
            }
        }
        best
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// No rules.
    pub fn is_empty(&self) -> bool {
        self.rules == 0
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

    fn egress(rules: &[Rule]) -> Table<7> {
        Table::compile(rules.iter().enumerate().map(|(slot, rule)| TableRule {
            pattern: Pattern::egress(&rule.matches),
            precedence: precedence(rule.priority, &rule.matches),
            id: rule.id.clone(),
            slot: slot as u32,
            action: Action::Drop(DropReason::RuleDrop),
            names_layer2: false,
        }))
    }

    fn ingress(rules: &[Rule]) -> Table<INGRESS_WORDS> {
        Table::compile(rules.iter().enumerate().map(|(slot, rule)| {
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
        }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn the_table_agrees_with_the_reference(
            rules in arbitrary::egress_rules(0..60),
            keys in proptest::collection::vec(arbitrary::key(), 1..60),
        ) {
            let (table, reference) = (egress(&rules), ReferenceTable::new(rules.clone()));
            for key in keys {
                let fast = table.lookup(&key.0).map(|rule| rule.id.clone());
                let slow = reference.egress(&key).map(|rule| rule.id.clone());
                prop_assert_eq!(fast, slow, "{:?}", key);
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
                let fast = table.lookup(&words).map(|rule| rule.id.clone());
                let slow = reference.ingress(&inner, &outer, Opaque::Vxlan(vni), &uplink.to_string());
                prop_assert_eq!(fast, slow.map(|rule| rule.id.clone()), "{:?} in {:?}", inner, outer);
            }
        }
    }

    #[test]
    fn an_empty_table_matches_nothing() {
        assert!(Table::<7>::default().lookup(&Key::ethernet(1, 2, 3, 0).0).is_none());
        assert!(egress(&[]).is_empty());
    }
}
