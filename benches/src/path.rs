//! A benchmark of the packet path, from the packets to the report.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::args::PathPlan;
use crate::daemon::{Daemon, Setup};
use crate::error::BenchError;
use crate::feed::Feed;
use crate::machine::{self, Machine};
use crate::memory_feed::{self, MakeFeed};
use crate::newcomers;
use crate::report::PathReport;
use crate::sample::{Run, Sample};
use crate::scenario::Scenario;
use crate::testpmd::{self, Testpmd};

/// Between the last rule and the first sample: caches, branch predictors and the CPU's frequency settle.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// Passes over the file before a run: lanes that share a core do not come round equally often.
const SETTLED_PASSES: u64 = 2;
/// A million packets pass in less than a second, unless the machine is busy.
const SETTLE_PATIENCE: Duration = Duration::from_secs(120);
const SETTLE_STEP: Duration = Duration::from_millis(10);
/// How long the rate is measured for that new flows are a share of.
const RATE_TIME: Duration = Duration::from_millis(300);
/// The rate falls with the share of new flows: it is measured without them, and once more with them.
const RATE_ROUNDS: u32 = 2;

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub runs: Vec<Run>,
    /// Runs of the first core alone, as many, where there are several cores.
    pub alone: Vec<Run>,
    /// Cycles per packet of testpmd, as many as there are runs, or none.
    pub testpmd_cycles: Vec<f64>,
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(name: &'static str, plan: &PathPlan, make_feed: MakeFeed) -> Result<String, BenchError> {
    if plan.scenario.feed == Feed::Memory {
        return memory_feed::run(name, plan, make_feed);
    }
    interruptible(async {
        let report = bench(name, plan).await?;
        Ok(if plan.json { report.to_json().to_string() } else { report.to_text() })
    })
}

/// Runs a benchmark until its end or a signal, which drops it, and with it its children and its folder.
pub(crate) fn interruptible<T>(bench: impl Future<Output = Result<T, BenchError>>) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| BenchError::System { what: "start the harness", source })?;
    runtime.block_on(async {
        let failed = |source| BenchError::System { what: "listen to signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::select! {
            done = bench => done,
            _ = terminate.recv() => Err(BenchError::Stopped),
            _ = interrupt.recv() => Err(BenchError::Stopped),
        }
    })
}

/// Runs the benchmark; gives its figures.
pub(crate) async fn bench(name: &'static str, plan: &PathPlan) -> Result<PathReport, BenchError> {
    let folder = folder()?;
    let mut plan = plan.clone();
    let machine = Machine::look();
    plan.scenario.write_packets(folder.path())?;
    if let Some(wanted) = plan.new_flows_per_second {
        begin_flows(&mut plan, wanted, folder.path()).await?;
    }
    let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
    let program = plan.baseline.and_then(|_| testpmd::find());
    let turns = Turns { plan: &plan, program: program.as_deref(), hugepages, folder: folder.path() };
    let measured = turns.measure().await?;
    let baseline_missing = (plan.baseline.is_some() && program.is_none()).then(testpmd::missing);
    Ok(PathReport { name, plan, machine, hugepages, measured, baseline_missing })
}

/// A folder for packets, daemons and logs that goes away.
pub(crate) fn folder() -> Result<tempfile::TempDir, BenchError> {
    let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir();
    folder.map_err(|source| BenchError::File { path: std::env::temp_dir(), source })
}

/// Writes the packets anew, such that `wanted` flows begin each second.
async fn begin_flows(plan: &mut PathPlan, wanted: u32, folder: &Path) -> Result<(), BenchError> {
    let established = plan.scenario.flows.sequence;
    plan.scenario.cache_entries = newcomers::cache_entries(established.flows);
    for round in 0..RATE_ROUNDS {
        let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
        let setup =
            Setup { scenario: &plan.scenario, packets: folder, cores: &plan.cores, hugepages, idle: None };
        let daemon = Daemon::start(setup, &subfolder(folder, &format!("rate{round}"))?).await?;
        let run = measure(&plan.scenario, RATE_TIME, &daemon).await?;
        let rate = run.packets_per_second / f64::from(plan.scenario.lanes);
        let share = wanted / u32::from(plan.scenario.lanes);
        let entries = plan.scenario.cache_entries;
        plan.scenario.flows.sequence = newcomers::sequence(established, entries, share, rate)?;
        plan.scenario.write_packets(folder)?;
    }
    Ok(())
}

/// Who is measured in which order: never two at a time, since they share the cores, and close together, since the
/// machine's mood changes.
struct Turns<'a> {
    plan: &'a PathPlan,
    /// The program that Forebay is compared with.
    program: Option<&'a Path>,
    hugepages: bool,
    folder: &'a Path,
}

