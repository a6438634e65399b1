//! Fourth stage: does what the rule says, unless the first stage has done it. Encapsulates, decapsulates, pushes and pops
//! tags, and tells a tenant whose packet is too large for the way.

use super::admit::replace;
use super::express::{encapsulate, vlans_beside};
use super::parcel::{Meta, Parcels, Verdict};
use super::vlan;
use crate::action::{Action, PortId, TunnelRef};
use crate::counters::DropReason;
use crate::snapshot::{PortEntry, PortRole, Snapshot};
use crate::wire::frame::{Frame, Layout, Network, WINDOW_BYTES};
use crate::wire::{ETHERNET_BYTES, MAC_BYTES, VLAN_TAG_BYTES, checksum, icmp, mac_from_bits};
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::stage::Stage;
use forebay_sriov::Packet;

/// The fourth stage.
pub struct Transform {
    snapshot: Subscriber<Snapshot>,
}

impl Transform {
    /// A stage that looks at these snapshots.
    pub fn new(snapshot: Subscriber<Snapshot>) -> Transform {
        Transform { snapshot }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        self.snapshot.refresh();
    }
}

impl Stage<Parcels> for Transform {
    const NAME: &'static str = "transform";

    #[inline(never)]
    fn process(&mut self, batch: &mut Parcels) {
        let snapshot = self.snapshot.current();
        for (packet, meta) in batch.iter_mut() {
            if meta.verdict == Verdict::Act {
                transform(snapshot, packet, meta);
            }
        }
    }
}

/// Does what the rule says, whatever it is.
#[inline(never)]
fn transform(snapshot: &Snapshot, packet: &mut Packet, meta: &mut Meta) {
    meta.verdict = match meta.decision.action.unpack() {
        Action::Forward { tunnel, push_vlan, .. } => forward(snapshot, packet, meta, tunnel, push_vlan),
        Action::Deliver { port, pop_vlan, push_vlan } => {
            deliver(snapshot, packet, meta, port, pop_vlan, push_vlan)
        }
        Action::Trap => Verdict::Trap,
        Action::Drop(reason) => Verdict::Drop(reason),
    };
}

#[inline(always)]
fn forward(
    snapshot: &Snapshot,
    packet: &mut Packet,
    meta: &Meta,
    tunnel: TunnelRef,
    push_vlan: u16,
) -> Verdict {
    // The rule was deleted while the packet was on its way between two workers.
    let Some(tunnel) = snapshot.tunnel(tunnel) else { return Verdict::Drop(DropReason::NoRule) };
    let Some(uplink) = snapshot.port(tunnel.uplink) else { return Verdict::Drop(DropReason::PortDown) };
    let template = &tunnel.template;
    let tag_bytes = if push_vlan != 0 { VLAN_TAG_BYTES } else { 0 };
    let inner_bytes = packet.len() + tag_bytes;
    let mtu = usize::from(uplink.mtu.min(tunnel.path_mtu));
    if inner_bytes + template.l3_overhead() > mtu {
        let l2_bytes = usize::from(meta.layout.l3_offset) + tag_bytes;
        let fits = mtu.saturating_sub(template.l3_overhead() + l2_bytes);
        return too_big(snapshot, packet, meta, fits);
    }
    if push_vlan != 0 && !vlan::push(packet, push_vlan) {
        return Verdict::Drop(DropReason::NoBuffer);
    }
    // Whoever sends it resolves the next hop, or has the packet wait for it.
    meta.decision.action.set_inner_dst_mac(packet.data_mut());
    let ecn = meta.layout.traffic_class & 3;
    let hop = ([0; MAC_BYTES], uplink.computes_udp_checksums);
    let is_done = match template.covers_payload() {
        false => encapsulate::<false>(packet, ecn, meta.decision.flow_hash, template, hop),
        true => encapsulate::<true>(packet, ecn, meta.decision.flow_hash, template, hop),
    };
    match is_done {
        true => Verdict::Send { uplink: tunnel.uplink, next_hop: tunnel.next_hop },
        false => Verdict::Drop(DropReason::NoBuffer),
    }
}

#[inline(always)]
fn deliver(
    snapshot: &Snapshot,
    packet: &mut Packet,
    meta: &Meta,
    to: PortId,
    pop_vlan: bool,
    push_vlan: u16,
) -> Verdict {
    let Some(port) = snapshot.port(to) else { return Verdict::Drop(DropReason::PortDown) };
    let inner_bytes = packet.len() - usize::from(meta.inner_offset);
    let l3_bytes = match meta.layout.network {
        Network::Ipv4 | Network::Ipv6 => meta.layout.l3_bytes as usize,
        Network::Other | Network::Arp => inner_bytes - usize::from(meta.layout.l3_offset),
    };
    if l3_bytes > usize::from(port.mtu) {
        return too_big(snapshot, packet, meta, usize::from(port.mtu));
    }
    if meta.inner_offset != 0 && !decapsulate(packet, meta) {
        return Verdict::Drop(DropReason::Congestion);
    }
    if pop_vlan {
        vlan::pop(packet);
    }
    if push_vlan == 0 && is_another_ports(snapshot, port, packet) {
        return Verdict::Drop(DropReason::NoRule);
    }
    if push_vlan != 0 && !vlan::push(packet, push_vlan) {
        return Verdict::Drop(DropReason::NoBuffer);
    }
    Verdict::Deliver(to)
}

