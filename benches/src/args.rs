//! The words of the command line, and the checked plans that they become.

use std::time::Duration;

use clap::{Args, ValueEnum};
use forebay_pipeline::{BATCH, cores};

use crate::error::BenchError;
use crate::feed::{self, Feed};
use crate::flows::{self, Flows, MOST_LANES};
use crate::scenario::{Direction, Scenario};
use crate::sequence::{Sequence, Sizes};

/// Flows of `miss` unless told otherwise: their frames take some 160 MiB of packet memory, far beyond any cache.
pub(crate) const MISS_FLOWS: u32 = 65_536;
/// Least and most flows that a worker of the daemon can remember, and what it does unless told otherwise.
pub(crate) const LEAST_CACHE_ENTRIES: u32 = 64;
const MOST_CACHE_ENTRIES: i64 = 1 << 24;
const USUAL_CACHE_ENTRIES: u32 = 262_144;
/// The shortest frame of Ethernet with its checksum, the usual measure of a packet path.
pub(crate) const USUAL_FRAME_BYTES: usize = 64;

/// Most flows, and most rules: a million packet buffers take 4 GiB.
pub(crate) const MOST: i64 = 1 << 20;

/// Tunnels that many rules share: as many as there are other hosts that a host has to do with, and what VPP's published
/// figures for 100,000 routes have.
pub(crate) const SHARED_TUNNELS: u32 = 1000;

/// Shortest run, seconds: the daemon's counters are read in about a millisecond, 2 % of it.
const LEAST_SECONDS: f64 = 0.05;
const MOST_SECONDS: f64 = 3600.0;

