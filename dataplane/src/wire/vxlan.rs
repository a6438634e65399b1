//! VXLAN (RFC 7348): the header, and the outer headers of one tunnel as a template.
//!
//! A [`Template`] holds Ethernet, IPv4 or IPv6, UDP and VXLAN headers ready to be copied in front of a frame; per
//! packet only the next hop's MAC, lengths, the ECN bits, the UDP source port and the checksums are patched. The IPv4
//! header checksum is finished from a sum that was made with the template. Choices where the RFC leaves one:
//! don't-fragment is set with identification 0 (an atomic datagram, RFC 6864); the UDP checksum is 0 over IPv4 as
//! RFC 7348 advises, and computed over IPv6, because receivers discard zero there unless told otherwise (RFC 6936).

use super::{
    ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, MAC_BYTES, UDP_BYTES, be32, checksum, ethertype, protocol,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

/// The IANA port of VXLAN.
pub const UDP_PORT: u16 = 4789;
/// Bytes of the VXLAN header.
pub const VXLAN_BYTES: usize = 8;
/// The I flag: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;
/// The most bytes that a template puts in front of a frame: over IPv6.
pub const V6_BYTES: usize = ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES + VXLAN_BYTES;
/// Bytes that a template over IPv4 puts in front of a frame.
pub const V4_BYTES: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES + VXLAN_BYTES;
/// First of the 16,384 dynamic ports (RFC 6335) that RFC 7348 recommends as source ports.
const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// Reads a VXLAN header at `offset`: its VNI, or `None` where the bytes end before or the I flag is not set.
/// Reserved bits are ignored on receipt, as RFC 7348 demands.
#[inline]
pub fn parse_vni(bytes: &[u8], offset: usize) -> Option<u32> {
    let flags = be32(bytes, offset)?;
    let vni = be32(bytes, offset + 4)? >> 8;
    (flags >> 24 & u32::from(FLAG_VNI) != 0).then_some(vni)
}

/// The UDP source port of a flow: its hash spread over the dynamic ports.
#[inline(always)]
pub fn source_port(flow_hash: u32) -> u16 {
    FIRST_DYNAMIC_PORT | (flow_hash as u16 & 0x3fff)
}

/// Whether a UDP packet between these ports can be one that [`Template`] has made.
pub fn is_ours(source: u16, destination: u16) -> bool {
    source >= FIRST_DYNAMIC_PORT && destination == UDP_PORT
}

/// The outer headers of one tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Template {
    /// Of all headers, the next hop's MAC included.
    length: NonZeroU16,
    /// The sum, folded to 16 bits, of the IPv4 header without lengths and ECN, or of the IPv6 pseudo-header and the
    /// constant part of UDP and VXLAN.
    sum: u16,
    /// What stands behind the next hop's MAC.
    bytes: [u8; V6_BYTES - MAC_BYTES],
}

/// What differs from packet to packet.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    /// The next hop's MAC; zeros where it is not known yet, and whoever sends the packet writes it.
    pub next_hop: [u8; MAC_BYTES],
    /// Bytes of the inner frame.
    pub inner_bytes: usize,
    /// ECN bits of the inner packet, copied out (RFC 6040, normal mode); 0 for what is not IP.
    pub ecn: u8,
    /// The inner flow's hash, carried by the source port.
    pub flow_hash: u32,
    /// What the UDP checksum comes from, where [`Template::covers_payload`].
    pub checksum: Checksum,
}

/// Who computes the UDP checksum over IPv6.
#[derive(Clone, Copy, Debug)]
pub enum Checksum {
    /// We do, from the sum of the inner frame's bytes.
    Sum(u64),
    /// The device does, from the sum of the pseudo-header, which is put in its place.
    Device,
}

impl Template {
    /// The headers from `source` to `remote`, both of one family, for `vni`, sent from `src_mac`.
    ///
    /// `None` where the families differ.
    pub fn new(
        src_mac: [u8; 6],
        source: IpAddr,
        remote: IpAddr,
        vni: u32,
        ttl: u8,
        dscp: u8,
    ) -> Option<Template> {
        let mut bytes = [0; V6_BYTES];
        let l3 = ETHERNET_BYTES;
        bytes[MAC_BYTES..2 * MAC_BYTES].copy_from_slice(&src_mac);
        let (ether_type, l4) = match (source, remote) {
            (IpAddr::V4(source), IpAddr::V4(remote)) => {
                set_ipv4(&mut bytes, source, remote, ttl, dscp);
                (ethertype::IPV4, l3 + IPV4_BYTES)
            }
            (IpAddr::V6(source), IpAddr::V6(remote)) => {
                set_ipv6(&mut bytes, source, remote, ttl, dscp);
                (ethertype::IPV6, l3 + IPV6_BYTES)
            }
            _ => return None,
        };
        bytes[12..14].copy_from_slice(&ether_type.to_be_bytes());
        bytes[l4 + 2..l4 + 4].copy_from_slice(&UDP_PORT.to_be_bytes());
        bytes[l4 + 8] = FLAG_VNI;
        bytes[l4 + 12..l4 + 16].copy_from_slice(&(vni << 8).to_be_bytes());
        let covered = match (source, remote) {
            (IpAddr::V6(source), IpAddr::V6(remote)) => {
                checksum::pseudo_v6(source, remote, protocol::UDP, 0)
                    + checksum::add(0, &bytes[l4..l4 + UDP_BYTES + VXLAN_BYTES])
            }
            _ => checksum::add(0, &bytes[l3..l4]),
        };
        let [_, _, _, _, _, _, bytes @ ..] = bytes;
        Some(Template {
            length: NonZeroU16::new((l4 + UDP_BYTES + VXLAN_BYTES) as u16)?,
            sum: !checksum::fold(covered),
            bytes,
        })
    }

