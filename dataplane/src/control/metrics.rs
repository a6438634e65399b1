//! The same counters for Prometheus: text exposition format 0.0.4 over HTTP, on the address that the config names.

use super::host::Host;
use crate::counters::{DropReason, PortTotals};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
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

/// A counter of a port: name, help, and where it comes from.
type PortMetric = (&'static str, &'static str, fn(&PortTotals) -> u64);

const PORT_METRICS: &[PortMetric] = &[
    ("rx_packets", "Packets received on the port.", |totals| totals.rx_packets),
    ("rx_bytes", "Bytes received on the port.", |totals| totals.rx_bytes),
    ("tx_packets", "Packets sent through the port.", |totals| totals.tx_packets),
    ("tx_bytes", "Bytes sent through the port.", |totals| totals.tx_bytes),
    ("sent_packets", "Packets received on the port and sent out of an uplink.", |totals| totals.sent),
    ("delivered_packets", "Packets received on the port and delivered to a local port.", |totals| {
        totals.delivered
    }),
    ("trapped_packets", "Packets received on the port and handed to the trusted software path.", |totals| {
        totals.trapped
    }),
    ("local_packets", "Packets received on the port and answered by the host itself.", |totals| totals.local),
    ("originated_packets", "Packets that the host made itself and sent through the port.", |totals| {
        totals.originated
    }),
];

/// Every counter as text.
fn render(host: &Host) -> String {
    let ports = host.visit_ports(|record, totals, _| (escape(&record.config.name), totals));
    let mut page = String::new();
    for (name, help, value) in PORT_METRICS {
        header(&mut page, &format!("forebay_port_{name}_total"), help, "counter");
        for (port, totals) in &ports {
            line(&mut page, &format!("forebay_port_{name}_total{{port=\"{port}\"}}"), value(totals));
        }
    }
    header(
        &mut page,
        "forebay_port_drops_total",
        "Packets received on the port and dropped, by reason.",
        "counter",
    );
    for (port, totals) in &ports {
        for reason in DropReason::ALL {
            let name = format!("forebay_port_drops_total{{port=\"{port}\",reason=\"{}\"}}", reason.name());
            line(&mut page, &name, totals.drops[*reason as usize]);
        }
    }
    gauges(&mut page, host);
    workers(&mut page, host);
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
        header(page, name, help, "gauge");
        line(page, name, value);
    }
}

fn workers(page: &mut String, host: &Host) {
    let name = "forebay_worker_seconds_total";
    header(page, name, "Time of a worker, by what it did: busy, polling, asleep.", "counter");
    host.with_crew(|crew| {
        for member in crew.members() {
            let counters = member.worker().counters();
            let (busy, asleep) = (counters.busy_cycles.get(), counters.asleep_cycles.get());
            let polling = counters.total_cycles.get().saturating_sub(busy + asleep);
            for (state, cycles) in [("busy", busy), ("polling", polling), ("asleep", asleep)] {
                let seconds = cycles as f64 / tsc::hz() as f64;
                let worker = member.worker().name();
                line(page, &format!("{name}{{worker=\"{worker}\",state=\"{state}\"}}"), seconds);
            }
        }
    });
}

fn header(page: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(page, "{name} {value}");
}

/// A label value: backslash, quote and line feed are escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
