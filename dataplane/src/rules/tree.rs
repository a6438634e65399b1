//! Rules that hashing cannot tell apart (ranges, short prefixes, masks of their own): a persistent tree of boxes.
//!
//! Every node has up to 64 children, compared with a key at once ([`Boxes`]), best first. A search goes into the
//! children whose box holds the key, and leaves out those whose best rule cannot win any more. Boxes may overlap, so no
//! rule is there twice, and a change touches one path. A subtree that has changed by half is built anew
//! ([`super::tree_build`]). References: A. Guttman, "R-trees", 1984; P. Gupta, N. McKeown, "Classifying packets with
//! hierarchical intelligent cuttings", 2000; B. Vamanan et al., "EffiCuts", 2010, for telling wide rules from narrow.

use super::boxes::{Boxes, Interval, Lane, WIDTH, box_of, enclose, encloses, intervals};
use super::entry::Id;
use super::pattern::Pattern;
use super::table::{ARC_BYTES, TableRule};
use super::tree_build::build;
use std::cmp::Ordering;
use std::sync::Arc;

/// Changes that a node takes, at least, before it is built anew.
const LEAST_CHANGES: usize = WIDTH;

/// A rule of a tree.
#[derive(Debug)]
pub struct Stored<const W: usize> {
    /// The rule.
    pub rule: TableRule<W>,
    id: Box<[u64]>,
    padding: u32,
}

impl<const W: usize> Stored<W> {
    /// A rule to be put into a tree.
    pub fn new(rule: TableRule<W>) -> Arc<Stored<W>> {
        let mut id = Vec::new();
        let padding = Id::encode(&rule.id, &mut id);
        Arc::new(Stored { rule, id: id.into(), padding })
    }

    /// Its id.
    pub fn id(&self) -> Id<'_> {
        Id { words: &self.id, padding: self.padding }
    }

    /// Its rank, of which the end of a long id may be cut.
    pub fn rank(&self) -> Rank {
        Rank { precedence: self.rule.precedence, head: self.id().head() }
    }

    /// The better rule first.
    pub fn order(&self, other: &Stored<W>) -> Ordering {
        (other.rule.precedence.cmp(&self.rule.precedence)).then_with(|| self.id().cmp(&other.id()))
    }

    #[inline(always)]
    fn matches(&self, key: &[u64; W]) -> bool {
        let Pattern { mask, value, src_port, dst_port } = &self.rule.pattern;
        let differ = key.iter().zip(mask).zip(value).fold(0, |differ, ((k, m), v)| differ | (k & m) ^ v);
        let (src, dst) = ((key[6] >> 48) as u16, (key[6] >> 32) as u16);
        (differ == 0) & (src_port.0 <= src) & (src <= src_port.1) & (dst_port.0 <= dst) & (dst <= dst_port.1)
    }
}

/// How a rule ranks, as far as a few words can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Precedence: the higher wins.
    pub precedence: u64,
    /// The first 16 bytes of the id: the smaller wins.
    pub head: [u64; 2],
}

impl Rank {
    /// The better first.
    pub fn order(&self, other: &Rank) -> Ordering {
        other.precedence.cmp(&self.precedence).then(self.head.cmp(&other.head))
    }
}

/// What is below a node.
#[derive(Clone)]
pub enum Below<const W: usize> {
    /// Other nodes.
    Nodes(Vec<Arc<Node<W>>>),
    /// Rules.
    Rules(Vec<Arc<Stored<W>>>),
}

/// A node; the root is the tree.
#[derive(Clone)]
pub struct Node<const W: usize> {
    boxes: Boxes,
    /// The best rank of each child, which are in this order.
    ranks: Vec<Rank>,
    below: Below<W>,
    bounds: Box<[Interval]>,
    rules: usize,
    changes: usize,
}

/// Who takes what a search finds.
pub trait Winner<'a, const W: usize> {
    /// A rule of this rank could win.
    fn may_lose_to(&self, rank: &Rank) -> bool;
    /// A rule that matches.
    fn offer(&mut self, stored: &'a Stored<W>);
}

