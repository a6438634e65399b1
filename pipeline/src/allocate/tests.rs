//! Tests of each rule, and of what holds whatever comes.

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// A host whose time is made up, and whose moves succeed.
struct Made {
    allocator: Allocator,
    now: Duration,
    demands: Vec<Demand>,
    moves: Vec<(Duration, Move)>,
}

/// A pipeline without work.
fn idle(priority: u32, cores: usize) -> Demand {
    Demand { priority, cores, min_cores: 1, max_cores: 8, peak: 0.0, mean: 0.0, backlog: false }
}

impl Made {
    fn new(demands: &[Demand]) -> Self {
        let allocator = Allocator::new(AllocationPolicy::default(), demands.len());
        Self { allocator, now: Duration::ZERO, demands: demands.to_vec(), moves: Vec::new() }
    }

    /// How busy a pipeline is from now on.
    fn busy(&mut self, place: usize, share: f64) -> &mut Self {
        (self.demands[place].peak, self.demands[place].mean) = (share, share);
        self
    }

    fn sample(&mut self) -> Option<Move> {
        self.now += SAMPLE_INTERVAL;
        let decided = self.allocator.decide(self.now, &self.demands);
        if let Some(a_move) = decided {
            self.demands[a_move.from].cores -= 1;
            self.demands[a_move.to].cores += 1;
            self.allocator.made(a_move, self.now);
            self.moves.push((self.now, a_move));
        }
        decided
    }

    fn pass(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while self.now < end {
            self.sample();
        }
        self
    }

    fn cores(&self) -> Vec<usize> {
        self.demands.iter().map(|demand| demand.cores).collect()
    }
}

#[test]
fn an_overload_is_answered_within_100_ms() {
    for backlog in [false, true] {
        let mut made = Made::new(&[idle(0, 2), idle(1, 1)]);
        made.pass(MS * 200);
        // Right after a sample, which is the worst time to begin; the move itself is the caller's.
        let begin = made.now;
        made.demands[1].backlog = backlog;
        made.busy(1, if backlog { 0.6 } else { 0.85 }).pass(MS * 80);
        assert_eq!(made.moves, [(begin + SAMPLE_INTERVAL * 2, Move { from: 0, to: 1 })]);
    }
}

#[test]
fn one_sample_is_no_overload() {
    let mut made = Made::new(&[idle(0, 4), idle(1, 1)]);
    for _ in 0..100 {
        made.busy(1, 1.0).sample();
        made.busy(1, 0.8).sample();
    }
    assert_eq!(made.moves, []);
}

#[test]
fn the_most_important_is_served_first_and_takes_from_the_least() {
    let mut made = Made::new(&[idle(5, 2), idle(1, 2), idle(3, 2), idle(9, 1), idle(7, 1)]);
    for place in 0..5 {
        made.busy(place, 1.0);
    }
    made.demands[3].max_cores = 3;
    made.pass(MS * 1000);
    let moves: Vec<_> = made.moves.iter().map(|(_, Move { from, to })| (*from, *to)).collect();
    assert_eq!(moves, [(1, 3), (2, 3), (0, 4)], "of equals in need none takes from the other");
    assert_eq!(made.cores(), [1, 1, 1, 3, 2]);
}

#[test]
fn of_equally_important_donors_the_idlest_gives() {
    let mut made = Made::new(&[idle(1, 2), idle(1, 2), idle(2, 1)]);
    made.busy(0, 0.7).busy(1, 0.6).busy(2, 1.0).pass(MS * 40);
    assert_eq!(made.cores(), [2, 1, 2]);
}

#[test]
fn an_equal_or_a_better_one_gives_only_what_it_would_not_miss() {
    for priority in [3, 4] {
        let mut made = Made::new(&[idle(3, 1), idle(priority, 4)]);
        // 4 cores at 0.4 are 3 at 0.53.
        made.busy(0, 1.0).busy(1, 0.4).pass(MS * 1000);
        assert_eq!(made.moves, []);
        // At 0.35 they are 3 at 0.47, and then 2 at 0.7.
        made.busy(1, 0.35).pass(MS * 40);
        assert_eq!(made.cores(), [2, 3]);
        made.busy(1, 0.47).pass(MS * 1000);
        assert_eq!(made.cores(), [2, 3]);
        made.busy(1, 0.0);
        made.demands[1].backlog = true;
        assert_eq!(made.allocator.donor(0, &made.demands), None, "whose queues are full is not calm");
    }
    // Its busiest worker cannot take what the mean says.
    let mut made = Made::new(&[idle(3, 1), idle(3, 2)]);
    (made.demands[1].peak, made.demands[1].mean) = (0.7, 0.2);
    made.busy(0, 1.0).pass(MS * 1000);
    assert_eq!(made.moves, []);
}

