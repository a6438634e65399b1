//! The decision which pipeline gets which core: one move at a time, from samples of how busy each pipeline is.
//!
//! A pipeline that is overloaded in several samples in a row gets a core from one that matters less, or that would not
//! miss it. The core is a loan. The borrower gives it back when it has long been calm enough to do without, and a lender
//! that matters as much takes it back as soon as it is overloaded itself.
//!
//! What keeps cores from going to and fro: who gives without need must stay far from overload with one core less, by the
//! gap between [`calm_below`](AllocationPolicy::calm_below) and [`overloaded_at`](AllocationPolicy::overloaded_at); only
//! who matters more takes from who does need; after a move nothing moves before its effect shows; who gave a core back too
//! early has to be calm for twice as long the next time; and who had to take one back does not soon lend again.
//!
//! Invariant: whatever the figures are, no move leaves a pipeline with less than its least number of cores, or none, or
//! brings it above its greatest. There is no clock in here: time is what the caller says.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

/// How often to sample. In 20 ms a busy worker handles thousands of bursts, so that its share means something; and three of
/// them, with the move itself, fit into the 100 ms in which an overload is to be answered.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// The longest that a pipeline has to be calm before it gives a core back, however often it was wrong: a minute of one core.
const MOST_PATIENCE: Duration = Duration::from_secs(64);

/// What one pipeline has and needs, as sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// How much it matters; higher is more.
    pub priority: u32,
    /// The cores that it has now.
    pub cores: usize,
    /// The cores that it keeps in any case. With 0, it can lend its last one to a pipeline that matters more, and gets it back when
    /// that one is calm.
    pub min_cores: usize,
    /// The most cores that it could use.
    pub max_cores: usize,
    /// 0 to 1: the busy share of its busiest worker since the last sample.
    pub peak: f64,
    /// 0 to 1: the mean of its workers' busy shares since the last sample.
    pub mean: f64,
    /// A queue before it is nearly full, or refused something, since the last sample.
    pub backlog: bool,
}

impl Demand {
    /// Figures that can be: from others nothing follows. (Comparisons with NaN are false.)
    fn is_sound(&self) -> bool {
        (0.0..=1.0).contains(&self.peak) && (0.0..=1.0).contains(&self.mean)
    }

    fn can_take(&self) -> bool {
        self.is_sound() && self.cores < self.max_cores
    }

    fn can_give(&self) -> bool {
        self.is_sound() && self.cores > self.min_cores
    }
}

/// One core goes from one pipeline to another; both by their place among the demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Who gives it.
    pub from: usize,
    /// Who gets it.
    pub to: usize,
}

/// When cores move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AllocationPolicy {
    /// The busy share of its busiest worker from which on a pipeline is overloaded. At 0.85 a burst takes some seven times as
    /// long as with an idle worker (1 / (1 - 0.85), where arrivals are random); little above, queues grow without bound.
    pub overloaded_at: f64,
    /// Samples in a row that show an overload before it is believed: one alone may be a single burst of traffic. A
    /// move then comes 20 to 60 ms after the overload, which may begin in the middle of a sample.
    pub samples: u32,
    /// A pipeline is calm while the mean busy share of its workers would stay below this with one core less. At half, its
    /// traffic may grow by 70 % before it is overloaded (0.85 / 0.5).
    pub calm_below: f64,
    /// How long a borrower is calm without a break before it gives a core back: longer than the pauses of traffic that comes
    /// in waves, such as of TCP senders that back off (RFC 6298 has their timers at 1 s or less).
    pub calm_for: Duration,
    /// How long after a move the next may follow: two samples that are of the time after it.
    pub settle: Duration,
    /// How long a move is not tried again that could not be made.
    pub retry_after: Duration,
}

impl Default for AllocationPolicy {
    fn default() -> Self {
        Self {
            overloaded_at: 0.85,
            samples: 2,
            calm_below: 0.5,
            calm_for: Duration::from_secs(1),
            settle: SAMPLE_INTERVAL * 2,
            retry_after: Duration::from_secs(1),
        }
    }
}

/// What is known of a pipeline from earlier samples.
#[derive(Debug, Clone, Copy)]
struct History {
    /// Samples in a row that showed an overload.
    overloaded: u32,
    /// Since when every sample showed it calm.
    calm_since: Option<Duration>,
    /// It is calm, and has not lately regretted a loan.
    spares: bool,
    /// When it last gave back a core without being asked, until it borrows again.
    gave_back_at: Option<Duration>,
    /// When it last had to take a core back.
    took_back_at: Option<Duration>,
    /// How long it has to be calm before it gives back.
    patience: Duration,
}

