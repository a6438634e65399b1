//! A benchmark of the packet path, from the packets to the report.

use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::args::PathPlan;
use crate::daemon::{Daemon, Setup};
use crate::error::BenchError;
use crate::machine::{self, Machine};
use crate::report::PathReport;
use crate::sample::{Run, Sample};
use crate::testpmd::{self, Testpmd};

/// Between the last rule and the first sample: caches, branch predictors and the CPU's frequency settle.
const WARM_UP: Duration = Duration::from_millis(300);

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub runs: Vec<Run>,
    /// Cycles per packet of testpmd, as many as there are runs, or none.
    pub testpmd_cycles: Vec<f64>,
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(name: &'static str, plan: &PathPlan) -> Result<String, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| BenchError::System { what: "start the harness", source })?;
    runtime.block_on(async {
        let failed = |source| BenchError::System { what: "listen to signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        // A signal drops the benchmark, and with it its children and its folder.
        tokio::select! {
            done = bench(name, plan) => done,
            _ = terminate.recv() => Err(BenchError::Stopped),
            _ = interrupt.recv() => Err(BenchError::Stopped),
        }
    })
}

async fn bench(name: &'static str, plan: &PathPlan) -> Result<String, BenchError> {
    let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir();
    let folder = folder.map_err(|source| BenchError::File { path: std::env::temp_dir(), source })?;
    let packets = folder.path().join("packets.pcap");
    plan.scenario.write_packets(&packets)?;
    let machine = Machine::look();
    let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
    let setup = Setup { scenario: &plan.scenario, packets: &packets, cores: &plan.cores, hugepages };
    let program = plan.baseline.and_then(|_| testpmd::find());
    let measured = match &program {
        Some(program) => in_turns(plan, setup, program, folder.path()).await?,
        None => alone(plan, setup, folder.path()).await?,
    };
    let baseline_missing = (plan.baseline.is_some() && program.is_none()).then(testpmd::missing);
    let report = PathReport { name, plan, machine, hugepages, measured, baseline_missing };
    Ok(if plan.json { report.to_json().to_string() } else { report.to_text() })
}

/// All runs on one daemon.
async fn alone(plan: &PathPlan, setup: Setup<'_>, folder: &Path) -> Result<Measured, BenchError> {
    let daemon = Daemon::start(setup, &subfolder(folder, 0)?).await?;
    let mut measured = Measured::default();
    for _ in 0..plan.runs {
        measured.runs.push(measure(plan, &daemon).await?);
    }
    check_hits(plan, &daemon, &measured).await?;
    Ok(measured)
}

/// A daemon, then testpmd, then a daemon, and so on: never both, since they share the core, and close together, since the
/// machine's mood changes.
async fn in_turns(
    plan: &PathPlan,
    setup: Setup<'_>,
    program: &Path,
    folder: &Path,
) -> Result<Measured, BenchError> {
    let core = plan.cores.first().copied().unwrap_or(0);
    let (scenario, packets, hugepages) = (setup.scenario, setup.packets, setup.hugepages);
    let testpmd = Testpmd { program, scenario, packets, core, hugepages };
    let mut measured = Measured::default();
    for number in 0..plan.runs {
        let folder = subfolder(folder, number)?;
        let daemon = Daemon::start(setup, &folder).await?;
        measured.runs.push(measure(plan, &daemon).await?);
        if number + 1 == plan.runs {
            check_hits(plan, &daemon, &measured).await?;
        }
        drop(daemon);
        measured.testpmd_cycles.push(testpmd.run(&folder, WARM_UP + plan.duration).await?);
    }
    Ok(measured)
}

async fn measure(plan: &PathPlan, daemon: &Daemon) -> Result<Run, BenchError> {
    tokio::time::sleep(WARM_UP).await;
    let before = Sample::take(daemon).await?;
    tokio::time::sleep(plan.duration).await;
    Sample::take(daemon).await?.since(&before, plan.scenario.ports())
}

/// Every rule that has flows must have seen packets, once every flow had its turn: otherwise something else was measured
/// than was asked for.
async fn check_hits(plan: &PathPlan, daemon: &Daemon, measured: &Measured) -> Result<(), BenchError> {
    let packets = measured.runs.last().map_or(0, |run| run.packets);
    if packets < 2 * u64::from(plan.scenario.flows.count) {
        return Ok(());
    }
    let (wanted, hit) = (plan.scenario.flows.rules_hit(), daemon.rules_hit().await?);
    if hit != wanted {
        let lost = measured.runs.last().map(|run| format!("{:?}", run.lost)).unwrap_or_default();
        return Err(BenchError::Insane(format!("{hit} rules saw packets, not {wanted}; dropped: {lost}")));
    }
    Ok(())
}

fn subfolder(folder: &Path, number: u32) -> Result<std::path::PathBuf, BenchError> {
    let path = folder.join(format!("run{number}"));
    match std::fs::create_dir(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(BenchError::File { path, source }),
    }
}
