//! One state of a table: its tuples, its tree, and which rule stands where.
//!
//! A rule stands in the finest tuple that it fits and whose bucket has room; otherwise in the tree. When enough rules of
//! the tree could share a tuple, that tuple is made and takes them. So few rules are a single tree, regular ones end up
//! in few tuples, and what fits nowhere stays in the tree. Invariant: no bucket has more than [`BUCKET`] rules, and there
//! are at most [`MOST_TUPLES`] tuples: no table is slow because of what its rules look like.

use super::best::{Best, Leader};
use super::entry::{Hit, Id};
use super::ladder::{Class, STEPS, ladder};
use super::packing::hash;
use super::pattern::Pattern;
use super::shard::Shard;
use super::table::{ARC_BYTES, TableRule};
use super::tree::{Node, Stored, Target, Winner};
use super::tree_build::build;
use super::tuple::{Tuple, is_ranged};
use arrayvec::ArrayVec;
use forebay_pipeline::prefetch::prefetch;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// Keys that are looked up together. 64 misses of the cache are more than a core can have under way, and what is noted
/// of each still stays in the first-level cache.
pub const BATCH: usize = 64;
/// Tuples whose shards a lookup of one key fetches at once.
const AHEAD: usize = 8;
/// Rules of one bucket. Each may have to be compared with a key: eight cost as much as one or two more probes.
const BUCKET: usize = 8;
/// Tuples of a table.
const MOST_TUPLES: usize = 24;
/// Rules that must wish for a tuple before it is made: at least what one node of the tree holds, of large tables one in
/// 64, but never more than can be moved within a fraction of a millisecond.
const LEAST_DEMAND: usize = 32;
const MOST_DEMAND: usize = 256;
const DEMAND_SHARE: usize = 64;
/// Classes whose demand is counted. With more, rare ones are forgotten, and those that one rule in so many wishes for
/// are still found (J. Misra, D. Gries, "Finding repeated elements", 1982).
const WISHES: usize = 64;

/// One state of a table.
#[derive(Clone)]
pub struct Root<const W: usize> {
    /// The tuple that holds the best rule first.
    tuples: Vec<Arc<Tuple<W>>>,
    tree: Option<Arc<Node<W>>>,
    wishes: Arc<Vec<(Class<W>, u32)>>,
    rules: usize,
}

/// Where a rule stands.
pub enum Place {
    /// In a tuple: which, shard and entry.
    Tuple(usize, (usize, usize)),
    /// In the tree: the children on the way.
    Tree(Vec<usize>),
}

impl<const W: usize> Root<W> {
    /// No rules.
    pub fn empty() -> Root<W> {
        Root { tuples: Vec::new(), tree: None, wishes: Arc::default(), rules: 0 }
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// The best rule for a key.
    #[inline(always)]
    pub fn lookup(&self, key: &[u64; W]) -> Option<Hit> {
        let mut best = Best::NONE;
        for tuples in self.tuples.chunks(AHEAD) {
            let mut seen: [Option<(u64, &Shard)>; AHEAD] = [None; AHEAD];
            for (tuple, seen) in tuples.iter().zip(&mut seen) {
                if !best.is_open_to(tuple.best()) {
                    break;
                }
                let hash = tuple.hash(key);
                let shard = tuple.shard_of(hash);
                prefetch(shard);
                *seen = Some((hash, shard));
            }
            for (tuple, seen) in tuples.iter().zip(&seen) {
                let Some((hash, shard)) = *seen else { break };
                if !best.is_open_to(tuple.best()) {
                    break;
                }
                if shard.likely_has(hash)
                    && let Some(found) = tuple.find(shard, &tuple.key(key, hash))
                {
                    best.take(found.precedence(), Leader::Tuple(found));
                }
            }
        }
        self.search(key, &mut best);
        best.hit()
    }

    #[inline(always)]
    fn search<'a>(&'a self, key: &[u64; W], best: &mut Best<'a, W>) {
        if let Some(tree) = &self.tree
            && best.may_lose_to(&tree.best())
        {
            tree.search(key, best);
        }
    }

