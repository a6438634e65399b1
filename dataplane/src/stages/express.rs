//! The short way of packets whose flow is known and that need no more than new headers: encapsulated or opened at once,
//! with the next hop's MAC, so that only their departure is left. Whatever is not as usual is left alone.

use super::ledger::{Class, Ledger};
use super::parcel::{Exit, Meta, each_place};
use crate::action::PortId;
use crate::flows::cache::{Decision, Flow, Lookup};
use crate::flows::key::FlowKey;
use crate::flows::shape::ecn_of_plain;
use crate::snapshot::{Neighbours, PortEntry, Snapshot, Tunnel};
use crate::wire::vxlan::{Checksum, Patch, Template, V4_BYTES, V6_BYTES};
use crate::wire::{ETHERNET_BYTES, IPV6_BYTES, MAC_BYTES, checksum};
use forebay_pipeline::batch::BATCH;
use forebay_sriov::Packet;

/// A piece of a burst, from one port, whose flows have been looked for.
pub(super) struct Piece<'a, 'c> {
    pub port: PortId,
    /// The place of its first packet in the burst.
    pub first: usize,
    pub packets: &'a mut [Packet],
    pub metas: &'a mut [Meta],
    pub keys: &'a [FlowKey],
    pub flows: &'a mut Lookup<'c>,
    /// A bit for each packet whose flow is known.
    pub known: u64,
    pub ledger: &'a Ledger,
}

/// The short way, for the packets of one burst.
pub(super) struct Express<'a> {
    snapshot: &'a Snapshot,
    neighbours: &'a Neighbours,
    way: Way,
    door: Door,
    /// Where the first packet goes, and all that go there.
    exit: Option<Exit>,
    /// The packets that go there, a bit each.
    ready: u64,
}

/// The way to a next hop.
struct Way {
    /// [`Tunnel::hop`].
    hop: u64,
    /// The tunnels are over IPv6.
    is_v6: bool,
    /// The longest inner frame; 0 where each packet has to be looked at by itself.
    most_bytes: usize,
    mac: [u8; MAC_BYTES],
    /// [`PortEntry::computes_udp_checksums`].
    by_device: bool,
    /// With the bytes of the longest packet.
    exit: Exit,
}

/// The way to a port that is delivered to.
struct Door {
    /// The longest frame; 0 where each packet has to be looked at by itself.
    most_bytes: usize,
    exit: Exit,
}

/// Packets that follow each other and go the same way.
#[derive(Clone, Copy, Default)]
struct Run {
    packets: usize,
    bytes: u64,
}