impl<const W: usize> Node<W> {
    /// A node above these, at most [`WIDTH`] and at least one.
    pub fn new(mut below: Below<W>) -> Node<W> {
        // The boxes one behind the other.
        let mut bounds: Vec<Interval> = Vec::new();
        let (ranks, rules): (Vec<Rank>, usize) = match &mut below {
            Below::Nodes(nodes) => {
                nodes.sort_by(|a, b| a.best().order(&b.best()));
                nodes.iter().for_each(|node| bounds.extend_from_slice(&node.bounds));
                (nodes.iter().map(|node| node.best()).collect(), nodes.iter().map(|node| node.rules).sum())
            }
            Below::Rules(rules) => {
                rules.sort_by(|a, b| a.order(b));
                rules.iter().for_each(|stored| bounds.extend(intervals(&stored.rule.pattern)));
                (rules.iter().map(|stored| stored.rank()).collect(), rules.len())
            }
        };
        let each = bounds.chunks_exact(Lane::count(W));
        let boxes = Boxes::new(W, each.clone());
        let mut all: Box<[Interval]> = each.clone().next().unwrap_or_default().into();
        each.for_each(|bounds| enclose(&mut all, bounds));
        Node { boxes, ranks, below, bounds: all, rules, changes: 0 }
    }

    /// The rank of the best rule.
    #[inline(always)]
    pub fn best(&self) -> Rank {
        self.ranks.first().copied().unwrap_or(Rank { precedence: 0, head: [u64::MAX; 2] })
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// Offers the rules that match and may win.
    pub fn search<'a>(&'a self, key: &[u64; W], winner: &mut impl Winner<'a, W>) {
        let mut candidates = self.boxes.candidates(key);
        while candidates != 0 {
            let index = candidates.trailing_zeros() as usize;
            // Later children are not better.
            if !winner.may_lose_to(&self.ranks[index]) {
                return;
            }
            match &self.below {
                Below::Nodes(nodes) => nodes[index].search(key, winner),
                Below::Rules(rules) if rules[index].matches(key) => return winner.offer(&rules[index]),
                Below::Rules(_) => {}
            }
            candidates &= candidates - 1;
        }
    }

    /// Calls for every rule.
    pub fn for_each(&self, visit: &mut impl FnMut(&Arc<Stored<W>>)) {
        match &self.below {
            Below::Nodes(nodes) => nodes.iter().for_each(|node| node.for_each(visit)),
            Below::Rules(rules) => rules.iter().for_each(visit),
        }
    }

    fn all(&self) -> Vec<Arc<Stored<W>>> {
        let mut rules = Vec::with_capacity(self.rules + 1);
        self.for_each(&mut |stored| rules.push(stored.clone()));
        rules
    }

    /// So much has changed that the node is to be built anew.
    fn is_worn(&self) -> bool {
        self.changes > LEAST_CHANGES.max(self.rules / 2)
    }

    /// The child that a rule disturbs least: whose box grows least, and whose best rule stays the best.
    fn choose(nodes: &[Arc<Node<W>>], stored: &Stored<W>) -> usize {
        let (bounds, rank) = (box_of(&stored.rule.pattern), stored.rank());
        // That a better rule comes into a subtree costs as much as if its box grew by a tenth of a lane.
        const RAISED: f32 = 0.1;
        let mut chosen = (f32::INFINITY, 0);
        for (index, node) in nodes.iter().enumerate() {
            let lanes = Lane::all(W).zip(node.bounds.iter().zip(&bounds));
            let growth = lanes.map(|(lane, (outer, inner))| {
                let more = outer.0.saturating_sub(inner.0) as f32 + inner.1.saturating_sub(outer.1) as f32;
                more / (lane.last() as f32)
            });
            let raised = if rank.order(&node.best()).is_lt() { RAISED } else { 0.0 };
            let cost = growth.sum::<f32>() + raised;
            if cost <= chosen.0 {
                chosen = (cost, index);
            }
        }
        chosen.1
    }

