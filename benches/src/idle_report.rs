//! The figures of idle workers as people and as programs read them, and whether they are what they were to be.

use std::fmt::Write as _;

use forebay_pipeline::counters::quantile;
use serde_json::{Map, Value, json};

use crate::cpu_time;
use crate::error::BenchError;
use crate::figures::{Spread, rounded};
use crate::idle::IdleRun;
use crate::idle_args::{BUSY_POLL, Contestant, IdlePlan, LAST_PACKET, Load};
use crate::idle_chart::{self, Group, Pair};
use crate::machine::Machine;
use crate::report::{Table, latency_json};
use crate::sample::QUANTILES;

/// Two figures that are less than this apart, as a share of the larger, are equal: so much do runs differ.
const EQUAL_SHARE: f64 = 0.05;

/// The figures of all runs, and how to write them.
pub(crate) struct IdleReport<'a> {
    pub plan: &'a IdlePlan,
    pub machine: Machine,
    /// By load and contestant; busy-poll first.
    pub runs: Vec<Vec<Vec<IdleRun>>>,
}

/// The figures of one contestant under one load.
struct Row<'a> {
    load: &'a Load,
    contestant: &'a Contestant,
    runs: &'a [IdleRun],
    busy_poll: &'a [IdleRun],
}

type Nanoseconds = fn(&IdleRun) -> Vec<u64>;
const FIRST: Nanoseconds = |run| run.paced.first_ns.clone();
const REST: Nanoseconds = |run| run.paced.rest_ns.clone();

