//! What a worker does in a round: receive, run the stages, dispatch.
//!
//! One [`PacketTask`] serves every layout: a worker has a *front* (receive, recall, admit, classify), a *back* (transform, dispatch), or both. Where
//! it has both, the stages are one chain of plain calls over the same batch; where it has one, a ring joins it to the
//! others. Changes come from the control side as [`Command`]s between rounds.

use crate::counters::DropReason;
use crate::flows::listing::Listing;
use crate::snapshot::MAX_DEVICES;
use crate::stages::admit::Admit;
use crate::stages::classify::Classify;
use crate::stages::dispatch::{Dispatch, Handoff, Way};
use crate::stages::ledger::Ledger;
use crate::stages::parcel::{Meta, Parcel, Parcels};
use crate::stages::parking::PLACES;
use crate::stages::recall::Recall;
use crate::stages::receive::Receive;
use crate::stages::transform::Transform;
use crate::upstream::Upstream;
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::bell::Watch;
use forebay_pipeline::counters::{Histogram, StageCounters};
use forebay_pipeline::ring::{RingConsumer, RingProducer};
use forebay_pipeline::stage::{Chain, Stage};
use forebay_pipeline::tsc;
use forebay_pipeline::worker::{Round, Task};
use forebay_sriov::{Eal, RegisteredThread, RxQueue};
use std::cell::RefCell;
use std::sync::Arc;

/// What the control side asks of a worker.
pub enum Command {
    /// Poll this queue.
    Receive(RxQueue),
    /// Reach the device that way.
    Reach {
        /// The DPDK device.
        device: u16,
        /// How.
        way: Way,
    },
    /// Let go of every queue of a device.
    Release {
        /// The DPDK device.
        device: u16,
    },
    /// Report what the flow cache holds, a piece in each round.
    ListFlows(Listing),
}

/// Batches taken from each ring per round: as many as a device can bring.
const BATCHES_PER_ROUND: usize = 4;

/// Receive, recall, admit, classify; then to the backs.
pub struct Front {
    /// The receive queues.
    pub receive: Receive,
    /// The stages.
    pub chain: Chain<(Recall, Admit, Classify)>,
    /// The rings to the backs; one flow always takes the same.
    pub backs: Vec<RingProducer<Parcel>>,
    /// What goes to each back, empty between bursts.
    pub outgoing: Vec<Box<Batch<Parcel>>>,
    /// The worker's book.
    pub ledger: Ledger,
}

/// Transform and dispatch.
pub struct Back {
    /// The stage.
    pub chain: Chain<(Transform,)>,
    /// What every worker with transmit queues has.
    pub exit: Exit,
    /// The rings from the fronts.
    pub fronts: Vec<RingConsumer<Parcel>>,
    /// What the fronts have received behind that, each beside its ring.
    pub upstream: Vec<Upstream>,
    /// What has come from a front, empty between bursts.
    pub incoming: Box<Batch<Parcel>>,
    /// The worker's book.
    pub ledger: Ledger,
}

/// All stages.
pub struct Fused {
    /// The receive queues.
    pub receive: Receive,
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
    /// All of it.
    Fused(Box<Fused>),
    /// The first half.
    Front(Box<Front>),
    /// The second half.
    Back(Box<Back>),
}

/// The work of a packet worker.
pub struct PacketTask {
    eal: Eal,
    part: Part,
    commands: RingConsumer<Command>,
    command_batch: Box<Batch<Command>>,
    batch: Box<Parcels>,
    /// A listing of flows that is under way.
    listing: Option<Listing>,
}

thread_local! {
    /// DPDK's registration of this worker's thread: its packet pool cache. Ends with the thread.
    static REGISTERED: RefCell<Option<RegisteredThread>> = const { RefCell::new(None) };
}

impl PacketTask {
    /// A task that runs `part` and obeys `commands`.
    pub fn new(eal: Eal, part: Part, commands: RingConsumer<Command>) -> PacketTask {
        let (command_batch, batch) = (Box::new(Batch::new()), Box::default());
        PacketTask { eal, part, commands, command_batch, batch, listing: None }
    }

