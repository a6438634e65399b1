//! What `forebay pipeline show` and `forebay top` show of the pipelines.
//!
//! The daemon counts totals; what happens now is the difference of two samples. Rates are taken over each worker's
//! own cycles, so that they are right however long the answers took.

use std::time::Duration;

use forebay_api::v1::{Conservation, GetPipelineResponse, Pipeline, Queue, Stage, Worker};
use forebay_pipeline::counters::{difference, quantile};
use serde::Serialize;

use super::stats::ConservationOut;

/// What is shown of the host's pipelines over an interval.
#[derive(Serialize)]
pub struct PipelineView<'a> {
    pub layout: &'a str,
    pub idle: &'a str,
    pub tsc_hz: u64,
    pub interval_ns: u64,
    pub pipelines: Vec<PipelineOut<'a>>,
    pub workers: Vec<WorkerView<'a>>,
}

#[derive(Serialize)]
pub struct PipelineOut<'a> {
    pub name: &'a str,
    pub priority: u32,
    pub cores: u32,
    pub min_cores: u32,
    pub cores_gained: u64,
    pub cores_lost: u64,
    /// Empty for the one that takes all that no other names.
    pub ports: &'a [String],
    /// Null where it shares the host's packet buffers.
    pub buffers: Option<u64>,
    pub buffers_in_use: Option<u64>,
}

#[derive(Serialize)]
pub struct WorkerView<'a> {
    pub name: &'a str,
    pub core: u32,
    pub pipeline: &'a str,
    pub receive_queues: u32,
    pub busy_percent: f64,
    pub asleep_percent: f64,
    pub rounds: u64,
    pub empty_rounds: u64,
    pub sleeps: u64,
    pub panics: u64,
    pub stages: Vec<StageView<'a>>,
    /// Of the stage that saw the most packets.
    pub packets_per_second: f64,
    /// Of the same stage; null where no packet passed, as the next two.
    pub packets_per_call: Option<f64>,
    pub path_cycles_per_packet: Option<f64>,
    pub io_cycles_per_packet: Option<f64>,
    pub queues: Vec<QueueView<'a>>,
    /// Totals since the worker's start, not of the interval.
    pub conservation: ConservationOut,
    #[serde(skip)]
    pub equation: Option<&'a Conservation>,
}

#[derive(Serialize)]
pub struct StageView<'a> {
    pub name: &'a str,
    pub io: bool,
    pub packets: u64,
    pub calls: u64,
    pub cycles: u64,
    pub packets_per_second: f64,
    pub cycles_per_packet: Option<f64>,
    pub packets_per_call: Option<f64>,
}

#[derive(Serialize)]
pub struct QueueView<'a> {
    pub name: &'a str,
    pub depth: u32,
    pub capacity: u32,
    /// What its reader found waiting when it took some, over the interval; null where it found nothing.
    pub depth_p50: Option<u64>,
    pub depth_p99: Option<u64>,
    pub depth_max: Option<u64>,
    pub refused: u64,
}

impl<'a> PipelineView<'a> {
    /// The difference of two samples, this far apart; without the first, the totals since the start.
    pub fn new(before: Option<(&GetPipelineResponse, Duration)>, after: &'a GetPipelineResponse) -> Self {
        let earlier = |worker: &Worker| {
            before.and_then(|(sample, _)| sample.workers.iter().find(|known| known.name == worker.name))
        };
        let workers: Vec<WorkerView<'a>> = after
            .workers
            .iter()
            .map(|worker| WorkerView::new(earlier(worker), worker, after.tsc_hz))
            .collect();
        let longest = after.workers.iter().map(|worker| worker.total_cycles).max().unwrap_or(0);
        let interval = match before {
            Some((_, elapsed)) => elapsed,
            None => Duration::from_secs_f64(share(longest, after.tsc_hz).unwrap_or(0.0)),
        };
        Self {
            layout: &after.layout,
            idle: &after.idle,
            tsc_hz: after.tsc_hz,
            interval_ns: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
            pipelines: after.pipelines.iter().map(PipelineOut::new).collect(),
            workers,
        }
    }
}

