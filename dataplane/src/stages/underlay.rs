//! Admission of what an uplink receives: outer headers, the host's own ARP, ND and echo, and the tunnel's header.

use super::admit::{answer, answer_echo, make_contiguous};
use super::parcel::{Meta, Verdict, Words};
use crate::control::notice::{Notice, Notices};
use crate::counters::DropReason;
use crate::flows::key::{FlowKey, Scope, Seed};
use crate::flows::shape::{self, Ends, Shape};
use crate::rules::pattern::ingress_words;
use crate::rules::rule::Opaque;
use crate::snapshot::{OWN_IPV4, PortEntry, UplinkEntry};
use crate::wire::frame::{Fragment, Frame, Network, WINDOW_BYTES};
use crate::wire::icmp::{self, Complaint};
use crate::wire::vxlan::{V4_BYTES, V6_BYTES, VXLAN_BYTES};
use crate::wire::{self, IPV4_BYTES, UDP_BYTES, arp, be16, checksum, le64, nd, protocol, vxlan};
use forebay_sriov::Packet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How much of a tunnelled packet is made contiguous: the window of the inner frame behind the outer headers (an outer
/// IPv4 header may have 40 bytes of options, and four tags may precede it).
const TUNNEL_WINDOW_BYTES: usize = WINDOW_BYTES + 128;

/// Admits what uplinks receive.
pub struct Underlay {
    notices: Notices,
}

impl Underlay {
    /// Reports to the control side what neighbours say.
    pub fn new(notices: Notices) -> Underlay {
        Underlay { notices }
    }

    /// Decides about one packet of an uplink: of what comes through a tunnel, rules are to decide by `words`.
    #[inline]
    pub(super) fn admit(
        &mut self,
        port: &PortEntry,
        uplink: &UplinkEntry,
        packet: &mut Packet,
        meta: &mut Meta,
        words: &mut Words,
    ) {
        let outer = match outer_frame(port, packet) {
            Ok(outer) => outer,
            Err(reason) => {
                meta.verdict = Verdict::Drop(reason);
                return;
            }
        };
        meta.layout = outer.layout;
        let local = addresses(&outer).is_some_and(|(_, dst)| uplink.answers_for(dst));
        if is_own(port, &outer) && local && is_vxlan(&outer) {
            if let Err(reason) = open_tunnel(packet, meta, &outer, port, words) {
                meta.verdict = Verdict::Drop(reason);
            }
            return;
        }
        meta.verdict = self.admit_other(port, uplink, packet, meta, (&outer, local));
    }

    #[cold]
    #[inline(never)]
    fn admit_other(
        &mut self,
        port: &PortEntry,
        uplink: &UplinkEntry,
        packet: &mut Packet,
        meta: &mut Meta,
        (frame, local): (&Frame, bool),
    ) -> Verdict {
        match frame.network {
            Network::Arp => return self.admit_arp(port, uplink, packet, meta),
            Network::Ipv6 if frame.key.proto() == protocol::ICMPV6 => {
                let kind = packet.data().get(usize::from(frame.l4_offset)).copied().unwrap_or(0);
                if matches!(kind, nd::SOLICITATION | nd::ADVERTISEMENT) && frame.l4_offset != 0 {
                    return self.admit_nd(port, uplink, packet, meta, frame);
                }
            }
            Network::Other => return Verdict::Drop(DropReason::NotLocal),
            Network::Ipv4 | Network::Ipv6 => {}
        }
        if !is_own(port, frame) || !local {
            return Verdict::Drop(DropReason::NotLocal);
        }
        if frame.fragment != Fragment::Whole {
            return Verdict::Drop(DropReason::OuterFragment);
        }
        if let Some(complaint) = icmp::read_complaint(packet.data(), frame, vxlan::is_ours)
            && icmp_checksum_is_right(packet, frame)
        {
            let Complaint { remote, mtu } = complaint;
            if let Some(mtu) = mtu.filter(|mtu| *mtu < port.mtu) {
                self.notices.tell(Notice::TooBig { remote, mtu });
            }
            return Verdict::Local;
        }
        // An echo reply must not be larger than the question, nor go to a group.
        let answerable = addresses(frame).is_some_and(|(src, _)| is_host(src));
        if answerable && let Some(verdict) = answer_echo(packet, frame) {
            return verdict;
        }
        Verdict::Drop(DropReason::UnknownTunnel)
    }

    fn admit_arp(
        &mut self,
        port: &PortEntry,
        uplink: &UplinkEntry,
        packet: &mut Packet,
        meta: &Meta,
    ) -> Verdict {
        let Some(arp) = arp::Arp::parse(packet.data(), usize::from(meta.layout.l3_offset)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        if wire::is_multicast_mac(arp.sender_mac) || arp.sender_mac == port.mac {
            return Verdict::Drop(DropReason::Malformed);
        }
        if !arp.sender_ip.is_unspecified() {
            self.notices.tell(Notice::Seen {
                uplink: port.id,
                address: IpAddr::V4(arp.sender_ip),
                mac: arp.sender_mac,
            });
        }
        if arp.operation == arp::REQUEST && uplink.answers_for(IpAddr::V4(arp.target_ip)) {
            return answer(packet, meta, &arp.answer(port.mac).frame(port.mac, arp.sender_mac));
        }
        Verdict::Local
    }

    fn admit_nd(
        &mut self,
        port: &PortEntry,
        uplink: &UplinkEntry,
        packet: &mut Packet,
        meta: &Meta,
        frame: &Frame,
    ) -> Verdict {
        let (l3, l4) = (usize::from(frame.l3_offset), usize::from(frame.l4_offset));
        let end = l3 + frame.l3_bytes as usize;
        let Some(neighbor) = nd::Neighbor::parse(packet.data(), l3, l4, end) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let (address, is_question) = match neighbor.kind {
            nd::SOLICITATION => (neighbor.src, uplink.answers_for(IpAddr::V6(neighbor.target))),
            _ => (neighbor.target, false),
        };
        if let Some(mac) = neighbor.link_layer
            && !wire::is_multicast_mac(mac)
            && !address.is_unspecified()
        {
            self.notices.tell(Notice::Seen { uplink: port.id, address: IpAddr::V6(address), mac });
        }
        if !is_question {
            return Verdict::Local;
        }
        let mut reply = neighbor.answer(port.mac);
        let mut to = wire::mac_from_bits(frame.key.src_mac());
        if neighbor.src.is_unspecified() {
            // Duplicate address detection: the answer goes to all nodes (RFC 4861, section 7.2.4).
            reply.dst = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            reply.solicited = false;
            to = nd::multicast_mac(reply.dst);
        }
        answer(packet, meta, &reply.frame(port.mac, to))
    }
}

/// The outer frame of what an uplink received, if it can be for this host or for a group.
#[inline(always)]
fn outer_frame(port: &PortEntry, packet: &mut Packet) -> Result<Frame, DropReason> {
    if !make_contiguous(packet, TUNNEL_WINDOW_BYTES) {
        return Err(DropReason::NoBuffer);
    }
    let length = packet.len();
    let window = packet.data();
    let outer =
        Frame::parse(&window[..window.len().min(WINDOW_BYTES)], length).map_err(|_| DropReason::Malformed)?;
    if outer.key.src_mac() >> 40 & 1 != 0 {
        // No station has such an address; an answer to it would go to a group.
        return Err(DropReason::Malformed);
    }
    let group = outer.key.dst_mac() >> 40 & 1 != 0;
    if outer.vlan_tags != 0 || !(is_own(port, &outer) || group) {
        return Err(DropReason::NotLocal);
    }
    Ok(outer)
}

/// Addressed to the uplink's MAC.
#[inline(always)]
fn is_own(port: &PortEntry, outer: &Frame) -> bool {
    outer.key.dst_mac() == wire::mac_bits(port.mac)
}

/// Admits a packet that has a key: one that [`write_key`] found to come through a tunnel.
pub(super) fn admit_flow(
    port: &PortEntry,
    uplink: &UplinkEntry,
    packet: &mut Packet,
    meta: &mut Meta,
    words: &mut Words,
) {
    let opened = outer_frame(port, packet).and_then(|outer| {
        let local = addresses(&outer).is_some_and(|(_, dst)| uplink.answers_for(dst));
        if !local {
            return Err(DropReason::NotLocal);
        }
        open_tunnel(packet, meta, &outer, port, words)
    });
    if let Err(reason) = opened {
        meta.verdict = Verdict::Drop(reason);
    }
}

/// An uplink, and the generation of the tables that decide about its packets.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    port: &'a PortEntry,
    uplink: &'a UplinkEntry,
    generation: u32,
    /// Its MAC and its IPv4 address as they stand in a packet, and whether it has one.
    mac: u64,
    ipv4: Option<u32>,
}

impl<'a> Side<'a> {
    pub fn new(port: &'a PortEntry, uplink: &'a UplinkEntry, generation: u32) -> Side<'a> {
        let [a, b, c, d, e, f] = port.mac;
        let mac = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let ipv4 = uplink.ipv4.map(|address| u32::from_le_bytes(address.octets()));
        Side { port, uplink, generation, mac, ipv4 }
    }
}

