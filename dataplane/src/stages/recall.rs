//! First stage: what was decided before about the packet's flow.
//!
//! A packet of a plain shape gets the key of its flow, by which the flow cache knows what was decided about it, who may send
//! it included. Groups of packets take the steps of the lookup in turn. What is known and needs no more than new headers is made
//! ready at once where this worker also sends ([`super::express`]); the rest of the known goes to the stage that does what
//! rules say, and all else is admitted and looked up. What comes of that is remembered when the next burst is here, unless
//! a stage still looked at older tables than this one: it would be remembered as what the newer ones say.

use super::express::{Express, Piece};
use super::ledger::Ledger;
use super::parcel::{Meta, Parcels, Parts, Verdict};
use super::underlay::{self, Side};
use crate::action::PortId;
use crate::flows::cache::{FlowCache, Lookup};
use crate::flows::key::{FlowKey, Scope, Seed};
use crate::flows::shape::Shape;
use crate::snapshot::{Neighbours, PortRole, Snapshot, TunnelTable};
use forebay_pipeline::batch::BATCH;
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
    seed: Seed,
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
        Recall { snapshot, ledger, flows, seed: seed.into(), neighbours }
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

    /// Decides about the packets whose flows are known.
    ///
    /// The burst goes through four steps group by group, like items through a pipeline: while the memory that the next
    /// step of one group needs is on its way, other groups take theirs.
    #[inline(always)]
    fn recall(&mut self, burst: &mut Parcels) {
        let Recall { snapshot, ledger, flows, seed, neighbours } = self;
        let snapshot = snapshot.current();
        let mut express = neighbours.as_deref().map(|neighbours| Express::new(snapshot, neighbours));
        let (all, sole_port) = (burst.all(), burst.sole_port.take());
        let Parts { packets, metas, keys, .. } = burst.parts();
        let mut lookup = flows.lookup();
        let mut keyed = 0;
        let (mut looked, mut found, mut last) = (Group::NONE, Group::NONE, Group::NONE);
        let mut next = Group::cut(0, packets.len(), sole_port, metas);
        loop {
            if !next.is_empty() {
                let skip = if sole_port.is_some() { 0 } else { decided(next.of(metas)) };
                let places = Places { packets: next.of(packets), keys: next.of_mut(keys), skip };
                next.known = write_keys(snapshot, next.port, *seed, places, &lookup);
                keyed |= next.known << next.first;
            }
            if !looked.is_empty() {
                lookup.look(looked.of_mut(keys));
            }
            if !found.is_empty() {
                found.known &= find_all(&lookup, found.of_mut(keys), ledger, &snapshot.tunnels);
            }
            if !last.is_empty() {
                let Group { first, port, known, .. } = last;
                let (packets, metas, keys) = (last.of_mut(packets), last.of_mut(metas), last.of(keys));
                let piece = Piece { port, first, packets, metas, keys, flows: &mut lookup, known, ledger };
                settle(piece, express.as_mut(), keyed >> first, sole_port.is_some());
            }
            (last, found, looked) = (found, looked, next);
            if looked.is_empty() && found.is_empty() && last.is_empty() {
                break;
            }
            next = Group::cut(next.end, packets.len(), sole_port, metas);
        }
        burst.exit = express.and_then(|express| express.exit(all, metas));
        burst.keyed = keyed;
    }
}

/// Packets that go through the steps together. There are four groups under way: few enough packets that all that is fetched
/// for them (headers, keys, flows, counters, tunnels: some ten cache lines each) stays in a first-level cache of 32 KiB.
const GROUP: usize = 16;

/// Packets of one port that follow each other in a burst.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    end: usize,
    port: PortId,
    /// The places, from `first` on, that have a key; later, those whose flow is known.
    known: u64,
}

impl Group {
    const NONE: Group = Group { first: 0, end: 0, port: PortId(0), known: 0 };

    /// The group that begins at a place of a burst of `count` packets.
    #[inline(always)]
    fn cut(first: usize, count: usize, sole_port: Option<PortId>, metas: &[Meta]) -> Group {
        let mut end = count.min(first + GROUP);
        let Some(port) = sole_port.or_else(|| metas.get(first).map(|meta| meta.port)) else {
            return Group { first, end: first, ..Group::NONE };
        };
        if sole_port.is_none() {
            let rest = metas.iter().take(end).skip(first);
            end = first + rest.take_while(|meta| meta.port == port).count();
        }
        Group { first, end, port, known: 0 }
    }

    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.first == self.end
    }

    #[inline(always)]
    fn of<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        all.get(self.first..self.end).unwrap_or_default()
    }

    #[inline(always)]
    fn of_mut<'a, T>(&self, all: &'a mut [T]) -> &'a mut [T] {
        all.get_mut(self.first..self.end).unwrap_or_default()
    }
}

/// The places of packets that something was decided about already.
#[inline(never)]
fn decided(metas: &[Meta]) -> u64 {
    let bit = |(place, meta): (usize, &Meta)| u64::from(meta.verdict != Verdict::Open) << place;
    metas.iter().enumerate().map(bit).sum()
}

