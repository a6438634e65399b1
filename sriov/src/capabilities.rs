//! What a device could do for us, as its driver tells it. Used are multi-segment transmit, scattered and RSS-hashed receive,
//! RX interrupts of kernel files, and hardware's UDP checksums.

use forebay_dpdk_sys::layout;

/// Capabilities of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    rx: u64,
    tx: u64,
    rss: bool,
    rx_interrupts: bool,
}

impl Capabilities {
    pub(crate) fn new(rx: u64, tx: u64, rss_flow_types: u64) -> Self {
        let rss = rss_flow_types != 0 || rx & layout::RX_OFFLOAD_RSS_HASH != 0;
        Self { rx, tx, rss, rx_interrupts: false }
    }

    pub(crate) fn with_rx_interrupts(self, rx_interrupts: bool) -> Self {
        Self { rx_interrupts, ..self }
    }

    /// Wakes a worker that sleeps when packets come. Where it cannot, the worker looks from time to time.
    #[must_use]
    pub fn rx_interrupts(&self) -> bool {
        self.rx_interrupts
    }

    /// Computes IPv4 header checksums of sent packets.
    #[must_use]
    pub fn tx_ipv4_checksum(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_IPV4_CKSUM != 0
    }

    /// Computes UDP checksums of sent packets.
    #[must_use]
    pub fn tx_udp_checksum(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_UDP_CKSUM != 0
    }

    /// Computes TCP checksums of sent packets.
    #[must_use]
    pub fn tx_tcp_checksum(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_TCP_CKSUM != 0
    }

    /// Cuts TCP super-segments.
    #[must_use]
    pub fn tso(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_TCP_TSO != 0
    }

    /// Cuts TCP super-segments inside VXLAN.
    #[must_use]
    pub fn vxlan_tso(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_VXLAN_TNL_TSO != 0
    }

    /// Takes VLAN tags out of received packets.
    #[must_use]
    pub fn vlan_strip(&self) -> bool {
        self.rx & layout::RX_OFFLOAD_VLAN_STRIP != 0
    }

    /// Puts VLAN tags into sent packets.
    #[must_use]
    pub fn vlan_insert(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_VLAN_INSERT != 0
    }

    /// Spreads flows over receive queues by hash.
    #[must_use]
    pub fn rss(&self) -> bool {
        self.rss
    }

    /// Fills several receive buffers with one long packet.
    #[must_use]
    pub fn rx_scatter(&self) -> bool {
        self.rx & layout::RX_OFFLOAD_SCATTER != 0
    }

    /// Sends packets of several segments without copying them together.
    #[must_use]
    pub fn multi_segment_tx(&self) -> bool {
        self.tx & layout::TX_OFFLOAD_MULTI_SEGS != 0
    }

    /// The names of what the device is able to do.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            ("tx_ipv4_checksum", self.tx_ipv4_checksum()),
            ("tx_udp_checksum", self.tx_udp_checksum()),
            ("tx_tcp_checksum", self.tx_tcp_checksum()),
            ("tso", self.tso()),
            ("vxlan_tso", self.vxlan_tso()),
            ("vlan_strip", self.vlan_strip()),
            ("vlan_insert", self.vlan_insert()),
            ("rss", self.rss()),
            ("rx_interrupts", self.rx_interrupts()),
            ("rx_scatter", self.rx_scatter()),
            ("multi_segment_tx", self.multi_segment_tx()),
        ];
        all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_the_bits_say() {
        assert!(Capabilities::default().names().is_empty());
        let some = Capabilities::new(
            layout::RX_OFFLOAD_SCATTER,
            layout::TX_OFFLOAD_MULTI_SEGS | layout::TX_OFFLOAD_TCP_TSO,
            1,
        );
        assert_eq!(some.names(), ["tso", "rss", "rx_scatter", "multi_segment_tx"]);
        assert!(some.multi_segment_tx() && !some.vlan_strip());
        assert_eq!(Capabilities::default().with_rx_interrupts(true).names(), ["rx_interrupts"]);
    }
}
