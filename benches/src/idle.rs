//! `forebay bench idle`: what a worker costs that has little to do, and what its packets pay for its rest.
//!
//! A daemon forwards what another process sends at a rate and gets back, each packet with the time of its sending. Policies
//! take turns, busy-poll always among them, each with a daemon of its own, and without packets Open vSwitch as well, where it
//! is installed: latency is told as what is added to busy-poll's in the same minutes. What a worker costs is what the kernel says its
//! thread has run for.
//! Invariant: a packet that does not come back is counted, with who lost it; the time that others had the cores is told.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_pipeline::cores::leave_to_workers;

use crate::cpu_time;
use crate::daemon::{Daemon, Setup};
use crate::error::BenchError;
use crate::idle_args::{Contestant, IdleArgs, IdlePlan, Load};
use crate::idle_report::IdleReport;
use crate::machine::{self, Machine};
use crate::ovs::{self, Ovs, RunningOvs};
use crate::pacer::{Pacer, PacerFigures};
use crate::path::{folder, interruptible, subfolder};
use crate::sample::{Run, Sample};
use crate::scenario::Scenario;

/// Between the start of sending and the first look at the worker's time: averages and caches settle.
const WARM_UP: Duration = Duration::from_millis(500);
/// The daemon's only worker.
const WORKER: &str = "worker0";

/// The figures of one run.
#[derive(Clone, Debug)]
pub(crate) struct IdleRun {
    /// Share of a core that the worker's thread ran for; none where the kernel does not tell.
    pub cpu: Option<f64>,
    /// Share of the time that it wanted to run while others had its core.
    pub waited: Option<f64>,
    pub paced: PacerFigures,
    /// What the daemon says of its packets; none where it had none, or of another program.
    pub path: Option<Run>,
}

impl IdleRun {
    /// Packets that were to come back and did not.
    pub(crate) fn lost(&self) -> u64 {
        self.paced.sent.saturating_sub(self.paced.received) + self.paced.refused
    }

    pub(crate) fn packets_per_second(&self) -> f64 {
        self.paced.received as f64 * 1e9 / self.paced.elapsed_ns.max(1) as f64
    }

    pub(crate) fn all_ns(&self) -> Vec<u64> {
        self.paced.first_ns.iter().zip(&self.paced.rest_ns).map(|(first, rest)| first + rest).collect()
    }

    /// Packets that the daemon dropped, by port and reason.
    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        self.path.as_ref().map(|run| run.lost.clone()).unwrap_or_default()
    }
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(args: &IdleArgs) -> Result<String, BenchError> {
    let plan = args.plan()?;
    let report = interruptible(async {
        let (folder, machine) = (folder()?, Machine::look());
        plan.scenario.write_packets(folder.path())?;
        let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
        let bench = Bench { plan: &plan, hugepages, folder: folder.path() };
        Ok(IdleReport { plan: &plan, machine, runs: bench.measure().await? })
    })?;
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|source| BenchError::File { path: path.clone(), source })
    };
    if let Some(path) = &plan.markdown {
        write(path, format!("{}\n", report.to_markdown()))?;
    }
    if let Some(path) = &plan.svg {
        write(path, report.to_svg()?)?;
    }
    Ok(if plan.json { report.to_json().to_string() } else { report.to_text() })
}

/// What all runs have in common.
struct Bench<'a> {
    plan: &'a IdlePlan,
    hugepages: bool,
    folder: &'a Path,
}

/// Whom the packets go through.
enum Subject {
    Forebay(Box<Daemon>),
    Ovs { running: RunningOvs, thread: String },
}

impl Subject {
    fn thread(&self) -> &str {
        match self {
            Self::Forebay(_) => WORKER,
            Self::Ovs { thread, .. } => thread,
        }
    }

    fn cpu_time(&self) -> HashMap<String, u64> {
        match self {
            Self::Forebay(daemon) => daemon.cpu_time(),
            Self::Ovs { running, .. } => running.cpu_time(),
        }
    }

    fn waiting_time(&self) -> HashMap<String, u64> {
        match self {
            Self::Forebay(daemon) => daemon.waiting_time(),
            Self::Ovs { running, .. } => running.waiting_time(),
        }
    }

