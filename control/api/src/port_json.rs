//! The JSON form of a port: the keys of a `[[port]]` table of the config file, to [`PortSpec`] and back.

use serde::Serialize;

use crate::json::{Entries, Node, find_text, parse, read_object};
use crate::port_check;
use crate::spec_error::{At, FieldError, Problem, SpecError};
use crate::v1::{PortKind, PortSpec};
use crate::validate::{self, ValueError, shown};

const PORT_KEYS: &[&str] = &[
    "name",
    "kind",
    "device",
    "ipv4",
    "ipv6",
    "gateway",
    "neighbors",
    "mtu",
    "mac",
    "ip",
    "gateway_mac",
    "trap",
];

/// Reads one port from its JSON form, checked and in canonical spelling ([`port_check::canonical`]).
///
/// # Errors
/// The text is not a JSON object, or not a port: the error names the port, the field, the value and the remedy.
pub fn parse_port(text: &str) -> Result<PortSpec, SpecError> {
    let entries =
        parse(text).and_then(|node| Ok(node.object()?)).map_err(|error| error.named("port", None))?;
    let name = find_text(&entries, "name").map(str::to_owned);
    let mut port = read_port(entries).map_err(|error| error.named("port", name.as_deref()))?;
    port_check::canonical(&mut port)?;
    Ok(port)
}

