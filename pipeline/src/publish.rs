//! Publication of immutable snapshots from the control side to workers.
//!
//! Readers come between two bursts, at [`Subscriber::refresh`]: one load of the version in the common case. Only when it
//! has moved on do they try the lock to clone the new `Arc`; when somebody else holds it they go on with the old
//! snapshot for one more burst, so a worker never waits for the control side.
//!
//! Why the publisher frees: a big table takes milliseconds to free, which a worker must not spend. So the publisher
//! keeps each superseded snapshot until every live subscriber has passed to a later one, and drops it then, on its own
//! thread. Invariants, held by `tests/loom_publish.rs`:
//!
//! * After `wait(v)` returns `Ok`, no subscriber holds a snapshot older than `v`.
//! * A subscriber never sees a version go backwards.
//! * While its publisher lives, a subscriber's `Arc` is never the last one.
//!
//! The last holds only as long as readers do not put clones of the `Arc` aside, and stop before the publisher does:
//! when the publisher is dropped first, the last subscriber frees the last snapshot.

use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use thiserror::Error;

use crate::bell::Bell;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, pause};

/// What a subscriber that is gone leaves as its seen version: later than any other.
const GONE: u64 = u64::MAX;

/// Between two looks `wait` sleeps from 10 us (a few bursts of a busy worker) up to 50 us (a nap's length): short
/// against a control call, long enough not to disturb a worker that shares the core.
const FIRST_PAUSE: Duration = Duration::from_micros(10);
const LONGEST_PAUSE: Duration = Duration::from_micros(50);

/// Not every subscriber passed to a version in time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "snapshot {version}: not taken over within {} ms by {} (stalled or stopped? see: forebay pipeline show)",
    .timeout.as_millis(), .names.join(", ")
)]
pub struct Stalled {
    /// The version waited for.
    pub version: u64,
    /// How long was waited.
    pub timeout: Duration,
    /// The subscribers that still hold an older version.
    pub names: Vec<String>,
}

/// The place of one subscriber in the publisher's list.
struct Seat {
    name: String,
    /// The version that the subscriber holds. Written by its thread, read by the publisher's.
    seen: CachePadded<AtomicU64>,
}

/// What all sides of a publication share.
struct Shared<T> {
    /// The newest version. Written by publishers within the lock, read by every subscriber before each burst.
    version: CachePadded<AtomicU64>,
    /// Taken by publishers, and by subscribers (never waiting) when the version has changed.
    state: Mutex<State<T>>,
    /// Those of workers that may sleep. Not within the state: whoever is woken tries to take that.
    bells: Mutex<Vec<std::sync::Arc<Bell>>>,
}

struct State<T> {
    version: u64,
    value: Arc<T>,
    /// Superseded snapshots with their versions, oldest first: each kept until no live subscriber can hold it.
    retired: Vec<(u64, Arc<T>)>,
    seats: Vec<Arc<Seat>>,
}

impl<T> State<T> {
    /// Forgets subscribers that are gone and takes out the snapshots that nobody can hold any more, for the caller to
    /// drop once it has released the lock.
    fn take_unused(&mut self) -> Vec<(u64, Arc<T>)> {
        let mut oldest = self.version;
        self.seats.retain(|seat| {
            // Acquire: pairs with the store that follows the drop of the old `Arc`, so ours is then the last one.
            let seen = seat.seen.load(Ordering::Acquire);
            oldest = oldest.min(seen);
            seen != GONE
        });
        let unused = self.retired.partition_point(|(version, _)| *version < oldest);
        self.retired.drain(..unused).collect()
    }
}