    /// The best rule for each of at most [`BATCH`] keys.
    #[inline(always)]
    pub fn lookup_batch(&self, keys: &[[u64; W]], out: &mut [Option<Hit>]) {
        let mut best = [Best::NONE; BATCH];
        let mut seen: [(Option<&Shard>, u64, u8); BATCH] = [(None, 0, 0); BATCH];
        for tuple in &self.tuples {
            let mut open = 0;
            for (index, (key, best)) in keys.iter().zip(&best).enumerate() {
                if best.is_open_to(tuple.best()) {
                    let hash = tuple.hash(key);
                    let shard = tuple.shard_of(hash);
                    prefetch(shard);
                    seen[open] = (Some(shard), hash, index as u8);
                    open += 1;
                }
            }
            if open == 0 {
                break;
            }
            // Most keys have no entry with their tag: only the others go on.
            let mut likely = 0;
            for at in 0..open {
                let probe = seen[at];
                if probe.0.is_some_and(|shard| tuple.prefetch_entries(shard, probe.1)) {
                    seen[likely] = probe;
                    likely += 1;
                }
            }
            for (shard, hash, index) in &seen[..likely] {
                let index = usize::from(*index);
                let key = tuple.key(&keys[index], *hash);
                if let Some(found) = shard.and_then(|shard| tuple.find(shard, &key)) {
                    best[index].take(found.precedence(), Leader::Tuple(found));
                }
            }
        }
        for ((key, best), out) in keys.iter().zip(&mut best).zip(out) {
            self.search(key, best);
            *out = best.hit();
        }
    }

    /// A state with these rules.
    pub fn compile(rules: &[TableRule<W>]) -> Root<W> {
        let mut root = Root { rules: rules.len(), ..Root::empty() };
        let mut left: Vec<&TableRule<W>> = rules.iter().collect();
        for step in 0..STEPS {
            left = root.compile_step(left, step);
        }
        let mut homeless = Vec::new();
        for rule in left {
            match root.home(&rule.pattern) {
                Some(at) => Arc::make_mut(&mut root.tuples[at]).insert(rule),
                None => homeless.push(Stored::new(rule.clone())),
            }
        }
        homeless.iter().for_each(|stored| {
            root.wish(&stored.rule.pattern);
        });
        if !homeless.is_empty() {
            root.tree = Some(build(homeless));
        }
        root.rank();
        root
    }

