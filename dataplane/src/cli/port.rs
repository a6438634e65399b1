//! `forebay port`: showing, adding and removing ports.

use std::io;
use std::path::Path;
use std::sync::LazyLock;

use clap::Subcommand;
use forebay_api::client;
use forebay_api::port_json::{self, PortOut, kind_to_text};
use forebay_api::v1::{
    AddPortRequest, GetPortRequest, ListPortsRequest, Port, PortOrigin, PortSpec, RemovePortRequest,
};
use serde::Serialize;

use super::failure::Failure;
use super::stats::CountersOut;
use super::table::{Table, left, right};
use super::{Form, Out, write_json};

#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Show the ports.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Show one port.
    Show {
        /// Its name.
        port: String,
        #[command(flatten)]
        form: Form,
    },
    /// Add a port.
    Add {
        /// The port as a JSON object with the keys of a [[port]] table.
        json_object: String,
        #[command(flatten)]
        form: Form,
    },
    /// Remove a port.
    Remove {
        /// Its name.
        port: String,
        #[command(flatten)]
        form: Form,
    },
}

pub async fn execute(socket: &Path, command: PortCommand, out: &mut Out<'_>) -> Result<(), Failure> {
    match command {
        PortCommand::List { form } => {
            let mut client = client::connect(socket).await?;
            let ports = client.ports.list(ListPortsRequest {}).await?.into_inner().ports;
            write_list(&ports, form, out)?;
        }
        PortCommand::Show { port: name, form } => {
            let mut client = client::connect(socket).await?;
            let port = client.ports.get(GetPortRequest { name }).await?.into_inner();
            if form.json {
                write_json(out, &PortJson::new(&port))?;
            } else {
                write_port(&port, out)?;
            }
        }
        PortCommand::Add { json_object, form } => {
            // Wrong words are wrong whether or not a daemon runs.
            let port = port_json::parse_port(&json_object)?;
            let mut client = client::connect(socket).await?;
            let changed = client.ports.add(AddPortRequest { port: Some(port) }).await?.into_inner().changed;
            if form.json {
                write_json(out, &Added { changed })?;
            } else {
                writeln!(
                    out,
                    "{}",
                    if changed { "1 changed, 0 unchanged" } else { "0 changed, 1 unchanged" }
                )?;
            }
        }
        PortCommand::Remove { port: name, form } => {
            let mut client = client::connect(socket).await?;
            client.ports.remove(RemovePortRequest { name }).await?;
            if form.json {
                write_json(out, &Removed { removed: 1 })?;
            } else {
                writeln!(out, "1 removed")?;
            }
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Added {
    changed: bool,
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
}

/// A port under the keys of the config file, and what the daemon knows about it.
#[derive(Serialize)]
struct PortJson<'a> {
    #[serde(flatten)]
    spec: PortOut<'a>,
    origin: &'static str,
    up: bool,
    mac_in_use: &'a str,
    driver: &'a str,
    queues: u32,
    capabilities: &'a [String],
    rules: u64,
    counters: CountersOut<'a>,
}

/// What a port without a description stands for.
static NO_SPEC: LazyLock<PortSpec> = LazyLock::new(PortSpec::default);

impl<'a> PortJson<'a> {
    fn new(port: &'a Port) -> Self {
        Self {
            spec: PortOut::new(port.spec.as_ref().unwrap_or(&NO_SPEC)),
            origin: origin(port),
            up: port.up,
            mac_in_use: &port.mac,
            driver: &port.driver,
            queues: port.queues,
            capabilities: &port.capabilities,
            rules: port.rules,
            counters: CountersOut::new(port.counters.as_ref()),
        }
    }
}

fn origin(port: &Port) -> &'static str {
    match port.origin() {
        PortOrigin::Config => "config",
        PortOrigin::Control => "control",
        PortOrigin::Unspecified => "unknown",
    }
}

/// The addresses of either kind of port.
fn addresses(spec: &PortSpec) -> String {
    let own = [&spec.ipv4, &spec.ipv6].into_iter().filter(|address| !address.is_empty());
    let all: Vec<&str> = own.chain(&spec.ip).map(String::as_str).collect();
    all.join(", ")
}

fn write_list(ports: &[Port], form: Form, out: &mut Out<'_>) -> io::Result<()> {
    if form.json {
        return ports.iter().try_for_each(|port| write_json(out, &PortJson::new(port)));
    }
    let mut table = Table::new([
        left("PORT"),
        left("KIND"),
        left("STATE"),
        left("DEVICE"),
        left("MAC"),
        right("MTU"),
        right("RULES"),
        right("RX-PACKETS"),
        right("TX-PACKETS"),
        left("ADDRESSES"),
    ]);
    for port in ports {
        let spec = port.spec.as_ref().unwrap_or(&NO_SPEC);
        let (received, sent) = port.counters.as_ref().map_or((0, 0), |all| (all.rx_packets, all.tx_packets));
        table.row(
            out,
            [
                spec.name.clone(),
                kind_to_text(spec.kind()).to_owned(),
                state(port).to_owned(),
                spec.device.clone(),
                port.mac.clone(),
                spec.mtu.to_string(),
                port.rules.to_string(),
                received.to_string(),
                sent.to_string(),
                addresses(spec),
            ],
        )?;
    }
    table.finish(out)
}

fn state(port: &Port) -> &'static str {
    if port.up { "up" } else { "down" }
}

