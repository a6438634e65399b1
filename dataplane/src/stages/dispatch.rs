//! Last stage: every packet leaves here, in exactly one way, and is counted.
//!
//! Packets are gathered by transmit queue and handed over in bursts. A device whose transmit queue belongs to another
//! worker is reached through a ring to that worker. Traps go to the control side through a ring as well. Whatever is
//! full costs the packet, with a reason; nobody waits.

use super::ledger::{Class, Ledger, Origin};
use super::parcel::{Exit, Meta, Parcels, Verdict};
use super::parking::Parking;
use super::vlan;
use crate::action::PortId;
use crate::control::notice::{Notice, Notices, Trapped};
use crate::counters::DropReason;
use crate::snapshot::{MAX_DEVICES, Neighbours, Snapshot};
use arrayvec::ArrayVec;
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::counters::StageCounters;
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::ring::RingProducer;
use forebay_pipeline::stage::Stage;
use forebay_pipeline::tsc;
use forebay_sriov::{Packet, PacketBurst, TxQueue};
use std::sync::Arc;

/// A packet that goes to a transmit queue of another worker, or comes from the control side.
pub struct Handoff {
    /// The packet, ready to be sent.
    pub packet: Packet,
    /// How it is to be counted.
    pub origin: Origin,
}

/// The way to a device.
pub enum Way {
    /// This worker's own transmit queue.
    Queue(TxQueue),
    /// The worker of this number (an index into the rings) has the transmit queue.
    Worker(usize),
}

/// Packets that follow each other in a lane and are counted alike.
#[derive(Clone, Copy)]
struct Run {
    origin: Origin,
    packets: u32,
    /// Of all of them.
    bytes: u64,
}

/// Packets on their way to one device.
struct Lane {
    way: Way,
    burst: PacketBurst,
    /// How the packets are counted, in their order.
    runs: ArrayVec<Run, BATCH>,
}

impl Lane {
    /// Whether another packet fits, and is not the last one: that one has the lane emptied.
    #[inline(always)]
    fn has_room(&self) -> bool {
        self.burst.len() < BATCH - 1
    }

    /// Adds a packet, for which there must be room: else it is freed, and not counted. Its run is to be noted.
    #[inline(always)]
    fn push(&mut self, packet: Packet) {
        if self.burst.push(packet).is_err() {
            debug_assert!(false, "a full lane is emptied before another packet comes");
        }
    }

    /// Notes how the last packets are counted.
    #[inline(always)]
    fn note(&mut self, Run { origin, packets, bytes }: Run) {
        match self.runs.last_mut() {
            Some(run) if run.origin.is_like(&origin) => {
                run.packets += packets;
                run.bytes += bytes;
            }
            _ => self.runs.push(Run { origin, packets, bytes }),
        }
    }

    /// Counts the first `sent` packets as sent and the others, which are still in the burst, as refused.
    fn settle(&mut self, mut sent: usize, ledger: &Ledger) {
        let mut unsent = self.burst.iter();
        for run in self.runs.drain(..) {
            let packets = run.packets as usize;
            let done = packets.min(sent);
            sent -= done;
            let left: u64 = unsent.by_ref().take(packets - done).map(|packet| packet.len() as u64).sum();
            if done > 0 {
                ledger.transmitted_many(&run.origin, done as u64, run.bytes.saturating_sub(left));
            }
            (done..packets).for_each(|_| ledger.refused(&run.origin, DropReason::TxFull));
        }
    }
}

/// The last stage.
pub struct Dispatch {
    snapshot: Subscriber<Snapshot>,
    ledger: Ledger,
    neighbours: Arc<Neighbours>,
    notices: Notices,
    traps: RingProducer<Trapped>,
    parking: Parking,
    lanes: [Option<Box<Lane>>; MAX_DEVICES],
    /// Lanes that hold packets: a bit per device.
    filled: u32,
    handoffs: Vec<Option<RingProducer<Handoff>>>,
    transmit: Arc<StageCounters>,
    /// Cycles of this call that went to devices: they are not the stage's own.
    io_cycles: u64,
}

