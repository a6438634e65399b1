//! `forebay bench table`: every row of the README's table in one run, each beside testpmd io in turns.
//!
//! Invariant: a row that could not be measured is named with the reason and the command fails, but what was measured
//! before and after is not lost.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use forebay_pipeline::cores;
use serde_json::{Value, json};

use crate::args::{
    Baseline, LEAST_CACHE_ENTRIES, MISS_FLOWS, PathPlan, SHARED_TUNNELS, USUAL_FRAME_BYTES, seconds,
    usual_scenario,
};
use crate::chart::{self, Bar};
use crate::error::BenchError;
use crate::flows::Flows;
use crate::machine::Machine;
use crate::path::{bench, interruptible};
use crate::report::PathReport;
use crate::sample::QUANTILES;
use crate::scenario::Direction;
use crate::sequence::{Sequence, Sizes};

/// What the table is made with.
#[derive(Clone, Debug, Args)]
pub(crate) struct TableArgs {
    /// Seconds that each run of a row is measured
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Runs of each row; what is reported is their median
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Only these rows, by the names that JSON has [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = row_name)]
    rows: Vec<String>,
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

/// A row: what is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    name: &'static str,
    direction: Direction,
    /// No flow is remembered.
    miss: bool,
    flows: u32,
    /// Packets a second that begin a flow, beside the flows that go on.
    new_flows_per_second: Option<u32>,
    rules: u32,
    /// Tunnels that the rules share; a network for each rule where not given.
    tunnels: Option<u32>,
    sizes: Sizes,
    /// Inside and outside.
    ipv6: bool,
    cores: usize,
}

const ENCAP: Row = Row {
    name: "encap-1",
    direction: Direction::Encap,
    miss: false,
    flows: 1,
    new_flows_per_second: None,
    rules: 1000,
    tunnels: None,
    sizes: Sizes::Fixed(USUAL_FRAME_BYTES),
    ipv6: false,
    cores: 1,
};
const ENCAP_1K: Row = Row { name: "encap-1k", flows: 1000, ..ENCAP };
const DECAP: Row = Row { name: "decap-1k", direction: Direction::Decap, ..ENCAP_1K };
const MISS: Row = Row { name: "miss-1k", miss: true, flows: MISS_FLOWS, ..ENCAP };
/// As many tunnels as in what others publish about so many routes.
const MANY: Row = Row { rules: 100_000, tunnels: Some(SHARED_TUNNELS), ..ENCAP };

/// The rows in their order.
const ROWS: [Row; 14] = [
    ENCAP,
    ENCAP_1K,
    Row { name: "encap-100k", flows: 100_000, ..MANY },
    Row { name: "encap-1m", flows: 1_000_000, rules: 1_000_000, ..MANY },
    DECAP,
    Row { name: "decap-100k", direction: Direction::Decap, flows: 100_000, ..MANY },
    MISS,
    Row { name: "miss-1m", miss: true, flows: MISS_FLOWS, rules: 1_000_000, ..MANY },
    Row { name: "newcomers", new_flows_per_second: Some(1_000_000), ..ENCAP_1K },
    Row { name: "ipv6", ipv6: true, ..ENCAP_1K },
    Row { name: "imix", sizes: Sizes::Imix, ..ENCAP_1K },
    Row { name: "size-1518", sizes: Sizes::Fixed(1518), ..ENCAP_1K },
    Row { name: "size-9000", sizes: Sizes::Fixed(9000), ..ENCAP_1K },
    Row { name: "two-cores", cores: 2, ..ENCAP_1K },
];

fn row_name(text: &str) -> Result<String, String> {
    let names = ROWS.map(|row| row.name);
    if names.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("the rows are {}", names.join(", ")))
    }
}

impl Row {
    fn plan(&self, args: &TableArgs) -> Result<PathPlan, BenchError> {
        let cores = match self.cores {
            1 => cores::default_cores().into_iter().take(1).collect(),
            count => cores::available().into_iter().take(count).collect::<Vec<_>>(),
        };
        if cores.len() < self.cores {
            return Err(BenchError::FewCores { wanted: self.cores, available: cores.len() });
        }
        let mut scenario = usual_scenario(self.flows, self.rules, cores.len() as u8);
        scenario.direction = self.direction;
        scenario.flows = Flows {
            sequence: Sequence::new(self.flows, self.sizes, false),
            sizes: self.sizes,
            tunnels: self.tunnels,
            ipv6: self.ipv6,
            underlay_ipv6: self.ipv6,
            ..scenario.flows
        };
        if self.miss {
            scenario.cache_entries = LEAST_CACHE_ENTRIES;
        }
        Ok(PathPlan {
            scenario,
            cores,
            duration: Duration::from_secs_f64(args.seconds),
            runs: args.runs,
            new_flows_per_second: self.new_flows_per_second,
            baseline: Some(Baseline::Testpmd),
            json: args.json,
        })
    }

