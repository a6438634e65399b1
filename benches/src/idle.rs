//! `forebay bench idle`: what a worker costs that has little to do, and what its packets pay for its rest.
//!
//! A daemon forwards what another process sends at a rate and gets back, each packet with the time of its sending. Policies
//! take turns, busy-poll always among them, each with a daemon of its own: latency is told as what is added to busy-poll's
//! in the same minutes. What the worker costs is what the kernel says its thread has run for.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use forebay_pipeline::counters::quantile;
use serde_json::{Map, Value, json};

use crate::args::{seconds, usual_scenario, worker_cores};
use crate::cpu_time;
use crate::daemon::{Daemon, Setup};
use crate::error::BenchError;
use crate::feed::Feed;
use crate::figures::{Spread, rounded};
use crate::machine::{self, Machine};
use crate::pacer::{Pace, Pacer, PacerFigures};
use crate::path::{folder, interruptible, subfolder};
use crate::report::{Table, latency_json};
use crate::sample::QUANTILES;
use crate::scenario::Scenario;
use forebay_pipeline::cores::leave_to_workers;

/// The policy that others are compared with.
const BUSY_POLL: &str = "busy-poll";
/// What is measured unless told otherwise: all, and a nap of the usual latency as the naive one.
const ALL: &str = "busy-poll,last-packet,interrupt,sleep:50";
/// Between the start of sending and the first look at the worker's time: averages and caches settle.
const WARM_UP: Duration = Duration::from_millis(500);

/// What idle workers are measured with.
#[derive(Clone, Debug, Args)]
pub(crate) struct IdleArgs {
    /// What the worker does without packets: busy-poll, last-packet, interrupt or sleep:US, or several with commas between;
    /// busy-poll is always measured as well
    #[arg(long, value_name = "POLICIES", default_value = ALL)]
    policy: String,
    /// Packets a second; 0 sends none
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "saturate")]
    pps: u32,
    /// Packets sent at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    burst: u32,
    /// Send as fast as the daemon takes, in bursts of 32
    #[arg(long)]
    saturate: bool,
    /// What the config file says of latency, microseconds
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_added_latency_us: u32,
    /// Core of the worker [default: the first but 0]
    #[arg(long, value_name = "CORE")]
    core: Option<String>,
    /// Seconds that each run is measured
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Runs of each policy; what is reported is their median, least and greatest
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// How idle workers are measured.
#[derive(Clone, Debug)]
struct IdlePlan {
    scenario: Scenario,
    policies: Vec<String>,
    /// Those that the user named.
    asked: Vec<String>,
    pace: Pace,
    max_added_latency_us: u32,
    core: usize,
    duration: Duration,
    runs: u32,
    json: bool,
}

impl IdleArgs {
    /// Checks what the parser cannot. What a policy may be called the daemon knows best.
    fn plan(&self) -> Result<IdlePlan, BenchError> {
        let cores = worker_cores(self.core.as_deref())?;
        let [core] = cores.as_slice() else { return Err(BenchError::CompareCores { count: cores.len() }) };
        let (mut policies, mut asked) = (vec![BUSY_POLL.to_owned()], Vec::new());
        for policy in self.policy.split(',') {
            let is_sleep = policy.strip_prefix("sleep:").is_some_and(|us| us.parse::<u16>().is_ok());
            if !is_sleep && ![BUSY_POLL, "last-packet", "interrupt"].contains(&policy) {
                return Err(BenchError::Policy { policy: policy.to_owned() });
            }
            for names in [&mut policies, &mut asked] {
                if !names.iter().any(|other| other == policy) {
                    names.push(policy.to_owned());
                }
            }
        }
        let pace = match self.saturate {
            true => Pace { packets_per_second: None, burst: 32 },
            false => Pace { packets_per_second: Some(self.pps), burst: self.burst },
        };
        Ok(IdlePlan {
            scenario: Scenario { feed: Feed::Paced, ..usual_scenario(1, 1, 1) },
            policies,
            asked,
            pace,
            max_added_latency_us: self.max_added_latency_us,
            core: *core,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            json: self.json,
        })
    }
}

/// The figures of one run.
#[derive(Clone, Debug, PartialEq)]
struct IdleRun {
    /// Share of a core that the worker's thread ran for; none where the kernel does not tell.
    cpu: Option<f64>,
    paced: PacerFigures,
}

impl IdleRun {
    fn lost(&self) -> u64 {
        self.paced.sent.saturating_sub(self.paced.received) + self.paced.refused
    }

    fn packets_per_second(&self) -> f64 {
        self.paced.received as f64 * 1e9 / self.paced.elapsed_ns.max(1) as f64
    }

