//! `forebay stats`: every counter, and the equation that says whether a packet was lost.

use std::collections::BTreeMap;
use std::io;
use std::sync::LazyLock;

use forebay_api::client::Client;
use forebay_api::port_json::kind_to_text;
use forebay_api::v1::{Conservation, GetStatsRequest, GetStatsResponse, PortCounters, PortStats};
use serde::Serialize;

use super::failure::Failure;
use super::table::{Table, left, right};
use super::{Form, Out, write_json};

/// Shows the counters of one port, or of all where `port` is empty.
///
/// # Errors
/// The daemon does not answer or refuses, or the answer cannot be written.
pub async fn show(mut client: Client, port: String, form: Form, out: &mut Out<'_>) -> Result<(), Failure> {
    let stats = client.stats.get(GetStatsRequest { port }).await?.into_inner();
    if form.json {
        write_json(out, &StatsOut::new(&stats))?;
    } else {
        write_text(&stats, out)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct StatsOut<'a> {
    host: &'a str,
    ports: BTreeMap<&'a str, PortOut<'a>>,
    conservation: ConservationOut,
    rules: u64,
    buffers: u64,
    buffers_in_use: u64,
    uptime_ns: u64,
}

#[derive(Serialize)]
struct PortOut<'a> {
    kind: &'static str,
    #[serde(flatten)]
    counters: CountersOut<'a>,
    conservation: ConservationOut,
}

/// The counters of a port under the names of the user's contract.
#[derive(Serialize)]
pub struct CountersOut<'a> {
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    sent_packets: u64,
    delivered_packets: u64,
    trapped_packets: u64,
    local_packets: u64,
    originated_packets: u64,
    originated_lost_packets: u64,
    waiting_packets: u64,
    drops: &'a BTreeMap<String, u64>,
}

#[derive(Serialize)]
pub(super) struct ConservationOut {
    received_packets: u64,
    sent_packets: u64,
    delivered_packets: u64,
    trapped_packets: u64,
    local_packets: u64,
    dropped_packets: u64,
    in_flight_packets: i64,
    in_flight_bound_packets: u64,
    holds: bool,
}

impl<'a> StatsOut<'a> {
    fn new(stats: &'a GetStatsResponse) -> Self {
        Self {
            host: &stats.host,
            ports: stats.ports.iter().map(|port| (port.name.as_str(), PortOut::new(port))).collect(),
            conservation: ConservationOut::new(stats.conservation.as_ref()),
            rules: stats.rules,
            buffers: stats.buffers,
            buffers_in_use: stats.buffers_in_use,
            uptime_ns: stats.uptime_ns,
        }
    }
}

/// No counters: what a port without any stands for.
static NO_COUNTERS: LazyLock<PortCounters> = LazyLock::new(PortCounters::default);

impl<'a> PortOut<'a> {
    fn new(port: &'a PortStats) -> Self {
        Self {
            kind: kind_to_text(port.kind()),
            counters: CountersOut::new(port.counters.as_ref()),
            conservation: ConservationOut::new(port.conservation.as_ref()),
        }
    }
}

impl<'a> CountersOut<'a> {
    pub fn new(counters: Option<&'a PortCounters>) -> Self {
        let counters = counters.unwrap_or(&NO_COUNTERS);
        Self {
            rx_packets: counters.rx_packets,
            rx_bytes: counters.rx_bytes,
            tx_packets: counters.tx_packets,
            tx_bytes: counters.tx_bytes,
            sent_packets: counters.sent_packets,
            delivered_packets: counters.delivered_packets,
            trapped_packets: counters.trapped_packets,
            local_packets: counters.local_packets,
            originated_packets: counters.originated_packets,
            originated_lost_packets: counters.originated_lost_packets,
            waiting_packets: counters.waiting_packets,
            drops: &counters.drops,
        }
    }
}

impl ConservationOut {
    pub(super) fn new(conservation: Option<&Conservation>) -> Self {
        // An equation that the daemon does not give does not hold.
        let of = conservation.copied().unwrap_or_default();
        Self {
            received_packets: of.received_packets,
            sent_packets: of.sent_packets,
            delivered_packets: of.delivered_packets,
            trapped_packets: of.trapped_packets,
            local_packets: of.local_packets,
            dropped_packets: of.dropped_packets,
            in_flight_packets: of.in_flight_packets,
            in_flight_bound_packets: of.in_flight_bound_packets,
            holds: of.holds,
        }
    }
}

