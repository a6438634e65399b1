//! The regression guard of the packet path: how many instructions a packet takes a worker, counted by Valgrind.
//!
//! Unlike time, the count is nearly the same in every run (within some 0.1 %), however busy the machine is; so it can
//! fail a build. `budget.txt` has the budget of each case, and `guard.py` runs all of this and shows it by packet.
//! Only [`counted_round`] is counted: the worker's round with the ring devices' receive and transmit, not the feed.
//! What the count does not know are waits: for memory, for a mispredicted branch. Cycles are for `examples/path.rs`.

// Those of the macros' public items.
#![allow(missing_docs)]

use forebay_dataplane::feed::{Direction, Feed, FeedError, Flows, Setup, USUAL_FRAME_BYTES};
use forebay_dataplane::task::PacketTask;
use forebay_pipeline::BATCH;
use forebay_pipeline::worker::Task;
use forebay_sriov::Hugepages;
use gungraun::prelude::*;
use gungraun::{Callgrind, EntryPoint, EventKind};
use std::hint::black_box;

/// Flows, and rules.
const FLOWS: u32 = 1000;
/// Flows that a worker remembers: all of the known ones; few enough to fill it soon where every packet is new.
const CACHE_FLOWS: usize = 8192;

/// Calls the worker's round, and is what Valgrind looks for: never inlined, nor merged with what warms up.
#[inline(never)]
fn counted_round(task: &mut PacketTask) {
    black_box(task).round();
}

/// A figure of `budget.txt`; 0 where there is none, so that a case without a budget is over it.
fn figure(wanted: &str) -> f64 {
    let mut lines = include_str!("budget.txt").lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == wanted).and_then(|(_, figure)| figure.parse().ok()).unwrap_or(0.0)
}

/// Packets that are counted. Fixed, since the instructions of all of them together are compared.
fn packets() -> u64 {
    figure("packets") as u64
}

/// The most instructions that all packets of a case may take together.
fn limit(case: &str) -> u64 {
    (figure(case) * figure("packets") * (1.0 + figure("room_percent") / 100.0)) as u64
}

/// Counts what is in [`counted_round`], and is an error where it is more than the case's budget.
fn counting(case: &str) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no", "--separate-threads=no"]);
    callgrind.entry_point(EntryPoint::Custom("*::counted_round".to_owned()));
    callgrind.hard_limits([(EventKind::Ir, limit(case))]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn fail(error: &FeedError) -> ! {
    eprintln!("guard: {error}");
    std::process::exit(1)
}

fn feed(direction: Direction, flows: Flows, ipv6: bool) -> Feed {
    let hugepages = Hugepages::Off;
    let setup = Setup {
        direction,
        flows,
        rules: FLOWS,
        ipv6,
        frame_bytes: USUAL_FRAME_BYTES,
        cache_flows: CACHE_FLOWS,
        hugepages,
    };
    Feed::new(&setup).unwrap_or_else(|error| fail(&error))
}

/// Feeds all packets. Checks that the worker has counted as many: the figure by packet rests on that.
fn count(mut feed: Feed) -> Feed {
    let before = feed.figures().packets;
    for _ in 0..packets() / BATCH as u64 {
        feed.step_by(counted_round).unwrap_or_else(|error| fail(&error));
    }
    assert_eq!(feed.figures().packets - before, packets(), "packets that the worker has counted");
    feed
}

#[library_benchmark(config = counting("encap"), setup = feed)]
#[bench::v4(Direction::Encapsulate, Flows::Known(FLOWS), false)]
fn encap(feed: Feed) -> Feed {
    count(feed)
}

#[library_benchmark(config = counting("encap_ipv6"), setup = feed)]
#[bench::v6(Direction::Encapsulate, Flows::Known(FLOWS), true)]
fn encap_ipv6(feed: Feed) -> Feed {
    count(feed)
}

#[library_benchmark(config = counting("decap"), setup = feed)]
#[bench::v4(Direction::Decapsulate, Flows::Known(FLOWS), false)]
fn decap(feed: Feed) -> Feed {
    count(feed)
}

#[library_benchmark(config = counting("miss"), setup = feed)]
#[bench::v4(Direction::Encapsulate, Flows::New, false)]
fn miss(feed: Feed) -> Feed {
    count(feed)
}

library_benchmark_group!(name = path, benchmarks = [encap, encap_ipv6, decap, miss]);
main!(library_benchmark_groups = path);
