//! What ports must not do to each other: share a name, a device or a VLAN, hang in the air, or be too many.
//!
//! Ports are admitted first and their parents looked up afterwards, so that the order of the file means nothing.

use std::collections::HashMap;

use super::device::identity;
use super::model::{Device, Port};
use super::object::{At, Fault, Object};
use super::port::Draft;

/// The ports of a host, with and without a device: the 4094 VLANs of two devices, rounded up to a power of two.
const PORTS_MAX: usize = 8192;

/// The ports with a device of their own: `RTE_MAX_ETHPORTS` of DPDK's usual build.
const DEVICES_MAX: usize = 32;

/// The ports admitted so far.
#[derive(Default)]
pub(super) struct Siblings {
    /// By name; every one that was named, also where another one has its name.
    ports: HashMap<String, Sibling>,
    /// What a device stands on, to the port that has it.
    devices: HashMap<String, String>,
    count: usize,
    device_count: usize,
}

struct Sibling {
    line: Option<usize>,
    is_vlan: bool,
    /// `None` where it is wrong.
    mtu: Option<u16>,
}

impl Siblings {
    /// Takes a port in, and reports to it what it takes from an earlier one.
    pub fn admit(&mut self, draft: &mut Draft) {
        self.count += 1;
        if self.count == PORTS_MAX + 1 {
            let problem = format!("this is port {}, and a host has room for {PORTS_MAX}", self.count);
            let line = draft.object.line;
            draft.object.misplaced("", line, Fault::new(problem, "remove ports"));
        }
        self.admit_name(draft);
        self.admit_device(draft);
    }

    fn admit_name(&mut self, draft: &mut Draft) {
        let Some(name) = &draft.name else { return };
        if let Some(first) = self.ports.get(&name.value) {
            let place = first.line.map_or(String::new(), |line| format!(" on line {line}"));
            let problem = format!("another port has this name{place}");
            draft.object.conflict(name, problem, "give each port a name of its own");
            return;
        }
        let is_vlan = matches!(draft.device, Some((Device::Vlan { .. }, _)));
        self.ports.insert(name.value.clone(), Sibling { line: draft.object.line, is_vlan, mtu: draft.mtu });
    }

    fn admit_device(&mut self, draft: &mut Draft) {
        let Some((device, at)) = &draft.device else { return };
        if matches!(device, Device::Dpdk(_)) {
            self.device_count += 1;
            if self.device_count == DEVICES_MAX + 1 {
                let problem =
                    format!("device {} of this host, and DPDK has room for {DEVICES_MAX}", self.device_count);
                let remedy = "put tenants behind VLAN tags of one device: device = \"vlan:PORT/ID\"";
                draft.object.conflict(at, problem, remedy);
            }
        }
        let Some(identity) = identity(device) else { return };
        let owner = draft.name.as_ref().map_or(String::new(), |name| name.value.clone());
        if let Some(first) = self.devices.get(&identity) {
            let problem = format!("port {first:?} has this device already");
            draft.object.conflict(at, problem, "give each port a device of its own, or a VLAN of one");
            return;
        }
        self.devices.insert(identity, owner);
    }

    /// Reports to a port behind a VLAN tag what is wrong with the port that it names. All ports must be admitted.
    pub fn check_parent(&self, draft: &mut Draft) {
        let Some((Device::Vlan { port, .. }, at)) = &draft.device else { return };
        let own_name = draft.name.as_ref().is_some_and(|name| name.value == *port);
        let object = &mut draft.object;
        match self.ports.get(port) {
            _ if own_name => {
                object.conflict(at, "a port cannot be a VLAN of itself", "name the port that has the device");
            }
            None => object.conflict(
                at,
                format!("there is no port {port:?}"),
                format!("declare port {port:?}, or name another"),
            ),
            Some(parent) if parent.is_vlan => {
                let problem = format!("port {port:?} is a VLAN of another port itself");
                object.conflict(at, problem, "name the port that has the device");
            }
            Some(Sibling { mtu: Some(parent), .. }) if draft.mtu.is_some_and(|mtu| mtu > *parent) => {
                let mtu = draft.mtu.unwrap_or_default();
                let problem = format!(
                    "mtu {mtu} is more than the {parent} of port {port:?}, which carries the packets"
                );
                object.conflict(
                    at,
                    problem,
                    format!("set mtu to at most {parent}, or raise that of port {port:?}"),
                );
            }
            Some(_) => {}
        }
    }
}

/// A checked port as a draft, to be admitted.
pub(super) fn of_port(port: &Port) -> Draft {
    let at = |key: &str, value: String| At { value, line: None, key: key.to_string() };
    Draft {
        object: Object::new("", format!("port {:?}", port.name), None),
        name: Some(at("name", port.name.clone())),
        device: Some((port.device.clone(), at("device", port.device.to_string()))),
        mtu: Some(port.mtu),
        port: Some(port.clone()),
    }
}