/// One core that a pipeline has of another. Which core it is does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Loan {
    lender: usize,
    borrower: usize,
}

/// Why a pipeline may give a core to one in need; the first reason is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// It owes it one.
    Debt,
    /// It matters less.
    MattersLess,
    /// It matters as much, and would not miss it.
    SparesEqual,
    /// It matters more, and would not miss it.
    SparesLess,
}

/// The state of the decision.
#[derive(Debug)]
pub struct Allocator {
    policy: AllocationPolicy,
    histories: Vec<History>,
    /// Oldest first. At most one for each core.
    loans: Vec<Loan>,
    /// Moves that could not be made, and until when they are not tried again.
    refusals: Vec<(Move, Duration)>,
    moved_at: Option<Duration>,
}

impl Allocator {
    /// For so many pipelines, of which each has cores of its own only.
    #[must_use]
    pub fn new(policy: AllocationPolicy, pipelines: usize) -> Self {
        let history = History {
            overloaded: 0,
            calm_since: None,
            spares: false,
            gave_back_at: None,
            took_back_at: None,
            patience: policy.calm_for,
        };
        Self {
            policy,
            histories: vec![history; pipelines],
            loans: Vec::new(),
            refusals: Vec::new(),
            moved_at: None,
        }
    }

    /// Takes a sample in, at `now` on any clock that does not run backwards, and says what to move now, if anything. The
    /// caller tries that and tells how it went, by [`made`](Self::made) or [`refused`](Self::refused), before the next
    /// sample. To be called every [`SAMPLE_INTERVAL`], with the demands in the same order each time.
    ///
    /// A pipeline whose figures are out of range neither gives nor gets a core; if the number of demands is not that of the
    /// pipelines, nothing moves.
    #[must_use]
    pub fn decide(&mut self, now: Duration, demands: &[Demand]) -> Option<Move> {
        if demands.len() != self.histories.len() {
            return None;
        }
        self.refusals.retain(|(_, until)| now < *until);
        self.observe(now, demands);
        if self.moved_at.is_some_and(|at| now.saturating_sub(at) < self.policy.settle) {
            return None;
        }
        self.relief(demands).or_else(|| self.repayment(now, demands))
    }

    /// The move was made, and was complete at `now`.
    pub fn made(&mut self, made: Move, now: Duration) {
        let Move { from, to } = made;
        if from.max(to) >= self.histories.len() || from == to {
            return;
        }
        let repaid = self.loans.iter().position(|loan| *loan == Loan { lender: to, borrower: from });
        // A core that is passed on is owed to whom it came from: he shall not have to wait for two to be calm.
        let passed_on = self.loans.iter().position(|loan| loan.borrower == from);
        if let Some(loan) = repaid {
            self.loans.remove(loan);
            if self.histories[to].overloaded >= self.policy.samples {
                self.histories[to].took_back_at = Some(now);
            } else {
                self.histories[from].gave_back_at = Some(now);
            }
        } else if let Some(loan) = passed_on {
            let lender = self.loans.remove(loan).lender;
            self.lend(Loan { lender, borrower: to }, now);
        } else {
            self.lend(Loan { lender: from, borrower: to }, now);
        }
        // What was sampled so far was with other cores.
        self.begin_anew(from);
        self.begin_anew(to);
        self.moved_at = Some(now);
    }

    /// The move could not be made: it is not tried again for [`retry_after`](AllocationPolicy::retry_after).
    pub fn refused(&mut self, refused: Move, now: Duration) {
        self.refusals.retain(|(other, _)| *other != refused);
        self.refusals.push((refused, now.saturating_add(self.policy.retry_after)));
    }

    /// A pipeline got (or, where negative, lost) so many cores by hand. Lost cores are taken for those that it had borrowed,
    /// which it then does not owe any more.
    pub fn resize(&mut self, pipeline: usize, change: isize) {
        if pipeline >= self.histories.len() {
            return;
        }
        for _ in change..0 {
            let newest = self.loans.iter().rposition(|loan| loan.borrower == pipeline);
            let Some(newest) = newest else { break };
            self.loans.remove(newest);
        }
        self.begin_anew(pipeline);
    }

    fn lend(&mut self, loan: Loan, now: Duration) {
        let history = &mut self.histories[loan.borrower];
        if let Some(at) = history.gave_back_at.take() {
            let was_too_early = now.saturating_sub(at) < history.patience;
            let longer = history.patience.saturating_mul(2).min(MOST_PATIENCE);
            history.patience = if was_too_early { longer } else { self.policy.calm_for };
        }
        // Who owes each other a core each owes nothing.
        let mutual = Loan { lender: loan.borrower, borrower: loan.lender };
        match self.loans.iter().position(|other| *other == mutual) {
            Some(other) => {
                self.loans.remove(other);
            }
            None => self.loans.push(loan),
        }
    }