/// What a [`Dispatch`] is made of.
pub struct DispatchParts {
    /// The snapshots.
    pub snapshot: Subscriber<Snapshot>,
    /// The worker's book.
    pub ledger: Ledger,
    /// The MACs of next hops.
    pub neighbours: Arc<Neighbours>,
    /// To the control side.
    pub notices: Notices,
    /// To the trusted software path.
    pub traps: RingProducer<Trapped>,
    /// To the other workers, by their number; none to itself.
    pub handoffs: Vec<Option<RingProducer<Handoff>>>,
    /// Counts what is handed to devices.
    pub transmit: Arc<StageCounters>,
}

impl Dispatch {
    /// A stage without devices.
    pub fn new(parts: DispatchParts) -> Dispatch {
        let parking = Parking::new(parts.ledger.clone());
        Dispatch {
            snapshot: parts.snapshot,
            ledger: parts.ledger,
            neighbours: parts.neighbours,
            notices: parts.notices,
            traps: parts.traps,
            parking,
            lanes: [const { None }; MAX_DEVICES],
            filled: 0,
            handoffs: parts.handoffs,
            transmit: parts.transmit,
            io_cycles: 0,
        }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        if self.snapshot.refresh() && !self.parking.is_empty() {
            let snapshot = self.snapshot.current();
            let is_there = |id| snapshot.port(id).is_some();
            self.parking.retain(DropReason::PortDown, |origin| is_there(origin.from) && is_there(origin.to));
        }
    }

    /// From now on `device` is reached that way.
    pub fn attach(&mut self, device: u16, way: Way) {
        if let Some(lane) = self.lanes.get_mut(usize::from(device)) {
            *lane = Some(Box::new(Lane { way, burst: PacketBurst::new(), runs: ArrayVec::new() }));
        }
    }

    /// Forgets the way to a device. Its transmit queue is closed with it.
    pub fn detach(&mut self, device: u16) {
        self.flush();
        if let Some(lane) = self.lanes.get_mut(usize::from(device)) {
            *lane = None;
        }
    }

    /// Takes every transmit queue away; the devices cannot be reached from here any more, so what still waits for a next hop
    /// is given up.
    pub fn take_queues(&mut self) -> Vec<TxQueue> {
        self.flush();
        self.parking.clear(DropReason::NoNeighbor);
        let lanes = self.lanes.iter_mut().filter_map(Option::take);
        lanes.filter_map(|lane| if let Way::Queue(queue) = lane.way { Some(queue) } else { None }).collect()
    }

    /// The ring to the worker of this number, from now on.
    pub fn meet(&mut self, number: usize, ring: Option<RingProducer<Handoff>>) {
        if self.handoffs.len() <= number {
            self.handoffs.resize_with(number + 1, || None);
        }
        self.handoffs[number] = ring;
    }

    /// How much has gone to each of the other workers up to now.
    pub fn marks(&self) -> impl Iterator<Item = u64> {
        self.handoffs.iter().map(|ring| ring.as_ref().map_or(0, RingProducer::mark))
    }

    /// Whether they have sent all that had gone to them by these marks.
    pub fn is_done_with(&self, marks: &[u64]) -> bool {
        let pairs = self.handoffs.iter().zip(marks);
        pairs
            .filter_map(|(ring, mark)| Some((ring.as_ref()?, *mark)))
            .all(|(ring, mark)| ring.is_done_with(mark))
    }

    /// Packets that wait for a neighbour here.
    pub fn waiting(&self) -> usize {
        self.parking.len()
    }

    /// Sends what waited for a neighbour that is known by now. Returns the number of packets that left.
    #[inline(always)]
    pub fn look_after_parking(&mut self) -> usize {
        let Dispatch {
            parking,
            neighbours,
            snapshot,
            lanes,
            filled,
            ledger,
            handoffs,
            transmit,
            io_cycles,
            ..
        } = self;
        let mut out = Out { lanes, filled, ledger, handoffs, transmit, io_cycles };
        let left = parking.look(neighbours, |mut packet, origin, mac| {
            set_next_hop(&mut packet, mac);
            out.put(snapshot.current(), packet, origin);
        });
        if left > 0 {
            self.flush();
        }
        left
    }

    /// Sends what waits for a next hop that has just become known, before a packet that would overtake it.
    #[cold]
    #[inline(never)]
    fn send_waiting_first(&mut self) {
        self.parking.hurry();
        self.look_after_parking();
    }

