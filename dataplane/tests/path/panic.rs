//! A panic in the middle of a batch: the worker goes on, and what it held is counted as lost by it.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::counters::DropReason;
use forebay_dataplane::stages::admit::Admit;
use forebay_dataplane::stages::classify::Classify;
use forebay_dataplane::stages::dispatch::Way;
use forebay_dataplane::stages::ledger::Ledger;
use forebay_dataplane::stages::parcel::Parcels;
use forebay_dataplane::stages::recall::Recall;
use forebay_dataplane::stages::receive::Receive;
use forebay_dataplane::stages::transform::Transform;
use forebay_dataplane::task::Exit;
use forebay_pipeline::worker::{Round, Task, Worker, WorkerEvent, WorkerOptions};
use forebay_pipeline::{Chain, IdlePolicy, Stage};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// The last byte of a frame that makes the stage panic.
const FUSE: u8 = 0x42;

/// A stage that does not survive certain frames.
struct Bomb;

impl Stage<Parcels> for Bomb {
    const NAME: &'static str = "bomb";

    fn process(&mut self, batch: &mut Parcels) {
        for (packet, _) in batch.iter() {
            assert_ne!(packet.data().last(), Some(&FUSE), "the fuse burns");
        }
    }
}

/// A fused worker with a bomb among its stages; it recovers as the packet task does.
struct Fragile {
    receive: Receive,
    chain: Chain<(Bomb, Recall, Admit, Classify, Transform)>,
    exit: Exit,
    ledger: Ledger,
    batch: Parcels,
}

impl Task for Fragile {
    fn round(&mut self) -> Round {
        let mut items = self.exit.dispatch.look_after_parking();
        for _ in 0..self.receive.queue_count() {
            self.receive.receive(&mut self.batch);
            items += self.batch.len();
            self.chain.run(&mut self.batch);
            self.exit.dispatch.process(&mut self.batch);
        }
        Round { items, ..Round::default() }
    }

    fn drain(&mut self) -> bool {
        true
    }

    fn recover(&mut self) {
        self.batch.clear();
        self.exit.batch.clear();
        self.exit.dispatch.abandon(DropReason::WorkerPanic);
        self.ledger.reconcile();
    }
}

fn fragile() -> (Lab, Fragile) {
    let (mut lab, queues) = Lab::new();
    let Stages { mut receive, recall, admit, classify, transform, mut exit, ledger } = lab.stages(Vec::new());
    for (queue, transmit) in queues {
        receive.attach(queue);
        exit.dispatch.attach(transmit.port(), Way::Queue(transmit));
    }
    (
        lab,
        Fragile {
            receive,
            chain: Chain::new((Bomb, recall, admit, classify, transform)),
            exit,
            ledger,
            batch: Parcels::new(),
        },
    )
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_worker_goes_on_and_the_book_balances() {
    let (mut lab, task) = fragile();
    let (events_in, events) = sync_channel(16);
    let good = udp4("10.1.0.2", 30);
    let mut bad = good.clone();
    *bad.last_mut().unwrap() = FUSE;
    let parked = udp4("10.7.0.2", 30);
    // One batch: 3 wait, 10 are fine; then 5 with the fuse among them; VM2's packets come in another batch.
    for frame in [&parked, &parked, &parked].into_iter().chain([&good; 10]) {
        lab.put(VM1, frame);
    }
    let options = WorkerOptions::new("fragile", None, IdlePolicy::BusyPoll).with_events(events_in);
    let worker = Worker::spawn(options, move || task).unwrap();
    wait_for("the first batch", || lab.totals(VM1).sent == 10 && lab.totals(VM1).waiting == 3);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut burst = forebay_sriov::PacketBurst::new();
    for frame in [&good, &good, &bad, &good, &good] {
        burst.push(lab.pool.allocate_with(frame).unwrap()).unwrap();
    }
    lab.inject_burst(VM1, &mut burst);
    wait_for("the panic", || worker.counters().panics.get() == 1);
    wait_for("the recovery", || lab.totals(VM1).in_flight() == 0 && lab.totals(VM1).rx_packets == 18);
    std::panic::set_hook(hook);
    let totals = lab.totals(VM1);
    assert_eq!((totals.drops[DropReason::WorkerPanic as usize], totals.waiting, totals.sent), (8, 0, 10));
    assert!(
        matches!(events.try_recv(), Ok(WorkerEvent::Panicked { message, .. }) if message.contains("the fuse burns"))
    );
    // It works as before, and what it counted stays right.
    for _ in 0..10 {
        lab.put(VM1, &good);
        lab.put(VM2, &frame4(mac(VM2), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 9));
    }
    wait_for("the traffic after", || lab.totals(VM1).sent == 20 && lab.totals(VM2).sent == 10);
    assert!(worker.stop(Instant::now() + Duration::from_secs(5)).ended);
    assert_eq!(lab.collect().out.len(), 30);
    lab.check();
}

#[test]
fn the_packet_task_recovers_to_an_empty_book() {
    let mut world = World::new();
    for _ in 0..5 {
        world.run(VM1, &udp4("10.7.0.2", 30));
    }
    assert_eq!(world.waiting(), 5);
    world.task.recover();
    let totals = world.totals(VM1);
    assert_eq!(
        (totals.waiting, totals.in_flight(), totals.drops[DropReason::WorkerPanic as usize]),
        (0, 0, 5)
    );
    world.check();
    assert_eq!(world.run(VM1, &udp4("10.1.0.2", 30)).out.len(), 1);
    // Once more, with nothing in its hands, it finds nothing to count.
    world.task.recover();
    assert_eq!(world.totals(VM1).dropped(), 5);
}
