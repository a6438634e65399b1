//! Builds a tree of boxes: which rules stand together.
//!
//! A set of rules is cut in two until there are as many parts as a node has room for. A cut is along a lane (by the middle of each interval) or
//! by rank. Its cost is the number of rules that a packet still has to be compared with, estimated with sample packets,
//! most of them drawn from the rules: a part counts if the sample lies in its box, and the lower ranks count if no
//! higher one matches the sample. So narrow rules are cut by place, and wide ones, which overlap wherever one cuts, by
//! rank: among those the first few decide nearly every packet.

use super::boxes::{Interval, Lane, WIDTH, box_of};
use super::tree::{Below, Node, Stored};
use std::ops::Range;
use std::sync::Arc;

/// Sample packets of a cut.
const SAMPLES: usize = 32;
/// Of these, every fourth is drawn from the whole space instead of a rule: traffic that no rule foresees.
const STRAY: usize = 4;
/// Places where a lane may be cut.
const CUTS: usize = 16;
/// Rules that are asked whether a sample matches a higher rank.
const ASKED: usize = 64;

struct Item<const W: usize> {
    stored: Arc<Stored<W>>,
    bounds: Box<[Interval]>,
}

/// A tree of these rules, at least one.
pub fn build<const W: usize>(rules: Vec<Arc<Stored<W>>>) -> Arc<Node<W>> {
    let item = |stored: Arc<Stored<W>>| Item { bounds: box_of(&stored.rule.pattern), stored };
    let mut items: Vec<Item<W>> = rules.into_iter().map(item).collect();
    part(&mut items)
}

fn part<const W: usize>(items: &mut [Item<W>]) -> Arc<Node<W>> {
    if items.len() <= WIDTH {
        return Arc::new(Node::new(Below::Rules(items.iter().map(|item| item.stored.clone()).collect())));
    }
    let mut parts: Vec<Range<usize>> = Vec::with_capacity(WIDTH);
    parts.push(0..items.len());
    while parts.len() < WIDTH {
        let Some(largest) = (0..parts.len()).max_by_key(|at| parts[*at].len()) else { break };
        let range = parts[largest].clone();
        if range.len() <= WIDTH {
            break;
        }
        let middle = range.start + cut(&mut items[range.clone()]);
        parts[largest] = range.start..middle;
        parts.push(middle..range.end);
    }
    Arc::new(Node::new(Below::Nodes(parts.into_iter().map(|range| part(&mut items[range])).collect())))
}

/// What rules are sorted by before a cut.
#[derive(Clone, Copy)]
enum By {
    Rank,
    Lane(usize),
}

/// Sorts the rules and returns where the second part begins.
fn cut<const W: usize>(items: &mut [Item<W>]) -> usize {
    let samples = samples(items);
    items.sort_unstable_by(|a, b| a.stored.order(&b.stored));
    let (mut cost, mut at) = rank_cut(items, &samples);
    let mut by = By::Rank;
    for lane in 0..items[0].bounds.len() {
        if items.iter().all(|item| item.bounds[lane] == items[0].bounds[lane]) {
            continue;
        }
        let (lane_cost, lane_at) = lane_cut(items, lane, &samples);
        if lane_cost < cost {
            (cost, at, by) = (lane_cost, lane_at, By::Lane(lane));
        }
    }
    if let By::Lane(lane) = by {
        items.sort_unstable_by_key(|item| middle(item.bounds[lane]));
    }
    at
}

fn middle(interval: Interval) -> u64 {
    u64::from(interval.0) + u64::from(interval.1)
}

/// Sample packets as values of every lane.
fn samples<const W: usize>(items: &[Item<W>]) -> Vec<Vec<u32>> {
    // A fixed sequence (xorshift32): the same rules build the same tree.
    let mut state = 0x2545_f491u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let whole: Vec<Interval> = Lane::all(W).map(|lane| (0, lane.last())).collect();
    let draw = |sample: usize| {
        let drawn_from = &items[random() as usize % items.len()].bounds;
        let bounds: &[Interval] = if sample.is_multiple_of(STRAY) { &whole } else { drawn_from };
        let values = bounds.iter().map(|(first, last)| {
            let span = u64::from(last - first) + 1;
            first + ((u64::from(random()) * span) >> 32) as u32
        });
        values.collect()
    };
    (0..SAMPLES).map(draw).collect()
}

/// The cheapest cut by rank of rules that are sorted so: cost and place. Small first parts are enough where the best
/// rules decide, and an eighth at least keeps the tree flat.
fn rank_cut<const W: usize>(items: &[Item<W>], samples: &[Vec<u32>]) -> (f32, usize) {
    let places =
        [items.len() / 8, items.len() / 4, items.len() / 2].map(|at| at.max(WIDTH.min(items.len() / 2)));
    let cost = |at: usize| {
        let decided = |sample: &&Vec<u32>| {
            let asked = items[..at].iter().take(ASKED);
            asked.into_iter().any(|item| {
                item.bounds.iter().zip(*sample).all(|((first, last), value)| first <= value && value <= last)
            })
        };
        let open = samples.len() - samples.iter().filter(decided).count();
        at as f32 + (items.len() - at) as f32 * open as f32 / samples.len() as f32
    };
    let costs = places.map(|at| (cost(at), at));
    costs.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f32::INFINITY, items.len() / 2))
}

/// The cheapest cut along a lane.
fn lane_cut<const W: usize>(items: &[Item<W>], lane: usize, samples: &[Vec<u32>]) -> (f32, usize) {
    let mut intervals: Vec<Interval> = items.iter().map(|item| item.bounds[lane]).collect();
    intervals.sort_unstable_by_key(|interval| middle(*interval));
    let within = |bounds: Interval| {
        let inside = samples.iter().filter(|sample| bounds.0 <= sample[lane] && sample[lane] <= bounds.1);
        inside.count() as f32 / samples.len() as f32
    };
    let join = |a: Interval, b: &Interval| (a.0.min(b.0), a.1.max(b.1));
    let count = intervals.len();
    let places: Vec<usize> = (1..CUTS).map(|cut| (cut * count / CUTS).max(1)).collect();
    // Bounds of everything behind each place.
    let mut behind = vec![(u32::MAX, 0); places.len()];
    let mut bounds = (u32::MAX, 0);
    for (index, at) in places.iter().enumerate().rev() {
        let end = places.get(index + 1).copied().unwrap_or(count);
        bounds = intervals[*at..end.max(*at)].iter().fold(bounds, join);
        behind[index] = bounds;
    }
    let (mut before, mut start) = ((u32::MAX, 0), 0);
    let mut best = (f32::INFINITY, count / 2);
    for (at, behind) in places.iter().zip(&behind) {
        before = intervals[start..*at].iter().fold(before, join);
        start = *at;
        let cost = within(before) * *at as f32 + within(*behind) * (count - at) as f32;
        if cost < best.0 {
            best = (cost, *at);
        }
    }
    best
}
