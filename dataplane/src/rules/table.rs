//! The compiled rule table: a persistent tuple space. Changed by the control side, read by the workers.
//!
//! Rules that look at the same bits share a *tuple* ([`super::tuple`]): a hash table from the masked key to the rules with
//! that value. Rules that hashing cannot tell apart are in a tree ([`super::tree`]); which rule stands where is decided
//! in [`super::root`]. A lookup asks the tuples in the order of the best precedence that each holds, then the tree, and
//! leaves out what cannot win any more.
//! References: V. Srinivasan, S. Suri, G. Varghese, "Packet classification using tuple space search", 1999;
//! P. Bagwell, "Ideal hash trees", 2001, for the sharing of what a change does not touch.
//!
//! A table is a value: a clone costs one count, and a later change to either of the two copies the few nodes on the way
//! to the rule. What a clone shows never changes.

pub use super::entry::Hit;
use super::entry::Id;
use super::pattern::Pattern;
use super::root::{BATCH, Root};
use crate::action::Action;
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

impl<const W: usize> Table<W> {
    /// A table of these rules, whose ids differ. The time is linear in their number but for sorting.
    pub fn compile(rules: impl IntoIterator<Item = TableRule<W>>) -> Table<W> {
        let rules: Vec<TableRule<W>> = rules.into_iter().collect();
        if rules.is_empty() {
            return Table::default();
        }
        Table { root: Some(Arc::new(Root::compile(&rules))) }
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
        Arc::make_mut(self.root.get_or_insert_with(|| Arc::new(Root::empty()))).insert(rule);
    }

    /// Removes the rule with this pattern, precedence and id. Whether it was there.
    pub fn remove(&mut self, pattern: &Pattern<W>, precedence: u64, id: &str) -> bool {
        let Some(root) = &mut self.root else { return false };
        let mut words = Vec::new();
        let padding = Id::encode(id, &mut words);
        let Some(place) = root.place(pattern, precedence, Id { words: &words, padding }) else {
            return false;
        };
        Arc::make_mut(root).remove(place);
        if root.len() == 0 {
            self.root = None;
        }
        true
    }

    /// Puts a rule in the place of the one with its pattern and id, and with this precedence: cheaper than a removal and
    /// an insertion, since all others stay where they are.
    ///
    /// # Errors
    /// The rule, where there is none for it to replace; nothing has changed then.
    pub fn replace(&mut self, precedence: u64, rule: TableRule<W>) -> Result<(), TableRule<W>> {
        let Some(root) = &mut self.root else { return Err(rule) };
        let mut words = Vec::new();
        let padding = Id::encode(&rule.id, &mut words);
        let Some(place) = root.place(&rule.pattern, precedence, Id { words: &words, padding }) else {
            return Err(rule);
        };
        Arc::make_mut(root).replace(place, precedence, rule);
        Ok(())
    }

