//! What the workers know: one immutable picture of ports, rules and tunnels, published by the control side.
//!
//! A worker looks at one snapshot for a whole burst. Nothing in it changes but the two kinds of atomics that are meant
//! to: whether a port is up, and the MACs of neighbours.

use crate::action::{PortId, TunnelRef};
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::INGRESS_WORDS;
use crate::rules::table::Table;
use crate::wire::vxlan::Template;
use forebay_pipeline::prefetch::prefetch;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The most ports of a host. Their numbers index the counters of each worker: 8,192 times 256 bytes are 2 MiB.
pub const MAX_PORTS: usize = 8192;

/// DPDK devices of a host: `RTE_MAX_ETHPORTS` of Debian's build.
pub const MAX_DEVICES: usize = 32;

/// One picture of ports, rules and tunnels. A copy shares its parts.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// By port number.
    pub ports: Vec<Option<Arc<PortEntry>>>,
    /// By DPDK device number: who its packets belong to.
    pub devices: [DeviceEntry; MAX_DEVICES],
    /// By tunnel slot.
    pub tunnels: TunnelTable,
    /// The rules of the uplinks.
    pub ingress: Arc<Table<INGRESS_WORDS>>,
    /// The tunnels ([`crate::rules::pattern::opaque_bits`]) that some ingress rule names.
    pub known_tunnels: Arc<HashSet<u64>>,
    /// Moves on with every change of the ingress rules, of what they resolve to, and of the uplinks' entries. From the same
    /// counter as [`VfEntry::generation`].
    pub ingress_generation: u32,
}

impl Snapshot {
    /// The port of this number.
    #[inline(always)]
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(id.index())?.as_deref()
    }

    /// The tunnel that a rule refers to, unless its slot belongs to another one by now.
    #[inline(always)]
    pub fn tunnel(&self, tunnel: TunnelRef) -> Option<&Tunnel> {
        self.tunnels.slots().get(tunnel)
    }
}

/// Who the packets of a device belong to.
#[derive(Clone, Default)]
pub struct DeviceEntry {
    /// The port of the device itself.
    pub port: Option<PortId>,
    /// The ports behind VLAN tags, by VLAN identifier; `None` where there are none.
    pub vlans: Option<Arc<Vec<Option<PortId>>>>,
}

/// A port as the packet path sees it.
#[derive(Clone)]
pub struct PortEntry {
    /// Its number.
    pub id: PortId,
    /// Its name.
    pub name: Arc<str>,
    /// The DPDK device behind it.
    pub device: u16,
    /// The VLAN that it is behind; 0 where the device is its own.
    pub vlan: u16,
    /// The largest layer-3 packet that it sends, in bytes.
    pub mtu: u16,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its device fills in the UDP checksums of tunnels over IPv6.
    pub computes_udp_checksums: bool,
    /// It passes traffic. Written by the control side, read by the workers.
    pub up: Arc<AtomicBool>,
    /// What is special about its kind.
    pub role: PortRole,
}

impl PortEntry {
    /// Whether it is a tenant's.
    #[inline(always)]
    pub fn is_vf(&self) -> bool {
        matches!(self.role, PortRole::Vf(_))
    }

    /// Whether it passes traffic.
    #[inline(always)]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

/// What is special about a kind of port.
#[derive(Clone)]
pub enum PortRole {
    /// A tenant's.
    Vf(VfEntry),
    /// To the underlay.
    Uplink(UplinkEntry),
}

/// A tenant's port.
#[derive(Clone)]
pub struct VfEntry {
    /// The addresses that the tenant may use.
    pub sources: Sources,
    /// Answers every ARP and ND request.
    pub gateway_mac: Option<[u8; 6]>,
    /// What is trapped beyond the usual.
    pub traps: crate::config::Traps,
    /// Its rules.
    pub rules: Arc<Table<KEY_WORDS>>,
    /// Moves on with every change of the port's rules, of what they resolve to, and of its entry: while it stands still, a
    /// packet's verdict does too. Numbers come from one counter of the host, so a port never has one twice.
    pub generation: u32,
}

/// An uplink.
#[derive(Clone)]
pub struct UplinkEntry {
    /// Every address that the uplink answers for: its own, and the `local` ones of the ingress rules. Sorted.
    pub locals: Vec<IpAddr>,
    /// Its own IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its own IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

/// Numbers of the uplink's own addresses, above any in `locals`.
pub const OWN_IPV4: u16 = u16::MAX;
const OWN_IPV6: u16 = u16::MAX - 1;

impl UplinkEntry {
    /// Whether the uplink answers for an address.
    #[inline]
    pub fn answers_for(&self, address: IpAddr) -> bool {
        let own = match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        };
        own || self.locals.binary_search(&address).is_ok()
    }

