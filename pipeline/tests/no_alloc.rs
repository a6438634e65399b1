//! Proof that the hot path allocates nothing: an allocator that counts, per thread, around it.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use forebay_pipeline::{
    Batch, Bell, Chain, Histogram, Idle, IdlePolicy, Publisher, Seat, Stage, Watch, ring,
};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting each call of this thread that takes or returns memory.
struct Counting;

// SAFETY: every method hands its arguments to the system's allocator unchanged and returns what that returned; the
// counter is a constant-initialised thread-local without a destructor, so using it allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the pointer came from `alloc` above, that is, from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn calls() -> u64 {
    CALLS.with(Cell::get)
}

struct Increment;
impl Stage<Batch<u64>> for Increment {
    const NAME: &'static str = "increment";
    fn process(&mut self, batch: &mut Batch<u64>) {
        batch.iter_mut().for_each(|n| *n += 1);
    }
}

#[test]
fn the_counter_counts() {
    let before = calls();
    drop(Box::new(std::hint::black_box(7)));
    assert_eq!(calls() - before, 2);
}

#[test]
fn batches_rings_snapshots_and_idling_allocate_nothing() {
    let mut chain = Chain::new((Increment, Increment));
    let (mut producer, mut consumer) = ring("r", 256);
    let publisher = Publisher::new(Arc::new(0));
    let mut subscriber = publisher.subscribe("w0");
    let mut idle =
        Idle::new(IdlePolicy::LastItem { max_added_latency: Duration::from_micros(5) }, Seat::take(None));
    let (bell, mut watch) = (Bell::new(), Watch::new());
    let histogram = Histogram::new();
    let mut batch = Batch::new();
    let mut passed = 0;
    for round in 0..200 {
        // The control side may allocate; it is outside the bracket.
        publisher.publish(Arc::new(round));
        let before = calls();
        assert!(subscriber.refresh());
        batch.extend(0..40);
        chain.run(&mut batch);
        producer.push(&mut batch);
        batch.clear();
        passed += consumer.pop(&mut batch);
        histogram.record(batch.len() as u64, 1);
        batch.clear();
        bell.lie_down();
        watch.clear();
        watch.unannounced(100);
        watch.readable(-1);
        let most = idle.longest_sleep(&mut watch);
        bell.sleep(&mut watch, most);
        idle.wants_sleep(0, 0, round);
        assert_eq!(calls(), before, "round {round}");
    }
    assert_eq!(passed, 200 * 40);
}
