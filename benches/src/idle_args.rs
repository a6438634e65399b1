//! The words of `forebay bench idle`, the loads that workers are measured under, and who is measured.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::args::{seconds, usual_scenario, worker_cores};
use crate::error::BenchError;
use crate::feed::Feed;
use crate::ovs;
use crate::pacer::{Pace, RING_PACKETS};
use crate::scenario::Scenario;

/// The policy that others are compared with.
pub(crate) const BUSY_POLL: &str = "busy-poll";
/// The policy that is to beat the others.
pub(crate) const LAST_PACKET: &str = "last-packet";
/// What is measured unless told otherwise: all, and a nap of the usual latency as the naive one.
const ALL: &str = "busy-poll,last-packet,interrupt,sleep:50";
/// Packets handed over at once where as many as possible are.
const SATURATED_BURST: u32 = 32;
/// What Open vSwitch is measured with beside polling: the longest of its sleeps, microseconds.
const OVS_SLEEP_US: u32 = 50;

/// What idle workers are measured with.
#[derive(Clone, Debug, Args)]
pub(crate) struct IdleArgs {
    /// What the worker does without packets: busy-poll, last-packet, interrupt or sleep:US, or several with commas between;
    /// busy-poll is always measured as well
    #[arg(long, value_name = "POLICIES", default_value = ALL)]
    policy: String,
    /// Only these loads: none, 1k, 10k, bursts, resume, saturation [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = load_name)]
    loads: Vec<String>,
    /// One load instead: packets a second; 0 sends none
    #[arg(long, value_name = "N", conflicts_with = "loads")]
    pps: Option<u32>,
    /// Packets sent at once, with --pps
    #[arg(long, value_name = "N", default_value_t = 1, requires = "pps", value_parser = clap::value_parser!(u32).range(1..=i64::from(RING_PACKETS)))]
    burst: u32,
    /// One load instead: as fast as the daemon takes, in bursts of 32
    #[arg(long, conflicts_with_all = ["loads", "pps"])]
    saturate: bool,
    /// Leave Open vSwitch out where it is installed
    #[arg(long)]
    no_ovs: bool,
    /// What the config file says of latency, microseconds
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_added_latency_us: u32,
    /// Core of the worker [default: the first but 0]
    #[arg(long, value_name = "CORE")]
    core: Option<String>,
    /// Seconds that each run is measured; one of the load `resume` is as long as two silences
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Runs of each policy; what is reported is their median, least and greatest
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write a chart too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write Markdown to a file too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What a load is to cost at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Goal {
    /// Percent of the core.
    pub cpu_percent: Option<f64>,
    /// What the first packet of a burst, or one alone, takes at p99 beyond busy-poll.
    pub added_p99_us: Option<f64>,
    /// The same of the other packets of a burst.
    pub added_rest_p99_us: Option<f64>,
    /// Least throughput over that of busy-poll.
    pub throughput: Option<f64>,
}

/// What is offered to the worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Load {
    pub name: &'static str,
    pub pace: Pace,
    /// How long a run takes at least.
    pub least: Duration,
    pub goal: Goal,
}

impl Load {
    fn new(name: &'static str, packets_per_second: u32, burst: u32, goal: Goal) -> Self {
        let pace = Pace { packets_per_second: Some(packets_per_second), burst };
        Self { name, pace, least: Duration::ZERO, goal }
    }

    /// In words.
    pub(crate) fn title(&self) -> String {
        let Pace { packets_per_second, burst } = self.pace;
        match packets_per_second {
            None => "saturation".to_owned(),
            Some(0) => "none".to_owned(),
            Some(_) if self.name == "resume" => format!("{burst} at line rate after 10 s of silence"),
            Some(pps) if burst == 1 => format!("{pps} packets/s"),
            Some(pps) => {
                format!(
                    "{burst} at once every {} ms",
                    (f64::from(burst) * 1e6 / f64::from(pps)).round() / 1e3
                )
            }
        }
    }

    pub(crate) fn has_packets(&self) -> bool {
        self.pace.packets_per_second != Some(0)
    }

