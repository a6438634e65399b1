//! Ports as the control API has them: the same fields as in the file, checked by the same code.

use forebay_api::v1;

use super::model::{Port, PortKind};
use super::object::{At, Field, Object};
use super::port::{PortFields, draft};
use super::problem::Problem;
use super::siblings::{Siblings, of_port};

/// Checks a port specification by itself; [`port_beside`] checks it against the other ports.
///
/// Text that is empty and an `mtu` of 0 count as not given.
///
/// # Errors
/// Everything that is wrong with it; never an empty list.
pub fn port_from_spec(spec: &v1::PortSpec) -> Result<Port, Vec<Problem>> {
    let title = if spec.name.is_empty() { "port".to_string() } else { format!("port {:?}", spec.name) };
    let draft = draft(fields(spec), Object::new("", title, None));
    draft.port.ok_or(draft.object.problems)
}

/// The specification of a port: [`port_from_spec`] makes an equal port of it.
pub fn port_to_spec(port: &Port) -> v1::PortSpec {
    let text = |value: Option<String>| value.unwrap_or_default();
    let mut spec = v1::PortSpec {
        name: port.name.clone(),
        device: port.device.to_string(),
        mtu: u32::from(port.mtu),
        mac: text(port.mac.map(|mac| mac.to_string())),
        ..v1::PortSpec::default()
    };
    match &port.kind {
        PortKind::Vf(vf) => {
            spec.kind = v1::PortKind::Vf.into();
            spec.ip = vf.ip.iter().map(shortest).collect();
            spec.gateway_mac = text(vf.gateway_mac.map(|mac| mac.to_string()));
            spec.trap = vf.traps.names().map(str::to_string).collect();
        }
        PortKind::Uplink(uplink) => {
            spec.kind = v1::PortKind::Uplink.into();
            spec.ipv4 = text(uplink.ipv4.map(|own| format!("{}/{}", own.addr, own.prefix_len)));
            spec.ipv6 = text(uplink.ipv6.map(|own| format!("{}/{}", own.addr, own.prefix_len)));
            spec.gateway = text(uplink.gateway4.map(|addr| addr.to_string()));
            spec.gateway6 = text(uplink.gateway6.map(|addr| addr.to_string()));
            spec.neighbors = uplink.neighbors.iter().map(|(addr, mac)| format!("{addr}={mac}")).collect();
        }
    }
    spec
}

/// What stands in the way of `port` beside the ports that exist: a name, device or VLAN in use, a VLAN of no port,
/// or too many of them. Empty where nothing does.
pub fn port_beside<'a>(port: &Port, existing: impl IntoIterator<Item = &'a Port>) -> Vec<Problem> {
    let mut siblings = Siblings::default();
    for other in existing {
        siblings.admit(&mut of_port(other));
    }
    let mut draft = of_port(port);
    siblings.admit(&mut draft);
    siblings.check_parent(&mut draft);
    draft.object.problems
}

