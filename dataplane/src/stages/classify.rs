//! Third stage: which rule decides about what was admitted. Traps what is trapped by default unless a rule names it.
//!
//! What is decided about a packet with a flow key is handed back for the flow cache: also that no rule matches, so that
//! a flood of unwanted packets costs little. Nothing is remembered about what is trapped by default.

use super::ledger::Ledger;
use super::parcel::{Lesson, Meta, Parcels, Parts, Verdict, Words, each_place};
use crate::action::{Action, PortId};
use crate::counters::DropReason;
use crate::flows::cache::{Decision, NO_SLOT};
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::INGRESS_WORDS;
use crate::rules::table::Hit;
use crate::snapshot::{PortRole, Snapshot};
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

/// Why no rule matched: the tunnel is not known at all, or its rules want other packets.
#[cold]
fn no_match(snapshot: &Snapshot, words: &[u64; INGRESS_WORDS]) -> DropReason {
    match snapshot.known_tunnels.contains(&(words[KEY_WORDS] & OPAQUE_AND_TYPE)) {
        true => DropReason::NoRule,
        false => DropReason::UnknownTunnel,
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
    meta.act(&Decision { action, slot, ..meta.decision });
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
            let mut found = [Err(DropReason::PortDown); BATCH];
            find_all(snapshot, port, words, &places, &mut found);
            for (place, found) in places.into_iter().zip(found) {
                wanted &= !(1 << place);
                let (Some(packet), Some(meta)) = (packets.get(place), metas.get_mut(place)) else { continue };
                let bytes = meta.counted_bytes(packet);
                let Some(decision) = settle(meta, found, bytes, &self.ledger) else { continue };
                if keyed >> place & 1 != 0 {
                    lessons.push(Lesson { place, decision, bytes });
                }
            }
        }
    }
}
