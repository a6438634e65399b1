//! The book of rules: what the host knows of each rule, and which of them are coming, here and leaving.
//!
//! A change is staged first: rules come in beside those that they replace, and nobody is shown them. What was staged is
//! either undone, or settled once it is durable and in force. So a change that fails leaves no trace, several changes can be
//! made at once and yet fail one by one, and whoever looks at the book in between sees it as it was before. The book is
//! locked for moments only; who may change it is decided elsewhere ([`super::desk`]).

use super::names::{NameId, Names};
use super::record::{NONE, Owner, Record, Records, Shape, Shapes, Stage, Target};
use super::rule_check::References;
use super::rule_error::RuleError;
use super::segment::Place;
use crate::counters::MAX_RULES;
use crate::rules::pattern::{Pattern, precedence};
use crate::rules::rule::{Rule, Scope};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Steps whose records are fetched together.
const STEPS_FETCHED: usize = 32;

/// What a port is to rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A tenant's.
    Vf,
    /// To the underlay.
    Uplink,
}

/// One step of a change: the slot of a rule that leaves and that of a rule that comes, of one id. [`NONE`] where there is
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Leaves.
    pub old: u32,
    /// Comes.
    pub new: u32,
}

/// What came of staging a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// The same rule stands there already.
    Unchanged,
    /// It is coming.
    Step(Step),
}

/// The rules of a host.
#[derive(Default)]
pub struct Book {
    by_id: HashTable<u32>,
    /// Hashes ids.
    hasher: DefaultHashBuilder,
    /// Hashes encoded rules, so that equal ones are known by it; keyed anew in each process.
    fingerprints: RandomState,
    /// The rules by slot.
    pub records: Records,
    /// What rules have in common.
    pub shapes: Shapes,
    /// The ports that rules name.
    pub names: Names,
    /// Slots of rules whose ports are not there.
    pub dangling: BTreeSet<u32>,
    /// Rules that are coming or here.
    count: usize,
}

impl Book {
    /// The rules that will be there when everything that is staged is settled.
    pub fn len(&self) -> usize {
        self.count
    }

    /// No rules.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What fingerprints of rules are made with.
    pub fn fingerprints(&self) -> RandomState {
        self.fingerprints.clone()
    }

    fn find(&self, id: &str, hash: u64, stages: [Stage; 2]) -> Option<u32> {
        let is_it = |slot: &u32| {
            self.records
                .get(*slot)
                .is_some_and(|record| stages.contains(&record.stage) && record.id.bytes() == id.as_bytes())
        };
        self.by_id.find(hash, is_it).copied()
    }

    /// The rule of this id that is in force: its slot, and where it stands in the state file.
    pub fn in_force(&self, id: &str) -> Option<(u32, Place)> {
        let slot = self.find(id, self.hasher.hash_one(id.as_bytes()), [Stage::Here, Stage::Leaving])?;
        Some((slot, self.records.get(slot)?.place))
    }

    /// Makes room for so many more rules at once.
    pub fn reserve(&mut self, rules: usize) {
        let (records, hasher) = (&self.records, &self.hasher);
        self.by_id
            .reserve(rules, |slot| records.get(*slot).map_or(0, |record| hasher.hash_one(record.id.bytes())));
    }

