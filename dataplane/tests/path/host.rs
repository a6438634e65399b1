//! The host of the tests: its ports, who may use which addresses, and the snapshot that says so to the worker.

use crate::rules::Plan;
use forebay_dataplane::action::PortId;
use forebay_dataplane::config::Traps;
use forebay_dataplane::snapshot::{
    DeviceEntry, MAX_DEVICES, PortEntry, PortRole, Snapshot, Sources, UplinkEntry, VfEntry,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The uplink; underlay addresses 192.0.2.1 and 2001:db8::1, and 192.0.2.77 by an ingress rule.
pub const UPLINK: PortId = PortId(0);
/// Tenant A, VNI 100, with a gateway MAC.
pub const VM1: PortId = PortId(1);
/// Tenant B, VNI 200, with the addresses of VM1.
pub const VM2: PortId = PortId(2);
/// Tenant C, VNI 300, behind VLAN 7 of TRUNK's device.
pub const VM3: PortId = PortId(3);
/// Tenant D, VNI 400, untagged on a device that has a port behind a tag.
pub const TRUNK: PortId = PortId(4);
/// Tenant A too, MTU 1400.
pub const VM4: PortId = PortId(5);
/// Every port.
pub const PORTS: [PortId; 6] = [UPLINK, VM1, VM2, VM3, TRUNK, VM4];

/// The uplink's MAC.
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The MAC of every neighbour on the underlay.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The MAC that answers VM1's questions.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The VLAN that VM3 is behind.
pub const VM3_VLAN: u16 = 7;

/// The MAC of a tenant's port.
pub fn mac(port: PortId) -> [u8; 6] {
    if port == UPLINK { UPLINK_MAC } else { [2, 0, 0, 0, port.0 as u8, 1] }
}

/// The uplink's MTU: a tenant's 1500 bytes and the outer headers.
pub const UPLINK_MTU: u16 = 1600;

fn vf(ip: &[&str], gateway_mac: Option<[u8; 6]>, traps: Traps, plan: &Plan, port: PortId) -> PortRole {
    let prefixes: Vec<_> = ip.iter().map(|ip| ip.parse().unwrap()).collect();
    let rules = plan.egress.get(&port).cloned().unwrap_or_default();
    PortRole::Vf(VfEntry {
        sources: Sources::new(&prefixes),
        gateway_mac,
        traps,
        rules,
        generation: plan.generation,
    })
}

/// The addresses of VM1, and of others that must not be mistaken for it.
const VM1_IP: [&str; 2] = ["10.1.0.1/32", "fd00:1::1/128"];

fn role(port: PortId, plan: &Plan) -> PortRole {
    match port {
        UPLINK => {
            let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
            let mut locals = vec![IpAddr::V4(v4), IpAddr::V6(v6), IpAddr::from([192, 0, 2, 77])];
            locals.sort_unstable();
            PortRole::Uplink(UplinkEntry { locals, ipv4: Some(v4), ipv6: Some(v6) })
        }
        VM1 => {
            vf(&VM1_IP, Some(GATEWAY_MAC), Traps { dhcp: true, igmp: true, ..Traps::default() }, plan, port)
        }
        VM2 => vf(&VM1_IP, None, Traps { lldp: true, multicast: true, ..Traps::default() }, plan, port),
        VM4 => vf(&["10.1.0.4/32", "fd00:1::4/128"], None, Traps::default(), plan, port),
        _ => vf(&["10.0.0.0/8", "fd00::/8"], None, Traps::default(), plan, port),
    }
}

/// The MTU of a port.
pub fn mtu(port: PortId) -> u16 {
    match port {
        UPLINK => UPLINK_MTU,
        VM4 => 1400,
        _ => 1500,
    }
}

/// The devices of a port: the one that it receives from, and the one that it sends through.
pub type Devices = Vec<(PortId, u16, u16)>;

/// The snapshot: who is where, and the compiled rules. `absent` ports have been taken away.
pub fn snapshot(plan: &Plan, devices: &Devices, absent: &[PortId]) -> Snapshot {
    let device_of = |port| devices.iter().find(|(owner, ..)| *owner == port).map(|(.., out)| *out);
    let entry = |id: PortId| PortEntry {
        id,
        name: format!("port{}", id.0).into(),
        device: device_of(if id == VM3 { TRUNK } else { id }).unwrap(),
        vlan: if id == VM3 { VM3_VLAN } else { 0 },
        mtu: mtu(id),
        mac: mac(id),
        computes_udp_checksums: false,
        up: Arc::new(AtomicBool::new(true)),
        role: role(id, plan),
    };
    let ports = PORTS.map(|id| (!absent.contains(&id)).then(|| Arc::new(entry(id)))).to_vec();
    let mut vlans = vec![None; 4096];
    vlans[usize::from(VM3_VLAN)] = Some(VM3);
    let vlans = Arc::new(vlans);
    let mut entries: [DeviceEntry; MAX_DEVICES] = Default::default();
    for (port, to_us, from_us) in devices {
        for device in [to_us, from_us] {
            let vlans = (*port == TRUNK).then(|| vlans.clone());
            entries[usize::from(*device)] = DeviceEntry { port: Some(*port), vlans };
        }
    }
    Snapshot {
        ports,
        devices: entries,
        tunnels: plan.tunnels.clone(),
        ingress: plan.ingress.clone(),
        known_tunnels: plan.known_tunnels.clone(),
        ingress_generation: plan.generation,
    }
}
