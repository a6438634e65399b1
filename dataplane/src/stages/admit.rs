//! Second stage: is the packet sound, and is its sender who it says it is? Answers what the host answers itself.
//!
//! Packets of known flows have been decided about by now. From a VF, in this order: headers; source MAC; ARP and ND (with
//! the addresses that they claim); DHCP where trapped; source address; broadcast and the configured traps. From an uplink:
//! see [`super::underlay`].

use super::parcel::{Meta, Parcels, Parts, Verdict, Words};
use super::underlay::Underlay;
use crate::control::notice::Notices;
use crate::counters::DropReason;
use crate::rules::key::KEY_WORDS;
use crate::snapshot::{PortEntry, PortRole, Snapshot, VfEntry};
use crate::wire::frame::{Frame, Network, WINDOW_BYTES};
use crate::wire::{self, arp, icmp, nd, protocol};
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::stage::Stage;
use forebay_sriov::Packet;
use std::net::Ipv6Addr;

/// The second stage.
pub struct Admit {
    snapshot: Subscriber<Snapshot>,
    underlay: Underlay,
}

impl Admit {
    /// A stage that reports to the control side what neighbours say.
    pub fn new(snapshot: Subscriber<Snapshot>, notices: Notices) -> Admit {
        Admit { snapshot, underlay: Underlay::new(notices) }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        self.snapshot.refresh();
    }
}

impl Stage<Parcels> for Admit {
    const NAME: &'static str = "admit";

    #[inline(never)]
    fn process(&mut self, burst: &mut Parcels) {
        let Admit { snapshot, underlay } = self;
        burst.may_learn &= snapshot.version() >= burst.keyed_by;
        let snapshot = snapshot.current();
        let mut admitted = 0;
        let keyed = burst.keyed;
        let Parts { packets, metas, keys, words, .. } = burst.parts();
        let mut bit = 1u64;
        let places = packets.iter_mut().zip(metas.iter_mut()).zip(keys.iter().zip(words.iter_mut()));
        for ((packet, meta), (key, words)) in places {
            let here = bit;
            bit <<= 1;
            if meta.verdict != Verdict::Open {
                continue;
            }
            let Some(port) = snapshot.port(meta.port) else {
                meta.verdict = Verdict::Drop(DropReason::PortDown);
                continue;
            };
            match &port.role {
                PortRole::Vf(vf) if keyed & here != 0 => {
                    let frame = Frame { key: key.fields(), layout: meta.layout };
                    admit_frame(port, vf, packet, meta, (&frame, words));
                }
                PortRole::Vf(vf) => admit_vf(port, vf, packet, meta, words),
                PortRole::Uplink(uplink) if keyed & here != 0 => {
                    super::underlay::admit_flow(port, uplink, packet, meta, words);
                }
                PortRole::Uplink(uplink) => underlay.admit(port, uplink, packet, meta, words),
            }
            if meta.verdict == Verdict::Open {
                admitted |= here;
            }
        }
        burst.admitted = admitted;
    }
}

/// Makes the first `bytes` bytes contiguous, as far as the packet has them; false where it cannot be done.
#[inline(always)]
pub(super) fn make_contiguous(packet: &mut Packet, bytes: usize) -> bool {
    let wanted = packet.len().min(bytes);
    packet.data().len() >= wanted || packet.pull_up(wanted)
}

/// Puts a frame that the host made in the packet's place.
pub(super) fn replace(packet: &mut Packet, frame: &[u8]) -> bool {
    packet.truncate(0);
    match packet.append(frame.len()) {
        Some(room) => {
            room.copy_from_slice(frame);
            true
        }
        None => false,
    }
}

#[inline(never)]
fn admit_vf(port: &PortEntry, vf: &VfEntry, packet: &mut Packet, meta: &mut Meta, words: &mut Words) {
    if !make_contiguous(packet, WINDOW_BYTES) {
        meta.verdict = Verdict::Drop(DropReason::NoBuffer);
        return;
    }
    let length = packet.len();
    let window = packet.data();
    let Ok(frame) = Frame::parse(&window[..window.len().min(WINDOW_BYTES)], length) else {
        meta.verdict = Verdict::Drop(DropReason::Malformed);
        return;
    };
    admit_frame(port, vf, packet, meta, (&frame, words));
}

