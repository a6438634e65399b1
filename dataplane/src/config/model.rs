//! The config file as typed values. Whoever holds a [`Config`] holds a checked one: the rest of the program does not
//! validate again. Values are made by this module's parent only from text that passed every check.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use forebay_api::validate::MacAddr;
use ipnet::IpNet;

/// A whole config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[host]`
    pub host: Host,
    /// `[control]`
    pub control: Control,
    /// `[dpdk]`
    pub dpdk: Dpdk,
    /// `[[port]]`, in the order of the file.
    pub ports: Vec<Port>,
    /// `[workers]`
    pub workers: Workers,
    /// `[[pipeline]]`, in the order of the file; one that is called [`MAIN_PIPELINE`] where the file has none. Never
    /// empty; no core belongs to two of them, or to two stages of one.
    pub pipelines: Vec<Pipeline>,
}

impl Config {
    /// What the arrangement is called: as `workers.layout` where that could say it, else `pipelines`.
    pub fn layout_name(&self) -> &'static str {
        const PATH: [PathStage; 3] = PathStage::PATH;
        let [Pipeline { groups, .. }] = self.pipelines.as_slice() else { return "pipelines" };
        let stages: Vec<&[PathStage]> = groups.iter().map(|group| group.stages.as_slice()).collect();
        match stages.as_slice() {
            [all] if *all == PATH => Layout::Fused.name(),
            [front, back] if *front == &PATH[..2] && *back == &PATH[2..] => Layout::Split.name(),
            _ => "pipelines",
        }
    }

    /// The cores of all workers, of which each has one: ascending, without duplicates, at least one.
    pub fn worker_cores(&self) -> Vec<usize> {
        let mut cores: Vec<usize> = self.pipelines.iter().flat_map(Pipeline::cores).collect();
        cores.sort_unstable();
        cores
    }
}

/// Who this host is, and where it keeps its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name of the host; the kernel's host name by default.
    pub name: String,
    /// Directory of what survives a restart; created if missing.
    pub state: PathBuf,
}

/// How the daemon is talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The control socket; fits into a `sockaddr_un`.
    pub socket: PathBuf,
    /// Where Prometheus reads metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
}

/// What DPDK gets of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dpdk {
    /// Whether packet memory comes from hugepages.
    pub hugepages: Hugepages,
    /// Packet memory in MiB.
    pub memory_mib: u32,
}

/// Whether packet memory comes from hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hugepages {
    /// Hugepages where the machine has enough of them, else ordinary pages.
    Auto,
    /// Hugepages, or the daemon does not start.
    Required,
    /// Ordinary pages.
    Off,
}

/// A port: an identity that packets are received from and sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Unique on the host.
    pub name: String,
    /// What packets come from and go to.
    pub device: Device,
    /// The largest layer-3 packet in bytes.
    pub mtu: u16,
    /// A VF's only source MAC (always present); an uplink's MAC where it shall not be the device's own.
    pub mac: Option<MacAddr>,
    /// Tenant's or underlay's side, with what only that side has.
    pub kind: PortKind,
}

/// What distinguishes a tenant's port from an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A tenant's port.
    Vf(Vf),
    /// A port to the underlay.
    Uplink(Uplink),
}

/// What only a tenant's port has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vf {
    /// The only source addresses, as canonical prefixes: sorted, without duplicates, at least one.
    pub ip: Vec<IpNet>,
    /// Every ARP and ND request of the tenant is answered with this MAC.
    pub gateway_mac: Option<MacAddr>,
    /// Traps beyond broadcast, ARP and ND, which are always trapped.
    pub traps: Traps,
}

/// Extra traps of a tenant's port: packets that go to the trusted software path before any rule is looked up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traps {
    /// DHCPv4 (UDP to port 67) and DHCPv6 (UDP to port 547), unicast too.
    pub dhcp: bool,
    /// Every multicast destination: the group bit of the destination MAC is set.
    pub multicast: bool,
    /// Link-local control frames: destination MAC `01:80:c2:00:00:0x` (LLDP, LACP, STP, 802.1X; IEEE 802.1Q 8.6.3).
    pub lldp: bool,
    /// IGMP, and MLD (ICMPv6 types 130, 131, 132 and 143).
    pub igmp: bool,
}

impl Traps {
    /// The names that `trap` lists.
    pub const NAMES: [&str; 4] = ["dhcp", "multicast", "lldp", "igmp"];

