//! `--feed memory`: the cycles of a worker's rounds in this process, without devices or a daemon around it.
//!
//! The worker is not of this crate, which knows no packet: whoever starts the harness hands over how one is made. The feed's
//! own work is done between the rounds on the same core, so that there are cycles here, but no rate and no latency.

use std::time::Duration;

use forebay_pipeline::{cores, tsc};
use serde_json::{Map, Value, json};

use crate::args::{LEAST_CACHE_ENTRIES, PathPlan};
use crate::cpu_time;
use crate::error::BenchError;
use crate::figures::Spread;
use crate::machine::{self, Machine};
use crate::report::{Table, underlay};
use crate::scenario::Direction;

/// Memory that the feed takes from DPDK.
const MEMORY_MIB: u64 = 64;
/// Steps between two looks at the clock.
const STEPS: usize = 32;

/// What is fed to a worker.
#[derive(Clone, Copy, Debug)]
pub struct MemorySetup {
    /// From the underlay to the tenant instead of the other way.
    pub decap: bool,
    /// Every packet begins a flow.
    pub all_new: bool,
    /// Flows otherwise.
    pub flows: u32,
    /// Rules.
    pub rules: u32,
    /// IPv6 inside and outside.
    pub ipv6: bool,
    /// Bytes of a tenant's frame without its checksum.
    pub frame_bytes: u16,
    /// Flows that the worker remembers.
    pub cache_entries: u32,
    /// The core that it works on.
    pub core: usize,
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
}

/// What a worker has counted since it began: cycles of the time-stamp counter by stage.
#[derive(Clone, Debug, Default)]
pub struct MemoryFigures {
    /// Name, whether it receives or transmits, and cycles, in the order of the path.
    pub stages: Vec<(&'static str, bool, u64)>,
    /// Packets that went through all of them.
    pub packets: u64,
}

/// A worker that is fed in this process.
pub trait MemoryFeed {
    /// Feeds a burst.
    ///
    /// # Errors
    /// Not all packets came through.
    fn step(&mut self) -> Result<(), Problem>;

    /// What was counted so far.
    fn figures(&self) -> MemoryFigures;
}

/// Why there is no feed or no packet.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Makes a feed, warmed up, on the calling thread.
pub type MakeFeed = fn(&MemorySetup) -> Result<Box<dyn MemoryFeed>, Problem>;

/// Cycles per packet of one run, by stage.
#[derive(Clone, Debug)]
struct Run {
    stages: Vec<(&'static str, bool, f64)>,
    core_share: Option<f64>,
}

impl Run {
    fn between(older: &MemoryFigures, newer: &MemoryFigures, core_share: Option<f64>) -> Self {
        let packets = newer.packets.saturating_sub(older.packets).max(1) as f64;
        let stage = |(&(name, io, cycles), &(_, _, before)): (&(_, _, u64), &(_, _, u64))| {
            (name, io, cycles.saturating_sub(before) as f64 / packets)
        };
        Self { stages: newer.stages.iter().zip(&older.stages).map(stage).collect(), core_share }
    }

