//! What a worker runs of the pipeline: all of it, a beginning, or an end.

use crate::counters::DropReason;
use crate::stages::admit::Admit;
use crate::stages::classify::Classify;
use crate::stages::dispatch::{Dispatch, Handoff};
use crate::stages::inbox::Inboxes;
use crate::stages::ledger::Ledger;
use crate::stages::parcel::Parcels;
use crate::stages::parking::PLACES;
use crate::stages::recall::Recall;
use crate::stages::receive::Receive;
use crate::stages::spread::Spread;
use crate::stages::transform::Transform;
use forebay_pipeline::batch::Batch;
use forebay_pipeline::bell::Watch;
use forebay_pipeline::counters::{Histogram, StageCounters};
use forebay_pipeline::ring::RingConsumer;
use forebay_pipeline::stage::{Chain, Stage};
use forebay_pipeline::tsc;
use std::sync::Arc;

/// Batches taken from each ring per round: as many as a device can bring.
const BATCHES_PER_ROUND: usize = 4;

/// The beginning: receive or take over; recall, admit and classify, or none of these; then to those who go on.
pub struct Front {
    /// The receive queues.
    pub receive: Receive,
    /// What comes from workers that only receive.
    pub inboxes: Inboxes,
    /// The stages, if any.
    pub chain: Option<Chain<(Recall, Admit, Classify)>>,
    /// To the workers that go on.
    pub spread: Spread,
    /// The worker's book.
    pub ledger: Ledger,
}

/// The end: transform and dispatch.
pub struct Back {
    /// The stage.
    pub chain: Chain<(Transform,)>,
    /// What every worker with transmit queues has.
    pub exit: Exit,
    /// From the fronts.
    pub inboxes: Inboxes,
    /// The worker's book.
    pub ledger: Ledger,
}

/// All stages, or all but the receiving.
pub struct Fused {
    /// The receive queues.
    pub receive: Receive,
    /// What comes from workers that only receive.
    pub inboxes: Inboxes,
    /// The stages.
    pub chain: Chain<(Recall, Admit, Classify, Transform)>,
    /// The way out.
    pub exit: Exit,
    /// The worker's book.
    pub ledger: Ledger,
}

/// The way out: the last stage, and what comes from the side.
pub struct Exit {
    /// The last stage.
    pub dispatch: Dispatch,
    /// Its figures, without what devices took.
    pub counters: Arc<StageCounters>,
    /// Nanoseconds from after receive to after transmit, per packet.
    pub residence_ns: Arc<Histogram>,
    /// From other workers and the control side.
    pub handoffs: Vec<RingConsumer<Handoff>>,
    /// Room for them.
    pub batch: Box<Batch<Handoff>>,
}

impl Exit {
    /// Sends what a batch became. `entered` is when it had been received, `at` when the last stage ended.
    #[inline(always)]
    fn dispatch(&mut self, batch: &mut Parcels, entered: u64, at: u64) {
        let packets = batch.len() as u64;
        self.dispatch.process(batch);
        let now = tsc::now();
        let io = self.dispatch.take_io_cycles();
        self.counters.record(packets, now.saturating_sub(at + io));
        self.residence_ns.record(tsc::to_ns(now.saturating_sub(entered)), packets);
    }

    /// Packets from other workers, and those whose neighbour has answered.
    #[inline(always)]
    fn serve_side(&mut self) -> usize {
        let mut items = self.dispatch.look_after_parking();
        for ring in &mut self.handoffs {
            for _ in 0..BATCHES_PER_ROUND {
                let taken = ring.pop(&mut self.batch);
                if taken == 0 {
                    break;
                }
                items += taken;
                self.dispatch.take_over(&mut self.batch);
            }
        }
        items
    }

    fn is_empty(&self) -> bool {
        self.handoffs.iter().all(RingConsumer::is_empty)
    }

