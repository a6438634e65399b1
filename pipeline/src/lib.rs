//! The staged-execution runtime: stages, rings, workers, published snapshots, the idle decision, who gets which core.
//!
//! It knows no packet and no DPDK: items are of any type, so that blocks of a volume pass through it as packets do.
//!
//! * A [`Stage`] works on a [`Batch`] in place. Stages on one core are fused by a [`Chain`]: plain calls over the same
//!   batch, monomorphised, measured with one time stamp between two stages.
//! * Stages on different cores are joined by a [`ring`](ring::ring): bounded, one producer, one consumer.
//! * A [`Worker`] is a pinned thread that repeats the rounds of one [`Task`], survives its panics, and asks [`Idle`]
//!   after every round whether to give the core back. Who brings a sleeping worker something rings its [`Bell`].
//! * Tables reach workers as immutable snapshots through a [`Publisher`]; only the publisher's side frees them.
//! * Cores go from one pipeline to another that needs them more as an [`Allocator`] decides.
//! * Counters have one writer and any number of readers ([`Counter`]).
//!
//! Invariant: after a worker's start-up nothing here allocates, locks with waiting, or reads a clock other than the
//! time-stamp counter for a batch; `tests/no_alloc.rs` holds the first of these.
//!
//! ```
//! use forebay_pipeline::{Batch, Chain, Stage};
//!
//! struct Double;
//! impl Stage<Batch<u32>> for Double {
//!     const NAME: &'static str = "double";
//!     fn process(&mut self, batch: &mut Batch<u32>) {
//!         batch.iter_mut().for_each(|n| *n *= 2);
//!     }
//! }
//! struct DropOdd;
//! impl Stage<Batch<u32>> for DropOdd {
//!     const NAME: &'static str = "drop-odd";
//!     fn process(&mut self, batch: &mut Batch<u32>) {
//!         batch.retain(|n| *n % 2 == 0);
//!     }
//! }
//!
//! let mut chain = Chain::new((DropOdd, Double));
//! let mut batch: Batch<u32> = (1..=4).collect();
//! chain.run(&mut batch);
//! assert_eq!(batch.as_slice(), [4, 8]);
//! assert_eq!(chain.counters().stages().next().map(|(name, c)| (name, c.items.get())), Some(("drop-odd", 4)));
//! ```

pub mod allocate;
pub mod batch;
pub mod bell;
pub mod cores;
pub mod counters;
pub mod idle;
pub mod memory;
mod os;
mod poller;
pub mod prefetch;
pub mod publish;
pub mod ring;
mod run;
pub mod stage;
mod sync;
pub mod tsc;
pub mod worker;

pub use allocate::{AllocationPolicy, Allocator, Demand, Move, SAMPLE_INTERVAL};
pub use batch::{BATCH, Batch, Items};
pub use bell::{Bell, Watch};
pub use cores::{CoreError, Seat};
pub use counters::{Counter, Histogram, StageCounters, WorkerCounters};
pub use idle::{Idle, IdlePolicy};
pub use prefetch::prefetch;
pub use publish::{Publisher, Stalled, Subscriber};
pub use ring::{RingConsumer, RingProducer, RingStatus, ring};
pub use stage::{Chain, ChainCounters, Stage, StageList};
pub use worker::{
    Phase, Round, StopReport, Task, Worker, WorkerError, WorkerEvent, WorkerOptions, WorkerStatus,
};
