//! The fields of a packet that rules match on, as seven machine words: masked and compared without looking at fields.
//!
//! | word | high to low bits |
//! |---|---|
//! | 0 | destination MAC (48), EtherType (16) |
//! | 1 | source MAC (48), VLAN identifier (16; 0 is untagged) |
//! | 2, 3 | source address: IPv6, or IPv4 in the high half of word 2 |
//! | 4, 5 | destination address, likewise |
//! | 6 | source port (16), destination port (16), protocol (8), DSCP (8), flags (16) |
//!
//! IPv4 stands in the *high* half so that a prefix is a mask of leading ones for both families.

/// Words of a [`Key`].
pub const KEY_WORDS: usize = 7;

/// Flag of word 6: the addresses are IPv4.
pub const FLAG_IPV4: u64 = 1;
/// Flag of word 6: the addresses are IPv6.
pub const FLAG_IPV6: u64 = 2;
/// Flag of word 6: the addresses are IP of either version.
pub const FLAG_IP: u64 = 8;
/// Flag of word 6: the ports are there (not so in later fragments and protocols without ports).
pub const FLAG_PORTS: u64 = 4;

/// The matchable fields of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub [u64; KEY_WORDS]);

impl Key {
    /// A key with the fields of the Ethernet header: MACs in the low 48 bits, `vlan` 0 for untagged.
    #[inline(always)]
    pub fn ethernet(dst_mac: u64, src_mac: u64, ethertype: u16, vlan: u16) -> Key {
        Key([dst_mac << 16 | u64::from(ethertype), src_mac << 16 | u64::from(vlan), 0, 0, 0, 0, 0])
    }

    /// Adds the fields of an IPv4 header.
    #[inline(always)]
    pub fn set_ipv4(&mut self, src: u32, dst: u32, proto: u8, dscp: u8) {
        self.0[2] = u64::from(src) << 32;
        self.0[4] = u64::from(dst) << 32;
        self.0[6] = u64::from(proto) << 24 | u64::from(dscp) << 16 | FLAG_IPV4 | FLAG_IP;
    }

    /// Adds the fields of an IPv6 header; `proto` is the upper-layer protocol.
    #[inline(always)]
    pub fn set_ipv6(&mut self, src: u128, dst: u128, proto: u8, dscp: u8) {
        self.0[2] = (src >> 64) as u64;
        self.0[3] = src as u64;
        self.0[4] = (dst >> 64) as u64;
        self.0[5] = dst as u64;
        self.0[6] = u64::from(proto) << 24 | u64::from(dscp) << 16 | FLAG_IPV6 | FLAG_IP;
    }

    /// Adds the ports of the transport header.
    #[inline(always)]
    pub fn set_ports(&mut self, src: u16, dst: u16) {
        self.0[6] |= u64::from(src) << 48 | u64::from(dst) << 32 | FLAG_PORTS;
    }

    /// Destination MAC, in the low 48 bits.
    #[inline(always)]
    pub fn dst_mac(&self) -> u64 {
        self.0[0] >> 16
    }

    /// Source MAC, in the low 48 bits.
    #[inline(always)]
    pub fn src_mac(&self) -> u64 {
        self.0[1] >> 16
    }

    /// EtherType behind the VLAN tags.
    #[inline(always)]
    pub fn ethertype(&self) -> u16 {
        self.0[0] as u16
    }

    /// VLAN identifier of the outermost tag; 0 is untagged.
    #[inline(always)]
    pub fn vlan(&self) -> u16 {
        self.0[1] as u16
    }

    /// IP protocol.
    #[inline(always)]
    pub fn proto(&self) -> u8 {
        (self.0[6] >> 24) as u8
    }

    /// Differentiated services code point.
    #[inline(always)]
    pub fn dscp(&self) -> u8 {
        (self.0[6] >> 16) as u8
    }

    /// Source and destination port.
    #[inline(always)]
    pub fn ports(&self) -> Option<(u16, u16)> {
        (self.0[6] & FLAG_PORTS != 0).then_some(((self.0[6] >> 48) as u16, (self.0[6] >> 32) as u16))
    }

    /// Source and destination address of an IPv4 packet.
    #[inline(always)]
    pub fn ipv4(&self) -> Option<(u32, u32)> {
        (self.0[6] & FLAG_IPV4 != 0).then_some(((self.0[2] >> 32) as u32, (self.0[4] >> 32) as u32))
    }

    /// Source and destination address of an IPv6 packet.
    #[inline(always)]
    pub fn ipv6(&self) -> Option<(u128, u128)> {
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        (self.0[6] & FLAG_IPV6 != 0).then_some((join(self.0[2], self.0[3]), join(self.0[4], self.0[5])))
    }

    /// A hash of addresses, protocol and ports: equal for all packets of a flow, and for all fragments of a packet
    /// that has no ports in its later ones (`whole` false leaves the ports out).
    #[inline(always)]
    pub fn flow_hash(&self, whole: bool) -> u32 {
        let transport = if whole { self.0[6] & 0xffff_ffff_ff00_0000 } else { self.0[6] & 0xff00_0000 };
        let layer2 =
            if self.0[6] & (FLAG_IPV4 | FLAG_IPV6) == 0 { self.0[0] ^ self.0[1].rotate_left(31) } else { 0 };
        let mut hash = mix(self.0[2] ^ self.0[3].rotate_left(17), self.0[4] ^ self.0[5].rotate_left(43));
        hash = mix(hash ^ transport, layer2);
        (hash >> 32) as u32 ^ hash as u32
    }
}

/// Mixes two words into one by a folded 128-bit product, with odd constants from the digits of pi.
#[inline(always)]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x243f_6a88_85a3_08d3) * u128::from(b ^ 0x1319_8a2e_0370_7345);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_went_in() {
        let mut key = Key::ethernet(0x0200_0000_0001, 0x0200_0000_0002, 0x0800, 100);
        key.set_ipv4(1, 2, 17, 46);
        key.set_ports(3, 4);
        assert_eq!((key.dst_mac(), key.src_mac()), (0x0200_0000_0001, 0x0200_0000_0002));
        assert_eq!((key.ethertype(), key.vlan(), key.proto()), (0x0800, 100, 17));
        assert_eq!((key.ipv4(), key.ipv6(), key.ports()), (Some((1, 2)), None, Some((3, 4))));
    }

    #[test]
    fn flows_spread_over_the_hash() {
        let mut seen = std::collections::HashSet::new();
        for port in 0..10_000u16 {
            let mut key = Key::ethernet(1, 2, 0x0800, 0);
            key.set_ipv4(0x0a00_0001, 0x0a00_0002, 6, 0);
            key.set_ports(port, 80);
            seen.insert(key.flow_hash(true));
            assert_eq!(key.flow_hash(false), {
                let mut bare = key;
                bare.0[6] &= 0xffff_ffff;
                bare.flow_hash(false)
            });
        }
        assert!(seen.len() > 9_990, "{} of 10000 flows differ", seen.len());
    }
}
