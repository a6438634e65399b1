//! Rules as boxes: one interval per *lane* of the key, and 64 boxes compared with a key at once: each part of a lane has a
//! bit for every box that reaches into it, as of T. Lakshman, D. Stiliadis, "High-speed policy-based packet forwarding using
//! efficient multi-dimensional range matching", 1998.
//!
//! A lane is up to 32 bits of the key: half of a word, a port, the DSCP. A mask of leading ones and a range of ports are
//! intervals there; any other mask has the smallest interval around what it matches. So a box is a necessary
//! condition: what it lets through is compared with the pattern itself.

use super::pattern::Pattern;

/// Boxes that are compared at once: a word has a bit for each. With half as many, searches visit twice as many nodes and take
/// a sixth longer.
pub const WIDTH: usize = Bits::BITS as usize;
/// A bit for each of them.
pub type Bits = u64;
/// Lanes that one comparison looks at, at most: five-tuples have five that tell rules apart.
const TESTS: usize = 5;

/// Some adjacent bits of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    word: u8,
    shift: u8,
    bits: u8,
}

/// First and last value.
pub type Interval = (u32, u32);

const SRC_PORT: Lane = Lane { word: 6, shift: 48, bits: 16 };
const DST_PORT: Lane = Lane { word: 6, shift: 32, bits: 16 };
/// Protocol, DSCP and flags; then the DSCP alone.
const TRANSPORT: [Lane; 2] = [Lane { word: 6, shift: 0, bits: 32 }, Lane { word: 6, shift: 16, bits: 8 }];

impl Lane {
    /// Every lane of keys of `words` words.
    pub fn all(words: usize) -> impl Iterator<Item = Lane> {
        let halves = (0..words as u8).filter(|word| *word != 6);
        halves
            .flat_map(|word| [32, 0].map(|shift| Lane { word, shift, bits: 32 }))
            .chain([SRC_PORT, DST_PORT])
            .chain(TRANSPORT)
    }

    /// How many there are for keys of `words` words.
    pub fn count(words: usize) -> usize {
        2 * (words - 1) + 4
    }

    /// The largest value.
    #[inline(always)]
    pub fn last(self) -> u32 {
        u32::MAX >> (32 - u32::from(self.bits))
    }

    /// Of a key, a value or a mask.
    #[inline(always)]
    pub fn of<const W: usize>(self, key: &[u64; W]) -> u32 {
        (key[usize::from(self.word)] >> self.shift) as u32 & self.last()
    }

    /// The values that a pattern lets through.
    pub fn interval<const W: usize>(self, pattern: &Pattern<W>) -> Interval {
        let (mask, value) = (self.of(&pattern.mask), self.of(&pattern.value));
        let ports = match self {
            SRC_PORT => pattern.src_port,
            DST_PORT => pattern.dst_port,
            _ => return (value, value | !mask & self.last()),
        };
        let (first, last) = (value.max(ports.0.into()), (value | !mask & self.last()).min(ports.1.into()));
        (first, last.max(first))
    }
}

/// The interval of a pattern in every lane.
pub fn intervals<const W: usize>(pattern: &Pattern<W>) -> impl Iterator<Item = Interval> {
    Lane::all(W).map(|lane| lane.interval(pattern))
}

/// The box of a pattern.
pub fn box_of<const W: usize>(pattern: &Pattern<W>) -> Box<[Interval]> {
    intervals(pattern).collect()
}

/// Makes a box large enough for another.
pub fn enclose(outer: &mut [Interval], inner: &[Interval]) {
    for (outer, inner) in outer.iter_mut().zip(inner) {
        *outer = (outer.0.min(inner.0), outer.1.max(inner.1));
    }
}

/// A box lies in another.
pub fn encloses(outer: &[Interval], inner: &[Interval]) -> bool {
    outer.iter().zip(inner).all(|(outer, inner)| outer.0 <= inner.0 && inner.1 <= outer.1)
}

/// Parts that a lane is cut into.
const PARTS: usize = 64;

/// One lane of up to [`WIDTH`] boxes: for each part of it, a bit for every box that reaches into the part. Parts are
/// counted from the least value that a box begins at, and are as wide as it takes to hold the largest; that makes intervals a
/// little wider, never narrower. Boxes that leave the lane open are in all parts, the others lie between the first and the
/// last, and a value that is in none of them comes out there.
#[derive(Clone)]
struct Test {
    boxes: [Bits; PARTS],
    base: u32,
    lane: Lane,
    shift: u8,
}

