//! What moves while packets flow: receive queues from worker to worker, and flows between workers of one kind. No packet of a flow
//! overtakes another, and none is lost.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::stages::dispatch::{Handoff, Way};
use forebay_dataplane::stages::inbox::{Inbox, Inboxes};
use forebay_dataplane::stages::spread::{BUCKETS, FlowBy, Full, Spread, even_shares};
use forebay_dataplane::task::{COMMANDS, Command, Front, Fused, PacketTask, Part};
use forebay_pipeline::worker::Task;
use forebay_pipeline::{Batch, Chain, RingConsumer, RingProducer, ring};
use std::time::{Duration, Instant};

/// Where the identification of the inner IPv4 header stands in a frame that VM1 sent, and in what leaves through the uplink.
const SENT_ID: usize = 14 + 4;
const OUTER_BYTES: usize = 50;

/// A worker in the test's own thread.
struct Hand {
    task: PacketTask,
    commands: RingProducer<Command>,
}

impl Hand {
    fn new(lab: &Lab, part: Part) -> Hand {
        let (commands, obeyed) = ring("commands", COMMANDS);
        Hand { task: PacketTask::new(lab.eal, part, obeyed), commands }
    }

    fn tell(&mut self, command: Command) {
        assert_eq!(self.commands.push(&mut Batch::from_iter([command])), 1);
    }

    /// A round; true where there is more to do at once.
    fn round(&mut self) -> bool {
        self.task.round().backlog > 0
    }
}

/// A worker with all stages, which reaches others by `out` and sends what comes from `from`.
fn fused(
    lab: &mut Lab,
    out: Vec<Option<RingProducer<Handoff>>>,
    from: Option<RingConsumer<Handoff>>,
    inbox: Option<Inbox>,
) -> Hand {
    let Stages { receive, recall, admit, classify, transform, mut exit, ledger } = lab.stages(out);
    exit.handoffs.extend(from);
    let mut inboxes = Inboxes::new(ledger.clone());
    if let Some(inbox) = inbox {
        inboxes.attach(inbox);
    }
    let chain = Chain::new((recall, admit, classify, transform));
    Hand::new(lab, Part::Fused(Box::new(Fused { receive, inboxes, chain, exit, ledger })))
}

/// VM1's packet of this number, of this flow.
fn put(lab: &mut Lab, flow: u8, number: u16) {
    let mut frame = frame4(mac(VM1), [2, 0, 0, 0, 1, 0x66], "10.1.0.1", "10.2.0.0", 0, 20);
    frame[33] = flow;
    frame[SENT_ID..SENT_ID + 2].copy_from_slice(&number.to_be_bytes());
    fix_ipv4(&mut frame, 14);
    lab.put(VM1, &frame);
}

/// Flow and number of what has left, in its order.
fn left(lab: &mut Lab) -> Vec<(u8, u16)> {
    let numbered = |(port, frame): (_, Vec<u8>)| {
        assert_eq!(port, UPLINK);
        let inner = &frame[OUTER_BYTES..];
        (inner[33], u16::from_be_bytes([inner[SENT_ID], inner[SENT_ID + 1]]))
    };
    lab.collect().out.into_iter().map(numbered).collect()
}

/// Two workers with all stages: the first has every receive queue, the second every transmit queue, with a ring of
/// `places` between them. Returns them with the device that receives VM1's packets.
fn two_workers(places: usize) -> (Lab, Hand, Hand, u16) {
    let (mut lab, queues) = Lab::new();
    let (over, from) = ring("first-second", places);
    let mut first = fused(&mut lab, vec![None, Some(over)], None, None);
    let mut second = fused(&mut lab, Vec::new(), Some(from), None);
    let device = queues[1].0.port();
    for (receive, transmit) in queues {
        first.tell(Command::Reach { device: transmit.port(), way: Way::Worker(1) });
        first.tell(Command::Receive(receive));
        second.tell(Command::Reach { device: transmit.port(), way: Way::Queue(transmit) });
    }
    first.round();
    second.round();
    (lab, first, second, device)
}

#[test]
fn a_queue_goes_when_what_came_from_it_has_left() {
    let (mut lab, mut first, mut second, device) = two_workers(256);
    (0..3).for_each(|number| put(&mut lab, 1, number));
    first.round();
    let (to, taken) = ring("queue", 1);
    second.tell(Command::Take(taken));
    first.tell(Command::Give { device, queue: 0, to });
    assert!(first.round(), "it waits for the packets that the second still has");
    (3..5).for_each(|number| put(&mut lab, 1, number));
    assert!(first.round() && left(&mut lab).is_empty());
    assert!(second.round(), "it expects a queue");
    assert_eq!(left(&mut lab), [(1, 0), (1, 1), (1, 2)], "those of before; the later ones are in the queue");
    assert!(!first.round(), "that is known once the second has looked for more, which it had");
    assert!(!second.round());
    assert_eq!(left(&mut lab), [(1, 3), (1, 4)]);
    lab.check();
}

#[test]
fn a_queue_stays_where_others_are_stuck() {
    let (mut lab, mut first, mut second, device) = two_workers(256);
    put(&mut lab, 1, 0);
    first.round();
    let (to, mut taken) = ring("queue", 1);
    first.tell(Command::Give { device, queue: 0, to });
    let began = Instant::now();
    while first.round() {
        assert!(began.elapsed() < Duration::from_secs(10), "it waits for ever");
    }
    assert!(taken.is_abandoned() && taken.pop(&mut Batch::new()) == 0, "the queue was given all the same");
    put(&mut lab, 1, 1);
    first.round();
    second.round();
    assert_eq!(left(&mut lab), [(1, 0), (1, 1)]);
    lab.check();
}

