//! What a worker does in a round: receive or take over, run its stages, send or pass on.
//!
//! One [`PacketTask`] serves every layout: [`part`] says what a worker runs of the pipeline. Where it runs all, the stages are
//! one chain of plain calls over the same batch; where it runs some, rings join it to the others. Changes come from the
//! control side as [`Command`]s between rounds.

mod moving;
mod part;

pub use self::part::{Back, Exit, Front, Fused, Part};

use self::moving::Moving;
use crate::flows::listing::Listing;
use crate::snapshot::MAX_DEVICES;
use crate::stages::dispatch::{Handoff, Way};
use crate::stages::inbox::Inbox;
use crate::stages::parcel::{Parcel, Parcels};
use crate::stages::spread::Shares;
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::bell::Watch;
use forebay_pipeline::ring::{RingConsumer, RingProducer};
use forebay_pipeline::worker::{Round, Task};
use forebay_sriov::{Eal, RegisteredThread, RxQueue, TxQueue};
use std::cell::RefCell;

/// What the control side asks of a worker.
pub enum Command {
    /// Poll this queue.
    Receive(RxQueue),
    /// Stop polling this queue of a device, and pass it on once no packet that came from it is on its way any more.
    Give {
        /// The DPDK device.
        device: u16,
        /// The queue's number.
        queue: u16,
        /// To the worker that polls it from then on.
        to: RingProducer<RxQueue>,
    },
    /// Poll the queue that will come from there.
    Take(RingConsumer<RxQueue>),
    /// Let no packets in, or let them in again.
    Pause(bool),
    /// Reach the device that way.
    Reach {
        /// The DPDK device.
        device: u16,
        /// How.
        way: Way,
    },
    /// Give back every transmit queue.
    Return(RingProducer<TxQueue>),
    /// Let go of every queue of a device.
    Release {
        /// The DPDK device.
        device: u16,
    },
    /// This is the ring to the worker of that number, for devices that only it can reach; or there is none any more.
    Peer {
        /// The number.
        number: usize,
        /// The ring.
        ring: Option<RingProducer<Handoff>>,
    },
    /// Send what comes from there, too.
    Serve(RingConsumer<Handoff>),
    /// Work on what comes from there, too.
    Inbox(Box<Inbox>),
    /// This is the way to a worker that goes on from here; or there is none any more.
    Onto {
        /// The way's place in the table of shares.
        place: u8,
        /// The ring.
        ring: Option<RingProducer<Parcel>>,
    },
    /// Who of them gets what from now on.
    Share(Box<Shares>),
    /// Report what the flow cache holds, a piece in each round.
    ListFlows(Listing),
}

/// The work of a packet worker.
pub struct PacketTask {
    eal: Eal,
    part: Part,
    commands: RingConsumer<Command>,
    command_batch: Box<Batch<Command>>,
    batch: Box<Parcels>,
    /// No packets are to be let in.
    paused: bool,
    /// Receive queues that come or go.
    moving: Moving,
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
        let moving = Moving::default();
        PacketTask { eal, part, commands, command_batch, batch, paused: false, moving, listing: None }
    }

    #[cold]
    fn obey(&mut self) {
        // To the last pop, which finds nothing: it tells the control side that all is done.
        while self.commands.pop(&mut self.command_batch) > 0 {
            self.obey_batch();
        }
    }

    fn obey_batch(&mut self) {
        let PacketTask { part, moving, paused, listing, command_batch, .. } = self;
        for command in command_batch.drain(..) {
            match command {
                Command::Pause(pause) => *paused = pause,
                Command::Give { device, queue, to } => moving.give(device, queue, to),
                Command::Take(from) => moving.take(from),
                Command::Release { device } => {
                    if let Some(receive) = part.receive() {
                        receive.detach(device);
                    }
                    if let Some(exit) = part.exit() {
                        exit.dispatch.detach(device);
                    }
                }
                Command::Inbox(inbox) => {
                    part.inboxes().forget_ended();
                    part.inboxes().attach(*inbox);
                }
                Command::ListFlows(wanted) => *listing = Some(wanted),
                // What a worker gets that does not fit its part is closed by being dropped; the control side knows the parts.
                Command::Receive(queue) => {
                    if let Some(receive) = part.receive() {
                        receive.attach(queue);
                    }
                }
                Command::Reach { .. } | Command::Return(_) | Command::Peer { .. } | Command::Serve(_) => {
                    if let Some(exit) = part.exit() {
                        obey_about_exit(exit, command);
                    }
                }
                Command::Onto { place, ring } => {
                    if let Some(spread) = part.spread() {
                        match ring {
                            Some(ring) => spread.attach(place, ring),
                            None => spread.detach(place),
                        }
                    }
                }
                Command::Share(shares) => {
                    if let Some(spread) = part.spread() {
                        spread.share(&shares);
                    }
                }
            }
        }
    }

    /// Goes on with a listing of flows. True while it is not through.
    #[cold]
    fn list_flows(&mut self) -> bool {
        let Some(listing) = &mut self.listing else { return false };
        let flows = self.part.recall().map(|recall| recall.flows(&mut self.batch));
        let goes_on = listing.go_on(flows);
        if !goes_on {
            self.listing = None;
        }
        goes_on
    }
}

fn obey_about_exit(exit: &mut Exit, command: Command) {
    match command {
        Command::Reach { device, way } => exit.dispatch.attach(device, way),
        Command::Return(mut to) => {
            for queue in exit.dispatch.take_queues() {
                // Whoever asks for them has made room for all.
                to.push(&mut Batch::from_iter([queue]));
            }
        }
        Command::Peer { number, ring } => exit.dispatch.meet(number, ring),
        Command::Serve(ring) => {
            exit.handoffs.retain(|known| !(known.is_abandoned() && known.is_empty()));
            exit.handoffs.push(ring);
        }
        _ => {}
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
        // In every round: without traffic too, since the control side waits for it, and again until each stage has passed, since
        // none waits for the control side.
        self.part.refresh();
        let moves = !self.moving.is_over() && self.moving.go_on(&mut self.part);
        let items = self.part.round(&mut self.batch, !self.paused);
        let upstream = self.part.inboxes().behind();
        let lists = self.listing.is_some() && self.list_flows();
        Round { items, backlog: usize::from(lists || moves), upstream }
    }

    fn arm(&mut self, watch: &mut Watch) {
        if !self.commands.is_empty() || !self.moving.is_over() {
            watch.work();
        }
        self.part.arm(watch);
    }

    fn disarm(&mut self) {
        self.part.disarm();
    }

    fn drain(&mut self) -> bool {
        self.part.drain(&mut self.batch)
    }

    fn recover(&mut self) {
        self.batch.clear();
        self.command_batch.clear();
        self.listing = None;
        self.part.recover();
    }
}

/// Commands that can wait for a worker: each device is attached and released by three at most.
pub const COMMANDS: usize = MAX_DEVICES * 4;

/// Packets that a ring between two workers holds, unless the config says otherwise: 16 batches, some 100 us of the slower
/// half's work.
pub const RING_PACKETS: usize = 16 * BATCH;
