//! Workers: pinning, panics, counters, stopping.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use forebay_pipeline::{
    IdlePolicy, Phase, Round, Task, Worker, WorkerError, WorkerEvent, WorkerOptions, cores,
};

const NAP: IdlePolicy = IdlePolicy::LastItem { max_added_latency: Duration::from_micros(100) };

/// A task made of closures; what is not given does nothing.
struct Scripted {
    on_start: Box<dyn FnMut() + Send>,
    on_round: Box<dyn FnMut(u64) -> Round + Send>,
    on_drain: Box<dyn FnMut() -> bool + Send>,
    on_recover: Box<dyn FnMut() + Send>,
    rounds: u64,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            on_start: Box::new(|| {}),
            on_round: Box::new(|_| Round::default()),
            on_drain: Box::new(|| true),
            on_recover: Box::new(|| {}),
            rounds: 0,
        }
    }
}

impl Task for Scripted {
    fn start(&mut self) {
        (self.on_start)();
    }

    fn round(&mut self) -> Round {
        self.rounds += 1;
        (self.on_round)(self.rounds)
    }

    fn drain(&mut self) -> bool {
        (self.on_drain)()
    }

    fn recover(&mut self) {
        (self.on_recover)();
    }
}

fn options(name: &str) -> WorkerOptions {
    WorkerOptions::new(name, None, NAP)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "nothing happens any more");
        thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn is_named_pinned_and_started_before_spawn_returns() {
    let core = *cores::available().last().unwrap();
    let (tell, told) = sync_channel(1);
    let worker = Worker::spawn(WorkerOptions::new("pinned", Some(core), NAP), move || Scripted {
        on_start: Box::new(move || {
            let cores: Vec<usize> =
                core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
            tell.send((thread::current().name().map(str::to_owned), cores)).unwrap();
        }),
        ..Scripted::default()
    })
    .unwrap();
    assert_eq!(told.try_recv(), Ok((Some("pinned".to_owned()), vec![core])));
    assert_eq!((worker.name(), worker.core()), ("pinned", Some(core)));
    assert!(worker.stop(soon()).ended);
}

#[test]
fn a_core_that_is_not_there_is_named() {
    for core in [1023, 5000] {
        let options = WorkerOptions::new("w9", Some(core), NAP);
        let error = Worker::spawn(options, Scripted::default).unwrap_err();
        let available = cores::format(&cores::available());
        assert_eq!(
            error.to_string(),
            format!(
                "worker \"w9\": cannot be pinned to core {core} (available: {available}; change `cores`, or the cpuset of this process)"
            )
        );
    }
}

#[test]
fn a_task_that_panics_while_starting_is_an_error() {
    let make: fn() -> Scripted = || panic!("no memory pool");
    let error = Worker::spawn(options("w0"), make).unwrap_err();
    assert_eq!(error.to_string(), "worker \"w0\": its task panicked while starting: no memory pool");
    let starting = || Scripted { on_start: Box::new(|| panic!("no queue")), ..Scripted::default() };
    assert!(matches!(Worker::spawn(options("w0"), starting), Err(WorkerError::Start { .. })));
    assert!(matches!(Worker::spawn(options("w\0"), Scripted::default), Err(WorkerError::Name { .. })));
}

#[test]
fn counts_rounds_and_time() {
    let worker = Worker::spawn(options("w0"), || Scripted {
        on_round: Box::new(|round| Round { items: usize::from(round <= 10), ..Round::default() }),
        ..Scripted::default()
    })
    .unwrap();
    wait_until(|| worker.counters().asleep_cycles.get() > 0 && worker.counters().rounds.get() > 200);
    let before = worker.last_round_at();
    wait_until(|| worker.last_round_at() > before);
    let status = worker.status();
    assert!(worker.stop(soon()).drained);
    let counters = &status.counters;
    assert_eq!(counters.rounds.get() - counters.empty_rounds.get(), 10);
    assert!(counters.busy_cycles.get() > 0);
    let parts = counters.busy_cycles.get() + counters.asleep_cycles.get();
    assert!(parts <= counters.total_cycles.get(), "busy, asleep and polling make up the whole");
    assert_eq!(counters.panics.get(), 0);
}

