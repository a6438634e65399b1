//! The benchmark harness behind `forebay bench`.
//!
//! It is a black box around the product: it starts the program that it is part of as a daemon of its own, with ports
//! that need no hardware (a file of packets that is received for ever, and a device that swallows what is sent),
//! drives it over the control API as any user would, and reports differences of the daemon's own counters. What it
//! reports is thus what the product does, not what a loop made for the benchmark does. One thing is otherwise: `--feed memory`
//! looks at a worker's rounds alone, in this process.
//! Invariant: no figure is reported from a run in which packets went uncounted; such a run is an error.
//!
//! The shortest complete run, for a test that has the binary (root, no huge pages needed):
//! `forebay bench encap --seconds 0.3 --runs 1 --json`.

mod args;
mod changes;
mod chart;
mod child;
mod compare;
mod cpu_time;
mod daemon;
mod error;
mod feed;
mod figures;
mod flows;
mod idle;
mod idle_args;
mod idle_chart;
mod idle_report;
mod instructions;
mod machine;
mod memory;
mod memory_feed;
mod newcomers;
mod ovs;
mod pacer;
mod path;
mod pcap;
mod report;
mod ring;
mod sample;
mod scenario;
mod sequence;
mod table;
mod testpmd;
mod update;
mod update_args;
mod update_report;

use std::io::{self, Write as _};
use std::process::ExitCode;

pub use crate::feed::{GENERATOR_COMMAND, GENERATOR_SENDING};
pub use crate::memory_feed::{MakeFeed, MemoryFeed, MemoryFigures, MemorySetup, Problem};
pub use crate::pacer::{PACER_COMMAND, PACER_MEASURED, PACER_SENDING, PacerFigures};

use crate::args::{CompareArgs, PathArgs, RingArgs};
use crate::error::BenchError;
use crate::idle_args::IdleArgs;
use crate::scenario::Direction;
use crate::table::TableArgs;
use crate::update_args::UpdateArgs;

/// What to measure, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Benchmark {
    /// Measure packets of a tenant that are encapsulated and sent to the underlay.
    Encap(PathArgs),
    /// Measure packets of the underlay that are decapsulated and delivered to a tenant.
    Decap(PathArgs),
    /// Measure encap with workers that remember hardly a flow, so that every packet is looked up in the rule table.
    Miss(PathArgs),
    /// Measure what changes of rules cost while packets are encapsulated.
    Update(UpdateArgs),
    /// Measure what a worker with little to do costs under each policy, and what its packets pay for its rest.
    Idle(IdleArgs),
    /// Measure encap beside every peer that is installed, in turns: dpdk-testpmd io, and Open vSwitch with DPDK.
    Compare(CompareArgs),
    /// Measure every row of the README's table, each beside dpdk-testpmd io.
    Table(TableArgs),
    /// Measure a ring between two cores.
    Ring(RingArgs),
}

/// Runs a benchmark and writes its figures to standard output. `make_feed` makes what `--feed memory` measures. Exit
/// status: 0 done, 1 it failed, 2 the words are wrong.
pub fn run(args: BenchArgs, make_feed: MakeFeed) -> ExitCode {
    match execute(&args.benchmark, make_feed).and_then(|text| write(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

/// Runs a benchmark; gives what is to be written.
fn execute(benchmark: &Benchmark, make_feed: MakeFeed) -> Result<String, BenchError> {
    // Asked before anything is pinned to a core.
    let _ = forebay_pipeline::cores::available();
    if cfg!(debug_assertions) {
        eprintln!(
            "forebay: this build is not optimised, its figures mean little (build with: cargo build --release)"
        );
    }
    match benchmark {
        Benchmark::Encap(args) => path::run("encap", &args.plan(Direction::Encap, false)?, make_feed),
        Benchmark::Decap(args) => path::run("decap", &args.plan(Direction::Decap, false)?, make_feed),
        Benchmark::Miss(args) => path::run("miss", &args.plan(Direction::Encap, true)?, make_feed),
        Benchmark::Update(args) => update::run(&args.plan()?),
        Benchmark::Idle(args) => idle::run(args),
        Benchmark::Compare(args) => compare::run(&args.plan()?),
        Benchmark::Table(args) => table::run(args),
        Benchmark::Ring(args) => ring::run(&args.plan()?),
    }
}

fn write(text: &str) -> Result<(), BenchError> {
    match writeln!(io::stdout().lock(), "{text}") {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|source| BenchError::File { path: "standard output".into(), source }),
    }
}