#[test]
fn least_and_most_cores_are_kept() {
    let mut made = Made::new(&[idle(0, 4), idle(1, 1)]);
    (made.demands[0].min_cores, made.demands[1].max_cores) = (3, 3);
    made.busy(1, 1.0).pass(MS * 1000);
    assert_eq!(made.cores(), [3, 2]);
    made.demands[0].min_cores = 0;
    made.pass(MS * 1000);
    assert_eq!(made.cores(), [2, 3]);
    made.demands[1].max_cores = 9;
    made.pass(MS * 1000);
    assert_eq!(made.cores(), [0, 5]);
    made.busy(1, 0.0).pass(MS * 20_000);
    assert_eq!(made.cores(), [4, 1], "all are given back");
}

#[test]
fn a_borrower_gives_back_after_a_calm_second() {
    let mut made = Made::new(&[idle(0, 3), idle(1, 1)]);
    made.busy(1, 1.0).pass(MS * 100).busy(1, 0.6).pass(MS * 2000);
    assert_eq!(made.cores(), [1, 3], "not calm: at 0.6, two cores would be at 0.9");
    made.busy(1, 0.2).pass(MS * 900).busy(1, 0.6).sample();
    made.busy(1, 0.2).pass(MS * 1000);
    assert_eq!(made.moves.len(), 2, "a break begins the second anew");
    made.pass(MS * 20);
    assert_eq!(made.cores(), [2, 2]);
    made.pass(MS * 1000);
    assert_eq!(made.cores(), [2, 2]);
    made.pass(MS * 20);
    assert_eq!(made.cores(), [3, 1], "each core takes a second");
    made.pass(MS * 10_000);
    assert_eq!(made.moves.len(), 4, "what it did not borrow it keeps");
}

#[test]
fn a_lender_that_matters_as_much_takes_back_at_once() {
    for priority in [1, 2] {
        let mut made = Made::new(&[idle(priority, 2), idle(1, 1), idle(0, 2)]);
        made.demands[2].min_cores = 2;
        made.busy(1, 1.0).pass(MS * 100);
        assert_eq!(made.cores(), [1, 2, 2]);
        // Its debtor is asked first, though another matters less.
        made.demands[2].min_cores = 1;
        made.busy(1, 0.8).busy(0, 1.0).pass(MS * 40);
        assert_eq!(made.cores(), [2, 1, 2]);
        assert_eq!(made.allocator.loans, []);
        // It is calm again, but has learned: for a second it does not lend, though its equal is in need.
        made.demands[2].min_cores = 2;
        made.busy(0, 0.0).busy(1, 1.0).pass(MS * 980);
        assert_eq!(made.cores(), [2, 1, 2]);
        made.pass(MS * 60);
        assert_eq!(made.cores(), [1, 2, 2]);
    }
    // One that matters less waits until the borrower is calm, but not for a second.
    let mut made = Made::new(&[idle(0, 2), idle(1, 1)]);
    made.busy(1, 1.0).pass(MS * 100).busy(0, 1.0).busy(1, 0.8).pass(MS * 1000);
    assert_eq!(made.cores(), [1, 2]);
    made.busy(1, 0.2).sample();
    assert_eq!(made.cores(), [2, 1]);
}

