//! The worker: a pinned thread that repeats the rounds of one task.
//!
//! This file is the outside: what a task is, how a worker is started, watched and stopped. The loop itself is `run.rs`.
//! Invariant: a worker's thread ends only when it is asked to; neither a panic of its task nor the end of whoever
//! listens to its events ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use thiserror::Error;

use crate::bell::{Bell, Watch};
use crate::counters::{Counter, WorkerCounters};
use crate::idle::IdlePolicy;
use crate::{cores, run};

/// After its deadline a worker has this long to come out of its last call before it is given up: a round takes
/// microseconds, a hundred milliseconds are also enough for a thread that waits for its core.
const STOP_GRACE: Duration = Duration::from_millis(100);

/// How long a worker that is dropped without being stopped may drain.
const DROP_DRAIN: Duration = Duration::from_secs(1);

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Items handled.
    pub items: usize,
    /// Items known to wait: in the task's own hands, or in a queue before it.
    pub backlog: usize,
    /// Items known to have entered the pipeline behind those handled, and not to have arrived here yet.
    pub upstream: usize,
}

/// The work of a worker. Every method is called on the worker's thread.
pub trait Task: Send {
    /// One turn: takes at most a bounded number of items, works on them, passes them on; returns without waiting.
    fn round(&mut self) -> Round;

    /// Called before a sleep, when those who ring the worker's [`Bell`] know that they have to: says what else is to wake
    /// it, and whether something has come since the last round. A task that says nothing of its inputs is taken to have
    /// one that nobody rings for.
    fn arm(&mut self, watch: &mut Watch) {
        watch.unannounced(usize::MAX);
    }

    /// Called after each [`Task::arm`], whether there was a sleep or not.
    fn disarm(&mut self) {}

    /// Called once, before the first round, when the thread is pinned.
    fn start(&mut self) {}

    /// Called instead of `round` once a stop is asked, again and again until it returns `true` (nothing is left in the
    /// task's hands or in its inputs) or the deadline is over. Takes nothing new from outside the pipeline.
    fn drain(&mut self) -> bool;

    /// Called after a panic in `round` or `drain`: accounts for what was in flight, releases it, and leaves the task fit
    /// for the next round.
    fn recover(&mut self);
}

/// Where in the task something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// In [`Task::round`].
    Round,
    /// In [`Task::arm`] or [`Task::disarm`].
    Sleep,
    /// In [`Task::drain`].
    Drain,
    /// In [`Task::recover`].
    Recover,
    /// When the task was dropped, after draining.
    Drop,
}

/// Something that the control side should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The task panicked; the worker went on.
    Panicked {
        /// The worker's name.
        worker: String,
        /// The core it is pinned to.
        core: Option<usize>,
        /// In which call.
        phase: Phase,
        /// What the panic said.
        message: String,
        /// Panics of this worker so far, this one included.
        count: u64,
    },
}

/// How a worker is to run.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Its name, as users see it; also the thread's (of which Linux shows 15 bytes).
    pub name: String,
    /// The core to pin it to; `None` leaves that to the operating system.
    pub core: Option<usize>,
    /// What it does when there is nothing to do.
    pub idle: IdlePolicy,
    /// Wakes it. Rings and publications that bring it something are to be made [`waking`](crate::RingProducer::waking) it.
    pub bell: Arc<Bell>,
    /// Where its events go. A worker never waits for the receiver: what finds the channel full is lost, but counted.
    pub events: Option<SyncSender<WorkerEvent>>,
}

impl WorkerOptions {
    /// Options without an event channel.
    #[must_use]
    pub fn new(name: impl Into<String>, core: Option<usize>, idle: IdlePolicy) -> Self {
        Self { name: name.into(), core, idle, bell: Arc::new(Bell::new()), events: None }
    }

    /// Sends the worker's events there.
    #[must_use]
    pub fn with_events(mut self, events: SyncSender<WorkerEvent>) -> Self {
        self.events = Some(events);
        self
    }
}

/// A worker that could not be started.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The name cannot be a thread's.
    #[error("worker {name:?}: the name holds a NUL byte (use letters, digits and dashes)")]
    Name {
        /// The name.
        name: String,
    },
    /// The operating system gave no thread.
    #[error("worker \"{name}\": no thread: {source} (is the limit on processes reached? see: ulimit -u)")]
    Thread {
        /// The worker's name.
        name: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The thread could not be pinned.
    #[error(
        "worker \"{name}\": cannot be pinned to core {core} (available: {}; change `cores`, or the cpuset of this process)",
        cores::format(.available)
    )]
    Pin {
        /// The worker's name.
        name: String,
        /// The core.
        core: usize,
        /// The cores that this process may use.
        available: Vec<usize>,
    },
    /// Making or starting the task panicked.
    #[error("worker \"{name}\": its task panicked while starting: {message}")]
    Start {
        /// The worker's name.
        name: String,
        /// What the panic said.
        message: String,
    },
}

/// What anybody may know about a running worker; outlives it.
#[derive(Debug)]
pub struct WorkerStatus {
    /// The worker's name.
    pub name: String,
    /// The core it is pinned to.
    pub core: Option<usize>,
    /// Written by the worker's thread, read by any.
    pub counters: CachePadded<WorkerCounters>,
    /// Time stamp of the end of the latest round, 0 before the first: a monitor that sees it stand still knows that the
    /// worker is stalled. Written by the worker's thread, read by any.
    pub last_round_at: CachePadded<Counter>,
}

