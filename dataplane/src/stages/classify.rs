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
use crate::snapshot::{PortRole, Snapshot};
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
fn missed(snapshot: &Snapshot, words: &[u64; INGRESS_WORDS]) -> DropReason {
    match snapshot.known_tunnels.contains(&(words[KEY_WORDS] & OPAQUE_AND_TYPE)) {
        true => DropReason::NoRule,
        false => DropReason::UnknownTunnel,
    }
}

/// The rule that decides: its counters' slot, its action, and whether it names layer 2.
#[inline(always)]
fn decide(snapshot: &Snapshot, port: PortId, words: &Words) -> Result<(u32, Action, bool), DropReason> {
    let port = snapshot.port(port).ok_or(DropReason::PortDown)?;
    let found = match &port.role {
        PortRole::Vf(vf) => {
            let words = words.first_chunk::<KEY_WORDS>().ok_or(DropReason::NoRule)?;
            vf.rules.lookup(words).map(|rule| (rule.slot, rule.action, rule.names_layer2))
        }
        PortRole::Uplink(_) => {
            snapshot.ingress.lookup(words).map(|rule| (rule.slot, rule.action, rule.names_layer2))
        }
    };
    found.ok_or_else(|| match &port.role {
        PortRole::Vf(_) => DropReason::NoRule,
        PortRole::Uplink(_) => missed(snapshot, words),
    })
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

    /// Decides about the packets at these places by the rule tables.
    #[inline(never)]
    fn look_up(&mut self, burst: &mut Parcels, missed: u64) {
        let Classify { snapshot, ledger, flows } = self;
        let snapshot = snapshot.current();
        let admitted = burst.admitted;
        let Parts { packets, metas, keys, words } = burst.parts();
        each_place(missed | admitted, |place| {
            let (Some(packet), Some(meta)) = (packets.get_mut(place), metas.get_mut(place)) else { return };
            let (Some(key), Some(words)) = (keys.get(place), words.get_mut(place)) else { return };
            let is_flow = missed >> place & 1 != 0;
            if is_flow && !admit_flow(snapshot, packet, meta, words) {
                return;
            }
            let bytes = counted_bytes(packet, meta);
            let decided = decide(snapshot, meta.port, words);
            let learned = match decided {
                Ok((_, _, false)) | Err(_) if meta.trap_by_default => {
                    meta.verdict = Verdict::Trap;
                    return;
                }
                Ok((slot, action, _)) => {
                    ledger.matched(slot, u64::from(bytes));
                    (slot, action)
                }
                Err(reason) => (NO_SLOT, Action::Drop(reason)),
            };
            meta.act(learned.1.into());
            if is_flow
                && !meta.trap_by_default
                && let Some(tables) = generation(snapshot, meta.port)
            {
                let decision = decision_of(meta, learned);
                flows.learn(key, tables, decision, bytes);
            }
        });
    }
}

fn decision_of(meta: &Meta, (slot, action): (u32, Action)) -> Decision {
    Decision { action: action.into(), slot, flow_hash: meta.flow_hash, affinity: meta.affinity }
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
