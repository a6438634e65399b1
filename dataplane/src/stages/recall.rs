//! First stage: what was decided before about the packet's flow.
//!
//! A packet of a plain shape gets the key of its flow, by which the flow cache knows what was decided about it, who may send
//! it included. All keys of a burst are looked for side by side. What is known and needs no more than new headers is made
//! ready at once where this worker also sends ([`super::express`]); the rest of the known goes to the stage that does what
//! rules say, and all else is admitted and looked up. What comes of that is remembered when the next burst is here, unless
//! a stage still looked at older tables than this one: it would be remembered as what the newer ones say.

use super::express::{Express, Piece};
use super::ledger::Ledger;
use super::parcel::{Meta, Parcels, Parts, Verdict};
use super::underlay::{self, Side};
use crate::action::PortId;
use crate::flows::cache::{FlowCache, Found};
use crate::flows::key::{FlowKey, Scope};
use crate::flows::shape::Shape;
use crate::snapshot::{Neighbours, PortRole, Snapshot, TunnelTable};
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::stage::Stage;
use forebay_pipeline::tsc;
use forebay_sriov::Packet;
use std::sync::Arc;

/// The first stage.
pub struct Recall {
    snapshot: Subscriber<Snapshot>,
    ledger: Ledger,
    flows: FlowCache,
    seed: u64,
    neighbours: Option<Arc<Neighbours>>,
}

impl Recall {
    /// A stage that counts the hits of rules in that book and remembers decisions in `flows`, whose keys are hashed with `seed`,
    /// which nobody outside should know. With `neighbours`, the MACs of next hops, it makes packets ready to leave.
    pub fn new(
        snapshot: Subscriber<Snapshot>,
        ledger: Ledger,
        flows: FlowCache,
        seed: u64,
        neighbours: Option<Arc<Neighbours>>,
    ) -> Recall {
        Recall { snapshot, ledger, flows, seed, neighbours }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        self.snapshot.refresh();
    }

    /// Remembers what was decided about the flows of the last burst.
    #[inline(never)]
    fn learn(&mut self, burst: &mut Parcels) {
        for (key, lesson) in burst.take_lessons() {
            self.flows.learn(key, lesson.decision, lesson.bytes);
        }
    }

    /// What is remembered, that of the last burst included.
    pub fn flows(&mut self, burst: &mut Parcels) -> &FlowCache {
        self.learn(burst);
        &self.flows
    }

    /// Decides about the packets whose flows are known, piece by piece.
    #[inline(always)]
    fn recall(&mut self, burst: &mut Parcels) {
        let Recall { snapshot, ledger, flows, seed, neighbours } = self;
        let snapshot = snapshot.current();
        let mut express = neighbours.as_deref().map(|neighbours| Express::new(snapshot, neighbours));
        let (all, is_of_one_port) = (burst.all(), burst.is_of_one_port);
        let Parts { packets, metas, keys, .. } = burst.parts();
        let (mut keyed, mut first) = (0, 0);
        while let Some(Meta { port, .. }) = metas.get(first) {
            let port = *port;
            let mut end = packets.len().min(first + PIECE);
            if !is_of_one_port {
                let rest = metas.iter().take(end).skip(first);
                end = first + rest.take_while(|meta| meta.port == port).count();
            }
            let (Some(packets), Some(metas), Some(keys)) =
                (packets.get_mut(first..end), metas.get_mut(first..end), keys.get_mut(first..end))
            else {
                break;
            };
            let with_key = write_keys(snapshot, port, *seed, packets, metas, keys);
            if with_key != 0 {
                keyed |= with_key << first;
                // Keys of places without their bit are of an earlier burst: looking for them does no harm.
                let flows = flows.look(keys);
                let known = with_key & find_all(&flows, keys, ledger, &snapshot.tunnels);
                let piece = Piece { port, packets, metas, keys, flows, known, ledger };
                settle(piece, express.as_mut(), first);
            }
            first = end;
        }
        burst.exit = express.and_then(|express| express.exit(all, metas));
        burst.keyed = keyed;
    }
}

/// Packets that are worked on together: few enough that all that is fetched for them (headers, keys, flows, counters,
/// tunnels: some ten cache lines each) stays in a first-level cache of 32 KiB.
const PIECE: usize = 32;

/// Does what was decided about the packets that are known, or has it done.
#[inline(always)]
fn settle(mut piece: Piece<'_>, mut express: Option<&mut Express<'_>>, first: usize) {
    let mut place = 0;
    while place < piece.packets.len() {
        if piece.known >> place & 1 == 0 {
            place += 1;
            continue;
        }
        let taken = express.as_mut().map_or(0, |express| express.take(&mut piece, place, first));
        if taken == 0 {
            piece.act(place);
        }
        place += taken.max(1);
    }
}

