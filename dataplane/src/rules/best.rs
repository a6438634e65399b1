//! The best rule that a lookup has found so far, wherever it stands: the higher precedence wins, and among equals the smaller
//! id, which is read only there.

use super::entry::{Hit, Id};
use super::table::TableRule;
use super::tree::{Rank, Stored, Winner};
use super::tuple::Found;

/// Where the best rule stands.
#[derive(Clone, Copy)]
pub enum Leader<'a, const W: usize> {
    /// There is none.
    None,
    /// In a tuple.
    Tuple(Found<'a, W>),
    /// In the tree.
    Tree(&'a Stored<W>),
}

/// The best rule so far for one key.
#[derive(Clone, Copy)]
pub struct Best<'a, const W: usize> {
    precedence: u64,
    leader: Leader<'a, W>,
}

impl<'a, const W: usize> Best<'a, W> {
    /// No rule yet.
    pub const NONE: Best<'a, W> = Best { precedence: 0, leader: Leader::None };

    fn id(&self) -> Option<Id<'a>> {
        match &self.leader {
            Leader::None => None,
            Leader::Tuple(found) => Some(found.id()),
            Leader::Tree(stored) => Some(stored.id()),
        }
    }

    /// A rule of this precedence could still win.
    #[inline(always)]
    pub fn is_open_to(&self, precedence: u64) -> bool {
        matches!(self.leader, Leader::None) || precedence >= self.precedence
    }

    /// Takes a rule of this precedence where it wins.
    #[inline(always)]
    pub fn take(&mut self, precedence: u64, leader: Leader<'a, W>) {
        if !self.is_open_to(precedence) {
            return;
        }
        let new = Best { precedence, leader };
        let wins = precedence > self.precedence || self.id().is_none_or(|id| new.id() < Some(id));
        if wins {
            *self = new;
        }
    }

    /// What the best rule says.
    #[inline(always)]
    pub fn hit(&self) -> Option<Hit> {
        match &self.leader {
            Leader::None => None,
            Leader::Tuple(found) => Some(found.hit()),
            Leader::Tree(Stored { rule: TableRule { slot, action, names_layer2, .. }, .. }) => {
                Some(Hit { slot: *slot, action: *action, names_layer2: *names_layer2 })
            }
        }
    }
}

impl<'a, const W: usize> Winner<'a, W> for Best<'a, W> {
    #[inline(always)]
    fn may_lose_to(&self, rank: &Rank) -> bool {
        match (matches!(self.leader, Leader::None), rank.precedence == self.precedence) {
            (false, true) => self.id().is_none_or(|id| rank.head <= id.head()),
            (none, _) => none || rank.precedence > self.precedence,
        }
    }

    #[inline(always)]
    fn offer(&mut self, stored: &'a Stored<W>) {
        self.take(stored.rule.precedence, Leader::Tree(stored));
    }
}