    fn cycles(&self, io: bool) -> f64 {
        self.stages.iter().filter(|stage| stage.1 == io).map(|stage| stage.2).sum()
    }
}

/// Runs the benchmark; gives what is to be written.
pub(crate) fn run(name: &'static str, plan: &PathPlan, make: MakeFeed) -> Result<String, BenchError> {
    let machine = Machine::look();
    let setup = setup(name, plan);
    let mut feed = make(&setup).map_err(BenchError::MemoryFeed)?;
    let runs = (0..plan.runs).map(|_| measure(feed.as_mut(), plan.duration));
    let runs = runs.collect::<Result<Vec<Run>, Problem>>().map_err(BenchError::MemoryFeed)?;
    let report = Report { name, plan, setup, machine, runs };
    Ok(if plan.json { report.to_json().to_string() } else { report.to_text() })
}

fn setup(name: &str, plan: &PathPlan) -> MemorySetup {
    let flows = plan.scenario.flows;
    MemorySetup {
        decap: plan.scenario.direction == Direction::Decap,
        all_new: name == "miss",
        flows: flows.sequence.flows,
        rules: flows.rules,
        ipv6: flows.ipv6,
        frame_bytes: u16::try_from(flows.sizes.longest()).unwrap_or(u16::MAX),
        cache_entries: plan.scenario.cache_entries.max(LEAST_CACHE_ENTRIES),
        core: plan.cores.first().copied().unwrap_or(0),
        hugepages: machine::free_hugepages_mib() >= MEMORY_MIB,
    }
}

fn measure(feed: &mut dyn MemoryFeed, duration: Duration) -> Result<Run, Problem> {
    let (cycles, thread) = (tsc::from_duration(duration), this_thread());
    let accounts = || cpu_time::of_threads(std::process::id());
    let (threads, before, began) = (accounts(), feed.figures(), tsc::now());
    while tsc::now().saturating_sub(began) < cycles {
        for _ in 0..STEPS {
            feed.step()?;
        }
    }
    let elapsed_ns = tsc::to_ns(tsc::now().saturating_sub(began)) as f64;
    let core_share = cpu_time::share(&threads, &accounts(), &thread, elapsed_ns);
    Ok(Run::between(&before, &feed.figures(), core_share))
}

/// The kernel's name of the calling thread.
fn this_thread() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default().trim().to_owned()
}

struct Report<'a> {
    name: &'static str,
    plan: &'a PathPlan,
    setup: MemorySetup,
    machine: Machine,
    runs: Vec<Run>,
}

