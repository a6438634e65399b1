//! Model check of snapshot publication: every interleaving of small scenarios, under the memory model of loom.
//!
//! Run: `RUSTFLAGS="--cfg loom" cargo test -p forebay-pipeline --release loom`.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_pipeline::{Publisher, Subscriber};
use loom::sync::Arc;
use loom::thread::{self, ThreadId};

/// Never reached: the model has no time, a wait that cannot end would be reported as a livelock.
const LONG: Duration = Duration::from_secs(3600);

/// Whether a snapshot was freed. Not loom's: looking at it must not order anything.
type Freed = std::sync::Arc<AtomicBool>;

/// A snapshot that only the publisher's thread may free.
struct Snapshot {
    number: u64,
    owner: ThreadId,
    freed: Freed,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        assert_eq!(thread::current().id(), self.owner, "snapshot {} was freed by a subscriber", self.number);
        self.freed.store(true, Ordering::Relaxed);
    }
}

fn snapshot(number: u64) -> (Arc<Snapshot>, Freed) {
    let freed = Freed::default();
    let owner = thread::current().id();
    (Arc::new(Snapshot { number, owner, freed: Freed::clone(&freed) }), freed)
}

/// Refreshes until `until` is in use; versions and values never go backwards on the way.
fn follow(subscriber: &mut Subscriber<Snapshot>, until: u64) {
    loop {
        let (version, number) = (subscriber.version(), subscriber.current().number);
        let changed = subscriber.refresh();
        assert!(subscriber.version() >= version && subscriber.current().number >= number);
        assert_eq!(changed, subscriber.version() > version);
        assert_eq!(subscriber.current().number, subscriber.version(), "value and version belong together");
        if subscriber.version() >= until {
            return;
        }
        thread::yield_now();
    }
}

fn is_freed(freed: &Freed) -> bool {
    freed.load(Ordering::Relaxed)
}

#[test]
fn loom_after_wait_nobody_holds_an_older_snapshot() {
    loom::model(|| {
        let (first, old) = snapshot(1);
        let publisher = Publisher::new(first);
        let mut subscriber = publisher.subscribe("w0");
        let worker = thread::spawn(move || {
            follow(&mut subscriber, 2);
            subscriber
        });
        let version = publisher.publish(snapshot(2).0);
        publisher.wait(version, LONG).unwrap();
        assert!(is_freed(&old), "snapshot 1 is still held after wait(2)");
        drop(worker.join().unwrap());
    });
}

#[test]
fn loom_two_versions_in_a_row_never_go_backwards() {
    loom::model(|| {
        let (first, old) = snapshot(1);
        let publisher = Publisher::new(first);
        let mut subscriber = publisher.subscribe("w0");
        let worker = thread::spawn(move || {
            follow(&mut subscriber, 3);
            subscriber
        });
        let (second, middle) = snapshot(2);
        publisher.publish(second);
        let version = publisher.publish(snapshot(3).0);
        publisher.wait(version, LONG).unwrap();
        assert!(is_freed(&old) && is_freed(&middle));
        drop(worker.join().unwrap());
    });
}

#[test]
fn loom_two_subscribers_contend_for_the_lock() {
    let mut model = loom::model::Builder::new();
    // Three threads with locks are too many for a full search; an error that needs two preemptions is found.
    model.preemption_bound = Some(2);
    model.check(|| {
        let (first, old) = snapshot(1);
        let publisher = Publisher::new(first);
        let workers = ["w0", "w1"].map(|name| {
            let mut subscriber = publisher.subscribe(name);
            // One burst each, in which the lock may be taken, then they leave: a loop here would wait for the other
            // subscriber's thread, which loom takes for a livelock.
            thread::spawn(move || {
                let changed = subscriber.refresh();
                assert_eq!(subscriber.version(), 1 + u64::from(changed));
                assert_eq!(subscriber.current().number, subscriber.version());
            })
        });
        let version = publisher.publish(snapshot(2).0);
        publisher.wait(version, LONG).unwrap();
        assert!(is_freed(&old));
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn loom_a_leaving_subscriber_neither_blocks_nor_frees() {
    loom::model(|| {
        let (first, old) = snapshot(1);
        let publisher = Publisher::new(first);
        let mut subscriber = publisher.subscribe("w0");
        let worker = thread::spawn(move || {
            // May pass or not; leaves in either case, with whatever snapshot it holds.
            subscriber.refresh();
            drop(subscriber);
        });
        let version = publisher.publish(snapshot(2).0);
        publisher.wait(version, LONG).unwrap();
        assert!(is_freed(&old));
        worker.join().unwrap();
        assert_eq!(publisher.subscribers(), 0);
    });
}