/// An address without the prefix length that it has anyway.
fn shortest(net: &ipnet::IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn fields(spec: &v1::PortSpec) -> PortFields {
    let kind = match v1::PortKind::try_from(spec.kind) {
        Ok(v1::PortKind::Unspecified) => String::new(),
        Ok(v1::PortKind::Vf) => "vf".to_string(),
        Ok(v1::PortKind::Uplink) => "uplink".to_string(),
        Err(_) => spec.kind.to_string(),
    };
    let gateways: Vec<At<String>> = [("gateway", &spec.gateway), ("gateway6", &spec.gateway6)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| at(key, value.clone()))
        .collect();
    PortFields {
        name: text("name", &spec.name),
        kind: text("kind", &kind),
        device: text("device", &spec.device),
        mtu: if spec.mtu == 0 { Field::Absent } else { Field::Given(at("mtu", i64::from(spec.mtu))) },
        mac: text("mac", &spec.mac),
        ipv4: text("ipv4", &spec.ipv4),
        ipv6: text("ipv6", &spec.ipv6),
        gateway: if gateways.is_empty() { Field::Absent } else { Field::Given(at("gateway", gateways)) },
        neighbors: texts("neighbors", &spec.neighbors),
        ip: texts("ip", &spec.ip),
        gateway_mac: text("gateway_mac", &spec.gateway_mac),
        trap: texts("trap", &spec.trap),
    }
}

fn at<T>(key: &str, value: T) -> At<T> {
    At { value, line: None, key: key.to_string() }
}

fn text(key: &str, value: &str) -> Field<String> {
    if value.is_empty() { Field::Absent } else { Field::Given(at(key, value.to_string())) }
}

fn texts(key: &str, values: &[String]) -> Field<Vec<At<String>>> {
    if values.is_empty() {
        return Field::Absent;
    }
    let list =
        values.iter().enumerate().map(|(i, value)| at(&format!("{key}[{i}]"), value.clone())).collect();
    Field::Given(at(key, list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vf() -> v1::PortSpec {
        v1::PortSpec {
            name: "vm1".into(),
            kind: v1::PortKind::Vf.into(),
            device: "tap:vm1".into(),
            mac: "02:00:00:00:01:01".into(),
            ip: vec!["fd00:1::/64".into(), "10.1.0.1".into()],
            gateway_mac: "02:00:00:00:00:fe".into(),
            trap: vec!["lldp".into(), "dhcp".into()],
            ..v1::PortSpec::default()
        }
    }

    fn uplink() -> v1::PortSpec {
        v1::PortSpec {
            name: "uplink0".into(),
            kind: v1::PortKind::Uplink.into(),
            device: "pci:0000:3B:02.1".into(),
            ipv4: "192.0.2.1/24".into(),
            ipv6: "2001:db8::1/64".into(),
            gateway: "192.0.2.254".into(),
            gateway6: "fe80::1".into(),
            mtu: 1600,
            neighbors: vec!["192.0.2.2=02:00:00:00:00:02".into(), "fe80::2=02:00:00:00:00:0a".into()],
            ..v1::PortSpec::default()
        }
    }

    fn texts_of(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_specification_comes_back_in_canonical_form() {
        let port = port_from_spec(&vf()).unwrap();
        let spec = port_to_spec(&port);
        assert_eq!(spec.ip, ["10.1.0.1", "fd00:1::/64"]);
        assert_eq!(spec.trap, ["dhcp", "lldp"]);
        assert_eq!(spec.mtu, 1500);
        assert_eq!(port_from_spec(&spec).unwrap(), port);

        let port = port_from_spec(&uplink()).unwrap();
        let spec = port_to_spec(&port);
        assert_eq!(spec, v1::PortSpec { device: "pci:0000:3b:02.1".into(), ..uplink() });
        assert_eq!(port_from_spec(&spec).unwrap(), port);
    }

    #[test]
    fn the_order_of_addresses_and_the_field_of_a_gateway_mean_nothing() {
        let mut other = vf();
        other.ip.reverse();
        assert_eq!(port_from_spec(&other), port_from_spec(&vf()));
        let mut other = uplink();
        std::mem::swap(&mut other.gateway, &mut other.gateway6);
        other.neighbors = vec!["FE80:0::2=02:00:00:00:00:0A".into(), "192.0.2.2=02:00:00:00:00:02".into()];
        assert_eq!(port_from_spec(&other), port_from_spec(&uplink()));
    }

    #[test]
    fn everything_wrong_is_said_at_once_without_lines() {
        let mut spec = vf();
        spec.mac = "ff:ff:ff:ff:ff:ff".into();
        spec.ip = vec![];
        spec.ipv4 = "192.0.2.1/24".into();
        spec.mtu = 100_000;
        let problems = port_from_spec(&spec).unwrap_err();
        assert_eq!(
            texts_of(&problems),
            [
                "port \"vm1\": mtu = 100000: too large (write 576 to 9600 bytes)",
                "port \"vm1\": mac = \"ff:ff:ff:ff:ff:ff\": a multicast MAC address, which no station sends from \
                 (clear the lowest bit of the first byte, such as 02:00:00:00:01:01)",
                "port \"vm1\": ipv4: only a port of kind \"uplink\" has this key (remove it, or set kind = \"uplink\")",
                "port \"vm1\": ip: missing (a vf needs the source addresses that its tenant may use, such as \
                 [\"10.1.0.1\"])",
            ]
        );
        assert_eq!((problems[0].line, problems[0].key.as_str()), (None, "mtu"));
    }

    #[test]
    fn nothing_given_names_what_is_missing() {
        let problems = port_from_spec(&v1::PortSpec::default()).unwrap_err();
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["name", "kind", "device"]);
        assert!(problems[0].to_string().starts_with("port: name: missing"), "{}", problems[0]);
        let problems = port_from_spec(&v1::PortSpec { kind: 7, ..vf() }).unwrap_err();
        assert_eq!(
            texts_of(&problems),
            ["port \"vm1\": kind = \"7\": unknown kind of port (allowed here: vf, uplink)"]
        );
    }

    #[test]
    fn neighbours_are_checked_as_in_the_file() {
        let twice = vec!["fe80::2=02:00:00:00:00:02".into(), "fe80:0::2=02:00:00:00:00:03".into()];
        assert_eq!(
            texts_of(&port_from_spec(&v1::PortSpec { neighbors: twice, ..uplink() }).unwrap_err()),
            ["port \"uplink0\": neighbors[1] = \"fe80:0::2=02:00:00:00:00:03\": fe80::2 is listed already \
                 (keep one MAC address for it)"]
        );
        let port = v1::PortSpec { neighbors: vec!["192.0.2.2=02:00:00:00:00:02".into()], ..vf() };
        assert_eq!(
            texts_of(&port_from_spec(&port).unwrap_err()),
            [
                "port \"vm1\": neighbors: only a port of kind \"uplink\" has this key (remove it, or set kind = \"uplink\")"
            ]
        );
    }

    #[test]
    fn a_port_is_checked_beside_the_others() {
        let (vm1, uplink0) = (port_from_spec(&vf()).unwrap(), port_from_spec(&uplink()).unwrap());
        assert_eq!(port_beside(&vm1, [&uplink0]), []);
        assert_eq!(
            texts_of(&port_beside(&vm1, [&uplink0, &vm1])),
            [
                "port \"vm1\": name = \"vm1\": another port has this name (give each port a name of its own)",
                "port \"vm1\": device = \"tap:vm1\": port \"vm1\" has this device already \
                 (give each port a device of its own, or a VLAN of one)",
            ]
        );
        let behind = |device: &str| v1::PortSpec { name: "vm2".into(), device: device.into(), ..vf() };
        let port = port_from_spec(&behind("vlan:vm1/7")).unwrap();
        assert_eq!(port_beside(&port, [&vm1]), []);
        assert_eq!(
            texts_of(&port_beside(&port, [&uplink0])),
            [
                "port \"vm2\": device = \"vlan:vm1/7\": there is no port \"vm1\" (declare port \"vm1\", or name another)"
            ]
        );
    }
}