impl<'a> PipelineOut<'a> {
    fn new(pipeline: &'a Pipeline) -> Self {
        let has_own = pipeline.buffers > 0;
        Self {
            name: &pipeline.name,
            priority: pipeline.priority,
            cores: pipeline.cores,
            min_cores: pipeline.min_cores,
            cores_gained: pipeline.cores_gained,
            cores_lost: pipeline.cores_lost,
            ports: &pipeline.ports,
            buffers: has_own.then_some(pipeline.buffers),
            buffers_in_use: has_own.then_some(pipeline.buffers_in_use),
        }
    }
}

impl<'a> WorkerView<'a> {
    fn new(before: Option<&Worker>, after: &'a Worker, tsc_hz: u64) -> Self {
        // A worker that was replaced counts from zero again: then its totals are what there is.
        let before = before.filter(|before| before.total_cycles <= after.total_cycles);
        let since = |of: fn(&Worker) -> u64| of(after).saturating_sub(before.map_or(0, of));
        let total_cycles = since(|worker| worker.total_cycles);
        let percent = |cycles| rounded(share(cycles, total_cycles).unwrap_or(0.0) * 100.0);
        let seconds = share(total_cycles, tsc_hz).unwrap_or(0.0);
        let stages: Vec<StageView<'a>> = after
            .stages
            .iter()
            .map(|stage| {
                let known =
                    before.and_then(|before| before.stages.iter().find(|known| known.name == stage.name));
                StageView::new(known, stage, seconds)
            })
            .collect();
        let busiest = stages.iter().rev().max_by_key(|stage| stage.packets);
        Self {
            name: &after.name,
            core: after.core,
            pipeline: &after.pipeline,
            receive_queues: after.receive_queues,
            busy_percent: percent(since(|worker| worker.busy_cycles)),
            asleep_percent: percent(since(|worker| worker.asleep_cycles)),
            rounds: since(|worker| worker.rounds),
            empty_rounds: since(|worker| worker.empty_rounds),
            sleeps: since(|worker| worker.sleeps),
            panics: after.panics,
            packets_per_second: busiest.map_or(0.0, |stage| stage.packets_per_second),
            packets_per_call: busiest.and_then(|stage| stage.packets_per_call),
            path_cycles_per_packet: cycles_per_packet(stages.iter().filter(|stage| !stage.io)),
            io_cycles_per_packet: cycles_per_packet(stages.iter().filter(|stage| stage.io)),
            stages,
            conservation: ConservationOut::new(after.conservation.as_ref()),
            equation: after.conservation.as_ref(),
            queues: after
                .queues
                .iter()
                .map(|queue| {
                    QueueView::new(
                        before.and_then(|b| b.queues.iter().find(|known| known.name == queue.name)),
                        queue,
                    )
                })
                .collect(),
        }
    }
}

impl<'a> StageView<'a> {
    fn new(before: Option<&Stage>, after: &'a Stage, seconds: f64) -> Self {
        let since = |of: fn(&Stage) -> u64| of(after).saturating_sub(before.map_or(0, of));
        let (packets, calls, cycles) =
            (since(|stage| stage.packets), since(|stage| stage.calls), since(|stage| stage.cycles));
        Self {
            name: &after.name,
            io: after.io,
            packets,
            calls,
            cycles,
            packets_per_second: if seconds > 0.0 { rounded(float(packets) / seconds) } else { 0.0 },
            cycles_per_packet: share(cycles, packets).map(rounded),
            packets_per_call: share(packets, calls).map(rounded),
        }
    }
}

impl<'a> QueueView<'a> {
    fn new(before: Option<&Queue>, after: &'a Queue) -> Self {
        let known = before.map_or(&[][..], |before| &before.depth_histogram);
        let depths = difference(&after.depth_histogram, known);
        let was_read = depths.iter().any(|count| *count > 0);
        // A bucket's bound can be beyond what the ring holds.
        let depth = |q| was_read.then(|| quantile(&depths, q).min(u64::from(after.capacity)));
        Self {
            name: &after.name,
            depth: after.depth,
            capacity: after.capacity,
            depth_p50: depth(0.5),
            depth_p99: depth(0.99),
            depth_max: depth(1.0),
            refused: after.refused.saturating_sub(before.map_or(0, |before| before.refused)),
        }
    }
}

