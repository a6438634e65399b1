//! What the kinds of device have of their own: DPDK's arguments, how many queues, what they bear and what they ignore.

use std::sync::atomic::{AtomicU32, Ordering};

use forebay_dpdk_sys as sys;

use crate::af_packet::Ring;
use crate::device_spec::DeviceSpec;
use crate::vhost;

/// Ethernet header and two VLAN tags: what a frame has beyond the MTU. DPDK's tap driver allows the same.
pub(crate) const FRAME_OVERHEAD_BYTES: u32 = 14 + 4 + 4;

/// Makes DPDK's names of virtual devices unique in the process.
static NEXT_DEVICE: AtomicU32 = AtomicU32::new(0);

impl DeviceSpec {
    /// Bytes of data that each packet buffer of the device's pool must hold for this MTU. Most drivers chain short
    /// buffers, and one byte would do; af_packet does not.
    #[must_use]
    pub fn needed_data_room_bytes(&self, mtu: u16) -> u32 {
        match self {
            // The number of frames does not matter to their size.
            Self::AfPacket { .. } => Ring::new(mtu, 1).buffer_bytes(),
            Self::Null { extras } => extras.get("size").and_then(|size| size.parse().ok()).unwrap_or(1),
            Self::Raw { devargs } if devargs.starts_with("net_null") || devargs.starts_with("eth_null") => {
                let size = devargs.split(',').find_map(|word| word.strip_prefix("size="));
                size.and_then(|size| size.parse().ok()).unwrap_or(1)
            }
            _ => 1,
        }
    }

    /// Most queue pairs that the kind supports, whatever DPDK says later.
    pub(crate) fn queue_limit(&self) -> u16 {
        match self {
            Self::Pci { .. } | Self::Vf { .. } | Self::AfPacket { .. } | Self::VirtioUser { .. } => u16::MAX,
            Self::Vhost { .. } => vhost::PAIRS,
            // SAFETY: reads a constant.
            Self::Tap { .. } => unsafe { sys::fb_tap_queue_limit() },
            Self::AfXdp { .. }
            | Self::Memif { .. }
            | Self::Pcap { .. }
            | Self::Null { .. }
            | Self::Raw { .. } => 1,
        }
    }

    /// Queue pairs that the device is set up with for so many workers: more than those, where the other side decides how many it
    /// uses.
    pub(crate) fn queue_pairs(&self, workers: u16) -> u16 {
        match self {
            Self::Vhost { .. } => workers.max(vhost::PAIRS),
            _ => workers,
        }
    }

    /// The arguments that make DPDK probe the device.
    pub(crate) fn devargs(&self, queues: u16, mtu: u16, rx_descriptors: u16, mac: Option<[u8; 6]>) -> String {
        let number = NEXT_DEVICE.fetch_add(1, Ordering::Relaxed);
        match self {
            Self::Pci { address, extras } => format!("{address}{extras}"),
            // It has become a PCI function by now; DPDK knows no such word.
            Self::Vf { pf, index, extras } => format!("{pf}/{index}{extras}"),
            Self::Tap { name, extras } => format!("net_tap{number},iface={name}{extras}"),
            Self::AfPacket { iface, extras } => {
                let Ring { frame_bytes, block_bytes, frames } = Ring::new(mtu, rx_descriptors);
                format!(
                    "net_af_packet{number},iface={iface},qpairs={queues},framesz={frame_bytes},\
                     blocksz={block_bytes},framecnt={frames}{extras}"
                )
            }
            Self::AfXdp { iface, extras } => format!("net_af_xdp{number},iface={iface}{extras}"),
            Self::Vhost { path, extras } => {
                format!("net_vhost{number},iface={path},queues={}{extras}", self.queue_pairs(queues))
            }
            Self::VirtioUser { path, extras } => {
                let mac = mac.map_or_else(String::new, |mac| format!(",mac={}", mac_text(mac)));
                format!("net_virtio_user{number},path={path},queues={queues}{mac}{extras}")
            }
            Self::Memif { path, extras } => {
                let role = if extras.get("role").is_none() { ",role=server" } else { "" };
                format!("net_memif{number},socket={path},socket-abstract=no{role}{extras}")
            }
            Self::Pcap { file, extras } => {
                // `tx` is our name for it.
                let extras = extras.to_string().replace(",tx=", ",tx_pcap=");
                format!("net_pcap{number},rx_pcap={file}{extras}")
            }
            Self::Null { extras } if extras.get("size").is_none() => {
                format!("net_null{number},no-rx=1{extras}")
            }
            Self::Null { extras } => format!("net_null{number}{extras}"),
            Self::Raw { devargs } => devargs.clone(),
        }
    }

    /// Whether packets longer than DPDK's stated limit pass all the same: these drivers state the standard Ethernet
    /// length and do not hold to it.
    pub(crate) fn bears_any_mtu(&self) -> bool {
        matches!(self, Self::AfPacket { .. } | Self::Memif { .. })
    }

    /// Whether a MAC address means something to the device; others take none and need none.
    pub(crate) fn has_mac(&self) -> bool {
        matches!(
            self,
            Self::Pci { .. }
                | Self::Vf { .. }
                | Self::Tap { .. }
                | Self::AfPacket { .. }
                | Self::AfXdp { .. }
        )
    }

    /// Whether the MTU is DPDK's to set. Not with af_packet, where it belongs to the kernel's interface, which may
    /// well be larger.
    pub(crate) fn sets_mtu(&self) -> bool {
        !matches!(self, Self::AfPacket { .. })
    }

