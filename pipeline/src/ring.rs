//! The bounded ring between two workers: one producer, one consumer, whole batches at a time.
//!
//! The slots and their atomics are `rtrb`'s; this file adds the batch-wise face, the counters that a monitor reads, and
//! the rule for a full ring: what does not fit stays with the producer, in order, and is counted as refused. Whether it
//! waits or drops is the producer's decision, never the ring's. The producer caches the consumer's position, and the
//! consumer looks at the producer's once a burst, so a burst costs one transfer of a cache line rather than one per item.
//! What the consumer finds waiting it also counts in a histogram: a depth that is asked for once a second says little
//! about a queue that fills and empties within a millisecond.
//! What a pop gave counts as done with when the next one is asked for: a consumer works on a batch before it looks for
//! more, so a producer can find out when everything it passed on has been worked on ([`RingProducer::is_done_with`]),
//! which is when somebody else may go on in its place without overtaking it.
//! Invariant: items come out in the order in which they went in, each exactly once; items left when both ends are gone
//! are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::batch::Batch;
use crate::bell::Bell;
use crate::counters::{Counter, Histogram};

/// What the producer's thread writes.
#[derive(Debug, Default)]
struct ProducerSide {
    pushed: Counter,
    refused: Counter,
}

/// What the consumer's thread writes.
#[derive(Debug, Default)]
struct ConsumerSide {
    popped: Counter,
    /// Of these, how many the consumer has worked on. Its producer relies on it: what the consumer did with them happened
    /// before.
    done: AtomicU64,
    /// Items that were waiting when the consumer took some.
    depths: Histogram,
}

/// The figures of one ring, readable by any thread for as long as it keeps the `Arc`.
#[derive(Debug)]
pub struct RingStatus {
    name: String,
    capacity: usize,
    /// Written by the producer's thread, read by any.
    producer: CachePadded<ProducerSide>,
    /// Written by the consumer's thread, read by any.
    consumer: CachePadded<ConsumerSide>,
}

impl RingStatus {
    /// The ring's name, as users see it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Most items that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Items in the ring at some recent moment, from 0 to the capacity.
    #[must_use]
    pub fn depth(&self) -> usize {
        // The consumer's figure first: what is pushed meanwhile makes the depth too great, never negative.
        let popped = self.consumer.popped.get();
        let depth = self.producer.pushed.get().saturating_sub(popped);
        usize::try_from(depth).unwrap_or(self.capacity).min(self.capacity)
    }

    /// How often the consumer found so many items waiting, since the start: the buckets of a [`Histogram`] of items, one
    /// count for each pop that found any.
    #[must_use]
    pub fn depths(&self) -> Vec<u64> {
        self.consumer.depths.snapshot()
    }

    /// Items that went in since the start.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.producer.pushed.get()
    }

    /// Items that came out since the start.
    #[must_use]
    pub fn popped(&self) -> u64 {
        self.consumer.popped.get()
    }

    /// Items that came out and that the consumer has worked on.
    #[must_use]
    pub fn done(&self) -> u64 {
        // Acquire: what the consumer did with the items happened before what the caller does next.
        self.consumer.done.load(Ordering::Acquire)
    }

    /// Items that were offered and found no room; an item that is offered again is counted again.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.producer.refused.get()
    }
}

/// The end that items go in at.
#[derive(Debug)]
pub struct RingProducer<T> {
    slots: rtrb::Producer<T>,
    status: Arc<RingStatus>,
    /// Wakes the consumer.
    bell: Option<Arc<Bell>>,
}

/// The end that items come out at.
#[derive(Debug)]
pub struct RingConsumer<T> {
    slots: rtrb::Consumer<T>,
    status: Arc<RingStatus>,
}

/// Makes a ring for `capacity` items; all its memory is allocated here. A capacity of 0 is taken as 1, since a ring
/// without a slot would never pass anything.
#[must_use]
pub fn ring<T>(name: impl Into<String>, capacity: usize) -> (RingProducer<T>, RingConsumer<T>) {
    let capacity = capacity.max(1);
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let status = Arc::new(RingStatus {
        name: name.into(),
        capacity,
        producer: CachePadded::default(),
        consumer: CachePadded::default(),
    });
    (
        RingProducer { slots: producer, status: Arc::clone(&status), bell: None },
        RingConsumer { slots: consumer, status },
    )
}

impl<T> RingProducer<T> {
    /// From now on, what is pushed wakes the worker of this bell, which pops it.
    #[must_use]
    pub fn waking(self, bell: &Arc<Bell>) -> Self {
        Self { bell: Some(Arc::clone(bell)), ..self }
    }

    /// Moves as many items as fit from the front of the batch into the ring and returns how many; the rest stays in
    /// the batch, in order.
    #[inline]
    pub fn push(&mut self, batch: &mut Batch<T>) -> usize {
        let offered = batch.len();
        let mut room = self.slots.cached_slots();
        if room < offered {
            room = self.slots.slots();
        }
        let fits = offered.min(room);
        if fits < offered {
            self.status.producer.refused.add((offered - fits) as u64);
        }
        if fits == 0 {
            return 0;
        }
        let Ok(chunk) = self.slots.write_chunk_uninit(fits) else { return 0 };
        // Counted before the items become visible, lest the consumer's figure run ahead of the producer's.
        self.status.producer.pushed.add(fits as u64);
        let filled = chunk.fill_from_iter(batch.drain(..fits));
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        filled
    }

