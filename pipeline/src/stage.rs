//! Stages, and their fusion on one core.
//!
//! Fusion is static: a tuple of stages is itself a list of stages, and running it is plain calls over the same batch
//! that the compiler may inline into one another. Nothing is dispatched dynamically per batch or per item.
//! Invariant: every item that enters a stage is counted there, and time between the first and the last stage belongs
//! to exactly one of them (one time stamp between two stages, not two).

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::batch::Items;
use crate::counters::StageCounters;
use crate::tsc;

/// One step of a pipeline.
pub trait Stage<B: Items>: Send {
    /// The stage's name, as users see it.
    const NAME: &'static str;

    /// Works on the items of the batch in place. It may take items out; what stays goes on to the next stage, in
    /// order. It is never called with an empty batch by a [`Chain`].
    fn process(&mut self, batch: &mut B);
}

/// A tuple of one to eight stages that share a core.
pub trait StageList<B: Items>: Send {
    /// Names of the stages, in order.
    const NAMES: &'static [&'static str];

    /// Runs every stage in order, until the batch is empty; adds to `counters`, one per stage. `at` is the time stamp
    /// at which the first stage began; returns that at which the last one that ran ended.
    fn run(&mut self, batch: &mut B, at: u64, counters: &[CachePadded<StageCounters>]) -> u64;
}

/// Runs one stage; returns the time stamp at its end.
#[inline(always)]
fn run_stage<B: Items, S: Stage<B>>(stage: &mut S, batch: &mut B, at: u64, counters: &StageCounters) -> u64 {
    let items = batch.count();
    if items == 0 {
        return at;
    }
    stage.process(batch);
    let now = tsc::now();
    counters.record(items as u64, now.wrapping_sub(at));
    now
}

macro_rules! stage_list {
    ($($stage:ident $field:tt $counters:ident),+) => {
        impl<Burst: Items, $($stage: Stage<Burst>),+> StageList<Burst> for ($($stage,)+) {
            const NAMES: &'static [&'static str] = &[$($stage::NAME),+];

            #[inline(always)]
            fn run(&mut self, batch: &mut Burst, mut at: u64, counters: &[CachePadded<StageCounters>]) -> u64 {
                if let [$($counters),+] = counters {
                    $(at = run_stage(&mut self.$field, batch, at, $counters);)+
                }
                at
            }
        }
    };
}

stage_list!(A 0 a);
stage_list!(A 0 a, B 1 b);
stage_list!(A 0 a, B 1 b, C 2 c);
stage_list!(A 0 a, B 1 b, C 2 c, D 3 d);
stage_list!(A 0 a, B 1 b, C 2 c, D 3 d, E 4 e);
stage_list!(A 0 a, B 1 b, C 2 c, D 3 d, E 4 e, F 5 f);
stage_list!(A 0 a, B 1 b, C 2 c, D 3 d, E 4 e, F 5 f, G 6 g);
stage_list!(A 0 a, B 1 b, C 2 c, D 3 d, E 4 e, F 5 f, G 6 g, H 7 h);

/// The counters of a chain's stages; clones share them, so that a monitor can keep one.
#[derive(Clone, Debug)]
pub struct ChainCounters {
    names: &'static [&'static str],
    /// Written by the thread that runs the chain, read by any. One cache line each, lest two chains' counters meet.
    counters: Arc<[CachePadded<StageCounters>]>,
}

impl ChainCounters {
    /// Name and counters of every stage, in order.
    pub fn stages(&self) -> impl ExactSizeIterator<Item = (&'static str, &StageCounters)> {
        self.names.iter().copied().zip(self.counters.iter().map(|padded| &**padded))
    }
}

/// Stages fused into one call per batch, with their counters.
#[derive(Debug)]
pub struct Chain<S> {
    stages: S,
    counters: ChainCounters,
}

impl<S> Chain<S> {
    /// Fuses a tuple of stages: `Chain::new((Admit, Classify, Transform))`.
    pub fn new<B: Items>(stages: S) -> Self
    where
        S: StageList<B>,
    {
        let counters = S::NAMES.iter().map(|_| CachePadded::new(StageCounters::default())).collect();
        Self { stages, counters: ChainCounters { names: S::NAMES, counters } }
    }

    /// Passes the batch through every stage, in order. What is left in it has passed through all of them.
    #[inline(always)]
    pub fn run<B: Items>(&mut self, batch: &mut B)
    where
        S: StageList<B>,
    {
        if batch.count() > 0 {
            self.run_from(batch, tsc::now());
        }
    }

    /// As [`run`](Self::run) for a caller that has just read the time stamp `at` anyway; returns the one at which the
    /// last stage ended, or `at` when the batch was empty.
    #[inline(always)]
    pub fn run_from<B: Items>(&mut self, batch: &mut B, at: u64) -> u64
    where
        S: StageList<B>,
    {
        self.stages.run(batch, at, &self.counters.counters)
    }

    /// The stages, to look into them between batches.
    pub fn stages(&self) -> &S {
        &self.stages
    }

    /// The stages, to change or flush them between batches.
    pub fn stages_mut(&mut self) -> &mut S {
        &mut self.stages
    }

    /// The counters of the stages; the handle stays valid when the chain is gone.
    #[must_use]
    pub fn counters(&self) -> ChainCounters {
        self.counters.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;

    struct Add(u64);
    impl Stage<Batch<u64>> for Add {
        const NAME: &'static str = "add";
        fn process(&mut self, batch: &mut Batch<u64>) {
            assert!(!batch.is_empty(), "a chain never runs a stage for nothing");
            batch.iter_mut().for_each(|n| *n += self.0);
        }
    }

    struct KeepBelow(u64);
    impl Stage<Batch<u64>> for KeepBelow {
        const NAME: &'static str = "keep-below";
        fn process(&mut self, batch: &mut Batch<u64>) {
            batch.retain(|n| *n < self.0);
        }
    }

    fn figures(counters: &ChainCounters) -> Vec<(&'static str, u64, u64)> {
        counters.stages().map(|(name, c)| (name, c.items.get(), c.calls.get())).collect()
    }

    #[test]
    fn runs_in_order_and_counts_what_entered() {
        let mut chain = Chain::new((Add(1), KeepBelow(4), Add(10)));
        let counters = chain.counters();
        let mut batch: Batch<u64> = (0..6).collect();
        chain.run(&mut batch);
        assert_eq!(batch.as_slice(), [11, 12, 13]);
        assert_eq!(figures(&counters), [("add", 6, 1), ("keep-below", 6, 1), ("add", 3, 1)]);
        assert!(counters.stages().map(|(_, c)| c.cycles.get()).sum::<u64>() > 0);
    }

    #[test]
    fn skips_stages_once_the_batch_is_empty() {
        let mut chain = Chain::new((KeepBelow(0), Add(1)));
        let mut batch: Batch<u64> = (0..3).collect();
        chain.run(&mut batch);
        chain.run(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(figures(&chain.counters()), [("keep-below", 3, 1), ("add", 0, 0)]);
    }

    #[test]
    fn stages_can_be_changed_between_batches() {
        let mut chain = Chain::new((Add(1),));
        chain.stages_mut().0.0 = 5;
        let mut batch: Batch<u64> = [1].into_iter().collect();
        let end = chain.run_from(&mut batch, 7);
        assert_eq!((batch[0], chain.stages().0.0), (6, 5));
        assert!(end > 7);
        batch.clear();
        assert_eq!(chain.run_from(&mut batch, 7), 7);
    }
}
