//! Third stage: which rule decides about what was admitted. Traps what is trapped by default unless a rule names it.
//!
//! What is decided about a packet with a flow key is handed back for the flow cache: also that no rule matches, so that
//! a flood of unwanted packets costs little. Nothing is remembered about what is trapped by default.

use super::ledger::Ledger;
use super::parcel::{Lesson, Meta, Parcels, Parts, Verdict, Words, each_place};
use crate::action::Action;
use crate::counters::DropReason;
use crate::flows::cache::{Decision, NO_SLOT};
use crate::rules::key::KEY_WORDS;
use crate::rules::table::Hit;
use crate::snapshot::{PortEntry, PortRole, Snapshot};
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::stage::Stage;

/// The third stage.
pub struct Classify {
    snapshot: Subscriber<Snapshot>,
    ledger: Ledger,
}

impl Classify {
    /// A stage that counts the hits of rules in that book.
    pub fn new(snapshot: Subscriber<Snapshot>, ledger: Ledger) -> Classify {
        Classify { snapshot, ledger }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        self.snapshot.refresh();
    }
}

/// Of the opaque field and tunnel type, without family and uplink: what [`Snapshot::known_tunnels`] holds.
const OPAQUE_AND_TYPE: u64 = !0 << 24;

/// Why no rule of a port matched: a tunnel is not known at all, or its rules want other packets.
#[cold]
#[inline(never)]
fn no_match(snapshot: &Snapshot, port: Option<&PortEntry>, words: &Words) -> DropReason {
    let known = || snapshot.known_tunnels.contains(&(words[KEY_WORDS] & OPAQUE_AND_TYPE));
    match port.map(|port| &port.role) {
        None => DropReason::PortDown,
        Some(PortRole::Uplink(_)) if !known() => DropReason::UnknownTunnel,
        Some(PortRole::Uplink(_) | PortRole::Vf(_)) => DropReason::NoRule,
    }
}

/// What the rules of `port` say about the packets at these places.
#[inline(always)]
fn find_all(
    snapshot: &Snapshot,
    port: &PortEntry,
    words: &[Words],
    places: &[usize],
    hits: &mut [Option<Hit>],
) {
    let of_packets = places.iter().filter_map(|place| words.get(*place));
    match &port.role {
        PortRole::Vf(vf) => {
            let keys: Batch<[u64; KEY_WORDS]> =
                of_packets.filter_map(|words| words.first_chunk().copied()).collect();
            vf.rules.lookup_batch(&keys, hits);
        }
        PortRole::Uplink(_) => {
            let keys: Batch<Words> = of_packets.copied().collect();
            snapshot.ingress.lookup_batch(&keys, hits);
        }
    }
}

/// Asks for what will be written and read about these rules: their counters, and the tunnels that they lead to.
#[inline(always)]
fn expect(snapshot: &Snapshot, ledger: &Ledger, hits: &[Option<Hit>]) {
    let (rules, tunnels) = (ledger.rules(), snapshot.tunnels.slots());
    for hit in hits.iter().flatten() {
        rules.prefetch(hit.slot);
        if let Action::Forward { tunnel, .. } = hit.action {
            tunnels.prefetch(tunnel.slot);
        }
    }
}

/// Writes the verdict. Returns what may be remembered about the flow: nothing of what is trapped by default.
#[inline(always)]
fn settle(
    meta: &mut Meta,
    hit: Option<Hit>,
    bytes: u32,
    ledger: &Ledger,
    no_match: impl FnOnce() -> DropReason,
) -> Option<Decision> {
    if meta.trap_by_default && !hit.is_some_and(|hit| hit.names_layer2) {
        meta.verdict = Verdict::Trap;
        return None;
    }
    let (slot, action) = match hit {
        Some(Hit { slot, action, .. }) => {
            ledger.matched(slot, u64::from(bytes));
            (slot, action)
        }
        None => (NO_SLOT, Action::Drop(no_match())),
    };
    meta.act(&Decision { action: action.into(), slot, ..meta.decision });
    (!meta.trap_by_default).then_some(meta.decision)
}

impl Stage<Parcels> for Classify {
    const NAME: &'static str = "classify";

    #[inline(never)]
    fn process(&mut self, burst: &mut Parcels) {
        let may_learn = burst.may_learn && self.snapshot.version() >= burst.keyed_by;
        let snapshot = self.snapshot.current();
        let mut wanted = burst.admitted;
        let keyed = if may_learn { burst.keyed } else { 0 };
        let Parts { packets, metas, words, lessons, .. } = burst.parts();
        // Packets of one port ask its table together, so that their misses in memory overlap.
        while wanted != 0 {
            let first = wanted.trailing_zeros() as usize;
            let Some(port) = metas.get(first).map(|meta| meta.port) else { break };
            let mut places = Batch::<usize>::new();
            each_place(wanted, |place| {
                if metas.get(place).is_some_and(|meta| meta.port == port) {
                    places.push(place);
                }
            });
            let mut hits = [None; BATCH];
            let hits = hits.get_mut(..places.len()).unwrap_or_default();
            let port = snapshot.port(port);
            if let Some(port) = port {
                find_all(snapshot, port, words, &places, hits);
                expect(snapshot, &self.ledger, hits);
            }
            for (place, hit) in places.into_iter().zip(hits) {
                wanted &= !(1 << place);
                let (Some(packet), Some(meta), Some(words)) =
                    (packets.get(place), metas.get_mut(place), words.get(place))
                else {
                    continue;
                };
                let bytes = meta.counted_bytes(packet);
                let no_match = || no_match(snapshot, port, words);
                let Some(decision) = settle(meta, *hit, bytes, &self.ledger, no_match) else { continue };
                if keyed >> place & 1 != 0 {
                    lessons.push(Lesson { place, decision, bytes });
                }
            }
        }
    }
}