    /// The row in words.
    fn title(&self) -> String {
        let what = match (self.direction, self.miss) {
            (Direction::Encap, false) => "encap",
            (Direction::Encap, true) => "encap, no flow remembered",
            (Direction::Decap, _) => "decap",
        };
        let version = if self.ipv6 { ", IPv6 inside and outside" } else { "" };
        let size = match self.sizes {
            Sizes::Fixed(USUAL_FRAME_BYTES) => String::new(),
            Sizes::Fixed(bytes) => format!(", {bytes} bytes"),
            Sizes::Imix => ", IMIX".to_owned(),
        };
        let wanted = self.new_flows_per_second.map(|wanted| format!(", {wanted} new flows/s wanted"));
        let cores = if self.cores > 1 { format!(", {} cores", self.cores) } else { String::new() };
        format!("{what}{version}{size}{}{cores}", wanted.unwrap_or_default())
    }
}

/// What became of a row.
type Outcome = (Row, Result<PathReport, BenchError>);

/// Runs all rows; writes the table.
pub(crate) fn run(args: &TableArgs) -> Result<String, BenchError> {
    let machine = Machine::look();
    let rows: Vec<Row> = ROWS
        .into_iter()
        .filter(|row| args.rows.is_empty() || args.rows.iter().any(|name| name == row.name))
        .collect();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        eprintln!("forebay: row {} of {}: {}", number + 1, rows.len(), row.name);
        let outcome = row.plan(args).and_then(|plan| interruptible(bench(row.name, &plan)));
        match outcome {
            Err(BenchError::Stopped) => return Err(BenchError::Stopped),
            outcome => outcomes.push((*row, outcome)),
        }
    }
    let text = if args.json {
        to_json(args, &machine, &outcomes).to_string()
    } else {
        to_markdown(&machine, &outcomes)
    };
    let failed: Vec<_> =
        outcomes.iter().filter(|(_, outcome)| outcome.is_err()).map(|(row, _)| row.name).collect();
    let written = write_files(args, &machine, &outcomes);
    if failed.is_empty() && written.is_ok() {
        return Ok(text);
    }
    crate::write(&text)?;
    written?;
    Err(BenchError::Rows { names: failed.join(", ") })
}

/// Writes the other forms that were asked for.
fn write_files(args: &TableArgs, machine: &Machine, outcomes: &[Outcome]) -> Result<(), BenchError> {
    if let Some(path) = &args.markdown {
        write_file(path, &format!("{}\n", to_markdown(machine, outcomes)))?;
    }
    if let Some(path) = &args.svg {
        write_file(path, &chart::svg(&machine.to_text(), &bars(outcomes))?)?;
    }
    Ok(())
}

fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|source| BenchError::File { path: path.to_owned(), source })
}

fn bars(outcomes: &[Outcome]) -> Vec<Bar> {
    let bar = |(row, outcome): &Outcome| {
        let report = outcome.as_ref().ok()?;
        let flows = if row.miss { String::new() } else { format!(", {} flows", row.flows) };
        Some(Bar {
            name: format!("{}{flows}, {} rules", row.title(), row.rules),
            forebay: report.spread(|run| run.worker_cycles_per_packet).median,
            io: report.baseline().map(|(io, _)| io.median),
        })
    };
    outcomes.iter().filter_map(bar).collect()
}

fn to_json(args: &TableArgs, machine: &Machine, outcomes: &[Outcome]) -> Value {
    let row = |(row, outcome): &Outcome| match outcome {
        Ok(report) => {
            let mut json = report.to_json();
            json["row"] = row.name.into();
            json
        }
        Err(error) => json!({"row": row.name, "error": error.to_string()}),
    };
    json!({
        "benchmark": "table",
        "seconds": args.seconds,
        "runs": args.runs,
        "rows": outcomes.iter().map(row).collect::<Vec<_>>(),
        "machine": machine.to_json(),
    })
}

fn to_markdown(machine: &Machine, outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| | flows | rules | tunnels | Mpackets/s | cycles/packet | of these, path | testpmd io | latency ns p50 / p99 / p999 / max | lost |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (row, outcome) in outcomes {
        let figures = match outcome {
            Ok(report) => figures(report),
            Err(error) => format!("not measured: {error} | | | | |"),
        };
        // Writing to a text cannot fail.
        let tunnels = row.tunnels.unwrap_or(row.rules);
        let _ = writeln!(text, "| {} | {} | {} | {tunnels} | {figures} |", row.title(), row.flows, row.rules);
    }
    for (row, report) in outcomes.iter().filter_map(|(row, outcome)| Some((row, outcome.as_ref().ok()?))) {
        if let Some((_, ratio)) = report.alone() {
            let _ =
                writeln!(text, "\n{} cores carry {ratio:.2} times what the first carries alone.", row.cores);
        }
        if let Some((began, share)) = report.new_flows() {
            let _ = writeln!(
                text,
                "\nBeside the {} flows that go on, {:.0} a second began: {:.1} % of the packets.",
                row.flows,
                began.median,
                100.0 * share
            );
        }
    }
    if let Some(reason) =
        outcomes.iter().find_map(|(_, outcome)| outcome.as_ref().ok()?.baseline_missing.as_ref())
    {
        let _ = writeln!(text, "\nNo testpmd io: {reason}.");
    }
    let _ = write!(text, "\n{}", machine.to_text());
    text
}

