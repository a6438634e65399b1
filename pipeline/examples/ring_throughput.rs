//! How many items a second one ring carries between two pinned workers, in bursts of 32.
//!
//! Run: `cargo run -p forebay-pipeline --release --example ring_throughput -- [CORE CORE [SECONDS]]`.
//! Prints the median and the best of windows of 50 ms, in millions of items per second and time-stamp cycles per item:
//! on a machine that is busy otherwise the best window says what the ring can do, the median what it got.

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use forebay_pipeline::{
    Batch, IdlePolicy, RingConsumer, RingProducer, Round, Task, Worker, WorkerOptions, cores, ring, tsc,
};

/// The usual receive burst.
const BURST: u64 = 32;
const RING_ITEMS: usize = 1024;
const WINDOW: Duration = Duration::from_millis(50);
const WINDOWS_PER_SECOND: u64 = 20;

struct Feed {
    out: RingProducer<u64>,
    next: u64,
    batch: Batch<u64>,
}

impl Task for Feed {
    fn round(&mut self) -> Round {
        if self.batch.is_empty() {
            self.batch.extend(self.next..self.next + BURST);
            self.next += BURST;
        }
        Round { items: self.out.push(&mut self.batch), backlog: self.batch.len() }
    }

    fn drain(&mut self) -> bool {
        self.out.push(&mut self.batch);
        self.batch.is_empty()
    }

    fn recover(&mut self) {
        self.batch.clear();
    }
}

struct Sum {
    input: RingConsumer<u64>,
    batch: Batch<u64>,
    sum: u64,
}

impl Task for Sum {
    fn round(&mut self) -> Round {
        let items = self.input.pop(&mut self.batch);
        self.sum = self.batch.drain(..).fold(self.sum, u64::wrapping_add);
        Round { items, backlog: 0 }
    }

    fn drain(&mut self) -> bool {
        self.round();
        std::hint::black_box(self.sum);
        self.input.is_empty()
    }

    fn recover(&mut self) {
        self.batch.clear();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let available = cores::available();
    let core = |index: usize| -> Option<usize> {
        let asked = arguments.get(index).and_then(|core| usize::try_from(*core).ok());
        asked.or_else(|| available.get(index % available.len().max(1)).copied())
    };
    let seconds = arguments.get(2).copied().unwrap_or(2).max(1);
    let (producer, consumer) = ring::<u64>("bench", RING_ITEMS);
    let status = producer.status();
    let second = Worker::spawn(WorkerOptions::new("sum", core(1), IdlePolicy::BusyPoll), move || Sum {
        input: consumer,
        batch: Batch::new(),
        sum: 0,
    })?;
    let first = Worker::spawn(WorkerOptions::new("feed", core(0), IdlePolicy::BusyPoll), move || Feed {
        out: producer,
        next: 0,
        batch: Batch::new(),
    })?;
    sleep(WINDOW);
    let mut rates: Vec<f64> = (0..seconds * WINDOWS_PER_SECOND)
        .map(|_| {
            let (start, before) = (Instant::now(), status.popped());
            sleep(WINDOW);
            (status.popped() - before) as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(1);
    let drained = first.stop(deadline).drained && second.stop(deadline).drained;
    rates.sort_by(f64::total_cmp);
    for (name, rate) in [("median", rates.get(rates.len() / 2)), ("best", rates.last())] {
        let rate = rate.copied().unwrap_or_default();
        println!("{name}: {:.1} million items/s, {:.2} cycles/item", rate / 1e6, tsc::hz() as f64 / rate);
    }
    println!(
        "cores {:?} and {:?}, drained: {drained}, lost: {}",
        core(0),
        core(1),
        status.pushed() - status.popped()
    );
    Ok(())
}
