//! Counters and histograms with one writer and any number of readers.
//!
//! A worker adds by a plain load and store, without a bus lock; a reader sees each counter at some recent moment, and
//! different counters at slightly different ones. Sums over workers are the reader's business.
//! Invariant: each counter has exactly one writing thread at a time; a second one would lose counts (but no more).

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

/// A number that one thread writes and any thread reads. Zeroed memory is a counter at zero.
#[derive(Debug, Default, FromZeros)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `n`, wrapping. For the one writing thread only.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets the value. For the one writing thread only.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value at some recent moment. For any thread.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What passed through one stage. Written by the thread that runs the stage, read by the monitor.
#[derive(Debug, Default)]
pub struct StageCounters {
    /// Items that entered the stage.
    pub items: Counter,
    /// Batches that entered the stage; empty ones do not.
    pub calls: Counter,
    /// Time-stamp cycles spent in the stage.
    pub cycles: Counter,
}

impl StageCounters {
    /// Adds one call with so many items and cycles.
    #[inline(always)]
    pub fn record(&self, items: u64, cycles: u64) {
        self.items.add(items);
        self.calls.add(1);
        self.cycles.add(cycles);
    }
}

/// What one worker did with its time. Written by the worker's thread, read by the monitor. Cycles are time-stamp
/// cycles; what is in `total_cycles` but neither busy nor asleep went into empty rounds, that is polling.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Cycles since the worker's first round.
    pub total_cycles: Counter,
    /// Cycles in rounds that handled at least one item.
    pub busy_cycles: Counter,
    /// Cycles in which the worker had given its core back.
    pub asleep_cycles: Counter,
    /// Rounds.
    pub rounds: Counter,
    /// Rounds that handled no item.
    pub empty_rounds: Counter,
    /// Times that the worker gave its core back.
    pub sleeps: Counter,
    /// Panics caught.
    pub panics: Counter,
}

/// Values below this exponent of two have a bucket each; above it every power of two has `2^SUB_BITS` buckets, so that
/// a bucket is at most 1/8 of its lower bound wide.
const SUB_BITS: u32 = 3;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Values from `2^TOP_BITS` on share the last bucket. 2^40 ns are 18 minutes, 2^40 cycles some 6.
const TOP_BITS: u32 = 40;

/// Number of buckets of a [`Histogram`].
pub const BUCKETS: usize = SUB_BUCKETS * (TOP_BITS - SUB_BITS + 1) as usize + 1;

/// A log-linear histogram of values in any unit, with a relative error of at most 1/8. One thread records, any thread
/// takes snapshots; 2.4 KiB, allocated with its owner, never grown.
#[derive(Debug)]
pub struct Histogram {
    /// Written by the one recording thread, read by any.
    buckets: [Counter; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: [const { Counter::new() }; BUCKETS] }
    }

    /// Counts `value` as seen `count` times (the items of a batch often share one value).
    #[inline]
    pub fn record(&self, value: u64, count: u64) {
        if let Some(bucket) = self.buckets.get(bucket_index(value)) {
            bucket.add(count);
        }
    }

    /// The counts of all buckets, [`BUCKETS`] of them.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u64> {
        self.buckets.iter().map(Counter::get).collect()
    }
}

/// The bucket that holds `value`.
#[inline]
fn bucket_index(value: u64) -> usize {
    if value < SUB_BUCKETS as u64 {
        return value as usize;
    }
    let exponent = value.ilog2();
    if exponent >= TOP_BITS {
        return BUCKETS - 1;
    }
    let shift = exponent - SUB_BITS;
    // The top bit of the shifted value is the power of two, the SUB_BITS below it the bucket within.
    shift as usize * SUB_BUCKETS + (value >> shift) as usize
}

/// The smallest value of bucket `index`; that of the last bucket for every index beyond.
#[must_use]
pub fn bucket_lower_bound(index: usize) -> u64 {
    if index < SUB_BUCKETS {
        return index as u64;
    }
    if index >= BUCKETS - 1 {
        return 1 << TOP_BITS;
    }
    let shift = index / SUB_BUCKETS - 1;
    ((SUB_BUCKETS + index % SUB_BUCKETS) as u64) << shift
}