fn read_port(entries: Entries<'_>) -> Result<PortSpec, FieldError> {
    let mut port = PortSpec::default();
    read_object(entries, PORT_KEYS, |key, node| {
        match key {
            "name" => port.name = node.text().at(key)?,
            "kind" => port.set_kind(kind_from_text(&node.text().at(key)?).at(key)?),
            "device" => port.device = node.text().at(key)?,
            "ipv4" => port.ipv4 = node.text().at(key)?,
            "ipv6" => port.ipv6 = node.text().at(key)?,
            "gateway" => read_gateways(node, &mut port).at(key)?,
            "neighbors" => port.neighbors = node.texts().at(key)?,
            "mtu" => port.mtu = node.number().and_then(|number| Ok(validate::mtu(number)?)).at(key)?,
            "mac" => port.mac = node.text().at(key)?,
            "ip" => port.ip = node.texts().at(key)?,
            "gateway_mac" => port.gateway_mac = node.text().at(key)?,
            "trap" => port.trap = node.texts().at(key)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(port)
}

fn read_gateways(node: Node<'_>, port: &mut PortSpec) -> Result<(), FieldError> {
    for text in node.texts()? {
        let (slot, family) = match validate::address(&text)? {
            address if address.is_ipv4() => (&mut port.gateway, "IPv4"),
            _ => (&mut port.gateway6, "IPv6"),
        };
        if !slot.is_empty() {
            return Err(Problem::TwoGateways { family }.into());
        }
        *slot = text;
    }
    Ok(())
}

/// The kind of a port from its word in JSON and in the config file.
///
/// # Errors
/// Neither `vf` nor `uplink`.
pub fn kind_from_text(text: &str) -> Result<PortKind, ValueError> {
    match text {
        "vf" => Ok(PortKind::Vf),
        "uplink" => Ok(PortKind::Uplink),
        other => Err(ValueError::Kind { value: shown(other) }),
    }
}

/// The word for a kind of port in JSON and in the config file.
pub const fn kind_to_text(kind: PortKind) -> &'static str {
    match kind {
        PortKind::Vf => "vf",
        PortKind::Uplink => "uplink",
        PortKind::Unspecified => "unknown",
    }
}

/// A port as one line of JSON without the line's end.
pub fn port_to_json(port: &PortSpec) -> String {
    // Serialising into memory cannot fail: string keys, no I/O.
    serde_json::to_string(&PortOut::new(port)).unwrap_or_default()
}

/// A port in its JSON form, for flattening into larger answers. Keys in one fixed order; absent fields left out.
#[derive(Serialize)]
pub struct PortOut<'a> {
    name: &'a str,
    kind: &'static str,
    device: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ipv4: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ipv6: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateway: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    neighbors: &'a [String],
    mtu: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ip: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    gateway_mac: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    trap: &'a [String],
}

impl<'a> PortOut<'a> {
    /// The JSON form of a port.
    pub fn new(port: &'a PortSpec) -> Self {
        let gateways = [port.gateway.as_str(), port.gateway6.as_str()];
        Self {
            name: &port.name,
            kind: kind_to_text(port.kind()),
            device: &port.device,
            ipv4: &port.ipv4,
            ipv6: &port.ipv6,
            gateway: gateways.into_iter().filter(|gateway| !gateway.is_empty()).collect(),
            neighbors: &port.neighbors,
            mtu: if port.mtu == 0 { port_check::DEFAULT_MTU_BYTES } else { port.mtu },
            mac: &port.mac,
            ip: &port.ip,
            gateway_mac: &port.gateway_mac,
            trap: &port.trap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse_port(text).unwrap_err().to_string()
    }

    #[test]
    fn reads_both_kinds_and_writes_them_back() {
        let uplink = r#"{"name":"uplink0","kind":"uplink","device":"af_packet:und0","ipv4":"192.0.2.1/24","ipv6":"2001:db8::1/64","gateway":["192.0.2.254","2001:db8::fe"],"neighbors":["192.0.2.2=02:00:00:00:00:02","2001:db8::2=02:00:00:00:00:02"],"mtu":1600}"#;
        let port = parse_port(uplink).unwrap();
        assert_eq!((port.gateway.as_str(), port.gateway6.as_str()), ("192.0.2.254", "2001:db8::fe"));
        assert_eq!(port_to_json(&port), uplink);
        let vf = r#"{"name":"vm1","kind":"vf","device":"tap:vm1","mtu":1500,"mac":"02:00:00:00:01:01","ip":["10.1.0.1/32","fd00:1::/64"],"gateway_mac":"02:00:00:00:00:fe","trap":["dhcp"]}"#;
        assert_eq!(port_to_json(&parse_port(vf).unwrap()), vf);
    }

    #[test]
    fn a_single_string_stands_for_a_list_of_one() {
        let port = parse_port(r#"{"name":"vm1","kind":"vf","device":"tap:vm1","ip":"10.1.0.1"}"#).unwrap();
        assert_eq!(port.ip, ["10.1.0.1/32"]);
        let port =
            parse_port(r#"{"name":"u","kind":"uplink","device":"null:","gateway":"2001:db8::fe"}"#).unwrap();
        assert_eq!(port.gateway6, "2001:db8::fe");
    }

    #[test]
    fn errors_name_port_field_value_and_remedy() {
        assert_eq!(
            refused(r#"{"name":"vm1","knd":"vf"}"#),
            "port \"vm1\": unknown key \"knd\" (allowed: name, kind, device, ipv4, ipv6, gateway, neighbors, mtu, \
             mac, ip, gateway_mac, trap)"
        );
        assert!(
            refused(r#"{"name":"vm1","kind":"pf"}"#)
                .contains("kind: \"pf\" is not a kind of port (write \"vf\"")
        );
        let two = refused(r#"{"name":"u","gateway":["192.0.2.1","192.0.2.2"]}"#);
        assert_eq!(two, "port \"u\": gateway: more than one IPv4 gateway (keep one)");
        assert_eq!(
            refused(r#"{"name":"u","kind":"uplink","device":"null:","neighbors":["192.0.2.2"]}"#),
            "port \"u\": neighbors[0]: \"192.0.2.2\" is not ADDRESS=MAC (write 192.0.2.2=02:00:00:00:00:02)"
        );
        assert!(refused(r#"{"name":"u","neighbors":[2]}"#).contains("neighbors[0]: 2 is not a string"));
        assert!(refused("[]").contains("port: a list is not an object"));
        assert!(refused(r#"{"name":"u","mtu":"9000"}"#).contains("mtu: \"9000\" is not a whole number"));
    }
}
