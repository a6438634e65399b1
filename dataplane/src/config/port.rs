//! One port: from fields to a checked [`Port`]. The config file and the control socket both end here, so that a port
//! is accepted by both or by neither.

use std::net::IpAddr;

use ipnet::IpNet;

use super::device::device;
use super::model::{Device, Port, PortKind, Traps, Uplink, Vf};
use super::neighbors::neighbors;
use super::object::{At, Fault, Field, Object};
use super::suggest::instead_of;
use super::value::{
    beside4, beside6, gateway, ipv4_interface, ipv6_interface, mac, port_name, source_prefix, within,
};

/// Keys that only a port of kind "vf" has.
pub(super) const VF_KEYS: [&str; 3] = ["ip", "gateway_mac", "trap"];

/// Keys that only a port of kind "uplink" has.
pub(super) const UPLINK_KEYS: [&str; 4] = ["ipv4", "ipv6", "gateway", "neighbors"];

/// Keys that every port has.
pub(super) const COMMON_KEYS: [&str; 5] = ["name", "kind", "device", "mtu", "mac"];

/// Ethernet's own (IEEE 802.3).
const MTU_DEFAULT_BYTES: u16 = 1500;

/// The packet that every IPv4 host accepts (RFC 791, 3.1).
const MTU_MIN_BYTES: u16 = 576;

/// The least that IPv6 asks of a link (RFC 8200, 5). Also that of uplinks: a tenant's 576 bytes fit with any outer
/// headers.
const MTU_MIN_IPV6_BYTES: u16 = 1280;

/// A bound against slips: with Ethernet's header, two VLAN tags and the checksum (26 bytes) it makes a frame within the
/// 9728 bytes that Intel's NICs carry. A device's own limit may be lower; it is known when the device opens.
const MTU_MAX_BYTES: u16 = 9600;

/// Source prefixes of one VF: the check of each packet walks them, and 256 are 8 KiB, a fourth of a first-level cache.
const VF_PREFIXES_MAX: usize = 256;

/// Everything that a port says about itself, unchecked.
pub(super) struct PortFields {
    pub name: Field<String>,
    pub kind: Field<String>,
    pub device: Field<String>,
    pub mtu: Field<i64>,
    pub mac: Field<String>,
    pub ipv4: Field<String>,
    pub ipv6: Field<String>,
    /// Routers of either family, at most one of each.
    pub gateway: Field<Vec<At<String>>>,
    /// Static neighbours, as `ADDRESS=MAC`.
    pub neighbors: Field<Vec<At<String>>>,
    pub ip: Field<Vec<At<String>>>,
    pub gateway_mac: Field<String>,
    pub trap: Field<Vec<At<String>>>,
}

/// A port on its way: what other ports must know of it is there even where the rest is wrong.
pub(super) struct Draft {
    pub object: Object,
    pub name: Option<At<String>>,
    /// The device, and its text as given.
    pub device: Option<(Device, At<String>)>,
    /// `None` where it is wrong.
    pub mtu: Option<u16>,
    /// `None` where anything is wrong; then the object has a problem.
    pub port: Option<Port>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vf,
    Uplink,
}

/// Checks all that can be said of the port by itself.
pub(super) fn draft(fields: PortFields, mut object: Object) -> Draft {
    require(&mut object, "name", &fields.name, "give the port a name, such as vm1");
    require(
        &mut object,
        "kind",
        &fields.kind,
        "write vf for a tenant's port or uplink for one to the underlay",
    );
    require(&mut object, "device", &fields.device, "write what is behind the port, such as tap:vm1");
    let name = object.check(&fields.name, port_name);
    let kind = object.check(&fields.kind, kind);
    let device = object.check(&fields.device, device);
    let mtu = mtu(&mut object, &fields, kind);
    let station = object.check(&fields.mac, mac);
    if let Some(kind) = kind {
        refuse_keys_of_the_other(&mut object, &fields, kind);
    }
    // While the kind is unknown, the values of both sides are checked: each may be wrong by itself.
    let vf = if kind == Some(Kind::Uplink) { None } else { vf(&mut object, &fields, kind) };
    let uplink = if kind == Some(Kind::Vf) { None } else { uplink(&mut object, &fields, kind) };
    if let (Some(Kind::Uplink), Some(Device::Vlan { .. }), Some(at)) = (kind, &device, fields.device.given())
    {
        let remedy = "write kind = \"vf\", or give the uplink a device of its own";
        object.conflict(at, "a VLAN of another port carries a tenant, not an uplink", remedy);
    }

    let kind = match kind {
        Some(Kind::Vf) => vf.map(PortKind::Vf),
        Some(Kind::Uplink) => uplink.map(PortKind::Uplink),
        None => None,
    };
    let port = match (&name, &device, mtu, kind) {
        (Some(name), Some(device), Some(mtu), Some(kind)) if object.problems.is_empty() => {
            Some(Port { name: name.clone(), device: device.clone(), mtu, mac: station, kind })
        }
        _ => None,
    };
    let device = device.zip(fields.device.given().cloned());
    let name = name.and(fields.name.given().cloned());
    Draft { object, name, device, mtu, port }
}