/// When to stop: nanoseconds after `epoch`, or [`StopSignal::NOT_ASKED`]. Written by the control side, read by the
/// worker after each round.
#[derive(Debug)]
pub(crate) struct StopSignal {
    epoch: Instant,
    deadline_ns: CachePadded<AtomicU64>,
}

impl StopSignal {
    const NOT_ASKED: u64 = u64::MAX;

    fn new() -> Self {
        Self { epoch: Instant::now(), deadline_ns: CachePadded::new(AtomicU64::new(Self::NOT_ASKED)) }
    }

    fn ask(&self, deadline: Instant) {
        let ns = deadline.saturating_duration_since(self.epoch).as_nanos();
        let ns = u64::try_from(ns).unwrap_or(u64::MAX).min(Self::NOT_ASKED - 1);
        self.deadline_ns.store(ns, Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn is_asked(&self) -> bool {
        self.deadline_ns.load(Ordering::Acquire) != Self::NOT_ASKED
    }

    pub(crate) fn is_over(&self) -> bool {
        self.epoch.elapsed().as_nanos() >= u128::from(self.deadline_ns.load(Ordering::Acquire))
    }
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopReport {
    /// The worker's name.
    pub name: String,
    /// The task said that nothing was left.
    pub drained: bool,
    /// The thread ended. If not, the task hangs in a call; its thread is left behind.
    pub ended: bool,
    /// Panics that were caught in the worker's life.
    pub panics: u64,
}

/// A running worker. Dropping it stops it, with one second to drain.
#[derive(Debug)]
pub struct Worker {
    status: Arc<WorkerStatus>,
    stop: Arc<StopSignal>,
    bell: Arc<Bell>,
    /// Says, once, whether the task drained.
    ended: Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker and returns once its task has started. `make_task` runs on the worker's thread when that is
    /// pinned already, so that what it allocates lies near its core; the task is also dropped there.
    ///
    /// # Errors
    /// [`WorkerError`]: there is no thread, it cannot be pinned, or the task panicked while starting.
    pub fn spawn<T, F>(options: WorkerOptions, make_task: F) -> Result<Self, WorkerError>
    where
        T: Task,
        F: FnOnce() -> T + Send + 'static,
    {
        let WorkerOptions { name, core, idle, bell, events } = options;
        if name.contains('\0') {
            return Err(WorkerError::Name { name });
        }
        // Asked here, since the worker's thread sees only its own core once it is pinned.
        let available = cores::available();
        let status = Arc::new(WorkerStatus {
            name: name.clone(),
            core,
            counters: CachePadded::default(),
            last_round_at: CachePadded::default(),
        });
        let stop = Arc::new(StopSignal::new());
        let (started_tx, started) = sync_channel(1);
        let (ended_tx, ended) = sync_channel(1);
        let context = run::Context {
            status: Arc::clone(&status),
            stop: Arc::clone(&stop),
            idle,
            bell: Arc::clone(&bell),
            events,
        };
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || run::run(context, make_task, &started_tx, &ended_tx))
            .map_err(|source| WorkerError::Thread { name: name.clone(), source })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { status, stop, bell, ended, thread: Some(thread) }),
            Ok(Err(run::StartFailure::Pin { core })) => Err(WorkerError::Pin { name, core, available }),
            Ok(Err(run::StartFailure::Panicked { message })) => Err(WorkerError::Start { name, message }),
            Err(_) => Err(WorkerError::Start { name, message: "its thread ended".to_owned() }),
        }
    }

    /// The worker's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.status.name
    }

    /// The core it is pinned to.
    #[must_use]
    pub fn core(&self) -> Option<usize> {
        self.status.core
    }

    /// What it did with its time.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.status.counters
    }

    /// Time stamp of the end of its latest round, see [`WorkerStatus::last_round_at`].
    #[must_use]
    pub fn last_round_at(&self) -> u64 {
        self.status.last_round_at.get()
    }

    /// The same figures for a monitor to keep.
    #[must_use]
    pub fn status(&self) -> Arc<WorkerStatus> {
        Arc::clone(&self.status)
    }

    /// Asks it to drain and end, without waiting: for several workers that are to drain at the same time. Asking again
    /// moves the deadline.
    pub fn request_stop(&self, deadline: Instant) {
        self.stop.ask(deadline);
        self.bell.ring();
    }

    /// Asks it to drain until `deadline` at the latest, and waits for its end. Workers joined by rings are stopped
    /// from the first to the last, so that each can still pass on what it has.
    #[must_use]
    pub fn stop(mut self, deadline: Instant) -> StopReport {
        self.finish(deadline)
    }

    fn finish(&mut self, deadline: Instant) -> StopReport {
        self.request_stop(deadline);
        let patience = deadline.saturating_duration_since(Instant::now()).saturating_add(STOP_GRACE);
        let end = self.ended.recv_timeout(patience);
        let ended = !matches!(end, Err(RecvTimeoutError::Timeout));
        if let Some(thread) = self.thread.take()
            && ended
        {
            // The thread has nothing left to do but to return; its panics were caught and reported before.
            let _ = thread.join();
        }
        StopReport {
            name: self.status.name.clone(),
            drained: end.unwrap_or(false),
            ended,
            panics: self.status.counters.panics.get(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.finish(Instant::now() + DROP_DRAIN);
        }
    }
}