    /// Fetches what staging rules of these ids reads: many side by side, where one after the other would wait for each.
    pub fn fetch<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        for id in ids {
            self.by_id.find(self.hasher.hash_one(id.as_bytes()), |slot| {
                self.records.prefetch(*slot);
                false
            });
        }
    }

    /// Stages a rule whose references have been checked.
    ///
    /// # Errors
    /// There are too many rules.
    pub fn stage_put(
        &mut self,
        rule: &Rule,
        fingerprint: u64,
        references: References,
    ) -> Result<Staged, RuleError> {
        let hash = self.hasher.hash_one(rule.id.as_bytes());
        let old = self.find(&rule.id, hash, [Stage::Coming, Stage::Here]).unwrap_or(NONE);
        if self.records.get(old).is_some_and(|record| record.fingerprint == fingerprint) {
            return Ok(Staged::Unchanged);
        }
        if old == NONE && self.count >= MAX_RULES {
            return Err(RuleError::TooMany { count: self.count + 1 });
        }
        Ok(Staged::Step(self.stage(old, rule, (hash, fingerprint), references)))
    }

    /// Stages a rule in place of itself, since what it refers to has come.
    pub fn stage_again(&mut self, old: u32, rule: &Rule, references: References) -> Option<Step> {
        let Record { fingerprint, place, .. } = *self.records.get(old)?;
        let hash = self.hasher.hash_one(rule.id.as_bytes());
        let step = self.stage(old, rule, (hash, fingerprint), references);
        self.records.get_mut(step.new)?.place = place;
        Some(step)
    }

    fn stage(
        &mut self,
        old: u32,
        rule: &Rule,
        (hash, fingerprint): (u64, u64),
        references: References,
    ) -> Step {
        let mut record = self.record(rule, fingerprint, references.owner);
        if let Some(port) = references.deliver {
            record.set_target(Target::Port(port));
        }
        let new = self.records.insert(record);
        let (records, hasher) = (&self.records, &self.hasher);
        let hash_of = |slot: &u32| records.get(*slot).map_or(0, |record| hasher.hash_one(record.id.bytes()));
        self.by_id.insert_unique(hash, new, hash_of);
        self.count += 1;
        self.leave(old);
        Step { old, new }
    }

    fn record(&mut self, rule: &Rule, fingerprint: u64, owner: Owner) -> Record {
        let rank = precedence(rule.priority, &rule.matches);
        macro_rules! record {
            ($pattern:expr) => {{
                let pattern = $pattern;
                let shape = Shape::new(owner, rank, &pattern);
                let number = self.shapes.acquire(shape);
                Record::new((&*rule.id).into(), fingerprint, rule.priority, (number, &shape), &pattern)
            }};
        }
        match &rule.scope {
            Scope::Egress(_) => record!(Pattern::egress(&rule.matches)),
            Scope::Ingress(scope) => {
                let uplink = match owner {
                    Owner::Ingress(Some(name)) => self.names.port(name).map(|(port, _)| port.0),
                    Owner::Ingress(None) | Owner::Egress(_) => None,
                };
                record!(Pattern::ingress(&rule.matches, scope.tunnel, scope.local, scope.remote, uplink))
            }
        }
    }

    /// Stages a deletion.
    ///
    /// # Errors
    /// There is no such rule.
    pub fn stage_delete(&mut self, id: &str) -> Result<Step, RuleError> {
        match self.find(id, self.hasher.hash_one(id.as_bytes()), [Stage::Coming, Stage::Here]) {
            Some(old) => {
                self.leave(old);
                Ok(Step { old, new: NONE })
            }
            None => Err(RuleError::NoRule { id: id.to_owned() }),
        }
    }

    fn leave(&mut self, slot: u32) {
        if let Some(record) = self.records.get_mut(slot) {
            record.stage = match record.stage {
                Stage::Coming | Stage::Stillborn => Stage::Stillborn,
                Stage::Here | Stage::Leaving => Stage::Leaving,
            };
            self.count -= 1;
        }
    }

    /// Undoes the last steps that were staged. No worker has seen their rules: the slots are free at once.
    pub fn undo(&mut self, steps: &[Step]) {
        for step in steps.iter().rev() {
            if step.new != NONE {
                self.drop_record(step.new);
                self.records.reuse(&[step.new]);
                self.count -= 1;
            }
            if let Some(record) = self.records.get_mut(step.old) {
                record.stage = match record.stage {
                    Stage::Stillborn | Stage::Coming => Stage::Coming,
                    Stage::Leaving | Stage::Here => Stage::Here,
                };
                self.count += 1;
            }
        }
    }

    /// Settles steps that are durable and in force. Returns the slots that are to be reused once no worker counts there any
    /// more.
    pub fn settle(&mut self, steps: &[Step]) -> Vec<u32> {
        let mut freed = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            if index.is_multiple_of(STEPS_FETCHED) {
                self.fetch_steps(&steps[index..steps.len().min(index + STEPS_FETCHED)]);
            }
            if let Some(record) = self.records.get_mut(step.new)
                && record.stage == Stage::Coming
            {
                record.stage = Stage::Here;
                let (owner, target) = (self.shapes.get(record.shape).owner, record.target());
                mentioned(owner, target).for_each(|name| self.names.mention(name));
            }
            if let Some(record) = self.records.get(step.old) {
                if record.stage == Stage::Leaving {
                    let (owner, target) = (self.shapes.get(record.shape).owner, record.target());
                    mentioned(owner, target).for_each(|name| self.names.forget(name));
                }
                self.drop_record(step.old);
                freed.push(step.old);
            }
        }
        freed
    }

    /// Fetches what settling these steps reads.
    fn fetch_steps(&self, steps: &[Step]) {
        steps.iter().flat_map(|step| [step.new, step.old]).for_each(|slot| self.records.prefetch(slot));
        for record in steps.iter().filter_map(|step| self.records.get(step.old)) {
            self.by_id.find(self.hasher.hash_one(record.id.bytes()), |_| false);
        }
    }

    fn drop_record(&mut self, slot: u32) {
        self.dangling.remove(&slot);
        let Some(record) = self.records.get(slot) else { return };
        let hash = self.hasher.hash_one(record.id.bytes());
        if let Ok(found) = self.by_id.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        if let Some(record) = self.records.remove(slot) {
            self.shapes.release(record.shape);
        }
    }

    /// Rules in force that name a port, wherever, and the smallest id among them.
    pub fn mentions(&self, port: &str) -> Option<(usize, Arc<str>)> {
        let name = self.names.find(port)?;
        let here = self.records.iter().map(|(_, record)| record).filter(|record| {
            mentioned(self.shapes.get(record.shape).owner, record.target()).any(|other| other == name)
        });
        let first = here.map(|record| record.id.text()).min()?;
        Some((self.names.mentions(name).count(), first.into()))
    }

    /// Some rule forwards into a tunnel.
    pub fn forwards(&self) -> bool {
        self.records.iter().any(|(_, record)| matches!(record.target(), Target::Tunnel(_)))
    }

    /// The rules in force of one chunk of slots: ids of a port's egress rules, or of all. `None` behind the last chunk.
    pub fn ids(&self, chunk: usize, port: Option<NameId>) -> Option<Vec<Arc<str>>> {
        let wanted = |record: &&Record| {
            let of_port = port.is_none_or(|port| self.shapes.get(record.shape).owner == Owner::Egress(port));
            of_port && matches!(record.stage, Stage::Here | Stage::Leaving)
        };
        let records = self.records.chunk(chunk)?.map(|(_, record)| record);
        Some(records.filter(wanted).map(|record| record.id.text().into()).collect())
    }

    /// The slots among these whose rules name one of the ports.
    pub fn dangling_on(&self, ports: &HashSet<NameId>) -> Vec<u32> {
        let of = |slot: &&u32| {
            let Some(record) = self.records.get(**slot) else { return false };
            mentioned(self.shapes.get(record.shape).owner, record.target()).any(|name| ports.contains(&name))
        };
        self.dangling.iter().filter(of).copied().collect()
    }
}