    /// Sends what another worker or the control side hands over.
    pub fn take_over(&mut self, batch: &mut Batch<Handoff>) {
        for Handoff { origin, .. } in batch.iter().filter(|handoff| handoff.origin.is_received()) {
            self.ledger.taken(origin.from);
        }
        let (snapshot, mut out) = self.split();
        for Handoff { packet, origin } in batch.drain(..) {
            out.put_ready(snapshot, packet, origin);
        }
        self.flush();
    }

    fn split(&mut self) -> (&Snapshot, Out<'_>) {
        let Dispatch { snapshot, lanes, filled, ledger, handoffs, transmit, io_cycles, .. } = self;
        (snapshot.current(), Out { lanes, filled, ledger, handoffs, transmit, io_cycles })
    }

    /// Hands every gathered packet to its device.
    pub fn flush(&mut self) {
        let (_, mut out) = self.split();
        out.flush();
    }

    /// Cycles that the last calls spent in devices; starts again from zero.
    pub fn take_io_cycles(&mut self) -> u64 {
        std::mem::take(&mut self.io_cycles)
    }

    /// Accounts for everything that is held, after a panic or at the end.
    pub fn abandon(&mut self, reason: DropReason) {
        self.parking.clear(reason);
        for lane in self.lanes.iter_mut().flatten() {
            for Run { origin, packets, .. } in lane.runs.drain(..) {
                (0..packets).for_each(|_| self.ledger.refused(&origin, reason));
            }
            lane.burst.clear();
        }
        self.filled = 0;
    }

    fn trap(&mut self, port: PortId, packet: Packet) {
        let mut batch = Batch::new();
        batch.push(Trapped { port, packet });
        match self.traps.push(&mut batch) {
            1 => self.ledger.trapped(port),
            _ => self.ledger.dropped(port, DropReason::RingFull),
        }
    }
}

/// Writes the MAC that an encapsulated packet lacks.
#[inline(always)]
fn set_next_hop(packet: &mut Packet, mac: [u8; 6]) {
    if let Some(field) = packet.data_mut().first_chunk_mut::<6>() {
        *field = mac;
    }
}

/// The part of the stage that packets leave through.
struct Out<'a> {
    lanes: &'a mut [Option<Box<Lane>>; MAX_DEVICES],
    filled: &'a mut u32,
    ledger: &'a Ledger,
    handoffs: &'a mut Vec<Option<RingProducer<Handoff>>>,
    transmit: &'a StageCounters,
    io_cycles: &'a mut u64,
}

impl Out<'_> {
    /// Puts a packet on its way through `origin.to`, under the tag of a port that is behind one.
    #[inline(always)]
    fn put(&mut self, snapshot: &Snapshot, mut packet: Packet, mut origin: Origin) {
        let vlan = snapshot.port(origin.to).map_or(0, |port| port.vlan);
        if vlan != 0 {
            if !vlan::push(&mut packet, vlan) {
                self.ledger.refused(&origin, DropReason::NoBuffer);
                return;
            }
            origin.bytes += crate::wire::VLAN_TAG_BYTES as u32;
        }
        self.put_ready(snapshot, packet, origin);
    }

    #[inline(always)]
    fn put_ready(&mut self, snapshot: &Snapshot, packet: Packet, origin: Origin) {
        let device = match snapshot.port(origin.to) {
            Some(port) if port.is_up() => usize::from(port.device),
            _ => return self.ledger.refused(&origin, DropReason::PortDown),
        };
        let Some(Some(lane)) = self.lanes.get_mut(device) else {
            return self.ledger.refused(&origin, DropReason::PortDown);
        };
        if let Way::Queue(queue) = &lane.way
            && packet.len() > queue.longest_frame_bytes() as usize
        {
            return self.ledger.refused(&origin, DropReason::TooBig);
        }
        lane.push(packet);
        lane.note(Run { origin, packets: 1, bytes: u64::from(origin.bytes) });
        *self.filled |= 1 << device;
        if lane.burst.len() == BATCH {
            self.flush_lane(device);
        }
    }

    fn flush(&mut self) {
        while *self.filled != 0 {
            self.flush_lane(self.filled.trailing_zeros() as usize);
        }
    }

    fn flush_lane(&mut self, device: usize) {
        *self.filled &= !(1 << device);
        let Some(Some(lane)) = self.lanes.get_mut(device) else { return };
        match &mut lane.way {
            Way::Queue(queue) => {
                let before = tsc::now();
                let offered = lane.burst.len();
                let sent = queue.transmit(&mut lane.burst);
                let cycles = tsc::now() - before;
                *self.io_cycles += cycles;
                self.transmit.record(offered as u64, cycles);
                lane.settle(sent.min(offered), self.ledger);
                lane.burst.clear();
            }
            Way::Worker(number) => {
                let each =
                    lane.runs.drain(..).flat_map(|run| std::iter::repeat_n(run.origin, run.packets as usize));
                let mut batch: Batch<Handoff> = lane
                    .burst
                    .drain()
                    .zip(each)
                    .map(|(packet, origin)| {
                        let bytes = packet.len() as u32;
                        Handoff { packet, origin: Origin { bytes, ..origin } }
                    })
                    .collect();
                for Handoff { origin, .. } in batch.iter().filter(|handoff| handoff.origin.is_received()) {
                    self.ledger.handed(origin.from);
                }
                if let Some(Some(ring)) = self.handoffs.get_mut(*number) {
                    ring.push(&mut batch);
                }
                // What the ring did not take counts as taken back.
                for Handoff { origin, .. } in batch.drain(..) {
                    if origin.is_received() {
                        self.ledger.taken(origin.from);
                    }
                    self.ledger.refused(&origin, DropReason::RingFull);
                }
            }
        }
    }
}