    pub(crate) fn is_saturated(&self) -> bool {
        self.pace.packets_per_second.is_none()
    }

    /// The loads of the table.
    fn all() -> [Self; 6] {
        let cpu = |cpu_percent| Goal { cpu_percent: Some(cpu_percent), ..Goal::default() };
        let paced = |percent| Goal { added_p99_us: Some(60.0), ..cpu(percent) };
        let silence = Duration::from_secs(10);
        [
            Self::new("none", 0, 1, cpu(0.3)),
            Self::new("1k", 1000, 1, paced(3.0)),
            Self::new("10k", 10_000, 1, paced(12.0)),
            Self::new("bursts", 256_000, 256, Goal { added_rest_p99_us: Some(5.0), ..paced(25.0) }),
            // The first burst comes before the measuring begins.
            Self {
                least: silence * 2 + Duration::from_secs(1),
                ..Self::new("resume", RING_PACKETS / 10, RING_PACKETS, Goal::default())
            },
            Self::saturation(),
        ]
    }

    fn saturation() -> Self {
        let pace = Pace { packets_per_second: None, burst: SATURATED_BURST };
        let goal = Goal { throughput: Some(0.99), ..Goal::default() };
        Self { name: "saturation", pace, least: Duration::ZERO, goal }
    }
}

fn load_name(text: &str) -> Result<String, String> {
    let names = Load::all().map(|load| load.name);
    if names.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("the loads are {}", names.join(", ")))
    }
}

/// Who is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// Forebay with this policy.
    Forebay(String),
    /// Open vSwitch with DPDK; its threads sleep for as long as this at most, or not at all.
    Ovs { sleep_us: u32 },
}

impl Contestant {
    /// Whether it can be measured under this load. Open vSwitch sends by a queue for each of its threads, that of its control
    /// included, and a memif device that has one queue on the other side swallows what is sent by the second: the packets
    /// would not come back.
    pub(crate) fn is_able_to(&self, load: &Load) -> bool {
        matches!(self, Self::Forebay(_)) || !load.has_packets()
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Forebay(policy) => policy.clone(),
            Self::Ovs { sleep_us: 0 } => "ovs-dpdk".to_owned(),
            Self::Ovs { sleep_us } => format!("ovs-dpdk sleep:{sleep_us}"),
        }
    }
}

/// How idle workers are measured.
#[derive(Clone, Debug)]
pub(crate) struct IdlePlan {
    pub scenario: Scenario,
    /// Busy-poll first.
    pub contestants: Vec<Contestant>,
    /// The policies that the user named.
    pub asked: Vec<String>,
    pub loads: Vec<Load>,
    /// Why Open vSwitch is not among those that are measured.
    pub ovs_missing: Option<String>,
    pub max_added_latency_us: u32,
    pub core: usize,
    pub duration: Duration,
    pub runs: u32,
    pub svg: Option<PathBuf>,
    pub markdown: Option<PathBuf>,
    pub json: bool,
}

impl IdleArgs {
    /// Checks what the parser cannot. What a policy may be called the daemon knows best.
    pub(crate) fn plan(&self) -> Result<IdlePlan, BenchError> {
        let cores = worker_cores(self.core.as_deref())?;
        let [core] = cores.as_slice() else { return Err(BenchError::CompareCores { count: cores.len() }) };
        let (mut policies, mut asked) = (vec![BUSY_POLL.to_owned()], Vec::new());
        for policy in self.policy.split(',') {
            let is_sleep = policy.strip_prefix("sleep:").is_some_and(|us| us.parse::<u16>().is_ok());
            if !is_sleep && ![BUSY_POLL, LAST_PACKET, "interrupt"].contains(&policy) {
                return Err(BenchError::Policy { policy: policy.to_owned() });
            }
            for names in [&mut policies, &mut asked] {
                if !names.iter().any(|other| other == policy) {
                    names.push(policy.to_owned());
                }
            }
        }
        let mut contestants: Vec<_> = policies.into_iter().map(Contestant::Forebay).collect();
        let ovs_missing = match ovs::find() {
            _ if self.no_ovs => Some("left out by --no-ovs".to_owned()),
            Err(reason) => Some(reason),
            Ok(_) => {
                contestants.extend([0, OVS_SLEEP_US].map(|sleep_us| Contestant::Ovs { sleep_us }));
                None
            }
        };
        Ok(IdlePlan {
            scenario: Scenario { feed: Feed::Paced, ..usual_scenario(1, 1, 1) },
            contestants,
            asked,
            loads: self.offered(),
            ovs_missing,
            max_added_latency_us: self.max_added_latency_us,
            core: *core,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            svg: self.svg.clone(),
            markdown: self.markdown.clone(),
            json: self.json,
        })
    }