/// Bit of a word of six bytes of MAC and two of the next one: that one is a group's.
const FROM_A_GROUP: u64 = 1 << 48;

/// Writes the key of what came through a VXLAN to the uplink's own address over IPv4, with IPv4 inside, where the outer and
/// the inner packet are of a plain shape, nothing stands behind the datagram and it has no checksum.
#[inline(always)]
pub(super) fn write_key_v4(side: Side<'_>, packet: &Packet, key: &mut FlowKey, seed: Seed) -> bool {
    let (bytes, length) = (packet.data(), packet.len());
    let Some((head, inner)) = bytes.split_first_chunk::<V4_BYTES>() else { return false };
    let word = |at| le64(head, at);
    let (macs, outer) = (word(0), [word(8), word(16), word(24), word(32)]);
    let [_, w2, w3, w4] = outer;
    let inner_bytes = length.wrapping_sub(V4_BYTES);
    let udp_bytes = (inner_bytes + UDP_BYTES + VXLAN_BYTES) as u16;
    let ours = macs & 0xffff_ffff_ffff == side.mac && macs & FROM_A_GROUP == 0;
    if !ours || shape::whole_ipv4_bytes(outer) != Some(udp_bytes.wrapping_add(IPV4_BYTES as u16)) {
        return false;
    }
    // Destination port, length, and no checksum.
    let udp = u64::from(vxlan::UDP_PORT.swap_bytes()) | u64::from(udp_bytes.swap_bytes()) << 16;
    let (is_udp, header) = ((w2 >> 56) as u8 == protocol::UDP, word(42));
    let destination = (w3 >> 48) as u32 | (w4 as u32) << 16;
    if !is_udp
        || word(34) >> 16 != udp
        || header & u64::from(vxlan::FLAG_VNI) == 0
        || side.ipv4 != Some(destination)
    {
        return false;
    }
    let vni = (header >> 32) as u32 & 0x00ff_ffff;
    let scope = Scope::vxlan_v4(side.port.id.0, vni, OWN_IPV4, (w3 >> 16) as u32, side.generation);
    match Shape::of_v4(inner, inner_bytes) {
        Some(shape) if !shape.is_from_a_group() => {
            shape.write_key(scope, seed, key);
            true
        }
        _ => false,
    }
}