    /// Bytes put in front of the inner frame.
    #[inline(always)]
    pub fn len(&self) -> usize {
        usize::from(self.length.get())
    }

    /// Never: a template has headers.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of the outer network packet beyond the inner frame.
    #[inline(always)]
    pub fn l3_overhead(&self) -> usize {
        self.len() - ETHERNET_BYTES
    }

    /// The UDP checksum covers the inner frame, whose sum must be given.
    #[inline(always)]
    pub fn covers_payload(&self) -> bool {
        self.len() == V6_BYTES
    }

    /// Writes the headers over IPv4 in front of the inner frame. The caller has checked that the outer packet fits the
    /// MTU, hence 16-bit lengths.
    #[inline(always)]
    pub fn write_v4(&self, out: &mut [u8; V4_BYTES], patch: &Patch) {
        let udp_bytes = (patch.inner_bytes + UDP_BYTES + VXLAN_BYTES) as u16;
        let total = udp_bytes + IPV4_BYTES as u16;
        let sum = u64::from(self.sum) + u64::from(total) + u64::from(patch.ecn);
        self.copy_to(out, patch.next_hop);
        out[15] |= patch.ecn;
        put16(out, 16, total);
        put16(out, 24, checksum::fold_small(sum));
        put16(out, 34, source_port(patch.flow_hash));
        put16(out, 38, udp_bytes);
    }

    /// As [`Template::write_v4`], over IPv6, where the UDP checksum covers the inner frame.
    #[inline(always)]
    pub fn write_v6(&self, out: &mut [u8; V6_BYTES], patch: &Patch) {
        let port = source_port(patch.flow_hash);
        let udp_bytes = (patch.inner_bytes + UDP_BYTES + VXLAN_BYTES) as u16;
        let field = match patch.checksum {
            Checksum::Sum(inner) => {
                let sum = u64::from(self.sum) + 2 * u64::from(udp_bytes) + u64::from(port) + inner;
                checksum::udp_field(sum)
            }
            Checksum::Device => !checksum::fold(self.pseudo_header_sum(udp_bytes)),
        };
        self.copy_to(out, patch.next_hop);
        out[15] |= patch.ecn << 4;
        put16(out, 18, udp_bytes);
        put16(out, 54, port);
        put16(out, 58, udp_bytes);
        put16(out, 60, field);
    }

    /// Of a UDP datagram of that length over IPv6 (RFC 8200, section 8.1).
    #[inline(always)]
    fn pseudo_header_sum(&self, udp_bytes: u16) -> u64 {
        let addresses = self.bytes.get(22 - MAC_BYTES..54 - MAC_BYTES).unwrap_or_default();
        checksum::add(u64::from(protocol::UDP) + u64::from(udp_bytes), addresses)
    }

    #[inline(always)]
    fn copy_to<const N: usize>(&self, out: &mut [u8; N], next_hop: [u8; MAC_BYTES]) {
        let (mac, rest) = out.split_at_mut(MAC_BYTES);
        mac.copy_from_slice(&next_hop);
        rest.copy_from_slice(&self.bytes[..N - MAC_BYTES]);
    }
}

fn set_ipv4(bytes: &mut [u8], source: Ipv4Addr, remote: Ipv4Addr, ttl: u8, dscp: u8) {
    let header = &mut bytes[ETHERNET_BYTES..ETHERNET_BYTES + IPV4_BYTES];
    header[0] = 0x45;
    header[1] = dscp << 2;
    header[6] = 0x40;
    header[8] = ttl;
    header[9] = protocol::UDP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&remote.octets());
}

fn set_ipv6(bytes: &mut [u8], source: Ipv6Addr, remote: Ipv6Addr, hop_limit: u8, dscp: u8) {
    let header = &mut bytes[ETHERNET_BYTES..ETHERNET_BYTES + IPV6_BYTES];
    header[0] = 0x60 | dscp >> 2;
    header[1] = dscp << 6;
    header[6] = protocol::UDP;
    header[7] = hop_limit;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&remote.octets());
}