fn require<T>(object: &mut Object, key: &str, field: &Field<T>, remedy: &str) {
    if field.is_absent() {
        object.missing(key, remedy);
    }
}

fn kind(text: &str) -> Result<Kind, Fault> {
    match text {
        "vf" => Ok(Kind::Vf),
        "uplink" => Ok(Kind::Uplink),
        other => Err(Fault::new("unknown kind of port", instead_of(other, &["vf", "uplink"]))),
    }
}

fn mtu(object: &mut Object, fields: &PortFields, kind: Option<Kind>) -> Option<u16> {
    if fields.mtu.is_absent() {
        return Some(MTU_DEFAULT_BYTES);
    }
    let has_ipv6 = fields.ip.given().is_some_and(|list| list.value.iter().any(|ip| ip.value.contains(':')));
    let (min, why) = match kind {
        Some(Kind::Uplink) => (MTU_MIN_IPV6_BYTES, " bytes for an uplink"),
        Some(Kind::Vf) if has_ipv6 => (MTU_MIN_IPV6_BYTES, " bytes for a port with IPv6"),
        _ => (MTU_MIN_BYTES, " bytes"),
    };
    object.check(&fields.mtu, |mtu| within(*mtu, min, MTU_MAX_BYTES, why))
}

fn refuse_keys_of_the_other(object: &mut Object, fields: &PortFields, kind: Kind) {
    fn refuse<T>(object: &mut Object, key: &str, field: &Field<T>, owner: &str) {
        // A value of a wrong type is reported already; the key would have to go in any case.
        let Some(at) = field.given() else { return };
        let problem = format!("only a port of kind \"{owner}\" has this key");
        object.misplaced(key, at.line, Fault::new(problem, format!("remove it, or set kind = \"{owner}\"")));
    }
    match kind {
        Kind::Vf => {
            refuse(object, "ipv4", &fields.ipv4, "uplink");
            refuse(object, "ipv6", &fields.ipv6, "uplink");
            refuse(object, "gateway", &fields.gateway, "uplink");
            refuse(object, "neighbors", &fields.neighbors, "uplink");
        }
        Kind::Uplink => {
            refuse(object, "ip", &fields.ip, "vf");
            refuse(object, "gateway_mac", &fields.gateway_mac, "vf");
            refuse(object, "trap", &fields.trap, "vf");
        }
    }
}

/// The tenant's side; `None` where something it needs is missing or wrong.
fn vf(object: &mut Object, fields: &PortFields, kind: Option<Kind>) -> Option<Vf> {
    if kind == Some(Kind::Vf) {
        require(object, "mac", &fields.mac, "a vf needs the only source MAC that its tenant may use");
        require(
            object,
            "ip",
            &fields.ip,
            "a vf needs the source addresses that its tenant may use, such as [\"10.1.0.1\"]",
        );
    }
    let ip = source_prefixes(object, &fields.ip);
    let gateway_mac = object.check(&fields.gateway_mac, mac);
    let own_mac = fields.mac.given().and_then(|at| mac(&at.value).ok());
    if let (Some(at), true) = (fields.gateway_mac.given(), gateway_mac.is_some() && gateway_mac == own_mac) {
        object.conflict(at, "the tenant's own MAC address", "write another MAC address for its gateway");
    }
    let traps = traps(object, &fields.trap);
    Some(Vf { ip: ip?, gateway_mac, traps })
}