impl Turns<'_> {
    async fn measure(&self) -> Result<Measured, BenchError> {
        let mut measured = Measured::default();
        if self.program.is_none() && self.plan.scenario.lanes == 1 {
            // Nobody else has a turn: one daemon for all runs.
            let daemon = self.daemon(&self.plan.scenario, "runs").await?;
            for _ in 0..self.plan.runs {
                measured.runs.push(measure(&self.plan.scenario, self.plan.duration, &daemon).await?);
            }
            check_hits(&self.plan.scenario, &daemon, &measured.runs).await?;
            return Ok(measured);
        }
        for number in 0..self.plan.runs {
            self.turn(number, &mut measured).await?;
        }
        Ok(measured)
    }

    async fn turn(&self, number: u32, measured: &mut Measured) -> Result<(), BenchError> {
        let last = number + 1 == self.plan.runs;
        let all = self.plan.scenario;
        self.daemon_turn(&all, &format!("run{number}"), last, &mut measured.runs).await?;
        if all.lanes > 1 {
            let first = Scenario { lanes: 1, ..all };
            self.daemon_turn(&first, &format!("alone{number}"), last, &mut measured.alone).await?;
        }
        let Some(program) = self.program else { return Ok(()) };
        let core = self.plan.cores.first().copied().unwrap_or(0);
        let packets = Scenario::file(self.folder, 0);
        let (scenario, hugepages) = (&self.plan.scenario, self.hugepages);
        let testpmd = Testpmd { program, scenario, packets: &packets, core, hugepages };
        let cycles = testpmd.run(self.folder, WARM_UP + self.plan.duration).await?;
        measured.testpmd_cycles.push(cycles);
        Ok(())
    }

    async fn daemon_turn(
        &self,
        scenario: &Scenario,
        name: &str,
        last: bool,
        runs: &mut Vec<Run>,
    ) -> Result<(), BenchError> {
        let daemon = self.daemon(scenario, name).await?;
        runs.push(measure(scenario, self.plan.duration, &daemon).await?);
        if last { check_hits(scenario, &daemon, runs).await } else { Ok(()) }
    }

    async fn daemon(&self, scenario: &Scenario, name: &str) -> Result<Daemon, BenchError> {
        let cores = self.plan.cores.get(..usize::from(scenario.lanes)).unwrap_or(&self.plan.cores);
        let setup = Setup { scenario, packets: self.folder, cores, hugepages: self.hugepages, idle: None };
        Daemon::start(setup, &subfolder(self.folder, name)?).await
    }
}

/// One run.
pub(crate) async fn measure(
    scenario: &Scenario,
    duration: Duration,
    daemon: &Daemon,
) -> Result<Run, BenchError> {
    tokio::time::sleep(WARM_UP).await;
    settle(scenario, daemon).await?;
    let before = Sample::take(daemon).await?;
    tokio::time::sleep(duration).await;
    let (sources, sinks) = scenario.ports();
    Sample::take(daemon).await?.since(&before, (&sources, &sinks))
}

/// Waits until every flow had its turn: the first packets of flows cost more, and belong to no figure of those that go on.
async fn settle(scenario: &Scenario, daemon: &Daemon) -> Result<(), BenchError> {
    let wanted = SETTLED_PASSES * u64::from(scenario.packets()) * u64::from(scenario.lanes);
    let (sources, start) = (scenario.ports().0, Instant::now());
    let before = daemon.received(&sources).await?;
    while daemon.received(&sources).await?.saturating_sub(before) < wanted {
        if start.elapsed() > SETTLE_PATIENCE {
            let packets = scenario.packets();
            return Err(BenchError::Unsettled { packets, waited: SETTLE_PATIENCE });
        }
        tokio::time::sleep(SETTLE_STEP).await;
    }
    Ok(())
}

/// Every rule that has flows must have seen packets, once every flow had its turn: otherwise something else was measured
/// than was asked for.
async fn check_hits(scenario: &Scenario, daemon: &Daemon, runs: &[Run]) -> Result<(), BenchError> {
    let packets = runs.last().map_or(0, |run| run.packets);
    // Workers that share a core do not come round equally often.
    if packets < 4 * u64::from(scenario.packets()) * u64::from(scenario.lanes) {
        return Ok(());
    }
    let (wanted, hit) = (scenario.rules_hit(), daemon.rules_hit().await?);
    if hit != wanted {
        let lost = runs.last().map(|run| format!("{:?}", run.lost)).unwrap_or_default();
        return Err(BenchError::Insane(format!("{hit} rules saw packets, not {wanted}; dropped: {lost}")));
    }
    Ok(())
}

/// A new folder in a folder.
pub(crate) fn subfolder(folder: &Path, name: &str) -> Result<PathBuf, BenchError> {
    let path = folder.join(name);
    match std::fs::create_dir(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(BenchError::File { path, source }),
    }
}
