//! Rules as boxes: one interval per *lane* of the key, and 32 boxes compared with a key at once.
//!
//! A lane is up to 32 bits of the key: half of a word, a port, the DSCP. A mask of leading ones and a range of ports are
//! intervals there; any other mask has the smallest interval around what it matches. So a box is a necessary
//! condition: what it lets through is compared with the pattern itself.

use super::pattern::Pattern;

/// Boxes that are compared at once: four vectors of eight 16-bit values. With half as many, searches visit twice as many
/// nodes and take a quarter longer.
pub const WIDTH: usize = 32;
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

/// The box of a pattern, an interval for every lane.
pub fn box_of<const W: usize>(pattern: &Pattern<W>) -> Box<[Interval]> {
    Lane::all(W).map(|lane| lane.interval(pattern)).collect()
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

/// One lane of up to [`WIDTH`] boxes, in 16 bits: a vector register holds eight. Values are counted from the least that
/// a box begins at, and shifted so far that the largest fits; that makes intervals a little wider, never narrower.
/// Boxes that leave the lane open go from 0 to the end, the others lie between 1 and [`MOST`], and a value that is in none
/// of them comes out below or above.
#[derive(Clone)]
struct Test {
    first: [u16; WIDTH],
    span: [u16; WIDTH],
    base: u32,
    lane: Lane,
    shift: u8,
}

/// The largest value that a box ends at.
const MOST: u32 = 0xfffd;

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
        let mut test = Test { first: [0; WIDTH], span: [0; WIDTH], base, lane, shift };
        for (index, interval) in intervals.enumerate().take(WIDTH) {
            if is_open(lane, interval) {
                test.span[index] = u16::MAX;
            } else {
                let (first, last) = (test.scale(interval.0), test.scale(interval.1));
                (test.first[index], test.span[index]) = (first, last - first);
            }
        }
        test
    }

    /// Without branches: where a random value lies cannot be foreseen.
    #[inline(always)]
    fn scale(&self, value: u32) -> u16 {
        let above = (i64::from(value) - i64::from(self.base)) >> self.shift;
        (above.clamp(-1, i64::from(MOST)) + 1) as u16
    }
}

/// Up to [`WIDTH`] boxes, lane by lane.
#[derive(Clone, Default)]
pub struct Boxes {
    tests: Box<[Test]>,
    count: u32,
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
        Boxes { tests, count: count as u32 }
    }

    /// A bit for every box that the key may lie in.
    #[inline(always)]
    pub fn candidates<const W: usize>(&self, key: &[u64; W]) -> u32 {
        let mut within = [!0u16; WIDTH];
        for test in &self.tests {
            let value = test.scale(test.lane.of(key));
            for (within, (first, span)) in within.iter_mut().zip(test.first.iter().zip(&test.span)) {
                *within &= if value.wrapping_sub(*first) <= *span { !0 } else { 0 };
            }
        }
        let mut bits = 0;
        for (index, half) in within.chunks_exact(16).enumerate() {
            let half = half.iter().zip(BIT).fold(0, |bits: u16, (within, bit)| bits | within & bit);
            bits |= u32::from(half) << (16 * index);
        }
        bits & !(u64::MAX << self.count) as u32
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.tests)
    }
}

/// One bit for each of sixteen boxes.
const BIT: [u16; 16] = {
    let (mut bits, mut index) = ([0; 16], 0);
    while index < 16 {
        bits[index] = 1 << index;
        index += 1;
    }
    bits
};

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