fn source_prefixes(object: &mut Object, field: &Field<Vec<At<String>>>) -> Option<Vec<IpNet>> {
    let list = field.given()?;
    let count = list.value.len();
    if count == 0 {
        let fault = Fault::new("an empty list", "a vf needs at least one source address");
        object.misplaced("ip", list.line, fault);
    }
    if count > VF_PREFIXES_MAX {
        let problem = format!("{count} prefixes, more than {VF_PREFIXES_MAX}");
        object.misplaced("ip", list.line, Fault::new(problem, "combine addresses into prefixes"));
        return None;
    }
    let mut nets = Vec::with_capacity(count);
    for at in &list.value {
        let Some(net) = object.check_at(at, source_prefix) else { continue };
        if nets.contains(&net) {
            object.conflict(at, "listed twice", "remove one of them");
        }
        nets.push(net);
    }
    // The order means nothing; sorted, equal sets are equal ports.
    nets.sort_unstable();
    Some(nets)
}

fn traps(object: &mut Object, field: &Field<Vec<At<String>>>) -> Traps {
    let mut traps = Traps::default();
    for at in field.given().into_iter().flat_map(|list| &list.value) {
        let always = ["arp", "nd", "broadcast"].contains(&at.value.as_str());
        let fault = match traps.switch(&at.value) {
            Some(on) if !*on => {
                *on = true;
                continue;
            }
            Some(_) => Fault::new("listed twice", "remove one of them"),
            None if always => Fault::new("always trapped", "remove it from the list"),
            None => Fault::new("unknown trap", instead_of(&at.value, &Traps::NAMES)),
        };
        object.check_at(at, |_| Err::<(), _>(fault));
    }
    traps
}

/// The underlay's side; `None` where it has no address.
fn uplink(object: &mut Object, fields: &PortFields, kind: Option<Kind>) -> Option<Uplink> {
    let is_uplink = kind == Some(Kind::Uplink);
    if is_uplink && fields.ipv4.is_absent() && fields.ipv6.is_absent() {
        object
            .missing("ipv4 or ipv6", "an uplink needs an underlay address, such as ipv4 = \"192.0.2.1/24\"");
    }
    let mut uplink = Uplink {
        ipv4: object.check(&fields.ipv4, ipv4_interface),
        ipv6: object.check(&fields.ipv6, ipv6_interface),
        gateway4: None,
        gateway6: None,
        neighbors: Vec::new(),
    };
    for at in fields.gateway.given().into_iter().flat_map(|list| &list.value) {
        let addr = object.check_at(at, gateway);
        if let (Some(addr), true) = (addr, is_uplink) {
            route(object, fields, &mut uplink, at, addr);
        }
    }
    neighbors(object, fields, &mut uplink, is_uplink);
    (uplink.ipv4.is_some() || uplink.ipv6.is_some()).then_some(uplink)
}

/// Takes a router's address over into the uplink, where it is on the uplink's link and the first of its family.
fn route(object: &mut Object, fields: &PortFields, uplink: &mut Uplink, at: &At<String>, addr: IpAddr) {
    let again = |taken: bool| {
        let fault = || Fault::new("the second gateway of its family", "keep one for IPv4 and one for IPv6");
        if taken { Err(fault()) } else { Ok(()) }
    };
    let family = |key: &str| {
        Fault::new(
            format!("this uplink has no {key}"),
            format!("give it an {key} address, or remove the gateway"),
        )
    };
    let fault = match addr {
        // An address that is wrong is reported already; the gateway cannot be compared with it.
        IpAddr::V4(_) if uplink.ipv4.is_none() && !fields.ipv4.is_absent() => return,
        IpAddr::V6(_) if uplink.ipv6.is_none() && !fields.ipv6.is_absent() => return,
        IpAddr::V4(addr) => uplink.ipv4.ok_or_else(|| family("ipv4")).and_then(|own| {
            again(uplink.gateway4.is_some())?;
            beside4(addr, own, "router")?;
            uplink.gateway4 = Some(addr);
            Ok(())
        }),
        IpAddr::V6(addr) => uplink.ipv6.ok_or_else(|| family("ipv6")).and_then(|own| {
            again(uplink.gateway6.is_some())?;
            beside6(addr, own, "router")?;
            uplink.gateway6 = Some(addr);
            Ok(())
        }),
    };
    if let Err(fault) = fault {
        object.conflict(at, fault.problem, fault.remedy);
    }
}