/// As [`admit_vf`], where the frame is known to be sound.
#[inline(always)]
fn admit_frame(
    port: &PortEntry,
    vf: &VfEntry,
    packet: &mut Packet,
    meta: &mut Meta,
    (frame, words): (&Frame, &mut Words),
) {
    meta.set_flow(frame);
    words[..KEY_WORDS].copy_from_slice(&frame.key.0);
    if frame.key.src_mac() != wire::mac_bits(port.mac) {
        meta.verdict = Verdict::Drop(DropReason::SourceMac);
        return;
    }
    let allowed = match frame.network {
        Network::Ipv4 => frame.key.ipv4().is_some_and(|(src, _)| vf.sources.allow_v4(src)),
        Network::Ipv6 => frame.key.ipv6().is_some_and(|(src, _)| vf.sources.allow_v6(src)),
        Network::Other | Network::Arp => true,
    };
    if allowed && !is_special(frame, vf) {
        return;
    }
    admit_special(port, vf, packet, meta, (frame, allowed));
}

/// Not the ordinary unicast packet between hosts.
#[inline(always)]
fn is_special(frame: &Frame, vf: &VfEntry) -> bool {
    let group = frame.key.dst_mac() >> 40 & 1 != 0;
    let proto = frame.key.proto();
    group || frame.network == Network::Arp || proto == protocol::ICMPV6 || (vf.traps.dhcp && is_dhcp(frame))
}

/// What goes to a DHCP server (RFC 2131, RFC 8415): its sender may have no address yet.
fn is_dhcp(frame: &Frame) -> bool {
    let server = match frame.network {
        Network::Ipv4 => 67,
        Network::Ipv6 => 547,
        Network::Other | Network::Arp => return false,
    };
    frame.key.proto() == protocol::UDP && frame.key.ports().is_some_and(|(_, dst)| dst == server)
}

#[cold]
#[inline(never)]
fn admit_special(
    port: &PortEntry,
    vf: &VfEntry,
    packet: &mut Packet,
    meta: &mut Meta,
    (frame, allowed): (&Frame, bool),
) {
    if frame.network == Network::Arp {
        meta.verdict = admit_arp(port, vf, packet, meta);
        return;
    }
    if is_nd(frame, packet.data()) {
        meta.verdict = admit_nd(port, vf, packet, meta, frame);
        return;
    }
    let unspecified = frame.key.ipv4().is_some_and(|(src, _)| src == 0);
    let link_local = frame.key.ipv6().is_some_and(|(src, _)| is_link_local(src));
    if is_dhcp(frame) && (allowed || unspecified || link_local) {
        let broadcast = frame.key.dst_mac() == wire::mac_bits(wire::BROADCAST_MAC);
        meta.trap_by_default = vf.traps.dhcp || broadcast;
        if meta.trap_by_default {
            return;
        }
    }
    let unnumbered = allowed || link_local || frame.key.ipv6().is_some_and(|(src, _)| src == 0);
    if vf.traps.igmp && is_membership(frame, packet.data()) && unnumbered {
        meta.trap_by_default = true;
        return;
    }
    if !allowed {
        meta.verdict = Verdict::Drop(DropReason::SourceIp);
        return;
    }
    meta.trap_by_default = is_trapped(frame, vf);
}

/// Broadcast always; the rest as configured.
fn is_trapped(frame: &Frame, vf: &VfEntry) -> bool {
    let dst = frame.key.dst_mac();
    let group = dst >> 40 & 1 != 0;
    // 01:80:c2:00:00:00 to 0f: IEEE 802.1D, table 7-10.
    let link_control = dst & 0xffff_ffff_fff0 == 0x0180_c200_0000;
    dst == wire::mac_bits(wire::BROADCAST_MAC)
        || (group && vf.traps.multicast)
        || (link_control && vf.traps.lldp)
}

/// IGMP, or MLD: ICMPv6 types 130 to 132 (RFC 2710) and 143 (RFC 3810).
fn is_membership(frame: &Frame, window: &[u8]) -> bool {
    let kind = window.get(usize::from(frame.l4_offset)).copied().unwrap_or(0);
    let mld = frame.l4_offset != 0 && matches!(kind, 130..=132 | 143);
    match frame.network {
        Network::Ipv4 => frame.key.proto() == protocol::IGMP,
        Network::Ipv6 => frame.key.proto() == protocol::ICMPV6 && mld,
        Network::Other | Network::Arp => false,
    }
}

