//! What makes a port acceptable by itself, on its proto form; and its one canonical spelling.
//!
//! What depends on the host (does the device exist, which traps does the classifier know) is the daemon's to check.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::mac::MacAddr;
use crate::rule_check::rewrite;
use crate::spec_error::{At, FieldError, Problem, SpecError};
use crate::v1::{PortKind, PortSpec};
use crate::validate::{self, ValueError, shown};

/// The MTU of a port that names none, in bytes: Ethernet's (IEEE 802.3, 3.2.7).
pub const DEFAULT_MTU_BYTES: u32 = 1500;

/// The most static neighbours of an uplink: every host of a /22, more than one link of an underlay usually has. In
/// text they take some 64 KiB, so that thousands of ports with theirs still fit into a message.
pub const MAX_NEIGHBORS: usize = 1024;

/// Checks every field of a port and rewrites it in canonical spelling: MACs and addresses as for rules, `ip` and
/// `trap` sorted without repetition, the default MTU written out. Two canonical ports mean the same exactly where they
/// are equal. `neighbors` are sorted by address; an address twice is an error, because its two MACs may differ.
///
/// # Errors
/// The first field that is wrong; the port may be half rewritten then.
pub fn canonical(port: &mut PortSpec) -> Result<(), SpecError> {
    fields(port).map_err(|error| error.named("port", Some(&port.name)))
}

fn fields(port: &mut PortSpec) -> Result<(), FieldError> {
    required(&port.name, "name", "name the port")?;
    validate::port_name(&port.name).at("name")?;
    let kind = port.kind();
    if kind == PortKind::Unspecified {
        return Err(Problem::Missing { key: "kind", remedy: "give \"vf\" or \"uplink\"" }.into());
    }
    required(&port.device, "device", "give the device, such as tap:vm1")?;
    validate::device(&port.device).at("device")?;
    if port.mtu == 0 {
        port.mtu = DEFAULT_MTU_BYTES;
    }
    validate::mtu(port.mtu).at("mtu")?;
    rewrite(&mut port.mac, validate::station_mac).at("mac")?;
    match kind {
        PortKind::Uplink => {
            only_for(port.ip.is_empty(), "uplink", "vf").at("ip")?;
            only_for(port.gateway_mac.is_empty(), "uplink", "vf").at("gateway_mac")?;
            only_for(port.trap.is_empty(), "uplink", "vf").at("trap")?;
        }
        _ => {
            only_for(port.ipv4.is_empty(), "vf", "uplink").at("ipv4")?;
            only_for(port.ipv6.is_empty(), "vf", "uplink").at("ipv6")?;
            only_for(port.gateway.is_empty() && port.gateway6.is_empty(), "vf", "uplink").at("gateway")?;
            only_for(port.neighbors.is_empty(), "vf", "uplink").at("neighbors")?;
        }
    }
    rewrite(&mut port.ipv4, validate::interface4).at("ipv4")?;
    rewrite(&mut port.ipv6, validate::interface6).at("ipv6")?;
    rewrite(&mut port.gateway, validate::gateway4).at("gateway")?;
    rewrite(&mut port.gateway6, validate::gateway6).at("gateway")?;
    neighbors(&mut port.neighbors).at("neighbors")?;
    rewrite(&mut port.gateway_mac, validate::station_mac).at("gateway_mac")?;
    set(&mut port.ip, |text| {
        // Empty means absent in single fields; in a list it is no prefix.
        let prefix = validate::prefix(text)?;
        *text = prefix.to_string();
        Ok(())
    })
    .at("ip")?;
    set(&mut port.trap, |text| validate::trap(text)).at("trap")
}

fn required(text: &str, key: &'static str, remedy: &'static str) -> Result<(), Problem> {
    if text.is_empty() { Err(Problem::Missing { key, remedy }) } else { Ok(()) }
}

fn only_for(absent: bool, kind: &'static str, wanted: &'static str) -> Result<(), Problem> {
    if absent { Ok(()) } else { Err(Problem::WrongKind { kind, wanted }) }
}

/// Static neighbours: checked one by one, sorted by address, each address once.
fn neighbors(list: &mut Vec<String>) -> Result<(), FieldError> {
    if list.len() > MAX_NEIGHBORS {
        return Err(Problem::TooManyNeighbors { count: list.len(), limit: MAX_NEIGHBORS }.into());
    }
    let mut known = BTreeMap::new();
    for (index, text) in list.iter().enumerate() {
        let field = format!("[{index}]");
        let (address, mac) = neighbor(text).at(&field)?;
        if known.insert(address, mac).is_some() {
            return Err(Problem::TwoNeighbors { address }).at(&field);
        }
    }
    *list = known.iter().map(|(address, mac)| format!("{address}={mac}")).collect();
    Ok(())
}

fn neighbor(text: &str) -> Result<(IpAddr, MacAddr), Problem> {
    let Some((address, mac)) = text.split_once('=') else {
        let wanted = "ADDRESS=MAC (write 192.0.2.2=02:00:00:00:00:02)";
        return Err(Problem::Type { value: shown(text), wanted });
    };
    Ok((validate::host_address(address)?, validate::station_mac(mac)?))
}

