//! The idle decision: whether a worker that found nothing to do stays awake, and how long it may sleep otherwise.
//!
//! By the last item: a later stage knows from sequence numbers whether more has entered the pipeline behind what it last
//! finished ([`Round::upstream`](crate::Round)). If so it stays awake for as long as that takes to arrive, by the time that an item
//! takes here; if not, it may sleep at once. A first stage cannot know what comes. It stays awake for about as long as a
//! sleep costs, but only while enough of the latest pauses were over by then: so it is never much worse than the best
//! decision in hindsight, and sleeps at once under light load.
//!
//! How it sleeps is the [`Bell`](crate::Bell)'s matter. What tells when something comes, ends the sleep. What does not bounds it: by the
//! latency that the policy allows, less what sleeps have lately been too long by, and by the time in which a queue could
//! fill.
//! Invariant: a worker never sleeps while it knows of work, and nothing of what it decides keeps it awake for longer than
//! [`MOST_STAY`] after the last item.

use std::hint::spin_loop;
use std::thread;
use std::time::Duration;

use crate::bell::Watch;
use crate::cores::Seat;
use crate::tsc;

/// What a sleep costs the core: two system calls, a timer or an interrupt, two switches. Measured at 3 to 6 us on virtual
/// machines.
const SLEEP_COST: Duration = Duration::from_micros(5);

/// The longest that a worker stays awake for what is upstream: by then it has arrived, or it went elsewhere. It is some ten
/// sleeps: whatever else the estimate says, a wrong one costs no more.
const MOST_STAY: Duration = Duration::from_micros(50);

/// Empty rounds before each further one lets other threads of a shared core run. Enough to catch a burst that follows
/// closely, few enough (about 1 us) that the neighbour hardly waits.
const EMPTY_ROUNDS_BEFORE_YIELD: u32 = 32;

/// The first nap while pauses are short; each further one without work between is twice as long.
const FIRST_NAP: Duration = Duration::from_micros(1);

/// The longest sleep if everything tells when it comes: long enough to cost nothing, short enough that counters and
/// [`last_round_at`](crate::WorkerStatus::last_round_at) show a living worker.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// How fast a queue may fill that nobody rings for: about what one core is able to receive. At higher rates it would
/// overflow while the worker is awake as well.
const FILL_ITEMS_PER_SECOND: u64 = 10_000_000;

/// Sleeps in a row that something ended though nothing had come, after which what ended them is not believed until
/// something comes: a descriptor can be readable for other reasons, such as an error that nobody takes from it.
const FALSE_ALARMS: u32 = 16;

/// Weight of the newest value in running averages, as a power of two: one in eight.
const AVERAGE_SHIFT: u32 = 3;
/// The whole, where a share is kept as a number.
const ALL: u32 = 1 << 16;
/// Pauses that are over before a sleep would have paid make waiting worth it from this share on: the wait then costs at
/// most what the sleeps would that it saves, four to three.
const SHORT_SHARE: u32 = ALL / 4;

/// How a worker spends empty rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Polls on: the least latency, the whole core.
    BusyPoll,
    /// Sleeps when the last item is through and none is known or likely to follow soon.
    LastItem {
        /// The longest that an item may wait unseen in a queue that nobody rings for.
        max_added_latency: Duration,
    },
    /// Sleeps after the first empty round.
    Interrupt {
        /// The longest that an item may wait unseen in a queue that nobody rings for.
        max_added_latency: Duration,
    },
    /// Sleeps for a fixed time after every empty round, whatever comes: to compare with.
    Sleep {
        /// How long.
        time: Duration,
    },
}

/// The thresholds in cycles.
#[derive(Debug, Clone, Copy)]
struct Cycles {
    sleep_cost: u64,
    most_stay: u64,
    max_added_latency: u64,
    first_nap: u64,
    per_second: u64,
}

/// The idle decision's state, one per worker. Times are in time-stamp cycles.
#[derive(Debug)]
pub struct Idle {
    policy: IdlePolicy,
    seat: Seat,
    cycles: Cycles,
    empty_rounds: u32,
    /// When the latest round with items ended.
    last_item_at: u64,
    /// Running average of what an item takes here.
    item_cycles: u64,
    /// Of the latest pauses, the share that was over before a sleep would have paid.
    short_share: u32,
    next_nap: u64,
    /// Running average of how much later than asked sleeps end.
    late: u64,
    /// Sleeps since the last item that ended before their time.
    alarms: u32,
}