    /// Says what the worker is to wait for that is about to sleep.
    fn watch(&self, watch: &mut Watch) {
        if !self.is_empty() {
            watch.work();
        }
        if self.dispatch.waiting() > 0 {
            // Nobody rings when a next hop has answered.
            watch.unannounced(PLACES);
        }
    }
}

/// The part of the pipeline that a worker runs.
pub enum Part {
    /// All of it, or all but the receiving.
    Fused(Box<Fused>),
    /// A beginning.
    Front(Box<Front>),
    /// The end.
    Back(Box<Back>),
}

/// Where the packets of a worker have gone that others still have to send on.
pub struct Marks {
    ways: Vec<u64>,
    handoffs: Vec<u64>,
}

impl Part {
    /// One turn; `receives` unless no packets are to be let in.
    #[inline(always)]
    pub(super) fn round(&mut self, batch: &mut Parcels, receives: bool) -> usize {
        match self {
            Part::Fused(part) => part.round(batch, receives),
            Part::Front(part) => part.round(batch, receives),
            Part::Back(part) => part.round(batch),
        }
    }

    /// Passes every stage to the newest snapshot.
    #[inline(always)]
    pub(super) fn refresh(&mut self) {
        match self {
            Part::Fused(part) => {
                let (recall, admit, classify, transform) = part.chain.stages_mut();
                part.receive.refresh();
                recall.refresh();
                admit.refresh();
                classify.refresh();
                transform.refresh();
                part.exit.dispatch.refresh();
            }
            Part::Front(part) => {
                part.receive.refresh();
                if let Some(chain) = &mut part.chain {
                    let (recall, admit, classify) = chain.stages_mut();
                    recall.refresh();
                    admit.refresh();
                    classify.refresh();
                }
            }
            Part::Back(part) => {
                part.chain.stages_mut().0.refresh();
                part.exit.dispatch.refresh();
            }
        }
    }

    pub(super) fn receive(&mut self) -> Option<&mut Receive> {
        match self {
            Part::Fused(part) => Some(&mut part.receive),
            Part::Front(part) => Some(&mut part.receive),
            Part::Back(_) => None,
        }
    }

    pub(super) fn inboxes(&mut self) -> &mut Inboxes {
        match self {
            Part::Fused(part) => &mut part.inboxes,
            Part::Front(part) => &mut part.inboxes,
            Part::Back(part) => &mut part.inboxes,
        }
    }

    pub(super) fn exit(&mut self) -> Option<&mut Exit> {
        match self {
            Part::Fused(part) => Some(&mut part.exit),
            Part::Back(part) => Some(&mut part.exit),
            Part::Front(_) => None,
        }
    }

    pub(super) fn spread(&mut self) -> Option<&mut Spread> {
        match self {
            Part::Front(part) => Some(&mut part.spread),
            Part::Fused(_) | Part::Back(_) => None,
        }
    }

    pub(super) fn recall(&mut self) -> Option<&mut Recall> {
        match self {
            Part::Fused(part) => Some(&mut part.chain.stages_mut().0),
            Part::Front(part) => part.chain.as_mut().map(|chain| &mut chain.stages_mut().0),
            Part::Back(_) => None,
        }
    }

    /// Packets that wait for a next hop.
    pub(super) fn waiting(&mut self) -> usize {
        self.exit().map_or(0, |exit| exit.dispatch.waiting())
    }

    /// Where packets have gone up to now.
    pub(super) fn marks(&mut self) -> Marks {
        Marks {
            ways: self.spread().map(|spread| spread.marks().collect()).unwrap_or_default(),
            handoffs: self.exit().map(|exit| exit.dispatch.marks().collect()).unwrap_or_default(),
        }
    }

    /// Whether whoever they went to has worked on them.
    pub(super) fn is_done_with(&mut self, marks: &Marks) -> bool {
        self.spread().is_none_or(|spread| spread.is_done_with(&marks.ways))
            && self.exit().is_none_or(|exit| exit.dispatch.is_done_with(&marks.handoffs))
    }

