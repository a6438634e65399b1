//! The daemon's counters at two moments, and the figures that lie between them.
//!
//! Counters of one worker are read at nearly the same moment, and that worker's own clock tells how long it was; so
//! rates do not depend on how long an answer took. Counters of different ports are compared with the allowance that
//! the daemon was working while it was read.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use forebay_api::v1;
use forebay_pipeline::counters::{difference, quantile};

use crate::cpu_time;
use crate::daemon::Daemon;
use crate::error::BenchError;

/// The quantiles of latency that are reported, and their names.
pub(crate) const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];

/// The counters at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    stats: v1::GetStatsResponse,
    pipeline: v1::GetPipelineResponse,
    /// How long the ports' counters took to come: they are from within this time.
    stats_took: Duration,
    /// Nanoseconds that each thread of the daemon has run for.
    cpu_time: HashMap<String, u64>,
    /// Instructions of all workers so far, where the machine counts them.
    instructions: Option<u64>,
}

/// The cost of one stage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StageCost {
    pub name: String,
    /// Receives or transmits.
    pub io: bool,
    pub cycles_per_packet: f64,
}

/// What one worker did in a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkerRun {
    pub core: u32,
    pub packets_per_second: f64,
    pub cycles_per_packet: f64,
    pub latency_ns: [u64; 4],
}

/// The figures of one run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub packets_per_second: f64,
    /// Cycles of the stages between receive and transmit.
    pub path_cycles_per_packet: f64,
    /// Cycles of receive and transmit.
    pub io_cycles_per_packet: f64,
    /// All cycles of the workers that had packets, whatever they went into.
    pub worker_cycles_per_packet: f64,
    pub packets_per_call: f64,
    /// Share of its core that the worker with the least had, where the kernel tells.
    pub core_share: Option<f64>,
    /// Each worker that had packets, in the order of their cores.
    pub workers: Vec<WorkerRun>,
    /// Instructions of the workers, where the machine counts them.
    pub instructions_per_packet: Option<f64>,
    /// In the order of the path.
    pub stages: Vec<StageCost>,
    /// In the order of [`QUANTILES`]; upper bounds, at most an eighth too high.
    pub latency_ns: [u64; 4],
    /// Packets that were dropped, by port and reason; only what is not zero.
    pub lost: BTreeMap<String, u64>,
    /// Packets received.
    pub packets: u64,
}

impl Run {
    /// Packets dropped, whatever the reason.
    pub(crate) fn lost_packets(&self) -> u64 {
        self.lost.values().sum()
    }
}

impl Sample {
    /// Asks the daemon.
    pub(crate) async fn take(daemon: &Daemon) -> Result<Self, BenchError> {
        let asked = Instant::now();
        let stats = daemon.stats().await?;
        let stats_took = asked.elapsed();
        let pipeline = daemon.pipeline().await?;
        let instructions = daemon.instructions();
        Ok(Self { stats, pipeline, stats_took, cpu_time: daemon.cpu_time(), instructions })
    }

    /// The figures between an older sample and this one, for packets from the ports `sources` to the ports `sinks`.
    ///
    /// # Errors
    /// No packet came, or some went uncounted.
    pub(crate) fn since(
        &self,
        older: &Self,
        (sources, sinks): (&[String], &[String]),
    ) -> Result<Run, BenchError> {
        let work = Work::between(&older.pipeline, &self.pipeline);
        if work.packets == 0 || work.cycles == 0 {
            return Err(BenchError::Insane(format!("port {} received no packet", listed(sources))));
        }
        let run = Run {
            packets_per_second: work.packets_per_second,
            path_cycles_per_packet: work.cycles_of(false) / work.packets as f64,
            io_cycles_per_packet: work.cycles_of(true) / work.packets as f64,
            worker_cycles_per_packet: work.cycles as f64 / work.packets as f64,
            packets_per_call: work.packets as f64 / work.calls.max(1) as f64,
            core_share: self.core_share(older, &work),
            instructions_per_packet: (self.instructions.zip(older.instructions))
                .map(|(new, old)| new.saturating_sub(old) as f64 / work.packets as f64),
            workers: work.runs.clone(),
            stages: work.costs(),
            latency_ns: QUANTILES.map(|(_, share)| quantile(&work.latency, share)),
            lost: lost(&older.stats, &self.stats),
            packets: work.packets,
        };
        let gap = (older.stats_took + self.stats_took).as_secs_f64() * run.packets_per_second;
        balance(&older.stats, &self.stats, (sources, sinks), gap.ceil() as u64)?;
        Ok(run)
    }

