//! The inside of a worker: its thread's loop, and what it does about panics.
//!
//! Invariant: total time = busy + asleep + polling, as its counters say; and however a task behaves (short of never
//! returning), the loop goes on until the stop signal.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use crate::bell::{Bell, Watch};
use crate::cores::{MAX_CORES, Seat};
use crate::idle::{Idle, IdlePolicy};
use crate::worker::{Phase, Round, StopSignal, Task, WorkerEvent, WorkerStatus};
use crate::{os, tsc};

/// So many panics within [`STORM_WINDOW`] are a storm: one may be an odd item, three in a second are a pattern.
const STORM_PANICS: usize = 3;
const STORM_WINDOW: Duration = Duration::from_secs(1);
/// The pause after each panic in a storm: at most 100 panics a second, which a core and a log can bear. Rounds that do
/// not panic are not slowed down, lest one tenant's odd packets stop the others' traffic.
const STORM_PAUSE: Duration = Duration::from_millis(10);

/// What the worker's thread shares with its handle.
pub(crate) struct Context {
    pub(crate) status: Arc<WorkerStatus>,
    pub(crate) stop: Arc<StopSignal>,
    pub(crate) idle: IdlePolicy,
    pub(crate) bell: Arc<Bell>,
    pub(crate) events: Option<SyncSender<WorkerEvent>>,
}

/// Why a worker did not start.
pub(crate) enum StartFailure {
    Pin { core: usize },
    Panicked { message: String },
}

/// The worker's thread: pins itself, makes and starts the task, says so on `started`, repeats rounds until the stop
/// signal, drains, and says on `ended` whether that succeeded.
pub(crate) fn run<T: Task>(
    context: Context,
    make_task: impl FnOnce() -> T,
    started: &SyncSender<Result<(), StartFailure>>,
    ended: &SyncSender<bool>,
) {
    match start(&context, make_task) {
        Ok(task) => {
            // Whoever spawned us waits for this word; if it is gone, so is the wish to run.
            if started.send(Ok(())).is_ok() {
                let drained = Loop::new(context, task).run();
                let _ = ended.send(drained);
            }
        }
        Err(failure) => {
            let _ = started.send(Err(failure));
        }
    }
}

fn start<T: Task>(context: &Context, make_task: impl FnOnce() -> T) -> Result<T, StartFailure> {
    if let Some(core) = context.status.core
        && !pin(core)
    {
        return Err(StartFailure::Pin { core });
    }
    os::precise_sleep();
    catch_unwind(AssertUnwindSafe(|| {
        let mut task = make_task();
        task.start();
        task
    }))
    .map_err(|payload| StartFailure::Panicked { message: message_of(payload.as_ref()) })
}