impl Report<'_> {
    fn spread(&self, figure: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// Name, io and cycles per packet of each stage.
    fn stages(&self) -> impl Iterator<Item = (&'static str, bool, Spread)> + '_ {
        let stages = self.runs.first().map(|run| run.stages.as_slice()).unwrap_or_default();
        stages.iter().enumerate().map(|(place, (name, io, _))| {
            (*name, *io, self.spread(|run| run.stages.get(place).map_or(0.0, |stage| stage.2)))
        })
    }

    /// Path, io, and both.
    fn sums(&self) -> [(&'static str, &'static str, Spread); 3] {
        [
            ("path_cycles_per_packet", "path cycles/packet", self.spread(|run| run.cycles(false))),
            ("io_cycles_per_packet", "io cycles/packet", self.spread(|run| run.cycles(true))),
            (
                "round_cycles_per_packet",
                "round cycles/packet",
                self.spread(|run| run.cycles(false) + run.cycles(true)),
            ),
        ]
    }

    fn core_share(&self) -> Option<Spread> {
        let shares: Option<Vec<f64>> = self.runs.iter().map(|run| run.core_share).collect();
        shares.filter(|shares| !shares.is_empty()).map(Spread::of)
    }

    fn to_json(&self) -> Value {
        let setup = self.setup;
        let mut object = Map::new();
        for (name, _, spread) in self.sums() {
            spread.put(&mut object, name, 2);
        }
        let mut stages = Map::new();
        self.stages().for_each(|(name, _, spread)| spread.put(&mut stages, name, 2));
        if let Some(share) = self.core_share() {
            share.put(&mut object, "core_share", 3);
        }
        let settings = [
            ("benchmark", json!(self.name)),
            ("feed", json!(self.plan.scenario.feed.name())),
            ("flows", json!(if setup.all_new { Value::Null } else { json!(setup.flows) })),
            ("rules", json!(setup.rules)),
            ("size_bytes", json!(setup.frame_bytes)),
            ("tunnel", json!("vxlan")),
            ("ipv6", json!(setup.ipv6)),
            ("underlay", json!(underlay(setup.ipv6))),
            ("flow_cache_entries", json!(setup.cache_entries)),
            ("cores", json!(self.plan.cores)),
            ("seconds", json!(self.plan.duration.as_secs_f64())),
            ("runs", json!(self.plan.runs)),
            ("hugepages", json!(setup.hugepages)),
            ("stages", stages.into()),
            ("machine", self.machine.to_json()),
        ];
        object.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(object)
    }

    fn to_text(&self) -> String {
        let setup = self.setup;
        let flows = match setup.all_new {
            true => "every packet a new flow".to_owned(),
            false => format!("{} flows", setup.flows),
        };
        let version = if setup.ipv6 { "IPv6 in vxlan over IPv6" } else { "IPv4 in vxlan over IPv4" };
        let mut table = Table::new(format!(
            "{} fed from memory: {flows}, {} rules, {} bytes, {version}, core {}, {} runs of {} s",
            self.name,
            setup.rules,
            setup.frame_bytes,
            cores::format(&self.plan.cores),
            self.plan.runs,
            self.plan.duration.as_secs_f64(),
        ));
        let sums = self.sums();
        for (place, (_, name, spread)) in sums.into_iter().enumerate() {
            table.row(name, spread, 1);
            let own_io = [Some(false), Some(true), None].get(place).copied().flatten();
            for (name, _, spread) in self.stages().filter(|(_, io, _)| Some(*io) == own_io) {
                table.row(&format!("  {name}"), spread, 1);
            }
        }
        if let Some(share) = self.core_share() {
            table.row("share of its core", share, 2);
            cpu_time::warning(share.min).iter().for_each(|warning| table.line(warning));
        }
        table.line(&self.machine.to_text());
        table.text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::PathArgs;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: PathArgs,
    }

    fn plan(words: &str) -> Result<PathPlan, String> {
        let words = Words::try_parse_from(std::iter::once("bench").chain(words.split_whitespace()));
        let args = words.map_err(|error| error.to_string())?.args;
        args.plan(Direction::Encap, false).map_err(|error| error.to_string())
    }

    /// Ten cycles a packet in each stage, and 64 packets a step.
    struct Even(u64);

    impl MemoryFeed for Even {
        fn step(&mut self) -> Result<(), Problem> {
            self.0 += 64;
            Ok(())
        }

        fn figures(&self) -> MemoryFigures {
            let cycles = 10 * self.0;
            MemoryFigures {
                stages: vec![
                    ("admit", false, cycles),
                    ("dispatch", false, cycles),
                    ("receive", true, cycles),
                ],
                packets: self.0,
            }
        }
    }

    #[test]
    fn stages_are_summed_up() {
        let plan = plan("--feed memory --flows 7 --seconds 0.05 --runs 2 --json").unwrap();
        let json = run("encap", &plan, |_| Ok(Box::new(Even(0)))).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&json["path_cycles_per_packet"], &json["io_cycles_per_packet"]),
            (&json!(20.0), &json!(10.0))
        );
        assert_eq!(
            (&json["round_cycles_per_packet_max"], &json["stages"]["admit"]),
            (&json!(30.0), &json!(10.0))
        );
        assert_eq!((&json["feed"], &json["flows"]), (&json!("memory"), &json!(7)));
        let text = run("encap", &PathPlan { json: false, ..plan }, |_| Ok(Box::new(Even(0)))).unwrap();
        let names: Vec<_> =
            text.lines().skip(2).map(|line| line.split("  ").find(|word| !word.is_empty())).collect();
        let wanted =
            ["path cycles/packet", "admit", "dispatch", "io cycles/packet", "receive", "round cycles/packet"];
        assert_eq!(names[..6], wanted.map(Some), "{text}");
    }

    #[test]
    fn what_a_feed_cannot_do_is_named() {
        for (words, part) in [
            ("--feed memory --imix", "--feed memory with --imix: not possible (leave one of the two out)"),
            ("--feed memory --random", "with --random"),
            ("--feed memory --tunnels 2", "with --tunnels"),
            ("--feed memory --new-flows-per-second 2", "with --new-flows-per-second"),
            ("--feed memory --ipv6", "give both --ipv6 and --underlay ipv6"),
            ("--feed memory --size 1901", "beyond 1900"),
            ("--feed memif --baseline testpmd", "with --baseline"),
        ] {
            let error = plan(words).unwrap_err();
            assert!(error.contains(part), "{words}: {error}");
        }
        let words = Words::try_parse_from(["bench", "--feed", "memory", "--flows", "5"]).unwrap();
        let error = words.args.plan(Direction::Encap, true).unwrap_err().to_string();
        assert!(error.contains("with miss and --flows: not possible (leave --flows out"), "{error}");
        assert!(plan("--feed memory --ipv6 --underlay ipv6 --size 1900").is_ok());
        assert!(plan("--feed memif --imix --random --tunnels 2 --new-flows-per-second 9").is_ok());
    }
}