    fn all_ns(&self) -> Vec<u64> {
        self.paced.first_ns.iter().zip(&self.paced.rest_ns).map(|(first, rest)| first + rest).collect()
    }
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(args: &IdleArgs) -> Result<String, BenchError> {
    let plan = args.plan()?;
    interruptible(async {
        let (folder, machine) = (folder()?, Machine::look());
        plan.scenario.write_packets(folder.path())?;
        let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
        let mut runs = vec![Vec::new(); plan.policies.len()];
        for number in 0..plan.runs {
            for (policy, runs) in plan.policies.iter().zip(&mut runs) {
                let own = subfolder(folder.path(), &format!("run{number}-{policy}"))?;
                runs.push(measure(&plan, policy, hugepages, folder.path(), &own).await?);
            }
        }
        let report = IdleReport { plan: &plan, machine, runs };
        Ok(if plan.json { report.to_json().to_string() } else { report.to_text() })
    })
}

async fn measure(
    plan: &IdlePlan,
    policy: &str,
    hugepages: bool,
    packets: &Path,
    own: &Path,
) -> Result<IdleRun, BenchError> {
    let cores = [plan.core];
    let idle = Some((policy, plan.max_added_latency_us));
    let setup = Setup { scenario: &plan.scenario, packets, cores: &cores, hugepages, idle };
    let daemon = Daemon::start(setup, own).await?;
    let pacer = Pacer::start(&plan.scenario, plan.pace, packets, own, &cores).await?;
    let measured = {
        // What the harness does is not to disturb the worker; the next daemon gets every core again.
        leave_to_workers(&cores);
        tokio::time::sleep(WARM_UP).await;
        let (start, before) = (std::time::Instant::now(), daemon.cpu_time());
        tokio::time::sleep(plan.duration).await;
        let (elapsed, after) = (start.elapsed(), daemon.cpu_time());
        leave_to_workers(&[]);
        cpu_time::share(&before, &after, "worker0", elapsed.as_nanos() as f64)
    };
    Ok(IdleRun { cpu: measured, paced: pacer.end().await? })
}

/// The figures of all runs, and how to write them.
struct IdleReport<'a> {
    plan: &'a IdlePlan,
    machine: Machine,
    /// By policy; busy-poll first.
    runs: Vec<Vec<IdleRun>>,
}

/// The figures of one policy.
struct Row<'a> {
    policy: &'a str,
    runs: &'a [IdleRun],
    busy_poll_p99_ns: f64,
}

impl Row<'_> {
    fn cpu_percent(&self) -> Option<Spread> {
        let shares: Vec<f64> = self.runs.iter().filter_map(|run| run.cpu).collect();
        (!shares.is_empty()).then(|| Spread::of(shares.into_iter().map(|share| 100.0 * share)))
    }

    fn latency(&self, histogram: fn(&IdleRun) -> Vec<u64>, share: f64) -> Spread {
        Spread::of(self.runs.iter().map(|run| quantile(&histogram(run), share) as f64))
    }

    fn added_p99(&self) -> Spread {
        let runs = self.runs.iter().map(|run| quantile(&run.all_ns(), 0.99) as f64);
        Spread::of(runs.map(|p99| (p99 - self.busy_poll_p99_ns).max(0.0)))
    }

    fn lost(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.lost() as f64))
    }

    fn packets_per_second(&self) -> Spread {
        Spread::of(self.runs.iter().map(IdleRun::packets_per_second))
    }

    fn to_map(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("policy".to_owned(), self.policy.into());
        match self.cpu_percent() {
            Some(cpu) => cpu.put(&mut object, "cpu_percent", 2),
            None => drop(object.insert("cpu_percent".to_owned(), Value::Null)),
        }
        self.packets_per_second().put(&mut object, "packets_per_second", 0);
        for (key, histogram) in [
            ("latency_ns", IdleRun::all_ns as fn(&IdleRun) -> Vec<u64>),
            ("first_of_burst_latency_ns", |run| run.paced.first_ns.clone()),
            ("rest_of_burst_latency_ns", |run| run.paced.rest_ns.clone()),
        ] {
            let quantiles = QUANTILES.iter().map(|(_, share)| self.latency(histogram, *share));
            object.insert(key.to_owned(), latency_json(quantiles));
        }
        self.added_p99().put(&mut object, "added_p99_ns", 0);
        self.lost().put(&mut object, "lost_packets", 0);
        object
    }
}