    /// The switch of that name.
    pub(super) fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "dhcp" => Some(&mut self.dhcp),
            "multicast" => Some(&mut self.multicast),
            "lldp" => Some(&mut self.lldp),
            "igmp" => Some(&mut self.igmp),
            _ => None,
        }
    }

    /// The names of the traps that are on, in the order of [`Traps::NAMES`].
    pub fn names(mut self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |name| self.switch(name).is_some_and(|on| *on))
    }
}

/// What only an uplink has: at least one of `ipv4` and `ipv6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Underlay address with the prefix that is on the link.
    pub ipv4: Option<Ipv4Interface>,
    /// Underlay address with the prefix that is on the link.
    pub ipv6: Option<Ipv6Interface>,
    /// Router for destinations outside the prefix; present only with `ipv4`.
    pub gateway4: Option<Ipv4Addr>,
    /// Router for destinations outside the prefix, link-local or within it; present only with `ipv6`.
    pub gateway6: Option<Ipv6Addr>,
    /// Hosts on the link whose MAC address is known, never asked for and never forgotten: sorted by address, each
    /// address once, each of a family that the uplink has, at most `forebay_api::port_check::MAX_NEIGHBORS`.
    pub neighbors: Vec<(IpAddr, MacAddr)>,
}

/// An IPv4 address of an interface and the length of the prefix on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Interface {
    /// The interface's own address.
    pub addr: Ipv4Addr,
    /// 1 to 32.
    pub prefix_len: u8,
}

/// An IPv6 address of an interface and the length of the prefix on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Interface {
    /// The interface's own address.
    pub addr: Ipv6Addr,
    /// 1 to 128.
    pub prefix_len: u8,
}

/// What stands behind a port. `Display` gives the text of the config file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Device {
    /// A device of its own: the text, of a known form; `forebay-sriov` turns it into a DPDK device.
    Dpdk(String),
    /// A VLAN of another port, which has the device.
    Vlan {
        /// Name of the port with the device.
        port: String,
        /// VLAN identifier, 1 to 4094.
        id: u16,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Dpdk(text) => f.write_str(text),
            Device::Vlan { port, id } => write!(f, "vlan:{port}/{id}"),
        }
    }
}

/// The threads that move packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// Cores to pin workers to: ascending, without duplicates, online, at least one (two where split).
    pub cores: Vec<usize>,
    /// Which stages share a core.
    pub layout: Layout,
    /// What a worker does when it finds no packets.
    pub idle: Idle,
    /// What the idle decision may add to a packet's latency, in microseconds.
    pub max_added_latency_us: u32,
    /// Flows that each worker which classifies remembers; rounded up to a power of two.
    pub flow_cache_entries: u32,
}

/// The pipeline of a file that declares none.
pub const MAIN_PIPELINE: &str = "main";

/// Workers that packets of some ports pass through, with cores, and packet memory, of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Unique on the host.
    pub name: String,
    /// 0 to 1000. A higher one gets cores that a lower one can spare.
    pub priority: u32,
    /// The ports whose packets it receives, each with a device of its own and in no other pipeline; never an empty
    /// list. `None`: all that no other pipeline names; at most one pipeline is that.
    pub ports: Option<Vec<String>>,
    /// Cores that it keeps whatever others need: at most as many as it has. Of several groups each keeps one in any case; with 0, one
    /// group may lend its last core, and shares it.
    pub min_cores: usize,
    /// Packet memory in MiB that only its ports use, out of [`Dpdk::memory_mib`]; `None`: it shares the rest with the
    /// other pipelines that have none.
    pub memory_mib: Option<u32>,
    /// Every stage of the path once, in the order of the path; never empty.
    pub groups: Vec<StageGroup>,
}

impl Pipeline {
    /// Its cores, group by group.
    pub fn cores(&self) -> impl Iterator<Item = usize> {
        self.groups.iter().flat_map(|group| group.cores.iter().copied())
    }
}

/// Stages that share a core; on more than one core, each has all of them and a part of the flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageGroup {
    /// Stages that follow each other on the path; at least one.
    pub stages: Vec<PathStage>,
    /// Cores to pin workers to: ascending, without duplicates, online, at least one.
    pub cores: Vec<usize>,
    /// What the group before does when a ring into this one is full. Without a meaning in the first.
    pub when_full: WhenFull,
    /// Packets that each ring into this group holds: a power of two. Without a meaning in the first.
    pub ring_packets: usize,
}

