//! Second stage: which rule decides. Traps what is trapped by default unless a rule names it.

use super::ledger::Ledger;
use super::parcel::{Meta, Parcel, Verdict};
use crate::action::Action;
use crate::counters::DropReason;
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::INGRESS_WORDS;
use crate::snapshot::{PortRole, Snapshot};
use forebay_pipeline::batch::Batch;
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::stage::Stage;

/// The second stage.
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
fn missed(snapshot: &Snapshot, words: &[u64; INGRESS_WORDS]) -> DropReason {
    match snapshot.known_tunnels.contains(&(words[KEY_WORDS] & OPAQUE_AND_TYPE)) {
        true => DropReason::NoRule,
        false => DropReason::UnknownTunnel,
    }
}

/// The rule that decides: its counters' slot, its action, and whether it names layer 2.
#[inline(always)]
fn decide(snapshot: &Snapshot, meta: &Meta) -> Result<(u32, Action, bool), DropReason> {
    let port = snapshot.port(meta.port).ok_or(DropReason::PortDown)?;
    let found = match &port.role {
        PortRole::Vf(vf) => {
            let words = meta.words.first_chunk::<KEY_WORDS>().ok_or(DropReason::NoRule)?;
            vf.rules.lookup(words).map(|hit| (hit.slot, hit.action, hit.names_layer2))
        }
        PortRole::Uplink(_) => {
            snapshot.ingress.lookup(&meta.words).map(|hit| (hit.slot, hit.action, hit.names_layer2))
        }
    };
    found.ok_or_else(|| match &port.role {
        PortRole::Vf(_) => DropReason::NoRule,
        PortRole::Uplink(_) => missed(snapshot, &meta.words),
    })
}

impl Stage<Parcel> for Classify {
    const NAME: &'static str = "classify";

    fn process(&mut self, batch: &mut Batch<Parcel>) {
        let snapshot = self.snapshot.current();
        for Parcel { packet, meta } in batch.iter_mut().filter(|parcel| parcel.meta.verdict == Verdict::Open)
        {
            meta.verdict = match decide(snapshot, meta) {
                Ok((_, _, false)) | Err(_) if meta.trap_by_default => Verdict::Trap,
                Ok((slot, action, _)) => {
                    self.ledger.matched(slot, (packet.len() - usize::from(meta.inner_offset)) as u64);
                    Verdict::Act(action)
                }
                Err(reason) => Verdict::Drop(reason),
            };
        }
    }
}