impl Row<'_> {
    fn spread(&self, figure: impl Fn(&IdleRun) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// A figure in percent that the kernel may not tell.
    fn percent(&self, share: impl Fn(&IdleRun) -> Option<f64>) -> Option<Spread> {
        let shares: Vec<f64> = self.runs.iter().filter_map(share).collect();
        (!shares.is_empty()).then(|| Spread::of(shares.into_iter().map(|share| 100.0 * share)))
    }

    fn cpu_percent(&self) -> Option<Spread> {
        self.percent(|run| run.cpu)
    }

    fn latency(&self, histogram: Nanoseconds, share: f64) -> Spread {
        self.spread(|run| quantile(&histogram(run), share) as f64)
    }

    /// p99 beyond the median p99 of busy-poll.
    fn added_p99(&self, histogram: Nanoseconds) -> Spread {
        let p99 = |run: &IdleRun| quantile(&histogram(run), 0.99) as f64;
        let busy_poll = Spread::of(self.busy_poll.iter().map(p99)).median;
        self.spread(|run| (p99(run) - busy_poll).max(0.0))
    }

    fn lost(&self) -> Spread {
        self.spread(|run| run.lost() as f64)
    }

    fn packets_per_second(&self) -> Spread {
        self.spread(IdleRun::packets_per_second)
    }

    /// Throughput over that of busy-poll.
    fn throughput(&self) -> f64 {
        let busy_poll = Spread::of(self.busy_poll.iter().map(IdleRun::packets_per_second)).median;
        self.packets_per_second().median / busy_poll.max(1.0)
    }

    /// Whether each figure is what it was to be: its name, the value, the bound, and the answer.
    fn goals(&self) -> Vec<(&'static str, f64, f64, bool)> {
        let goal = self.load.goal;
        let below = |name, value: Option<f64>, most: Option<f64>| {
            value.zip(most).map(|(value, most)| (name, value, most, value < most))
        };
        let came = self.runs.iter().any(|run| run.paced.received > 0);
        let us = |spread: Spread| came.then_some(spread.median / 1e3);
        let at_rate = self.load.has_packets() && !self.load.is_saturated();
        let lost = self.lost().median;
        [
            below("CPU %", self.cpu_percent().map(|cpu| cpu.median), goal.cpu_percent),
            below("added p99 us", us(self.added_p99(FIRST)), goal.added_p99_us),
            below("added p99 us of the rest", us(self.added_p99(REST)), goal.added_rest_p99_us),
            at_rate.then_some(("lost packets", lost, 0.0, lost == 0.0)),
            goal.throughput.map(|least| ("throughput", self.throughput(), least, self.throughput() >= least)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn to_map(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("policy".to_owned(), self.contestant.name().into());
        for (name, share) in
            [("cpu_percent", self.cpu_percent()), ("waited_for_core_percent", self.percent(|run| run.waited))]
        {
            match share {
                Some(share) => share.put(&mut object, name, 2),
                None => drop(object.insert(name.to_owned(), Value::Null)),
            }
        }
        self.packets_per_second().put(&mut object, "packets_per_second", 0);
        let all: Nanoseconds = IdleRun::all_ns;
        for (key, histogram) in
            [("latency_ns", all), ("first_of_burst_latency_ns", FIRST), ("rest_of_burst_latency_ns", REST)]
        {
            let quantiles = QUANTILES.iter().map(|(_, share)| self.latency(histogram, *share));
            object.insert(key.to_owned(), latency_json(quantiles));
        }
        self.added_p99(all).put(&mut object, "added_p99_ns", 0);
        self.added_p99(FIRST).put(&mut object, "first_of_burst_added_p99_ns", 0);
        self.added_p99(REST).put(&mut object, "rest_of_burst_added_p99_ns", 0);
        self.lost().put(&mut object, "lost_packets", 0);
        self.spread(|run| run.paced.refused as f64).put(&mut object, "refused_packets", 0);
        self.spread(|run| run.paced.unjudged as f64).put(&mut object, "unjudged_packets", 0);
        object.insert("drops".to_owned(), self.drops().into());
        self.put_path(&mut object);
        let goals = self.goals().into_iter().map(|(name, value, bound, is_met)| {
            json!({"figure": name, "value": rounded(value, 2), "bound": bound, "is_met": is_met})
        });
        object.insert("goals".to_owned(), goals.collect::<Vec<_>>().into());
        object
    }

    /// What the daemon dropped in all runs together, by port and reason.
    fn drops(&self) -> Map<String, Value> {
        let mut drops = Map::new();
        for (reason, count) in self.runs.iter().flat_map(IdleRun::drops) {
            let old = drops.get(&reason).and_then(Value::as_u64).unwrap_or(0);
            drops.insert(reason, (old + count).into());
        }
        drops
    }

    /// Cycles per packet, where the daemon had packets.
    fn put_path(&self, object: &mut Map<String, Value>) {
        let runs: Vec<_> = self.runs.iter().filter_map(|run| run.path.as_ref()).collect();
        let Some(first) = runs.first() else { return };
        let mut stages = Map::new();
        for (place, stage) in first.stages.iter().enumerate() {
            let cycles = runs.iter().filter_map(|run| run.stages.get(place));
            Spread::of(cycles.map(|stage| stage.cycles_per_packet)).put(&mut stages, &stage.name, 2);
        }
        let cycles = |figure: fn(&crate::sample::Run) -> f64| Spread::of(runs.iter().map(|run| figure(run)));
        cycles(|run| run.path_cycles_per_packet).put(object, "path_cycles_per_packet", 2);
        cycles(|run| run.io_cycles_per_packet).put(object, "io_cycles_per_packet", 2);
        object.insert("stages".to_owned(), stages.into());
    }
}

impl IdleReport<'_> {
    fn rows_of(&self, place: usize) -> Vec<Row<'_>> {
        let (Some(load), Some(runs)) = (self.plan.loads.get(place), self.runs.get(place)) else {
            return Vec::new();
        };
        let busy_poll = runs.first().map(Vec::as_slice).unwrap_or_default();
        let rows = self.plan.contestants.iter().zip(runs).filter(|(_, runs)| !runs.is_empty());
        rows.map(|(contestant, runs)| Row { load, contestant, runs, busy_poll }).collect()
    }

    fn loads(&self) -> impl Iterator<Item = (&Load, Vec<Row<'_>>)> {
        self.plan.loads.iter().enumerate().map(|(place, load)| (load, self.rows_of(place)))
    }

    /// Where another policy takes less of the core than last-packet and adds less latency as well: what it should not.
    fn beaten(&self) -> Vec<String> {
        let mut beaten = Vec::new();
        let clearly_less = |one: f64, other: f64| one < other * (1.0 - EQUAL_SHARE);
        for (load, rows) in self.loads().filter(|(load, _)| load.has_packets() && !load.is_saturated()) {
            let Some(own) = rows.iter().find(|row| row.contestant.name() == LAST_PACKET) else { continue };
            for rival in &rows {
                let (Some(cpu), Some(own_cpu)) = (rival.cpu_percent(), own.cpu_percent()) else { continue };
                let (p99, own_p99) = (rival.latency(FIRST, 0.99).median, own.latency(FIRST, 0.99).median);
                if clearly_less(cpu.median, own_cpu.median) && clearly_less(p99, own_p99) {
                    beaten.push(format!(
                        "{}: {} takes {:.2} % of the core at a p99 of {:.1} us, {LAST_PACKET} {:.2} % at {:.1} us",
                        load.title(),
                        rival.contestant.name(),
                        cpu.median,
                        p99 / 1e3,
                        own_cpu.median,
                        own_p99 / 1e3
                    ));
                }
            }
        }
        beaten
    }

    /// What is to be known about the runs before they are believed.
    fn warnings(&self) -> Vec<String> {
        let busy_poll = self.runs.iter().flatten().take(1).flatten().filter_map(|run| run.cpu);
        let mut warnings: Vec<_> =
            busy_poll.min_by(f64::total_cmp).and_then(cpu_time::warning).into_iter().collect();
        let paced = || self.runs.iter().flatten().flatten().map(|run| &run.paced);
        let (came, unjudged) = paced()
            .fold((0, 0), |(came, unjudged), paced| (came + paced.received, unjudged + paced.unjudged));
        if unjudged > 0 {
            warnings.push(format!(
                "of {came} packets {unjudged} are not in the latency: who sends them did not have its core meanwhile"
            ));
        }
        match &self.plan.ovs_missing {
            Some(reason) => warnings.push(format!("ovs-dpdk was not measured: {reason}")),
            None => warnings
                .push("ovs-dpdk was measured without packets only: it sends by a second queue".to_owned()),
        }
        warnings
    }

    /// Where only one load was asked for, its policies stand at the top; where only one policy was, its figures, too.
    pub(crate) fn to_json(&self) -> Value {
        let plan = self.plan;
        let load_json = |(load, rows): (&Load, Vec<Row<'_>>)| {
            let rows: Vec<_> = rows.iter().map(|row| Value::Object(row.to_map())).collect();
            json!({
                "load": load.name,
                "packets_per_second_wanted": load.pace.packets_per_second,
                "burst": load.pace.burst,
                "seconds": rounded(plan.duration.max(load.least).as_secs_f64(), 2),
                "policies": rows,
            })
        };
        let mut json = json!({
            "benchmark": "idle",
            "max_added_latency_us": plan.max_added_latency_us,
            "core": plan.core,
            "runs": plan.runs,
            "ovs_missing": plan.ovs_missing,
            "beaten": self.beaten(),
            "warnings": self.warnings(),
            "machine": self.machine.to_json(),
        });
        let mut loads: Vec<Value> = self.loads().map(load_json).collect();
        let Some(object) = json.as_object_mut() else { return json };
        if let [only] = loads.as_mut_slice()
            && let Some(only) = only.as_object_mut()
        {
            object.append(only);
            let mut asked =
                self.rows_of(0).into_iter().filter(|row| plan.asked.contains(&row.contestant.name()));
            if let (Some(row), None) = (asked.next(), asked.next()) {
                object.extend(row.to_map());
            }
        } else {
            object.insert("loads".to_owned(), loads.into());
        }
        json
    }

    pub(crate) fn to_text(&self) -> String {
        let plan = self.plan;
        let mut table =
            Table::new(format!("idle: core {}, {} runs of each policy in turns", plan.core, plan.runs));
        for (load, rows) in self.loads() {
            let seconds = plan.duration.max(load.least).as_secs_f64();
            table.line(&format!("{}, {seconds} s a run", load.title()));
            rows.iter().for_each(|row| text_of(row, &mut table));
        }
        self.beaten().iter().for_each(|words| table.line(&format!("{LAST_PACKET} is beaten: {words}")));
        self.warnings().iter().for_each(|words| table.line(words));
        table.line(&self.machine.to_text());
        table.text
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut text = String::from(
            "| offered load | policy | CPU of the worker's core | latency p50, us | added p99, us | of the burst's rest | lost | packets/s |\n\
             |---|---|--:|--:|--:|--:|--:|--:|\n",
        );
        for (load, rows) in self.loads() {
            for row in &rows {
                let cpu = row.cpu_percent().map_or("-".to_owned(), |cpu| format!("{:.2} %", cpu.median));
                // Writing to a text cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {} | {cpu} | {} |",
                    load.title(),
                    row.contestant.name(),
                    cells(row)
                );
            }
        }
        for words in self.beaten() {
            let _ = writeln!(text, "\n{LAST_PACKET} is beaten: {words}");
        }
        for words in self.warnings().iter().chain([&self.machine.to_text()]) {
            let _ = writeln!(text, "\n{words}");
        }
        text.trim_end().to_owned()
    }

    pub(crate) fn to_svg(&self) -> Result<String, BenchError> {
        let group = |(load, rows): (&Load, Vec<Row<'_>>)| {
            let is_timed = load.has_packets() && !load.is_saturated();
            let pair = |row: &Row<'_>| Pair {
                name: row.contestant.name(),
                cpu_percent: row.cpu_percent().map(|cpu| cpu.median),
                p99_us: is_timed.then(|| row.latency(FIRST, 0.99).median / 1e3),
            };
            Group { name: load.title(), pairs: rows.iter().map(pair).collect() }
        };
        idle_chart::svg(&self.machine.to_text(), &self.loads().map(group).collect::<Vec<_>>())
    }
}

