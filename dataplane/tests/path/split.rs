//! The split layout: one worker receives and classifies, two others transform and send, of which one has the transmit
//! queues. What is on its way between them is in flight, and nothing else is.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::action::PortId;
use forebay_dataplane::counters::{DropReason, PortTotals, WorkerTally};
use forebay_dataplane::stages::dispatch::{Handoff, Way};
use forebay_dataplane::stages::inbox::{Inbox, Inboxes};
use forebay_dataplane::stages::ledger::Ledger;
use forebay_dataplane::stages::parcel::Parcel;
use forebay_dataplane::stages::spread::{BUCKETS, FlowBy, Full, Spread, even_shares};
use forebay_dataplane::stages::transform::Transform;
use forebay_dataplane::task::{Back, Command, Exit, Front, PacketTask, Part};
use forebay_dataplane::upstream::Upstream;
use forebay_pipeline::bell::Watch;
use forebay_pipeline::worker::Task;
use forebay_pipeline::{Batch, Chain, Histogram, RingConsumer, RingProducer, StageCounters, ring};
use std::sync::Arc;

/// Packets in the ring from the front to each back: two batches, so that tests can fill it.
const RING_PACKETS: usize = 128;

struct Split {
    lab: Lab,
    front: PacketTask,
    backs: [PacketTask; 2],
    tallies: [Arc<WorkerTally>; 2],
    _commands: Vec<RingProducer<Command>>,
}

/// A back whose way to the devices is `commands`.
fn back(
    lab: &mut Lab,
    front: RingConsumer<Parcel>,
    out: Vec<Option<RingProducer<Handoff>>>,
    into: Vec<RingConsumer<Handoff>>,
    commands: RingConsumer<Command>,
) -> (PacketTask, Arc<WorkerTally>) {
    let tally = Arc::new(WorkerTally::new(PORTS.len()).unwrap());
    let ledger = Ledger::new(tally.clone());
    let exit = Exit {
        dispatch: lab.dispatch(&ledger, out),
        counters: Arc::new(StageCounters::default()),
        residence_ns: Arc::new(Histogram::default()),
        handoffs: into,
        batch: Box::new(Batch::new()),
    };
    let chain = Chain::new((Transform::new(lab.publisher.subscribe("back")),));
    let mut inboxes = Inboxes::new(ledger.clone());
    inboxes.attach(Inbox::new(front, Some(Upstream::new(lab.tally.clone()))));
    let part = Part::Back(Box::new(Back { chain, exit, inboxes, ledger }));
    (PacketTask::new(lab.eal, part, commands), tally)
}

impl Split {
    fn new() -> Split {
        let (mut lab, queues) = Lab::new();
        let Stages { receive, admit, classify, ledger, .. } = lab.stages(Vec::new());
        let (to_first, from_front) = ring("front-first", RING_PACKETS);
        let (to_second, from_front_too) = ring("front-second", RING_PACKETS);
        let (over, into_first) = ring("second-first", RING_PACKETS);
        let recall = recall(&lab.publisher, &ledger, None);
        let chain = Some(Chain::new((recall, admit, classify)));
        let mut spread = Spread::new(ledger.clone(), FlowBy::Meta, Full::Drop);
        spread.attach(0, to_first);
        spread.attach(1, to_second);
        spread.share(&even_shares(&[0; BUCKETS], &[0, 1]));
        let inboxes = Inboxes::new(ledger.clone());
        let part = Part::Front(Box::new(Front { receive, inboxes, chain, spread, ledger }));
        let mut orders = Vec::new();
        let mut orders_of = |batch: &mut Batch<Command>| {
            let (mut order, obeyed) = ring("commands", 64);
            order.push(batch);
            orders.push(order);
            obeyed
        };
        let (mut of_front, mut of_first, mut of_second) = (Batch::new(), Batch::new(), Batch::new());
        for (receive, transmit) in queues {
            let device = transmit.port();
            of_front.push(Command::Receive(receive));
            of_second.push(Command::Reach { device, way: Way::Worker(0) });
            of_first.push(Command::Reach { device, way: Way::Queue(transmit) });
        }
        let front = PacketTask::new(lab.eal, part, orders_of(&mut of_front));
        let (first, tally) =
            back(&mut lab, from_front, vec![None], vec![into_first], orders_of(&mut of_first));
        let (second, other) =
            back(&mut lab, from_front_too, vec![Some(over)], Vec::new(), orders_of(&mut of_second));
        let tallies = [tally, other];
        let mut split = Split { lab, front, backs: [first, second], tallies, _commands: orders };
        split.front.round();
        split.run_backs();
        split
    }

    /// What all workers have counted for a port.
    fn totals(&self, port: PortId) -> PortTotals {
        let mut totals = self.lab.totals(port);
        self.tallies.iter().for_each(|tally| totals.add(&tally.ports[port.index()]));
        totals
    }

    fn in_flight(&self) -> i64 {
        PORTS.iter().map(|port| self.totals(*port).in_flight()).sum()
    }