/// Does what was decided about the packets that are known, or has it done. Writes the metas of all that goes on to other stages:
/// those of packets without a key only where they are `unwritten`.
#[inline(always)]
fn settle(mut piece: Piece<'_, '_>, mut express: Option<&mut Express<'_>>, keyed: u64, unwritten: bool) {
    let mut place = 0;
    while place < piece.packets.len() {
        if piece.known >> place & 1 == 0 {
            piece.leave(place, keyed >> place & 1 != 0, unwritten);
            place += 1;
            continue;
        }
        let taken = express.as_mut().and_then(|express| express.take(&mut piece, place));
        if taken.is_none() {
            piece.act(place);
        }
        place += taken.unwrap_or(1);
    }
}

/// Packets whose keys are to be written, but for the places in `skip`.
struct Places<'a> {
    packets: &'a [Packet],
    keys: &'a mut [FlowKey],
    skip: u64,
}

impl Places<'_> {
    /// The same, but for the places in `done`.
    #[inline(always)]
    fn but(&mut self, done: u64) -> Places<'_> {
        Places { packets: self.packets, keys: self.keys, skip: self.skip | done }
    }
}

/// Writes the keys of the packets that have one, all of one port. Returns their places.
#[inline(always)]
fn write_keys(
    snapshot: &Snapshot,
    port: PortId,
    seed: Seed,
    mut places: Places<'_>,
    lookup: &Lookup<'_>,
) -> u64 {
    let Some(port) = snapshot.port(port) else { return 0 };
    let all = u64::MAX >> (BATCH - places.packets.len());
    match &port.role {
        PortRole::Vf(vf) => {
            let of_port = (port.id, vf.generation);
            let keyed = write_keys_v4(places.but(0), of_port, seed, lookup);
            match keyed | places.skip == all {
                true => keyed,
                false => keyed | write_keys_v6(places.but(keyed), of_port, seed, lookup),
            }
        }
        PortRole::Uplink(uplink) => {
            let side = Side::new(port, uplink, snapshot.ingress_generation);
            let keyed = write_keys_of_tunnels_v4(places.but(0), side, seed, lookup);
            match keyed | places.skip == all {
                true => keyed,
                false => keyed | write_keys_of_tunnels(places.but(keyed), side, seed, lookup),
            }
        }
    }
}

/// Finds the flows that are known, and asks for what else is needed about them. Returns their places.
#[inline(never)]
fn find_all(lookup: &Lookup<'_>, keys: &mut [FlowKey], ledger: &Ledger, tunnels: &TunnelTable) -> u64 {
    let (rules, tunnels) = (ledger.rules(), tunnels.slots());
    let (mut known, mut bit) = (0, 1u64);
    for key in keys {
        if let Some(decision) = lookup.find(key) {
            known |= bit;
            rules.prefetch(decision.slot);
            if let Some(slot) = decision.action.tunnel_slot() {
                tunnels.prefetch(slot);
            }
        }
        bit <<= 1;
    }
    known
}

/// Writes the keys of packets by `write`, which tells whether there is one, and begins to look for their flows. Returns the
/// places that have one now.
#[inline(always)]
fn write_all(
    Places { packets, keys, skip }: Places<'_>,
    lookup: &Lookup<'_>,
    write: impl Fn(&Packet, &mut FlowKey) -> bool,
) -> u64 {
    let (mut keyed, mut bit) = (0, 1u64);
    for (packet, key) in packets.iter().zip(keys) {
        if skip & bit == 0 && write(packet, key) {
            lookup.begin(key);
            keyed |= bit;
        }
        bit <<= 1;
    }
    keyed
}

/// Writes the keys of what a VF sent over IPv4 to one station, where the shape is plain.
#[inline(never)]
fn write_keys_v4(
    places: Places<'_>,
    (port, generation): (PortId, u32),
    seed: Seed,
    lookup: &Lookup<'_>,
) -> u64 {
    let scope = Scope::egress(port.0, generation);
    write_all(places, lookup, |packet, key| match Shape::of_v4(packet.data(), packet.len()) {
        Some(shape) if !shape.is_to_a_group() => {
            shape.write_key(scope, seed, key);
            true
        }
        _ => false,
    })
}

/// As [`write_keys_v4`], for IPv6.
#[inline(never)]
fn write_keys_v6(
    places: Places<'_>,
    (port, generation): (PortId, u32),
    seed: Seed,
    lookup: &Lookup<'_>,
) -> u64 {
    let scope = Scope::egress(port.0, generation);
    write_all(places, lookup, |packet, key| match Shape::of_v6(packet.data(), packet.len()) {
        Some(shape) if !shape.is_to_a_group() => {
            shape.write_key(scope, seed, key);
            true
        }
        _ => false,
    })
}

/// Writes the keys of what came through tunnels to an uplink, with IPv4 outside and inside.
#[inline(never)]
fn write_keys_of_tunnels_v4(places: Places<'_>, side: Side<'_>, seed: Seed, lookup: &Lookup<'_>) -> u64 {
    write_all(places, lookup, |packet, key| underlay::write_key_v4(side, packet, key, seed))
}

/// As [`write_keys_of_tunnels_v4`], for either version.
#[inline(never)]
fn write_keys_of_tunnels(places: Places<'_>, side: Side<'_>, seed: Seed, lookup: &Lookup<'_>) -> u64 {
    write_all(places, lookup, |packet, key| underlay::write_key(side, packet, key, seed))
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