/// Pins the calling thread to one core; the range is checked first because the library indexes a fixed set by it.
fn pin(core: usize) -> bool {
    core < MAX_CORES && core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

struct Loop<T> {
    context: Context,
    task: T,
    idle: Idle,
    watch: Watch,
    storm: Storm,
}

impl<T: Task> Loop<T> {
    fn new(context: Context, task: T) -> Self {
        let idle = Idle::new(context.idle, Seat::take(context.status.core));
        Self { context, task, idle, watch: Watch::new(), storm: Storm::default() }
    }

    fn run(mut self) -> bool {
        self.rounds();
        let drained = self.drain();
        let Self { context, task, mut storm, .. } = self;
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(task))) {
            report(&context, &mut storm, Phase::Drop, payload.as_ref());
        }
        drained
    }

    fn rounds(&mut self) {
        let first = tsc::now();
        let mut round_start = first;
        while !self.context.stop.is_asked() {
            let (round, paused) = match self.guarded(Phase::Round, T::round) {
                Ok(round) => (round, 0),
                Err(paused) => (Round::default(), paused),
            };
            let end = tsc::now();
            let counters = &self.context.status.counters;
            counters.rounds.add(1);
            self.context.status.last_round_at.set(end);
            if round.items > 0 {
                counters.busy_cycles.add(end.saturating_sub(round_start));
                self.idle.after_items(round.items, round_start, end);
                round_start = end;
            } else {
                counters.empty_rounds.add(1);
                let sleeps = self.idle.wants_sleep(round.backlog, round.upstream, end);
                let slept = if sleeps { self.sleep() } else { 0 };
                let counters = &self.context.status.counters;
                counters.asleep_cycles.add(slept + paused);
                // What the idle decision took is no part of the next round.
                round_start = tsc::now();
            }
            let counters = &self.context.status.counters;
            // After the parts, so that the whole is never less than their sum.
            counters.total_cycles.set(round_start.saturating_sub(first));
        }
    }

    /// Sleeps until something comes, unless something has. Gives for how many time-stamp cycles.
    fn sleep(&mut self) -> u64 {
        if let Some(time) = self.idle.fixed_sleep() {
            let start = tsc::now();
            thread::sleep(time);
            return tsc::now().saturating_sub(start);
        }
        self.watch.clear();
        // From here on whoever brings something rings; what was brought before, the task or the stop signal shows.
        self.context.bell.lie_down();
        let Self { task, watch, .. } = self;
        let armed = catch_unwind(AssertUnwindSafe(|| task.arm(watch)));
        let mut slept = 0;
        if armed.is_ok() && !self.watch.has_work() && !self.context.stop.is_asked() {
            let most = self.idle.longest_sleep(&mut self.watch);
            let start = tsc::now();
            self.context.bell.sleep(&mut self.watch, most);
            slept = tsc::now().saturating_sub(start);
            self.idle.after_sleep(most, slept);
            self.context.status.counters.sleeps.add(1);
        }
        self.context.bell.get_up();
        // A panic while arming or disarming is one as any other.
        if let Err(payload) = armed {
            slept += self.recover(Phase::Sleep, payload.as_ref());
        }
        match self.guarded(Phase::Sleep, T::disarm) {
            Ok(()) => slept,
            Err(paused) => slept + paused,
        }
    }

    fn drain(&mut self) -> bool {
        loop {
            if self.guarded(Phase::Drain, T::drain) == Ok(true) {
                return true;
            }
            self.context.status.last_round_at.set(tsc::now());
            if self.context.stop.is_over() {
                return false;
            }
            // What it waits for is done by others, perhaps on this core.
            thread::yield_now();
        }
    }

    /// Makes one call of the task. If it panics: reports, lets the task recover, pauses in a storm; the error is for
    /// how many time-stamp cycles it paused.
    #[inline]
    fn guarded<R>(&mut self, phase: Phase, call: impl FnOnce(&mut T) -> R) -> Result<R, u64> {
        let task = &mut self.task;
        catch_unwind(AssertUnwindSafe(|| call(task))).map_err(|payload| self.recover(phase, payload.as_ref()))
    }

    #[cold]
    fn recover(&mut self, phase: Phase, payload: &(dyn Any + Send)) -> u64 {
        report(&self.context, &mut self.storm, phase, payload);
        let task = &mut self.task;
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task.recover())) {
            report(&self.context, &mut self.storm, Phase::Recover, payload.as_ref());
        }
        if !self.storm.rages() {
            return 0;
        }
        let start = tsc::now();
        thread::sleep(STORM_PAUSE);
        tsc::now().saturating_sub(start)
    }
}

/// Counts a panic and tells whoever listens.
fn report(context: &Context, storm: &mut Storm, phase: Phase, payload: &(dyn Any + Send)) {
    storm.note(Instant::now());
    let status = &context.status;
    status.counters.panics.add(1);
    if let Some(events) = &context.events {
        // A full channel or a receiver that is gone must not hold the worker up; the panic is counted anyway.
        let _ = events.try_send(WorkerEvent::Panicked {
            worker: status.name.clone(),
            core: status.core,
            phase,
            message: message_of(payload),
            count: status.counters.panics.get(),
        });
    }
}

/// What a panic said: the text of `panic!`, or that there was none.
fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// The times of the latest panics, oldest first.
#[derive(Debug, Default)]
struct Storm {
    latest: [Option<Instant>; STORM_PANICS],
}

impl Storm {
    fn note(&mut self, now: Instant) {
        self.latest.rotate_left(1);
        if let Some(last) = self.latest.last_mut() {
            *last = Some(now);
        }
    }

    /// Whether the latest panics came within the window.
    fn rages(&self) -> bool {
        match (self.latest.first(), self.latest.last()) {
            (Some(Some(first)), Some(Some(last))) => last.duration_since(*first) < STORM_WINDOW,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_three_panics_within_a_second() {
        let start = Instant::now();
        let mut storm = Storm::default();
        for after_ms in [0, 600] {
            storm.note(start + Duration::from_millis(after_ms));
            assert!(!storm.rages());
        }
        storm.note(start + Duration::from_millis(1100));
        assert!(!storm.rages(), "three, but within 1.1 s");
        storm.note(start + Duration::from_millis(1200));
        assert!(storm.rages(), "the latest three are within 0.6 s");
        storm.note(start + Duration::from_millis(5000));
        assert!(!storm.rages());
    }

    #[test]
    fn messages_of_all_kinds_of_panics() {
        let message = |call: fn()| message_of(catch_unwind(call).unwrap_err().as_ref());
        assert_eq!(message(|| panic!("plain")), "plain");
        assert_eq!(message(|| panic!("with {}", 1)), "with 1");
        assert_eq!(message(|| std::panic::panic_any(7)), "a panic without a message");
    }
}