    /// The second back goes first: what it hands over must still be sent by the first.
    fn run_backs(&mut self) {
        for back in self.backs.iter_mut().rev() {
            back.round();
        }
    }

    /// A packet of VM1's flow of this number.
    fn put(&mut self, flow: u16) {
        let mut frame = frame4(mac(VM1), [2, 0, 0, 0, 1, 0x66], "10.1.0.1", "10.2.0.0", 0, 20);
        frame[32..34].copy_from_slice(&flow.to_be_bytes());
        fix_ipv4(&mut frame, 14);
        self.lab.put(VM1, &frame);
    }
}

#[test]
fn packets_pass_all_three_workers() {
    let mut split = Split::new();
    let question = arp(mac(VM1), BROADCAST, 1, (mac(VM1), "10.1.0.1"), ([0; 6], "10.1.0.2"));
    for flow in 0..40 {
        split.put(flow);
    }
    split.lab.put(VM1, &question);
    split.lab.put(VM1, &udp4("10.8.0.1", 9));
    split.lab.put(VM1, &udp4("10.99.0.1", 9));
    split.front.round();
    assert_eq!((split.in_flight(), split.totals(VM1).rx_packets), (43, 43));
    split.run_backs();
    assert_eq!(split.in_flight(), 0);
    let outcome = split.lab.collect();
    assert_eq!((outcome.out.len(), outcome.trapped.len()), (41, 1));
    let totals = split.totals(VM1);
    assert_eq!((totals.sent, totals.local, totals.trapped, totals.dropped()), (40, 1, 1, 1));
    let by_second: u64 = split.tallies[1].ports.iter().map(|port| port.taken.get()).sum();
    assert!(by_second > 5, "the second back got {by_second} of 43 packets");
    assert!(split.tallies.iter().flat_map(|tally| &tally.ports).all(|port| port.held() == 0));
    assert_eq!(split.lab.pool.in_use(), 0);
}

#[test]
fn backs_that_are_late_cost_packets() {
    let mut split = Split::new();
    for turn in 0..20 {
        for flow in 0..50 {
            split.put(flow + turn);
        }
        split.front.round();
    }
    let totals = split.totals(VM1);
    assert_eq!(totals.drops[DropReason::RingFull as usize] + 2 * RING_PACKETS as u64, 1000);
    assert_eq!(totals.in_flight(), 2 * RING_PACKETS as i64);
    for _ in 0..4 {
        split.run_backs();
    }
    let sent = split.totals(VM1).sent as usize;
    assert_eq!((split.in_flight(), split.lab.collect().out.len(), split.lab.pool.in_use()), (0, sent, 0));
}

#[test]
fn each_worker_recovers_by_itself() {
    let mut split = Split::new();
    for flow in 0..60 {
        split.put(flow);
    }
    split.front.round();
    // What is in a ring is in nobody's hands: no recovery counts it as lost.
    split.front.recover();
    split.backs.iter_mut().for_each(Task::recover);
    assert_eq!((split.in_flight(), split.totals(VM1).dropped()), (60, 0));
    split.run_backs();
    assert_eq!((split.in_flight(), split.totals(VM1).sent, split.lab.collect().out.len()), (0, 60, 60));
}

#[test]
fn a_back_knows_whether_more_has_entered_behind_its_last_packet() {
    let mut split = Split::new();
    for flow in 0..40 {
        split.put(flow);
    }
    split.front.round();
    let behind = |split: &mut Split| {
        let mut behind = split.backs.each_mut().map(|back| back.round().upstream);
        behind.sort_unstable();
        behind
    };
    assert_eq!(behind(&mut split), [0, 0], "those were the last");
    // A flow takes one way: the other back sees that more has entered, and cannot know that it went elsewhere.
    for _ in 0..3 {
        split.lab.put(VM1, &udp4("10.8.0.1", 9));
    }
    split.front.round();
    assert_eq!(behind(&mut split), [0, 3]);
    split.run_backs();
    assert_eq!(split.in_flight(), 0);
}

#[test]
fn workers_sleep_only_where_nothing_waits() {
    let mut split = Split::new();
    let has_work = |task: &mut PacketTask| {
        let mut watch = Watch::new();
        task.arm(&mut watch);
        task.disarm();
        watch.has_work()
    };
    assert!(!split.backs.iter_mut().any(has_work));
    split.put(1);
    split.front.round();
    assert_eq!(split.backs.iter_mut().filter_map(|back| has_work(back).then_some(())).count(), 1);
    split.run_backs();
    assert!(!split.backs.iter_mut().any(has_work));
    let mut watch = Watch::new();
    split.backs[0].arm(&mut watch);
    assert_eq!((watch.least_unannounced(), watch.longest()), (None, None), "its rings tell of everything");
    // Ring devices do not tell.
    split.front.arm(&mut watch);
    assert!(watch.least_unannounced().is_some_and(|capacity| capacity > 0));
    split.front.disarm();
}