/// A part of the packet path that can have cores of its own, in the order of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathStage {
    /// Takes packets from devices.
    Receive,
    /// Checks and traps them, and finds what shall become of each.
    Classify,
    /// Makes it of them, and sends them.
    Transform,
}

impl PathStage {
    /// The whole path.
    pub const PATH: [PathStage; 3] = [PathStage::Receive, PathStage::Classify, PathStage::Transform];
}

/// What becomes of packets for which there is no room in the ring to the next stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// They are dropped, and counted.
    Drop,
    /// Who has them holds them, and receives no others until there is room.
    Wait,
}

/// Which stages share a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every stage on each core.
    Fused,
    /// Classify and transform on separate cores, joined by rings.
    Split,
}

/// What a worker does when it finds no packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Poll on.
    BusyPoll,
    /// Sleep when the last packet that entered has left and queues are short.
    LastPacket,
    /// Sleep until the device interrupts.
    Interrupt,
    /// Sleep for a fixed time whenever there was no packet: what the others are compared with.
    Sleep {
        /// Microseconds.
        us: u16,
    },
}

/// An enumeration whose values have names in the config file.
pub(super) trait Named: Sized + Copy + PartialEq + 'static {
    /// Name and value, in the order in which the documentation lists them.
    const NAMES: &'static [(&'static str, Self)];

    /// The name of the value; every value has one.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }
}

impl Named for Hugepages {
    const NAMES: &'static [(&'static str, Self)] =
        &[("auto", Hugepages::Auto), ("required", Hugepages::Required), ("off", Hugepages::Off)];
}

impl Named for Layout {
    const NAMES: &'static [(&'static str, Self)] = &[("fused", Layout::Fused), ("split", Layout::Split)];
}

impl Named for PathStage {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("receive", PathStage::Receive),
        ("classify", PathStage::Classify),
        ("transform", PathStage::Transform),
    ];
}

impl Named for WhenFull {
    const NAMES: &'static [(&'static str, Self)] = &[("drop", WhenFull::Drop), ("wait", WhenFull::Wait)];
}

impl Named for Idle {
    const NAMES: &'static [(&'static str, Self)] =
        &[("busy-poll", Idle::BusyPoll), ("last-packet", Idle::LastPacket), ("interrupt", Idle::Interrupt)];
}

macro_rules! display_name {
    ($($type:ty),*) => {$(
        /// The name in the config file.
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    )*};
}

display_name!(Hugepages, Layout, PathStage, WhenFull);

/// As in the config file.
impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Idle::Sleep { us } => write!(f, "sleep:{us}"),
            named => f.write_str(named.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_value_has_its_name() {
        assert_eq!(
            [Hugepages::Auto, Hugepages::Required, Hugepages::Off].map(Named::name),
            ["auto", "required", "off"]
        );
        assert_eq!([Layout::Fused, Layout::Split].map(|l| l.to_string()), ["fused", "split"]);
        assert_eq!(PathStage::PATH.map(|stage| stage.to_string()), ["receive", "classify", "transform"]);
        assert_eq!([WhenFull::Drop, WhenFull::Wait].map(|w| w.to_string()), ["drop", "wait"]);
        assert_eq!(
            [Idle::BusyPoll, Idle::LastPacket, Idle::Interrupt].map(Named::name),
            ["busy-poll", "last-packet", "interrupt"]
        );
        assert_eq!(
            (Idle::Sleep { us: 70 }.to_string(), Idle::Interrupt.to_string()),
            ("sleep:70".into(), "interrupt".into())
        );
    }

    #[test]
    fn traps_are_listed_by_name() {
        let all = Traps { dhcp: true, multicast: true, lldp: true, igmp: true };
        assert_eq!(all.names().collect::<Vec<_>>(), Traps::NAMES);
        assert_eq!(Traps { lldp: true, ..Traps::default() }.names().collect::<Vec<_>>(), ["lldp"]);
        assert_eq!(Traps::default().switch("arp"), None);
    }

    #[test]
    fn a_device_displays_as_written() {
        assert_eq!(Device::Dpdk("tap:vm1".into()).to_string(), "tap:vm1");
        assert_eq!(Device::Vlan { port: "trunk".into(), id: 7 }.to_string(), "vlan:trunk/7");
    }
}