fn write_port(port: &Port, out: &mut Out<'_>) -> io::Result<()> {
    let spec = port.spec.as_ref().unwrap_or(&NO_SPEC);
    let gateways = [spec.gateway.as_str(), spec.gateway6.as_str()];
    let gateways: Vec<&str> = gateways.into_iter().filter(|gateway| !gateway.is_empty()).collect();
    let mut lines = vec![
        ("port", spec.name.clone()),
        ("kind", kind_to_text(spec.kind()).to_owned()),
        ("state", state(port).to_owned()),
        ("origin", origin(port).to_owned()),
        ("device", spec.device.clone()),
        ("driver", port.driver.clone()),
        ("queues", port.queues.to_string()),
        ("capabilities", port.capabilities.join(", ")),
        ("mac", port.mac.clone()),
        ("addresses", addresses(spec)),
        ("gateway", gateways.join(", ")),
        ("neighbors", spec.neighbors.join(", ")),
        ("gateway_mac", spec.gateway_mac.clone()),
        ("trap", spec.trap.join(", ")),
        ("mtu", spec.mtu.to_string()),
        ("rules", port.rules.to_string()),
    ];
    if let Some(counters) = &port.counters {
        lines.push(("received", format!("{} packets, {} bytes", counters.rx_packets, counters.rx_bytes)));
        lines.push(("sent", format!("{} packets, {} bytes", counters.tx_packets, counters.tx_bytes)));
    }
    for (key, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{key:<12}  {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_api::port_json::parse_port;

    fn port() -> Port {
        let json =
            r#"{"name":"vm1","kind":"vf","device":"tap:vm1","ip":["10.1.0.1","fd00:1::1"],"mtu":1400}"#;
        Port {
            spec: Some(parse_port(json).unwrap()),
            origin: PortOrigin::Config.into(),
            up: true,
            mac: "02:00:00:00:01:01".into(),
            driver: "net_tap".into(),
            queues: 1,
            rules: 3,
            ..Default::default()
        }
    }

    fn listed(json: bool) -> String {
        let mut out = Vec::new();
        write_list(&[port()], Form { json }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_has_the_keys_of_the_config_file_and_the_state() {
        let json: serde_json::Value = serde_json::from_str(&listed(true)).unwrap();
        assert_eq!(json["ip"], serde_json::json!(["10.1.0.1/32", "fd00:1::1/128"]));
        assert_eq!((json["mtu"].as_u64(), json["up"].as_bool()), (Some(1400), Some(true)));
        assert_eq!(
            (json["driver"].as_str(), json["mac_in_use"].as_str()),
            (Some("net_tap"), Some("02:00:00:00:01:01"))
        );
        assert_eq!(json["counters"]["rx_packets"].as_u64(), Some(0));
    }

    #[test]
    fn text_shows_one_port_a_line() {
        let text = listed(false);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[..6], ["vm1", "vf", "up", "tap:vm1", "02:00:00:00:01:01", "1400"]);
        let mut out = Vec::new();
        write_port(&port(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("addresses     10.1.0.1/32, fd00:1::1/128\n") && !text.contains("gateway"),
            "{text}"
        );
    }
}
