//! The same counters for Prometheus: text exposition format 0.0.4 over HTTP, on the address that the config names.

use super::host::Host;
use super::server::crew_messages;
use crate::counters::{DropReason, PortTotals};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use forebay_api::v1::{Pipeline, Queue, Stage, Worker};
use forebay_pipeline::tsc;
use std::fmt::Write;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves `/metrics` until the process ends.
pub async fn serve(listener: TcpListener, host: Arc<Host>) -> std::io::Result<()> {
    let page = move || {
        let host = host.clone();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], render(&host)) }
    };
    axum::serve(listener, Router::new().route("/metrics", get(page))).await
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// What is counted of an object: name, kind, help, and where it comes from.
type Metric<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

const PORT_METRICS: &[Metric<PortTotals>] = &[
    ("forebay_port_rx_packets_total", COUNTER, "Packets received on the port.", |totals| totals.rx_packets),
    ("forebay_port_rx_bytes_total", COUNTER, "Bytes received on the port.", |totals| totals.rx_bytes),
    ("forebay_port_tx_packets_total", COUNTER, "Packets sent through the port.", |totals| totals.tx_packets),
    ("forebay_port_tx_bytes_total", COUNTER, "Bytes sent through the port.", |totals| totals.tx_bytes),
    (
        "forebay_port_sent_packets_total",
        COUNTER,
        "Packets received on the port and sent out of an uplink.",
        |totals| totals.sent,
    ),
    (
        "forebay_port_delivered_packets_total",
        COUNTER,
        "Packets received on the port and delivered to a local port.",
        |totals| totals.delivered,
    ),
    (
        "forebay_port_trapped_packets_total",
        COUNTER,
        "Packets received on the port and handed to the trusted software path.",
        |totals| totals.trapped,
    ),
    (
        "forebay_port_local_packets_total",
        COUNTER,
        "Packets received on the port and answered by the host itself.",
        |totals| totals.local,
    ),
    (
        "forebay_port_originated_packets_total",
        COUNTER,
        "Packets that the host made itself and sent through the port.",
        |totals| totals.originated,
    ),
];

const WORKER_METRICS: &[Metric<Worker>] = &[
    ("forebay_worker_rounds_total", COUNTER, "Rounds of a worker.", |worker| worker.rounds),
    ("forebay_worker_sleeps_total", COUNTER, "Times that a worker gave its core back.", |worker| {
        worker.sleeps
    }),
];

const STAGE_METRICS: &[Metric<Stage>] =
    &[("forebay_stage_packets_total", COUNTER, "Packets that entered a stage of a worker.", |stage| {
        stage.packets
    })];

const RING_METRICS: &[Metric<Queue>] = &[
    ("forebay_ring_depth", GAUGE, "Packets in a ring between workers.", |ring| ring.depth.into()),
    (
        "forebay_ring_refused_total",
        COUNTER,
        "Packets that were offered to a ring and found it full.",
        |ring| ring.refused,
    ),
];

const PIPELINE_METRICS: &[Metric<Pipeline>] = &[
    ("forebay_pipeline_cores", GAUGE, "Cores that a pipeline has now.", |pipeline| pipeline.cores.into()),
    ("forebay_pipeline_cores_gained_total", COUNTER, "Cores that came from other pipelines.", |pipeline| {
        pipeline.cores_gained
    }),
    ("forebay_pipeline_cores_lost_total", COUNTER, "Cores that went to other pipelines.", |pipeline| {
        pipeline.cores_lost
    }),
];

/// Every counter as text.
fn render(host: &Host) -> String {
    let ports = host.visit_ports(|record, totals, _| {
        (labels(&[("port", &record.config.name)]), record.config.name.clone(), totals)
    });
    let mut page = String::new();
    let labelled: Vec<_> = ports.iter().map(|(labels, _, totals)| (labels.clone(), totals)).collect();
    write_all(&mut page, PORT_METRICS, &labelled);
    let name = "forebay_port_drops_total";
    header(&mut page, name, "Packets received on the port and dropped, by reason.", COUNTER);
    for (_, port, totals) in &ports {
        for reason in DropReason::ALL {
            let labels = labels(&[("port", port), ("reason", reason.name())]);
            line(&mut page, name, &labels, totals.drops[*reason as usize]);
        }
    }
    gauges(&mut page, host);
    let (workers, pipelines) = host.with_crew(crew_messages).unwrap_or_default();
    write_workers(&mut page, &workers, tsc::hz());
    write_pipelines(&mut page, &pipelines);
    page
}

fn gauges(page: &mut String, host: &Host) {
    let all: [(&str, &str, u64); 4] = [
        ("forebay_rules", "Rules in force.", host.rule_count() as u64),
        ("forebay_buffers", "Packet buffers of the host.", u64::from(host.pool().capacity())),
        ("forebay_buffers_in_use", "Packet buffers in use.", u64::from(host.pool().in_use())),
        ("forebay_uptime_seconds", "Seconds since the start.", host.uptime().as_secs()),
    ];
    for (name, help, value) in all {
        header(page, name, help, GAUGE);
        line(page, name, "", value);
    }
}