fn is_link_local(address: u128) -> bool {
    address >> 118 == 0xfe80 >> 6
}

/// One of the five messages of RFC 4861.
fn is_nd(frame: &Frame, window: &[u8]) -> bool {
    frame.network == Network::Ipv6
        && frame.key.proto() == protocol::ICMPV6
        && window.get(usize::from(frame.l4_offset)).is_some_and(|kind| {
            frame.l4_offset != 0 && (nd::ROUTER_SOLICITATION..=nd::REDIRECT).contains(kind)
        })
}

fn admit_arp(port: &PortEntry, vf: &VfEntry, packet: &mut Packet, meta: &mut Meta) -> Verdict {
    let Some(arp) = arp::Arp::parse(packet.data(), usize::from(meta.layout.l3_offset)) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if arp.sender_mac != port.mac {
        return Verdict::Drop(DropReason::SourceMac);
    }
    if !arp.sender_ip.is_unspecified() && !vf.sources.allow_v4(arp.sender_ip.into()) {
        return Verdict::Drop(DropReason::SourceIp);
    }
    match vf.gateway_mac {
        Some(mac) if arp.is_question() => answer(packet, meta, &arp.answer(mac).frame(mac, arp.sender_mac)),
        _ => {
            meta.trap_by_default = true;
            Verdict::Open
        }
    }
}

/// Puts the answer in the question's place, under the question's VLAN tags.
pub(super) fn answer(packet: &mut Packet, meta: &Meta, frame: &[u8]) -> Verdict {
    let l3 = usize::from(meta.layout.l3_offset);
    let mut tagged = [0u8; wire::ETHERNET_BYTES + 4 * crate::wire::frame::MAX_VLAN_TAGS + nd::FRAME_BYTES];
    let (macs, rest) = frame.split_at(12);
    let tags = packet.data().get(12..l3 - 2).unwrap_or_default();
    let length = frame.len() + tags.len();
    let Some(out) = tagged.get_mut(..length) else { return Verdict::Drop(DropReason::NoBuffer) };
    out[..12].copy_from_slice(macs);
    out[12..12 + tags.len()].copy_from_slice(tags);
    out[12 + tags.len()..].copy_from_slice(rest);
    if replace(packet, out) { Verdict::Answer(None) } else { Verdict::Drop(DropReason::NoBuffer) }
}

fn admit_nd(port: &PortEntry, vf: &VfEntry, packet: &mut Packet, meta: &mut Meta, frame: &Frame) -> Verdict {
    let Some((src, _)) = frame.key.ipv6() else { return Verdict::Drop(DropReason::Malformed) };
    let own = |address: u128| vf.sources.allow_v6(address) || is_link_local(address);
    if src != 0 && !own(src) {
        return Verdict::Drop(DropReason::SourceIp);
    }
    let (l3, l4) = (usize::from(meta.layout.l3_offset), usize::from(frame.l4_offset));
    meta.trap_by_default = true;
    let kind = packet.data().get(l4).copied().unwrap_or(0);
    if kind != nd::SOLICITATION && kind != nd::ADVERTISEMENT {
        return Verdict::Open;
    }
    let end = l3 + frame.l3_bytes as usize;
    let Some(neighbor) = nd::Neighbor::parse(packet.data(), l3, l4, end) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if neighbor.link_layer.is_some_and(|mac| mac != port.mac) {
        return Verdict::Drop(DropReason::SourceMac);
    }
    let target = u128::from(neighbor.target);
    if kind == nd::ADVERTISEMENT {
        return if own(target) { Verdict::Open } else { Verdict::Drop(DropReason::SourceIp) };
    }
    // A solicitation without a source is duplicate address detection: an answer would take the address away.
    match vf.gateway_mac {
        Some(mac) if neighbor.src != Ipv6Addr::UNSPECIFIED && neighbor.src != neighbor.target => {
            let sender = wire::mac_from_bits(frame.key.src_mac());
            answer(packet, meta, &neighbor.answer(mac).frame(mac, sender))
        }
        _ => Verdict::Open,
    }
}

/// Turns an echo request into its reply, if it is one.
pub(super) fn answer_echo(packet: &mut Packet, frame: &Frame) -> Option<Verdict> {
    icmp::answer_echo(packet.data_mut(), frame).then_some(Verdict::Answer(None))
}