    fn begin_anew(&mut self, pipeline: usize) {
        let history = &mut self.histories[pipeline];
        history.overloaded = 0;
        history.calm_since = None;
    }

    fn observe(&mut self, now: Duration, demands: &[Demand]) {
        for (place, demand) in demands.iter().enumerate() {
            let (overloaded, calm) = (self.is_overloaded(demand), self.is_calm_with_one_less(demand));
            let history = &mut self.histories[place];
            history.overloaded = if overloaded { history.overloaded.saturating_add(1) } else { 0 };
            history.calm_since = if calm { history.calm_since.or(Some(now)) } else { None };
            let regrets =
                history.took_back_at.is_some_and(|at| now.saturating_sub(at) < self.policy.calm_for);
            history.spares = calm && !regrets;
        }
    }

    fn is_overloaded(&self, demand: &Demand) -> bool {
        demand.is_sound() && (demand.backlog || demand.peak >= self.policy.overloaded_at)
    }

    /// It is not overloaded, and with one core less it would be neither that nor half busy: the work of the core that goes
    /// is spread over the others.
    fn is_calm_with_one_less(&self, demand: &Demand) -> bool {
        if demand.cores < 2 || !demand.is_sound() || self.is_overloaded(demand) {
            return false;
        }
        let more = demand.mean / (demand.cores - 1) as f64;
        demand.mean + more < self.policy.calm_below && demand.peak + more < self.policy.overloaded_at
    }

    /// A core for the first pipeline that has been overloaded for long enough and finds a donor.
    fn relief(&self, demands: &[Demand]) -> Option<Move> {
        let is_needy = |place: &usize| {
            demands[*place].can_take() && self.histories[*place].overloaded >= self.policy.samples
        };
        let mut needy: Vec<usize> = (0..demands.len()).filter(is_needy).collect();
        needy.sort_by_key(|place| Reverse(demands[*place].priority));
        needy.into_iter().find_map(|to| self.donor(to, demands).map(|from| Move { from, to }))
    }

    fn donor(&self, needy: usize, demands: &[Demand]) -> Option<usize> {
        let order = |a: &Demand, b: &Demand| a.priority.cmp(&b.priority).then(a.mean.total_cmp(&b.mean));
        (0..demands.len())
            .filter(|place| *place != needy && demands[*place].can_give())
            .filter(|place| !self.is_refused(Move { from: *place, to: needy }))
            .filter_map(|place| Some((self.reason(place, needy, demands)?, place)))
            .min_by(|(why_a, a), (why_b, b)| why_a.cmp(why_b).then(order(&demands[*a], &demands[*b])))
            .map(|(_, place)| place)
    }

    fn reason(&self, donor: usize, needy: usize, demands: &[Demand]) -> Option<Reason> {
        let History { spares, calm_since, .. } = self.histories[donor];
        let owes = self.loans.contains(&Loan { lender: needy, borrower: donor });
        match demands[donor].priority.cmp(&demands[needy].priority) {
            Ordering::Less | Ordering::Equal if owes => Some(Reason::Debt),
            Ordering::Less => Some(Reason::MattersLess),
            Ordering::Greater if owes && calm_since.is_some() => Some(Reason::Debt),
            Ordering::Equal if spares => Some(Reason::SparesEqual),
            Ordering::Greater if spares => Some(Reason::SparesLess),
            Ordering::Equal | Ordering::Greater => None,
        }
    }

    /// A core back to its lender, from a borrower that has been calm for long enough: the oldest loan of the lender that
    /// matters most.
    fn repayment(&self, now: Duration, demands: &[Demand]) -> Option<Move> {
        let is_due = |loan: &&Loan| {
            let history = &self.histories[loan.borrower];
            history.calm_since.is_some_and(|since| now.saturating_sub(since) >= history.patience)
                && demands[loan.borrower].can_give()
                && demands[loan.lender].can_take()
                && !self.is_refused(Move { from: loan.borrower, to: loan.lender })
        };
        let loan =
            self.loans.iter().filter(is_due).min_by_key(|loan| Reverse(demands[loan.lender].priority))?;
        Some(Move { from: loan.borrower, to: loan.lender })
    }

    fn is_refused(&self, a_move: Move) -> bool {
        self.refusals.iter().any(|(refused, _)| *refused == a_move)
    }
}

#[cfg(test)]
mod tests;