    /// Free slots, exactly as far as this end is concerned: the consumer can only add to them.
    #[must_use]
    pub fn free(&self) -> usize {
        self.slots.slots()
    }

    /// How much has gone in up to now, for [`RingProducer::is_done_with`].
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.status.pushed()
    }

    /// Whether the consumer has worked on all that had gone in by this [`mark`](RingProducer::mark), or is gone.
    #[must_use]
    pub fn is_done_with(&self, mark: u64) -> bool {
        self.status.done() >= mark || self.slots.is_abandoned()
    }

    /// Whether the consumer is gone, so that nothing pushed will ever be read.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.slots.is_abandoned()
    }

    /// The ring's figures.
    #[must_use]
    pub fn status(&self) -> Arc<RingStatus> {
        Arc::clone(&self.status)
    }
}

impl<T> RingConsumer<T> {
    /// Moves items from the ring to the back of the batch, as many as there are and as the batch has room for; returns
    /// how many. To be called when what the last call gave has been worked on.
    #[inline]
    pub fn pop(&mut self, batch: &mut Batch<T>) -> usize {
        self.acknowledge();
        // Asked anew, though what was seen last may do: else a full ring would look emptier with every burst.
        let waiting = self.slots.slots();
        let taken = batch.remaining_capacity().min(waiting);
        if taken == 0 {
            return 0;
        }
        let Ok(chunk) = self.slots.read_chunk(taken) else { return 0 };
        // `for_each`, not `extend`: the chunk walks its two halves without asking at each item which one it is in.
        chunk.into_iter().for_each(|item| batch.push(item));
        let consumer = &self.status.consumer;
        consumer.popped.add(taken as u64);
        consumer.depths.record(waiting as u64, 1);
        taken
    }

    /// Says that what the last [`pop`](RingConsumer::pop) gave has been worked on, without asking for more.
    #[inline]
    pub fn acknowledge(&mut self) {
        let consumer = &self.status.consumer;
        // The line is this thread's own, and is written only where there is something to say.
        let popped = consumer.popped.get();
        if consumer.done.load(Ordering::Relaxed) != popped {
            consumer.done.store(popped, Ordering::Release);
        }
    }