    /// Fetches what a replacement of a rule with this pattern reads: to be called twice, some replacements ahead and then
    /// `closer`.
    pub fn prefetch(&self, pattern: &Pattern<W>, closer: bool) {
        match &self.root {
            Some(root) if closer => root.prefetch_bodies(pattern),
            Some(root) => root.prefetch(pattern),
            None => {}
        }
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.len())
    }

    /// No rules.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Bytes on the heap: the sizes of all allocations that the table refers to, without the allocator's own. What
    /// clones share is counted in each.
    pub fn memory_bytes(&self) -> usize {
        let Some(root) = &self.root else { return 0 };
        ARC_BYTES + size_of::<Root<W>>() + root.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::DropReason;
    use crate::rules::key::Key;
    use crate::rules::pattern::{INGRESS_WORDS, ingress_words, precedence};
    use crate::rules::reference::{ReferenceTable, arbitrary};
    use crate::rules::rule::{Match, Opaque, Rule, RuleAction, Scope};
    use ipnet::{IpNet, Ipv4Net};
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

    /// Inserts, replaces and removes the rules that the steps name, and compares the table after each with one that is
    /// compiled of the same rules; clones of every state must show that state to the end.
    fn change<const W: usize>(rules: &[TableRule<W>], steps: &[usize], keys: &[[u64; W]]) {
        let mut table = Table::default();
        let mut rules = rules.to_vec();
        let (mut there, mut kept) = (vec![false; rules.len()], Vec::new());
        for step in steps {
            let at = step % rules.len();
            let rule = &mut rules[at];
            let change = step / 7 % 4;
            if change > 1 {
                let before = rule.precedence;
                rule.slot += 1000;
                if change == 3 {
                    rule.precedence = (before & 0xffff) | ((*step as u64 >> 8) % 3) << 16;
                }
                assert_eq!(table.replace(before, rule.clone()).is_ok(), there[at]);
                // It stays, or stays away.
                there[at] ^= true;
            } else if there[at] {
                assert!(table.remove(&rule.pattern, rule.precedence, &rule.id));
                assert!(!table.remove(&rule.pattern, rule.precedence, &rule.id));
            } else {
                table.insert(rule.clone());
            }
            there[at] ^= true;
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

    /// Rules that are hard on a table, and packets near them: prefixes of any length, ranges, few priorities.
    fn nasty(seeds: &[[u32; 4]]) -> (Vec<Rule>, Vec<Key>) {
        let net = |bits: u32, length: u32| {
            let net = Ipv4Net::new((0x0a00_0000 | bits & 0x0103_ffff).into(), (length % 33) as u8);
            Some(IpNet::V4(net.unwrap().trunc()))
        };
        let range = |bits: u32| {
            let (first, width) = ((bits >> 16) as u16, bits as u16 >> (bits >> 8 & 15));
            Some((first, first.saturating_add(width)))
        };
        let rules = seeds.iter().enumerate().map(|(index, [a, b, c, d])| {
            let mut matches = Match::default();
            let kind = a % 8;
            if kind != 0 {
                matches.dst = net(*b, if kind < 3 { 32 } else { a >> 8 });
            }
            if kind > 4 {
                matches.src = net(*c, a >> 16);
            }
            if kind == 0 || kind > 3 {
                matches.dst_port = range(*d);
                matches.src_port = range(b.rotate_left(7)).filter(|_| a & 0x1000 != 0);
                matches.proto = (a & 0x2000 != 0).then_some(6);
            }
            let scope = Scope::Egress("vm1".into());
            let id = format!("{}-{index}", d % 7).into();
            Rule { id, scope, priority: a >> 28 & 3, matches, action: RuleAction::Drop }
        });
        let keys = seeds.iter().map(|[a, b, c, d]| {
            let mut key = Key::ethernet(1, 2, 0x0800, 0);
            let low = |bits: u32, noise: u32| 0x0a00_0000 | (bits ^ noise >> (noise & 31)) & 0x0103_ffff;
            key.set_ipv4(low(*c, *d), low(*b, *a), if a & 0x4000 == 0 { 6 } else { 17 }, 0);
            key.set_ports(
                (b.rotate_left(7) >> 16) as u16,
                ((d >> 16) as u16).wrapping_add((a >> 8) as u16 % 3),
            );
            key
        });
        (rules.collect(), keys.collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn nasty_tables_agree_with_the_reference_after_every_kind_of_change(
            seeds in proptest::collection::vec(any::<[u32; 4]>(), 1..900),
        ) {
            let (rules, keys) = nasty(&seeds);
            let words: Vec<_> = keys.iter().map(|key| key.0).collect();
            let expect = |rules: Vec<Rule>, among: &[Rule]| -> Vec<Option<u32>> {
                let slot = |rule: &Rule| among.iter().position(|r| r.id == rule.id).map(|slot| slot as u32);
                let reference = ReferenceTable::new(rules);
                keys.iter().map(|key| reference.egress(key).and_then(slot)).collect()
            };
            let all = expect(rules.clone(), &rules);
            prop_assert_eq!(&slots(&egress(&rules), &words), &all);

            let mut table = Table::default();
            for (slot, rule) in rules.iter().enumerate() {
                table.insert(egress_rule(slot, rule));
            }
            let grown = table.clone();
            prop_assert_eq!(&slots(&grown, &words), &all);

            for rule in rules.iter().step_by(2) {
                let rule = egress_rule(0, rule);
                prop_assert!(table.remove(&rule.pattern, rule.precedence, &rule.id));
            }
            let kept: Vec<Rule> = rules.iter().skip(1).step_by(2).cloned().collect();
            prop_assert_eq!(table.len(), kept.len());
            prop_assert_eq!(slots(&table, &words), expect(kept, &rules));
            prop_assert_eq!(&slots(&grown, &words), &all);

            for rule in rules.iter().skip(1).step_by(2) {
                let rule = egress_rule(0, rule);
                prop_assert!(table.remove(&rule.pattern, rule.precedence, &rule.id));
            }
            prop_assert!(table.is_empty());
            prop_assert_eq!(table.memory_bytes(), 0);
        }
    }

    #[test]
    fn large_and_small_tables_take_less_than_90_bytes_a_rule() {
        let rule = |slot: u32| {
            let net = Ipv4Net::new((slot << 8).into(), 24).unwrap();
            let matches = Match { dst: Some(IpNet::V4(net)), ..Match::default() };
            let pattern = Pattern::egress(&matches);
            let id = format!("rule-{slot:07}").into();
            let action = Action::Drop(DropReason::RuleDrop);
            TableRule { pattern, precedence: 24, id, slot, action, names_layer2: false }
        };
        for count in [100, 1_000, 100_000] {
            let table = Table::<7>::compile((0..count).map(rule));
            let bytes = table.memory_bytes() as f64 / f64::from(count);
            assert!(bytes < 90.0, "{bytes} bytes a rule in a table of {count}");
        }
    }

    #[test]
    fn an_empty_table_matches_nothing() {
        assert!(Table::<7>::default().lookup(&Key::ethernet(1, 2, 3, 0).0).is_none());
        assert!(egress(&[]).is_empty());
    }
}
