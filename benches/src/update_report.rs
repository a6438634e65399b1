//! The figures of changes of rules as people and as programs read them.

use std::time::Duration;

use forebay_pipeline::cores;
use serde_json::{Map, Value, json};

use crate::cpu_time;
use crate::figures::Spread;
use crate::machine::Machine;
use crate::report::Table;
use crate::sample::Run;
use crate::update::UpdateRun;
use crate::update_args::UpdatePlan;

/// A finished benchmark.
#[derive(Debug)]
pub(crate) struct UpdateReport {
    pub plan: UpdatePlan,
    pub machine: Machine,
    pub hugepages: bool,
    pub runs: Vec<UpdateRun>,
}

/// A figure: its name in JSON, its name in a table, decimals, and how it is read.
type Figure = (&'static str, &'static str, u8, fn(&UpdateRun) -> f64);

fn seconds(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64()
}

/// The times of a run that bursts are compared in: what its figures end with in JSON, its name in a table, and its packets.
type Phase = (&'static str, &'static str, fn(&UpdateRun) -> &Run);

/// The first is what the others are compared with.
const PHASES: [Phase; 4] = [
    ("_idle", "nothing changes", |run| &run.idle),
    ("_replacing", "all rules replaced", |run| &run.replacing),
    ("", "rules changed, paced", |run| &run.changing),
    ("_streaming", "rules changed, unpaced", |run| &run.streaming),
];

/// What the quantiles of a run are called in JSON, in its order.
const BURSTS: [&str; 4] = ["burst_p50_ns", "burst_p99_ns", "burst_p999_ns", "worst_burst_ns"];

const FIGURES: [Figure; 20] = [
    ("load_seconds", "load, s", 3, |run| run.load.as_secs_f64()),
    ("load_cpu_seconds", "  of the control side", 3, |run| seconds(run.load_cpu)),
    ("replace_seconds", "replace all, s", 3, |run| run.replace.as_secs_f64()),
    ("table_bytes", "memory of the table", 0, |run| run.table_bytes as f64),
    ("load_peak_bytes", "  at most, loading", 0, |run| run.load_peak_bytes as f64),
    ("changes_per_second", "changes/s", 0, |run| run.changes.per_second()),
    ("change_p50_ns", "answer p50 ns", 0, |run| run.changes.answer_ns(0.5) as f64),
    ("change_p99_ns", "answer p99 ns", 0, |run| run.changes.answer_ns(0.99) as f64),
    ("stream_changes_per_second", "changes/s, unpaced", 0, |run| run.streamed.per_second()),
    ("stream_p50_ns", "answer p50 ns", 0, |run| run.streamed.answer_ns(0.5) as f64),
    ("stream_p99_ns", "answer p99 ns", 0, |run| run.streamed.answer_ns(0.99) as f64),
    ("stream_cpu_ns_per_change", "CPU ns a change", 0, |run| {
        1e9 * seconds(run.streamed_cpu) / run.streamed.acknowledged.max(1) as f64
    }),
    ("packets_per_second_idle", "packets/s, idle", 0, |run| run.idle.packets_per_second),
    ("packets_per_second_replacing", "  replacing all", 0, |run| run.replacing.packets_per_second),
    ("packets_per_second", "  changing", 0, |run| run.changing.packets_per_second),
    ("packets_per_second_streaming", "  unpaced", 0, |run| run.streaming.packets_per_second),
    ("lost_packets_idle", "lost packets, idle", 0, |run| run.idle.lost_packets() as f64),
    ("lost_packets_replacing", "  replacing all", 0, |run| run.replacing.lost_packets() as f64),
    ("lost_packets", "  changing", 0, |run| run.changing.lost_packets() as f64),
    ("lost_packets_streaming", "  unpaced", 0, |run| run.streaming.lost_packets() as f64),
];

