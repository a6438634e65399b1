//! The ports of a host: what the config file or the control socket asked for, and the device behind it.

use super::book::PortKind;
use super::names::Mentions;
use super::routes::{Interface, Routes};
use crate::action::PortId;
use crate::config::{self, Device as Place};
use crate::counters::PortTotals;
use crate::snapshot::{
    DeviceEntry, MAX_DEVICES, MAX_PORTS, PortEntry, PortRole, Sources, UplinkEntry, VfEntry,
};
use forebay_sriov::Device;
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Where a port comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortSource {
    /// The config file.
    Config,
    /// The control socket.
    Control,
}

/// One port.
pub struct PortRecord {
    /// Its number.
    pub id: PortId,
    /// What was asked for.
    pub config: config::Port,
    /// Who asked.
    pub source: PortSource,
    /// The device, unless the port is behind a VLAN tag of another one.
    pub device: Option<Device>,
    /// The DPDK device that its packets come from.
    pub device_id: u16,
    /// The MAC in use.
    pub mac: [u8; 6],
    /// It passes traffic.
    pub up: Arc<AtomicBool>,
    /// What its number had counted before the port was there.
    pub baseline: PortTotals,
    /// How many rules name it.
    pub mentions: Mentions,
}

impl PortRecord {
    /// Its kind.
    pub fn kind(&self) -> PortKind {
        match self.config.kind {
            config::PortKind::Vf(_) => PortKind::Vf,
            config::PortKind::Uplink(_) => PortKind::Uplink,
        }
    }

    /// The VLAN that it is behind; 0 where it has a device of its own.
    pub fn vlan(&self) -> u16 {
        match self.config.device {
            Place::Vlan { id, .. } => id,
            Place::Dpdk(_) => 0,
        }
    }
}

/// The ports of a host, by name.
#[derive(Default)]
pub struct Ports {
    /// By name.
    pub by_name: BTreeMap<String, PortRecord>,
    /// The names in the order in which they came: the first uplink wins.
    order: Vec<String>,
    /// Numbers of ports that are gone, and since when: they rest for [`REST`].
    resting: Vec<(Instant, PortId)>,
}

/// How long a port's number rests: longer than any packet is on its way between two workers, so that none that was meant
/// for a port reaches the next one of that number.
const REST: Duration = Duration::from_secs(5);

impl Ports {
    /// A number that no port has.
    pub fn free_id(&self) -> Option<PortId> {
        let mut taken = vec![false; MAX_PORTS];
        for record in self.by_name.values() {
            if let Some(place) = taken.get_mut(record.id.index()) {
                *place = true;
            }
        }
        for (_, id) in self.resting.iter().filter(|(since, _)| since.elapsed() < REST) {
            if let Some(place) = taken.get_mut(id.index()) {
                *place = true;
            }
        }
        taken.iter().position(|taken| !taken).map(|id| PortId(id as u16))
    }

    /// Adds a port.
    pub fn insert(&mut self, record: PortRecord) {
        self.order.push(record.config.name.clone());
        self.by_name.insert(record.config.name.clone(), record);
    }

    /// Takes a port out.
    pub fn remove(&mut self, name: &str) -> Option<PortRecord> {
        self.order.retain(|other| other != name);
        self.resting.retain(|(since, _)| since.elapsed() < REST);
        let record = self.by_name.remove(name)?;
        self.resting.push((Instant::now(), record.id));
        Some(record)
    }

    /// A port behind a VLAN tag of this one.
    pub fn behind(&self, name: &str) -> Option<&str> {
        self.by_name.values().find_map(|record| match &record.config.device {
            Place::Vlan { port, .. } if port == name => Some(record.config.name.as_str()),
            Place::Vlan { .. } | Place::Dpdk(_) => None,
        })
    }