#[test]
fn a_panic_is_reported_recovered_from_and_leaves_others_alone() {
    let (events, received) = sync_channel(16);
    let recovered = Arc::new(AtomicU64::new(0));
    let recoveries = Arc::clone(&recovered);
    let core = cores::available()[0];
    let bad =
        Worker::spawn(WorkerOptions::new("bad", Some(core), NAP).with_events(events), move || Scripted {
            on_round: Box::new(|round| {
                assert!(round != 5, "packet {round} is odd");
                Round::default()
            }),
            on_recover: Box::new(move || {
                recoveries.fetch_add(1, Ordering::Relaxed);
            }),
            ..Scripted::default()
        })
        .unwrap();
    let good = Worker::spawn(options("good"), Scripted::default).unwrap();
    wait_until(|| bad.counters().rounds.get() > 20 && good.counters().rounds.get() > 20);
    let WorkerEvent::Panicked { worker, core: at, phase, message, count } = received.recv().unwrap();
    assert_eq!(
        (worker.as_str(), at, phase, message.as_str(), count),
        ("bad", Some(core), Phase::Round, "packet 5 is odd", 1)
    );
    let report = bad.stop(soon());
    assert!(report.drained && report.ended && report.panics == 1, "{report:?}");
    assert_eq!(recovered.load(Ordering::Relaxed), 1);
    assert_eq!(good.stop(soon()).panics, 0);
}

#[test]
fn goes_on_when_every_call_panics() {
    // Room for one event only: the worker must not wait for anybody to read it.
    let (events, received) = sync_channel(1);
    let worker = Worker::spawn(options("bad").with_events(events), || Scripted {
        on_round: Box::new(|_| panic!("round")),
        on_recover: Box::new(|| panic!("recover")),
        on_drain: Box::new(|| panic!("drain")),
        ..Scripted::default()
    })
    .unwrap();
    wait_until(|| worker.counters().panics.get() >= 6);
    wait_until(|| worker.counters().asleep_cycles.get() > 0);
    let report = worker.stop(Instant::now() + Duration::from_millis(50));
    assert!(!report.drained && report.ended && report.panics >= 6, "{report:?}");
    let WorkerEvent::Panicked { phase, count, .. } = received.recv().unwrap();
    assert_eq!((phase, count), (Phase::Round, 1));
    assert!(received.recv().is_err(), "the channel was full, then closed");
}

#[test]
fn drains_until_nothing_is_left() {
    let mut left = 100;
    let worker = Worker::spawn(options("w0"), move || Scripted {
        on_drain: Box::new(move || {
            left -= 1;
            left == 0
        }),
        ..Scripted::default()
    })
    .unwrap();
    assert!(worker.stop(soon()).drained);
}

#[test]
fn gives_up_draining_at_the_deadline() {
    let worker =
        Worker::spawn(options("w0"), || Scripted { on_drain: Box::new(|| false), ..Scripted::default() })
            .unwrap();
    worker.request_stop(soon());
    let report = worker.stop(Instant::now() + Duration::from_millis(20));
    assert!(!report.drained && report.ended, "the later, nearer deadline counts: {report:?}");
}

#[test]
fn a_task_that_hangs_is_left_behind() {
    let (release, hangs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (released, hanging) = (Arc::clone(&release), Arc::clone(&hangs));
    let worker = Worker::spawn(options("stuck"), move || Scripted {
        on_round: Box::new(move |_| {
            hanging.store(true, Ordering::Release);
            while !released.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            Round::default()
        }),
        ..Scripted::default()
    })
    .unwrap();
    wait_until(|| hangs.load(Ordering::Acquire));
    let report = worker.stop(Instant::now());
    assert!(!report.drained && !report.ended, "{report:?}");
    release.store(true, Ordering::Release);
}

#[test]
fn a_dropped_worker_stops_and_drops_its_task_on_its_thread() {
    struct TellsThread(std::sync::mpsc::SyncSender<Option<String>>);
    impl Drop for TellsThread {
        fn drop(&mut self) {
            self.0.send(thread::current().name().map(str::to_owned)).unwrap();
        }
    }
    let (tell, told) = sync_channel(1);
    let worker = Worker::spawn(options("dropped"), move || {
        let tells = TellsThread(tell);
        Scripted {
            on_round: Box::new(move |_| {
                let _ = &tells;
                Round::default()
            }),
            ..Scripted::default()
        }
    })
    .unwrap();
    drop(worker);
    assert_eq!(told.recv(), Ok(Some("dropped".to_owned())));
}