    /// Items waiting, at least: the producer can only add to them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.slots()
    }

    /// Whether nothing is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether the producer is gone. What it pushed before can still be popped: the ring is finished when it is
    /// abandoned *and then* found empty, asked in this order.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.slots.is_abandoned()
    }

    /// The ring's figures.
    #[must_use]
    pub fn status(&self) -> Arc<RingStatus> {
        Arc::clone(&self.status)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::batch::BATCH;
    use crate::counters::{BUCKETS, quantile};

    #[test]
    fn a_full_ring_leaves_the_rest_in_order() {
        let (mut producer, mut consumer) = ring::<u32>("r", 5);
        let status = producer.status();
        let mut batch: Batch<u32> = (0..8).collect();
        assert_eq!(producer.push(&mut batch), 5);
        assert_eq!(batch.as_slice(), [5, 6, 7]);
        assert_eq!((status.depth(), status.capacity(), status.refused()), (5, 5, 3));
        assert_eq!(producer.push(&mut batch), 0);
        assert_eq!((status.refused(), producer.free()), (6, 0));

        let mut out: Batch<u32> = (100..162).collect();
        assert_eq!(consumer.pop(&mut out), 2, "only the free space of the batch is filled");
        assert_eq!(out[62..], [0, 1]);
        assert_eq!((consumer.len(), status.depth(), status.name()), (3, 3, "r"));
        assert_eq!(consumer.pop(&mut out), 0);
        assert_eq!((status.pushed(), status.popped()), (5, 2));
    }

    #[test]
    fn what_was_popped_is_done_with_at_the_next_pop() {
        let (mut producer, mut consumer) = ring::<u32>("r", 8);
        assert!(producer.is_done_with(producer.mark()), "there was nothing to do");
        producer.push(&mut (0..3).collect());
        let mark = producer.mark();
        producer.push(&mut (3..5).collect());
        let mut out: Batch<u32> = (0..61).collect();
        assert_eq!(consumer.pop(&mut out), 3);
        assert!(!producer.is_done_with(mark), "the consumer may still be at it");
        out.clear();
        assert_eq!(consumer.pop(&mut out), 2);
        assert!(producer.is_done_with(mark) && !producer.is_done_with(producer.mark()));
        consumer.acknowledge();
        assert!(producer.is_done_with(producer.mark()), "without a look for more");
        assert_eq!(consumer.pop(&mut out), 0);
        producer.push(&mut (5..6).collect());
        drop(consumer);
        assert!(producer.is_done_with(producer.mark()), "nobody is left to work on it");
    }

    #[test]
    fn each_pop_counts_what_was_waiting() {
        let (mut producer, mut consumer) = ring::<u32>("r", 2 * BATCH);
        let status = consumer.status();
        let mut out = Batch::new();
        assert_eq!(consumer.pop(&mut out), 0);
        assert_eq!(status.depths(), [0; BUCKETS], "an empty ring is not counted");
        producer.push(&mut (0..5).collect());
        consumer.pop(&mut out);
        out.clear();
        producer.push(&mut (0..BATCH as u32).collect());
        producer.push(&mut (0..10).collect());
        consumer.pop(&mut out);
        assert_eq!(consumer.pop(&mut out), 0, "no room: nothing is taken, nothing counted");
        out.clear();
        // What came after the last look is waiting, too.
        producer.push(&mut (0..BATCH as u32).collect());
        consumer.pop(&mut out);
        let depths = status.depths();
        assert_eq!((depths[5], depths.iter().sum::<u64>()), (1, 3));
        assert_eq!(quantile(&depths, 1.0), 79, "74 both times: the bucket is 72..=79");
    }

    #[test]
    fn zero_capacity_is_one() {
        let (mut producer, mut consumer) = ring::<u8>("r", 0);
        let mut batch: Batch<u8> = [7, 8].into_iter().collect();
        assert_eq!(producer.push(&mut batch), 1);
        let mut out = Batch::new();
        assert_eq!(consumer.pop(&mut out), 1);
        assert_eq!(out.as_slice(), [7]);
        assert!(consumer.is_empty());
    }

    #[test]
    fn items_left_are_dropped_with_the_ring() {
        let item = Arc::new(());
        let (mut producer, mut consumer) = ring("r", 8);
        let mut batch: Batch<Arc<()>> = (0..6).map(|_| Arc::clone(&item)).collect();
        producer.push(&mut batch);
        drop(producer);
        assert!(consumer.is_abandoned());
        let mut out = Batch::new();
        out.extend((0..BATCH - 2).map(|_| Arc::clone(&item)));
        assert_eq!(consumer.pop(&mut out), 2);
        drop(out);
        assert_eq!(Arc::strong_count(&item), 5, "four are still in the ring");
        drop(consumer);
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn the_producer_learns_that_the_consumer_is_gone() {
        let (producer, consumer) = ring::<u8>("r", 4);
        assert!(!producer.is_abandoned());
        drop(consumer);
        assert!(producer.is_abandoned());
    }

    #[test]
    fn two_threads_lose_and_reorder_nothing() {
        const ITEMS: u64 = 100_000;
        let (mut producer, mut consumer) = ring::<u64>("r", 100);
        let feeder = std::thread::spawn(move || {
            let mut next = 0..ITEMS;
            let mut batch = Batch::new();
            loop {
                batch.extend(next.by_ref().take(batch.remaining_capacity()));
                if batch.is_empty() {
                    break;
                }
                if producer.push(&mut batch) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let (mut expected, mut batch) = (0, Batch::new());
        while expected < ITEMS {
            if consumer.pop(&mut batch) == 0 {
                std::thread::yield_now();
            }
            for item in batch.drain(..) {
                assert_eq!(item, expected);
                expected += 1;
            }
        }
        feeder.join().unwrap();
        assert_eq!(consumer.status().depth(), 0);
    }

    proptest! {
        /// `VecDeque` is the oracle. Items are boxed, so that a double drop or a leak shows under a checker as well.
        #[test]
        fn behaves_as_a_bounded_queue(
            capacity in 1usize..100,
            steps in prop::collection::vec((any::<bool>(), 0usize..=BATCH), 1..100),
        ) {
            let (mut producer, mut consumer) = ring::<Box<u64>>("r", capacity);
            let status = consumer.status();
            let mut oracle = VecDeque::new();
            let (mut next, mut refused) = (0u64, 0u64);
            for (is_push, count) in steps {
                if is_push {
                    let mut batch: Batch<Box<u64>> = (next..next + count as u64).map(Box::new).collect();
                    let fits = count.min(capacity - oracle.len());
                    prop_assert_eq!(producer.push(&mut batch), fits);
                    oracle.extend(next..next + fits as u64);
                    let rest: Vec<u64> = batch.iter().map(|item| **item).collect();
                    prop_assert_eq!(rest, (next + fits as u64..next + count as u64).collect::<Vec<_>>());
                    refused += (count - fits) as u64;
                    next += count as u64;
                } else {
                    // `count` slots of the batch are taken beforehand.
                    let mut batch: Batch<Box<u64>> = (0..count).map(|_| Box::new(u64::MAX)).collect();
                    let taken = (BATCH - count).min(oracle.len());
                    prop_assert_eq!(consumer.pop(&mut batch), taken);
                    let got: Vec<u64> = batch[count..].iter().map(|item| **item).collect();
                    prop_assert_eq!(got, oracle.drain(..taken).collect::<Vec<_>>());
                }
                prop_assert_eq!(status.depth(), oracle.len());
                prop_assert_eq!(status.refused(), refused);
                prop_assert_eq!(consumer.len(), oracle.len());
                prop_assert_eq!(producer.free(), capacity - oracle.len());
            }
        }
    }
}
