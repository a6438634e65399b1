//! `forebay bench update`: what changes of rules cost, under full load.
//!
//! A daemon encapsulates as fast as it can all the time. Its table is loaded, then every rule is replaced in one
//! transaction, then single rules are changed at a rate, then as fast as the daemon acknowledges them. Beside each stands
//! what happened to the packets meanwhile: the longest time that one of them spent in the daemon, next to that of a time in
//! which nothing changed, and how many were lost.

use std::time::{Duration, Instant};

use forebay_api::v1;

use crate::changes::{self, Changes, MOST_STREAMED, Turns};
use crate::cpu_time;
use crate::daemon::{Daemon, Messages, Setup};
use crate::error::BenchError;
use crate::machine::{self, Machine};
use crate::memory;
use crate::path::{self, folder, interruptible, subfolder};
use crate::sample::{Run, Sample};
use crate::scenario::Scenario;
use crate::update_args::UpdatePlan;
use crate::update_report::UpdateReport;
use forebay_pipeline::cores::leave_to_workers;

/// The TTL of a rule says how often it was changed; 64 is what it is loaded with.
const FIRST_TTL: u32 = 64;
/// TTLs that are used in turn.
const TTLS: u32 = 32;
/// TTLs of the rules that are changed as fast as possible: none that a rule can have before.
const STREAMED_TTLS: [u32; 2] = [FIRST_TTL + 1, FIRST_TTL + 2];
/// Between two changes lie so many rules, so that neighbours in the table do not change together. A prime: all rules have
/// their turn.
const STRIDE: u64 = 999_983;

/// The figures of one run.
#[derive(Clone, Debug)]
pub(crate) struct UpdateRun {
    pub load: Duration,
    /// Processor time that the daemon's control side took for that, where the kernel tells.
    pub load_cpu: Option<Duration>,
    pub replace: Duration,
    /// What the daemon had grown by after the table was loaded and nothing had changed for a while.
    pub table_bytes: u64,
    /// And at most until then.
    pub load_peak_bytes: u64,
    /// Changes of single rules at the rate that was asked for.
    pub changes: Changes,
    /// And as fast as possible.
    pub streamed: Changes,
    /// Processor time that the daemon's control side took for that.
    pub streamed_cpu: Option<Duration>,
    /// Packets while nothing changed, while the table was replaced, and while single rules changed in the one way and in
    /// the other.
    pub idle: Run,
    pub replacing: Run,
    pub changing: Run,
    pub streaming: Run,
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(plan: &UpdatePlan) -> Result<String, BenchError> {
    interruptible(async {
        let (folder, machine) = (folder()?, Machine::look());
        plan.scenario.write_packets(folder.path())?;
        let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
        let mut runs = Vec::new();
        for number in 0..plan.runs {
            let own = subfolder(folder.path(), &format!("run{number}"))?;
            let (scenario, packets, cores) = (&plan.scenario, folder.path(), plan.cores.as_slice());
            let daemon =
                Daemon::launch(Setup { scenario, packets, cores, hugepages, idle: None }, &own).await?;
            // What the harness sends costs a whole core: a worker's would show as bursts that wait. The next daemon, which
            // starts where the harness may run, gets every core again.
            leave_to_workers(cores);
            let measured = measure(plan, &daemon).await;
            leave_to_workers(&[]);
            runs.push(measured?);
        }
        let report = UpdateReport { plan: plan.clone(), machine, hugepages, runs };
        Ok(if plan.json { report.to_json().to_string() } else { report.to_text() })
    })
}

async fn measure(plan: &UpdatePlan, daemon: &Daemon) -> Result<UpdateRun, BenchError> {
    let scenario = plan.scenario;
    let before = memory::resident(daemon.process_id())?;
    let cpu = ControlTime::begin(daemon).await?;
    let load = load(daemon, scenario, 0).await?;
    let load_cpu = cpu.end(daemon);
    let idle = path::measure(&scenario, plan.duration, daemon).await?;
    let after = memory::resident(daemon.process_id())?;
    let table_bytes = after.bytes.saturating_sub(before.bytes);
    let load_peak_bytes = after.peak_bytes.saturating_sub(before.bytes);
    let watch = Watch::begin(daemon).await?;
    let replace = self::load(daemon, scenario, 1).await?;
    let replacing = watch.end(daemon, &scenario).await?;
    tokio::time::sleep(path::WARM_UP).await;
    let watch = Watch::begin(daemon).await?;
    let changes =
        changes::paced(daemon, changed_rules(scenario), plan.changes_per_second, plan.duration).await?;
    let changing = watch.end(daemon, &scenario).await?;
    let turns = Turns::new(STREAMED_TTLS.map(|ttl| streamed_rules(scenario, ttl)));
    tokio::time::sleep(path::WARM_UP).await;
    let watch = Watch::begin(daemon).await?;
    let cpu = ControlTime::begin(daemon).await?;
    let streamed = changes::unpaced(daemon, turns, plan.duration).await?;
    let streamed_cpu = cpu.end(daemon);
    let streaming = watch.end(daemon, &scenario).await?;
    Ok(UpdateRun {
        load,
        load_cpu,
        replace,
        table_bytes,
        load_peak_bytes,
        changes,
        streamed,
        streamed_cpu,
        idle,
        replacing,
        changing,
        streaming,
    })
}

/// Loads the whole table in an edition; every rule of it is a change. The time does not contain the making of the rules,
/// only their way to the daemon and what it does with them.
async fn load(daemon: &Daemon, scenario: Scenario, edition: u32) -> Result<Duration, BenchError> {
    let rules = scenario.rules().map(move |rule| edited(rule, edition));
    let messages: Vec<_> = Messages { rules }.collect();
    let start = Instant::now();
    let changed = daemon.load_rules(messages).await?;
    let took = start.elapsed();
    let wanted = scenario.rule_count();
    if changed != wanted {
        return Err(BenchError::Insane(format!("of {wanted} rules {changed} were changed")));
    }
    Ok(took)
}

/// Single rules, each other than it stands in the table: first all in the second edition, then in the third, and so on.
fn changed_rules(scenario: Scenario) -> impl Iterator<Item = v1::Rule> {
    let count = scenario.rule_count();
    (0_u64..).map(move |number| edited(strewn(scenario, number), 2 + (number / count) as u32))
}

/// The rules that are changed as fast as possible, in one of their forms.
fn streamed_rules(scenario: Scenario, ttl: u32) -> impl Iterator<Item = v1::Rule> {
    let count = scenario.rule_count().min(MOST_STREAMED);
    (0..count).map(move |number| with_ttl(strewn(scenario, number), ttl))
}

/// The rules in an order in which neighbours of the table are far from each other; after the last comes the first again.
fn strewn(scenario: Scenario, number: u64) -> v1::Rule {
    let place = (number * STRIDE % scenario.rule_count()) as u32;
    let rules = scenario.flows.rules;
    scenario.rule((place / rules) as u8, place % rules)
}

/// A rule as it is in an edition of the table.
fn edited(rule: v1::Rule, edition: u32) -> v1::Rule {
    with_ttl(rule, FIRST_TTL - edition % TTLS)
}

fn with_ttl(mut rule: v1::Rule, ttl: u32) -> v1::Rule {
    if let Some(v1::Action { kind: Some(v1::action::Kind::Forward(forward)) }) = &mut rule.action {
        forward.ttl = Some(ttl);
    }
    rule
}

/// The processor time of a daemon but for its workers, from one moment on. On a small machine the harness and the daemon's
/// control side share a core, and what else runs there lengthens every duration, but hardly this.
struct ControlTime {
    workers: Vec<String>,
    before: Option<Duration>,
}

impl ControlTime {
    async fn begin(daemon: &Daemon) -> Result<Self, BenchError> {
        let workers: Vec<_> =
            daemon.pipeline().await?.workers.into_iter().map(|worker| worker.name).collect();
        let before = cpu_time::without_threads(daemon.process_id(), &workers);
        Ok(Self { workers, before })
    }

