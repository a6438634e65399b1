//! The static neighbours of an uplink: underlay hosts whose MAC address is written down, and so never asked for.
//!
//! The list that comes out is sorted by address and has each address once: equal sets are equal ports, and the
//! resolver needs no rule for which of two MAC addresses wins.

use std::collections::BTreeMap;
use std::net::IpAddr;

use forebay_api::port_check::MAX_NEIGHBORS;
use forebay_api::validate::MacAddr;

use super::model::Uplink;
use super::object::{Fault, Object};
use super::port::PortFields;
use super::value::{beside4, beside6, is_source, mac};

const FORM: &str = "write the neighbour's address and MAC address, such as 192.0.2.2=02:00:00:00:00:02";

/// Takes the neighbours over into the uplink, and reports those that are wrong or are not on its link.
pub(super) fn neighbors(object: &mut Object, fields: &PortFields, uplink: &mut Uplink, is_uplink: bool) {
    let Some(list) = fields.neighbors.given() else { return };
    let count = list.value.len();
    if count > MAX_NEIGHBORS {
        let fault = Fault::new(
            format!("{count} neighbours, more than {MAX_NEIGHBORS}"),
            "leave out those that answer ARP and ND, or reach them through a gateway",
        );
        object.misplaced("neighbors", list.line, fault);
        return;
    }
    let mut stations = BTreeMap::new();
    for at in &list.value {
        let Some((addr, station)) = object.check_at(at, neighbor) else { continue };
        if stations.insert(addr, station).is_some() {
            object.conflict(at, format!("{addr} is listed already"), "keep one MAC address for it");
        } else if let (true, Err(fault)) = (is_uplink, on_link(addr, fields, uplink)) {
            object.conflict(at, fault.problem, fault.remedy);
        }
    }
    uplink.neighbors = stations.into_iter().collect();
}

/// Reads `ADDRESS=MAC`.
fn neighbor(text: &str) -> Result<(IpAddr, MacAddr), Fault> {
    let (addr, station) = text.split_once('=').ok_or_else(|| Fault::new("not ADDRESS=MAC", FORM))?;
    let addr: IpAddr = addr.parse().map_err(|_| Fault::new("no IP address before the =", FORM))?;
    if !is_source(addr) {
        return Err(Fault::new(format!("{addr} is not the address of a host"), FORM));
    }
    let station =
        mac(station).map_err(|fault| Fault::new(format!("behind the =: {}", fault.problem), FORM))?;
    Ok((addr, station))
}

/// The address is another host's on the uplink's link.
fn on_link(addr: IpAddr, fields: &PortFields, uplink: &Uplink) -> Result<(), Fault> {
    let no_family = |key: &str| {
        let remedy = format!("give it an {key} address, or remove the neighbour");
        Err(Fault::new(format!("this uplink has no {key}"), remedy))
    };
    match (addr, uplink.ipv4, uplink.ipv6) {
        (IpAddr::V4(addr), Some(own), _) => beside4(addr, own, "neighbour"),
        (IpAddr::V6(addr), _, Some(own)) => beside6(addr, own, "neighbour"),
        (IpAddr::V4(_), None, _) if fields.ipv4.is_absent() => no_family("ipv4"),
        (IpAddr::V6(_), _, None) if fields.ipv6.is_absent() => no_family("ipv6"),
        // An address of the uplink that is wrong is reported already; nothing can be compared with it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_read() {
        let station = MacAddr([2, 0, 0, 0, 0, 2]);
        for addr in ["192.0.2.2", "2001:db8::2", "fe80::2"] {
            assert_eq!(neighbor(&format!("{addr}=02:00:00:00:00:02")), Ok((addr.parse().unwrap(), station)));
        }
        assert_eq!(
            neighbor("2001:DB8:0::2=02:00:00:00:00:0A").unwrap().0,
            "2001:db8::2".parse::<IpAddr>().unwrap()
        );
    }

    #[test]
    fn each_half_is_one_host() {
        for (text, problem) in [
            ("", "not ADDRESS=MAC"),
            ("192.0.2.2", "not ADDRESS=MAC"),
            ("=02:00:00:00:00:02", "no IP address before the ="),
            ("192.0.2.2 =02:00:00:00:00:02", "no IP address before the ="),
            ("192.0.2.2/24=02:00:00:00:00:02", "no IP address before the ="),
            ("fe80::2%eth0=02:00:00:00:00:02", "no IP address before the ="),
            ("0.0.0.0=02:00:00:00:00:02", "0.0.0.0 is not the address of a host"),
            ("224.0.0.1=02:00:00:00:00:02", "224.0.0.1 is not the address of a host"),
            ("255.255.255.255=02:00:00:00:00:02", "255.255.255.255 is not the address of a host"),
            ("::1=02:00:00:00:00:02", "::1 is not the address of a host"),
            ("ff02::1=02:00:00:00:00:02", "ff02::1 is not the address of a host"),
            ("192.0.2.2=", "behind the =: not a MAC address"),
            ("192.0.2.2=02:00:00:00:00:02=", "behind the =: not a MAC address"),
            ("192.0.2.2=00:00:00:00:00:00", "behind the =: all zeros is no station's MAC address"),
            (
                "192.0.2.2=ff:ff:ff:ff:ff:ff",
                "behind the =: a multicast MAC address, which no station sends from",
            ),
        ] {
            assert_eq!(neighbor(text), Err(Fault::new(problem, FORM)), "{text:?}");
        }
    }
}