/// The ports that a rule names; one that is named twice comes once.
fn mentioned(owner: Owner, target: Target) -> impl Iterator<Item = NameId> {
    let owner = match owner {
        Owner::Egress(port) => Some(port),
        Owner::Ingress(uplink) => uplink,
    };
    let target = match target {
        Target::Port(port) => Some(port),
        Target::None | Target::Tunnel(_) => None,
    };
    owner.into_iter().chain(target.filter(move |port| Some(*port) != owner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::PortId;
    use crate::control::rule_check::refer;
    use crate::rules::rule::tests::rule;

    fn book() -> Book {
        let mut book = Book::default();
        book.names.set_port("p", Some((PortId(1), PortKind::Vf)));
        book.names.set_port("q", Some((PortId(2), PortKind::Vf)));
        book
    }

    fn drop_rule(id: &str, priority: u32) -> Rule {
        rule(&format!(r#"{{"id":"{id}","port":"p","priority":{priority},"action":"drop"}}"#))
    }

    fn put(book: &mut Book, rule: &Rule) -> Option<Step> {
        let references = refer(rule, &mut book.names);
        match book.stage_put(rule, u64::from(rule.priority), references).unwrap() {
            Staged::Step(step) => Some(step),
            Staged::Unchanged => None,
        }
    }

    fn ids(book: &Book) -> Vec<String> {
        let mut ids: Vec<String> =
            (0..).map_while(|chunk| book.ids(chunk, None)).flatten().map(|id| id.to_string()).collect();
        ids.sort();
        ids
    }

    #[test]
    fn what_is_staged_is_not_shown_until_it_is_settled() {
        let mut book = book();
        let first = put(&mut book, &drop_rule("a", 1)).unwrap();
        assert_eq!((book.len(), book.in_force("a"), ids(&book).len()), (1, None, 0));
        assert!(book.settle(&[first]).is_empty());
        let (slot, _) = book.in_force("a").unwrap();
        assert_eq!(put(&mut book, &drop_rule("a", 1)), None);
        let second = put(&mut book, &drop_rule("a", 2)).unwrap();
        assert_eq!((second.old, book.in_force("a").unwrap().0, book.len()), (slot, slot, 1));
        assert_eq!(book.settle(&[second]), [slot]);
        assert_eq!(book.in_force("a").unwrap().0, second.new);
        assert_eq!(book.names.mentions(NameId(0)).count(), 1);
        let third = book.stage_delete("a").unwrap();
        assert!(book.in_force("a").is_some() && book.stage_delete("a").is_err() && book.is_empty());
        book.settle(&[third]);
        assert_eq!((book.in_force("a"), book.names.mentions(NameId(0)).count()), (None, 0));
    }

    #[test]
    fn what_is_undone_leaves_no_trace() {
        let mut book = book();
        let stands = put(&mut book, &drop_rule("a", 1)).unwrap();
        book.settle(&[stands]);
        let mut steps = Vec::new();
        steps.extend(put(&mut book, &drop_rule("a", 2)));
        steps.extend(put(&mut book, &drop_rule("b", 1)));
        steps.push(book.stage_delete("a").unwrap());
        steps.extend(put(&mut book, &drop_rule("a", 3)));
        steps.push(book.stage_delete("b").unwrap());
        assert_eq!((book.len(), steps.len()), (1, 5));
        book.undo(&steps);
        assert_eq!((book.len(), ids(&book)), (1, vec!["a".to_owned()]));
        assert_eq!(book.in_force("a").unwrap().0, stands.new);
        assert_eq!(put(&mut book, &drop_rule("a", 1)), None);
    }

    #[test]
    fn one_change_may_touch_a_rule_twice() {
        let mut book = book();
        let stands = put(&mut book, &drop_rule("a", 1)).unwrap();
        book.settle(&[stands]);
        let steps = [
            put(&mut book, &drop_rule("a", 2)).unwrap(),
            book.stage_delete("a").unwrap(),
            put(&mut book, &drop_rule("a", 3)).unwrap(),
        ];
        assert_eq!(book.records.get(steps[0].new).unwrap().stage, Stage::Stillborn);
        assert_eq!(book.settle(&steps), [stands.new, steps[0].new]);
        assert_eq!((book.in_force("a").unwrap().0, book.len()), (steps[2].new, 1));
        assert_eq!(book.names.mentions(NameId(0)).count(), 1);
    }

    #[test]
    fn mentions_count_ports_once_a_rule() {
        let mut book = book();
        let deliver = rule(r#"{"id":"d","port":"p","action":{"deliver":{"port":"q"}}}"#);
        let itself = rule(r#"{"id":"c","port":"p","action":{"deliver":{"port":"p"}}}"#);
        let steps = [put(&mut book, &deliver).unwrap(), put(&mut book, &itself).unwrap()];
        book.settle(&steps);
        assert_eq!(book.mentions("q"), Some((1, "d".into())));
        assert_eq!(book.mentions("p"), Some((2, "c".into())));
        assert_eq!(book.mentions("r"), None);
        let port = book.names.find("p");
        assert_eq!(book.ids(0, port).unwrap().len(), 2);
        assert_eq!(book.ids(0, book.names.find("q")).unwrap().len(), 0);
    }
}
