//! Sleeping workers: what wakes them, and that they sleep again. A sleep lasts for 100 ms where nothing ends it, so what
//! waits for it shows as time; but no time decides a test.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forebay_pipeline::{
    Batch, IdlePolicy, Publisher, RingConsumer, RingProducer, Round, Task, Watch, Worker, WorkerOptions, ring,
};

/// Far beyond what anything here takes.
const SOON: Duration = Duration::from_secs(20);

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "nothing happens any more");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Adds up what a ring brings, which rings for it; nothing else does.
struct Sum {
    input: RingConsumer<u64>,
    batch: Batch<u64>,
    total: Arc<AtomicU64>,
    /// Panics in this many of its next sleeps.
    bad_sleeps: u32,
}

impl Task for Sum {
    fn round(&mut self) -> Round {
        let items = self.input.pop(&mut self.batch);
        let sum: u64 = self.batch.drain(..).sum();
        self.total.fetch_add(sum, Ordering::Relaxed);
        Round { items, ..Round::default() }
    }

    fn arm(&mut self, watch: &mut Watch) {
        if self.bad_sleeps > 0 {
            self.bad_sleeps -= 1;
            panic!("cannot sleep");
        }
        if !self.input.is_empty() {
            watch.work();
        }
    }

    fn drain(&mut self) -> bool {
        self.round();
        self.input.is_empty()
    }

    fn recover(&mut self) {}
}

fn sum(policy: IdlePolicy, bad_sleeps: u32) -> (Worker, RingProducer<u64>, Arc<AtomicU64>) {
    let options = WorkerOptions::new("sum", None, policy);
    let (producer, input) = ring("r", 256);
    let (producer, total) = (producer.waking(&options.bell), Arc::new(AtomicU64::new(0)));
    let to = Arc::clone(&total);
    let task = move || Sum { input, batch: Batch::new(), total: to, bad_sleeps };
    (Worker::spawn(options, task).unwrap(), producer, total)
}

fn push(producer: &mut RingProducer<u64>, count: u64) {
    let mut batch: Batch<u64> = (0..count).map(|_| 1).collect();
    while !batch.is_empty() {
        producer.push(&mut batch);
        thread::yield_now();
    }
}

/// Waits until the worker sleeps: its rounds stand still.
fn until_asleep(worker: &Worker) {
    let deadline = Instant::now() + SOON;
    loop {
        let (rounds, sleeps) = (worker.counters().rounds.get(), worker.counters().sleeps.get());
        thread::sleep(Duration::from_millis(5));
        if worker.counters().rounds.get() <= rounds + 1 && worker.counters().sleeps.get() <= sleeps + 1 {
            return;
        }
        assert!(Instant::now() < deadline, "it never sleeps");
    }
}

const RINGING: [IdlePolicy; 2] = [
    IdlePolicy::LastItem { max_added_latency: Duration::from_micros(50) },
    IdlePolicy::Interrupt { max_added_latency: Duration::from_micros(50) },
];

#[test]
fn a_sleeping_worker_is_woken_by_what_is_pushed() {
    for policy in RINGING {
        let (worker, mut producer, total) = sum(policy, 0);
        for pushed in 1..=20 {
            until_asleep(&worker);
            push(&mut producer, 1);
            until(|| total.load(Ordering::Relaxed) == pushed);
        }
        assert!(worker.stop(Instant::now() + SOON).drained);
    }
}

#[test]
fn a_worker_becomes_idle_again_after_load() {
    for policy in RINGING {
        let (worker, mut producer, total) = sum(policy, 0);
        for turn in 1..=3 {
            for _ in 0..2000 {
                push(&mut producer, 64);
            }
            until(|| total.load(Ordering::Relaxed) == turn * 2000 * 64);
            until_asleep(&worker);
        }
        assert!(worker.stop(Instant::now() + SOON).drained);
    }
}

#[test]
fn a_sleeping_worker_stops_at_once_and_takes_what_is_left() {
    for policy in RINGING {
        let (worker, mut producer, total) = sum(policy, 0);
        until_asleep(&worker);
        push(&mut producer, 7);
        let report = worker.stop(Instant::now() + SOON);
        assert!(report.drained && report.ended, "{report:?}");
        assert_eq!(total.load(Ordering::Relaxed), 7);
    }
}