    async fn sample(&self) -> Result<Option<Sample>, BenchError> {
        match self {
            Self::Forebay(daemon) => Sample::take(daemon).await.map(Some),
            Self::Ovs { .. } => Ok(None),
        }
    }
}

impl Bench<'_> {
    /// The runs by load and contestant; contestants take turns under each load.
    async fn measure(&self) -> Result<Vec<Vec<Vec<IdleRun>>>, BenchError> {
        let mut all = Vec::new();
        for (place, load) in self.plan.loads.iter().enumerate() {
            eprintln!("forebay: load {} of {}: {}", place + 1, self.plan.loads.len(), load.title());
            let mut runs = vec![Vec::new(); self.plan.contestants.len()];
            for number in 0..self.plan.runs {
                for (turn, runs) in runs.iter_mut().enumerate() {
                    let own = subfolder(self.folder, &format!("load{place}-run{number}-{turn}"))?;
                    if let Some(contestant) = self.plan.contestants.get(turn)
                        && contestant.is_able_to(load)
                    {
                        runs.push(self.turn(load, contestant, &own).await?);
                    }
                }
            }
            all.push(runs);
        }
        Ok(all)
    }

    async fn turn(&self, load: &Load, contestant: &Contestant, own: &Path) -> Result<IdleRun, BenchError> {
        let (plan, cores) = (self.plan, [self.plan.core]);
        let subject = self.start(contestant, own).await?;
        let pacer = Pacer::start(&plan.scenario, load.pace, self.folder, own, &cores).await?;
        // What the harness does is not to disturb the worker; the next daemon gets every core again.
        leave_to_workers(&cores);
        let measured = self.watch(load, &subject).await;
        leave_to_workers(&[]);
        let (cpu, waited, path) = measured?;
        Ok(IdleRun { cpu, waited, path, paced: pacer.end().await? })
    }

    async fn start(&self, contestant: &Contestant, own: &Path) -> Result<Subject, BenchError> {
        let (plan, hugepages) = (self.plan, self.hugepages);
        let (scenario, packets, core) = (&plan.scenario, Scenario::file(self.folder, 0), plan.core);
        match (contestant, ovs::find()) {
            (Contestant::Forebay(policy), _) => {
                let idle = Some((policy.as_str(), plan.max_added_latency_us));
                let setup = Setup { scenario, packets: self.folder, cores: &[core], hugepages, idle };
                Ok(Subject::Forebay(Box::new(Daemon::start(setup, own).await?)))
            }
            (Contestant::Ovs { sleep_us }, Ok(switch)) => {
                let (switch, sleep_us, folder) = (switch.as_path(), *sleep_us, own);
                let ovs = Ovs { switch, scenario, packets: &packets, core, hugepages, sleep_us, folder };
                let running = ovs.start().await?;
                let gone =
                    || BenchError::Ovs { what: "it has no thread on its core".into(), tail: String::new() };
                let thread = running.thread(core).ok_or_else(gone)?;
                Ok(Subject::Ovs { running, thread })
            }
            (Contestant::Ovs { .. }, Err(what)) => Err(BenchError::Ovs { what, tail: String::new() }),
        }
    }

    /// What the worker's thread ran for and waited for, and what became of its packets.
    async fn watch(
        &self,
        load: &Load,
        subject: &Subject,
    ) -> Result<(Option<f64>, Option<f64>, Option<Run>), BenchError> {
        tokio::time::sleep(WARM_UP).await;
        let older = subject.sample().await?;
        let (start, ran, waited) = (Instant::now(), subject.cpu_time(), subject.waiting_time());
        tokio::time::sleep(self.plan.duration.max(load.least)).await;
        let (ran_later, waited_later) = (subject.cpu_time(), subject.waiting_time());
        let elapsed_ns = start.elapsed().as_nanos() as f64;
        let share = |older, newer| cpu_time::share(older, newer, subject.thread(), elapsed_ns);
        let path = match (older, subject.sample().await?) {
            (Some(older), Some(newer)) if load.has_packets() => {
                let (sources, sinks) = self.plan.scenario.ports();
                Some(newer.since(&older, (&sources, &sinks))?)
            }
            _ => None,
        };
        Ok((share(&ran, &ran_later), share(&waited, &waited_later), path))
    }
}