    fn end(self, daemon: &Daemon) -> Option<Duration> {
        let after = cpu_time::without_threads(daemon.process_id(), &self.workers)?;
        Some(after.saturating_sub(self.before?))
    }
}

/// What happens to packets from one moment to another.
struct Watch {
    before: Sample,
}

impl Watch {
    async fn begin(daemon: &Daemon) -> Result<Self, BenchError> {
        Ok(Self { before: Sample::take(daemon).await? })
    }

    async fn end(self, daemon: &Daemon, scenario: &Scenario) -> Result<Run, BenchError> {
        let (sources, sinks) = scenario.ports();
        Sample::take(daemon).await?.since(&self.before, (&sources, &sinks))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::feed::Feed;
    use crate::flows::Flows;
    use crate::scenario::Direction;

    #[test]
    fn every_change_is_one() {
        let flows = Flows::plain(1, 100, 64);
        let scenario =
            Scenario { direction: Direction::Encap, flows, lanes: 2, cache_entries: 64, feed: Feed::Pcap };
        let mut table: HashMap<_, _> =
            scenario.rules().map(|rule| (rule.id.clone(), edited(rule, 1))).collect();
        assert_eq!(table.len(), 200);
        for rule in changed_rules(scenario).take(700) {
            let stood = table.insert(rule.id.clone(), rule.clone()).unwrap();
            assert_ne!(stood, rule);
            assert_eq!((stood.port, stood.r#match), (rule.port, rule.r#match));
        }
        for ttl in STREAMED_TTLS {
            for rule in streamed_rules(scenario, ttl) {
                assert_ne!(table.insert(rule.id.clone(), rule.clone()).unwrap(), rule);
            }
        }
        assert_eq!(streamed_rules(scenario, 1).count(), 200);
    }

    #[test]
    fn ttls_stay_within_their_bounds() {
        let flows = Flows::plain(1, 1, 64);
        let scenario =
            Scenario { direction: Direction::Encap, flows, lanes: 1, cache_entries: 64, feed: Feed::Pcap };
        let ttl = |rule: v1::Rule| match rule.action.unwrap().kind {
            Some(v1::action::Kind::Forward(forward)) => forward.ttl.unwrap(),
            other => panic!("{other:?}"),
        };
        let ttls: Vec<_> = changed_rules(scenario).take(100).map(ttl).collect();
        assert!(ttls.iter().all(|ttl| (33..=64).contains(ttl)), "{ttls:?}");
        assert!(ttls.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
