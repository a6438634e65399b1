//! `forebay bench ring`: how many items a second the ring between two workers carries, each pinned to its core.
//!
//! The producer offers whole bursts and tries again with what did not fit; the consumer takes what there is and adds the
//! items up. Invariant: the sum proves that every item came through exactly once; otherwise there are no figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use forebay_pipeline::{
    Batch, IdlePolicy, RingConsumer, RingProducer, RingStatus, Round, Task, Worker, WorkerOptions, ring, tsc,
};
use serde_json::{Map, Value, json};

use crate::args::RingPlan;
use crate::cpu_time;
use crate::error::BenchError;
use crate::figures::Spread;
use crate::machine::Machine;
use crate::report::Table;

/// Names of the workers, and of their threads.
const PRODUCER: &str = "producer";
const CONSUMER: &str = "consumer";
/// Slots of the ring: 16 full batches, as between two packet workers.
const RING_ITEMS: usize = 1024;
const WARM_UP: Duration = Duration::from_millis(300);
/// The consumer needs microseconds for what the ring holds, and its core may be shared.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Offers the numbers 0, 1, 2, … in bursts.
struct Producer {
    out: RingProducer<u64>,
    burst: u64,
    next: u64,
    batch: Batch<u64>,
}

impl Task for Producer {
    fn round(&mut self) -> Round {
        if self.batch.is_empty() {
            self.batch.extend(self.next..self.next + self.burst);
            self.next += self.burst;
        }
        Round { items: self.out.push(&mut self.batch), backlog: self.batch.len(), ..Round::default() }
    }

    fn drain(&mut self) -> bool {
        self.out.push(&mut self.batch);
        self.batch.is_empty()
    }

    fn recover(&mut self) {
        self.batch.clear();
    }
}

/// Adds up what comes.
struct Consumer {
    input: RingConsumer<u64>,
    batch: Batch<u64>,
    sum: u64,
    /// Written by the consumer when it has drained, read by the harness after that.
    result: Arc<AtomicU64>,
}

impl Task for Consumer {
    fn round(&mut self) -> Round {
        let items = self.input.pop(&mut self.batch);
        self.sum = self.batch.drain(..).fold(self.sum, u64::wrapping_add);
        Round { items, ..Round::default() }
    }

    fn drain(&mut self) -> bool {
        self.round();
        self.result.store(self.sum, Ordering::Release);
        self.input.is_empty()
    }