fn write_workers(page: &mut String, workers: &[Worker], tsc_hz: u64) {
    let seconds = |cycles: u64| cycles as f64 / tsc_hz.max(1) as f64;
    let name = "forebay_worker_seconds_total";
    header(page, name, "Time of a worker, by what it did: busy, polling, asleep.", COUNTER);
    for worker in workers {
        let (busy, asleep) = (worker.busy_cycles, worker.asleep_cycles);
        let polling = worker.total_cycles.saturating_sub(busy.saturating_add(asleep));
        for (state, cycles) in [("busy", busy), ("polling", polling), ("asleep", asleep)] {
            line(page, name, &labels(&[("worker", &worker.name), ("state", state)]), seconds(cycles));
        }
    }
    let labelled: Vec<_> =
        workers.iter().map(|worker| (labels(&[("worker", &worker.name)]), worker)).collect();
    write_all(page, WORKER_METRICS, &labelled);

    let of_worker =
        |worker: &Worker, stage: &Stage| labels(&[("worker", &worker.name), ("stage", &stage.name)]);
    let stages = workers
        .iter()
        .flat_map(|worker| worker.stages.iter().map(move |stage| (of_worker(worker, stage), stage)));
    let stages: Vec<_> = stages.collect();
    write_all(page, STAGE_METRICS, &stages);
    let name = "forebay_stage_seconds_total";
    header(page, name, "Time that a worker spent in a stage.", COUNTER);
    for (labels, stage) in &stages {
        line(page, name, labels, seconds(stage.cycles));
    }

    let rings = workers.iter().flat_map(|worker| &worker.queues);
    let rings: Vec<_> = rings.map(|ring| (labels(&[("ring", &ring.name)]), ring)).collect();
    write_all(page, RING_METRICS, &rings);
}

fn write_pipelines(page: &mut String, pipelines: &[Pipeline]) {
    let labelled: Vec<_> =
        pipelines.iter().map(|pipeline| (labels(&[("pipeline", &pipeline.name)]), pipeline)).collect();
    write_all(page, PIPELINE_METRICS, &labelled);
}

/// Every metric of these objects, each with its labels: metric by metric, as the format wants it.
fn write_all<T>(page: &mut String, metrics: &[Metric<T>], objects: &[(String, &T)]) {
    for (name, kind, help, value) in metrics {
        header(page, name, help, kind);
        for (labels, object) in objects {
            line(page, name, labels, value(object));
        }
    }
}

fn header(page: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(page, "{name}{labels} {value}");
}

/// Labels in their braces.
fn labels(labels: &[(&str, &str)]) -> String {
    let all: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", all.join(","))
}

/// A label value: backslash, quote and line feed are escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn page() -> String {
        let stage =
            |name: &str, packets, cycles| Stage { name: name.into(), packets, cycles, ..Default::default() };
        let worker = |name: &str| Worker {
            name: name.into(),
            total_cycles: 1000,
            busy_cycles: 250,
            asleep_cycles: 500,
            rounds: 40,
            sleeps: 3,
            stages: vec![stage("classify", 90, 200), stage("transmit", 80, 50)],
            queues: vec![Queue {
                name: format!("front0-{name}"),
                depth: 7,
                refused: 2,
                ..Default::default()
            }],
            ..Default::default()
        };
        let gold = Pipeline {
            name: "a \"b\"".into(),
            cores: 2,
            cores_gained: 5,
            cores_lost: 4,
            ..Default::default()
        };
        let mut page = String::new();
        write_workers(&mut page, &[worker("back0"), worker("back1")], 1000);
        write_pipelines(&mut page, &[gold]);
        page
    }

    #[test]
    fn workers_stages_rings_and_pipelines_are_there() {
        let page = page();
        for wanted in [
            "forebay_worker_seconds_total{worker=\"back0\",state=\"polling\"} 0.25",
            "forebay_worker_rounds_total{worker=\"back1\"} 40",
            "forebay_worker_sleeps_total{worker=\"back1\"} 3",
            "forebay_stage_packets_total{worker=\"back0\",stage=\"classify\"} 90",
            "forebay_stage_seconds_total{worker=\"back0\",stage=\"transmit\"} 0.05",
            "forebay_ring_depth{ring=\"front0-back1\"} 7",
            "forebay_ring_refused_total{ring=\"front0-back0\"} 2",
            "forebay_pipeline_cores{pipeline=\"a \\\"b\\\"\"} 2",
            "forebay_pipeline_cores_gained_total{pipeline=\"a \\\"b\\\"\"} 5",
            "forebay_pipeline_cores_lost_total{pipeline=\"a \\\"b\\\"\"} 4",
        ] {
            assert!(page.lines().any(|line| line == wanted), "no {wanted} in:\n{page}");
        }
    }

    /// The format's rules: every metric once with its type, its lines together behind it, and counters end in _total.
    #[test]
    fn the_page_keeps_the_rules_of_its_format() {
        let page = page();
        let (mut kinds, mut current) = (HashMap::new(), "");
        for line in page.lines() {
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').unwrap();
                assert_eq!(kinds.insert(name, kind), None, "{name} twice");
                assert_eq!(kind == COUNTER, name.ends_with("_total"), "{name} is a {kind}");
                current = name;
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&format!("{current}{{")), "{line} is behind {current}");
            }
        }
        assert_eq!(kinds.len(), 10);
    }
}