    fn core_share(&self, older: &Self, work: &Work) -> Option<f64> {
        let share = |(worker, elapsed_ns): &(String, f64)| {
            cpu_time::share(&older.cpu_time, &self.cpu_time, worker, *elapsed_ns)
        };
        work.workers.iter().filter_map(share).min_by(f64::total_cmp)
    }
}

/// What the workers did between two moments.
#[derive(Debug, Default)]
struct Work {
    packets: u64,
    /// Bursts received.
    calls: u64,
    cycles: u64,
    packets_per_second: f64,
    /// The workers that had packets, and the nanoseconds that passed for each.
    workers: Vec<(String, f64)>,
    runs: Vec<WorkerRun>,
    stages: Vec<StageSum>,
    latency: Vec<u64>,
}

#[derive(Debug)]
struct StageSum {
    name: String,
    io: bool,
    packets: u64,
    cycles: u64,
}

impl Work {
    fn between(older: &v1::GetPipelineResponse, newer: &v1::GetPipelineResponse) -> Self {
        let mut work = Self::default();
        for worker in &newer.workers {
            let Some(before) = older.workers.iter().find(|before| before.name == worker.name) else {
                continue;
            };
            work.add(before, worker, newer.tsc_hz);
        }
        work
    }

    fn add(&mut self, before: &v1::Worker, worker: &v1::Worker, tsc_hz: u64) {
        let stages = worker.stages.iter().zip(&before.stages).filter(|(new, old)| new.name == old.name);
        let mut received = 0;
        for (new, old) in stages {
            let packets = new.packets.saturating_sub(old.packets);
            let cycles = new.cycles.saturating_sub(old.cycles);
            if new.name == "receive" {
                received += packets;
                self.calls += new.calls.saturating_sub(old.calls);
            }
            self.add_stage(&new.name, new.io, packets, cycles);
        }
        let cycles = worker.total_cycles.saturating_sub(before.total_cycles);
        let latency = difference(&worker.burst_ns_histogram, &before.burst_ns_histogram);
        if received > 0 && cycles > 0 {
            let packets_per_second = received as f64 * tsc_hz as f64 / cycles as f64;
            self.packets += received;
            self.cycles += cycles;
            self.packets_per_second += packets_per_second;
            self.workers.push((worker.name.clone(), cycles as f64 * 1e9 / tsc_hz as f64));
            self.runs.push(WorkerRun {
                core: worker.core,
                packets_per_second,
                cycles_per_packet: cycles as f64 / received as f64,
                latency_ns: QUANTILES.map(|(_, share)| quantile(&latency, share)),
            });
        }
        self.latency.resize(self.latency.len().max(latency.len()), 0);
        self.latency.iter_mut().zip(latency).for_each(|(sum, count)| *sum += count);
    }

    fn add_stage(&mut self, name: &str, io: bool, packets: u64, cycles: u64) {
        match self.stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.packets += packets;
                stage.cycles += cycles;
            }
            None => self.stages.push(StageSum { name: name.to_owned(), io, packets, cycles }),
        }
    }

    fn cycles_of(&self, io: bool) -> f64 {
        self.stages.iter().filter(|stage| stage.io == io).map(|stage| stage.cycles as f64).sum()
    }

    fn costs(&self) -> Vec<StageCost> {
        let cost = |stage: &StageSum| StageCost {
            name: stage.name.clone(),
            io: stage.io,
            cycles_per_packet: stage.cycles as f64 / stage.packets.max(1) as f64,
        };
        self.stages.iter().map(cost).collect()
    }
}

fn counters<'a>(stats: &'a v1::GetStatsResponse, port: &str) -> Option<&'a v1::PortCounters> {
    stats.ports.iter().find(|other| other.name == port)?.counters.as_ref()
}

