//! The words of the command line, and the checked plans that they become.

use std::time::Duration;

use clap::{Args, ValueEnum};
use forebay_pipeline::{BATCH, cores};

use crate::error::BenchError;
use crate::flows::{self, Flows};
use crate::scenario::{Direction, Scenario};

/// Flows of `miss` unless told otherwise: their frames take some 160 MiB of packet memory, far beyond any cache, and no
/// cache of flows of a sensible size holds them.
pub(crate) const MISS_FLOWS: u32 = 65_536;

/// Most flows, and most rules: a million packet buffers take 3 GiB.
const MOST: i64 = 1 << 20;

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
    /// Bytes of the tenant's frame without its checksum, as handed over by the port; decap receives the same frame with
    /// the tunnel's headers in front (50 bytes, over IPv6 70)
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    size: u16,
    /// The tunnel
    #[arg(long, value_enum, default_value_t = TunnelName::Vxlan)]
    tunnel: TunnelName,
    /// IPv6, inside the tunnel and outside, instead of IPv4
    #[arg(long)]
    ipv6: bool,
    /// Cores of the workers; the traffic comes through one queue, which one worker serves [default: the first but 0]
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
    /// Checks what the parser cannot.
    pub(crate) fn plan(&self, direction: Direction, default_flows: u32) -> Result<PathPlan, BenchError> {
        let (least, most) = (flows::least_frame_bytes(self.ipv6), flows::MOST_FRAME_BYTES);
        if !(least..=most).contains(&self.size) {
            let version = if self.ipv6 { 6 } else { 4 };
            return Err(BenchError::Size { size: self.size, version, least, most });
        }
        let TunnelName::Vxlan = self.tunnel;
        let flows = Flows {
            count: self.flows.unwrap_or(default_flows),
            rules: self.rules,
            frame_bytes: usize::from(self.size),
            ipv6: self.ipv6,
        };
        let cores = match &self.cores {
            Some(list) => named(list)?,
            None => cores::default_cores().into_iter().take(1).collect(),
        };
        Ok(PathPlan {
            scenario: Scenario { direction, flows },
            cores,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            baseline: self.baseline,
            json: self.json,
        })
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

fn named(list: &str) -> Result<Vec<usize>, BenchError> {
    let listed = cores::parse(list)?;
    cores::check(&listed)?;
    Ok(listed)
}

fn seconds(text: &str) -> Result<f64, String> {
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
        args.plan(Direction::Encap, 7).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let plan = plan("").unwrap();
        assert_eq!((plan.scenario.flows.count, plan.scenario.flows.rules), (7, 1));
        assert_eq!((plan.scenario.flows.frame_bytes, plan.scenario.flows.ipv6), (64, false));
        assert_eq!((plan.duration, plan.runs, plan.cores.len()), (Duration::from_secs(2), 5, 1));
        assert!(plan.baseline.is_none() && !plan.json);
        let available = cores::available();
        assert_eq!(plan.cores[0], available.iter().copied().find(|core| *core != 0).unwrap_or(available[0]));
    }

    #[test]
    fn every_word_is_heard() {
        let core = cores::available()[0];
        let words = format!(
            "--flows 1000 --rules 10 --size 1500 --tunnel vxlan --ipv6 --cores {core} --seconds 0.5 --runs 3 --baseline testpmd --json"
        );
        let plan = plan(&words).unwrap();
        let flows = plan.scenario.flows;
        assert_eq!((flows.count, flows.rules, flows.frame_bytes, flows.ipv6), (1000, 10, 1500, true));
        assert_eq!((plan.duration, plan.runs, plan.cores), (Duration::from_millis(500), 3, vec![core]));
        assert!(plan.baseline == Some(Baseline::Testpmd) && plan.json);
    }

    #[test]
    fn wrong_values_are_named() {
        assert_eq!(
            plan("--size 41").unwrap_err(),
            "--size 41: out of range (a frame over IPv4 has 42 to 1514 bytes)"
        );
        assert_eq!(
            plan("--size 61 --ipv6").unwrap_err(),
            "--size 61: out of range (a frame over IPv6 has 62 to 1514 bytes)"
        );
        assert!(plan("--size 42").is_ok() && plan("--size 62 --ipv6").is_ok() && plan("--size 1514").is_ok());
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