/// As [`write_key_v4`], for whatever has a plain shape outside and inside.
#[inline(never)]
pub(super) fn write_key(side: Side<'_>, packet: &Packet, key: &mut FlowKey, seed: Seed) -> bool {
    let outer = Shape::of(packet.data(), packet.len());
    let Some((scope, inner_offset)) = outer.and_then(|outer| tunnel_of(side, &outer, packet)) else {
        return false;
    };
    let inner_bytes = packet.len().saturating_sub(inner_offset);
    let inner = packet.data().get(inner_offset..).and_then(|inner| Shape::of(inner, inner_bytes));
    let Some(inner) = inner.filter(|inner| !inner.is_from_a_group()) else { return false };
    inner.write_key(scope, seed, key);
    true
}

/// The tunnel that a packet came through, and where the inner frame begins.
#[inline(always)]
fn tunnel_of(side: Side<'_>, outer: &Shape, packet: &Packet) -> Option<(Scope, usize)> {
    let Side { port, uplink, generation, .. } = side;
    let (bytes, length) = (packet.data(), packet.len());
    if !outer.is_to(port.mac) || outer.is_from_a_group() {
        return None;
    }
    let ends = outer.ends();
    let inner_offset = match ends {
        Ends::V4(..) => V4_BYTES,
        Ends::V6(..) => V6_BYTES,
    };
    let l4 = inner_offset - UDP_BYTES - VXLAN_BYTES;
    let header = bytes.get(l4..)?.first_chunk::<{ UDP_BYTES + VXLAN_BYTES }>()?;
    let udp_bytes = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let vxlan_port = u16::from_be_bytes([header[2], header[3]]) == vxlan::UDP_PORT;
    // Bytes behind the datagram have to be cut off first, which the full way does.
    if !(outer.is_udp() && vxlan_port && header[8] & vxlan::FLAG_VNI != 0 && l4 + udp_bytes == length) {
        return None;
    }
    let covered = header[6] | header[7] != 0;
    if covered && !covered_bytes_are_right(packet, ends, l4) {
        return None;
    }
    let vni = u32::from_le_bytes([header[12], header[13], header[14], 0]);
    let scope = match ends {
        Ends::V4(source, local) => {
            let local = uplink.local_v4(local.swap_bytes())?;
            Scope::vxlan_v4(port.id.0, vni, local, source, generation)
        }
        Ends::V6(source, [first, second]) => {
            let local = u128::from(first.swap_bytes()) << 64 | u128::from(second.swap_bytes());
            Scope::vxlan_v6(port.id.0, vni, uplink.local_v6(local)?, source, generation)
        }
    };
    Some((scope, inner_offset))
}