/// The control side of a publication. Shared by reference; concurrent calls are put in order.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Publisher<T> {
    /// A publication whose version 1 is `initial`.
    #[must_use]
    pub fn new(initial: Arc<T>) -> Self {
        let state = State { version: 1, value: initial, retired: Vec::new(), seats: Vec::new() };
        let version = CachePadded::new(AtomicU64::new(1));
        Self { shared: Arc::new(Shared { version, state: Mutex::new(state), bells: Mutex::new(Vec::new()) }) }
    }

    /// From now on, a publication wakes the worker of this bell.
    pub fn waking(&self, bell: &std::sync::Arc<Bell>) {
        self.shared.bells.lock().push(std::sync::Arc::clone(bell));
    }

    /// From now on, publications do not wake the worker of this bell any more: it is gone.
    pub fn not_waking(&self, bell: &std::sync::Arc<Bell>) {
        self.shared.bells.lock().retain(|known| !std::sync::Arc::ptr_eq(known, bell));
    }

    /// Wakes workers that sleep.
    fn ring(&self) {
        self.shared.bells.lock().iter().for_each(|bell| bell.ring());
    }

    /// Makes `value` the newest snapshot and returns its version. Superseded snapshots that no subscriber can hold any
    /// more are dropped here, on the caller's thread.
    pub fn publish(&self, value: Arc<T>) -> u64 {
        let mut state = self.shared.state.lock();
        let version = state.version + 1;
        let superseded = std::mem::replace(&mut state.value, value);
        let superseded_version = std::mem::replace(&mut state.version, version);
        state.retired.push((superseded_version, superseded));
        self.shared.version.store(version, Ordering::Release);
        let unused = state.take_unused();
        drop(state);
        // Outside the lock: freeing may be slow.
        drop(unused);
        self.ring();
        version
    }

    /// Returns once every live subscriber has passed to `version` or a later one, that is, between two of its bursts.
    /// Snapshots that became unused are dropped here, on the caller's thread. Sleeps between looks; must not be called
    /// on a worker, which would wait for itself.
    ///
    /// # Errors
    /// [`Stalled`] names the subscribers that had not passed when `timeout` was over.
    pub fn wait(&self, version: u64, timeout: Duration) -> Result<(), Stalled> {
        let started = Instant::now();
        let mut step = FIRST_PAUSE;
        loop {
            let names = self.behind(version);
            if names.is_empty() {
                return Ok(());
            }
            if started.elapsed() >= timeout {
                return Err(Stalled { version, timeout, names });
            }
            // A worker that found the lock taken may have gone to sleep again.
            self.ring();
            pause(step);
            step = (step * 2).min(LONGEST_PAUSE);
        }
    }

    /// The names of live subscribers that hold a version older than `version`, after dropping unused snapshots.
    fn behind(&self, version: u64) -> Vec<String> {
        let mut state = self.shared.state.lock();
        // The names first: who is found to have passed here has also passed for `take_unused`, so that after a
        // successful wait nothing older is left to free.
        let behind = |seat: &&Arc<Seat>| seat.seen.load(Ordering::Acquire) < version;
        let names = state.seats.iter().filter(behind).map(|seat| seat.name.clone()).collect();
        let unused = state.take_unused();
        drop(state);
        drop(unused);
        names
    }

    /// Adds a subscriber, which starts with the newest snapshot. Its name stands in [`Stalled`]. It is forgotten when
    /// it is dropped.
    #[must_use]
    pub fn subscribe(&self, name: impl Into<String>) -> Subscriber<T> {
        let name = name.into();
        let mut state = self.shared.state.lock();
        let seat = Arc::new(Seat { name, seen: CachePadded::new(AtomicU64::new(state.version)) });
        state.seats.push(Arc::clone(&seat));
        Subscriber {
            value: Arc::clone(&state.value),
            version: state.version,
            occupancy: Occupancy(seat),
            shared: Arc::clone(&self.shared),
        }
    }

    /// The newest version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    /// The newest snapshot, for the control side.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.shared.state.lock().value)
    }

    /// Live subscribers.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        let state = self.shared.state.lock();
        state.seats.iter().filter(|seat| seat.seen.load(Ordering::Acquire) != GONE).count()
    }

    /// Superseded snapshots that are still kept for some subscriber.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.shared.state.lock().retired.len()
    }
}

/// Gives the seat up when dropped.
struct Occupancy(Arc<Seat>);

impl Drop for Occupancy {
    fn drop(&mut self) {
        self.0.seen.store(GONE, Ordering::Release);
    }
}

/// A worker's side of a publication.
pub struct Subscriber<T> {
    // The order of the fields is the order in which they are dropped: the snapshot must be let go before the seat is
    // given up, or the publisher might free its own `Arc` first and leave the last one to this thread.
    value: Arc<T>,
    version: u64,
    occupancy: Occupancy,
    shared: Arc<Shared<T>>,
}

impl<T> Subscriber<T> {
    /// Passes to the newest snapshot and says whether it changed. Call it between two bursts, when nothing borrowed
    /// from the old snapshot is in use. One load when nothing changed; never waits: when the publisher is at work at
    /// this very moment the old snapshot stays for one more burst.
    #[inline(always)]
    pub fn refresh(&mut self) -> bool {
        if self.shared.version.load(Ordering::Acquire) == self.version { false } else { self.pass() }
    }