/// What there is to know about a port that packets leave through, for the packets of one burst.
struct Shortcut {
    to: PortId,
    device: usize,
    longest_frame_bytes: usize,
    /// The last next hop, and its MAC; no slot where nothing was encapsulated yet.
    next_hop: u32,
    mac: [u8; 6],
    /// The last packets that went this way, not noted in the lane yet.
    run: Run,
}

/// The slot of no next hop.
const NO_NEXT_HOP: u32 = u32::MAX;

impl Shortcut {
    /// Whether the packet may go this way: to this port, short enough, and to a next hop that is known.
    #[inline(always)]
    fn leads(&mut self, meta: &Meta, packet: &Packet, neighbours: &Neighbours) -> bool {
        let to = match meta.verdict {
            Verdict::Send { uplink, next_hop } => {
                if next_hop != self.next_hop {
                    let Some(mac) = neighbours.resolve(next_hop) else { return false };
                    (self.next_hop, self.mac) = (next_hop, mac);
                }
                uplink
            }
            Verdict::Deliver(to) => to,
            _ => return false,
        };
        to == self.to && packet.len() <= self.longest_frame_bytes
    }

    /// Notes the run in its lane, and begins a new one.
    #[inline(always)]
    fn close_run(&mut self, lane: &mut Lane) {
        if self.run.packets > 0 {
            lane.note(self.run);
            (self.run.packets, self.run.bytes) = (0, 0);
        }
    }
}

impl Dispatch {
    /// Sends a burst that leaves as a whole; false, and nothing done, where its packets have to be looked at.
    #[inline(always)]
    fn send_all(&mut self, batch: &mut Parcels, exit: &Exit) -> bool {
        let Exit { from, to, class, bytes, longest, .. } = *exit;
        let Some(shortcut) = self.shortcut(from, exit.verdict()) else { return false };
        let packets = batch.len();
        let Some(Some(lane)) = self.lanes.get_mut(shortcut.device) else { return false };
        if longest > shortcut.longest_frame_bytes || !lane.burst.is_empty() {
            return false;
        }
        batch.move_to(&mut lane.burst);
        let origin = Origin { from, to, class, bytes: 0 };
        lane.note(Run { origin, packets: packets as u32, bytes });
        self.filled |= 1 << shortcut.device;
        self.flush();
        true
    }

    /// The way of a packet from that port, for those behind it. None where each has to be looked at: behind a tag, while the port is
    /// down, or while anything waits for a next hop.
    #[inline(always)]
    fn shortcut(&self, from: PortId, verdict: Verdict) -> Option<Shortcut> {
        let to = match verdict {
            Verdict::Send { uplink, .. } if self.parking.is_empty() => uplink,
            Verdict::Deliver(to) if self.parking.is_empty() => to,
            _ => return None,
        };
        let port = self.snapshot.current().port(to)?;
        if port.vlan != 0 || !port.is_up() {
            return None;
        }
        let device = usize::from(port.device);
        let longest_frame_bytes = match &self.lanes.get(device)?.as_ref()?.way {
            Way::Queue(queue) => queue.longest_frame_bytes() as usize,
            Way::Worker(_) => usize::MAX,
        };
        let run = Run { origin: Origin { from, to, class: Class::Sent, bytes: 0 }, packets: 0, bytes: 0 };
        Some(Shortcut { to, device, longest_frame_bytes, next_hop: NO_NEXT_HOP, mac: [0; 6], run })
    }

