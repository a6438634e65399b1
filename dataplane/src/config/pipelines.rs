//! The pipelines of a host.

use super::model::{Layout, MAIN_PIPELINE, PathStage, Pipeline, StageGroup, WhenFull, Workers};

pub(super) const WHEN_FULL_DEFAULT: WhenFull = WhenFull::Drop;

/// 16 bursts: some 100 us of the slower stage's work.
pub(super) const RING_PACKETS_DEFAULT: usize = 1024;

/// The one pipeline of a file that declares none: what `workers.layout` says, on the cores of `[workers]`.
pub(super) fn main(workers: &Workers) -> Pipeline {
    // Two cores at least where the layout is split: neither part is empty.
    let groups = match (workers.layout, workers.cores.split_at(workers.cores.len() / 2)) {
        (Layout::Fused, _) => vec![group(&PathStage::PATH, &workers.cores)],
        (Layout::Split, (front, back)) => {
            vec![
                group(&[PathStage::Receive, PathStage::Classify], front),
                group(&[PathStage::Transform], back),
            ]
        }
    };
    Pipeline { name: MAIN_PIPELINE.into(), priority: 0, ports: None, min_cores: 1, memory_mib: None, groups }
}

fn group(stages: &[PathStage], cores: &[usize]) -> StageGroup {
    StageGroup {
        stages: stages.to_vec(),
        cores: cores.to_vec(),
        when_full: WHEN_FULL_DEFAULT,
        ring_packets: RING_PACKETS_DEFAULT,
    }
}
