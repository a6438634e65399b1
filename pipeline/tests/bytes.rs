//! A pipeline that has nothing to do with packets: blocks of bytes are summed, then stored.
//!
//! The same stages run split over two workers joined by a ring, and fused on one; both must store the same blocks in
//! the same order, lose none, and empty themselves when they are stopped.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use forebay_pipeline::{
    Batch, Chain, Counter, IdlePolicy, RingConsumer, RingProducer, Round, Stage, Task, Worker, WorkerOptions,
    ring,
};

const BLOCK_BYTES: usize = 512;
const NAP: IdlePolicy = IdlePolicy::LastItem { max_added_latency: Duration::from_micros(50) };

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    number: u64,
    bytes: Vec<u8>,
    sum: u32,
}

/// Adler-32 (RFC 1950, section 8.2).
fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

fn block(number: u64) -> Block {
    let bytes = (0..BLOCK_BYTES as u64).map(|n| (n * 7 + number * 13) as u8).collect();
    Block { number, bytes, sum: 0 }
}

struct Checksum;
impl Stage<Batch<Block>> for Checksum {
    const NAME: &'static str = "checksum";
    fn process(&mut self, batch: &mut Batch<Block>) {
        batch.iter_mut().for_each(|block| block.sum = adler32(&block.bytes));
    }
}

/// Takes every block out of the batch; hands all of them over when the worker drops it.
struct Store {
    blocks: Vec<Block>,
    stored: Arc<Counter>,
    handover: SyncSender<Vec<Block>>,
}

impl Store {
    fn new(stored: &Arc<Counter>) -> (Self, Receiver<Vec<Block>>) {
        let (handover, stored_blocks) = sync_channel(1);
        (Self { blocks: Vec::new(), stored: Arc::clone(stored), handover }, stored_blocks)
    }
}

impl Stage<Batch<Block>> for Store {
    const NAME: &'static str = "store";
    fn process(&mut self, batch: &mut Batch<Block>) {
        self.stored.add(batch.len() as u64);
        self.blocks.extend(batch.drain(..));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.handover.send(std::mem::take(&mut self.blocks)).unwrap();
    }
}

/// Where blocks come from: numbered from 0, at most `limit`.
struct Source {
    made: Arc<Counter>,
    limit: u64,
}

impl Source {
    fn fill(&mut self, batch: &mut Batch<Block>) {
        let made = self.made.get();
        let count = (self.limit - made).min(batch.remaining_capacity() as u64);
        batch.extend((made..made + count).map(block));
        self.made.add(count);
    }
}

/// First worker of the split layout.
struct SumTask {
    source: Source,
    chain: Chain<(Checksum,)>,
    out: RingProducer<Block>,
    /// Summed, not yet in the ring.
    pending: Batch<Block>,
}

impl Task for SumTask {
    fn round(&mut self) -> Round {
        if self.pending.is_empty() {
            self.source.fill(&mut self.pending);
            self.chain.run(&mut self.pending);
        }
        Round { items: self.out.push(&mut self.pending), backlog: self.pending.len(), ..Round::default() }
    }

    fn drain(&mut self) -> bool {
        self.out.push(&mut self.pending);
        self.pending.is_empty()
    }

    fn recover(&mut self) {
        self.pending.clear();
    }
}

/// Second worker of the split layout.
struct StoreTask {
    input: RingConsumer<Block>,
    chain: Chain<(Store,)>,
    batch: Batch<Block>,
}

impl Task for StoreTask {
    fn round(&mut self) -> Round {
        let items = self.input.pop(&mut self.batch);
        self.chain.run(&mut self.batch);
        Round { items, backlog: self.input.len(), ..Round::default() }
    }

    fn drain(&mut self) -> bool {
        self.round();
        self.input.is_empty()
    }

    fn recover(&mut self) {
        self.batch.clear();
    }
}

/// The only worker of the fused layout.
struct FusedTask {
    source: Source,
    chain: Chain<(Checksum, Store)>,
    batch: Batch<Block>,
}

impl Task for FusedTask {
    fn round(&mut self) -> Round {
        self.source.fill(&mut self.batch);
        let items = self.batch.len();
        self.chain.run(&mut self.batch);
        Round { items, ..Round::default() }
    }

    fn drain(&mut self) -> bool {
        self.batch.is_empty()
    }

    fn recover(&mut self) {
        self.batch.clear();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "nothing happens any more");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Runs the split layout until `until` blocks are stored; returns blocks made and blocks stored.
fn run_split(limit: u64, until: u64) -> (u64, Vec<Block>) {
    let (made, stored) = (Arc::new(Counter::new()), Arc::new(Counter::new()));
    let (producer, consumer) = ring("sum-store", 100);
    let status = producer.status();
    let (store, stored_blocks) = Store::new(&stored);
    let source = Source { made: Arc::clone(&made), limit };
    let first = Worker::spawn(WorkerOptions::new("sum", None, NAP), move || SumTask {
        source,
        chain: Chain::new((Checksum,)),
        out: producer,
        pending: Batch::new(),
    })
    .unwrap();
    let second = Worker::spawn(WorkerOptions::new("store", None, NAP), move || StoreTask {
        input: consumer,
        chain: Chain::new((store,)),
        batch: Batch::new(),
    })
    .unwrap();
    wait_until(|| stored.get() >= until);
    for report in [first.stop(soon()), second.stop(soon())] {
        assert!(report.drained && report.ended && report.panics == 0, "{report:?}");
    }
    let blocks = stored_blocks.recv().unwrap();
    assert_eq!((status.depth(), status.pushed()), (0, blocks.len() as u64));
    (made.get(), blocks)
}

fn run_fused(limit: u64) -> Vec<Block> {
    let stored = Arc::new(Counter::new());
    let (store, stored_blocks) = Store::new(&stored);
    let source = Source { made: Arc::new(Counter::new()), limit };
    let chain = Chain::new((Checksum, store));
    let counters = chain.counters();
    let worker = Worker::spawn(WorkerOptions::new("fused", None, NAP), move || FusedTask {
        source,
        chain,
        batch: Batch::new(),
    })
    .unwrap();
    wait_until(|| stored.get() >= limit);
    assert!(worker.stop(soon()).drained);
    let figures: Vec<_> = counters.stages().map(|(name, c)| (name, c.items.get())).collect();
    assert_eq!(figures, [("checksum", limit), ("store", limit)]);
    stored_blocks.recv().unwrap()
}

#[test]
fn split_and_fused_store_the_same() {
    const BLOCKS: u64 = 5000;
    let expected: Vec<Block> = (0..BLOCKS)
        .map(|number| {
            let block = block(number);
            Block { sum: adler32(&block.bytes), ..block }
        })
        .collect();
    assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398, "a published value of Adler-32");
    let (made, split) = run_split(BLOCKS, BLOCKS);
    assert_eq!(made, BLOCKS);
    assert!(split == expected, "split: order, content or number is wrong");
    assert!(run_fused(BLOCKS) == expected, "fused: order, content or number is wrong");
}

#[test]
fn a_stop_amid_the_stream_loses_nothing() {
    let (made, blocks) = run_split(u64::MAX, 1000);
    assert_eq!(blocks.len() as u64, made, "what was made is stored");
    assert!(blocks.iter().zip(0..).all(|(block, number)| block.number == number), "in order");
}
