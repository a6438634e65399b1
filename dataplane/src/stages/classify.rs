//! Second stage: which rule decides. Traps what is trapped by default unless a rule names it.
//!
//! Packets with a flow key ask the flow cache, all of a burst side by side. What it does not know is admitted in full, asks
//! the rule tables as packets without a key do, and is remembered: also that no rule matches, so that a flood of
//! unwanted packets costs little. Nothing is remembered about what is trapped by default.

use super::admit::admit_flow;
use super::ledger::Ledger;
use super::parcel::{Meta, Parcels, Parts, Verdict, Words, each_place};
use crate::action::{Action, PortId};
use crate::counters::DropReason;
use crate::flows::cache::{Decision, FlowCache, NO_SLOT};
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::INGRESS_WORDS;
use crate::rules::table::Hit;
use crate::snapshot::{PortRole, Snapshot};
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::stage::Stage;
use forebay_pipeline::tsc;
use forebay_sriov::Packet;

/// The second stage.
pub struct Classify {
    snapshot: Subscriber<Snapshot>,
    ledger: Ledger,
    flows: FlowCache,
}

impl Classify {
    /// A stage that counts the hits of rules in that book and remembers decisions in `flows`.
    pub fn new(snapshot: Subscriber<Snapshot>, ledger: Ledger, flows: FlowCache) -> Classify {
        Classify { snapshot, ledger, flows }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        self.snapshot.refresh();
    }
}

/// Of the opaque field and tunnel type, without family and uplink: what [`Snapshot::known_tunnels`] holds.
const OPAQUE_AND_TYPE: u64 = !0 << 24;

/// Why no rule matched: the tunnel is not known at all, or its rules want other packets.
#[cold]
fn no_match(snapshot: &Snapshot, words: &[u64; INGRESS_WORDS]) -> DropReason {
    match snapshot.known_tunnels.contains(&(words[KEY_WORDS] & OPAQUE_AND_TYPE)) {
        true => DropReason::NoRule,
        false => DropReason::UnknownTunnel,
    }
}

/// The generation of the tables that decide about a port's packets; `None` where the port is gone.
#[inline(always)]
fn generation(snapshot: &Snapshot, port: PortId) -> Option<u32> {
    Some(match &snapshot.port(port)?.role {
        PortRole::Vf(vf) => vf.generation,
        PortRole::Uplink(_) => snapshot.ingress_generation,
    })
}

/// Bytes that count for a rule: as received, or inside the tunnel.
#[inline(always)]
fn counted_bytes(packet: &Packet, meta: &Meta) -> u32 {
    (packet.len() - usize::from(meta.inner_offset)) as u32
}

impl Classify {
    /// Decides about the packets whose flows are known. Returns the places of the others.
    #[inline(never)]
    fn recall(&mut self, burst: &mut Parcels) -> u64 {
        let Classify { snapshot, ledger, flows } = self;
        let snapshot = snapshot.current();
        let keyed = burst.keyed;
        let Parts { packets, metas, keys, .. } = burst.parts();
        // Keys of places without their bit are old ones: looking for them does no harm.
        keys.iter().for_each(|key| flows.prefetch_set(key));
        for key in keys.iter_mut() {
            key.candidate = flows.candidate(key);
        }
        let mut missed = 0;
        let (mut known_port, mut tables) = (PortId(u16::MAX), None);
        let mut bits = keyed;
        for ((packet, meta), key) in packets.iter().zip(metas.iter_mut()).zip(keys.iter_mut()) {
            let is_keyed = bits & 1 != 0;
            bits >>= 1;
            missed = missed >> 1 | u64::from(is_keyed) << 63;
            key.slot = NO_SLOT;
            if !is_keyed {
                continue;
            }
            if meta.port != known_port {
                known_port = meta.port;
                tables = generation(snapshot, known_port);
            }
            let hit = tables.and_then(|tables| flows.hit(key, tables, counted_bytes(packet, meta)));
            let Some(Decision { action, slot, flow_hash, affinity }) = hit else { continue };
            meta.act(action);
            meta.flow_hash = flow_hash;
            meta.affinity = affinity;
            key.slot = slot;
            missed &= !(1 << 63);
            ledger.prefetch_rule(slot);
        }
        missed = missed.checked_shr(64 - packets.len() as u32).unwrap_or(0);
        for ((packet, meta), key) in packets.iter().zip(metas.iter()).zip(keys.iter()) {
            ledger.matched(key.slot, u64::from(counted_bytes(packet, meta)));
        }
        missed
    }