    /// Passes every stage to the newest snapshot, in every round: without traffic too, since the control side waits for
    /// it, and again until each has passed, since none waits for the control side.
    #[inline(always)]
    fn refresh(&mut self) {
        match &mut self.part {
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
                let (recall, admit, classify) = part.chain.stages_mut();
                part.receive.refresh();
                recall.refresh();
                admit.refresh();
                classify.refresh();
            }
            Part::Back(part) => {
                part.chain.stages_mut().0.refresh();
                part.exit.dispatch.refresh();
            }
        }
    }

    #[cold]
    fn obey(&mut self) {
        self.commands.pop(&mut self.command_batch);
        for command in self.command_batch.drain(..) {
            match (command, &mut self.part) {
                (Command::Receive(queue), Part::Fused(part)) => part.receive.attach(queue),
                (Command::Receive(queue), Part::Front(part)) => part.receive.attach(queue),
                (Command::Reach { device, way }, Part::Fused(part)) => part.exit.dispatch.attach(device, way),
                (Command::Reach { device, way }, Part::Back(part)) => part.exit.dispatch.attach(device, way),
                (Command::Release { device }, part) => part.release(device),
                (Command::ListFlows(listing), _) => self.listing = Some(listing),
                // The control side gives receive queues to fronts and transmit queues to backs; a queue that comes
                // here all the same is closed by being dropped.
                (Command::Receive(_), Part::Back(_)) | (Command::Reach { .. }, Part::Front(_)) => {}
            }
        }
    }
}

impl PacketTask {
    /// Goes on with a listing of flows. True while it is not through.
    #[cold]
    fn list_flows(&mut self) -> bool {
        let Some(listing) = &mut self.listing else { return false };
        let flows = match &mut self.part {
            Part::Fused(part) => Some(part.chain.stages_mut().0.flows(&mut self.batch)),
            Part::Front(part) => Some(part.chain.stages_mut().0.flows(&mut self.batch)),
            Part::Back(_) => None,
        };
        let goes_on = listing.go_on(flows);
        if !goes_on {
            self.listing = None;
        }
        goes_on
    }
}

impl Part {
    fn release(&mut self, device: u16) {
        match self {
            Part::Fused(part) => {
                part.receive.detach(device);
                part.exit.dispatch.detach(device);
            }
            Part::Front(part) => part.receive.detach(device),
            Part::Back(part) => part.exit.dispatch.detach(device),
        }
    }
}

impl Fused {
    #[inline(always)]
    fn round(&mut self, batch: &mut Parcels) -> usize {
        let mut items = self.exit.serve_side();
        for _ in 0..self.receive.queue_count() {
            let entered = self.receive.receive(batch);
            if !batch.is_empty() {
                items += batch.len();
                let at = self.chain.run_from(batch, entered);
                self.exit.dispatch(batch, entered, at);
            }
        }
        items
    }
}

impl Front {
    #[inline(always)]
    fn round(&mut self, batch: &mut Parcels) -> usize {
        let mut items = 0;
        for _ in 0..self.receive.queue_count() {
            let entered = self.receive.receive(batch);
            if !batch.is_empty() {
                items += batch.len();
                self.chain.run_from(batch, entered);
                self.hand_on(batch);
            }
        }
        items
    }

    /// Gives each flow to its back. What a full ring does not take is dropped.
    #[inline(always)]
    fn hand_on(&mut self, burst: &mut Parcels) {
        let count = self.backs.len().max(1);
        for (packet, meta) in burst.drain() {
            let back = usize::from(meta.decision.affinity) % count;
            if let Some(out) = self.outgoing.get_mut(back) {
                let sequence = self.ledger.newest(meta.port) as u16;
                out.push(Parcel { packet, meta: Meta { sequence, ..*meta } });
            }
        }
        for (back, out) in self.backs.iter_mut().zip(&mut self.outgoing) {
            if !out.is_empty() {
                push(back, out, &self.ledger);
            }
        }
    }
}

fn push(ring: &mut RingProducer<Parcel>, batch: &mut Batch<Parcel>, ledger: &Ledger) {
    batch.iter().for_each(|parcel| ledger.handed(parcel.meta.port));
    ring.push(batch);
    for parcel in batch.drain(..) {
        ledger.taken(parcel.meta.port);
        ledger.dropped(parcel.meta.port, DropReason::RingFull);
    }
}