impl<'a> Express<'a> {
    #[inline(always)]
    pub fn new(snapshot: &'a Snapshot, neighbours: &'a Neighbours) -> Express<'a> {
        let nowhere = |class| Exit::new(NO_PORT, NO_PORT, 0, class);
        Express {
            snapshot,
            neighbours,
            way: Way {
                hop: 0,
                is_v6: false,
                most_bytes: 0,
                mac: [0; MAC_BYTES],
                by_device: false,
                exit: nowhere(Class::Sent),
            },
            door: Door { most_bytes: 0, exit: nowhere(Class::Delivered) },
            exit: None,
            ready: 0,
        }
    }

    /// Does what was decided about the packet at `place` of a piece, which is known, and about those that follow it and go
    /// the same way. Returns how many they are; `None` where that packet does not go the short way at all.
    #[inline(always)]
    pub fn take(&mut self, piece: &mut Piece<'_, '_>, place: usize) -> Option<usize> {
        let from = piece.port;
        let action = &piece.decision(place)?.action;
        let (run, exit) = if let Some(tunnel) = action.plain_forward() {
            let tunnel = self.snapshot.tunnel(tunnel)?;
            let is_v6 = tunnel.template.covers_payload();
            let Way { hop, is_v6: was_v6, exit, .. } = &self.way;
            if (tunnel.hop(), is_v6, from) != (*hop, *was_v6, exit.from) {
                self.turn_to_hop(tunnel, from);
            }
            let run = match is_v6 {
                false => self.forward::<false>(piece, place),
                true => self.forward::<true>(piece, place),
            };
            (run, self.way.exit)
        } else {
            let to = action.plain_deliver()?;
            if (self.door.exit.to, self.door.exit.from) != (to, from) {
                self.turn_to_port(to, from);
            }
            (self.deliver(piece, place), self.door.exit)
        };
        if run.packets == 0 {
            return None;
        }
        self.note(piece, place, run, exit);
        Some(run.packets)
    }

    /// Encapsulates. `V6`: over IPv6.
    #[inline(never)]
    fn forward<const V6: bool>(&self, piece: &mut Piece<'_, '_>, place: usize) -> Run {
        let Way { hop, most_bytes, mac, by_device, .. } = self.way;
        let (tunnels, rules) = (self.snapshot.tunnels.slots(), piece.ledger.rules());
        piece.each_of_run(place, |packet, key, flow| {
            let decision = flow.decision;
            let tunnel = tunnels.get(decision.action.plain_forward()?)?;
            let bytes = packet.len();
            if tunnel.hop() != hop || tunnel.template.covers_payload() != V6 || bytes > most_bytes {
                return None;
            }
            let frame = packet.data_mut().first_chunk_mut::<{ ETHERNET_BYTES + 2 }>()?;
            decision.action.set_inner_dst_mac(frame);
            let ecn = ecn_of_plain(frame, key.is_ipv6());
            if !encapsulate::<V6>(packet, ecn, decision.flow_hash, &tunnel.template, (mac, by_device)) {
                return None;
            }
            flow.count(bytes as u32);
            rules.matched(decision.slot, bytes as u64);
            Some(bytes + template_bytes(V6))
        })
    }

    /// Delivers.
    #[inline(never)]
    fn deliver(&self, piece: &mut Piece<'_, '_>, place: usize) -> Run {
        let Door { most_bytes, exit } = self.door;
        let rules = piece.ledger.rules();
        let Some(outer) = piece.keys.get(place).map(FlowKey::outer) else { return Run::default() };
        // What is not ECN-capable outside, or ECT(0), marks nothing inside (RFC 6040, figure 4).
        let may_mark = |packet: &Packet| ecn_of_plain(packet.data(), outer.is_ipv6()) & 1 != 0;
        piece.each_of_run(place, |packet, key, flow| {
            let bytes = packet.len() - outer.len();
            let decision = flow.decision;
            if key.outer() != outer
                || decision.action.plain_deliver() != Some(exit.to)
                || bytes > most_bytes
                || (!outer.is_empty() && may_mark(packet))
                || !packet.trim_front(outer.len())
            {
                return None;
            }
            flow.count(bytes as u32);
            rules.matched(decision.slot, bytes as u64);
            Some(bytes)
        })
    }

    /// Notes how packets leave, the first of which is at that place of the piece.
    #[inline(always)]
    fn note(&mut self, piece: &mut Piece<'_, '_>, place: usize, run: Run, exit: Exit) {
        let of_burst = self.exit.get_or_insert(exit);
        if of_burst.is_like(&exit) {
            self.ready |= (u64::MAX >> (BATCH - run.packets)) << (piece.first + place);
            of_burst.bytes += run.bytes;
            of_burst.longest = of_burst.longest.max(exit.longest);
        } else {
            piece.metas.iter_mut().skip(place).take(run.packets).for_each(|meta| meta.leave(&exit));
        }
    }

    /// How all of a burst leaves, whose packets have these bits; `None` where each packet's meta tells.
    #[inline(always)]
    pub fn exit(self, all: u64, metas: &mut [Meta]) -> Option<Exit> {
        let exit = self.exit?;
        if self.ready == all {
            return Some(exit);
        }
        each_place(self.ready, |place| {
            if let Some(meta) = metas.get_mut(place) {
                meta.leave(&exit);
            }
        });
        None
    }

    #[inline(never)]
    fn turn_to_hop(&mut self, tunnel: &Tunnel, from: PortId) {
        let uplink = self.snapshot.port(tunnel.uplink);
        let uplink_mtu = uplink.map_or(0, |uplink| uplink.mtu);
        let by_device = uplink.is_some_and(|uplink| uplink.computes_udp_checksums);
        let mtu = usize::from(uplink_mtu.min(tunnel.path_mtu));
        let mac = self.neighbours.resolve(tunnel.next_hop);
        let most_bytes = mac.map_or(0, |_| mtu.saturating_sub(tunnel.template.l3_overhead()));
        let mut exit = Exit::new(from, tunnel.uplink, tunnel.next_hop, Class::Sent);
        exit.longest = most_bytes + tunnel.template.len();
        let (hop, is_v6) = (tunnel.hop(), tunnel.template.covers_payload());
        self.way = Way { hop, is_v6, most_bytes, mac: mac.unwrap_or_default(), by_device, exit };
    }

    #[inline(never)]
    fn turn_to_port(&mut self, to: PortId, from: PortId) {
        let port = self.snapshot.port(to).filter(|port| vlans_beside(self.snapshot, port).is_none());
        let most_bytes = port.map_or(0, |port| ETHERNET_BYTES + usize::from(port.mtu));
        let mut exit = Exit::new(from, to, 0, Class::Delivered);
        exit.longest = most_bytes;
        self.door = Door { most_bytes, exit };
    }
}