impl IdleReport<'_> {
    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let busy = self.runs.first().map(Vec::as_slice).unwrap_or_default();
        let p99 = Spread::of(busy.iter().map(|run| quantile(&run.all_ns(), 0.99) as f64)).median;
        self.plan.policies.iter().zip(&self.runs).map(move |(policy, runs)| Row {
            policy,
            runs,
            busy_poll_p99_ns: p99,
        })
    }

    /// Where only one policy was asked for, its figures stand at the top, too.
    fn to_json(&self) -> Value {
        let plan = self.plan;
        let mut json = json!({
            "benchmark": "idle",
            "packets_per_second_wanted": plan.pace.packets_per_second,
            "burst": plan.pace.burst,
            "max_added_latency_us": plan.max_added_latency_us,
            "core": plan.core,
            "seconds": rounded(plan.duration.as_secs_f64(), 2),
            "runs": plan.runs,
            "policies": self.rows().map(|row| Value::Object(row.to_map())).collect::<Vec<_>>(),
            "machine": self.machine.to_json(),
        });
        let asked = self.rows().filter(|row| plan.asked.iter().any(|policy| policy == row.policy));
        if let ([_], Some(object)) = (plan.asked.as_slice(), json.as_object_mut()) {
            asked.for_each(|row| object.extend(row.to_map()));
        }
        json
    }

    fn to_text(&self) -> String {
        let plan = self.plan;
        let pace = match plan.pace.packets_per_second {
            None => "as fast as possible".to_owned(),
            Some(0) => "no packets".to_owned(),
            Some(pps) => format!("{pps} packets/s in bursts of {}", plan.pace.burst),
        };
        let title = format!(
            "idle: {pace}, core {}, {} runs of {} s of each policy in turns",
            plan.core,
            plan.runs,
            plan.duration.as_secs_f64()
        );
        let mut table = Table::new(title);
        for row in self.rows() {
            table.line(row.policy);
            match row.cpu_percent() {
                Some(cpu) => table.row("  CPU %", cpu, 2),
                None => table.line("  CPU %: this machine does not tell"),
            }
            if plan.pace.packets_per_second != Some(0) {
                table.row("  packets/s", row.packets_per_second(), 0);
                table.row("  latency p50 ns", row.latency(IdleRun::all_ns, 0.5), 0);
                table.row("  latency p99 ns", row.latency(IdleRun::all_ns, 0.99), 0);
                if plan.pace.burst > 1 {
                    table.row("  p99 ns, first", row.latency(|run| run.paced.first_ns.clone(), 0.99), 0);
                    table.row("  p99 ns, others", row.latency(|run| run.paced.rest_ns.clone(), 0.99), 0);
                }
                table.row("  added p99 ns", row.added_p99(), 0);
                table.row("  lost packets", row.lost(), 0);
            }
        }
        table.line(&self.machine.to_text());
        table.text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: IdleArgs,
    }

    fn plan(words: &[&str]) -> Result<IdlePlan, String> {
        let words = Words::try_parse_from(std::iter::once("bench").chain(words.iter().copied()));
        words.map_err(|error| error.to_string())?.args.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn busy_poll_is_always_among_the_policies() {
        let policies = |text| plan(&["--core", "0", "--policy", text]).map(|plan| plan.policies);
        assert_eq!(policies("interrupt").unwrap(), ["busy-poll", "interrupt"]);
        assert_eq!(policies("sleep:70,busy-poll").unwrap(), ["busy-poll", "sleep:70"]);
        let error = policies("sleep").unwrap_err();
        assert!(error.contains("--policy \"sleep\": unknown"), "{error}");
        assert_eq!(plan(&["--core", "0"]).unwrap().policies.len(), 4);
        let saturated = plan(&["--core", "0", "--saturate"]).unwrap();
        assert_eq!(saturated.pace, Pace { packets_per_second: None, burst: 32 });
        assert!(plan(&["--core", "0", "--saturate", "--pps", "5"]).is_err());
    }

    /// A run in which each packet took so many nanoseconds, below 8.
    fn run(cpu: f64, latency_ns: usize, lost: u64) -> IdleRun {
        let mut first_ns = vec![0; 10];
        first_ns[latency_ns] = 100;
        let (sent, rest_ns) = (100 + lost, vec![0; 10]);
        let paced =
            PacerFigures { sent, received: 100, refused: 0, elapsed_ns: 1_000_000_000, first_ns, rest_ns };
        IdleRun { cpu: Some(cpu), paced }
    }

    #[test]
    fn what_is_told_is_what_was_measured() {
        let plan = plan(&["--core", "0", "--policy", "interrupt", "--burst", "2"]).unwrap();
        let runs = vec![
            vec![run(1.0, 2, 0), run(1.0, 2, 0), run(1.0, 4, 0)],
            vec![run(0.02, 7, 0), run(0.01, 5, 3)],
        ];
        let report = IdleReport { plan: &plan, machine: Machine::look(), runs };
        let json = report.to_json();
        let (busy, interrupt) = (&json["policies"][0], &json["policies"][1]);
        assert_eq!((&busy["policy"], &interrupt["policy"]), (&json!("busy-poll"), &json!("interrupt")));
        assert_eq!((&busy["cpu_percent"], &interrupt["cpu_percent"]), (&json!(100.0), &json!(1.5)));
        assert_eq!((&interrupt["added_p99_ns"], &interrupt["added_p99_ns_max"]), (&json!(4), &json!(5)));
        assert_eq!(
            (&json["policy"], &json["cpu_percent"]),
            (&json!("interrupt"), &json!(1.5)),
            "asked for alone"
        );
        assert_eq!(
            (&interrupt["latency_ns"]["p99_min"], &interrupt["lost_packets_max"]),
            (&json!(5), &json!(3))
        );
        assert_eq!(busy["packets_per_second"], 100);
        let text = report.to_text();
        for words in ["1000 packets/s in bursts of 2", "\ninterrupt\n", "  p99 ns, first", "  lost packets"] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
}