/// What the packet path is measured with.
#[derive(Clone, Debug, Args)]
pub(crate) struct PathArgs {
    /// Flows of the traffic: UDP, spread evenly over the rules, in an order without pattern [default: 1; miss: 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    flows: Option<u32>,
    /// Rules that are loaded: encap, one for each destination prefix; decap, one for each VXLAN network
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    rules: u32,
    /// Bytes of the tenant's frame without its checksum, as handed over by the port, up to 9000; decap receives the same
    /// frame with the tunnel's headers in front (50 bytes, over IPv6 70)
    #[arg(long, value_name = "BYTES", default_value_t = 64, conflicts_with = "imix")]
    size: u16,
    /// Frames of three lengths instead: of twelve, seven are of 64 bytes with their checksum, four of 594, one of 1518
    #[arg(long)]
    imix: bool,
    /// Where the packets come from
    #[arg(long, value_enum, default_value_t = Feed::Pcap)]
    feed: Feed,
    /// Draw the packets' flows at random, so that some come twice in a row of as many packets as there are flows and some
    /// not at all; otherwise each comes once
    #[arg(long)]
    random: bool,
    /// Packets a second that begin a flow, among those of the flows that go on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    new_flows_per_second: Option<u32>,
    /// Flows that each worker remembers [default: twice as many as there are, at least 262144; miss: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(LEAST_CACHE_ENTRIES)..=MOST_CACHE_ENTRIES))]
    flow_cache_entries: Option<u32>,
    /// The tunnel
    #[arg(long, value_enum, default_value_t = TunnelName::Vxlan)]
    tunnel: TunnelName,
    /// Tunnels, each to its own remote and with its own network, that the rules share [default: a network for each rule,
    /// one remote]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=flows::MOST_TUNNELS))]
    tunnels: Option<u32>,
    /// IPv6 inside the tunnel instead of IPv4
    #[arg(long)]
    ipv6: bool,
    /// What the tunnel goes over
    #[arg(long, value_enum, default_value_t = Underlay::Ipv4)]
    underlay: Underlay,
    /// Cores of the workers; each has a tenant with that many flows and rules to itself. With more than one, the first is
    /// measured alone as well, in turns with all [default: the first but 0]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Seconds that each run is measured, after 0.3 s of warming up
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Runs; what is reported is their median, least and greatest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Measure another program in turns with Forebay, on the same core and the same packets
    #[arg(long, value_enum)]
    baseline: Option<Baseline>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What Forebay and its peers are compared with.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareArgs {
    /// Flows of the traffic
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    flows: u32,
    /// Rules, one for each destination prefix
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    rules: u32,
    /// Core that forwards [default: the first but 0]
    #[arg(long, value_name = "CORE")]
    core: Option<String>,
    /// Seconds that each run is measured, after warming up
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Runs of each; what is reported is their median, least and greatest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// How Forebay and its peers are compared.
#[derive(Clone, Debug)]
pub(crate) struct ComparePlan {
    pub scenario: Scenario,
    pub core: usize,
    pub duration: Duration,
    pub runs: u32,
    pub json: bool,
}

impl CompareArgs {
    /// Checks what the parser cannot.
    pub(crate) fn plan(&self) -> Result<ComparePlan, BenchError> {
        let cores = worker_cores(self.core.as_deref())?;
        let [core] = cores.as_slice() else {
            return Err(BenchError::CompareCores { count: cores.len() });
        };
        Ok(ComparePlan {
            scenario: usual_scenario(self.flows, self.rules, 1),
            core: *core,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            json: self.json,
        })
    }
}

/// Encapsulation of short frames over IPv4.
pub(crate) fn usual_scenario(flows: u32, rules: u32, lanes: u8) -> Scenario {
    let sizes = Sizes::Fixed(USUAL_FRAME_BYTES);
    let sequence = Sequence::new(flows, sizes, false);
    let flows =
        Flows { sequence, rules, sizes, ipv6: false, underlay_ipv6: false, tunnels: None, ports: 1, lane: 0 };
    let cache_entries = usual_cache_entries(sequence.flows);
    Scenario { direction: Direction::Encap, flows, lanes, cache_entries, feed: Feed::Pcap }
}

/// Room for twice the flows: sets of a cache do not fill evenly.
fn usual_cache_entries(flows: u32) -> u32 {
    flows.saturating_mul(2).max(USUAL_CACHE_ENTRIES)
}

/// What the ring is measured with.
#[derive(Clone, Debug, Args)]
pub(crate) struct RingArgs {
    /// Items that are pushed at once, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=BATCH as i64))]
    burst: u16,
    /// The producer's core and the consumer's [default: the first two]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Seconds that each run is measured
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Runs; what is reported is their median, least and greatest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TunnelName {
    /// VXLAN, RFC 7348
    Vxlan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Underlay {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

/// The program that Forebay is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Baseline {
    /// DPDK's dpdk-testpmd, which receives and sends and does nothing between: the least that packets cost
    Testpmd,
}

/// How a benchmark of the packet path is run.
#[derive(Clone, Debug)]
pub(crate) struct PathPlan {
    pub scenario: Scenario,
    /// Cores of the workers, at least one.
    pub cores: Vec<usize>,
    pub duration: Duration,
    pub runs: u32,
    /// Packets a second that shall begin a flow.
    pub new_flows_per_second: Option<u32>,
    pub baseline: Option<Baseline>,
    pub json: bool,
}

/// How the ring is measured.
#[derive(Clone, Debug)]
pub(crate) struct RingPlan {
    pub burst: usize,
    pub producer_core: usize,
    pub consumer_core: usize,
    pub duration: Duration,
    pub runs: u32,
    pub json: bool,
}

impl PathArgs {
    /// Checks what the parser cannot. `miss`: no flow shall be remembered.
    pub(crate) fn plan(&self, direction: Direction, miss: bool) -> Result<PathPlan, BenchError> {
        let (least, most) = (flows::least_frame_bytes(self.ipv6), flows::MOST_FRAME_BYTES);
        if !(least..=most).contains(&self.size) {
            let version = if self.ipv6 { 6 } else { 4 };
            return Err(BenchError::Size { size: self.size, version, least, most });
        }
        let cores = worker_cores(self.cores.as_deref())?;
        tunnels_on(self.tunnels, &cores)?;
        if miss && self.feed == Feed::Memory && self.flows.is_some() {
            let (words, remedy) = ("miss and --flows", "leave --flows out: every packet begins a flow");
            return Err(BenchError::Feed { feed: self.feed.name(), words, remedy });
        }
        let flows = self.flows.unwrap_or(if miss { MISS_FLOWS } else { 1 });
        let usual = if miss { LEAST_CACHE_ENTRIES } else { usual_cache_entries(flows) };
        let scenario = Scenario {
            direction,
            flows: self.lane_flows(flows),
            lanes: cores.len() as u8,
            cache_entries: self.flow_cache_entries.unwrap_or(usual),
            feed: self.feed,
        };
        let plan = PathPlan {
            scenario,
            cores,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            new_flows_per_second: self.new_flows_per_second,
            baseline: self.baseline,
            json: self.json,
        };
        feed::check(&plan)?;
        Ok(plan)
    }

    fn lane_flows(&self, flows: u32) -> Flows {
        let TunnelName::Vxlan = self.tunnel;
        let sizes = if self.imix { Sizes::Imix } else { Sizes::Fixed(usize::from(self.size)) };
        Flows {
            sequence: Sequence::new(flows, sizes, self.random),
            rules: self.rules,
            sizes,
            ipv6: self.ipv6,
            underlay_ipv6: self.underlay == Underlay::Ipv6,
            tunnels: self.tunnels,
            ports: 1,
            lane: 0,
        }
    }
}

impl RingArgs {
    /// Checks what the parser cannot.
    pub(crate) fn plan(&self) -> Result<RingPlan, BenchError> {
        let available = cores::available();
        let (producer_core, consumer_core) = match &self.cores {
            Some(list) => match named(list)?.as_slice() {
                [producer, consumer] => (*producer, *consumer),
                other => return Err(BenchError::RingCores { given: list.clone(), count: other.len() }),
            },
            None => {
                let first = available.first().copied().unwrap_or(0);
                (first, available.get(1).copied().unwrap_or(first))
            }
        };
        Ok(RingPlan {
            burst: usize::from(self.burst),
            producer_core,
            consumer_core,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            json: self.json,
        })
    }
}

/// The tunnels, on one core.
pub(crate) fn tunnels_on(tunnels: Option<u32>, cores: &[usize]) -> Result<Option<u32>, BenchError> {
    if cores.len() > 1 && tunnels.is_some() {
        // The daemon sends what lies behind routers out of the first uplink, whoever has it from.
        return Err(BenchError::TunnelsOnCores { count: cores.len() });
    }
    Ok(tunnels)
}

/// The cores of the workers: those that are named, or the first that is left to workers.
pub(crate) fn worker_cores(list: Option<&str>) -> Result<Vec<usize>, BenchError> {
    let cores = match list {
        Some(list) => named(list)?,
        None => cores::default_cores().into_iter().take(1).collect(),
    };
    if cores.len() > MOST_LANES {
        return Err(BenchError::ManyCores { count: cores.len(), most: MOST_LANES });
    }
    Ok(cores)
}

fn named(list: &str) -> Result<Vec<usize>, BenchError> {
    let listed = cores::parse(list)?;
    cores::check(&listed)?;
    Ok(listed)
}

pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) => Ok(seconds),
        _ => Err(format!("write seconds from {LEAST_SECONDS} to {MOST_SECONDS}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: PathArgs,
    }

    #[derive(Debug, Parser)]
    struct RingWords {
        #[command(flatten)]
        args: RingArgs,
    }

    fn plan(words: &str) -> Result<PathPlan, String> {
        let words = Words::try_parse_from(std::iter::once("bench").chain(words.split_whitespace()));
        let args = words.map_err(|error| error.to_string())?.args;
        args.plan(Direction::Encap, false).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let plan = plan("").unwrap();
        let flows = plan.scenario.flows;
        assert_eq!(flows, Flows::plain(1, 1, 64));
        assert_eq!((plan.scenario.cache_entries, plan.new_flows_per_second), (262_144, None));
        assert_eq!((plan.duration, plan.runs, plan.cores.len()), (Duration::from_secs(2), 5, 1));
        assert!(plan.baseline.is_none() && !plan.json);
        let available = cores::available();
        assert_eq!(plan.cores[0], available.iter().copied().find(|core| *core != 0).unwrap_or(available[0]));
    }

    #[test]
    fn every_word_is_heard() {
        let core = cores::available()[0];
        let words = format!(
            "--flows 1000000 --rules 10 --size 1500 --tunnel vxlan --tunnels 5 --ipv6 --underlay ipv6 --random \
             --new-flows-per-second 9 --cores {core} --seconds 0.5 --runs 3 --baseline testpmd --json"
        );
        let plan = plan(&words).unwrap();
        let flows = plan.scenario.flows;
        assert_eq!((flows.sequence.flows, flows.rules, flows.sizes), (1_000_000, 10, Sizes::Fixed(1500)));
        assert!(flows.ipv6 && flows.underlay_ipv6 && flows.sequence.random);
        assert_eq!((flows.tunnels, plan.new_flows_per_second), (Some(5), Some(9)));
        assert_eq!((plan.scenario.cache_entries, plan.scenario.lanes), (2_000_000, 1));
        assert_eq!((plan.duration, plan.runs, plan.cores), (Duration::from_millis(500), 3, vec![core]));
        assert!(plan.baseline == Some(Baseline::Testpmd) && plan.json);
    }

    #[test]
    fn a_miss_remembers_nothing_and_imix_has_no_size() {
        let words = Words::try_parse_from(["bench"]).unwrap();
        let scenario = words.args.plan(Direction::Encap, true).unwrap().scenario;
        assert_eq!((scenario.flows.sequence.flows, scenario.cache_entries), (MISS_FLOWS, 64));
        assert_eq!(plan("--imix").unwrap().scenario.flows.sizes, Sizes::Imix);
        assert!(plan("--imix --size 100").unwrap_err().contains("cannot be used with"));
        let kept = plan("--flow-cache-entries 128 --flows 7").unwrap().scenario;
        assert_eq!((kept.cache_entries, kept.flows.sequence.flows), (128, 7));
    }

    #[test]
    fn wrong_values_are_named() {
        assert_eq!(
            plan("--size 41").unwrap_err(),
            "--size 41: out of range (a frame over IPv4 has 42 to 9000 bytes)"
        );
        assert_eq!(
            plan("--size 61 --ipv6").unwrap_err(),
            "--size 61: out of range (a frame over IPv6 has 62 to 9000 bytes)"
        );
        assert!(plan("--size 42").is_ok() && plan("--size 62 --ipv6").is_ok() && plan("--size 9000").is_ok());
        assert!(plan("--cores 1023").unwrap_err().starts_with("--cores: core 1023 is not available"));
        assert!(plan("--cores 1,").unwrap_err().contains("a comma too many?"));
        for words in [
            "--flows 0",
            "--flows 1048577",
            "--rules 0",
            "--runs 0",
            "--seconds 0",
            "--seconds nan",
            "--tunnel geneve",
            "--tunnels 0",
            "--underlay ipx",
            "--flow-cache-entries 63",
        ] {
            assert!(plan(words).unwrap_err().contains("invalid value"), "{words}");
        }
    }

    #[test]
    fn a_ring_has_two_ends() {
        let plan = |words: &str| {
            let words = RingWords::try_parse_from(std::iter::once("bench").chain(words.split_whitespace()));
            words.map_err(|error| error.to_string())?.args.plan().map_err(|error| error.to_string())
        };
        let core = cores::available()[0];
        assert_eq!(plan("").unwrap().burst, 32);
        assert!(plan(&format!("--cores {core}")).unwrap_err().contains("1 cores (the ring joins two"));
        assert!(plan("--burst 65").unwrap_err().contains("invalid value"));
    }
}