impl Idle {
    /// The state of a worker that sits on `seat`.
    #[must_use]
    pub fn new(policy: IdlePolicy, seat: Seat) -> Self {
        let max_added_latency = match policy {
            IdlePolicy::LastItem { max_added_latency } | IdlePolicy::Interrupt { max_added_latency } => {
                max_added_latency
            }
            IdlePolicy::BusyPoll | IdlePolicy::Sleep { .. } => Duration::ZERO,
        };
        let cycles = Cycles {
            sleep_cost: tsc::from_duration(SLEEP_COST),
            most_stay: tsc::from_duration(MOST_STAY),
            max_added_latency: tsc::from_duration(max_added_latency),
            first_nap: tsc::from_duration(FIRST_NAP).max(1),
            per_second: tsc::hz(),
        };
        Self {
            policy,
            seat,
            cycles,
            empty_rounds: 0,
            last_item_at: tsc::now(),
            item_cycles: 0,
            short_share: ALL / 2,
            next_nap: cycles.first_nap,
            late: 0,
            alarms: 0,
        }
    }

    /// To be called after a round that handled items, from `start` to `end`.
    #[inline]
    pub fn after_items(&mut self, items: usize, start: u64, end: u64) {
        if self.empty_rounds > 0 {
            self.end_pause(start);
        }
        let each = end.saturating_sub(start) / items.max(1) as u64;
        self.item_cycles = average(self.item_cycles, each);
        self.last_item_at = end;
        self.alarms = 0;
    }

    /// To be called after a round that handled nothing and ended at `now`: `backlog` items are known to wait, in the
    /// worker's own hands or in a queue before it, and `upstream` have entered the pipeline but not arrived. Says whether
    /// to sleep; otherwise this was one turn of polling.
    #[inline]
    pub fn wants_sleep(&mut self, backlog: usize, upstream: usize, now: u64) -> bool {
        self.empty_rounds = self.empty_rounds.saturating_add(1);
        let sleeps = backlog == 0
            && match self.policy {
                IdlePolicy::BusyPoll => false,
                IdlePolicy::Interrupt { .. } | IdlePolicy::Sleep { .. } => true,
                IdlePolicy::LastItem { .. } => self.stay_is_over(upstream, now),
            };
        if !sleeps {
            self.poll();
        }
        sleeps
    }

    /// The fixed time to sleep whatever comes, where the policy is that.
    #[must_use]
    pub fn fixed_sleep(&self) -> Option<Duration> {
        match self.policy {
            IdlePolicy::Sleep { time } => Some(time),
            _ => None,
        }
    }

    /// How long the worker may sleep that waits for this. Where descriptors have given too many false alarms, they are
    /// taken out.
    #[must_use]
    pub fn longest_sleep(&mut self, watch: &mut Watch) -> Duration {
        if self.alarms >= FALSE_ALARMS && watch.has_descriptors() {
            watch.distrust();
        }
        let most = watch.longest().map_or(LONGEST_SLEEP, |most| most.min(LONGEST_SLEEP));
        match watch.least_unannounced() {
            None => most,
            Some(capacity) => most.min(self.nap(capacity)),
        }
    }

    /// To be called after a sleep of `slept` cycles that was to last for `asked` at most.
    pub fn after_sleep(&mut self, asked: Duration, slept: u64) {
        // A sleep that something else ended tells nothing about timers.
        if let Some(late) = slept.checked_sub(tsc::from_duration(asked)) {
            // One that ended so late because the core was busy shall not make naps impossible for long.
            self.late = average(self.late, late.min(self.cycles.max_added_latency));
        } else {
            self.alarms = self.alarms.saturating_add(1);
        }
    }

    /// Whether nothing has come for as long as it is worth to wait.
    fn stay_is_over(&self, upstream: usize, now: u64) -> bool {
        let rested = now.saturating_sub(self.last_item_at);
        if upstream > 0 {
            let arrives = (upstream as u64).saturating_mul(self.item_cycles);
            return rested > arrives.saturating_add(self.cycles.sleep_cost).min(self.cycles.most_stay);
        }
        self.short_share < SHORT_SHARE || rested > self.cycles.sleep_cost
    }

    #[cold]
    fn end_pause(&mut self, at: u64) {
        // Rounded up, so that the share reaches both ends.
        if at.saturating_sub(self.last_item_at) <= self.cycles.sleep_cost {
            self.short_share += (ALL - self.short_share).div_ceil(1 << AVERAGE_SHIFT);
        } else {
            self.short_share -= self.short_share.div_ceil(1 << AVERAGE_SHIFT);
        }
        self.empty_rounds = 0;
        self.next_nap = self.cycles.first_nap;
    }

