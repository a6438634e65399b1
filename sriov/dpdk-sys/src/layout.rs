//! What Rust believes about `struct rte_mbuf` and DPDK's constants: the one list that both languages check.
//!
//! `build.rs` reads this file too and makes a `_Static_assert` of each line, so it holds plain numbers only.

/// Bytes of one `struct rte_mbuf`: two cache lines.
pub const MBUF_SIZE_BYTES: usize = 128;

/// Byte offsets of the `rte_mbuf` fields that Rust reads or writes.
pub mod offset {
    #![allow(missing_docs)]
    pub const BUF_ADDR: usize = 0;
    pub const DATA_OFF: usize = 16;
    pub const REFCNT: usize = 18;
    pub const NB_SEGS: usize = 20;
    pub const PORT: usize = 22;
    pub const OL_FLAGS: usize = 24;
    pub const PACKET_TYPE: usize = 32;
    pub const PKT_LEN: usize = 36;
    pub const DATA_LEN: usize = 40;
    pub const VLAN_TCI: usize = 42;
    pub const HASH_RSS: usize = 44;
    pub const BUF_LEN: usize = 54;
    pub const POOL: usize = 56;
    pub const NEXT: usize = 64;
    pub const TX_OFFLOAD: usize = 72;
}

/// The fields by their C names.
pub const FIELDS: &[(&str, usize)] = &[
    ("buf_addr", offset::BUF_ADDR),
    ("data_off", offset::DATA_OFF),
    ("refcnt", offset::REFCNT),
    ("nb_segs", offset::NB_SEGS),
    ("port", offset::PORT),
    ("ol_flags", offset::OL_FLAGS),
    ("packet_type", offset::PACKET_TYPE),
    ("pkt_len", offset::PKT_LEN),
    ("data_len", offset::DATA_LEN),
    ("vlan_tci", offset::VLAN_TCI),
    ("hash.rss", offset::HASH_RSS),
    ("buf_len", offset::BUF_LEN),
    ("pool", offset::POOL),
    ("next", offset::NEXT),
    ("tx_offload", offset::TX_OFFLOAD),
];

/// The received packet carried a VLAN tag, and `vlan_tci` holds it.
pub const RX_VLAN: u64 = 1 << 0;
/// `hash.rss` holds the flow hash that the device computed.
pub const RX_RSS_HASH: u64 = 1 << 1;
/// The device took the VLAN tag out of the packet; it stands only in `vlan_tci`.
pub const RX_VLAN_STRIPPED: u64 = 1 << 6;
/// The layer 4 checksum: 0 unknown, or one of the three values below.
pub const RX_L4_CKSUM_MASK: u64 = (1 << 3) | (1 << 8);
/// The layer 4 checksum is wrong.
pub const RX_L4_CKSUM_BAD: u64 = 1 << 3;
/// The layer 4 checksum is right.
pub const RX_L4_CKSUM_GOOD: u64 = 1 << 8;
/// The layer 4 checksum field is not filled in, yet the bytes are known to be whole.
pub const RX_L4_CKSUM_NONE: u64 = (1 << 3) | (1 << 8);
/// The IPv4 header checksum: 0 unknown, or one of the three values below.
pub const RX_IP_CKSUM_MASK: u64 = (1 << 4) | (1 << 7);
/// The IPv4 header checksum is wrong.
pub const RX_IP_CKSUM_BAD: u64 = 1 << 4;
/// The IPv4 header checksum is right.
pub const RX_IP_CKSUM_GOOD: u64 = 1 << 7;
/// The IPv4 header checksum is not filled in, yet the header is known to be whole.
pub const RX_IP_CKSUM_NONE: u64 = (1 << 4) | (1 << 7);
/// The device is to compute the UDP checksum, from the sum of the pseudo-header that stands in its place.
pub const TX_UDP_CKSUM: u64 = 3 << 52;
/// The packet to be sent is IPv6.
pub const TX_IPV6: u64 = 1 << 56;
/// The buffer belongs to memory outside of any pool.
pub const EXTERNAL: u64 = 1 << 61;
/// The buffer belongs to another mbuf.
pub const INDIRECT: u64 = 1 << 62;