/// The cells of a row behind those of the processor.
fn cells(row: &Row<'_>) -> String {
    let load = row.load;
    if !load.has_packets() {
        return "| | | |".to_owned();
    }
    let rate = row.packets_per_second().median;
    let lost = row.lost().median;
    if load.is_saturated() {
        return format!("| | | {lost:.0} | {rate:.0} ({:.1} %)", 100.0 * row.throughput());
    }
    let us = |spread: Spread| format!("{:.1}", spread.median / 1e3);
    let rest = if load.pace.burst > 1 { us(row.added_p99(REST)) } else { String::new() };
    format!("{} | {} | {rest} | {lost:.0} | {rate:.0}", us(row.latency(FIRST, 0.5)), us(row.added_p99(FIRST)))
}

fn text_of(row: &Row<'_>, table: &mut Table) {
    table.line(&format!("  {}", row.contestant.name()));
    match row.cpu_percent() {
        Some(cpu) => table.row("    CPU %", cpu, 2),
        None => table.line("    CPU %: this machine does not tell"),
    }
    if row.load.has_packets() {
        table.row("    packets/s", row.packets_per_second(), 0);
        if !row.load.is_saturated() {
            table.row("    latency p50 ns", row.latency(FIRST, 0.5), 0);
            table.row("    latency p99 ns", row.latency(FIRST, 0.99), 0);
            table.row("    added p99 ns", row.added_p99(FIRST), 0);
            if row.load.pace.burst > 1 {
                table.row("    p99 ns, others", row.latency(REST, 0.99), 0);
                table.row("    added p99 ns", row.added_p99(REST), 0);
            }
        }
        table.row("    lost packets", row.lost(), 0);
        row.drops().iter().for_each(|(reason, count)| table.line(&format!("    dropped: {reason} {count}")));
    }
    if row.contestant.name() != BUSY_POLL {
        for (name, value, bound, is_met) in row.goals() {
            let answer = if is_met { "met" } else { "missed" };
            table.line(&format!("    goal {answer}: {name} {value:.2}, bound {bound}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idle_args::tests::plan;
    use crate::pacer::PacerFigures;
    use crate::sample::tests::run_of;

    /// A run in which each packet took so many nanoseconds, below 8.
    fn run(cpu: f64, latency_ns: usize, refused: u64) -> IdleRun {
        let mut first_ns = vec![0; 10];
        first_ns[latency_ns] = 100;
        let (sent, received, unjudged, rest_ns) = (101, 101, 1, vec![0; 10]);
        let elapsed_ns = 1_000_000_000;
        let paced = PacerFigures { sent, received, refused, unjudged, elapsed_ns, first_ns, rest_ns };
        IdleRun { cpu: Some(cpu), waited: Some(0.0), paced, path: Some(run_of(latency_ns as u64)) }
    }

    fn report(plan: &IdlePlan) -> IdleReport<'_> {
        let runs = vec![
            vec![run(1.0, 2, 0), run(1.0, 2, 0), run(1.0, 4, 0)],
            vec![run(0.02, 7, 0), run(0.01, 5, 3)],
        ];
        IdleReport { plan, machine: Machine::look(), runs: vec![runs; plan.loads.len()] }
    }

    #[test]
    fn what_is_told_is_what_was_measured() {
        let plan = plan(&["--policy", "interrupt", "--pps", "1000", "--burst", "2"]).unwrap();
        let json = report(&plan).to_json();
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
        assert_eq!((&busy["packets_per_second"], &busy["unjudged_packets"]), (&json!(101), &json!(1)));
        assert!(busy["stages"]["receive"].as_f64().is_some_and(|cycles| cycles > 0.0), "{busy}");
        assert_eq!(json["ovs_missing"], "left out by --no-ovs");
        assert_eq!(json["packets_per_second_wanted"], 1000);
    }

    #[test]
    fn every_load_has_its_goals() {
        let plan = plan(&["--policy", LAST_PACKET]).unwrap();
        let json = report(&plan).to_json();
        let loads = json["loads"].as_array().unwrap();
        assert_eq!(loads.len(), 6);
        let goals = |place: usize| {
            let goals = loads[place]["policies"][1]["goals"].as_array().unwrap().iter();
            goals.map(|goal| (goal["figure"].as_str().unwrap(), goal["is_met"] == true)).collect::<Vec<_>>()
        };
        assert_eq!(goals(0), [("CPU %", false)]);
        // 1.5 % of 3 %, and in one of the two runs packets were lost.
        assert_eq!(goals(1), [("CPU %", true), ("added p99 us", true), ("lost packets", false)]);
        assert_eq!(goals(5), [("throughput", true)]);
        let text = report(&plan).to_text();
        for words in [
            "256 at once every 1 ms",
            "    last-packet\n",
            "goal missed: lost packets 1.50",
            "not in the latency",
        ] {
            let words = words.replacen("    last-packet", "  last-packet", 1);
            assert!(text.contains(&words), "{words:?} is not in\n{text}");
        }
        let markdown = report(&plan).to_markdown();
        let columns: Vec<_> = markdown.lines().take_while(|line| line.starts_with('|')).collect();
        assert!(columns.iter().all(|line| line.matches('|').count() == 9), "{markdown}");
        assert_eq!(columns.len(), 2 + 6 * 2);
        let svg = report(&plan).to_svg().unwrap();
        assert!(svg.contains("last-packet") && svg.contains("10000 packets/s"), "{svg}");
    }

    #[test]
    fn it_is_said_where_another_policy_is_better_at_both() {
        let plan = plan(&["--policy", "last-packet,interrupt", "--loads", "1k"]).unwrap();
        let beaten = |rival: IdleRun| {
            let runs = vec![vec![vec![run(1.0, 2, 0)], vec![run(0.02, 5, 0)], vec![rival]]];
            IdleReport { plan: &plan, machine: Machine::look(), runs }.beaten()
        };
        assert!(beaten(run(0.01, 6, 0)).is_empty() && beaten(run(0.03, 2, 0)).is_empty());
        assert!(beaten(run(0.02, 5, 0)).is_empty(), "as good");
        assert_eq!(
            beaten(run(0.01, 4, 0)),
            [
                "1000 packets/s: interrupt takes 1.00 % of the core at a p99 of 0.0 us, last-packet 2.00 % at 0.0 us"
            ]
        );
    }
}