    /// Makes the tuples that enough rules want at one step of the ladder; returns the rules that found no room.
    fn compile_step<'a>(&mut self, rules: Vec<&'a TableRule<W>>, step: usize) -> Vec<&'a TableRule<W>> {
        let mut groups = alike(rules, step);
        groups.sort_by_key(|(class, rules)| (Reverse(rules.len()), class.common));
        let mut left = Vec::new();
        for (class, rules) in groups {
            let made = self.tuples.iter().any(|tuple| *tuple.class() == class);
            if made || rules.len() < self.demand() || self.tuples.len() == MOST_TUPLES {
                left.extend(rules);
                continue;
            }
            let (tuple, crowded) = Tuple::build(class, rules, BUCKET);
            self.tuples.push(Arc::new(tuple));
            left.extend(crowded);
        }
        left
    }

    /// How many rules must want a tuple.
    fn demand(&self) -> usize {
        (self.rules / DEMAND_SHARE).clamp(LEAST_DEMAND, MOST_DEMAND)
    }

    /// The tuples where a rule may stand, the finest first, with its shards there on their way into the cache.
    fn fitting(&self, pattern: &Pattern<W>) -> ArrayVec<usize, MOST_TUPLES> {
        let mut fitting: ArrayVec<usize, MOST_TUPLES> =
            (0..self.tuples.len()).filter(|at| self.tuples[*at].fits(pattern)).collect();
        fitting.iter().for_each(|at| self.tuples[*at].prefetch_shard(pattern));
        fitting.sort_by_key(|at| Reverse(self.tuples[*at].bits()));
        fitting
    }

    /// The finest tuple with room for a rule.
    fn home(&self, pattern: &Pattern<W>) -> Option<usize> {
        self.fitting(pattern).into_iter().find(|at| self.tuples[*at].bucket_len(pattern) < BUCKET)
    }

    /// Counts that a rule of the tree wants a tuple; returns the class when that is enough.
    fn wish(&mut self, pattern: &Pattern<W>) -> Option<Class<W>> {
        if self.tuples.len() == MOST_TUPLES {
            return None;
        }
        let made = |class: &Class<W>| self.tuples.iter().any(|tuple| tuple.class() == class);
        let class = ladder(pattern).into_iter().find(|class| !made(class))?;
        let demand = self.demand();
        let wishes = Arc::make_mut(&mut self.wishes);
        if let Some(at) = wishes.iter().position(|(wished, _)| *wished == class) {
            wishes[at].1 += 1;
            if wishes[at].1 as usize >= demand {
                return Some(wishes.swap_remove(at).0);
            }
        } else if wishes.len() < WISHES {
            wishes.push((class, 1));
        } else {
            wishes.iter_mut().for_each(|(_, count)| *count -= 1);
            wishes.retain(|(_, count)| *count > 0);
        }
        None
    }

    /// Makes a tuple and moves the rules of the tree there that find room in it.
    fn grant(&mut self, class: Class<W>) {
        let Some(tree) = &mut self.tree else { return };
        let mut tuple = Tuple::new(class);
        let (mut moved, mut kept) = (Vec::new(), Vec::new());
        tree.for_each(&mut |stored| {
            let pattern = &stored.rule.pattern;
            if tuple.fits(pattern) && tuple.bucket_len(pattern) < BUCKET {
                tuple.insert(&stored.rule);
                moved.push(stored.clone());
            } else {
                kept.push(stored.clone());
            }
        });
        // Wishes of rules that are gone by now are not taken back.
        if moved.len() < LEAST_DEMAND / 2 {
            return;
        }
        if kept.is_empty() {
            self.tree = None;
        } else if moved.len() * 4 > kept.len() {
            *tree = build(kept);
        } else {
            for stored in moved {
                let (rule, mut path) = (&stored.rule, Vec::new());
                if tree.path(&Target::new(&rule.pattern, rule.precedence, stored.id()), &mut path) {
                    Node::remove(tree, &path);
                }
            }
        }
        self.tuples.push(Arc::new(tuple));
    }

    /// Adds a rule.
    pub fn insert(&mut self, rule: TableRule<W>) {
        self.rules += 1;
        if let Some(at) = self.home(&rule.pattern) {
            Arc::make_mut(&mut self.tuples[at]).insert(&rule);
        } else {
            let granted = self.wish(&rule.pattern);
            let stored = Stored::new(rule);
            match &mut self.tree {
                Some(tree) => Node::insert(tree, stored),
                None => self.tree = Some(build(vec![stored])),
            }
            if let Some(class) = granted {
                self.grant(class);
            }
        }
        self.rank();
    }

    /// Where a rule stands.
    pub fn place(&self, pattern: &Pattern<W>, precedence: u64, id: Id<'_>) -> Option<Place> {
        let tuple = self
            .fitting(pattern)
            .into_iter()
            .find_map(|at| Some(Place::Tuple(at, self.tuples[at].position(pattern, precedence, id)?)));
        tuple.or_else(|| {
            let mut path = Vec::new();
            let target = Target::new(pattern, precedence, id);
            self.tree.as_ref()?.path(&target, &mut path).then_some(Place::Tree(path))
        })
    }

    /// Removes the rule at a place that [`Root::place`] found in the same state.
    pub fn remove(&mut self, place: Place) {
        self.rules -= 1;
        match (place, &mut self.tree) {
            (Place::Tuple(at, position), _) => {
                Arc::make_mut(&mut self.tuples[at]).remove(position);
                if self.tuples[at].len() == 0 {
                    self.tuples.remove(at);
                }
                self.rank();
            }
            (Place::Tree(path), Some(tree)) => {
                Node::remove(tree, &path);
                if tree.len() == 0 {
                    self.tree = None;
                }
            }
            (Place::Tree(_), None) => {}
        }
    }

    /// Puts a rule in the place of one that [`Root::place`] found in the same state, whose pattern and id it has.
    pub fn replace(&mut self, place: Place, precedence: u64, rule: TableRule<W>) {
        match (place, &mut self.tree) {
            (Place::Tuple(at, position), _) => {
                let best = self.tuples[at].best();
                let tuple = Arc::make_mut(&mut self.tuples[at]);
                tuple.replace(position, &rule);
                if tuple.best() != best {
                    self.rank();
                }
            }
            (Place::Tree(path), Some(tree)) if rule.precedence == precedence => {
                Node::replace(tree, &path, Stored::new(rule));
            }
            (place, _) => {
                self.remove(place);
                self.insert(rule);
            }
        }
    }

    /// Fetches the shards where a rule with this pattern may stand.
    pub fn prefetch(&self, pattern: &Pattern<W>) {
        let fitting = self.tuples.iter().filter(|tuple| tuple.fits(pattern));
        fitting.for_each(|tuple| tuple.prefetch_shard(pattern));
    }

    /// Fetches what stands in those shards of such a rule.
    pub fn prefetch_bodies(&self, pattern: &Pattern<W>) {
        let fitting = self.tuples.iter().filter(|tuple| tuple.fits(pattern));
        fitting.for_each(|tuple| tuple.prefetch_body(pattern));
    }

    fn rank(&mut self) {
        self.tuples.sort_by_key(|tuple| Reverse(tuple.best()));
    }

    /// Bytes on the heap, but for the state's own.
    pub fn memory_bytes(&self) -> usize {
        let tuples = self.tuples.iter().map(|tuple| ARC_BYTES + size_of::<Tuple<W>>() + tuple.memory_bytes());
        let wishes = ARC_BYTES + size_of_val(&*self.wishes) + size_of_val(self.wishes.as_slice());
        let tree = self.tree.as_ref().map_or(0, |tree| tree.memory_bytes());
        self.tuples.capacity() * size_of::<usize>() + tuples.sum::<usize>() + wishes + tree
    }
}