impl Back {
    #[inline(always)]
    fn round(&mut self, batch: &mut Parcels) -> usize {
        let mut items = self.exit.serve_side();
        for (ring, upstream) in self.fronts.iter_mut().zip(&mut self.upstream) {
            for _ in 0..BATCHES_PER_ROUND {
                if ring.pop(&mut self.incoming) == 0 {
                    break;
                }
                items += self.incoming.len();
                if let Some(Parcel { meta, .. }) = self.incoming.last() {
                    upstream.came(meta.port, meta.sequence);
                }
                for parcel in self.incoming.drain(..) {
                    self.ledger.taken(parcel.meta.port);
                    // The burst is empty, and as long as a batch: there is room.
                    if let Err(Parcel { packet, meta }) = batch.push(parcel) {
                        self.ledger.dropped(meta.port, DropReason::RingFull);
                        drop(packet);
                    }
                }
                let entered = tsc::now();
                let at = self.chain.run_from(batch, entered);
                self.exit.dispatch(batch, entered, at);
            }
        }
        items
    }
}

impl Task for PacketTask {
    fn start(&mut self) {
        // Without a registration packets come from the shared pool instead of a cache: slower, not wrong.
        if let Ok(registered) = self.eal.register_thread() {
            REGISTERED.with(|slot| *slot.borrow_mut() = Some(registered));
        }
    }

    #[inline]
    fn round(&mut self) -> Round {
        if !self.commands.is_empty() {
            self.obey();
        }
        self.refresh();
        let items = match &mut self.part {
            Part::Fused(part) => part.round(&mut self.batch),
            Part::Front(part) => part.round(&mut self.batch),
            Part::Back(part) => part.round(&mut self.batch),
        };
        let upstream = match &self.part {
            Part::Back(part) => part.upstream.iter().map(Upstream::behind).sum(),
            Part::Fused(_) | Part::Front(_) => 0,
        };
        let lists = self.listing.is_some() && self.list_flows();
        Round { items, backlog: usize::from(lists), upstream }
    }

    fn arm(&mut self, watch: &mut Watch) {
        if !self.commands.is_empty() {
            watch.work();
        }
        match &mut self.part {
            Part::Fused(part) => {
                part.exit.watch(watch);
                part.receive.arm(watch);
            }
            Part::Front(part) => part.receive.arm(watch),
            Part::Back(part) => {
                part.exit.watch(watch);
                if part.fronts.iter().any(|ring| !ring.is_empty()) {
                    watch.work();
                }
            }
        }
    }

    fn disarm(&mut self) {
        match &mut self.part {
            Part::Fused(part) => part.receive.disarm(),
            Part::Front(part) => part.receive.disarm(),
            Part::Back(_) => {}
        }
    }

    fn drain(&mut self) -> bool {
        match &mut self.part {
            Part::Fused(part) => {
                part.exit.serve_side();
                part.exit.is_empty()
            }
            Part::Front(_) => true,
            Part::Back(part) => {
                part.round(&mut self.batch);
                part.exit.is_empty() && part.fronts.iter().all(RingConsumer::is_empty)
            }
        }
    }

    fn recover(&mut self) {
        self.batch.clear();
        self.command_batch.clear();
        self.listing = None;
        match &mut self.part {
            Part::Fused(part) => {
                part.exit.batch.clear();
                part.exit.dispatch.abandon(DropReason::WorkerPanic);
                part.ledger.reconcile();
            }
            Part::Front(part) => {
                part.outgoing.iter_mut().for_each(|batch| batch.clear());
                part.ledger.reconcile();
            }
            Part::Back(part) => {
                part.incoming.clear();
                part.exit.batch.clear();
                part.exit.dispatch.abandon(DropReason::WorkerPanic);
                part.ledger.reconcile();
            }
        }
    }
}

/// Commands that can wait for a worker: each device is attached and released by three at most.
pub const COMMANDS: usize = MAX_DEVICES * 4;

/// Packets that a ring between two workers holds: 16 batches, some 100 us of the slower half's work.
pub const RING_PACKETS: usize = 16 * BATCH;
