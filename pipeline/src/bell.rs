//! How a sleeping worker is woken, without a system call while it is awake.
//!
//! A worker that means to sleep says so on its [`Bell`], looks once more whether something has come, and sleeps if not.
//! Who brings it work does so first and rings afterwards; to ring is a fence and a load as long as nobody sleeps. Each
//! side writes before it reads what the other writes, with a full fence between: so at least one of them sees the other,
//! and no wake-up is lost. `tests/loom_bell.rs` checks that in every interleaving.
//!
//! A worker that only others of this process wake sleeps on a futex; one that also waits for devices sleeps on their file
//! descriptors and the bell's own (`poller.rs`).
//! Invariant: one thread sleeps by a bell, any number ring it; a ring after [`Bell::lie_down`] ends the sleep that follows.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam_utils::CachePadded;

use crate::os::{self, Trigger};
use crate::poller::{Poller, Watched};
use crate::sync::{AtomicU32, Futex, Ordering, fence};

/// Most file descriptors that a worker waits for: one for each device that a host can have.
pub const MAX_WATCHED: usize = 32;

const AWAKE: u32 = 0;
/// Still looks around before it sleeps: there is nobody to wake, but it must not sleep.
const LYING_DOWN: u32 = 1;
/// Sleeps, or is about to, on the futex.
const ON_FUTEX: u32 = 2;
/// Sleeps, or is about to, on file descriptors.
const ON_DESCRIPTORS: u32 = 3;

/// Wakes one worker.
#[derive(Debug)]
pub struct Bell {
    /// Set to a kind of sleep by the sleeper, back to [`AWAKE`] by whoever is first: who rings, or the sleeper.
    state: CachePadded<AtomicU32>,
    futex: Futex,
    /// What is written to where the sleeper sleeps on descriptors; without it such a sleeper only naps.
    descriptor: Option<OwnedFd>,
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}

impl Bell {
    /// The bell of a worker that is awake.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: CachePadded::new(AtomicU32::new(AWAKE)),
            futex: Futex::new(),
            descriptor: os::event_descriptor(),
        }
    }

    /// Wakes the worker if it sleeps or is about to. Call it after that which it is to find is visible to it.
    #[inline]
    pub fn ring(&self) {
        // Between what the caller wrote and the state: pairs with the fence in `lie_down`.
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) != AWAKE {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        match self.state.swap(AWAKE, Ordering::AcqRel) {
            ON_FUTEX => self.futex.wake(&self.state),
            ON_DESCRIPTORS => {
                if let Some(descriptor) = &self.descriptor {
                    os::signal_event(descriptor);
                }
            }
            // It still looks around, or somebody else was first.
            _ => {}
        }
    }

    /// Says that the worker is about to sleep. What it looks at after this, it sees as it was when somebody last did not
    /// ring, or newer. To be followed by [`Bell::sleep`] or [`Bell::get_up`].
    pub fn lie_down(&self) {
        self.state.swap(LYING_DOWN, Ordering::AcqRel);
        // Between the state and what the worker looks at: pairs with the fence in `ring`.
        fence(Ordering::SeqCst);
    }

    /// Takes back that the worker is about to sleep.
    pub fn get_up(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }

    /// Sleeps until somebody rings, a watched descriptor wakes, or the time is over; may end for no reason. Somebody who has
    /// rung since [`Bell::lie_down`] ends it at once.
    pub fn sleep(&self, watch: &mut Watch, most: Duration) {
        let kind = if watch.has_descriptors() { ON_DESCRIPTORS } else { ON_FUTEX };
        let change = self.state.compare_exchange(LYING_DOWN, kind, Ordering::AcqRel, Ordering::Acquire);
        if change.is_err() {
            return;
        }
        if kind == ON_FUTEX {
            self.futex.wait(&self.state, ON_FUTEX, most);
        } else {
            // Without one it cannot end this sleep: -1 cannot be waited for, which makes it short.
            let own = self.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            watch.sleep(own, most);
        }
        self.get_up();
    }
}

/// What a worker that is about to sleep waits for beside its bell; filled by its task before each sleep. It goes with the one
/// bell: the kernel is told only what has changed since the last sleep.
#[derive(Debug, Default)]
pub struct Watch {
    descriptors: ArrayVec<Watched, MAX_WATCHED>,
    poller: Poller,
    has_work: bool,
    /// The longest that the worker may sleep.
    most: Option<Duration>,
    /// Items that the smallest queue holds that does not tell when something comes.
    unannounced: Option<usize>,
}

impl Watch {
    /// Nothing is waited for but the bell.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As new, for the next sleep.
    pub fn clear(&mut self) {
        self.descriptors.clear();
        (self.has_work, self.most, self.unannounced) = (false, None, None);
    }

    fn sleep(&mut self, own: RawFd, most: Duration) {
        let own = Watched { descriptor: own, trigger: Trigger::Event };
        let all = std::iter::once(own).chain(self.descriptors.iter().copied()).collect();
        self.poller.sleep(&all, most);
    }

