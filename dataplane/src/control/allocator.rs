//! The thread that moves cores between pipelines: samples what each has and needs, and does what the allocation decides.
//!
//! It runs where a host has more than one pipeline. A move takes some milliseconds at most, during which no packet is lost that
//! the devices' queues have room for, and none overtakes another of its flow (`crew/change.rs`).

use super::crew::demand::Sampler;
use super::host::Host;
use forebay_pipeline::allocate::{AllocationPolicy, Allocator, Move, SAMPLE_INTERVAL};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// The running thread. Stops when dropped.
pub struct AllocatorThread {
    /// Nothing is ever sent: its end is the word to stop.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AllocatorThread {
    /// Starts the thread, if there is anything for it to do.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(host: Arc<Host>) -> std::io::Result<AllocatorThread> {
        let pipelines = host.with_crew(|crew| crew.lines().len()).unwrap_or(0);
        if pipelines < 2 {
            return Ok(AllocatorThread { stop: None, thread: None });
        }
        let (stop, stopped) = channel::<()>();
        let policy = AllocationPolicy::default();
        let thread = std::thread::Builder::new().name("allocator".into()).spawn(move || {
            let started = Instant::now();
            let mut sampler = Sampler::default();
            let mut allocator = Allocator::new(policy, pipelines);
            let mut cores: Vec<usize> = Vec::new();
            while stopped.recv_timeout(SAMPLE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(demands) = host.with_crew(|crew| crew.sample(&mut sampler)) else { break };
                // What was changed by hand since the last look.
                for (pipeline, (demand, before)) in demands.iter().zip(&cores).enumerate() {
                    if demand.cores != *before {
                        allocator.resize(pipeline, demand.cores as isize - *before as isize);
                    }
                }
                cores = demands.iter().map(|demand| demand.cores).collect();
                if let Some(wanted) = allocator.decide(started.elapsed(), &demands) {
                    let made = make(&host, wanted);
                    let now = started.elapsed();
                    if made {
                        cores[wanted.from] -= 1;
                        cores[wanted.to] += 1;
                        allocator.made(wanted, now);
                    } else {
                        allocator.refused(wanted, now);
                    }
                }
            }
        })?;
        Ok(AllocatorThread { stop: Some(stop), thread: Some(thread) })
    }
}

/// Whether a core has moved.
fn make(host: &Host, Move { from, to }: Move) -> bool {
    let began = Instant::now();
    let moved = host.change_crew(|crew| {
        let names = [from, to].map(|line| crew.lines().get(line).map_or("", |line| &line.name).to_owned());
        (crew.move_core(from, to), names)
    });
    let Some((moved, [giver, taker])) = moved else { return false };
    match moved {
        Ok(Some(worker)) => {
            let took = began.elapsed();
            tracing::info!("pipeline {taker:?} got worker {worker:?} from {giver:?}, in {took:.1?}");
            true
        }
        Ok(None) => false,
        Err(error) => {
            tracing::warn!("pipeline {taker:?} gets no core from {giver:?}: {error}");
            false
        }
    }
}

impl Drop for AllocatorThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by itself; nothing is left to do about it here.
            let _ = thread.join();
        }
    }
}