/// The device fills several receive buffers with one long packet.
pub const RX_OFFLOAD_SCATTER: u64 = 1 << 13;
/// The device takes VLAN tags out of received packets.
pub const RX_OFFLOAD_VLAN_STRIP: u64 = 1 << 0;
/// The device hands out the RSS hash of received packets.
pub const RX_OFFLOAD_RSS_HASH: u64 = 1 << 19;
/// The device puts VLAN tags into sent packets.
pub const TX_OFFLOAD_VLAN_INSERT: u64 = 1 << 0;
/// The device computes IPv4 header checksums.
pub const TX_OFFLOAD_IPV4_CKSUM: u64 = 1 << 1;
/// The device computes UDP checksums.
pub const TX_OFFLOAD_UDP_CKSUM: u64 = 1 << 2;
/// The device computes TCP checksums.
pub const TX_OFFLOAD_TCP_CKSUM: u64 = 1 << 3;
/// The device cuts TCP super-segments.
pub const TX_OFFLOAD_TCP_TSO: u64 = 1 << 5;
/// The device cuts TCP super-segments inside VXLAN.
pub const TX_OFFLOAD_VXLAN_TNL_TSO: u64 = 1 << 9;
/// The device sends packets of several segments.
pub const TX_OFFLOAD_MULTI_SEGS: u64 = 1 << 15;

/// Bytes that a pool leaves free before a packet's data.
pub const HEADROOM_BYTES: u16 = 128;

/// The constants by their C names.
pub const CONSTANTS: &[(&str, u64)] = &[
    ("RTE_MBUF_F_RX_VLAN", RX_VLAN),
    ("RTE_MBUF_F_RX_RSS_HASH", RX_RSS_HASH),
    ("RTE_MBUF_F_RX_VLAN_STRIPPED", RX_VLAN_STRIPPED),
    ("RTE_MBUF_F_RX_L4_CKSUM_MASK", RX_L4_CKSUM_MASK),
    ("RTE_MBUF_F_RX_L4_CKSUM_BAD", RX_L4_CKSUM_BAD),
    ("RTE_MBUF_F_RX_L4_CKSUM_GOOD", RX_L4_CKSUM_GOOD),
    ("RTE_MBUF_F_RX_L4_CKSUM_NONE", RX_L4_CKSUM_NONE),
    ("RTE_MBUF_F_RX_IP_CKSUM_MASK", RX_IP_CKSUM_MASK),
    ("RTE_MBUF_F_RX_IP_CKSUM_BAD", RX_IP_CKSUM_BAD),
    ("RTE_MBUF_F_RX_IP_CKSUM_GOOD", RX_IP_CKSUM_GOOD),
    ("RTE_MBUF_F_RX_IP_CKSUM_NONE", RX_IP_CKSUM_NONE),
    ("RTE_MBUF_F_TX_UDP_CKSUM", TX_UDP_CKSUM),
    ("RTE_MBUF_F_TX_IPV6", TX_IPV6),
    ("RTE_MBUF_F_EXTERNAL", EXTERNAL),
    ("RTE_MBUF_F_INDIRECT", INDIRECT),
    ("RTE_ETH_RX_OFFLOAD_SCATTER", RX_OFFLOAD_SCATTER),
    ("RTE_ETH_RX_OFFLOAD_VLAN_STRIP", RX_OFFLOAD_VLAN_STRIP),
    ("RTE_ETH_RX_OFFLOAD_RSS_HASH", RX_OFFLOAD_RSS_HASH),
    ("RTE_ETH_TX_OFFLOAD_VLAN_INSERT", TX_OFFLOAD_VLAN_INSERT),
    ("RTE_ETH_TX_OFFLOAD_IPV4_CKSUM", TX_OFFLOAD_IPV4_CKSUM),
    ("RTE_ETH_TX_OFFLOAD_UDP_CKSUM", TX_OFFLOAD_UDP_CKSUM),
    ("RTE_ETH_TX_OFFLOAD_TCP_CKSUM", TX_OFFLOAD_TCP_CKSUM),
    ("RTE_ETH_TX_OFFLOAD_TCP_TSO", TX_OFFLOAD_TCP_TSO),
    ("RTE_ETH_TX_OFFLOAD_VXLAN_TNL_TSO", TX_OFFLOAD_VXLAN_TNL_TSO),
    ("RTE_ETH_TX_OFFLOAD_MULTI_SEGS", TX_OFFLOAD_MULTI_SEGS),
    ("RTE_PKTMBUF_HEADROOM", HEADROOM_BYTES as u64),
];