#[test]
fn a_sleeping_worker_passes_to_a_new_snapshot() {
    let publisher = Publisher::new(Arc::new(0));
    let options = WorkerOptions::new("reader", None, RINGING[0]);
    publisher.waking(&options.bell);
    let mut subscriber = publisher.subscribe("reader");
    let worker = Worker::spawn(options, move || Quiet {
        on_round: Box::new(move || {
            subscriber.refresh();
        }),
    })
    .unwrap();
    for number in 1..20 {
        until_asleep(&worker);
        let version = publisher.publish(Arc::new(number));
        publisher.wait(version, SOON).unwrap();
    }
    assert!(worker.stop(Instant::now() + SOON).drained);
}

/// A device's queue that tells by an event descriptor while it is asked to, as memif's do.
struct Queue {
    came: AtomicU64,
    is_asked: AtomicBool,
    event: OwnedFd,
}

impl Queue {
    #[allow(unsafe_code)]
    fn new() -> Self {
        // SAFETY: takes two numbers and makes a descriptor, which is nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) };
        Self { came: AtomicU64::new(0), is_asked: AtomicBool::new(false), event }
    }

    #[allow(unsafe_code)]
    fn push(&self, count: u64) {
        self.came.fetch_add(count, Ordering::SeqCst);
        if self.is_asked.load(Ordering::SeqCst) {
            let one = 1_u64;
            // SAFETY: eight bytes are read from `one`.
            unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        }
    }
}

/// Takes what a queue has, some at a time.
struct Taker {
    queue: Arc<Queue>,
    taken: Arc<AtomicU64>,
}

impl Taker {
    fn waiting(&self) -> u64 {
        self.queue.came.load(Ordering::SeqCst) - self.taken.load(Ordering::Relaxed)
    }
}

impl Task for Taker {
    fn round(&mut self) -> Round {
        let items = self.waiting().min(64);
        self.taken.fetch_add(items, Ordering::Relaxed);
        Round { items: items as usize, ..Round::default() }
    }

    fn arm(&mut self, watch: &mut Watch) {
        self.queue.is_asked.store(true, Ordering::SeqCst);
        if self.waiting() > 0 {
            watch.work();
        } else {
            watch.signalled(self.queue.event.as_raw_fd());
        }
    }

    fn disarm(&mut self) {
        self.queue.is_asked.store(false, Ordering::SeqCst);
    }

    fn drain(&mut self) -> bool {
        self.round();
        self.waiting() == 0
    }

    fn recover(&mut self) {}
}

#[test]
fn a_worker_with_a_device_becomes_idle_again_after_load() {
    for policy in RINGING {
        let (queue, taken) = (Arc::new(Queue::new()), Arc::new(AtomicU64::new(0)));
        let task = Taker { queue: Arc::clone(&queue), taken: Arc::clone(&taken) };
        let worker = Worker::spawn(WorkerOptions::new("taker", None, policy), move || task).unwrap();
        for _ in 0..3 {
            // At times faster than it takes, at times so slow that it sleeps between.
            for burst in 0..2000 {
                queue.push(256);
                if burst % 100 == 0 {
                    thread::sleep(Duration::from_micros(300));
                }
            }
            let came = queue.came.load(Ordering::SeqCst);
            until(|| taken.load(Ordering::Relaxed) == came);
            for one in 1..=5 {
                until_asleep(&worker);
                queue.push(1);
                until(|| taken.load(Ordering::Relaxed) == came + one);
            }
        }
        until_asleep(&worker);
        assert!(worker.stop(Instant::now() + SOON).drained);
    }
}

/// Has no input but its bell.
struct Quiet {
    on_round: Box<dyn FnMut() + Send>,
}

impl Task for Quiet {
    fn round(&mut self) -> Round {
        (self.on_round)();
        Round::default()
    }

    fn arm(&mut self, _watch: &mut Watch) {}

    fn drain(&mut self) -> bool {
        true
    }

    fn recover(&mut self) {}
}

#[test]
fn a_panic_on_the_way_to_sleep_is_one_as_any_other() {
    let (worker, mut producer, total) = sum(RINGING[1], 2);
    until(|| worker.counters().panics.get() == 2);
    until_asleep(&worker);
    push(&mut producer, 3);
    until(|| total.load(Ordering::Relaxed) == 3);
    assert_eq!(worker.stop(Instant::now() + SOON).panics, 2);
}
