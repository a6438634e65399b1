//! `forebay flow`: the flows that pass.

use clap::Subcommand;
use forebay_api::client::Client;
use forebay_api::v1::{Flow, ListFlowsRequest};
use forebay_api::validate;
use forebay_dataplane::control::flows::MOST;
use serde::Serialize;

use super::failure::Failure;
use super::table::{Table, left, right};
use super::{Form, Out, write_json};

#[derive(Debug, Subcommand)]
pub enum FlowCommand {
    /// Show the busiest flows, those with the most bytes first.
    List {
        /// Only what this port received.
        #[arg(long, value_name = "PORT")]
        port: Option<String>,
        /// The most flows to show.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
        limit: u32,
        #[command(flatten)]
        form: Form,
    },
}

pub async fn execute(client: Client, command: FlowCommand, out: &mut Out<'_>) -> Result<(), Failure> {
    match command {
        FlowCommand::List { port, limit, form } => {
            let request = ListFlowsRequest { port: port.unwrap_or_default(), limit };
            list(client, request, form, out).await
        }
    }
}

/// Writes the flows while they arrive.
async fn list(
    mut client: Client,
    request: ListFlowsRequest,
    form: Form,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    let mut flows = client.flows.list(request).await?.into_inner();
    let mut table = Table::new([
        left("WORKER"),
        left("PORT"),
        left("TUNNEL"),
        left("PROTO"),
        left("SOURCE"),
        left("DESTINATION"),
        right("PACKETS"),
        right("BYTES"),
        right("IDLE MS"),
        left("DECIDED BY"),
    ]);
    while let Some(flow) = flows.message().await? {
        if form.json {
            write_json(out, &FlowOut::new(&flow))?;
        } else {
            table.row(out, row(&flow))?;
        }
    }
    if !form.json {
        table.finish(out)?;
    }
    Ok(())
}

fn protocol(flow: &Flow) -> String {
    validate::protocol_name(flow.proto).map_or_else(|| flow.proto.to_string(), str::to_owned)
}

/// An address with its port.
fn end(address: &str, port: Option<u32>) -> String {
    match port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

fn row(flow: &Flow) -> [String; 10] {
    let tunnel = flow.vni.map_or_else(|| "-".to_owned(), |vni| format!("vni {vni} from {}", flow.remote));
    let decided_by = match (flow.rule.as_str(), flow.drop.as_str()) {
        _ if flow.outdated => "(outdated)".to_owned(),
        ("", "") => "-".to_owned(),
        (rule, "") => rule.to_owned(),
        ("", reason) => format!("drop: {reason}"),
        (rule, reason) => format!("{rule} (drop: {reason})"),
    };
    [
        flow.worker.clone(),
        flow.port.clone(),
        tunnel,
        protocol(flow),
        end(&flow.src, flow.src_port),
        end(&flow.dst, flow.dst_port),
        flow.packets.to_string(),
        flow.bytes.to_string(),
        flow.idle_ms.to_string(),
        decided_by,
    ]
}

/// A protocol: by its name where it has one, as in rules.
#[derive(Serialize)]
#[serde(untagged)]
enum NameOrNumber {
    Name(&'static str),
    Number(u32),
}

/// A flow as JSON. Keys are those of the proto, in its order; what a flow does not have is left out.
#[derive(Serialize)]
struct FlowOut<'a> {
    worker: &'a str,
    port: &'a str,
    src_mac: &'a str,
    dst_mac: &'a str,
    src: &'a str,
    dst: &'a str,
    proto: NameOrNumber,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<u32>,
    dscp: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    remote: &'a str,
    packets: u64,
    bytes: u64,
    idle_ms: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    rule: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    drop: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    outdated: bool,
}

impl<'a> FlowOut<'a> {
    fn new(flow: &'a Flow) -> Self {
        Self {
            worker: &flow.worker,
            port: &flow.port,
            src_mac: &flow.src_mac,
            dst_mac: &flow.dst_mac,
            src: &flow.src,
            dst: &flow.dst,
            proto: validate::protocol_name(flow.proto)
                .map_or(NameOrNumber::Number(flow.proto), NameOrNumber::Name),
            src_port: flow.src_port,
            dst_port: flow.dst_port,
            dscp: flow.dscp,
            vni: flow.vni,
            remote: &flow.remote,
            packets: flow.packets,
            bytes: flow.bytes,
            idle_ms: flow.idle_ms,
            rule: &flow.rule,
            drop: &flow.drop,
            outdated: flow.outdated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            worker: "worker0".into(),
            port: "vm1".into(),
            src_mac: "02:00:00:00:01:01".into(),
            dst_mac: "02:00:00:00:01:02".into(),
            src: "10.1.0.1".into(),
            dst: "10.1.0.2".into(),
            proto: 17,
            src_port: Some(4000),
            dst_port: Some(5000),
            packets: 3,
            bytes: 300,
            idle_ms: 12,
            rule: "e1".into(),
            ..Flow::default()
        }
    }

    #[test]
    fn a_row_says_who_and_why() {
        let tunnelled = Flow {
            src: "fd00::1".into(),
            vni: Some(100),
            remote: "192.0.2.2".into(),
            rule: String::new(),
            drop: "no_rule".into(),
            ..flow()
        };
        let text = |flow: &Flow| row(flow).join("|");
        assert_eq!(text(&flow()), "worker0|vm1|-|udp|10.1.0.1:4000|10.1.0.2:5000|3|300|12|e1");
        assert_eq!(
            text(&tunnelled),
            "worker0|vm1|vni 100 from 192.0.2.2|udp|[fd00::1]:4000|10.1.0.2:5000|3|300|12|drop: no_rule"
        );
        assert!(text(&Flow { outdated: true, ..flow() }).ends_with("|(outdated)"));
        assert!(
            text(&Flow { drop: "rule_drop".into(), ..flow() }).ends_with("|e1 (drop: rule_drop)"),
            "a rule that drops is named"
        );
    }

    #[test]
    fn json_leaves_out_what_a_flow_does_not_have() {
        let json = |flow: &Flow| serde_json::to_string(&FlowOut::new(flow)).unwrap();
        assert_eq!(
            json(&Flow { proto: 253, src_port: None, dst_port: None, ..flow() }),
            "{\"worker\":\"worker0\",\"port\":\"vm1\",\"src_mac\":\"02:00:00:00:01:01\",\
             \"dst_mac\":\"02:00:00:00:01:02\",\"src\":\"10.1.0.1\",\"dst\":\"10.1.0.2\",\"proto\":253,\
             \"dscp\":0,\"packets\":3,\"bytes\":300,\"idle_ms\":12,\"rule\":\"e1\"}"
        );
    }
}