/// The part behind the last one that a box reaches into, less one.
const MOST: u32 = PARTS as u32 - 2;

/// A box that leaves out less than this part of a lane is taken to leave it open.
const OPEN_PART: u32 = 32;

fn is_open(lane: Lane, (first, last): Interval) -> bool {
    last - first >= lane.last() - lane.last() / OPEN_PART
}

impl Test {
    fn new(lane: Lane, intervals: impl Iterator<Item = Interval> + Clone) -> Test {
        let narrow = intervals.clone().filter(|interval| !is_open(lane, *interval));
        let base = narrow.clone().map(|(first, _)| first).min().unwrap_or(0);
        let range = narrow.map(|(_, last)| last - base).max().unwrap_or(0);
        let shift = (0..u32::BITS as u8).find(|shift| range >> shift < MOST).unwrap_or(0);
        let mut test = Test { boxes: [0; PARTS], base, lane, shift };
        for (index, interval) in intervals.enumerate().take(WIDTH) {
            let (first, last) = match is_open(lane, interval) {
                true => (0, PARTS - 1),
                false => (test.part(interval.0), test.part(interval.1)),
            };
            // Where a box begins, and behind its end; what lies between follows.
            test.boxes[first] ^= 1 << index;
            if let Some(behind) = test.boxes.get_mut(last + 1) {
                *behind ^= 1 << index;
            }
        }
        let mut within = 0;
        for boxes in &mut test.boxes {
            within ^= *boxes;
            *boxes = within;
        }
        test
    }

    /// Without branches: where a random value lies cannot be foreseen.
    #[inline(always)]
    fn part(&self, value: u32) -> usize {
        let above = (i64::from(value) - i64::from(self.base)) >> self.shift;
        (above.clamp(-1, i64::from(MOST)) + 1) as usize % PARTS
    }
}

/// Up to [`WIDTH`] boxes, lane by lane.
#[derive(Clone, Default)]
pub struct Boxes {
    tests: Box<[Test]>,
    /// A bit for each box.
    all: Bits,
}

impl Boxes {
    /// At most [`WIDTH`] boxes, tested by the lanes that exclude the most.
    pub fn new<'a>(words: usize, boxes: impl Iterator<Item = &'a [Interval]> + Clone) -> Boxes {
        let count = boxes.clone().take(WIDTH).count();
        let mut lanes: Vec<(f32, usize, Lane)> = Lane::all(words)
            .enumerate()
            .map(|(at, lane)| {
                let spans = boxes.clone().map(|b| (b[at].1 - b[at].0) as f32 + 1.0);
                (spans.sum::<f32>() / (count as f32 * (lane.last() as f32 + 1.0)), at, lane)
            })
            .filter(|(_, at, lane)| !boxes.clone().all(|b| is_open(*lane, b[*at])))
            .collect();
        lanes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let tests = lanes.into_iter().take(TESTS);
        let tests = tests.map(|(_, at, lane)| Test::new(lane, boxes.clone().map(|b| b[at]))).collect();
        Boxes { tests, all: !0 >> (WIDTH - count.clamp(1, WIDTH)) }
    }

    /// A bit for every box that the key may lie in.
    #[inline(always)]
    pub fn candidates<const W: usize>(&self, key: &[u64; W]) -> Bits {
        let mut within = self.all;
        for test in &self.tests {
            within &= test.boxes[test.part(test.lane.of(key))];
        }
        within
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.tests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::reference::arbitrary;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_that_matches_lies_in_the_box(
            rules in arbitrary::egress_rules(1..17),
            key in arbitrary::key(),
        ) {
            let patterns: Vec<_> = rules.iter().map(|rule| Pattern::egress(&rule.matches)).collect();
            let bounds: Vec<_> = patterns.iter().map(box_of).collect();
            let boxes = Boxes::new(7, bounds.iter().map(|b| &**b));
            let candidates = boxes.candidates(&key.0);
            for (index, (rule, bounds)) in rules.iter().zip(&bounds).enumerate() {
                if crate::rules::reference::holds(&rule.matches, &key) {
                    prop_assert!(candidates >> index & 1 == 1, "{:?}", rule);
                    let point: Vec<_> = Lane::all(7).map(|lane| (lane.of(&key.0), lane.of(&key.0))).collect();
                    prop_assert!(encloses(bounds, &point));
                }
            }
            prop_assert_eq!(candidates >> rules.len(), 0);
        }
    }
}