/// A list that is a set: checked one by one, sorted, each once.
fn set(
    list: &mut Vec<String>,
    check: impl Fn(&mut String) -> Result<(), ValueError>,
) -> Result<(), FieldError> {
    for (index, text) in list.iter_mut().enumerate() {
        check(text).at(&format!("[{index}]"))?;
    }
    list.sort_unstable();
    list.dedup();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vf() -> PortSpec {
        PortSpec {
            name: "vm1".into(),
            kind: PortKind::Vf.into(),
            device: "tap:vm1".into(),
            mac: "02:00:00:00:0A:01".into(),
            ip: vec!["fd00:1:0::1".into(), "10.1.0.1".into(), "10.1.0.1/32".into()],
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut PortSpec)) -> String {
        let mut port = vf();
        change(&mut port);
        canonical(&mut port).unwrap_err().to_string()
    }

    #[test]
    fn rewrites_into_one_spelling() {
        let mut port = vf();
        canonical(&mut port).unwrap();
        assert_eq!((port.mac.as_str(), port.mtu), ("02:00:00:00:0a:01", 1500));
        assert_eq!(port.ip, ["10.1.0.1/32", "fd00:1::1/128"]);
    }

    #[test]
    fn refuses_what_the_kind_does_not_take() {
        assert_eq!(
            refused(|port| port.ipv4 = "192.0.2.1/24".into()),
            "port \"vm1\": ipv4: given, but the port is of kind vf (only a port of kind uplink takes it: leave it out)"
        );
        assert!(
            refused(|port| port.neighbors = vec!["192.0.2.2=02:00:00:00:00:02".into()])
                .contains("neighbors: given")
        );
        assert!(refused(|port| port.kind = PortKind::Uplink.into()).contains("ip: given"));
    }

    #[test]
    fn neighbours_have_one_spelling_and_one_mac() {
        let with = |neighbors: &[&str]| {
            let mut port = PortSpec {
                name: "u".into(),
                kind: PortKind::Uplink.into(),
                device: "null:".into(),
                neighbors: neighbors.iter().map(|text| text.to_string()).collect(),
                ..Default::default()
            };
            canonical(&mut port).map(|()| port.neighbors).map_err(|error| error.to_string())
        };
        let good = with(&[
            "2001:DB8:0::2=02:00:00:00:00:0A",
            "192.0.2.10=02:00:00:00:00:02",
            "192.0.2.9=02:00:00:00:00:02",
        ]);
        assert_eq!(
            good.unwrap(),
            ["192.0.2.9=02:00:00:00:00:02", "192.0.2.10=02:00:00:00:00:02", "2001:db8::2=02:00:00:00:00:0a"]
        );
        assert_eq!(
            with(&["fe80::2=02:00:00:00:00:02", "fe80:0::2=02:00:00:00:00:02"]).unwrap_err(),
            "port \"u\": neighbors[1]: fe80::2 stands there twice (keep one MAC address for it)"
        );
        for (text, expected) in [
            ("", "\"\" is not ADDRESS=MAC (write 192.0.2.2=02:00:00:00:00:02)"),
            ("x=02:00:00:00:00:02", "\"x\" is not an IP address"),
            ("224.0.0.1=02:00:00:00:00:02", "\"224.0.0.1\" is not the address of one host"),
            ("192.0.2.2=02:00:00:00:00", "\"02:00:00:00:00\" is not a MAC address"),
            ("192.0.2.2=00:00:00:00:00:00", "\"00:00:00:00:00:00\" is not the MAC address of one station"),
        ] {
            let error = with(&[text]).unwrap_err();
            assert!(error.starts_with(&format!("port \"u\": neighbors[0]: {expected}")), "{error}");
        }
        let many: Vec<String> =
            (0..=MAX_NEIGHBORS).map(|i| format!("fe80::{i:x}=02:00:00:00:00:02")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(with(&many[..MAX_NEIGHBORS]).is_ok());
        assert!(with(&many).unwrap_err().contains("neighbors: 1025 neighbours are more than 1024"));
    }

    #[test]
    fn refuses_wrong_values() {
        assert!(refused(|port| port.kind = 9).contains("kind is missing"));
        assert!(refused(|port| port.name.clear()).contains("name is missing"));
        assert!(refused(|port| port.mac = "01:00:00:00:00:01".into()).contains("one station"));
        assert!(
            refused(|port| port.ip.push("10.1.0.1/8".into())).contains("ip[3]: \"10.1.0.1/8\" has bits set")
        );
        assert!(refused(|port| port.ip.push(String::new())).contains("ip[3]: \"\" is not"));
        assert!(refused(|port| port.trap.push("DHCP".into())).contains("trap[0]: \"DHCP\" is not a trap"));
        assert!(refused(|port| port.mtu = 67).contains("mtu: 67 is not"));
    }
}