impl UpdateReport {
    fn spread(&self, figure: impl Fn(&UpdateRun) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// The least share of its core that a worker had while rules changed.
    fn core_share(&self) -> Option<f64> {
        let runs = self.runs.iter().flat_map(|run| [&run.changing, &run.streaming]);
        runs.filter_map(|run| run.core_share).min_by(f64::total_cmp)
    }

    /// The least share of its core that a worker had in a phase.
    fn phase_share(&self, phase: fn(&UpdateRun) -> &Run) -> Option<f64> {
        self.runs.iter().filter_map(|run| phase(run).core_share).min_by(f64::total_cmp)
    }

    /// How long bursts took while nothing changed, and beside it while rules did: medians over the runs, and of each run's
    /// difference. Where a worker did not have all of its core in the first row, the difference is not the changes' alone.
    fn bursts(&self, table: &mut Table) {
        table.line(&format!(
            "{:24}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "bursts, ns", "p50", "p99", "p99.9", "max", "core share"
        ));
        for (at, (_, name, phase)) in PHASES.into_iter().enumerate() {
            let medians = BURSTS.iter().enumerate().map(|(quantile, _)| {
                format!("{:>12.0}", self.spread(|run| phase(run).latency_ns[quantile] as f64).median)
            });
            let share = self.phase_share(phase).map_or("-".to_owned(), |share| format!("{share:.2}"));
            table.line(&format!("{name:24}{}{share:>12}", medians.collect::<String>()));
            if at == 0 {
                continue;
            }
            let longer = BURSTS.iter().enumerate().map(|(quantile, _)| {
                let longer = |run: &UpdateRun| {
                    phase(run).latency_ns[quantile] as f64 - PHASES[0].2(run).latency_ns[quantile] as f64
                };
                format!("{:>+12.0}", self.spread(longer).median)
            });
            table.line(&format!("{:24}{}", "  longer by", longer.collect::<String>()));
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let flows = self.plan.scenario.flows;
        let mut object = Map::new();
        for (name, _, decimals, figure) in FIGURES {
            self.spread(figure).put(&mut object, name, decimals);
        }
        for (suffix, _, phase) in PHASES {
            for (quantile, name) in BURSTS.iter().enumerate() {
                self.spread(|run| phase(run).latency_ns[quantile] as f64).put(
                    &mut object,
                    &format!("{name}{suffix}"),
                    0,
                );
            }
            object.insert(format!("core_share{suffix}"), json!(self.phase_share(phase)));
        }
        let settings = [
            ("benchmark", json!("update")),
            ("rules", json!(flows.rules)),
            ("ports", json!(flows.ports)),
            ("tunnels", json!(flows.tunnels.unwrap_or(flows.rules))),
            ("flows", json!(flows.sequence.flows)),
            ("changes_per_second_wanted", json!(self.plan.changes_per_second)),
            ("cores", json!(self.plan.cores)),
            ("seconds", json!(self.plan.duration.as_secs_f64())),
            ("runs", json!(self.plan.runs)),
            ("hugepages", json!(self.hugepages)),
            ("core_share_min", json!(self.core_share())),
            ("machine", self.machine.to_json()),
        ];
        object.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(object)
    }

    pub(crate) fn to_text(&self) -> String {
        let flows = self.plan.scenario.flows;
        let mut table = Table::new(format!(
            "update: {} rules of {} ports and {} tunnels under the load of {} flows, {} changes/s wanted, core {}, \
             {} runs of {} s",
            flows.rules,
            flows.ports,
            flows.tunnels.unwrap_or(flows.rules),
            flows.sequence.flows,
            self.plan.changes_per_second,
            cores::format(&self.plan.cores),
            self.plan.runs,
            self.plan.duration.as_secs_f64(),
        ));
        for (_, name, decimals, figure) in FIGURES {
            table.row(name, self.spread(figure), usize::from(decimals));
        }
        self.bursts(&mut table);
        self.core_share().and_then(cpu_time::warning).iter().for_each(|warning| table.line(warning));
        table.line(&self.machine.to_text());
        table.text
    }
}

#[cfg(test)]
mod tests {
    use forebay_pipeline::Histogram;

    use super::*;
    use crate::changes::Changes;
    use crate::feed::Feed;
    use crate::flows::Flows;
    use crate::sample::tests::run_of;
    use crate::scenario::{Direction, Scenario};

    fn report() -> UpdateReport {
        let flows = Flows::plain(10, 1000, 64);
        let plan = UpdatePlan {
            scenario: Scenario {
                direction: Direction::Encap,
                flows,
                lanes: 1,
                cache_entries: 64,
                feed: Feed::Pcap,
            },
            cores: vec![1],
            changes_per_second: 500,
            duration: Duration::from_secs(1),
            runs: 1,
            json: true,
        };
        let changes = |acknowledged| {
            let answers = Histogram::default();
            [10, 20].into_iter().for_each(|answer| answers.record(answer, 1));
            Changes { acknowledged, elapsed: Duration::from_secs(1), answers_ns: answers.snapshot() }
        };
        let run = UpdateRun {
            load: Duration::from_millis(1500),
            load_cpu: Some(Duration::from_millis(1200)),
            replace: Duration::from_millis(2500),
            table_bytes: 1 << 20,
            load_peak_bytes: 1 << 21,
            changes: changes(400),
            streamed: changes(200_000),
            streamed_cpu: Some(Duration::from_millis(800)),
            idle: run_of(5),
            replacing: run_of(7),
            changing: run_of(6),
            streaming: run_of(8),
        };
        UpdateReport { plan, machine: Machine::look(), hugepages: false, runs: vec![run] }
    }

    #[test]
    fn json_has_the_promised_keys() {
        let json = report().to_json();
        assert_eq!((&json["load_seconds"], &json["replace_seconds"]), (&json!(1.5), &json!(2.5)));
        assert_eq!((&json["table_bytes"], &json["changes_per_second"]), (&json!(1 << 20), &json!(400)));
        assert_eq!((&json["worst_burst_ns"], &json["worst_burst_ns_idle"]), (&json!(6), &json!(5)));
        assert_eq!((&json["lost_packets"], &json["lost_packets_replacing"]), (&json!(0), &json!(0)));
        assert_eq!((&json["change_p50_ns"], &json["change_p99_ns"]), (&json!(10), &json!(21)));
        assert_eq!(
            (&json["stream_changes_per_second"], &json["stream_p50_ns"]),
            (&json!(200_000), &json!(10))
        );
        assert_eq!(
            (&json["worst_burst_ns_streaming"], &json["lost_packets_streaming"]),
            (&json!(8), &json!(0))
        );
        assert_eq!((&json["burst_p50_ns_idle"], &json["burst_p999_ns_replacing"]), (&json!(5), &json!(7)));
        assert_eq!(
            (&json["load_cpu_seconds"], &json["stream_cpu_ns_per_change"]),
            (&json!(1.2), &json!(4000))
        );
        assert_eq!((&json["ports"], &json["tunnels"]), (&json!(1), &json!(1000)));
        for (name, ..) in FIGURES {
            assert!(json[format!("{name}_min")].is_number() && json[format!("{name}_max")].is_number());
        }
    }

    #[test]
    fn the_table_has_every_figure() {
        let text = report().to_text();
        assert!(
            text.starts_with(
                "update: 1000 rules of 1 ports and 1000 tunnels under the load of 10 flows, 500 changes/s wanted, core 1"
            ),
            "{text}"
        );
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(row("load, s").split_whitespace().collect::<Vec<_>>()[2..], ["1.500"; 3]);
        assert_eq!(row("nothing changes").split_whitespace().skip(2).collect::<Vec<_>>()[..4], ["5"; 4]);
        assert_eq!(row("  longer by").split_whitespace().skip(2).collect::<Vec<_>>(), ["+2"; 4]);
        assert_eq!(
            text.lines().count(),
            2 + FIGURES.len() + 1 + 2 * PHASES.len() - 1 + 2,
            "the share of the core is too small:\n{text}"
        );
    }
}