    /// Whether promiscuity is DPDK's to set. Not with af_packet (see there). Not with tap: there the flag would
    /// stand on the tenant's side, and everything comes anyway.
    pub(crate) fn sets_promiscuity(&self) -> bool {
        !matches!(self, Self::AfPacket { .. } | Self::Tap { .. })
    }

    /// Receive descriptors that make sense for the kind.
    pub(crate) fn rx_descriptors(&self, wanted: u16, room: u16) -> u16 {
        match self {
            // The driver takes this as the segments of one packet, and hands so many buffers to every read: enough for
            // the longest frame that a kernel can send, whatever the MTU, so that none is truncated.
            Self::Tap { .. } => {
                let segments =
                    (LONGEST_KERNEL_PACKET_BYTES + FRAME_OVERHEAD_BYTES).div_ceil(u32::from(room.max(1)));
                u16::try_from(segments + 1).unwrap_or(wanted)
            }
            _ => wanted,
        }
    }

    /// Whether the driver takes chained packets, whatever it says: these free or write them whole.
    pub(crate) fn takes_chains(&self) -> bool {
        matches!(self, Self::Null { .. } | Self::Pcap { .. })
    }

    /// The kernel interface that the device is or stands on.
    pub(crate) fn netdev(&self) -> Option<&str> {
        match self {
            Self::Tap { name, .. } => Some(name),
            Self::AfPacket { iface, .. } | Self::AfXdp { iface, .. } => Some(iface),
            _ => None,
        }
    }
}

/// The longest packet of an interface: IP lengths have 16 bits, and so has a tap's largest MTU.
const LONGEST_KERNEL_PACKET_BYTES: u32 = u16::MAX as u32;

/// The largest MTU that DPDK lets a port have.
pub(crate) fn mtu_limit(info: &sys::PortInfo) -> u16 {
    // As ethdev reckons: Ethernet header and checksum, unless the driver's own two limits tell otherwise.
    let overhead = match info.max_rx_frame_bytes.checked_sub(u32::from(info.max_mtu)) {
        Some(overhead) if info.max_mtu != u16::MAX && overhead > 0 => overhead,
        _ => 14 + 4,
    };
    let by_frame = info.max_rx_frame_bytes.saturating_sub(overhead);
    u16::try_from(by_frame).unwrap_or(u16::MAX).min(info.max_mtu)
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devargs(spec: &str) -> String {
        let spec: DeviceSpec = spec.parse().unwrap();
        let text = spec.devargs(2, 1500, 512, Some([2, 0, 0, 0, 0, 1]));
        // The number is the process's; take it out.
        let end = text.find(',').unwrap_or(text.len());
        format!("{}{}", text[..end].trim_end_matches(|c: char| c.is_ascii_digit()), &text[end..])
    }

    #[test]
    fn every_kind_has_its_arguments() {
        assert_eq!(devargs("tap:vm1"), "net_tap,iface=vm1");
        assert_eq!(
            devargs("af_packet:und0,qdisc_bypass=0"),
            "net_af_packet,iface=und0,qpairs=2,framesz=2048,blocksz=4096,framecnt=512,qdisc_bypass=0"
        );
        assert_eq!(devargs("vhost:/run/a,client=1"), "net_vhost,iface=/run/a,queues=64,client=1");
        assert_eq!(
            devargs("virtio_user:/run/a"),
            "net_virtio_user,path=/run/a,queues=2,mac=02:00:00:00:00:01"
        );
        assert_eq!(devargs("memif:/run/a"), "net_memif,socket=/run/a,socket-abstract=no,role=server");
        assert_eq!(
            devargs("memif:/run/a,role=client"),
            "net_memif,socket=/run/a,socket-abstract=no,role=client"
        );
        assert_eq!(devargs("pcap:/a,tx=/b"), "net_pcap,rx_pcap=/a,tx_pcap=/b");
        assert_eq!(devargs("null:"), "net_null,no-rx=1");
        assert_eq!(devargs("null:size=64"), "net_null,size=64");
        assert_eq!(devargs("dpdk:net_ring,a=1"), "net_ring,a=1");
    }

    #[test]
    fn mtu_limits_are_reckoned_like_ethdev_does() {
        let limit = |max_rx_frame_bytes, max_mtu| {
            mtu_limit(&sys::PortInfo { max_rx_frame_bytes, max_mtu, ..sys::PortInfo::default() })
        };
        assert_eq!(limit(1522, u16::MAX), 1504);
        assert_eq!(limit(9728, 9710), 9710);
        assert_eq!(limit(u32::MAX, u16::MAX), u16::MAX);
        assert_eq!(limit(9728, 9000), 9000);
    }

    #[test]
    fn short_buffers_are_known_before_dpdk_is_asked() {
        let needed = |spec: &str, mtu| spec.parse::<DeviceSpec>().unwrap().needed_data_room_bytes(mtu);
        assert!(needed("af_packet:und0", 1500) <= u32::from(crate::DEFAULT_DATA_ROOM_BYTES));
        assert_eq!(needed("af_packet:und0", 9000), 9184);
        assert_eq!(needed("null:size=9000", 1500), 9000);
        assert_eq!(needed("dpdk:net_null7,size=9000", 1500), 9000);
        assert_eq!(needed("dpdk:eth_null7,copy=1,size=9000", 1500), 9000);
        assert_eq!(needed("tap:vm1", 9000), 1);
    }
}