    /// A number for an address that the uplink answers for, the same for as long as this entry stands.
    #[inline(always)]
    pub fn local_v4(&self, address: u32) -> Option<u16> {
        let address = Ipv4Addr::from(address);
        if self.ipv4 == Some(address) { Some(OWN_IPV4) } else { self.other_local(IpAddr::V4(address)) }
    }

    /// As [`UplinkEntry::local_v4`], for IPv6.
    #[inline(always)]
    pub fn local_v6(&self, address: u128) -> Option<u16> {
        let address = Ipv6Addr::from(address);
        if self.ipv6 == Some(address) { Some(OWN_IPV6) } else { self.other_local(IpAddr::V6(address)) }
    }

    /// Addresses beyond the first 65,534 have no number, and their packets take the full way.
    #[inline(never)]
    fn other_local(&self, address: IpAddr) -> Option<u16> {
        let place = self.locals.binary_search(&address).ok()?;
        u16::try_from(place).ok().filter(|number| *number < OWN_IPV6)
    }
}

/// A tenant's source prefixes, ready to compare.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Sources {
    /// From prefixes.
    pub fn new(prefixes: &[ipnet::IpNet]) -> Sources {
        let mut sources = Sources::default();
        for prefix in prefixes {
            match prefix {
                ipnet::IpNet::V4(net) => sources.v4.push((net.network().into(), net.netmask().into())),
                ipnet::IpNet::V6(net) => sources.v6.push((net.network().into(), net.netmask().into())),
            }
        }
        sources
    }

    /// Whether the tenant may use this IPv4 address.
    #[inline(always)]
    pub fn allow_v4(&self, address: u32) -> bool {
        self.v4.iter().any(|(network, mask)| address & mask == *network)
    }

    /// Whether the tenant may use this IPv6 address.
    #[inline(always)]
    pub fn allow_v6(&self, address: u128) -> bool {
        self.v6.iter().any(|(network, mask)| address & mask == *network)
    }
}

/// A tunnel: outer headers, and where they are sent. What a packet over IPv4 needs is one cache line.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Tunnel {
    /// Tells this tunnel from earlier ones in the same slot.
    pub generation: u32,
    /// The next hop's slot in the [`Neighbours`].
    pub next_hop: u32,
    /// The port that it leaves through.
    pub uplink: PortId,
    /// The largest network packet that the path is known to take, bytes; that of the uplink counts too.
    pub path_mtu: u16,
    /// The outer headers.
    pub template: Template,
}

impl Tunnel {
    /// Where packets go that are encapsulated, and how large they may be: tunnels over one IP version that have this in common
    /// differ in nothing but the bytes of their headers.
    #[inline(always)]
    pub fn hop(&self) -> u64 {
        u64::from(self.next_hop) | u64::from(self.uplink.0) << 32 | u64::from(self.path_mtu) << 48
    }
}

/// Tunnels that stand together: a change copies some 20 KiB, and 65,536 tunnels are 512 pointers.
const TUNNELS_PER_CHUNK: usize = 128;

type TunnelChunk = [Option<Tunnel>; TUNNELS_PER_CHUNK];

/// The tunnels by slot. A copy shares everything; a change of one then copies the chunks that it touches, once.
#[derive(Clone, Default)]
pub struct TunnelTable {
    chunks: Arc<Vec<Arc<TunnelChunk>>>,
}

impl TunnelTable {
    /// The tunnel of a slot.
    #[inline(always)]
    pub fn get(&self, slot: u32) -> Option<&Tunnel> {
        self.slots().slot(slot)?.as_ref()
    }

    /// The table by itself, for many looks at it.
    #[inline(always)]
    pub fn slots(&self) -> TunnelSlots<'_> {
        TunnelSlots { chunks: &self.chunks }
    }

    /// Sets or clears a slot; the table grows as needed.
    pub fn set(&mut self, slot: u32, tunnel: Option<Tunnel>) {
        let (chunk, place) = (slot as usize / TUNNELS_PER_CHUNK, slot as usize % TUNNELS_PER_CHUNK);
        let chunks = Arc::make_mut(&mut self.chunks);
        while chunks.len() <= chunk {
            chunks.push(Arc::new([const { None }; TUNNELS_PER_CHUNK]));
        }
        Arc::make_mut(&mut chunks[chunk])[place] = tunnel;
    }
}