/// The cycles of all these stages over the packets of the stage that saw the most: later stages see fewer, because
/// packets are dropped or answered on the way.
fn cycles_per_packet<'s>(stages: impl Iterator<Item = &'s StageView<'s>>) -> Option<f64> {
    let (cycles, packets) = stages.fold((0_u64, 0), |(cycles, packets), stage| {
        (cycles.saturating_add(stage.cycles), packets.max(stage.packets))
    });
    share(cycles, packets).map(rounded)
}

/// One number per another; none where that is zero.
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| float(part) / float(whole))
}

#[allow(clippy::cast_precision_loss)] // Shown to a few digits.
fn float(number: u64) -> f64 {
    number as f64
}

/// To hundredths: more digits would be noise.
pub fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What was counted `scale` seconds after the start.
    pub fn sample(scale: u64) -> GetPipelineResponse {
        let stage = |name: &str, io, packets, cycles| Stage {
            name: name.into(),
            io,
            packets: packets * scale,
            calls: 10 * scale,
            cycles: cycles * scale,
        };
        let worker = Worker {
            name: "worker-1".into(),
            pipeline: "main".into(),
            core: 1,
            total_cycles: 1_000_000 * scale,
            busy_cycles: 250_000 * scale,
            asleep_cycles: 500_000 * scale,
            stages: vec![
                stage("receive", true, 100, 5_000),
                stage("admit", false, 100, 1_000),
                stage("classify", false, 90, 4_000),
                stage("transmit", true, 0, 0),
            ],
            queues: vec![Queue {
                name: "classify".into(),
                depth: 3,
                capacity: 1024,
                refused: scale,
                // 99 times 2 packets, once 1000.
                depth_histogram: [&[0, 0, 99 * scale][..], &[0; 60], &[scale], &[0; 241]].concat(),
            }],
            ..Default::default()
        };
        GetPipelineResponse {
            layout: "fused".into(),
            idle: "last-packet".into(),
            tsc_hz: 1_000_000,
            workers: vec![worker],
            pipelines: vec![Pipeline { name: "main".into(), cores: 1, ..Default::default() }],
        }
    }

    #[test]
    fn shows_the_difference_of_two_samples() {
        let (before, after) = (sample(1), sample(3));
        let view = PipelineView::new(Some((&before, Duration::from_secs(2))), &after);
        let worker = &view.workers[0];
        assert_eq!(
            (view.interval_ns, worker.busy_percent, worker.asleep_percent),
            (2_000_000_000, 25.0, 50.0)
        );
        let receive = &worker.stages[0];
        assert_eq!((receive.packets, receive.packets_per_second), (200, 100.0));
        assert_eq!((receive.cycles_per_packet, receive.packets_per_call), (Some(50.0), Some(10.0)));
        assert_eq!((worker.packets_per_second, worker.packets_per_call), (100.0, Some(10.0)));
        assert_eq!((worker.path_cycles_per_packet, worker.io_cycles_per_packet), (Some(50.0), Some(50.0)));
        assert_eq!((worker.stages[3].cycles_per_packet, worker.queues[0].refused), (None, 2));
        let queue = &worker.queues[0];
        assert_eq!((queue.depth_p50, queue.depth_p99, queue.depth_max), (Some(2), Some(2), Some(1023)));
    }

    #[test]
    fn totals_and_restarted_workers_count_from_zero() {
        let after = sample(4);
        let totals = PipelineView::new(None, &after);
        assert_eq!((totals.interval_ns, totals.workers[0].stages[0].packets), (4_000_000_000, 400));
        let restarted = PipelineView::new(Some((&after, Duration::from_secs(1))), &after);
        assert_eq!(restarted.workers[0].stages[0].packets, 0);
        assert_eq!(restarted.workers[0].queues[0].depth_p50, None, "nobody read");
        let (before, after) = (sample(4), sample(1));
        let view = PipelineView::new(Some((&before, Duration::from_secs(1))), &after);
        assert_eq!(view.workers[0].stages[0].packets, 100);
    }
}