/// Writes the keys of the packets that have one, all of one port. Returns their places.
#[inline(always)]
fn write_keys(
    snapshot: &Snapshot,
    port: PortId,
    seed: u64,
    packets: &[Packet],
    metas: &mut [Meta],
    keys: &mut [FlowKey],
) -> u64 {
    let Some(port) = snapshot.port(port) else { return 0 };
    match &port.role {
        PortRole::Vf(vf) => {
            let of_port = (port.id, vf.generation);
            let keyed = write_keys_v4(packets, metas, keys, of_port, seed);
            match keyed.count_ones() as usize == packets.len() {
                true => keyed,
                false => keyed | write_keys_v6(packets, metas, keys, keyed, (of_port, seed)),
            }
        }
        PortRole::Uplink(uplink) => {
            let side = Side::new(port, uplink, snapshot.ingress_generation);
            let keyed = write_keys_of_tunnels_v4(packets, metas, keys, side, seed);
            match keyed.count_ones() as usize == packets.len() {
                true => keyed,
                false => keyed | write_keys_of_tunnels(packets, metas, keys, keyed, (side, seed)),
            }
        }
    }
}

/// Finds the flows that are known, and asks for what else is needed about them. Returns their places.
#[inline(never)]
fn find_all(flows: &Found<'_>, keys: &mut [FlowKey], ledger: &Ledger, tunnels: &TunnelTable) -> u64 {
    let (rules, tunnels) = (ledger.rules(), tunnels.slots());
    let (mut known, mut bit, mut tunnel_before) = (0, 1u64, u32::MAX);
    for key in keys {
        if let Some(decision) = flows.find(key) {
            known |= bit;
            rules.prefetch(decision.slot);
            if let Some(tunnel) = decision.action.plain_forward()
                && tunnel.slot != tunnel_before
            {
                tunnel_before = tunnel.slot;
                tunnels.prefetch(tunnel.slot);
            }
        }
        bit <<= 1;
    }
    known
}

/// Writes the keys of packets by `write`, which tells whether there is one, but not at the places in `skip`. Returns the
/// places that have one now.
#[inline(always)]
fn write_all(
    packets: &[Packet],
    metas: &mut [Meta],
    keys: &mut [FlowKey],
    skip: u64,
    write: impl Fn(&Packet, &mut Meta, &mut FlowKey) -> bool,
) -> u64 {
    let (mut keyed, mut bit) = (0, 1u64);
    for ((packet, meta), key) in packets.iter().zip(metas).zip(keys) {
        if skip & bit == 0 && meta.verdict == Verdict::Open && write(packet, meta, key) {
            keyed |= bit;
        }
        bit <<= 1;
    }
    keyed
}

/// Writes the keys of what a VF sent over IPv4 to one station, where the shape is plain.
#[inline(never)]
fn write_keys_v4(
    packets: &[Packet],
    metas: &mut [Meta],
    keys: &mut [FlowKey],
    (port, generation): (PortId, u32),
    seed: u64,
) -> u64 {
    let scope = Scope::egress(port.0, generation);
    write_all(packets, metas, keys, 0, |packet, meta, key| {
        match Shape::write_v4(packet.data(), packet.len(), scope, seed, key) {
            Some(shape) if !shape.is_to_a_group() => {
                meta.layout = shape.layout;
                true
            }
            _ => false,
        }
    })
}

/// As [`write_keys_v4`], for IPv6, where there is no key yet.
#[inline(never)]
fn write_keys_v6(
    packets: &[Packet],
    metas: &mut [Meta],
    keys: &mut [FlowKey],
    keyed: u64,
    ((port, generation), seed): ((PortId, u32), u64),
) -> u64 {
    let scope = Scope::egress(port.0, generation);
    write_all(packets, metas, keys, keyed, |packet, meta, key| {
        match Shape::of_v6(packet.data(), packet.len()) {
            Some(shape) if !shape.is_to_a_group() => {
                meta.layout = shape.layout;
                shape.write_key(scope, seed, key);
                true
            }
            _ => false,
        }
    })
}

/// Writes the keys of what came through tunnels to an uplink, with IPv4 outside and inside.
#[inline(never)]
fn write_keys_of_tunnels_v4(
    packets: &[Packet],
    metas: &mut [Meta],
    keys: &mut [FlowKey],
    side: Side<'_>,
    seed: u64,
) -> u64 {
    write_all(packets, metas, keys, 0, |packet, meta, key| {
        underlay::write_key_v4(side, packet, meta, key, seed)
    })
}

/// As [`write_keys_of_tunnels_v4`], for either version, where there is no key yet.
#[inline(never)]
fn write_keys_of_tunnels(
    packets: &[Packet],
    metas: &mut [Meta],
    keys: &mut [FlowKey],
    keyed: u64,
    (side, seed): (Side<'_>, u64),
) -> u64 {
    write_all(packets, metas, keys, keyed, |packet, meta, key| {
        underlay::write_key(side, packet, meta, key, seed)
    })
}

impl Stage<Parcels> for Recall {
    const NAME: &'static str = "recall";

    #[inline(never)]
    fn process(&mut self, burst: &mut Parcels) {
        self.flows.tick(tsc::now());
        if burst.has_lessons() {
            self.learn(burst);
        }
        burst.keyed_by = self.snapshot.version();
        burst.may_learn = true;
        self.recall(burst);
    }
}