/// Drops of every port between two moments.
fn lost(older: &v1::GetStatsResponse, newer: &v1::GetStatsResponse) -> BTreeMap<String, u64> {
    let mut lost = BTreeMap::new();
    for port in &newer.ports {
        let before = counters(older, &port.name);
        for (reason, count) in port.counters.iter().flat_map(|counters| &counters.drops) {
            let before = before.and_then(|before| before.drops.get(reason)).copied().unwrap_or(0);
            if *count > before {
                lost.insert(format!("{} {reason}", port.name), count - before);
            }
        }
    }
    lost
}

/// What some ports received, others sent or somebody dropped, but for what was on its way: `gap` packets that passed
/// while the counters were read, and what the workers can hold.
fn balance(
    older: &v1::GetStatsResponse,
    newer: &v1::GetStatsResponse,
    (sources, sinks): (&[String], &[String]),
    gap: u64,
) -> Result<(), BenchError> {
    let delta = |ports: &[String], count: fn(&v1::PortCounters) -> u64| {
        ports.iter().try_fold(0_u64, |sum, port| {
            let (Some(new), Some(old)) = (counters(newer, port), counters(older, port)) else {
                return Err(BenchError::Insane(format!("the daemon has no port \"{port}\"")));
            };
            Ok(sum + count(new).saturating_sub(count(old)))
        })
    };
    let received = delta(sources, |counters| counters.rx_packets)?;
    let sent = delta(sinks, |counters| counters.tx_packets)?;
    let dropped: u64 = lost(older, newer).values().sum();
    let Some(conservation) = &newer.conservation else {
        return Err(BenchError::Insane("the daemon tells nothing of conservation".to_owned()));
    };
    let allowed = conservation.in_flight_bound_packets.saturating_add(gap);
    let away = received.abs_diff(sent.saturating_add(dropped));
    if away > allowed {
        return Err(BenchError::Insane(format!(
            "port {} received {received} packets, port {} sent {sent}, {dropped} were dropped: {away} are unaccounted \
             for, and only {allowed} can be on their way",
            listed(sources),
            listed(sinks)
        )));
    }
    Ok(())
}