    fn recover(&mut self) {
        self.batch.clear();
    }
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(plan: &RingPlan) -> Result<String, BenchError> {
    let machine = Machine::look();
    let runs = measure(plan)?;
    let rate = Spread::of(runs.iter().map(|run| run.items_per_second));
    // On a busy machine a short run may carry nothing: one of the two workers had no turn.
    let rates = runs.iter().map(|run| run.items_per_second).filter(|rate| *rate > 0.0);
    let cycles = Spread::of(rates.map(|rate| machine.tsc_hz() as f64 / rate));
    let shares: Option<Vec<f64>> = runs.iter().map(|run| run.core_share).collect();
    let share = shares.map(Spread::of);
    if plan.json {
        return Ok(to_json(plan, &machine, rate, cycles, share).to_string());
    }
    let mut table = Table::new(format!(
        "ring: bursts of {}, from core {} to core {}, {} runs of {} s",
        plan.burst,
        plan.producer_core,
        plan.consumer_core,
        plan.runs,
        plan.duration.as_secs_f64()
    ));
    table.row("items/s", rate, 0);
    table.row("cycles/item", cycles, 2);
    if let Some(share) = share {
        table.row("share of its core", share, 2);
        cpu_time::warning(share.min).iter().for_each(|warning| table.line(warning));
    }
    table.line(&machine.to_text());
    Ok(table.text)
}

fn to_json(plan: &RingPlan, machine: &Machine, rate: Spread, cycles: Spread, share: Option<Spread>) -> Value {
    let mut object = Map::new();
    rate.put(&mut object, "items_per_second", 0);
    cycles.put(&mut object, "cycles_per_item", 2);
    if let Some(share) = share {
        share.put(&mut object, "core_share", 3);
    }
    let settings = [
        ("benchmark", json!("ring")),
        ("burst", json!(plan.burst)),
        ("cores", json!([plan.producer_core, plan.consumer_core])),
        ("seconds", json!(plan.duration.as_secs_f64())),
        ("runs", json!(plan.runs)),
        ("machine", machine.to_json()),
    ];
    object.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(object)
}

struct Run {
    items_per_second: f64,
    /// Share of its core that the worker with the least had, where the kernel tells.
    core_share: Option<f64>,
}

fn measure(plan: &RingPlan) -> Result<Vec<Run>, BenchError> {
    let (producer, consumer) = ring::<u64>("bench", RING_ITEMS);
    let (status, result) = (producer.status(), Arc::new(AtomicU64::new(0)));
    let sum = Arc::clone(&result);
    let options = |name: &str, core| WorkerOptions::new(name, Some(core), IdlePolicy::BusyPoll);
    let second = Worker::spawn(options(CONSUMER, plan.consumer_core), move || Consumer {
        input: consumer,
        batch: Batch::new(),
        sum: 0,
        result: sum,
    })?;
    let burst = plan.burst as u64;
    let first = Worker::spawn(options(PRODUCER, plan.producer_core), move || Producer {
        out: producer,
        burst,
        next: 0,
        batch: Batch::new(),
    })?;
    sleep(WARM_UP);
    let runs: Vec<Run> = (0..plan.runs).map(|_| watch(&status, plan.duration)).collect();
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let drained = first.stop(deadline).drained && second.stop(deadline).drained;
    let (pushed, popped) = (status.pushed(), status.popped());
    let wrong = |what: String| Err(BenchError::Insane(what));
    if !drained || pushed != popped {
        return wrong(format!("{pushed} items went into the ring, {popped} came out"));
    }
    if result.load(Ordering::Acquire) != sum_below(popped) {
        return wrong(format!("the {popped} items that came out are not those that went in"));
    }
    if runs.iter().all(|run| run.items_per_second <= 0.0) {
        return wrong("no run carried an item (other threads have the cores: raise --seconds)".to_owned());
    }
    Ok(runs)
}

/// One run: how many items come out while the harness sleeps.
fn watch(status: &RingStatus, duration: Duration) -> Run {
    let accounts = || cpu_time::of_threads(std::process::id());
    let (threads, start, before) = (accounts(), tsc::now(), status.popped());
    sleep(duration);
    let (elapsed, items) = (tsc::now().saturating_sub(start), status.popped().saturating_sub(before));
    let elapsed_ns = tsc::to_ns(elapsed).max(1) as f64;
    let now = accounts();
    let share = |name| cpu_time::share(&threads, &now, name, elapsed_ns);
    Run {
        items_per_second: items as f64 * 1e9 / elapsed_ns,
        core_share: share(PRODUCER).zip(share(CONSUMER)).map(|(producer, consumer)| producer.min(consumer)),
    }
}

/// 0 + 1 + … + (count - 1), wrapping.
fn sum_below(count: u64) -> u64 {
    (u128::from(count) * u128::from(count.saturating_sub(1)) / 2) as u64
}

#[cfg(test)]
mod tests {
    use forebay_pipeline::cores;

    use super::*;

    #[test]
    fn sums_wrap() {
        assert_eq!((sum_below(0), sum_below(1), sum_below(5)), (0, 0, 10));
        // 2^79 - 2^39, of which 64 bits remain.
        assert_eq!(sum_below(1 << 40), 0_u64.wrapping_sub(1 << 39));
    }

    #[test]
    fn items_come_through() {
        let available = cores::available();
        let plan = RingPlan {
            burst: 32,
            producer_core: available[0],
            consumer_core: *available.last().unwrap(),
            duration: Duration::from_millis(100),
            // On a busy machine some runs carry nothing.
            runs: 5,
            json: true,
        };
        let json: Value = serde_json::from_str(&run(&plan).unwrap()).unwrap();
        assert!(json["items_per_second_max"].as_f64().unwrap() > 0.0, "{json}");
        assert!(json["cycles_per_item"].as_f64().unwrap() > 0.0, "{json}");
        assert_eq!(json["runs"], 5);
    }
}