    fn offered(&self) -> Vec<Load> {
        match self.pps {
            _ if self.saturate => vec![Load::saturation()],
            Some(pps) => vec![Load::new("asked", pps, self.burst, Goal::default())],
            None => Load::all()
                .into_iter()
                .filter(|load| self.loads.is_empty() || self.loads.iter().any(|name| name == load.name))
                .collect(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: IdleArgs,
    }

    /// The plan of these words, on core 0 and without Open vSwitch.
    pub(crate) fn plan(words: &[&str]) -> Result<IdlePlan, String> {
        let own = ["bench", "--core", "0", "--no-ovs"];
        let words = Words::try_parse_from(own.into_iter().chain(words.iter().copied()));
        words.map_err(|error| error.to_string())?.args.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn busy_poll_is_always_among_the_policies() {
        let names = |text| {
            let plan = plan(&["--policy", text])?;
            Ok::<_, String>(plan.contestants.iter().map(Contestant::name).collect::<Vec<_>>())
        };
        assert_eq!(names("interrupt").unwrap(), ["busy-poll", "interrupt"]);
        assert_eq!(names("sleep:70,busy-poll").unwrap(), ["busy-poll", "sleep:70"]);
        let error = names("sleep").unwrap_err();
        assert!(error.contains("--policy \"sleep\": unknown"), "{error}");
        assert_eq!(plan(&[]).unwrap().contestants.len(), 4);
        assert_eq!(plan(&[]).unwrap().ovs_missing.as_deref(), Some("left out by --no-ovs"));
        let ovs = Contestant::Ovs { sleep_us: 50 };
        assert_eq!(ovs.name(), "ovs-dpdk sleep:50");
        assert_eq!(Load::all().map(|load| ovs.is_able_to(&load)), [true, false, false, false, false, false]);
    }

    #[test]
    fn every_load_is_measured_unless_some_are_named() {
        let names = |words: &[&str]| {
            let plan = plan(words)?;
            Ok::<_, String>(plan.loads.iter().map(|load| load.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["none", "1k", "10k", "bursts", "resume", "saturation"]);
        assert_eq!(names(&["--loads", "10k,none"]).unwrap(), ["none", "10k"]);
        assert!(names(&["--loads", "2k"]).unwrap_err().contains("the loads are none, 1k"));
        let saturated = plan(&["--saturate"]).unwrap().loads;
        assert_eq!(saturated[0].pace, Pace { packets_per_second: None, burst: 32 });
        assert!(names(&["--saturate", "--pps", "5"]).is_err() && names(&["--burst", "5"]).is_err());
        let own = plan(&["--pps", "500", "--burst", "4"]).unwrap().loads;
        assert_eq!((own.len(), own[0].title().as_str()), (1, "4 at once every 8 ms"));
    }

    #[test]
    fn the_loads_are_those_of_the_table() {
        let titles = Load::all().map(|load| load.title());
        assert_eq!(titles[1..4], ["1000 packets/s", "10000 packets/s", "256 at once every 1 ms"]);
        let [.., resume, _] = Load::all();
        // What comes after a silence fills the ring and no more.
        assert_eq!(resume.pace.burst, RING_PACKETS);
        let silence_s = f64::from(resume.pace.burst) / f64::from(resume.pace.packets_per_second.unwrap());
        assert!((10.0..10.1).contains(&silence_s) && resume.least.as_secs_f64() > 2.0 * silence_s);
    }
}