/// The largest value of bucket `index`; `u64::MAX` for the last, which has no bound.
#[must_use]
pub fn bucket_upper_bound(index: usize) -> u64 {
    if index >= BUCKETS - 1 { u64::MAX } else { bucket_lower_bound(index + 1) - 1 }
}

/// The upper bound of the bucket that holds the `q`-quantile (`q` from 0 to 1, clamped) of a snapshot: at least a share
/// `q` of the recorded values is no greater than it. 0 when nothing was recorded.
#[must_use]
pub fn quantile(snapshot: &[u64], q: f64) -> u64 {
    let total: u64 = snapshot.iter().sum();
    if total == 0 {
        return 0;
    }
    let rank = ((q.clamp(0.0, 1.0) * total as f64).ceil() as u64).clamp(1, total);
    let mut below = 0;
    for (index, count) in snapshot.iter().enumerate() {
        below += count;
        if below >= rank {
            return bucket_upper_bound(index);
        }
    }
    u64::MAX
}

/// What was recorded between two snapshots of the same histogram; never negative.
#[must_use]
pub fn difference(newer: &[u64], older: &[u64]) -> Vec<u64> {
    let before = older.iter().copied().chain(std::iter::repeat(0));
    newer.iter().zip(before).map(|(new, old)| new.saturating_sub(old)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counter_adds_sets_and_wraps() {
        let counter = Counter::new();
        counter.add(5);
        counter.add(2);
        assert_eq!(counter.get(), 7);
        counter.set(u64::MAX);
        counter.add(2);
        assert_eq!(counter.get(), 1);
    }

    #[test]
    fn bounds_are_contiguous() {
        assert_eq!(bucket_lower_bound(0), 0);
        for index in 0..BUCKETS {
            assert_eq!(bucket_index(bucket_lower_bound(index)), index);
            assert_eq!(bucket_index(bucket_upper_bound(index)), index);
        }
        assert_eq!(bucket_index(1 << 40), BUCKETS - 1);
        assert_eq!(bucket_index((1 << 40) - 1), BUCKETS - 2);
        assert_eq!(bucket_index(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_lower_bound(usize::MAX), 1 << 40);
    }

    #[test]
    fn quantiles_of_known_values() {
        let histogram = Histogram::new();
        assert_eq!(quantile(&histogram.snapshot(), 0.5), 0);
        histogram.record(3, 90);
        histogram.record(1000, 9);
        histogram.record(u64::MAX, 1);
        let snapshot = histogram.snapshot();
        assert_eq!(quantile(&snapshot, 0.0), 3);
        assert_eq!(quantile(&snapshot, 0.9), 3);
        assert_eq!(quantile(&snapshot, 0.95), 1023, "the bucket of 1000 is 960..=1023");
        assert_eq!(quantile(&snapshot, 1.0), u64::MAX);
    }

    #[test]
    fn difference_is_what_came_between() {
        let histogram = Histogram::new();
        histogram.record(5, 2);
        let older = histogram.snapshot();
        histogram.record(5, 1);
        histogram.record(100, 4);
        let between = difference(&histogram.snapshot(), &older);
        assert_eq!(between.len(), BUCKETS);
        assert_eq!(between[5], 1);
        assert_eq!(between.iter().sum::<u64>(), 5);
        assert_eq!(difference(&older, &[]), older);
    }

    proptest! {
        /// The exact quantile of a sorted list is the oracle: the estimate is never below it and at most 1/8 above.
        #[test]
        fn quantile_against_sorted_values(
            mut values in prop::collection::vec(0u64..1 << 40, 1..200),
            q in 0.0f64..=1.0,
        ) {
            let histogram = Histogram::new();
            values.iter().for_each(|value| histogram.record(*value, 1));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let estimate = quantile(&histogram.snapshot(), q);
            prop_assert!(estimate >= exact);
            prop_assert!(estimate <= exact + exact / 8);
        }
    }
}