#[test]
fn who_gives_back_too_early_waits_for_twice_as_long() {
    let mut made = Made::new(&[idle(0, 2), idle(1, 1)]);
    let mut waits = Vec::new();
    for _ in 0..9 {
        made.busy(1, 1.0).pass(MS * 100).busy(1, 0.0);
        let begin = made.now;
        while made.cores() != [2, 1] {
            made.sample();
        }
        waits.push((made.now - begin).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    made.pass(MOST_PATIENCE).busy(1, 1.0).pass(MS * 100).busy(1, 0.0).pass(MS * 1020);
    assert_eq!(made.cores(), [2, 1], "a long rest, and it is trusted again");
}

#[test]
fn what_is_passed_on_is_owed_to_the_first_lender() {
    let mut made = Made::new(&[idle(0, 2), idle(1, 1), idle(2, 1)]);
    made.busy(1, 1.0).pass(MS * 40);
    assert_eq!(made.cores(), [1, 2, 1]);
    made.busy(2, 1.0).pass(MS * 40);
    assert_eq!(made.cores(), [1, 1, 2]);
    assert_eq!(made.allocator.loans, [Loan { lender: 0, borrower: 2 }]);
    made.busy(1, 0.0).busy(2, 0.0).pass(MS * 1100);
    assert_eq!(made.cores(), [2, 1, 1]);
}

#[test]
fn nothing_moves_before_the_last_move_has_shown() {
    let mut made = Made::new(&[idle(0, 8), idle(1, 1)]);
    made.busy(1, 1.0).pass(MS * 200);
    let times: Vec<_> = made.moves.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(times, [40, 80, 120, 160, 200]);
    let mut slow = Allocator::new(AllocationPolicy::default(), 2);
    let demands = made.demands;
    slow.made(Move { from: 0, to: 1 }, MS * 15);
    let decided = [20, 40, 50, 60].map(|at| slow.decide(MS * at, &demands));
    assert_eq!(decided, [None, None, None, Some(Move { from: 0, to: 1 })]);
}

#[test]
fn what_was_refused_is_not_tried_again_for_a_second() {
    let mut demands = [idle(0, 2), idle(1, 2), idle(2, 1)];
    (demands[2].peak, demands[2].mean) = (1.0, 1.0);
    let mut allocator = Allocator::new(AllocationPolicy::default(), 3);
    assert_eq!(allocator.decide(MS * 20, &demands), None);
    assert_eq!(allocator.decide(MS * 40, &demands), Some(Move { from: 0, to: 2 }));
    allocator.refused(Move { from: 0, to: 2 }, MS * 40);
    assert_eq!(allocator.decide(MS * 60, &demands), Some(Move { from: 1, to: 2 }), "another one is");
    allocator.refused(Move { from: 1, to: 2 }, MS * 60);
    assert_eq!(allocator.decide(MS * 1020, &demands), None);
    assert_eq!(allocator.decide(MS * 1040, &demands), Some(Move { from: 0, to: 2 }));
    // A repayment, too.
    allocator.made(Move { from: 0, to: 2 }, MS * 1040);
    let demands = [idle(0, 1), idle(1, 2), idle(2, 2)];
    assert_eq!(allocator.decide(MS * 2000, &demands), None);
    assert_eq!(allocator.decide(MS * 3000, &demands), Some(Move { from: 2, to: 0 }));
    allocator.refused(Move { from: 2, to: 0 }, MS * 3000);
    assert_eq!(allocator.decide(MS * 3980, &demands), None);
    assert_eq!(allocator.decide(MS * 4000, &demands), Some(Move { from: 2, to: 0 }));
}

#[test]
fn cores_lost_by_hand_are_not_owed() {
    let mut made = Made::new(&[idle(0, 3), idle(1, 1)]);
    made.busy(1, 1.0).pass(MS * 100).busy(1, 0.0);
    assert_eq!(made.cores(), [1, 3]);
    made.demands[1].cores = 2;
    made.allocator.resize(1, -1);
    made.pass(MS * 10_000);
    assert_eq!(made.cores(), [2, 1], "one of two");
    // More than it owes, more than there are, and none of them.
    made.allocator.resize(0, isize::MIN);
    made.allocator.resize(1, isize::MAX);
    made.allocator.resize(2, -1);
}

#[test]
fn figures_that_cannot_be_move_nothing() {
    for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 1.1] {
        let mut made = Made::new(&[idle(0, 4), idle(1, 1), idle(2, 4)]);
        made.demands[1].backlog = true;
        made.demands[1].mean = wrong;
        made.pass(MS * 200);
        made.busy(1, wrong).pass(MS * 200);
        assert_eq!(made.moves, [], "{wrong}: does not get");
        (made.demands[0].peak, made.demands[2].mean) = (wrong, wrong);
        made.busy(1, 1.0).pass(MS * 200);
        assert_eq!(made.moves, [], "{wrong}: does not give");
    }
    let mut allocator = Allocator::new(AllocationPolicy::default(), 2);
    let full = Demand { backlog: true, ..idle(1, 0) };
    for demands in [&[][..], &[full], &[full, idle(0, 9), idle(0, 9)]] {
        assert!((1..9).all(|at| allocator.decide(MS * 20 * at, demands).is_none()));
    }
    allocator.made(Move { from: 0, to: 7 }, MS);
    allocator.made(Move { from: 1, to: 1 }, MS);
    allocator.refused(Move { from: usize::MAX, to: 0 }, Duration::MAX);
    // Time that runs backwards is no reason to fail.
    assert_eq!(allocator.decide(Duration::MAX, &[full, idle(0, 9)]), None);
    assert_eq!(allocator.decide(Duration::ZERO, &[full, idle(0, 9)]), Some(Move { from: 1, to: 0 }));
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![6 => 0.0..=1.0, 2 => Just(1.0), 1 => Just(0.0), 1 => any::<f64>()]
}

/// Pipelines that keep to their bounds.
fn pipelines() -> impl Strategy<Value = Vec<Demand>> {
    let pipeline =
        (0u32..4, 1usize..6, 1usize..6, 0usize..6).prop_map(|(priority, min_cores, more, room)| {
            let cores = min_cores + more - 1;
            Demand { min_cores, max_cores: cores + room, ..idle(priority, cores) }
        });
    prop::collection::vec(pipeline, 1..6)
}

proptest! {
    #[test]
    fn whatever_is_sampled_cores_are_conserved_and_bounds_kept(
        start in pipelines(),
        samples in prop::collection::vec((0usize..6, share(), share(), any::<bool>(), 0u8..8, 1u32..30), 0..200),
    ) {
        let mut made = Made::new(&start);
        let total: usize = made.cores().iter().sum();
        let mut moved_at = None;
        for (place, peak, mean, backlog, fate, pause) in samples {
            let place = place % start.len();
            let demand = &mut made.demands[place];
            (demand.peak, demand.mean, demand.backlog) = (peak, mean, backlog && fate > 4);
            made.now += MS * pause;
            let Some(a_move) = made.allocator.decide(made.now, &made.demands) else { continue };
            let settled = moved_at.is_none_or(|at| made.now - at >= made.allocator.policy.settle);
            prop_assert!(settled && a_move.from != a_move.to);
            for place in [a_move.from, a_move.to] {
                prop_assert!(made.demands[place].is_sound(), "{:?}", made.demands[place]);
            }
            if fate == 0 {
                made.allocator.refused(a_move, made.now);
                continue;
            }
            made.demands[a_move.from].cores -= 1;
            made.demands[a_move.to].cores += 1;
            made.now += MS;
            made.allocator.made(a_move, made.now);
            moved_at = Some(made.now);
            prop_assert_eq!(made.cores().iter().sum::<usize>(), total);
            let loans = &made.allocator.loans;
            let is_mutual = |loan: &Loan| loans.contains(&Loan { lender: loan.borrower, borrower: loan.lender });
            prop_assert!(!loans.iter().any(is_mutual), "{:?}", loans);
            for (place, (demand, start)) in made.demands.iter().zip(&start).enumerate() {
                prop_assert!(demand.cores >= demand.min_cores && demand.cores <= demand.max_cores);
                let lent = loans.iter().filter(|loan| loan.lender == place).count();
                let borrowed = loans.iter().filter(|loan| loan.borrower == place).count();
                prop_assert_eq!(demand.cores + lent, start.cores + borrowed);
            }
        }
    }

    #[test]
    fn what_stays_the_same_moves_each_core_once_at_most(
        start in pipelines(), shares in prop::collection::vec((share(), share(), 0u8..6), 6),
    ) {
        let mut made = Made::new(&start);
        for (demand, (a, b, backlog)) in made.demands.iter_mut().zip(shares) {
            (demand.peak, demand.mean, demand.backlog) = (a.max(b), a.min(b), backlog == 0);
        }
        made.pass(Duration::from_secs(60));
        prop_assert!(made.moves.len() <= made.cores().iter().sum(), "{:?}", made.moves);
    }

    /// As the above, where the same work is spread over the cores that there are, unevenly.
    #[test]
    fn the_same_work_moves_each_core_once_at_most(
        start in pipelines(), works in prop::collection::vec((0.0..6.0f64, 1.0..1.7f64), 6),
    ) {
        let mut made = Made::new(&start);
        for _ in 0..3000 {
            for (demand, (work, uneven)) in made.demands.iter_mut().zip(&works) {
                demand.mean = (work / demand.cores as f64).min(1.0);
                demand.peak = (demand.mean * uneven).min(1.0);
                demand.backlog = *work > demand.cores as f64;
            }
            made.sample();
        }
        prop_assert!(made.moves.len() <= made.cores().iter().sum(), "{:?}", made.moves);
    }
}
