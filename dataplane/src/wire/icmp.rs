//! ICMP and ICMPv6 that the host originates: "packet too big" to a tenant, and answers to echo requests.

use super::frame::{Frame, Network};
use super::{ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, be16, bytes_at, checksum, ethertype, protocol, put};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ICMP type 3 code 4: fragmentation needed and DF set (RFC 792, RFC 1191).
const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMPv6 type 2: packet too big (RFC 4443, section 3.2).
const PACKET_TOO_BIG: u8 = 2;
/// ICMP echo request and reply.
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// ICMPv6 echo request and reply.
pub const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// The largest ICMP error, by RFC 1812 section 4.3.2.3.
const MAX_V4_BYTES: usize = 576;
/// The largest ICMPv6 error: the minimum IPv6 MTU.
const MAX_V6_BYTES: usize = 1280;
/// Bytes of an ICMP header.
const ICMP_BYTES: usize = 8;
/// TTL and hop limit of what is originated here.
const TTL: u8 = 64;

/// Room for the largest frame that [`packet_too_big`] writes.
pub const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + MAX_V6_BYTES;

/// Writes the error "packet too big, `mtu` bytes would fit" about `frame` into `out`, addressed to its sender.
///
/// `bytes` are the frame's first bytes. The error's source is the address that the tenant talked to: the host has no
/// address in the tenant's network, and stacks look only at the quoted packet. Returns the frame's length, or `None`
/// where there must be no error: about ICMP errors, fragments other than the first, multicast or what is not IP
/// (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
pub fn packet_too_big(
    bytes: &[u8],
    frame: &Frame,
    mtu: u16,
    gateway_mac: [u8; 6],
    out: &mut [u8; MAX_FRAME_BYTES],
) -> Option<usize> {
    let l3 = usize::from(frame.l3_offset);
    let packet = bytes.get(l3..bytes.len().min(l3 + frame.l3_bytes as usize))?;
    let later = frame.fragment == super::frame::Fragment::Later;
    let group = bytes.first()? & 1 != 0 || is_to_a_group(frame);
    if later || group || is_error(bytes, frame) {
        return None;
    }
    out[0..6].copy_from_slice(bytes.get(6..12)?);
    out[6..12].copy_from_slice(&gateway_mac);
    let length = match frame.network {
        Network::Ipv4 => too_big_v4(packet, mtu, out)?,
        Network::Ipv6 => too_big_v6(packet, mtu, out)?,
        Network::Other | Network::Arp => return None,
    };
    Some(length)
}

/// What the underlay says about packets that this host sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Where the packets went.
    pub remote: IpAddr,
    /// They were larger than the path takes, which is this many bytes of network packet; `None` where it is another error.
    pub mtu: Option<u16>,
}

/// The least MTU that is believed of an IPv4 path: what every host takes (RFC 791). Routers that tell none mean this too.
const LEAST_V4_MTU: u16 = 576;
/// The same of an IPv6 path (RFC 8201, section 4).
const LEAST_V6_MTU: u32 = 1280;

/// Reads an ICMP error about a UDP packet that the error's addressee sent, between ports (source, destination) of which
/// `is_ours` says that they can be a tunnel's. `bytes` are the first bytes of `frame`. The checksum is to be looked at still. `None`
/// where it is not such an error, or says of a packet that it was too large that was not.
pub fn read_complaint(bytes: &[u8], frame: &Frame, is_ours: impl Fn(u16, u16) -> bool) -> Option<Complaint> {
    if !is_error(bytes, frame) {
        return None;
    }
    let message = bytes.get(usize::from(frame.l4_offset)..)?;
    let (header, quoted) = message.split_first_chunk::<ICMP_BYTES>()?;
    let (remote, l4, length, mtu): (IpAddr, _, _, _) = match frame.key.ipv4() {
        Some((_, addressee)) => {
            let [source, remote] = [bytes_at(quoted, 12)?, bytes_at(quoted, 16)?].map(u32::from_be_bytes);
            let ours =
                *quoted.first()? == 0x45 && quoted.get(9) == Some(&protocol::UDP) && source == addressee;
            let too_big = header[..2] == [DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED];
            let mtu = u16::from_be_bytes([header[6], header[7]]).max(LEAST_V4_MTU);
            let l4 = ours.then_some(IPV4_BYTES)?;
            (Ipv4Addr::from(remote).into(), l4, usize::from(be16(quoted, 2)?), too_big.then_some(mtu))
        }
        None => {
            let (_, addressee) = frame.key.ipv6()?;
            let [source, remote] = [bytes_at(quoted, 8)?, bytes_at(quoted, 24)?].map(u128::from_be_bytes);
            let ours =
                quoted.first()? >> 4 == 6 && quoted.get(6) == Some(&protocol::UDP) && source == addressee;
            let mtu = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let mtu = u16::try_from(mtu.max(LEAST_V6_MTU)).unwrap_or(u16::MAX);
            let l4 = ours.then_some(IPV6_BYTES)?;
            let length = IPV6_BYTES + usize::from(be16(quoted, 4)?);
            (Ipv6Addr::from(remote).into(), l4, length, (header[0] == PACKET_TOO_BIG).then_some(mtu))
        }
    };
    let plausible = mtu.is_none_or(|mtu| length > usize::from(mtu));
    (plausible && is_ours(be16(quoted, l4)?, be16(quoted, l4 + 2)?)).then_some(Complaint { remote, mtu })
}

