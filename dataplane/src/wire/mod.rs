//! Header formats: reading and writing the bytes of Ethernet, ARP, IPv4, IPv6, UDP, ICMP and VXLAN.
//!
//! Everything here works on plain byte slices, so that it can be fuzzed and tested without a device. The packet path
//! reads through [`frame`] (one pass over the headers, every length checked against the bytes that are there);
//! the other modules build the few packets that the host itself originates.

pub mod arp;
pub mod checksum;
pub mod frame;
pub mod icmp;
pub mod nd;
pub mod vxlan;

/// Bytes of a MAC address.
pub const MAC_BYTES: usize = 6;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of one IEEE 802.1Q tag.
pub const VLAN_TAG_BYTES: usize = 4;
/// Bytes of an IPv4 header without options (RFC 791).
pub const IPV4_BYTES: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200).
pub const IPV6_BYTES: usize = 40;
/// Bytes of a UDP header (RFC 768).
pub const UDP_BYTES: usize = 8;
/// The broadcast MAC.
pub const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// EtherType values (IEEE 802 numbers).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Customer VLAN tag, IEEE 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// Service VLAN tag, IEEE 802.1ad.
    pub const QINQ: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// The `N` bytes at `offset`, or `None` where the slice ends before.
#[inline(always)]
pub fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// The eight bytes at `at`, which must be within the array, as a little-endian word.
#[inline(always)]
pub fn le64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// The big-endian 16-bit field at `offset`.
#[inline(always)]
pub fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_be_bytes)
}

/// The big-endian 32-bit field at `offset`.
#[inline(always)]
pub fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_be_bytes)
}

/// Writes `value` at `offset`; false, and nothing written, where the slice ends before.
#[inline(always)]
#[must_use]
pub fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) -> bool {
    match bytes.get_mut(offset..offset + N) {
        Some(field) => {
            field.copy_from_slice(&value);
            true
        }
        None => false,
    }
}

/// A MAC as the low 48 bits of a word.
#[inline(always)]
pub fn mac_bits(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// The MAC in the low 48 bits of a word.
#[inline(always)]
pub fn mac_from_bits(bits: u64) -> [u8; 6] {
    let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
    [a, b, c, d, e, f]
}

/// The group bit: multicast or broadcast.
#[inline(always)]
pub fn is_multicast_mac(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}
