//! The figures of the packet path as people and as programs read them.

use std::fmt::Write as _;

use forebay_pipeline::cores;
use serde_json::{Map, Value, json};

use crate::args::PathPlan;
use crate::cpu_time;
use crate::feed::Feed;
use crate::figures::{Spread, rounded};
use crate::machine::Machine;
use crate::path::Measured;
use crate::sample::{QUANTILES, Run, WorkerRun};
use crate::sequence::Sizes;

/// A finished benchmark.
#[derive(Debug)]
pub(crate) struct PathReport {
    pub name: &'static str,
    pub plan: PathPlan,
    pub machine: Machine,
    pub hugepages: bool,
    pub measured: Measured,
    /// Why the baseline that was asked for is not there.
    pub baseline_missing: Option<String>,
}

impl PathReport {
    pub(crate) fn spread(&self, figure: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.measured.runs.iter().map(figure))
    }

    /// Name, io and cycles per packet of each stage, in the order of the path.
    fn stages(&self) -> Vec<(&str, bool, Spread)> {
        let stages = self.measured.runs.first().map(|run| run.stages.as_slice()).unwrap_or_default();
        let cycles =
            |run: &Run, place: usize| run.stages.get(place).map_or(0.0, |stage| stage.cycles_per_packet);
        let spread = |place| self.spread(|run| cycles(run, place));
        stages
            .iter()
            .enumerate()
            .map(|(place, stage)| (stage.name.as_str(), stage.io, spread(place)))
            .collect()
    }

    /// The share of its core that the worker had; `None` where the kernel does not tell.
    fn core_share(&self) -> Option<Spread> {
        let shares: Option<Vec<f64>> = self.measured.runs.iter().map(|run| run.core_share).collect();
        shares.filter(|shares| !shares.is_empty()).map(Spread::of)
    }

    /// Instructions per packet; `None` where the machine does not count them.
    pub(crate) fn instructions(&self) -> Option<Spread> {
        let runs: Option<Vec<f64>> =
            self.measured.runs.iter().map(|run| run.instructions_per_packet).collect();
        runs.filter(|runs| !runs.is_empty()).map(Spread::of)
    }

    /// Packets a second of the first core alone, and how many times as many all have.
    pub(crate) fn alone(&self) -> Option<(Spread, f64)> {
        if self.measured.alone.is_empty() {
            return None;
        }
        let alone = Spread::of(self.measured.alone.iter().map(|run| run.packets_per_second));
        Some((alone, self.spread(|run| run.packets_per_second).median / alone.median))
    }

    /// Packets a second that began a flow, and their share of all.
    pub(crate) fn new_flows(&self) -> Option<(Spread, f64)> {
        let share = self.plan.scenario.flows.sequence.new_share();
        (share > 0.0).then(|| (self.spread(|run| run.packets_per_second * share), share))
    }

    /// The figures of each core: number, packets a second, cycles per packet, and the quantiles of latency.
    fn per_core(&self) -> Vec<(u32, Spread, Spread, [Spread; 4])> {
        let cores: Vec<u32> = self.plan.cores.iter().map(|core| *core as u32).collect();
        let of = |core: u32, figure: &dyn Fn(&WorkerRun) -> f64| {
            let workers = self.measured.runs.iter().flat_map(|run| &run.workers);
            Spread::of(workers.filter(|worker| worker.core == core).map(figure))
        };
        let latency = |core| std::array::from_fn(|place| of(core, &|run| run.latency_ns[place] as f64));
        let figures = |core| {
            let (rate, cycles) =
                (of(core, &|run| run.packets_per_second), of(core, &|run| run.cycles_per_packet));
            (core, rate, cycles, latency(core))
        };
        cores.into_iter().map(figures).collect()
    }

    /// Cycles per packet of testpmd, and how many times as many Forebay's worker needs.
    pub(crate) fn baseline(&self) -> Option<(Spread, f64)> {
        if self.measured.testpmd_cycles.is_empty() {
            return None;
        }
        let cycles = Spread::of(self.measured.testpmd_cycles.iter().copied());
        let own = self.spread(|run| run.worker_cycles_per_packet);
        Some((cycles, own.median / cycles.median))
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut object = self.settings();
        self.spread(|run| run.packets_per_second).put(&mut object, "packets_per_second", 0);
        self.spread(|run| run.path_cycles_per_packet).put(&mut object, "path_cycles_per_packet", 2);
        self.spread(|run| run.io_cycles_per_packet).put(&mut object, "io_cycles_per_packet", 2);
        self.spread(|run| run.worker_cycles_per_packet).put(&mut object, "worker_cycles_per_packet", 2);
        self.spread(|run| run.packets_per_call).put(&mut object, "packets_per_call", 1);
        if let Some(share) = self.core_share() {
            share.put(&mut object, "core_share", 3);
        }
        let mut stages = Map::new();
        self.stages().iter().for_each(|(name, _, cycles)| cycles.put(&mut stages, name, 2));
        object.insert("stages".to_owned(), stages.into());
        let latency =
            QUANTILES.iter().enumerate().map(|(place, _)| self.spread(|run| run.latency_ns[place] as f64));
        object.insert("latency_ns".to_owned(), latency_json(latency));
        match self.instructions() {
            Some(instructions) => instructions.put(&mut object, "instructions_per_packet", 1),
            None => {
                object.insert("instructions_per_packet".to_owned(), Value::Null);
            }
        }
        if let Some((began, share)) = self.new_flows() {
            began.put(&mut object, "new_flows_per_second", 0);
            object.insert("new_flow_share".to_owned(), rounded(share, 4));
        }
        if let Some((alone, ratio)) = self.alone() {
            alone.put(&mut object, "one_core_packets_per_second", 0);
            object.insert("packets_per_second_over_one_core".to_owned(), rounded(ratio, 3));
            let cores = self.per_core().into_iter().map(|(core, rate, cycles, latency)| {
                let mut object = Map::new();
                object.insert("core".to_owned(), core.into());
                rate.put(&mut object, "packets_per_second", 0);
                cycles.put(&mut object, "worker_cycles_per_packet", 2);
                object.insert("latency_ns".to_owned(), latency_json(latency.into_iter()));
                Value::Object(object)
            });
            object.insert("per_core".to_owned(), cores.collect::<Vec<_>>().into());
        }
        self.spread(|run| run.lost_packets() as f64).put(&mut object, "lost_packets", 0);
        object.insert("lost".to_owned(), json!(self.lost()));
        if let Some((cycles, ratio)) = self.baseline() {
            cycles.put(&mut object, "testpmd_io_cycles_per_packet", 2);
            object.insert("worker_cycles_over_testpmd".to_owned(), rounded(ratio, 3));
        }
        if let Some(reason) = &self.baseline_missing {
            object.insert("testpmd_missing".to_owned(), reason.as_str().into());
        }
        object.insert("machine".to_owned(), self.machine.to_json());
        Value::Object(object)
    }

    /// What was asked for.
    fn settings(&self) -> Map<String, Value> {
        let flows = self.plan.scenario.flows;
        let settings = json!({
            "benchmark": self.name,
            "feed": self.plan.scenario.feed.name(),
            "flows": flows.sequence.flows,
            "new_flows_per_second_wanted": self.plan.new_flows_per_second,
            "random": flows.sequence.random,
            "rules": flows.rules,
            "size_bytes": rounded(flows.sizes.mean(), 0),
            "imix": flows.sizes == Sizes::Imix,
            "tunnel": "vxlan",
            "tunnels": flows.tunnels.unwrap_or(flows.rules),
            "ipv6": flows.ipv6,
            "underlay": underlay(flows.underlay_ipv6),
            "flow_cache_entries": self.plan.scenario.cache_entries,
            "packet_memory_mib": self.plan.scenario.memory_mib(self.hugepages),
            "cores": self.plan.cores,
            "seconds": self.plan.duration.as_secs_f64(),
            "runs": self.plan.runs,
            "hugepages": self.hugepages,
        });
        match settings {
            Value::Object(object) => object,
            _ => Map::new(),
        }
    }

    /// Drops of all runs, by port and reason.
    fn lost(&self) -> std::collections::BTreeMap<&str, u64> {
        let mut lost = std::collections::BTreeMap::new();
        for (reason, count) in self.measured.runs.iter().flat_map(|run| &run.lost) {
            *lost.entry(reason.as_str()).or_default() += count;
        }
        lost
    }

    pub(crate) fn to_text(&self) -> String {
        let mut table = Table::new(self.title());
        table.row("packets/s", self.spread(|run| run.packets_per_second), 0);
        table.row("path cycles/packet", self.spread(|run| run.path_cycles_per_packet), 1);
        self.stages().iter().filter(|(_, io, _)| !io).for_each(|(name, _, cycles)| table.part(name, *cycles));
        table.row("io cycles/packet", self.spread(|run| run.io_cycles_per_packet), 1);
        self.stages().iter().filter(|(_, io, _)| *io).for_each(|(name, _, cycles)| table.part(name, *cycles));
        table.row("worker cycles/packet", self.spread(|run| run.worker_cycles_per_packet), 1);
        table.row("packets/burst", self.spread(|run| run.packets_per_call), 1);
        for (place, (name, _)) in QUANTILES.iter().enumerate() {
            table.row(&format!("latency {name} ns"), self.spread(|run| run.latency_ns[place] as f64), 0);
        }
        match self.instructions() {
            Some(instructions) => table.row("instructions/packet", instructions, 1),
            None => table.line("instructions/packet      this machine does not count them"),
        }
        if let Some((began, share)) = self.new_flows() {
            table.row("new flows/s", began, 0);
            table.row("  % of the packets", Spread::of([100.0 * share]), 1);
        }
        if let Some((alone, _)) = self.alone() {
            table.row("first core alone", alone, 0);
            for (core, rate, cycles, latency) in self.per_core() {
                table.row(&format!("  core {core} packets/s"), rate, 0);
                table.row(&format!("  core {core} cycles/packet"), cycles, 1);
                table.row(&format!("  core {core} p99 ns"), latency[1], 0);
            }
        }
        table.row("lost packets", self.spread(|run| run.lost_packets() as f64), 0);
        if let Some((cycles, _)) = self.baseline() {
            table.row("testpmd cycles/packet", cycles, 1);
        }
        if let Some(share) = self.core_share() {
            table.row("share of its core", share, 2);
            cpu_time::warning(share.min).iter().for_each(|warning| table.line(warning));
        }
        if let Some((_, ratio)) = self.alone() {
            table.line(&format!("all cores carry {ratio:.2} times what the first carries alone"));
        }
        if let Some((_, ratio)) = self.baseline() {
            table.line(&format!("a packet costs Forebay's worker {ratio:.2} times what it costs testpmd"));
        }
        for (reason, count) in self.lost() {
            table.line(&format!("lost: {count} packets of port {reason}"));
        }
        if let Some(reason) = &self.baseline_missing {
            table.line(&format!("no baseline: {reason}"));
        }
        table.line(&self.machine.to_text());
        table.text
    }

    fn title(&self) -> String {
        let flows = self.plan.scenario.flows;
        let length = match flows.sizes {
            Sizes::Fixed(bytes) => format!("{bytes} bytes"),
            Sizes::Imix => "IMIX".to_owned(),
        };
        format!(
            "{}{}: {}{}, {}, {length}, {} in vxlan over {}, core {}, {} of {} s, {} MiB in {} pages",
            self.name,
            if self.plan.scenario.feed == Feed::Memif { " by memif" } else { "" },
            counted(flows.sequence.flows, "flow"),
            if flows.sequence.random { " drawn at random" } else { "" },
            counted(flows.rules, "rule"),
            if flows.ipv6 { "IPv6" } else { "IPv4" },
            if flows.underlay_ipv6 { "IPv6" } else { "IPv4" },
            cores::format(&self.plan.cores),
            counted(self.plan.runs, "run"),
            self.plan.duration.as_secs_f64(),
            self.plan.scenario.memory_mib(self.hugepages),
            if self.hugepages { "huge" } else { "ordinary" },
        )
    }
}

