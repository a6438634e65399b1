//! Model check of sleeping and waking: every interleaving of small scenarios, under the memory model of loom. The model has
//! no time: a wake-up that is lost is a sleep that never ends, which loom reports as a deadlock.
//!
//! Run: `RUSTFLAGS="--cfg loom" cargo test -p forebay-pipeline --release loom`.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use forebay_pipeline::{Bell, Watch};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Never over: the model has no time.
const LONG: Duration = Duration::from_secs(3600);

/// A queue, as far as sleeping is concerned: how much has come. Published and read as rings do.
#[derive(Default)]
struct Queue(AtomicUsize);

impl Queue {
    fn push(&self) {
        let came = self.0.load(Ordering::Relaxed);
        self.0.store(came + 1, Ordering::Release);
    }

    fn came(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// Works off what comes until all of it has come, and sleeps whenever nothing is there.
fn worker(bell: &Bell, queues: &[Arc<Queue>], wanted: usize) {
    let came = || queues.iter().map(|queue| queue.came()).sum::<usize>();
    let mut done = 0;
    while done < wanted {
        let now = came();
        if now > done {
            done = now;
            continue;
        }
        bell.lie_down();
        if came() > done {
            bell.get_up();
        } else {
            bell.sleep(&mut Watch::new(), LONG);
        }
    }
}

#[test]
fn loom_no_wake_up_is_lost() {
    loom::model(|| {
        let (bell, queue) = (Arc::new(Bell::new()), Arc::new(Queue::default()));
        let (ringer, pushed) = (Arc::clone(&bell), Arc::clone(&queue));
        let producer = thread::spawn(move || {
            for _ in 0..2 {
                pushed.push();
                ringer.ring();
            }
        });
        worker(&bell, &[queue], 2);
        producer.join().unwrap();
    });
}

#[test]
fn loom_two_that_ring_do_not_take_each_others_wake_up() {
    // Three threads have too many interleavings for all of them: those with up to this many switches between threads that
    // could have gone on, which is what a lost wake-up takes at most in the models above.
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(3);
    bounded.check(|| {
        let bell = Arc::new(Bell::new());
        let queues = [Arc::new(Queue::default()), Arc::new(Queue::default())];
        let producers = queues.clone().map(|queue| {
            let ringer = Arc::clone(&bell);
            thread::spawn(move || {
                queue.push();
                ringer.ring();
            })
        });
        worker(&bell, &queues, 2);
        producers.into_iter().for_each(|producer| producer.join().unwrap());
    });
}

#[test]
fn loom_a_worker_that_changed_its_mind_is_woken_later_all_the_same() {
    loom::model(|| {
        let (bell, queue) = (Arc::new(Bell::new()), Arc::new(Queue::default()));
        let (ringer, pushed) = (Arc::clone(&bell), Arc::clone(&queue));
        let producer = thread::spawn(move || {
            ringer.ring();
            pushed.push();
            ringer.ring();
        });
        bell.lie_down();
        bell.get_up();
        worker(&bell, &[queue], 1);
        producer.join().unwrap();
    });
}