/// On the port's device, the tag that the packet brings along is that of another port behind it: a tenant could
/// reach that port past all rules by tagging what it sends.
#[inline(always)]
fn is_another_ports(snapshot: &Snapshot, port: &PortEntry, packet: &Packet) -> bool {
    let Some(vlans) = vlans_beside(snapshot, port) else { return false };
    vlan::outermost(packet.data()).is_some_and(|id| matches!(vlans.get(usize::from(id)), Some(Some(_))))
}

/// ECN: not ECN-capable, ECT(1), ECT(0), congestion experienced (RFC 3168, section 5).
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The inner ECN field after decapsulation (RFC 6040, figure 4); `None` where the packet must be dropped, since
/// congestion was marked on it and it does not take marks.
#[inline(always)]
fn combined_ecn(outer: u8, inner: u8) -> Option<u8> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        _ => Some(inner),
    }
}

/// Strips the outer headers. What the underlay marked outside is marked inside; false where the packet must be dropped.
#[inline(always)]
fn decapsulate(packet: &mut Packet, meta: &Meta) -> bool {
    if !packet.trim_front(usize::from(meta.inner_offset)) {
        return false;
    }
    if !matches!(meta.layout.network, Network::Ipv4 | Network::Ipv6) {
        return true;
    }
    let inner = meta.layout.traffic_class & 3;
    match combined_ecn(meta.outer_ecn, inner) {
        None => false,
        Some(ecn) => ecn == inner || mark(packet.data_mut(), &meta.layout, ecn),
    }
}

/// Writes the ECN field of an IP header.
#[cold]
fn mark(bytes: &mut [u8], frame: &Layout, ecn: u8) -> bool {
    let l3 = usize::from(frame.l3_offset);
    let Some(header) = bytes.get_mut(l3..l3 + crate::wire::IPV4_BYTES) else { return false };
    if frame.network == Network::Ipv6 {
        header[1] = header[1] & !(3 << 4) | ecn << 4;
        return true;
    }
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[1] = header[1] & !3 | ecn;
    let new = u16::from_be_bytes([header[0], header[1]]);
    let field = checksum::update(u16::from_be_bytes([header[10], header[11]]), old, new);
    header[10..12].copy_from_slice(&field.to_be_bytes());
    true
}

/// A tenant whose packet does not fit learns how large it may be, in the buffer of that packet.
#[cold]
#[inline(never)]
fn too_big(snapshot: &Snapshot, packet: &mut Packet, meta: &Meta, fits: usize) -> Verdict {
    let lost = Verdict::Drop(DropReason::TooBig);
    let Some(PortEntry { role: PortRole::Vf(vf), .. }) = snapshot.port(meta.port) else { return lost };
    let mut quoted = [0; icmp::MAX_FRAME_BYTES];
    let bytes = packet.copy_to(0, &mut quoted);
    let Ok(frame) = Frame::parse(&quoted[..bytes.min(WINDOW_BYTES)], packet.len()) else { return lost };
    let gateway = vf.gateway_mac.unwrap_or_else(|| mac_from_bits(frame.key.dst_mac()));
    let mut error = [0; icmp::MAX_FRAME_BYTES];
    let quoted = &quoted[..bytes];
    let Some(length) = icmp::packet_too_big(quoted, &frame, fits as u16, gateway, &mut error) else {
        return lost;
    };
    let tags = usize::from(frame.vlan_tags) * VLAN_TAG_BYTES;
    let mut tagged = [0; icmp::MAX_FRAME_BYTES + 4 * crate::wire::frame::MAX_VLAN_TAGS];
    tagged[..12].copy_from_slice(&error[..12]);
    tagged[12..12 + tags].copy_from_slice(&quoted[12..12 + tags]);
    tagged[12 + tags..length + tags].copy_from_slice(&error[12..length]);
    debug_assert!(length >= ETHERNET_BYTES);
    if replace(packet, &tagged[..length + tags]) { Verdict::Answer(Some(DropReason::TooBig)) } else { lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecn_is_combined_as_figure_4_of_rfc_6040_says() {
        // By row the inner field: Not-ECT, ECT(0), ECT(1), CE; by column the outer one, likewise.
        let codes = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in codes.iter().zip(table) {
            for (outer, expected) in codes.iter().zip(row) {
                assert_eq!(combined_ecn(*outer, *inner), expected, "outer {outer}, inner {inner}");
            }
        }
    }
}