    /// Something has come already: no sleep.
    pub fn work(&mut self) {
        self.has_work = true;
    }

    /// The worker is to wake when this descriptor, which stays open until the sleep is over, is readable.
    pub fn readable(&mut self, descriptor: RawFd) {
        self.watch(descriptor, Trigger::Readable);
    }

    /// The worker is to wake when somebody writes to this event descriptor (eventfd(2)), which stays open until the sleep is
    /// over. Nobody has to read it empty: what was written before the sleep before this one does not end this one.
    pub fn signalled(&mut self, descriptor: RawFd) {
        self.watch(descriptor, Trigger::Event);
    }

    fn watch(&mut self, descriptor: RawFd, trigger: Trigger) {
        if self.descriptors.try_push(Watched { descriptor, trigger }).is_err() {
            self.unannounced(1);
        }
    }

    /// The worker is to wake after this time at the latest.
    pub fn at_most(&mut self, time: Duration) {
        self.most = Some(self.most.map_or(time, |most| most.min(time)));
    }

    /// There is a queue for this many items that nobody rings for: the worker has to look by itself, before the queue can
    /// be full, and before an item has waited for longer than the policy allows.
    pub fn unannounced(&mut self, capacity: usize) {
        self.unannounced = Some(self.unannounced.map_or(capacity, |least| least.min(capacity)));
    }

    /// The descriptors are not to be waited for: the worker has to look by itself.
    pub fn distrust(&mut self) {
        self.descriptors.clear();
        self.unannounced(usize::MAX);
    }

    /// Whether something has come already.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.has_work
    }

    /// Whether there are descriptors to wait for.
    #[must_use]
    pub fn has_descriptors(&self) -> bool {
        !self.descriptors.is_empty()
    }

    /// The longest that the worker may sleep, whatever else.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        self.most
    }

    /// What the smallest queue holds that does not tell when something comes; none if all tell.
    #[must_use]
    pub fn least_unannounced(&self) -> Option<usize> {
        self.unannounced
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn is_short(call: impl FnOnce()) -> bool {
        let start = Instant::now();
        call();
        start.elapsed() < LONG / 2
    }

    /// Both kinds of sleep: without a descriptor, and with one.
    fn kinds(reader: &impl AsRawFd) -> [Watch; 2] {
        let mut watch = Watch::new();
        watch.readable(reader.as_raw_fd());
        [Watch::new(), watch]
    }

    #[test]
    fn a_ring_before_the_sleep_ends_it() {
        let (reader, _writer) = std::io::pipe().unwrap();
        for mut watch in kinds(&reader) {
            let bell = Bell::new();
            bell.lie_down();
            bell.ring();
            assert!(is_short(|| bell.sleep(&mut watch, LONG)));
        }
    }

    #[test]
    fn a_ring_during_the_sleep_ends_it() {
        let (reader, _writer) = std::io::pipe().unwrap();
        for mut watch in kinds(&reader) {
            let bell = Arc::new(Bell::new());
            let ringer = Arc::clone(&bell);
            bell.lie_down();
            let other = thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                ringer.ring();
            });
            assert!(is_short(|| bell.sleep(&mut watch, LONG)));
            other.join().unwrap();
        }
    }

    #[test]
    fn a_ring_that_nobody_heard_does_not_end_a_later_sleep() {
        let (reader, _writer) = std::io::pipe().unwrap();
        for mut watch in kinds(&reader) {
            let bell = Bell::new();
            bell.ring();
            bell.lie_down();
            bell.ring();
            bell.get_up();
            bell.lie_down();
            let start = Instant::now();
            bell.sleep(&mut watch, Duration::from_millis(30));
            assert!(start.elapsed() >= Duration::from_millis(30));
        }
    }

    #[test]
    fn a_descriptor_ends_the_sleep() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let bell = Bell::new();
        let mut watch = Watch::new();
        watch.readable(reader.as_raw_fd());
        assert!(watch.has_descriptors());
        bell.lie_down();
        let start = Instant::now();
        bell.sleep(&mut watch, Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(20), "nothing is readable");
        std::io::Write::write_all(&mut writer, b"x").unwrap();
        bell.lie_down();
        assert!(is_short(|| bell.sleep(&mut watch, LONG)));
    }

    #[test]
    fn a_watch_keeps_the_strictest_of_what_it_is_told() {
        let mut watch = Watch::new();
        assert!(!watch.has_work() && watch.longest().is_none() && watch.least_unannounced().is_none());
        watch.at_most(Duration::from_millis(3));
        watch.at_most(Duration::from_millis(5));
        watch.unannounced(512);
        watch.unannounced(1024);
        watch.work();
        assert_eq!((watch.longest(), watch.least_unannounced()), (Some(Duration::from_millis(3)), Some(512)));
        assert!(watch.has_work());
        for _ in 0..=MAX_WATCHED {
            watch.readable(0);
        }
        assert_eq!(watch.least_unannounced(), Some(1), "what is too much to wait for is looked at");
    }
}