/// To a multicast or broadcast address, which the error could not have as its source.
fn is_to_a_group(frame: &Frame) -> bool {
    frame.key.ipv4().is_some_and(|(_, dst)| dst >> 28 == 0xe || dst == u32::MAX)
        || frame.key.ipv6().is_some_and(|(_, dst)| dst >> 120 == 0xff)
}

/// An ICMP message that is itself an error: there is no error about an error.
fn is_error(bytes: &[u8], frame: &Frame) -> bool {
    let kind = bytes.get(usize::from(frame.l4_offset)).copied().unwrap_or(0);
    match frame.key.proto() {
        protocol::ICMP => frame.network == Network::Ipv4 && matches!(kind, 3 | 4 | 5 | 11 | 12),
        protocol::ICMPV6 => frame.network == Network::Ipv6 && kind < 128,
        _ => false,
    }
}

fn too_big_v4(packet: &[u8], mtu: u16, out: &mut [u8; MAX_FRAME_BYTES]) -> Option<usize> {
    let quoted = packet.len().min(MAX_V4_BYTES - IPV4_BYTES - ICMP_BYTES);
    let total = IPV4_BYTES + ICMP_BYTES + quoted;
    let frame = out.get_mut(..ETHERNET_BYTES + total)?;
    frame[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
    let (header, message) = frame[ETHERNET_BYTES..].split_at_mut(IPV4_BYTES);
    header.fill(0);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    header[8] = TTL;
    header[9] = protocol::ICMP;
    header[12..16].copy_from_slice(packet.get(16..20)?);
    header[16..20].copy_from_slice(packet.get(12..16)?);
    let sum = checksum::of(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    message[..ICMP_BYTES].fill(0);
    message[0] = DESTINATION_UNREACHABLE;
    message[1] = FRAGMENTATION_NEEDED;
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message[ICMP_BYTES..].copy_from_slice(&packet[..quoted]);
    let sum = checksum::of(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(ETHERNET_BYTES + total)
}

fn too_big_v6(packet: &[u8], mtu: u16, out: &mut [u8; MAX_FRAME_BYTES]) -> Option<usize> {
    let quoted = packet.len().min(MAX_V6_BYTES - IPV6_BYTES - ICMP_BYTES);
    let payload = ICMP_BYTES + quoted;
    let frame = out.get_mut(..ETHERNET_BYTES + IPV6_BYTES + payload)?;
    frame[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
    let (header, message) = frame[ETHERNET_BYTES..].split_at_mut(IPV6_BYTES);
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    header[6] = protocol::ICMPV6;
    header[7] = TTL;
    header[8..24].copy_from_slice(packet.get(24..40)?);
    header[24..40].copy_from_slice(packet.get(8..24)?);
    message[..ICMP_BYTES].fill(0);
    message[0] = PACKET_TOO_BIG;
    message[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
    message[ICMP_BYTES..].copy_from_slice(&packet[..quoted]);
    let src = Ipv6Addr::from(bytes_at::<16>(header, 8)?);
    let dst = Ipv6Addr::from(bytes_at::<16>(header, 24)?);
    let sum = checksum::add(checksum::pseudo_v6(src, dst, protocol::ICMPV6, payload as u32), message);
    message[2..4].copy_from_slice(&checksum::fold(sum).to_be_bytes());
    Some(ETHERNET_BYTES + IPV6_BYTES + payload)
}

/// Turns an echo request into its reply, in place: MACs and addresses change sides, the type changes, and the
/// checksum is updated by the difference (so that a wrong one stays wrong). False, and nothing changed, where
/// `frame` is not an unfragmented echo request.
pub fn answer_echo(bytes: &mut [u8], frame: &Frame) -> bool {
    let (l3, l4) = (usize::from(frame.l3_offset), usize::from(frame.l4_offset));
    let (proto, request, reply, addresses, width) = match frame.network {
        Network::Ipv4 => (protocol::ICMP, ECHO, ECHO_REPLY, l3 + 12, 4),
        Network::Ipv6 => (protocol::ICMPV6, ECHO_V6, ECHO_REPLY_V6, l3 + 8, 16),
        Network::Other | Network::Arp => return false,
    };
    let whole = frame.fragment == super::frame::Fragment::Whole;
    if !whole || l4 == 0 || frame.key.proto() != proto || be16(bytes, l4) != Some(u16::from(request) << 8) {
        return false;
    }
    let Some(field) = be16(bytes, l4 + 2) else { return false };
    let Some(macs) = bytes.get_mut(..12) else { return false };
    macs.rotate_left(6);
    let Some(pair) = bytes.get_mut(addresses..addresses + 2 * width) else { return false };
    pair.rotate_left(width);
    if !renew_ttl(bytes, frame.network, l3) {
        return false;
    }
    let field = checksum::update(field, u16::from(request) << 8, u16::from(reply) << 8);
    put(bytes, l4, [reply, 0]) && put(bytes, l4 + 2, field.to_be_bytes())
}

/// A reply starts its own way: the hops that the request had left say nothing about the way back.
fn renew_ttl(bytes: &mut [u8], network: Network, l3: usize) -> bool {
    if network == Network::Ipv6 {
        return put(bytes, l3 + 7, [TTL]);
    }
    let (Some([old, proto]), Some(field)) = (bytes_at::<2>(bytes, l3 + 8), be16(bytes, l3 + 10)) else {
        return false;
    };
    let word = |ttl| u16::from_be_bytes([ttl, proto]);
    let field = checksum::update(field, word(old), word(TTL));
    put(bytes, l3 + 8, [TTL]) && put(bytes, l3 + 10, field.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice};

    fn parse(bytes: &[u8]) -> Frame {
        Frame::parse(&bytes[..bytes.len().min(256)], bytes.len()).unwrap()
    }

    fn tcp(v6: bool, bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let builder = if v6 {
            builder.ipv6([1; 16], [2; 16], 64)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        builder.tcp(1, 2, 3, 4).write(&mut out, &vec![7; bytes]).unwrap();
        out
    }

    #[test]
    fn too_big_is_what_another_parser_expects() {
        for v6 in [false, true] {
            let bytes = tcp(v6, 1460);
            let mut out = [0; MAX_FRAME_BYTES];
            let length =
                packet_too_big(&bytes, &parse(&bytes), 1400, [2, 0, 0, 0, 0, 0xfe], &mut out).unwrap();
            let sliced = SlicedPacket::from_ethernet(&out[..length]).unwrap();
            match sliced.transport.unwrap() {
                TransportSlice::Icmpv4(icmp) => {
                    assert!(
                        matches!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(header) if format!("{header:?}").contains("1400"))
                    );
                    assert_eq!(checksum::of(icmp.slice()), 0);
                    assert_eq!(&icmp.payload()[..20], &bytes[14..34]);
                }
                TransportSlice::Icmpv6(icmp) => {
                    assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1400 });
                    assert!(icmp.is_checksum_valid([2; 16], [1; 16]));
                    assert_eq!(&icmp.payload()[..40], &bytes[14..54]);
                }
                other => panic!("not ICMP: {other:?}"),
            }
        }
    }

    #[test]
    fn no_error_about_errors_and_groups() {
        let bytes = tcp(false, 1460);
        let mut out = [0; MAX_FRAME_BYTES];
        let length = packet_too_big(&bytes, &parse(&bytes), 1400, [2; 6], &mut out).unwrap();
        let error = out[..length].to_vec();
        assert_eq!(packet_too_big(&error, &parse(&error), 100, [2; 6], &mut out), None);
        let mut group = bytes.clone();
        group[0] = 1;
        assert_eq!(packet_too_big(&group, &parse(&group), 1400, [2; 6], &mut out), None);
        let to_a_group = |v6: bool| {
            let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
            let builder = match v6 {
                true => builder.ipv6([1; 16], [0xff; 16], 64),
                false => builder.ipv4([10, 0, 0, 1], [224, 0, 0, 1], 64),
            };
            let mut out = Vec::new();
            builder.udp(1, 2).write(&mut out, &[7; 1460]).unwrap();
            out
        };
        for group in [to_a_group(false), to_a_group(true)] {
            assert_eq!(packet_too_big(&group, &parse(&group), 1400, [2; 6], &mut out), None);
        }
    }

    #[test]
    fn echo_is_answered_with_a_right_checksum() {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 3)
            .icmpv4_echo_request(7, 9)
            .write(&mut bytes, b"payload")
            .unwrap();
        let frame = parse(&bytes);
        assert!(answer_echo(&mut bytes, &frame));
        let frame = parse(&bytes);
        assert_eq!(frame.key.ipv4(), Some((0x0a00_0002, 0x0a00_0001)));
        assert_eq!(checksum::of(&bytes[34..]), 0);
        assert_eq!((bytes[34], bytes[22]), (ECHO_REPLY, TTL), "the reply has a way of its own before it");
        assert!(!answer_echo(&mut bytes, &frame));
    }
}