    #[cold]
    fn pass(&mut self) -> bool {
        let Some(state) = self.shared.state.try_lock() else { return false };
        let value = Arc::clone(&state.value);
        self.version = state.version;
        drop(state);
        // Only drops a reference: the publisher keeps the old snapshot until it sees the store below.
        self.value = value;
        self.occupancy.0.seen.store(self.version, Ordering::Release);
        true
    }

    /// The snapshot in use. Do not put clones of the `Arc` aside: they could be the last.
    #[inline(always)]
    #[must_use]
    pub fn current(&self) -> &Arc<T> {
        &self.value
    }

    /// The version in use.
    #[inline(always)]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering as StdOrdering};
    use std::thread::{self, ThreadId};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_subscriber_passes_when_it_refreshes() {
        let publisher = Publisher::new(Arc::new(10));
        let mut subscriber = publisher.subscribe("w0");
        assert!(!subscriber.refresh());
        let version = publisher.publish(Arc::new(11));
        assert_eq!((**subscriber.current(), subscriber.version()), (10, 1));
        assert!(subscriber.refresh());
        assert_eq!((**subscriber.current(), subscriber.version()), (11, version));
        assert_eq!(publisher.wait(version, Duration::ZERO), Ok(()));
        assert_eq!((*publisher.current(), publisher.version()), (11, version));
    }

    #[test]
    fn a_late_subscriber_starts_with_the_newest() {
        let publisher = Publisher::new(Arc::new(1));
        publisher.publish(Arc::new(2));
        let mut subscriber = publisher.subscribe("w0");
        assert_eq!(**subscriber.current(), 2);
        assert!(!subscriber.refresh());
    }

    #[test]
    fn wait_names_who_is_behind() {
        let publisher = Publisher::new(Arc::new(0));
        let mut quick = publisher.subscribe("quick");
        let slow = publisher.subscribe("slow");
        let version = publisher.publish(Arc::new(1));
        quick.refresh();
        let stalled = publisher.wait(version, Duration::from_millis(1)).unwrap_err();
        assert_eq!(stalled.names, ["slow"]);
        assert_eq!(
            stalled.to_string(),
            "snapshot 2: not taken over within 1 ms by slow (stalled or stopped? see: forebay pipeline show)"
        );
        drop(slow);
        assert_eq!(publisher.wait(version, SOON), Ok(()));
        assert_eq!(publisher.subscribers(), 1);
    }

    #[test]
    fn superseded_snapshots_live_until_all_have_passed() {
        let publisher = Publisher::new(Arc::new(0));
        let old = Arc::downgrade(&publisher.current());
        let (mut a, mut b) = (publisher.subscribe("a"), publisher.subscribe("b"));
        publisher.publish(Arc::new(1));
        let version = publisher.publish(Arc::new(2));
        a.refresh();
        assert_eq!((**a.current(), **b.current(), publisher.kept()), (2, 0, 2));
        assert!(old.upgrade().is_some());
        b.refresh();
        assert!(old.upgrade().is_some(), "b let go of it, but only the publisher frees");
        assert_eq!(publisher.wait(version, SOON), Ok(()));
        assert!(old.upgrade().is_none());
        assert_eq!(publisher.kept(), 0);
    }

    #[test]
    fn without_subscribers_nothing_is_kept() {
        let publisher = Publisher::new(Arc::new(0));
        let version = publisher.publish(Arc::new(1));
        assert_eq!(publisher.kept(), 0);
        assert_eq!(publisher.wait(version, Duration::ZERO), Ok(()));
    }

    /// Fails unless it is dropped by the thread it names.
    struct FreedBy(ThreadId);
    impl Drop for FreedBy {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.0, "a snapshot was freed by a worker");
        }
    }

    #[test]
    fn only_the_publishers_thread_frees() {
        let me = thread::current().id();
        let publisher = Publisher::new(Arc::new(FreedBy(me)));
        let stop = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..3)
            .map(|n| {
                let mut subscriber = publisher.subscribe(format!("w{n}"));
                let stop = Arc::clone(&stop);
                thread::spawn(move || {
                    let mut last = 0;
                    while !stop.load(StdOrdering::Acquire) {
                        subscriber.refresh();
                        assert!(subscriber.version() >= last, "versions never go backwards");
                        last = subscriber.version();
                        thread::yield_now();
                    }
                })
            })
            .collect();
        for round in 0..300 {
            let version = publisher.publish(Arc::new(FreedBy(me)));
            if round % 3 == 0 {
                publisher.wait(version, SOON).unwrap();
                assert_eq!(publisher.kept(), 0);
            }
        }
        stop.store(true, StdOrdering::Release);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(publisher.subscribers(), 0);
    }
}