pub(crate) fn underlay(ipv6: bool) -> &'static str {
    if ipv6 { "ipv6" } else { "ipv4" }
}

/// The quantiles of latency by their names.
pub(crate) fn latency_json(quantiles: impl Iterator<Item = Spread>) -> Value {
    let mut latency = Map::new();
    QUANTILES.iter().zip(quantiles).for_each(|((name, _), spread)| spread.put(&mut latency, name, 0));
    latency.into()
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A table of figures: name, median, least, greatest.
pub(crate) struct Table {
    pub text: String,
}

impl Table {
    pub(crate) fn new(title: String) -> Self {
        let mut table = Self { text: title };
        table.line(&format!("{:24}{:>14}{:>14}{:>14}", "", "median", "min", "max"));
        table
    }

    pub(crate) fn row(&mut self, name: &str, spread: Spread, decimals: usize) {
        let Spread { median, min, max } = spread;
        // Writing to a text cannot fail.
        let _ = write!(self.text, "\n{name:24}{median:>14.decimals$}{min:>14.decimals$}{max:>14.decimals$}");
    }

    fn part(&mut self, name: &str, cycles: Spread) {
        self.row(&format!("  {name}"), cycles, 1);
    }

    pub(crate) fn line(&mut self, text: &str) {
        self.text.push('\n');
        self.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::flows::Flows;
    use crate::sample::StageCost;
    use crate::scenario::{Direction, Scenario};

    fn run(cycles: f64, lost: u64) -> Run {
        let stage = |name: &str, io| StageCost { name: name.to_owned(), io, cycles_per_packet: cycles };
        Run {
            packets_per_second: 1e9 / cycles,
            path_cycles_per_packet: cycles,
            io_cycles_per_packet: 2.0 * cycles,
            worker_cycles_per_packet: 4.0 * cycles,
            packets_per_call: 64.0,
            core_share: Some(0.5),
            workers: [1, 2].map(|core| worker(core, 5e8 / cycles)).to_vec(),
            instructions_per_packet: None,
            stages: vec![stage("receive", true), stage("admit", false), stage("transmit", true)],
            latency_ns: [10, 20, 30, 40],
            lost: (lost > 0).then(|| ("vm1 no_rule".to_owned(), lost)).into_iter().collect(),
            packets: 1000,
        }
    }

    fn worker(core: u32, packets_per_second: f64) -> WorkerRun {
        WorkerRun { core, packets_per_second, cycles_per_packet: 7.0, latency_ns: [1, 2, 3, 4] }
    }

    fn plan() -> PathPlan {
        let flows = Flows::plain(1, 1000, 64);
        PathPlan {
            scenario: Scenario {
                direction: Direction::Encap,
                flows,
                lanes: 1,
                cache_entries: 64,
                feed: Feed::Pcap,
            },
            cores: vec![1],
            new_flows_per_second: None,
            duration: Duration::from_secs(2),
            runs: 3,
            baseline: None,
            json: true,
        }
    }

    fn report(plan: PathPlan, testpmd_cycles: Vec<f64>) -> PathReport {
        let runs = vec![run(10.0, 0), run(30.0, 7), run(20.0, 0)];
        let measured = Measured { runs, alone: Vec::new(), testpmd_cycles };
        let machine = Machine::look();
        PathReport { name: "encap", plan, machine, hugepages: false, measured, baseline_missing: None }
    }

    #[test]
    fn json_has_the_promised_keys() {
        let json = report(plan(), vec![40.0]).to_json();
        for key in ["packets_per_second", "path_cycles_per_packet", "io_cycles_per_packet", "lost_packets"] {
            for suffix in ["", "_min", "_max"] {
                assert!(json[format!("{key}{suffix}")].is_number(), "{key}{suffix}");
            }
        }
        assert_eq!(json["path_cycles_per_packet"], 20.0);
        assert_eq!(
            (&json["stages"]["admit_min"], &json["stages"]["admit_max"]),
            (&json!(10.0), &json!(30.0))
        );
        assert_eq!((&json["latency_ns"]["p999"], &json["latency_ns"]["max_min"]), (&json!(30), &json!(40)));
        assert_eq!((&json["lost_packets"], &json["lost_packets_max"]), (&json!(0), &json!(7)));
        assert_eq!(json["lost"], json!({"vm1 no_rule": 7}));
        assert_eq!(
            (&json["testpmd_io_cycles_per_packet"], &json["worker_cycles_over_testpmd"]),
            (&json!(40.0), &json!(2.0))
        );
        assert_eq!(
            (&json["benchmark"], &json["rules"], &json["cores"]),
            (&json!("encap"), &json!(1000), &json!([1]))
        );
        assert_eq!(json["core_share"], 0.5);
        assert!(json["machine"]["load_average"].is_array());
    }

    #[test]
    fn the_table_says_what_was_lost_and_what_is_missing() {
        let mut report = report(plan(), Vec::new());
        report.baseline_missing = Some("not installed".to_owned());
        let text = report.to_text();
        assert!(
            text.starts_with(
                "encap: 1 flow, 1000 rules, 64 bytes, IPv4 in vxlan over IPv4, core 1, 3 runs of 2 s"
            ),
            "{text}"
        );
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(row("path cycles").split_whitespace().collect::<Vec<_>>()[2..], ["20.0", "10.0", "30.0"]);
        assert!(
            text.contains("lost: 7 packets of port vm1 no_rule")
                && text.contains("no baseline: not installed")
        );
        assert!(text.contains("a worker had only 50 % of its core"), "{text}");
        assert!(!text.contains("testpmd cycles"), "{text}");
    }

    #[test]
    fn several_cores_are_compared_with_one_and_new_flows_counted() {
        let mut plan = plan();
        (plan.cores, plan.scenario.lanes) = (vec![1, 2], 2);
        plan.scenario.flows.sequence.new_flows = 1;
        let mut report = report(plan, Vec::new());
        report.measured.alone = vec![run(40.0, 0)];
        let json = report.to_json();
        assert_eq!(
            (&json["instructions_per_packet"], &json["latency_ns"]["p50"]),
            (&Value::Null, &json!(10))
        );
        assert_eq!(json["packets_per_second_over_one_core"], 2.0);
        assert_eq!((&json["per_core"][0]["core"], &json["per_core"][1]["core"]), (&json!(1), &json!(2)));
        assert_eq!(json["per_core"][1]["packets_per_second"], 25_000_000);
        assert_eq!(json["per_core"][1]["latency_ns"]["p999"], 3);
        assert_eq!(json["new_flows_per_second"], 25_000_000, "half of the packets");
        assert_eq!(json["new_flow_share"], 0.5);
        let text = report.to_text();
        assert!(text.contains("all cores carry 2.00 times what the first carries alone"), "{text}");
        assert!(text.contains("this machine does not count them"), "{text}");
    }
}