    /// Ends a shortcut: what went that way is noted, and will be flushed.
    #[inline(always)]
    fn leave(&mut self, shortcut: &mut Option<Shortcut>) {
        if let Some(known) = shortcut
            && known.run.packets > 0
            && let Some(Some(lane)) = self.lanes.get_mut(known.device)
        {
            known.close_run(lane);
            self.filled |= 1 << known.device;
        }
    }

    /// Sends, hands on or frees one packet, and counts it.
    fn dispatch(&mut self, packet: Packet, meta: &Meta) {
        let mut packet = packet;
        let bytes = packet.len() as u32;
        let from = meta.port;
        match meta.verdict {
            Verdict::Send { uplink, next_hop } => {
                let origin = Origin { from, to: uplink, class: Class::Sent, bytes };
                match self.neighbours.resolve(next_hop) {
                    Some(mac) => {
                        if self.parking.waits_for(next_hop) {
                            self.send_waiting_first();
                        }
                        set_next_hop(&mut packet, mac);
                        let (snapshot, mut out) = self.split();
                        out.put(snapshot, packet, origin);
                    }
                    None if self.parking.park(packet, origin, next_hop) => {
                        self.notices.tell(Notice::Unresolved { slot: next_hop });
                    }
                    None => {}
                }
            }
            Verdict::Deliver(to) => {
                let origin = Origin { from, to, class: Class::Delivered, bytes };
                let (snapshot, mut out) = self.split();
                out.put(snapshot, packet, origin);
            }
            Verdict::Answer(reason) => {
                match reason {
                    Some(reason) => self.ledger.dropped(from, reason),
                    None => self.ledger.local(from),
                }
                let origin = Origin { from, to: from, class: Class::Originated, bytes };
                let (snapshot, mut out) = self.split();
                out.put(snapshot, packet, origin);
            }
            Verdict::Trap => {
                packet.trim_front(usize::from(meta.inner_offset));
                self.trap(from, packet);
            }
            Verdict::Local => self.ledger.local(from),
            Verdict::Drop(reason) => self.ledger.dropped(from, reason),
            // No stage before this one leaves a packet undecided.
            Verdict::Open | Verdict::Act => self.ledger.dropped(from, DropReason::NoRule),
        }
    }
}

impl Stage<Parcels> for Dispatch {
    const NAME: &'static str = "dispatch";

    #[inline(never)]
    fn process(&mut self, batch: &mut Parcels) {
        if let Some(exit) = batch.exit.take() {
            if self.send_all(batch, &exit) {
                return;
            }
            batch.iter_mut().for_each(|(_, meta)| meta.leave(&exit));
        }
        // Packets mostly follow each other to the same port: what there is to know about it is looked up once.
        let mut shortcut: Option<Shortcut> = None;
        for (mut packet, meta) in batch.drain() {
            if let Some(known) = &mut shortcut
                && known.leads(meta, &packet, &self.neighbours)
                && let Some(Some(lane)) = self.lanes.get_mut(known.device)
                && lane.has_room()
            {
                let class = match meta.verdict {
                    Verdict::Send { .. } => {
                        set_next_hop(&mut packet, known.mac);
                        Class::Sent
                    }
                    _ => Class::Delivered,
                };
                if known.run.origin.from != meta.port || known.run.origin.class != class {
                    known.close_run(lane);
                    known.run.origin.from = meta.port;
                    known.run.origin.class = class;
                }
                known.run.packets += 1;
                known.run.bytes += packet.len() as u64;
                lane.push(packet);
                continue;
            }
            self.leave(&mut shortcut);
            self.dispatch(packet, meta);
            shortcut = self.shortcut(meta.port, meta.verdict);
        }
        self.leave(&mut shortcut);
        self.flush();
    }
}
