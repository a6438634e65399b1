//! The idle decision: what a worker does after a round.
//!
//! One small seam, [`Idle::after_round`]: it is told how much the round handled and how much is known to wait, and
//! gives the core back or not. Everything about sleeping is behind it.
//! Invariant: a worker never sleeps while it knows of work (items handled, or a backlog), and never longer at a time
//! than the policy allows, so nothing waits unseen for longer than that.

use std::hint::spin_loop;
use std::thread;
use std::time::Duration;

use crate::cores::Seat;
use crate::tsc;

/// Empty rounds before the first nap. A nap costs some 5 us (two system calls, a timer, a wake-up) and an empty round
/// some 40 ns: polling about as long as a nap costs is never more than twice as bad as the best decision in hindsight.
const EMPTY_ROUNDS_BEFORE_NAP: u32 = 128;

/// Empty rounds before each further one lets other threads of a shared core run. Enough to catch a burst that follows
/// closely, few enough (about 1 us) that the neighbour hardly waits.
const EMPTY_ROUNDS_BEFORE_YIELD: u32 = 32;

/// The first nap; each further one without work between is twice as long. Shorter ones cost more than they save.
const FIRST_NAP: Duration = Duration::from_micros(1);

/// How a worker spends empty rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Polls on: the least latency, the whole core.
    BusyPoll,
    /// After a number of empty rounds sleeps, first for about 1 us, then for longer and longer.
    Nap {
        /// The longest nap, that is, what idleness may add to an item's latency (the wake-up itself comes on top).
        max: Duration,
    },
}

/// The idle decision's state, one per worker.
#[derive(Debug)]
pub struct Idle {
    policy: IdlePolicy,
    seat: Seat,
    empty_rounds: u32,
    next_nap: Duration,
}

impl Idle {
    /// The state of a worker that sits on `seat`.
    #[must_use]
    pub fn new(policy: IdlePolicy, seat: Seat) -> Self {
        Self { policy, seat, empty_rounds: 0, next_nap: FIRST_NAP }
    }

    /// To be called after every round: `items` were handled in it, `backlog` items are known to wait (in the worker's
    /// own hands or in a queue before it). Returns for how many time-stamp cycles the worker slept, 0 if it did not.
    #[inline]
    pub fn after_round(&mut self, items: usize, backlog: usize) -> u64 {
        if items > 0 {
            self.empty_rounds = 0;
            self.next_nap = FIRST_NAP;
            return 0;
        }
        self.after_empty_round(backlog)
    }

    fn after_empty_round(&mut self, backlog: usize) -> u64 {
        self.empty_rounds = self.empty_rounds.saturating_add(1);
        if backlog > 0 {
            // Work that could not move, since the next worker is slow: no nap, but let that one run.
            self.next_nap = FIRST_NAP;
            self.poll();
            return 0;
        }
        match self.policy {
            IdlePolicy::Nap { max } if self.empty_rounds > EMPTY_ROUNDS_BEFORE_NAP => self.nap(max),
            IdlePolicy::Nap { .. } | IdlePolicy::BusyPoll => {
                self.poll();
                0
            }
        }
    }

    fn poll(&self) {
        if self.empty_rounds > EMPTY_ROUNDS_BEFORE_YIELD && self.seat.is_shared() {
            thread::yield_now();
        } else {
            spin_loop();
        }
    }

    fn nap(&mut self, max: Duration) -> u64 {
        let length = self.next_nap.min(max);
        self.next_nap = (length * 2).max(FIRST_NAP);
        let start = tsc::now();
        thread::sleep(length);
        tsc::now().saturating_sub(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(20);

    fn idle(policy: IdlePolicy) -> Idle {
        Idle::new(policy, Seat::take(None))
    }

    fn until_nap(idle: &mut Idle) -> u32 {
        let mut rounds = 1;
        while idle.after_round(0, 0) == 0 {
            rounds += 1;
            assert!(rounds < 10_000, "never naps");
        }
        rounds
    }

    /// How often this thread has given its core back by itself.
    fn voluntary_switches() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn busy_poll_never_sleeps() {
        let mut idle = idle(IdlePolicy::BusyPoll);
        assert!((0..1000).all(|_| idle.after_round(0, 0) == 0));
    }

    #[test]
    fn naps_after_a_bounded_number_of_empty_rounds() {
        let mut idle = idle(IdlePolicy::Nap { max: MAX });
        assert_eq!(until_nap(&mut idle), EMPTY_ROUNDS_BEFORE_NAP + 1);
        assert!(idle.after_round(0, 0) > 0, "and goes on napping");
    }

    #[test]
    fn a_nap_really_leaves_the_core() {
        let mut idle = idle(IdlePolicy::Nap { max: MAX });
        until_nap(&mut idle);
        let before = voluntary_switches();
        for _ in 0..50 {
            idle.after_round(0, 0);
        }
        let switches = voluntary_switches() - before;
        assert!(switches >= 40, "50 naps, {switches} times off the core");
    }

    #[test]
    fn naps_grow_to_the_maximum_and_no_further() {
        let mut idle = idle(IdlePolicy::Nap { max: MAX });
        until_nap(&mut idle);
        let mut lengths = Vec::new();
        for _ in 0..6 {
            lengths.push(idle.next_nap.min(MAX).as_micros());
            idle.after_round(0, 0);
        }
        assert_eq!(lengths, [2, 4, 8, 16, 20, 20]);
    }

    #[test]
    fn any_work_resets() {
        let mut idle = idle(IdlePolicy::Nap { max: MAX });
        until_nap(&mut idle);
        assert_eq!(idle.after_round(1, 0), 0);
        assert_eq!(idle.next_nap, FIRST_NAP);
        assert_eq!(until_nap(&mut idle), EMPTY_ROUNDS_BEFORE_NAP + 1);
    }

    #[test]
    fn a_backlog_forbids_naps() {
        let mut idle = idle(IdlePolicy::Nap { max: MAX });
        assert!((0..1000).all(|_| idle.after_round(0, 1) == 0));
        assert_eq!(idle.next_nap, FIRST_NAP);
        assert!(idle.after_round(0, 0) > 0, "the backlog is gone and the rounds were empty all along");
    }

    #[test]
    fn a_zero_maximum_still_returns() {
        let mut idle = idle(IdlePolicy::Nap { max: Duration::ZERO });
        for _ in 0..1000 {
            idle.after_round(0, 0);
        }
        assert_eq!(idle.next_nap, FIRST_NAP);
    }
}