fn write_text(stats: &GetStatsResponse, out: &mut Out<'_>) -> io::Result<()> {
    writeln!(
        out,
        "{}: {} rules, {} of {} buffers in use, up {:.0} s",
        stats.host,
        stats.rules,
        stats.buffers_in_use,
        stats.buffers,
        std::time::Duration::from_nanos(stats.uptime_ns).as_secs_f64()
    )?;
    let mut table = Table::new([
        left("PORT"),
        left("KIND"),
        right("RX-PACKETS"),
        right("RX-BYTES"),
        right("TX-PACKETS"),
        right("TX-BYTES"),
        right("TRAPPED"),
        right("LOCAL"),
        right("DROPPED"),
        left("DROPS"),
    ]);
    for port in &stats.ports {
        let counters = port.counters.as_ref().unwrap_or(&NO_COUNTERS);
        let dropped = counters.drops.values().fold(0_u64, |sum, packets| sum.saturating_add(*packets));
        table.row(
            out,
            [
                port.name.clone(),
                kind_to_text(port.kind()).to_owned(),
                counters.rx_packets.to_string(),
                counters.rx_bytes.to_string(),
                counters.tx_packets.to_string(),
                counters.tx_bytes.to_string(),
                counters.trapped_packets.to_string(),
                counters.local_packets.to_string(),
                dropped.to_string(),
                reasons(&counters.drops),
            ],
        )?;
    }
    table.finish(out)?;
    for port in &stats.ports {
        write_equation(&port.name, port.conservation.as_ref(), out)?;
    }
    write_equation("host", stats.conservation.as_ref(), out)
}

/// The reasons that dropped something.
fn reasons(drops: &BTreeMap<String, u64>) -> String {
    let seen = drops.iter().filter(|(_, packets)| **packets > 0);
    let seen: Vec<String> = seen.map(|(reason, packets)| format!("{reason} {packets}")).collect();
    seen.join(", ")
}

pub(super) fn write_equation(
    of: &str,
    conservation: Option<&Conservation>,
    out: &mut Out<'_>,
) -> io::Result<()> {
    let sides = ConservationOut::new(conservation);
    let verdict = if sides.holds { "" } else { " DOES NOT HOLD" };
    writeln!(
        out,
        "{of}: received {} = sent {} + delivered {} + trapped {} + local {} + dropped {} + in flight {}{verdict}",
        sides.received_packets,
        sides.sent_packets,
        sides.delivered_packets,
        sides.trapped_packets,
        sides.local_packets,
        sides.dropped_packets,
        sides.in_flight_packets,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_api::v1::PortKind;

    fn stats() -> GetStatsResponse {
        let equation = Conservation {
            received_packets: 10,
            sent_packets: 8,
            local_packets: 2,
            holds: true,
            ..Default::default()
        };
        let counters = PortCounters {
            rx_packets: 10,
            rx_bytes: 640,
            sent_packets: 8,
            local_packets: 2,
            drops: [("no_rule".to_owned(), 0), ("malformed".to_owned(), 3)].into(),
            ..Default::default()
        };
        let port = PortStats {
            name: "vm1".into(),
            kind: PortKind::Vf.into(),
            counters: Some(counters),
            conservation: Some(equation),
        };
        GetStatsResponse {
            host: "host-a".into(),
            ports: vec![port],
            conservation: Some(Conservation { holds: false, ..equation }),
            rules: 5,
            ..Default::default()
        }
    }

    #[test]
    fn json_has_the_promised_keys() {
        let mut out = Vec::new();
        write_json(&mut out, &StatsOut::new(&stats())).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let port = &json["ports"]["vm1"];
        assert_eq!((&json["host"], &port["kind"]), (&"host-a".into(), &"vf".into()));
        for key in ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "trapped_packets", "local_packets"] {
            assert!(port[key].is_u64(), "{key}");
        }
        assert_eq!(port["drops"], serde_json::json!({"malformed": 3, "no_rule": 0}));
        assert_eq!(
            (port["conservation"]["holds"].as_bool(), json["conservation"]["holds"].as_bool()),
            (Some(true), Some(false))
        );
    }

    #[test]
    fn text_shows_the_equation_and_whether_it_holds() {
        let mut out = Vec::new();
        write_text(&stats(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let equation = "received 10 = sent 8 + delivered 0 + trapped 0 + local 2 + dropped 0 + in flight 0";
        assert!(text.contains(&format!("vm1: {equation}\n")), "{text}");
        assert!(text.contains(&format!("host: {equation} DOES NOT HOLD\n")), "{text}");
        assert!(text.contains("malformed 3") && !text.contains("no_rule"), "{text}");
    }
}