impl Piece<'_, '_> {
    /// What was decided about the packet at a place, which is known.
    #[inline(always)]
    fn decision(&self, place: usize) -> Option<&Decision> {
        self.flows.decision(self.keys.get(place)?)
    }

    /// Leaves the packet at a place, which is known, to the stage that does what rules say.
    #[inline(never)]
    pub fn act(&mut self, place: usize) {
        let Piece { port, packets, metas, keys, flows, ledger, .. } = self;
        if let (Some(packet), Some(meta), Some(key)) =
            (packets.get(place), metas.get_mut(place), keys.get(place))
        {
            meta.describe(*port, packet, key);
            let Some(mut flow) = flows.flow(key) else { return };
            let bytes = meta.counted_bytes(packet);
            flow.count(bytes);
            ledger.matched(flow.decision.slot, u64::from(bytes));
            meta.act(flow.decision);
        }
    }

    /// Leaves the packet at a place, which is not known, to the stages that decide about it.
    #[inline(never)]
    pub fn leave(&mut self, place: usize, has_key: bool, unwritten: bool) {
        let Piece { port, packets, metas, keys, flows, .. } = self;
        if let (Some(packet), Some(meta), Some(key)) =
            (packets.get(place), metas.get_mut(place), keys.get(place))
        {
            if has_key {
                flows.expect(key);
                meta.describe(*port, packet, key);
            } else if unwritten {
                meta.renew(*port);
            }
        }
    }

    /// Visits the packets from `place` on that are known, for as long as `visit` takes them and tells the bytes that they have
    /// now.
    #[inline(always)]
    fn each_of_run(
        &mut self,
        place: usize,
        mut visit: impl FnMut(&mut Packet, &FlowKey, &mut Flow<'_>) -> Option<usize>,
    ) -> Run {
        let mut run = Run::default();
        let end = place + (self.known >> place).trailing_ones() as usize;
        let Piece { packets, keys, flows, .. } = self;
        let (Some(packets), Some(keys)) = (packets.get_mut(place..end), keys.get(place..end)) else {
            return run;
        };
        for (packet, key) in packets.iter_mut().zip(keys) {
            let Some(mut flow) = flows.flow(key) else { break };
            let Some(bytes) = visit(packet, key, &mut flow) else { break };
            run.packets += 1;
            run.bytes += bytes as u64;
        }
        run
    }
}

/// The number of no port.
const NO_PORT: PortId = PortId(u16::MAX);

/// The ports behind tags on a port's device, where the port itself is the one without a tag.
#[inline(always)]
pub(super) fn vlans_beside<'a>(snapshot: &'a Snapshot, port: &PortEntry) -> Option<&'a [Option<PortId>]> {
    let device = snapshot.devices.get(usize::from(port.device)).filter(|_| port.vlan == 0)?;
    device.vlans.as_ref().map(|vlans| vlans.as_slice())
}

/// Bytes that a tunnel puts in front of a frame.
const fn template_bytes(v6: bool) -> usize {
    if v6 { V6_BYTES } else { V4_BYTES }
}

/// Puts a tunnel's headers in front of a frame that fits; false, and nothing done, where the buffer has no room. `V6`: the
/// tunnel is over IPv6, and the UDP checksum is left to the device where that is `by_device`.
#[inline(always)]
pub(super) fn encapsulate<const V6: bool>(
    packet: &mut Packet,
    ecn: u8,
    flow_hash: u16,
    template: &Template,
    (next_hop, by_device): ([u8; MAC_BYTES], bool),
) -> bool {
    let inner_bytes = packet.len();
    let flow_hash = u32::from(flow_hash);
    let checksum = if V6 && !by_device { Checksum::Sum(sum(packet)) } else { Checksum::Device };
    let patch = Patch { next_hop, inner_bytes, ecn, flow_hash, checksum };
    if V6 {
        let Some(out) = packet.prepend_array() else { return false };
        template.write_v6(out, &patch);
        if by_device {
            packet.request_udp_checksum_v6(ETHERNET_BYTES as u8, IPV6_BYTES as u8);
        }
    } else {
        let Some(out) = packet.prepend_array() else { return false };
        template.write_v4(out, &patch);
    }
    true
}

/// The sum of the whole packet.
#[inline(always)]
fn sum(packet: &Packet) -> u64 {
    if packet.data().len() == packet.len() {
        return checksum::add(0, packet.data());
    }
    let mut sum = checksum::Segments::new(0);
    packet.segments().for_each(|segment| sum.add(segment));
    sum.sum()
}