/// Whether the UDP checksum, which is not zero, is right. Only of a packet in one piece: else the full way finds out.
#[inline(never)]
fn covered_bytes_are_right(packet: &Packet, ends: Ends, l4: usize) -> bool {
    let bytes = packet.data();
    let whole = bytes.len() == packet.len();
    whole
        && bytes.get(l4..).is_some_and(|datagram| {
            let pseudo = ends.sum() + u64::from(protocol::UDP) + datagram.len() as u64;
            checksum::fold(checksum::add(pseudo, datagram)) == 0
        })
}

#[inline(always)]
fn addresses(frame: &Frame) -> Option<(IpAddr, IpAddr)> {
    if let Some((src, dst)) = frame.key.ipv4() {
        return Some((IpAddr::V4(Ipv4Addr::from(src)), IpAddr::V4(Ipv4Addr::from(dst))));
    }
    let (src, dst) = frame.key.ipv6()?;
    Some((IpAddr::V6(Ipv6Addr::from(src)), IpAddr::V6(Ipv6Addr::from(dst))))
}

/// An address that one host can have: packets from any other are not believed.
#[inline(always)]
fn is_host(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

#[inline(always)]
fn is_vxlan(outer: &Frame) -> bool {
    outer.fragment == Fragment::Whole
        && outer.key.proto() == protocol::UDP
        && outer.key.ports().is_some_and(|(_, dst)| dst == vxlan::UDP_PORT)
}

/// Looks behind the outer headers: fills in the inner frame and the words of the ingress rules.
#[inline(always)]
fn open_tunnel(
    packet: &mut Packet,
    meta: &mut Meta,
    outer: &Frame,
    port: &PortEntry,
    words: &mut Words,
) -> Result<(), DropReason> {
    if !addresses(outer).is_some_and(|(src, _)| is_host(src)) {
        return Err(DropReason::Malformed);
    }
    let l4 = usize::from(outer.l4_offset);
    let udp_bytes = usize::from(be16(packet.data(), l4 + 4).unwrap_or(0));
    if be16(packet.data(), l4 + 6) != Some(0) && !udp_checksum_is_right(packet, outer, l4, udp_bytes) {
        return Err(DropReason::Malformed);
    }
    // Ethernet padding, or whatever stands behind the datagram, is not the tenant's.
    packet.truncate(l4 + udp_bytes);
    let window = packet.data();
    let vni = vxlan::parse_vni(window, l4 + UDP_BYTES).ok_or(DropReason::Malformed)?;
    let inner_offset = l4 + UDP_BYTES + VXLAN_BYTES;
    let inner_bytes = (l4 + udp_bytes).checked_sub(inner_offset).ok_or(DropReason::Malformed)?;
    let inner = window.get(inner_offset..).ok_or(DropReason::Malformed)?;
    let inner = Frame::parse(&inner[..inner.len().min(WINDOW_BYTES)], inner_bytes)
        .map_err(|_| DropReason::Malformed)?;
    if inner.key.src_mac() >> 40 & 1 != 0 {
        return Err(DropReason::Malformed);
    }
    meta.inner_offset = inner_offset as u16;
    meta.outer_ecn = outer.traffic_class & 3;
    *words = ingress_words(&inner.key, &outer.key, Opaque::Vxlan(vni), port.id.0);
    meta.set_flow(&inner);
    Ok(())
}

/// The UDP checksum over the datagram.
#[cold]
#[inline(never)]
fn udp_checksum_is_right(packet: &Packet, outer: &Frame, l4: usize, udp_bytes: usize) -> bool {
    let pseudo = match addresses(outer) {
        Some((IpAddr::V4(src), IpAddr::V4(dst))) => {
            checksum::pseudo_v4(src, dst, protocol::UDP, udp_bytes as u16)
        }
        Some((IpAddr::V6(src), IpAddr::V6(dst))) => {
            checksum::pseudo_v6(src, dst, protocol::UDP, udp_bytes as u32)
        }
        _ => return false,
    };
    sum_is_right(packet, pseudo, l4, udp_bytes)
}

/// The ICMP checksum over the message.
fn icmp_checksum_is_right(packet: &Packet, frame: &Frame) -> bool {
    let l4 = usize::from(frame.l4_offset);
    let bytes = (usize::from(frame.l3_offset) + frame.l3_bytes as usize).saturating_sub(l4);
    let pseudo = match addresses(frame) {
        Some((IpAddr::V6(src), IpAddr::V6(dst))) => {
            checksum::pseudo_v6(src, dst, protocol::ICMPV6, bytes as u32)
        }
        _ => 0,
    };
    sum_is_right(packet, pseudo, l4, bytes)
}

/// Whether `count` bytes from `from` on, of all segments, sum up with `sum` to what a right checksum makes of them.
fn sum_is_right(packet: &Packet, sum: u64, from: usize, count: usize) -> bool {
    let mut sum = checksum::Segments::new(sum);
    let (mut skip, mut left) = (from, count);
    for segment in packet.segments() {
        let from = skip.min(segment.len());
        let until = (from + left).min(segment.len());
        sum.add(&segment[from..until]);
        skip -= from;
        left -= until - from;
    }
    left == 0 && checksum::fold(sum.sum()) == 0
}
