//! What a packet costs a worker, stage by stage, without devices or a daemon around it:
//! `cargo run --release -p forebay-dataplane --example path -- encap --flows 1000 --rules 1000 [--ipv6] [--seconds 1]`.
//!
//! Cycles of the time-stamp counter per packet, the median and the best of seven runs. Packets are warm in the caches,
//! which is not so behind a real device: what differs here between two versions of the code is the code. On a machine
//! that does other things too, compare the best; `benches/guard.rs` counts instructions, which do not care.

use clap::{Parser, ValueEnum};
use forebay_dataplane::feed::{Direction, Feed, FeedError, Figures, Flows, Setup, USUAL_FRAME_BYTES};
use forebay_pipeline::tsc;
use forebay_sriov::Hugepages;
use std::error::Error;
use std::time::Duration;

/// Runs, of which the median and the best are shown.
const RUNS: usize = 7;
/// Steps between two looks at the clock.
const STEPS: usize = 32;
/// Most flows and rules, as with `forebay bench`.
const MOST: i64 = 1 << 20;

/// Cycles per packet of a worker, by stage
#[derive(Parser)]
struct Words {
    /// What the worker does
    #[arg(value_enum)]
    job: Job,
    /// Flows, all known to the worker; with miss, every packet begins one
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    flows: u32,
    /// Rules
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    rules: u32,
    /// IPv6, inside the tunnel and outside
    #[arg(long)]
    ipv6: bool,
    /// Seconds that all runs take together, after warming up
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Flows that the worker can remember; the default is the daemon's
    #[arg(long, default_value_t = 1 << 18, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    cache_flows: u32,
    /// Go without huge pages where there are some
    #[arg(long)]
    no_huge: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Job {
    /// Encapsulate packets of known flows
    Encap,
    /// Decapsulate packets of known flows
    Decap,
    /// Encapsulate packets that each begin a flow
    Miss,
}

/// Cycles per packet of one run: the path and its stages, then the devices.
struct Run {
    path: f64,
    parts: Vec<(&'static str, f64)>,
}

impl Run {
    fn between(before: &Figures, after: &Figures) -> Run {
        let packets = (after.packets - before.packets).max(1) as f64;
        let all = |figures: &Figures| -> Vec<_> { figures.path.iter().chain(&figures.io).copied().collect() };
        let parts: Vec<_> = all(before)
            .into_iter()
            .zip(all(after))
            .map(|((name, before), (_, after))| (name, (after - before) as f64 / packets))
            .collect();
        Run { path: parts.iter().take(before.path.len()).map(|(_, cycles)| cycles).sum(), parts }
    }
}

/// The median and the least.
fn middle_and_best(mut figures: Vec<f64>) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let at = |place: usize| figures.get(place).copied().unwrap_or(f64::NAN);
    (at(figures.len() / 2), at(0))
}

fn run(feed: &mut Feed, cycles: u64) -> Result<Run, FeedError> {
    let before = feed.figures();
    let began = tsc::now();
    while tsc::now().saturating_sub(began) < cycles {
        for _ in 0..STEPS {
            feed.step()?;
        }
    }
    Ok(Run::between(&before, &feed.figures()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let words = Words::parse();
    let time = Duration::try_from_secs_f64(words.seconds)?;
    let mut feed = Feed::new(&Setup {
        direction: if words.job == Job::Decap { Direction::Decapsulate } else { Direction::Encapsulate },
        flows: if words.job == Job::Miss { Flows::New } else { Flows::Known(words.flows) },
        rules: words.rules,
        ipv6: words.ipv6,
        frame_bytes: USUAL_FRAME_BYTES,
        cache_flows: words.cache_flows as usize,
        hugepages: if words.no_huge { Hugepages::Off } else { Hugepages::Auto },
    })?;
    let cycles = tsc::from_duration(time) / RUNS as u64;
    let runs = (0..RUNS).map(|_| run(&mut feed, cycles)).collect::<Result<Vec<Run>, FeedError>>()?;
    println!("cycles per packet  median    best");
    let row = |name: &str, figures: Vec<f64>| {
        let (median, best) = middle_and_best(figures);
        println!("{name:<17} {median:>7.1} {best:>7.1}");
    };
    row("path", runs.iter().map(|run| run.path).collect());
    let names = runs.first().map(|run| run.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (place, name) in names.unwrap_or_default().into_iter().enumerate() {
        let of_part = |run: &Run| run.parts.get(place).map(|(_, cycles)| *cycles);
        row(&format!("  {name}"), runs.iter().filter_map(of_part).collect());
    }
    Ok(())
}
