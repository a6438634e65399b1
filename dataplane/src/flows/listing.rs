//! A worker's report of the flows that it remembers, for whoever shows them.
//!
//! The control side makes a [`Listing`] and hands it to the worker, which copies a small piece of its cache in each round,
//! so that no burst waits for more than that, into a ring that the control side reads. What is copied is raw words;
//! [`super::record`] tells what they say. A flow that comes or goes meanwhile is in the report or not.

use crate::action::PortId;
use crate::flows::cache::{Decision, FlowCache, TICK_BITS};
use crate::flows::key::{self, HEAD_WORDS, Tail};
use forebay_pipeline::ring::{RingConsumer, RingProducer, ring};
use forebay_pipeline::{Batch, tsc};
use std::time::Duration;

/// Flows that are copied in a round: 4 KiB that the processor fetches ahead, and as much written, take it some 1 us.
const FLOWS_AT_ONCE: usize = 32;
/// Sets that are looked at in a round: 1 KiB of tags, where the cache is empty.
const SETS_AT_ONCE: usize = 64;
/// Reports that wait for the control side: a worker that is busy fills them in some 100 us, and goes on when there is room.
const REPORTS: usize = 8 * FLOWS_AT_ONCE;

/// A flow as it stands in the cache.
#[derive(Clone, Copy, Debug)]
pub struct FlowCopy {
    /// First words of its key.
    pub head: [u64; HEAD_WORDS],
    /// The other words of its key.
    pub tail: Tail,
    /// The generation of the tables that it was decided by.
    pub generation: u64,
    pub(super) idle_ticks: u32,
    /// Its packets, modulo 2^32.
    pub packets: u32,
    /// Their bytes.
    pub bytes: u64,
    /// What was decided.
    pub decision: Decision,
}

impl FlowCopy {
    /// The port that received it.
    pub fn port(&self) -> PortId {
        key::port(&self.head)
    }

    /// The time since its newest packet, to half a millisecond.
    pub fn idle(&self) -> Duration {
        Duration::from_nanos(tsc::to_ns(u64::from(self.idle_ticks) << TICK_BITS))
    }
}

/// What a worker reports.
#[derive(Clone, Copy, Debug)]
pub enum Report {
    /// One of its flows.
    Flow(FlowCopy),
    /// These were all.
    Through,
}

/// What is copied in a round.
#[derive(Default)]
pub(super) struct Piece {
    reports: Batch<Report>,
    /// Sets that have been looked at.
    pub(super) sets: usize,
}

impl Piece {
    pub(super) fn has_room_for(&self, flows: usize) -> bool {
        self.sets < SETS_AT_ONCE && self.reports.len() + flows <= FLOWS_AT_ONCE
    }

    pub(super) fn push(&mut self, flow: FlowCopy) {
        // There is room: it was asked for.
        let _ = self.reports.try_push(Report::Flow(flow));
    }
}

/// A report that is under way: the worker's end.
pub struct Listing {
    next_set: usize,
    reports: RingProducer<Report>,
}

impl Listing {
    /// A report to ask a worker for, and where it comes out.
    pub fn new() -> (Listing, RingConsumer<Report>) {
        let (reports, consumer) = ring("flows", REPORTS);
        (Listing { next_set: 0, reports }, consumer)
    }

    /// Reports the next piece of what a worker remembers, if there is room for it; one without a cache remembers nothing.
    /// False when that was the last, or when nobody listens any more.
    pub fn go_on(&mut self, flows: Option<&FlowCache>) -> bool {
        if self.reports.is_abandoned() {
            return false;
        }
        // One place more, for the end.
        if self.reports.free() <= FLOWS_AT_ONCE {
            return true;
        }
        let mut piece = Piece::default();
        let next = flows.and_then(|flows| flows.copy(self.next_set, tsc::now(), &mut piece));
        match next {
            Some(set) => self.next_set = set,
            None => drop(piece.reports.try_push(Report::Through)),
        }
        self.reports.push(&mut piece.reports);
        next.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::PackedAction;
    use crate::flows::cache::WAYS;
    use crate::flows::key::FlowKey;

    fn remember(cache: &mut FlowCache, number: u64) {
        let mut key = FlowKey::NONE;
        key.head.words[0] = number;
        // A set full of flows, each with a tag of its own.
        key.hash = ((number % WAYS as u64 + 1) << 49) | (number / WAYS as u64);
        let decision =
            Decision { action: PackedAction::TRAP, slot: number as u32, flow_hash: 0, affinity: 0 };
        assert!(cache.learn(&key, decision, 100 + number as u32));
    }

    /// Everything that has been reported.
    fn read(ring: &mut RingConsumer<Report>) -> Vec<Report> {
        let (mut all, mut batch) = (Vec::new(), Batch::new());
        while ring.pop(&mut batch) > 0 {
            all.extend(batch.drain(..));
        }
        all
    }

    #[test]
    fn every_flow_is_reported_once_and_a_piece_at_a_time() {
        let mut cache = FlowCache::new(4096).unwrap();
        cache.tick(tsc::now());
        (0..1000).for_each(|number| remember(&mut cache, number));
        let (mut listing, mut ring) = Listing::new();
        let mut seen = Vec::new();
        loop {
            let goes_on = listing.go_on(Some(&cache));
            let reports = read(&mut ring);
            assert!(reports.len() <= FLOWS_AT_ONCE + 1);
            for report in reports {
                match report {
                    Report::Flow(flow) => {
                        assert_eq!((flow.packets, flow.bytes), (1, 100 + flow.head[0]));
                        assert_eq!(u64::from(flow.decision.slot), flow.head[0]);
                        assert!(flow.idle() < Duration::from_secs(60));
                        seen.push(flow.head[0]);
                    }
                    Report::Through => assert!(!goes_on),
                }
            }
            if !goes_on {
                break;
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn an_empty_cache_is_passed_through_in_few_rounds() {
        let cache = FlowCache::new(4096).unwrap();
        let (mut listing, mut ring) = Listing::new();
        let rounds = 1 + (0..).take_while(|_| listing.go_on(Some(&cache))).count();
        assert_eq!(rounds, 4096 / WAYS / SETS_AT_ONCE);
        assert!(matches!(read(&mut ring)[..], [Report::Through]));
    }

    #[test]
    fn a_worker_without_a_cache_is_through_at_once() {
        let (mut listing, mut ring) = Listing::new();
        assert!(!listing.go_on(None));
        assert!(matches!(read(&mut ring)[..], [Report::Through]));
    }

    #[test]
    fn a_full_ring_is_waited_for_and_a_reader_that_left_is_not() {
        let mut cache = FlowCache::new(4096).unwrap();
        (0..2000).for_each(|number| remember(&mut cache, number));
        let (mut listing, mut ring) = Listing::new();
        (0..1000).for_each(|_| assert!(listing.go_on(Some(&cache))));
        let mut flows = 0;
        while !matches!(read(&mut ring)[..], [.., Report::Through]) {
            flows += 1;
            listing.go_on(Some(&cache));
        }
        assert!(flows > 1);
        let (mut listing, ring) = Listing::new();
        drop(ring);
        assert!(!listing.go_on(Some(&cache)));
    }
}