/// The cells of a row that was measured.
fn figures(report: &PathReport) -> String {
    let latency: Vec<String> = QUANTILES
        .iter()
        .enumerate()
        .map(|(place, _)| format!("{:.0}", report.spread(|run| run.latency_ns[place] as f64).median))
        .collect();
    format!(
        "{:.2} | {:.0} | {:.0} | {} | {} | {:.0}",
        report.spread(|run| run.packets_per_second).median / 1e6,
        report.spread(|run| run.worker_cycles_per_packet).median,
        report.spread(|run| run.path_cycles_per_packet).median,
        report.baseline().map_or("-".to_owned(), |(io, _)| format!("{:.0}", io.median)),
        latency.join(" / "),
        report.spread(|run| run.lost_packets() as f64).median,
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::path::Measured;
    use crate::sample::tests::run_of;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: TableArgs,
    }

    fn args(words: &str) -> Result<TableArgs, String> {
        let words = Words::try_parse_from(std::iter::once("bench").chain(words.split_whitespace()));
        words.map(|words| words.args).map_err(|error| error.to_string())
    }

    fn outcomes() -> Vec<Outcome> {
        let args = args("").unwrap();
        let report = PathReport {
            name: "encap-1",
            plan: ROWS[0].plan(&args).unwrap(),
            machine: Machine::look(),
            hugepages: false,
            measured: Measured { runs: vec![run_of(500)], alone: Vec::new(), testpmd_cycles: vec![40.0] },
            baseline_missing: None,
        };
        let error = BenchError::FewCores { wanted: 2, available: 1 };
        vec![(ROWS[0], Ok(report)), (ROWS[13], Err(error))]
    }

    #[test]
    fn rows_are_chosen_by_name() {
        assert_eq!(args("--rows encap-1,miss-1m").unwrap().rows, ["encap-1", "miss-1m"]);
        assert!(args("--rows encap").unwrap_err().contains("the rows are encap-1, encap-1k, encap-100k"));
        let names: std::collections::HashSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn rows_become_plans() {
        let args = args("--seconds 0.5 --runs 2").unwrap();
        let plan = |name: &str| ROWS.iter().find(|row| row.name == name).unwrap().plan(&args);
        let miss = plan("miss-1m").unwrap();
        assert_eq!((miss.scenario.cache_entries, miss.scenario.flows.rules), (64, 1_000_000));
        let million = plan("encap-1m").unwrap();
        assert_eq!(
            (million.scenario.cache_entries, million.scenario.flows.sequence.flows),
            (2_000_000, 1_000_000)
        );
        assert_eq!((million.scenario.flows.tunnels, million.scenario.flows.rules), (Some(1000), 1_000_000));
        let newcomers = plan("newcomers").unwrap();
        assert_eq!(
            (newcomers.new_flows_per_second, newcomers.scenario.flows.sequence.flows),
            (Some(1_000_000), 1000)
        );
        assert_eq!(plan("size-9000").unwrap().scenario.flows.longest_outer_bytes(), 9050);
        let imix = plan("imix").unwrap().scenario.flows;
        assert_eq!((imix.sizes, imix.sequence.packets()), (Sizes::Imix, 12_000));
        let ipv6 = plan("ipv6").unwrap().scenario.flows;
        assert!(ipv6.ipv6 && ipv6.underlay_ipv6);
        assert_eq!(plan("decap-1k").unwrap().scenario.direction, Direction::Decap);
        assert!(ROWS.iter().filter_map(|row| row.plan(&args).ok()).all(|plan| plan.runs == 2));
    }

    #[test]
    fn a_row_that_failed_is_named_and_the_others_stay() {
        let (outcomes, machine) = (outcomes(), Machine::look());
        let text = to_markdown(&machine, &outcomes);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[2].starts_with(
                "| encap | 1 | 1000 | 1000 | 0.01 | 100 | 15 | 40 | 500 / 500 / 500 / 500 | 0 |"
            ),
            "{text}"
        );
        assert!(lines[3].starts_with("| encap, 2 cores | 1000 | 1000 | 1000 | not measured: "), "{text}");
        let pipes = |line: &str| line.matches('|').count();
        assert!(lines[..4].iter().all(|line| pipes(line) == pipes(lines[0])), "{text}");
        let json = to_json(&args("").unwrap(), &machine, &outcomes);
        assert_eq!(
            (&json["rows"][0]["row"], &json["rows"][1]["row"]),
            (&json!("encap-1"), &json!("two-cores"))
        );
        assert!(json["rows"][0]["packets_per_second"].is_number() && json["rows"][1]["error"].is_string());
        assert_eq!(
            bars(&outcomes),
            [Bar { name: "encap, 1 flows, 1000 rules".to_owned(), forebay: 100.0, io: Some(40.0) }]
        );
    }
}
