//! What the pipelines have and need, as samples of their workers' counters.

use super::{Crew, Kind, Member};
use forebay_pipeline::allocate::Demand;
use std::collections::HashMap;

/// What the counters said at the last sample.
#[derive(Default)]
pub struct Sampler {
    /// By the worker's number: cycles in all, busy ones.
    cycles: HashMap<usize, (u64, u64)>,
    /// By the numbers of both ends: what found no room.
    refused: HashMap<(usize, usize), u64>,
}

impl Crew {
    /// The demand of each pipeline since the last sample.
    pub fn sample(&self, sampler: &mut Sampler) -> Vec<Demand> {
        let mut cycles = HashMap::new();
        let mut busy_of = |number: usize, total: u64, busy: u64| {
            let before = sampler.cycles.get(&number).copied().unwrap_or_default();
            cycles.insert(number, (total, busy));
            // A worker of the same number may have come in another's place.
            let (total, busy) = (total.saturating_sub(before.0), busy.saturating_sub(before.1));
            if total == 0 { 0.0 } else { (busy as f64 / total as f64).min(1.0) }
        };
        let mut refused = HashMap::new();
        let demands = self.lines.iter().enumerate().map(|(index, line)| {
            let mut shares = Vec::new();
            let mut shared = Vec::new();
            for member in self.members_of(index) {
                let counters = member.worker.counters();
                let busy = busy_of(member.number, counters.total_cycles.get(), counters.busy_cycles.get());
                if self.serves_others(member) { shared.push(busy) } else { shares.push(busy) }
            }
            let cores = shares.len() + shared.len();
            if shares.is_empty() {
                // Whose work it is cannot be told: a pipeline is judged by the workers that are its own, if it has any.
                shares = shared;
            }
            let mut backlog = false;
            for link in self.links.iter().filter(|link| link.is_inner) {
                if self.members_of(index).all(|member| member.number != link.to) {
                    continue;
                }
                let key = (link.from, link.to);
                let now = link.status.refused();
                backlog |= sampler.refused.get(&key).is_some_and(|before| now > *before);
                backlog |= link.status.depth() * 4 >= link.status.capacity() * 3;
                refused.insert(key, now);
            }
            Demand {
                priority: line.priority,
                cores,
                // Each group of several keeps one.
                min_cores: if line.groups.len() > 1 {
                    line.min_cores.max(line.groups.len())
                } else {
                    line.min_cores
                },
                max_cores: self.most_cores(index),
                peak: shares.iter().copied().fold(0.0, f64::max),
                mean: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
                backlog,
            }
        });
        let demands = demands.collect();
        sampler.cycles = cycles;
        sampler.refused = refused;
        demands
    }

    /// Whether a worker also polls queues of a pipeline that has lent its last core.
    fn serves_others(&self, member: &Member) -> bool {
        let others = self.queues.iter().filter(|queues| queues.line != member.line);
        others.flat_map(|queues| &queues.receive).any(|(_, holder)| *holder == member.number)
    }

    /// The most cores that a pipeline can use: where its workers receive, one for each queue; where they get their flows from others,
    /// one for each share of these.
    fn most_cores(&self, line: usize) -> usize {
        let here = self.members_of(line).count();
        let last = self.lines[line].groups.len() - 1;
        if self.lines[line].kind(last) != Kind::Fused {
            return here;
        }
        if last > 0 {
            return here + crate::stages::spread::BUCKETS;
        }
        let queues =
            self.queues.iter().filter(|queues| queues.line == line).map(|queues| queues.receive.len());
        queues.sum::<usize>().max(here)
    }
}