impl FromIterator<Option<Tunnel>> for TunnelTable {
    fn from_iter<I: IntoIterator<Item = Option<Tunnel>>>(tunnels: I) -> TunnelTable {
        let mut table = TunnelTable::default();
        for (slot, tunnel) in tunnels.into_iter().enumerate() {
            table.set(slot as u32, tunnel);
        }
        table
    }
}

/// A table of tunnels, while it stands still.
#[derive(Clone, Copy)]
pub struct TunnelSlots<'a> {
    chunks: &'a [Arc<TunnelChunk>],
}

impl<'a> TunnelSlots<'a> {
    #[inline(always)]
    fn slot(self, slot: u32) -> Option<&'a Option<Tunnel>> {
        let chunk = self.chunks.get(slot as usize / TUNNELS_PER_CHUNK)?;
        chunk.get(slot as usize % TUNNELS_PER_CHUNK)
    }

    /// The tunnel that a rule refers to, unless its slot belongs to another one by now.
    #[inline(always)]
    pub fn get(self, tunnel: TunnelRef) -> Option<&'a Tunnel> {
        let entry = self.slot(tunnel.slot)?.as_ref()?;
        (entry.generation == tunnel.generation).then_some(entry)
    }

    /// Asks for the tunnel of a slot: what a packet over IPv4 needs of it.
    #[inline(always)]
    pub fn prefetch(self, slot: u32) {
        if let Some(tunnel) = self.slot(slot) {
            prefetch(tunnel);
        }
    }
}

/// The MACs of the underlay's next hops, by slot. Slots are given out by the control side, which also writes the MACs;
/// workers read them, and mark what they used.
pub struct Neighbours {
    slots: Box<[AtomicU64]>,
}

/// A MAC is there.
const RESOLVED: u64 = 1 << 63;
/// A worker has used the slot since the control side last asked.
const USED: u64 = 1 << 62;

/// The most next hops of a host: 65,536 slots of 8 bytes are 512 KiB.
pub const MAX_NEIGHBOURS: usize = 65_536;

impl Default for Neighbours {
    fn default() -> Self {
        Neighbours { slots: (0..MAX_NEIGHBOURS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Neighbours {
    /// The MAC of a next hop, if it is known. Worker side: marks the slot as used.
    #[inline(always)]
    pub fn resolve(&self, slot: u32) -> Option<[u8; 6]> {
        let cell = self.slots.get(slot as usize)?;
        let value = cell.load(Ordering::Relaxed);
        if value & USED == 0 {
            // Once per interval of the control side, not once per packet.
            cell.fetch_or(USED, Ordering::Relaxed);
        }
        (value & RESOLVED != 0).then(|| crate::wire::mac_from_bits(value & !(RESOLVED | USED)))
    }

    /// Sets or clears the MAC of a slot. Control side.
    pub fn set(&self, slot: u32, mac: Option<[u8; 6]>) {
        let value = mac.map_or(0, |mac| crate::wire::mac_bits(mac) | RESOLVED);
        if let Some(cell) = self.slots.get(slot as usize) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Whether a worker used the slot since the last call. Control side.
    pub fn take_used(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|cell| cell.fetch_and(!USED, Ordering::Relaxed) & USED != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_prefixes() {
        let sources = Sources::new(&["10.1.0.1/32".parse().unwrap(), "fd00:1::/64".parse().unwrap()]);
        assert!(sources.allow_v4(0x0a01_0001));
        assert!(!sources.allow_v4(0x0a01_0002));
        assert!(sources.allow_v6(0xfd00_0001_0000_0000_0000_0000_0000_0099));
        assert!(!sources.allow_v6(0xfd00_0002_0000_0000_0000_0000_0000_0099));
    }

    #[test]
    fn neighbours_resolve_and_remember_use() {
        let neighbours = Neighbours::default();
        assert!(!neighbours.take_used(7));
        assert_eq!(neighbours.resolve(7), None);
        assert!(neighbours.take_used(7));
        neighbours.set(7, Some([2, 0, 0, 0, 0, 9]));
        assert_eq!(neighbours.resolve(7), Some([2, 0, 0, 0, 0, 9]));
        assert!(neighbours.take_used(7));
        assert!(!neighbours.take_used(7));
        neighbours.set(7, None);
        assert_eq!(neighbours.resolve(7), None);
        assert_eq!(neighbours.resolve(MAX_NEIGHBOURS as u32), None);
    }
}