    /// Says what the worker is to wait for that is about to sleep.
    pub(super) fn arm(&mut self, watch: &mut Watch) {
        if !self.inboxes().is_empty() {
            watch.work();
        }
        if let Some(exit) = self.exit() {
            exit.watch(watch);
        }
        if let Some(receive) = self.receive() {
            receive.arm(watch);
        }
    }

    pub(super) fn disarm(&mut self) {
        if let Some(receive) = self.receive() {
            receive.disarm();
        }
    }

    /// Passes on what others hand over, and lets nothing in. True once nothing is left.
    pub(super) fn drain(&mut self, batch: &mut Parcels) -> bool {
        self.round(batch, false);
        self.inboxes().is_empty() && self.exit().is_none_or(|exit| exit.is_empty())
    }

    pub(super) fn recover(&mut self) {
        self.inboxes().clear();
        if let Some(spread) = self.spread() {
            spread.clear();
        }
        if let Some(exit) = self.exit() {
            exit.batch.clear();
            exit.dispatch.abandon(DropReason::WorkerPanic);
        }
        match self {
            Part::Fused(part) => part.ledger.reconcile(),
            Part::Front(part) => part.ledger.reconcile(),
            Part::Back(part) => part.ledger.reconcile(),
        }
    }
}

impl Fused {
    #[inline(always)]
    fn round(&mut self, batch: &mut Parcels, receives: bool) -> usize {
        let mut items = self.exit.serve_side();
        let queues = if receives { self.receive.queue_count() } else { 0 };
        for _ in 0..queues {
            let entered = self.receive.receive(batch);
            items += self.work(batch, entered);
        }
        for inbox in 0..self.inboxes.count() {
            for _ in 0..BATCHES_PER_ROUND {
                if self.inboxes.take(inbox, batch) == 0 {
                    break;
                }
                items += self.work(batch, tsc::now());
            }
        }
        items
    }

    #[inline(always)]
    fn work(&mut self, batch: &mut Parcels, entered: u64) -> usize {
        let packets = batch.len();
        if packets > 0 {
            let at = self.chain.run_from(batch, entered);
            self.exit.dispatch(batch, entered, at);
        }
        packets
    }
}

impl Front {
    #[inline(always)]
    fn round(&mut self, batch: &mut Parcels, receives: bool) -> usize {
        let mut items = 0;
        let queues = if receives { self.receive.queue_count() } else { 0 };
        for _ in 0..queues {
            if !self.spread.has_room() {
                break;
            }
            let entered = self.receive.receive(batch);
            items += self.work(batch, entered);
        }
        for inbox in 0..self.inboxes.count() {
            for _ in 0..BATCHES_PER_ROUND {
                if !self.spread.has_room() {
                    self.inboxes.acknowledge(inbox);
                    break;
                }
                if self.inboxes.take(inbox, batch) == 0 {
                    break;
                }
                items += self.work(batch, tsc::now());
            }
        }
        items
    }

    #[inline(always)]
    fn work(&mut self, batch: &mut Parcels, entered: u64) -> usize {
        let packets = batch.len();
        if packets > 0 {
            if let Some(chain) = &mut self.chain {
                chain.run_from(batch, entered);
            }
            self.spread.hand_on(batch);
        }
        packets
    }
}

impl Back {
    #[inline(always)]
    fn round(&mut self, batch: &mut Parcels) -> usize {
        let mut items = self.exit.serve_side();
        for inbox in 0..self.inboxes.count() {
            for _ in 0..BATCHES_PER_ROUND {
                let taken = self.inboxes.take(inbox, batch);
                if taken == 0 {
                    break;
                }
                items += taken;
                batch.write_metas();
                let entered = tsc::now();
                let at = self.chain.run_from(batch, entered);
                self.exit.dispatch(batch, entered, at);
            }
        }
        items
    }
}