#[inline(always)]
fn put16<const N: usize>(bytes: &mut [u8; N], at: usize, value: u16) {
    if let Some(field) = bytes[at..].first_chunk_mut() {
        *field = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Frame, Network, WINDOW_BYTES};
    use proptest::prelude::*;

    fn encapsulate(source: IpAddr, remote: IpAddr, inner: &[u8], ecn: u8, flow_hash: u32) -> Vec<u8> {
        let template = Template::new([2, 0, 0, 0, 0, 1], source, remote, 0x00ab_cdef, 64, 46).unwrap();
        let checksum = Checksum::Sum(checksum::add(0, inner));
        let patch = Patch { next_hop: [0; 6], inner_bytes: inner.len(), ecn, flow_hash, checksum };
        let (mut v4, mut v6) = ([0; V4_BYTES], [0; V6_BYTES]);
        let mut out = match source {
            IpAddr::V4(_) => {
                template.write_v4(&mut v4, &patch);
                v4.to_vec()
            }
            IpAddr::V6(_) => {
                template.write_v6(&mut v6, &patch);
                v6.to_vec()
            }
        };
        out.extend(inner);
        out
    }

    proptest! {
        #[test]
        fn what_is_written_parses(inner in proptest::collection::vec(any::<u8>(), 14..200), ecn in 0u8..4, hash: u32, v6: bool) {
            let (source, remote): (IpAddr, IpAddr) = if v6 {
                ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
            } else {
                ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap())
            };
            let out = encapsulate(source, remote, &inner, ecn, hash);
            let frame = Frame::parse(&out[..out.len().min(WINDOW_BYTES)], out.len()).unwrap();
            prop_assert_eq!(frame.network, if v6 { Network::Ipv6 } else { Network::Ipv4 });
            prop_assert_eq!(frame.traffic_class, 46 << 2 | ecn);
            prop_assert_eq!(usize::from(frame.l3_offset) + frame.l3_bytes as usize, out.len());
            let (src_port, dst_port) = frame.key.ports().unwrap();
            prop_assert!(src_port >= FIRST_DYNAMIC_PORT);
            prop_assert_eq!(dst_port, UDP_PORT);
            let l4 = usize::from(frame.l4_offset);
            prop_assert_eq!(parse_vni(&out, l4 + UDP_BYTES), Some(0x00ab_cdef));
            prop_assert_eq!(&out[l4 + UDP_BYTES + VXLAN_BYTES..], &inner[..]);
            if let (IpAddr::V6(source), IpAddr::V6(remote)) = (source, remote) {
                let sum = checksum::pseudo_v6(source, remote, protocol::UDP, (out.len() - l4) as u32);
                prop_assert_eq!(checksum::fold(checksum::add(sum, &out[l4..])), 0);
            } else {
                prop_assert_eq!(&out[l4 + 6..l4 + 8], &[0, 0]);
            }
        }
    }

    #[test]
    fn a_device_that_sums_what_stands_there_comes_to_the_same_checksum() {
        let (source, remote) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let template = Template::new([2; 6], source, remote, 7, 64, 0).unwrap();
        for bytes in [14, 15, 60, 1500, 8999] {
            let inner: Vec<u8> = (0..bytes).map(|at: usize| (at * 7) as u8).collect();
            let written = |checksum| {
                let mut out = [0; V6_BYTES];
                let patch =
                    Patch { next_hop: [0; 6], inner_bytes: inner.len(), ecn: 1, flow_hash: 5, checksum };
                template.write_v6(&mut out, &patch);
                out
            };
            let unfinished = written(Checksum::Device);
            let by_device = checksum::udp_field(checksum::add(checksum::add(0, &unfinished[54..]), &inner));
            let by_us = written(Checksum::Sum(checksum::add(0, &inner)));
            assert_eq!(by_us[60..62], by_device.to_be_bytes(), "{bytes} bytes");
            assert_eq!((&by_us[..60], &by_us[62..]), (&unfinished[..60], &unfinished[62..]));
        }
    }

    #[test]
    fn reserved_bits_are_ignored_and_the_flag_is_not() {
        assert_eq!(parse_vni(&[0xff, 1, 2, 3, 0, 0, 100, 0xff], 0), Some(100));
        assert_eq!(parse_vni(&[0xf7, 0, 0, 0, 0, 0, 100, 0], 0), None);
        assert_eq!(parse_vni(&[8, 0, 0, 0, 0, 0, 100], 0), None);
    }

    #[test]
    fn families_must_agree() {
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(Template::new([0; 6], v4, v6, 1, 64, 0), None);
    }
}