    /// Decides about the packets at these places, and about those that were admitted in full, by the rule tables.
    #[inline(never)]
    fn look_up(&mut self, burst: &mut Parcels, missed: u64) {
        let Classify { snapshot, ledger, flows } = self;
        let snapshot = snapshot.current();
        let mut wanted = burst.admitted;
        let Parts { packets, metas, keys, words } = burst.parts();
        each_place(missed, |place| {
            let (Some(packet), Some(meta)) = (packets.get_mut(place), metas.get_mut(place)) else { return };
            if let Some(words) = words.get_mut(place)
                && admit_flow(snapshot, packet, meta, words)
            {
                wanted |= 1 << place;
            }
        });
        // Packets of one port ask its table together, so that their misses in memory overlap.
        while wanted != 0 {
            let first = wanted.trailing_zeros() as usize;
            let Some(port) = metas.get(first).map(|meta| meta.port) else { return };
            let mut places = Batch::<usize>::new();
            each_place(wanted, |place| {
                if metas.get(place).is_some_and(|meta| meta.port == port) {
                    places.push(place);
                }
            });
            let mut found = [Err(DropReason::PortDown); BATCH];
            find_all(snapshot, port, words, &places, &mut found);
            let tables = generation(snapshot, port);
            for (place, found) in places.into_iter().zip(found) {
                wanted &= !(1 << place);
                let (Some(packet), Some(meta)) = (packets.get(place), metas.get_mut(place)) else { continue };
                let bytes = counted_bytes(packet, meta);
                let Some(decision) = settle(meta, found, bytes, ledger) else { continue };
                if missed >> place & 1 != 0
                    && let Some((key, tables)) = keys.get(place).zip(tables)
                {
                    flows.learn(key, tables, decision, bytes);
                }
            }
        }
    }
}

/// What the rules of `port` say about the packets at these places.
fn find_all(
    snapshot: &Snapshot,
    port: PortId,
    words: &[Words],
    places: &[usize],
    found: &mut [Result<Hit, DropReason>; BATCH],
) {
    let Some(port) = snapshot.port(port) else { return };
    let mut hits = [None; BATCH];
    let hits = hits.get_mut(..places.len()).unwrap_or_default();
    let of_packets = places.iter().filter_map(|place| words.get(*place));
    match &port.role {
        PortRole::Vf(vf) => {
            let keys: Batch<[u64; KEY_WORDS]> =
                of_packets.filter_map(|words| words.first_chunk().copied()).collect();
            vf.rules.lookup_batch(&keys, hits);
            for (found, hit) in found.iter_mut().zip(hits) {
                *found = hit.ok_or(DropReason::NoRule);
            }
        }
        PortRole::Uplink(_) => {
            let keys: Batch<Words> = of_packets.copied().collect();
            snapshot.ingress.lookup_batch(&keys, hits);
            for ((found, hit), words) in found.iter_mut().zip(hits).zip(&keys) {
                *found = hit.ok_or_else(|| no_match(snapshot, words));
            }
        }
    }
}

/// Writes the verdict. Returns what may be remembered about the flow: nothing of what is trapped by default.
fn settle(meta: &mut Meta, found: Result<Hit, DropReason>, bytes: u32, ledger: &Ledger) -> Option<Decision> {
    let (slot, action) = match found {
        Ok(Hit { names_layer2: false, .. }) | Err(_) if meta.trap_by_default => {
            meta.verdict = Verdict::Trap;
            return None;
        }
        Ok(Hit { slot, action, .. }) => {
            ledger.matched(slot, u64::from(bytes));
            (slot, action.into())
        }
        Err(reason) => (NO_SLOT, Action::Drop(reason).into()),
    };
    meta.act(action);
    let Meta { flow_hash, affinity, trap_by_default, .. } = *meta;
    (!trap_by_default).then_some(Decision { action, slot, flow_hash, affinity })
}

impl Stage<Parcels> for Classify {
    const NAME: &'static str = "classify";

    #[inline(never)]
    fn process(&mut self, burst: &mut Parcels) {
        self.flows.tick(tsc::now());
        let missed = if burst.keyed == 0 { 0 } else { self.recall(burst) };
        if missed | burst.admitted != 0 {
            self.look_up(burst, missed);
        }
    }
}