    /// Adds a rule.
    pub fn insert(node: &mut Arc<Node<W>>, stored: Arc<Stored<W>>) {
        let changed = Arc::make_mut(node);
        changed.changes += 1;
        let changes = changed.changes;
        let worn = changed.is_worn();
        match &mut changed.below {
            Below::Rules(rules) if rules.len() < WIDTH => rules.push(stored),
            Below::Nodes(nodes) if !worn => {
                let at = Self::choose(nodes, &stored);
                Self::insert(&mut nodes[at], stored);
            }
            _ => {
                let mut rules = changed.all();
                rules.push(stored);
                *node = build(rules);
                return;
            }
        }
        changed.refresh(changes);
    }

    /// Brings ranks and boxes in line with the children.
    fn refresh(&mut self, changes: usize) {
        let below = std::mem::replace(&mut self.below, Below::Rules(Vec::new()));
        *self = Node { changes, ..Node::new(below) };
    }

    /// The way to a rule: the number of the child in every node.
    pub fn path(&self, target: &Target<'_, W>, path: &mut Vec<usize>) -> bool {
        match &self.below {
            Below::Rules(rules) => {
                let at = rules.iter().position(|stored| target.is(stored));
                path.extend(at);
                at.is_some()
            }
            Below::Nodes(nodes) => nodes.iter().enumerate().any(|(index, node)| {
                if node.best().order(&target.rank).is_gt() || !encloses(&node.bounds, &target.bounds) {
                    return false;
                }
                path.push(index);
                let found = node.path(target, path);
                if !found {
                    path.pop();
                }
                found
            }),
        }
    }

    /// Removes the rule at the end of a path; `None` when nothing is left.
    pub fn remove(node: &mut Arc<Node<W>>, path: &[usize]) -> Option<Arc<Stored<W>>> {
        let (at, rest) = path.split_first()?;
        let changed = Arc::make_mut(node);
        changed.changes += 1;
        let changes = changed.changes;
        let removed = match &mut changed.below {
            Below::Rules(rules) => Some(rules.remove(*at)),
            Below::Nodes(nodes) => {
                let removed = Self::remove(&mut nodes[*at], rest);
                if nodes[*at].len() == 0 {
                    nodes.remove(*at);
                }
                removed
            }
        };
        changed.refresh(changes);
        if matches!(changed.below, Below::Nodes(_)) && changed.rules > 0 && changed.is_worn() {
            *node = build(changed.all());
        }
        removed
    }

    /// Puts a rule in the place of the one at the end of a path, whose pattern, precedence and id it has.
    pub fn replace(node: &mut Arc<Node<W>>, path: &[usize], stored: Arc<Stored<W>>) {
        let Some((at, rest)) = path.split_first() else { return };
        match &mut Arc::make_mut(node).below {
            Below::Rules(rules) => rules[*at] = stored,
            Below::Nodes(nodes) => Self::replace(&mut nodes[*at], rest, stored),
        }
    }

    /// Bytes on the heap, the node's own among them.
    pub fn memory_bytes(&self) -> usize {
        let own = ARC_BYTES
            + size_of::<Self>()
            + self.boxes.memory_bytes()
            + self.ranks.capacity() * size_of::<Rank>()
            + size_of_val(&*self.bounds);
        own + match &self.below {
            Below::Nodes(nodes) => {
                nodes.capacity() * size_of::<usize>()
                    + nodes.iter().map(|node| node.memory_bytes()).sum::<usize>()
            }
            Below::Rules(rules) => {
                let each = |stored: &Arc<Stored<W>>| {
                    size_of::<usize>() + ARC_BYTES + size_of::<Stored<W>>() + size_of_val(&*stored.id)
                };
                rules.iter().map(each).sum::<usize>()
            }
        }
    }
}

/// The rule that is looked for.
pub struct Target<'a, const W: usize> {
    pattern: &'a Pattern<W>,
    bounds: Box<[Interval]>,
    rank: Rank,
    id: Id<'a>,
}

impl<'a, const W: usize> Target<'a, W> {
    /// The rule with this pattern, precedence and id.
    pub fn new(pattern: &'a Pattern<W>, precedence: u64, id: Id<'a>) -> Target<'a, W> {
        Target { pattern, bounds: box_of(pattern), rank: Rank { precedence, head: id.head() }, id }
    }

    fn is(&self, stored: &Stored<W>) -> bool {
        stored.rule.precedence == self.rank.precedence
            && stored.rule.pattern == *self.pattern
            && stored.id() == self.id
    }
}