    /// How long to sleep where a queue of this capacity fills unseen. While pauses tend to be short, first for a moment,
    /// then for longer and longer.
    fn nap(&mut self, capacity: usize) -> Duration {
        let fills = (capacity as u64).saturating_mul(self.cycles.per_second) / FILL_ITEMS_PER_SECOND;
        let bound = self.cycles.max_added_latency.saturating_sub(self.late).min(fills);
        let mut nap = bound;
        if self.short_share >= SHORT_SHARE {
            nap = bound.min(self.next_nap);
            self.next_nap = self.next_nap.saturating_mul(2);
        }
        Duration::from_nanos(tsc::to_ns(nap.max(self.cycles.first_nap)))
    }

    fn poll(&self) {
        if self.empty_rounds > EMPTY_ROUNDS_BEFORE_YIELD && self.seat.is_shared() {
            thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

/// A running average, moved towards the newest value.
fn average(old: u64, newest: u64) -> u64 {
    old - (old >> AVERAGE_SHIFT) + (newest >> AVERAGE_SHIFT)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(50);
    const US: Duration = Duration::from_micros(1);
    const POLICY: IdlePolicy = IdlePolicy::LastItem { max_added_latency: MAX };

    /// A worker whose time is made up: it handles items that take 100 ns each.
    struct Made {
        idle: Idle,
        now: u64,
    }

    impl Made {
        fn new(policy: IdlePolicy) -> Self {
            let idle = Idle::new(policy, Seat::take(None));
            let now = idle.last_item_at;
            Self { idle, now }
        }

        fn pass(&mut self, time: Duration) {
            self.now += tsc::from_duration(time);
        }

        fn items(&mut self, items: usize) {
            let start = self.now;
            self.pass(Duration::from_nanos(100) * items as u32);
            self.idle.after_items(items, start, self.now);
        }

        fn empty(&mut self, upstream: usize) -> bool {
            self.idle.wants_sleep(0, upstream, self.now)
        }

        /// Empty rounds, 100 ns apart, until it sleeps; gives the time that it stayed awake.
        fn stay(&mut self, upstream: usize) -> Duration {
            let mut stayed = Duration::ZERO;
            while !self.empty(upstream) {
                self.pass(US / 10);
                stayed += US / 10;
                assert!(stayed < Duration::from_millis(1), "never sleeps");
            }
            stayed
        }

        /// Items, and then nothing for a while, again and again.
        fn pauses(&mut self, pause: Duration) {
            for _ in 0..100 {
                self.items(1);
                self.empty(0);
                self.pass(pause);
            }
            self.items(1);
        }

        fn nap(&mut self, capacity: usize) -> Duration {
            let mut watch = Watch::new();
            watch.unannounced(capacity);
            self.idle.longest_sleep(&mut watch)
        }
    }

    #[test]
    fn busy_poll_never_sleeps() {
        let mut made = Made::new(IdlePolicy::BusyPoll);
        made.pass(Duration::from_secs(1));
        assert!((0..1000).all(|_| !made.empty(0)));
    }

    #[test]
    fn interrupts_are_waited_for_at_once_and_fixed_sleeps_are_fixed() {
        let mut made = Made::new(IdlePolicy::Interrupt { max_added_latency: MAX });
        made.items(64);
        assert!(made.empty(100));
        assert_eq!(made.idle.fixed_sleep(), None);
        let mut fixed = Made::new(IdlePolicy::Sleep { time: US });
        assert!(fixed.empty(0) && fixed.idle.fixed_sleep() == Some(US));
    }

    #[test]
    fn under_light_load_it_sleeps_at_once() {
        let mut made = Made::new(POLICY);
        made.pauses(Duration::from_micros(100));
        assert_eq!(made.stay(0), Duration::ZERO);
    }

    #[test]
    fn where_pauses_are_short_it_waits_for_as_long_as_a_sleep_costs() {
        let mut made = Made::new(POLICY);
        made.pauses(US);
        let stay = made.stay(0);
        assert!(stay >= SLEEP_COST && stay <= SLEEP_COST + US, "{stay:?}");
    }

    #[test]
    fn it_becomes_idle_again_after_any_load() {
        for load in [Duration::ZERO, US, Duration::from_micros(20)] {
            let mut made = Made::new(POLICY);
            for _ in 0..10_000 {
                made.pauses(load);
            }
            // Sleeps that were much too long, as on a busy machine.
            made.idle.after_sleep(US, tsc::from_duration(Duration::from_secs(1)));
            assert!(made.stay(0) <= SLEEP_COST + US);
            made.pauses(Duration::from_millis(1));
            assert_eq!(made.stay(0), Duration::ZERO, "after pauses of {load:?}");
            for _ in 0..100 {
                made.idle.after_sleep(US, tsc::from_duration(US * 2));
            }
            assert!(made.nap(1024) > MAX * 9 / 10, "{:?}", made.nap(1024));
        }
    }

    #[test]
    fn what_is_upstream_is_waited_for_until_it_should_be_here() {
        let mut made = Made::new(POLICY);
        made.pauses(Duration::from_micros(100));
        made.items(64);
        assert_eq!(made.stay(0), Duration::ZERO, "it was the last");
        for _ in 0..64 {
            made.items(64);
        }
        // 20 items of 100 ns, and the cost of a sleep.
        let stay = made.stay(20);
        assert!(stay >= SLEEP_COST + US && stay <= SLEEP_COST + US * 3, "{stay:?}");
        made.items(64);
        let stay = made.stay(1_000_000);
        assert!(stay >= MOST_STAY && stay <= MOST_STAY + US, "{stay:?}");
        // More that enters does not keep it awake: it may all go elsewhere.
        assert!(made.empty(2_000_000));
    }

    #[test]
    fn a_backlog_forbids_sleep() {
        let mut made = Made::new(IdlePolicy::Interrupt { max_added_latency: MAX });
        made.pass(Duration::from_secs(1));
        assert!((0..1000).all(|_| !made.idle.wants_sleep(1, 0, made.now)));
        assert!(made.empty(0), "the backlog is gone");
    }

    #[test]
    fn naps_keep_the_latency_that_is_allowed_less_what_sleeps_are_late() {
        let mut made = Made::new(POLICY);
        made.pauses(Duration::from_micros(100));
        assert!(made.nap(1024) > MAX * 99 / 100 && made.nap(1024) <= MAX);
        for _ in 0..100 {
            made.idle.after_sleep(MAX, tsc::from_duration(MAX + US * 20));
        }
        let nap = made.nap(1024);
        assert!(nap > US * 28 && nap < US * 32, "{nap:?}");
        // A sleep that something ended before its time tells nothing.
        made.idle.after_sleep(MAX, 0);
        assert_eq!(made.nap(1024), nap);
    }

    #[test]
    fn naps_end_before_a_queue_can_be_full() {
        let mut made = Made::new(POLICY);
        made.pauses(Duration::from_micros(100));
        let nap = made.nap(100);
        assert!(nap > US * 9 && nap <= US * 10, "100 items at 10 millions a second, {nap:?}");
        assert!(made.nap(0) <= FIRST_NAP * 2, "it still returns");
    }

    #[test]
    fn while_pauses_are_short_naps_grow_to_the_maximum() {
        let mut made = Made::new(POLICY);
        made.pauses(US);
        let naps: Vec<_> = (0..8).map(|_| made.nap(1024).as_nanos().div_ceil(1000)).collect();
        assert_eq!(naps, [1, 2, 4, 8, 16, 32, 50, 50]);
        made.empty(0);
        made.items(1);
        assert_eq!(made.nap(1024).as_nanos().div_ceil(1000), 1, "any item resets");
    }

    #[test]
    fn descriptors_that_are_always_readable_are_not_believed_for_long() {
        let mut made = Made::new(POLICY);
        made.pauses(Duration::from_micros(100));
        let mut watch = Watch::new();
        watch.readable(0);
        for _ in 0..FALSE_ALARMS {
            assert_eq!(made.idle.longest_sleep(&mut watch), LONGEST_SLEEP);
            made.idle.after_sleep(LONGEST_SLEEP, 1);
        }
        assert!(made.idle.longest_sleep(&mut watch) <= MAX && !watch.has_descriptors());
        made.items(1);
        watch = Watch::new();
        watch.readable(0);
        assert_eq!(made.idle.longest_sleep(&mut watch), LONGEST_SLEEP, "something came");
    }

    #[test]
    fn without_such_queues_sleeps_are_long_unless_the_task_says_otherwise() {
        let mut made = Made::new(POLICY);
        let mut watch = Watch::new();
        assert_eq!(made.idle.longest_sleep(&mut watch), LONGEST_SLEEP);
        watch.at_most(US * 70);
        assert_eq!(made.idle.longest_sleep(&mut watch), US * 70);
        watch.at_most(Duration::from_secs(9));
        assert_eq!(made.idle.longest_sleep(&mut watch), US * 70);
    }
}