/// Rules by their class at a step of the ladder, in the order in which they came.
fn alike<const W: usize>(rules: Vec<&TableRule<W>>, step: usize) -> Vec<(Class<W>, Vec<&TableRule<W>>)> {
    // Many rules have few masks: the ladder is climbed once for each, as long as no other takes its place here.
    const REMEMBERED: usize = 256;
    let mut seen: Vec<Option<([u64; W], u64, usize)>> = vec![None; REMEMBERED];
    let mut numbers: HashMap<Class<W>, usize> = HashMap::new();
    let mut groups: Vec<(Class<W>, Vec<&TableRule<W>>)> = Vec::new();
    for rule in rules {
        let pattern = &rule.pattern;
        // What the ladder looks at besides the mask: families, and whether there are ranges.
        let kind = pattern.value[6] & 3 | pattern.value.get(7).map_or(0, |word| word & (3 << 16));
        let kind = kind | u64::from(is_ranged(pattern)) << 32;
        let seen = &mut seen[hash(&pattern.mask, &[!0; W]) as usize % REMEMBERED];
        let number = match seen {
            Some((mask, known, number)) if *mask == pattern.mask && *known == kind => *number,
            _ => {
                let class = ladder(pattern)[step];
                let number = *numbers.entry(class).or_insert_with(|| {
                    groups.push((class, Vec::new()));
                    groups.len() - 1
                });
                *seen = Some((pattern.mask, kind, number));
                number
            }
        };
        groups[number].1.push(rule);
    }
    groups
}