#[test]
fn a_queue_that_is_not_there_does_not_go() {
    let (mut lab, mut first, mut second, device) = two_workers(256);
    let (to, taken) = ring("queue", 1);
    first.tell(Command::Give { device, queue: 9, to });
    second.tell(Command::Take(taken));
    assert!(!first.round() && !second.round());
    put(&mut lab, 1, 0);
    first.round();
    second.round();
    assert_eq!(left(&mut lab), [(1, 0)]);
    lab.check();
}

#[test]
fn a_worker_that_pauses_lets_nothing_in_and_sends_what_others_hand_over() {
    let (mut lab, mut first, mut second, _) = two_workers(256);
    put(&mut lab, 1, 0);
    first.round();
    first.tell(Command::Pause(true));
    second.tell(Command::Pause(true));
    put(&mut lab, 1, 1);
    first.round();
    second.round();
    assert_eq!(left(&mut lab), [(1, 0)]);
    first.tell(Command::Pause(false));
    first.round();
    second.round();
    assert_eq!(left(&mut lab), [(1, 1)]);
    lab.check();
}

/// One worker that only receives, and two that do the rest, of which the first has the transmit queues.
fn spread(full: Full, places: usize) -> (Lab, Hand, [Hand; 2]) {
    let (mut lab, queues) = Lab::new();
    let Stages { receive, ledger, .. } = lab.stages(Vec::new());
    let mut spread = Spread::new(ledger.clone(), FlowBy::Packet, full);
    let (over, from) = ring("second-first", 1024);
    let rings = [0, 1].map(|place| {
        let (to, from) = ring(format!("front-{place}"), places);
        spread.attach(place, to);
        Some(Inbox::new(from, None))
    });
    spread.share(&even_shares(&[0; BUCKETS], &[0, 1]));
    let [to_first, to_second] = rings;
    let mut first = fused(&mut lab, Vec::new(), Some(from), to_first);
    let mut second = fused(&mut lab, vec![Some(over)], None, to_second);
    let inboxes = Inboxes::new(ledger.clone());
    let mut front =
        Hand::new(&lab, Part::Front(Box::new(Front { receive, inboxes, chain: None, spread, ledger })));
    for (receive, transmit) in queues {
        let device = transmit.port();
        front.tell(Command::Receive(receive));
        second.tell(Command::Reach { device, way: Way::Worker(0) });
        first.tell(Command::Reach { device, way: Way::Queue(transmit) });
    }
    second.round();
    first.round();
    front.round();
    (lab, front, [first, second])
}

/// The numbers of each flow are in order.
#[track_caller]
fn in_order(left: &[(u8, u16)]) {
    for flow in 0..=u8::MAX {
        let numbers = left.iter().filter(|(of, _)| *of == flow).map(|(_, number)| *number);
        assert!(numbers.is_sorted(), "flow {flow}: {left:?}");
    }
}

#[test]
fn flows_are_spread_and_keep_their_order() {
    let (mut lab, mut front, [mut first, mut second]) = spread(Full::Drop, 1024);
    let mut all = Vec::new();
    for number in 0..4 {
        (0..40).for_each(|flow| put(&mut lab, flow, number));
        front.round();
    }
    first.round();
    let of_first = left(&mut lab);
    assert!((20..140).contains(&of_first.len()), "the first has {} of 160", of_first.len());
    all.extend(of_first);
    second.round();
    first.round();
    all.extend(left(&mut lab));
    assert_eq!(all.len(), 160);
    in_order(&all);
    // From now on the first has them all.
    front.tell(Command::Share(Box::new([0; BUCKETS])));
    (0..40).for_each(|flow| put(&mut lab, flow, 9));
    front.round();
    first.round();
    assert_eq!(left(&mut lab).len(), 40);
    lab.check();
}

#[test]
fn who_waits_for_room_loses_nothing() {
    let (mut lab, mut front, [mut first, mut second]) = spread(Full::Wait, 128);
    for number in 0..10 {
        (0..40).for_each(|flow| put(&mut lab, flow, number));
    }
    for _ in 0..10 {
        front.round();
    }
    assert!(lab.totals(VM1).rx_packets < 400, "the rings hold 256");
    let mut all = Vec::new();
    for _ in 0..20 {
        second.round();
        first.round();
        front.round();
        all.extend(left(&mut lab));
    }
    assert_eq!((all.len(), lab.totals(VM1).dropped()), (400, 0));
    in_order(&all);
    lab.check();
}

#[test]
fn a_way_that_is_full_costs_its_own_packets_only() {
    let (mut lab, mut front, [mut first, mut second]) = spread(Full::Drop, 64);
    for number in 0..10 {
        (0..40).for_each(|flow| put(&mut lab, flow, number));
        front.round();
        first.round();
        left(&mut lab);
    }
    let dropped = lab.totals(VM1).dropped();
    assert!((1..300).contains(&dropped), "{dropped} of 400 packets");
    for worker in [&mut second, &mut first] {
        for _ in 0..4 {
            worker.round();
        }
    }
    left(&mut lab);
    lab.check();
}

#[test]
fn transmit_queues_come_back_and_serve_another() {
    let (mut lab, mut first, mut second, _) = two_workers(256);
    let (to, mut returned) = ring("returned", 64);
    second.tell(Command::Return(to));
    second.round();
    let mut queues = Batch::new();
    assert_eq!(returned.pop(&mut queues), 5);
    for queue in queues.drain(..) {
        first.tell(Command::Reach { device: queue.port(), way: Way::Queue(queue) });
    }
    first.tell(Command::Peer { number: 1, ring: None });
    put(&mut lab, 1, 7);
    first.round();
    assert_eq!(left(&mut lab), [(1, 7)]);
    lab.check();
}