    /// The ways to the underlay.
    pub fn routes(&self) -> Routes {
        let mut interfaces = Vec::new();
        for record in self.order.iter().filter_map(|name| self.by_name.get(name)) {
            let config::PortKind::Uplink(uplink) = &record.config.kind else { continue };
            let v4 = uplink
                .ipv4
                .map(|own| (IpAddr::V4(own.addr), own.prefix_len, uplink.gateway4.map(IpAddr::V4)));
            let v6 = uplink
                .ipv6
                .map(|own| (IpAddr::V6(own.addr), own.prefix_len, uplink.gateway6.map(IpAddr::V6)));
            for (address, length, gateway) in v4.into_iter().chain(v6) {
                if let Ok(address) = IpNet::new(address, length) {
                    interfaces.push(Interface { uplink: record.id, mac: record.mac, address, gateway });
                }
            }
        }
        Routes { interfaces }
    }

    /// The neighbours that uplinks are configured with.
    pub fn static_neighbours(&self) -> HashMap<(PortId, IpAddr), [u8; 6]> {
        let uplinks = self.by_name.values().filter_map(|record| match &record.config.kind {
            config::PortKind::Uplink(uplink) => Some((record.id, &uplink.neighbors)),
            config::PortKind::Vf(_) => None,
        });
        uplinks
            .flat_map(|(id, neighbors)| neighbors.iter().map(move |(address, mac)| ((id, *address), mac.0)))
            .collect()
    }

    /// Who the packets of each device belong to.
    pub fn devices(&self) -> [DeviceEntry; MAX_DEVICES] {
        const VLANS: usize = 4096;
        let mut own: [Option<PortId>; MAX_DEVICES] = [None; MAX_DEVICES];
        let mut behind: [Option<Vec<Option<PortId>>>; MAX_DEVICES] = [const { None }; MAX_DEVICES];
        for record in self.by_name.values() {
            let device = usize::from(record.device_id);
            match (&record.config.device, own.get_mut(device), behind.get_mut(device)) {
                (Place::Dpdk(_), Some(own), _) => *own = Some(record.id),
                (Place::Vlan { id, .. }, _, Some(vlans)) => {
                    if let Some(place) =
                        vlans.get_or_insert_with(|| vec![None; VLANS]).get_mut(usize::from(*id))
                    {
                        *place = Some(record.id);
                    }
                }
                (_, None, _) | (_, _, None) => {}
            }
        }
        let mut behind = behind.into_iter();
        own.map(|port| DeviceEntry { port, vlans: behind.next().flatten().map(Arc::new) })
    }
}

/// What the workers see of a port. `extra` are the addresses that an uplink answers for because of ingress rules.
pub fn entry(
    record: &PortRecord,
    rules: Arc<crate::rules::table::Table<{ crate::rules::key::KEY_WORDS }>>,
    generation: u32,
    extra: &[IpAddr],
) -> PortEntry {
    let role = match &record.config.kind {
        config::PortKind::Vf(vf) => PortRole::Vf(VfEntry {
            sources: Sources::new(&vf.ip),
            gateway_mac: vf.gateway_mac.map(|mac| mac.0),
            traps: vf.traps,
            rules,
            generation,
        }),
        config::PortKind::Uplink(uplink) => {
            let (ipv4, ipv6) = (uplink.ipv4.map(|own| own.addr), uplink.ipv6.map(|own| own.addr));
            PortRole::Uplink(uplink_entry(ipv4, ipv6, extra))
        }
    };
    PortEntry {
        id: record.id,
        name: record.config.name.as_str().into(),
        device: record.device_id,
        vlan: record.vlan(),
        mtu: record.config.mtu,
        mac: record.mac,
        // Behind a tag, the device would look for the headers in the wrong place: the tag is pushed last.
        computes_udp_checksums: record.device.as_ref().is_some_and(Device::computes_udp_checksums),
        up: record.up.clone(),
        role,
    }
}

/// What the workers see of an uplink with these addresses of its own and of ingress rules.
pub fn uplink_entry(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>, extra: &[IpAddr]) -> UplinkEntry {
    let own = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6));
    let mut locals: Vec<IpAddr> = own.chain(extra.iter().copied()).collect();
    locals.sort_unstable();
    locals.dedup();
    UplinkEntry { locals, ipv4, ipv6 }
}