fn listed(ports: &[String]) -> String {
    ports.iter().map(|port| format!("\"{port}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The figures of a run in which each packet took so long.
    pub(crate) fn run_of(latency_ns: u64) -> Run {
        Run { latency_ns: [latency_ns; 4], ..since(&sample(3200, 3200, 0), &sample(320, 320, 0)).unwrap() }
    }

    fn stage(name: &str, io: bool, packets: u64, cycles: u64) -> v1::Stage {
        v1::Stage { name: name.to_owned(), io, packets, calls: packets / 32, cycles }
    }

    fn pipeline(packets: u64) -> v1::GetPipelineResponse {
        let mut histogram = vec![0; 100];
        histogram[5] = packets;
        let worker = v1::Worker {
            name: "worker0".to_owned(),
            total_cycles: 100 * packets,
            stages: vec![
                stage("receive", true, packets, 20 * packets),
                stage("admit", false, packets, 10 * packets),
                stage("dispatch", false, packets, 5 * packets),
                stage("transmit", true, packets, 15 * packets),
            ],
            burst_ns_histogram: histogram,
            ..v1::Worker::default()
        };
        v1::GetPipelineResponse {
            tsc_hz: 1_000_000,
            workers: vec![worker],
            ..v1::GetPipelineResponse::default()
        }
    }

    fn stats(received: u64, sent: u64, dropped: u64) -> v1::GetStatsResponse {
        let port = |name: &str, rx_packets, tx_packets, dropped| v1::PortStats {
            name: name.to_owned(),
            counters: Some(v1::PortCounters {
                rx_packets,
                tx_packets,
                drops: [("no_rule".to_owned(), dropped), ("tx_full".to_owned(), 0)].into(),
                ..v1::PortCounters::default()
            }),
            ..v1::PortStats::default()
        };
        let conservation = v1::Conservation { in_flight_bound_packets: 64, ..v1::Conservation::default() };
        v1::GetStatsResponse {
            ports: vec![port("vm1", received, 0, dropped), port("uplink0", 0, sent, 0)],
            conservation: Some(conservation),
            ..v1::GetStatsResponse::default()
        }
    }

    fn sample(packets: u64, sent: u64, dropped: u64) -> Sample {
        // 100 cycles a packet at 1 MHz are 100 us, of which the worker ran for 40.
        let cpu_time = HashMap::from([("worker0".to_owned(), packets * 40_000), ("other".to_owned(), 7)]);
        let (stats, pipeline) = (stats(packets, sent, dropped), pipeline(packets));
        Sample { stats, pipeline, stats_took: Duration::ZERO, cpu_time, instructions: Some(7 * packets) }
    }

    fn since(newer: &Sample, older: &Sample) -> Result<Run, BenchError> {
        newer.since(older, (&["vm1".to_owned()], &["uplink0".to_owned()]))
    }

    #[test]
    fn figures_are_differences() {
        let run = since(&sample(3200, 3200, 0), &sample(320, 320, 0)).unwrap();
        assert_eq!(run.packets, 2880);
        assert!((run.packets_per_second - 10_000.0).abs() < 1e-6, "100 cycles a packet at 1 MHz");
        assert!((run.path_cycles_per_packet - 15.0).abs() < 1e-9);
        assert!((run.io_cycles_per_packet - 35.0).abs() < 1e-9);
        assert!((run.worker_cycles_per_packet - 100.0).abs() < 1e-9);
        assert!((run.packets_per_call - 32.0).abs() < 1e-9);
        assert!(run.core_share.is_some_and(|share| (share - 0.4).abs() < 1e-9), "{:?}", run.core_share);
        assert_eq!(run.latency_ns, [5; 4]);
        assert_eq!(run.instructions_per_packet, Some(7.0));
        assert_eq!((run.workers.len(), run.workers[0].latency_ns), (1, [5; 4]));
        assert!((run.workers[0].packets_per_second - run.packets_per_second).abs() < 1e-6);
        assert_eq!(run.lost_packets(), 0);
        let names: Vec<_> = run.stages.iter().map(|stage| (stage.name.as_str(), stage.io)).collect();
        assert_eq!(names, [("receive", true), ("admit", false), ("dispatch", false), ("transmit", true)]);
    }

    #[test]
    fn drops_are_shown_with_port_and_reason() {
        let run = since(&sample(3200, 3000, 200), &sample(320, 320, 0)).unwrap();
        assert_eq!(run.lost_packets(), 200);
        assert_eq!(run.lost, [("vm1 no_rule".to_owned(), 200)].into());
    }

    #[test]
    fn packets_that_go_uncounted_are_an_error() {
        assert!(since(&sample(3200, 3200 - 64, 0), &sample(320, 320, 0)).is_ok());
        let error = since(&sample(3200, 3000, 0), &sample(320, 320, 0)).unwrap_err().to_string();
        assert!(error.contains("200 are unaccounted for, and only 64 can be on their way"), "{error}");
        let error = since(&sample(3200, 3400, 0), &sample(320, 320, 0)).unwrap_err().to_string();
        assert!(error.contains("200 are unaccounted for"), "{error}");
        // While the counters are read, packets pass: 20 ms at 10,000 a second are 200.
        let slow = Sample { stats_took: Duration::from_millis(20), ..sample(3200, 3000, 0) };
        assert!(since(&slow, &sample(320, 320, 0)).is_ok());
        let error = since(&sample(320, 320, 0), &sample(320, 320, 0)).unwrap_err().to_string();
        assert!(error.contains("port \"vm1\" received no packet"), "{error}");
        let error =
            sample(3200, 3200, 0).since(&sample(320, 320, 0), (&["vm1".to_owned()], &["vm2".to_owned()]));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no port \"vm2\""), "{error}");
    }

    #[test]
    fn workers_without_packets_do_not_count() {
        let with_idle = |packets| {
            let mut sample = sample(packets, packets, 0);
            let idle = v1::Worker {
                name: "worker1".to_owned(),
                total_cycles: 100 * packets,
                ..v1::Worker::default()
            };
            sample.pipeline.workers.push(idle);
            sample
        };
        let run = since(&with_idle(3200), &with_idle(320)).unwrap();
        assert!((run.worker_cycles_per_packet - 100.0).abs() < 1e-9);
    }
}
