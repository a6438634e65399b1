//! A whole packet worker in the test's own thread: the real task with its stages, between rings.
//!
//! Behind each port stand two of DPDK's ring devices: what a test puts into the one the worker receives, what the worker
//! sends comes out of the other. So every frame can be compared byte for byte, without a kernel in between.
//! Invariant, checked after every step: received = left + waiting for each port, and no packet buffer is lost.

use crate::host::{Devices, snapshot};
use crate::rules::{Hops, tables};
use forebay_dataplane::action::PortId;
use forebay_dataplane::control::notice::{Notice, Trapped, notices};
use forebay_dataplane::counters::{DropReason, PortTotals, WorkerTally};
use forebay_dataplane::flows::cache::FlowCache;
use forebay_dataplane::snapshot::{Neighbours, Snapshot};
use forebay_dataplane::stages::admit::Admit;
use forebay_dataplane::stages::classify::Classify;
use forebay_dataplane::stages::dispatch::{Dispatch, DispatchParts, Handoff, Way};
use forebay_dataplane::stages::inbox::Inboxes;
use forebay_dataplane::stages::ledger::Ledger;
use forebay_dataplane::stages::recall::Recall;
use forebay_dataplane::stages::receive::Receive;
use forebay_dataplane::stages::transform::Transform;
use forebay_dataplane::task::{COMMANDS, Command, Exit, Fused, PacketTask, Part};
use forebay_pipeline::worker::Task;
use forebay_pipeline::{Batch, Chain, Histogram, Publisher, RingConsumer, RingProducer, StageCounters, ring};
use forebay_sriov::{
    Device, DeviceOptions, DeviceSpec, Eal, EalOptions, Hugepages, Packet, PacketBurst, PacketPool,
};
use forebay_sriov::{RxQueue, TxQueue};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use crate::host::*;

/// Segments in the worker's pool: more than a ring device and all waiting places hold.
const POOL_PACKETS: u32 = 4095;
/// Flows that the worker remembers: few, so that they also get in each other's way.
const FLOWS: usize = 64;
/// What flow keys are hashed with.
const FLOW_SEED: u64 = 1;
/// Bytes of a buffer.
const ROOM_BYTES: u16 = 2048;
/// The MTU towards the worker: attackers do not keep to any.
const LONGEST_BYTES: u16 = 65_500;

static NEXT_RING: AtomicU32 = AtomicU32::new(0);

/// The far end of a port.
struct Wire {
    inject: TxQueue,
    observe: RxQueue,
    to_us: Device,
    from_us: Device,
}

/// What one step brought about.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Frames that left, with the port whose device they left through (of several behind tags, the device's own).
    pub out: Vec<(PortId, Vec<u8>)>,
    /// Frames for the trusted software path.
    pub trapped: Vec<(PortId, Vec<u8>)>,
    /// Drops of the port that received, by name.
    pub drops: Vec<(&'static str, u64)>,
    /// Received packets that the host used itself.
    pub local: u64,
    /// What the control side was told.
    pub notices: Vec<Notice>,
}

impl Outcome {
    /// The only frame, which left through `port`.
    #[track_caller]
    pub fn frame(&self, port: PortId) -> &[u8] {
        match &self.out[..] {
            [(at, frame)] if *at == port => frame,
            _ => panic!("not one frame through {port:?}: {self:02x?}"),
        }
    }

    /// The only thing that happened is one drop for this reason.
    #[track_caller]
    pub fn is_drop(&self, reason: DropReason) {
        let nothing = self.out.is_empty() && self.trapped.is_empty() && self.local == 0;
        assert!(nothing && self.drops == [(reason.name(), 1)], "not one drop as {reason:?}: {self:02x?}");
    }

    /// The only thing that happened is that the frame was trapped, as it is.
    #[track_caller]
    pub fn is_trap(&self, port: PortId, frame: &[u8]) {
        assert!(self.out.is_empty() && self.drops.is_empty() && self.local == 0, "{self:02x?}");
        assert_eq!(self.trapped, [(port, frame.to_vec())]);
    }
}

/// The queues that a worker is to use.
pub type Queues = Vec<(RxQueue, TxQueue)>;

/// Devices, memory, tables, and the control side's ends.
pub struct Lab {
    pub eal: Eal,
    pub pool: PacketPool,
    /// A second pool, for packets in pieces.
    pub pieces: PacketPool,
    pub publisher: Publisher<Snapshot>,
    pub neighbours: Arc<Neighbours>,
    pub hops: Hops,
    pub tally: Arc<WorkerTally>,
    pub handoff: Option<RingProducer<Handoff>>,
    pub traps: Vec<RingConsumer<Trapped>>,
    notices: Vec<RingConsumer<Notice>>,
    wires: Vec<(PortId, Wire)>,
    burst: PacketBurst,
}

/// The stages of a fused worker.
pub struct Stages {
    pub receive: Receive,
    pub recall: Recall,
    pub admit: Admit,
    pub classify: Classify,
    pub transform: Transform,
    pub exit: Exit,
    pub ledger: Ledger,
}

/// A first stage, with `neighbours` one that makes packets ready.
pub fn recall(
    publisher: &Publisher<Snapshot>,
    ledger: &Ledger,
    neighbours: Option<Arc<Neighbours>>,
) -> Recall {
    let flows = FlowCache::new(FLOWS).unwrap();
    Recall::new(publisher.subscribe("recall"), ledger.clone(), flows, FLOW_SEED, neighbours)
}

/// A lab with a fused worker at work in it.
pub struct World {
    lab: Lab,
    pub task: PacketTask,
    pub commands: RingProducer<Command>,
}

impl std::ops::Deref for World {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl std::ops::DerefMut for World {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

pub fn eal() -> Eal {
    let options = EalOptions { hugepages: Hugepages::Off, memory_mib: 64, name: "forebay-path".into() };
    Eal::start(&options).unwrap()
}

fn open_ring(eal: Eal, pool: &PacketPool, mtu: u16) -> (Device, RxQueue, TxQueue) {
    let name = format!("dpdk:net_ring{}", NEXT_RING.fetch_add(1, Ordering::Relaxed));
    let options = DeviceOptions { mtu, ..DeviceOptions::new(pool) };
    let mut device = Device::open(eal, &name.parse::<DeviceSpec>().unwrap(), &options).unwrap();
    let (receive, transmit) = device.take_queues().remove(0);
    assert!(device.capabilities().multi_segment_tx(), "the device would put the pieces of packets together");
    (device, receive, transmit)
}

/// Two devices for a port: one for each direction, since a ring device gives back what it is sent.
fn open_wire(eal: Eal, pool: &PacketPool, mtu: u16) -> (Wire, (RxQueue, TxQueue)) {
    let (to_us, receive, inject) = open_ring(eal, pool, LONGEST_BYTES);
    let (from_us, observe, transmit) = open_ring(eal, pool, mtu);
    (Wire { inject, observe, to_us, from_us }, (receive, transmit))
}

impl World {
    /// A fused worker with every port; the peers 192.0.2.2, 192.0.2.3 and 2001:db8::2 are known, others are not.
    pub fn new() -> World {
        World::with(Vec::new(), Way::Queue)
    }

    /// As [`World::new`], with other ways to the devices: `handoffs` are the rings to the other workers.
    pub fn with(handoffs: Vec<Option<RingProducer<Handoff>>>, mut way: impl FnMut(TxQueue) -> Way) -> World {
        let (mut lab, queues) = Lab::new();
        let Stages { receive, recall, admit, classify, transform, exit, ledger } = lab.stages(handoffs);
        let chain = Chain::new((recall, admit, classify, transform));
        let (mut commands, obeyed) = ring("commands", COMMANDS);
        let mut batch = Batch::new();
        for (receive, transmit) in queues {
            batch.push(Command::Receive(receive));
            batch.push(Command::Reach { device: transmit.port(), way: way(transmit) });
        }
        assert_eq!(commands.push(&mut batch), 10);
        let inboxes = Inboxes::new(ledger.clone());
        let part = Part::Fused(Box::new(Fused { receive, inboxes, chain, exit, ledger }));
        let mut task = PacketTask::new(lab.eal, part, obeyed);
        task.start();
        task.round();
        lab.check();
        World { lab, task, commands }
    }

    /// Runs a round and tells what came of it; `port` is whose drops are of interest.
    #[track_caller]
    pub fn step(&mut self, port: PortId) -> Outcome {
        let before = self.totals(port);
        self.task.round();
        let mut outcome = self.collect();
        let now = self.totals(port).since(&before);
        outcome.drops = now.drops_by_name().into_iter().filter(|(_, packets)| *packets > 0).collect();
        outcome.local = now.local;
        self.check();
        outcome
    }

    /// A frame that a port's device receives, and what came of it.
    #[track_caller]
    pub fn run(&mut self, port: PortId, frame: &[u8]) -> Outcome {
        self.put(port, frame);
        self.step(port)
    }
}

impl Lab {
    /// A lab, and the queues of its devices.
    pub fn new() -> (Lab, Queues) {
        let eal = eal();
        let pool = PacketPool::new(eal, "path", POOL_PACKETS, ROOM_BYTES).unwrap();
        let pieces = PacketPool::new(eal, "pieces", 1023, ROOM_BYTES).unwrap();
        let plan = tables(|text| text);
        let (mut wires, mut devices, mut queues) = (Vec::new(), Vec::new(), Vec::new());
        for port in PORTS.into_iter().filter(|port| *port != VM3) {
            let (wire, pair) = open_wire(eal, &pool, mtu(port));
            devices.push((port, wire.to_us.id(), wire.from_us.id()));
            queues.push(pair);
            wires.push((port, wire));
        }
        let publisher = Publisher::new(Arc::new(snapshot(&plan, &devices, &[])));
        let neighbours = Arc::new(Neighbours::default());
        for remote in ["192.0.2.2", "192.0.2.3", "2001:db8::2"] {
            neighbours.set(plan.hops.slot(remote), Some(PEER_MAC));
        }
        let tally = Arc::new(WorkerTally::new(PORTS.len()).unwrap());
        let (hops, burst) = (plan.hops, PacketBurst::new());
        let (handoff, traps, notices) = (None, Vec::new(), Vec::new());
        let lab = Lab {
            eal,
            pool,
            pieces,
            publisher,
            neighbours,
            hops,
            tally,
            handoff,
            traps,
            notices,
            wires,
            burst,
        };
        (lab, queues)
    }

    /// The stages of a worker that reaches the others by `handoffs`.
    pub fn stages(&mut self, handoffs: Vec<Option<RingProducer<Handoff>>>) -> Stages {
        let ledger = Ledger::new(self.tally.clone());
        let (tell, hear) = notices("admit");
        self.notices.push(hear);
        let counters = Arc::new(StageCounters::default());
        let (handoff, handed) = ring("control", 1024);
        self.handoff = Some(handoff);
        let publisher = &self.publisher;
        Stages {
            receive: Receive::new(publisher.subscribe("receive"), ledger.clone(), counters),
            recall: recall(publisher, &ledger, Some(self.neighbours.clone())),
            admit: Admit::new(publisher.subscribe("admit"), tell),
            classify: Classify::new(publisher.subscribe("classify"), ledger.clone()),
            transform: Transform::new(publisher.subscribe("transform")),
            exit: Exit {
                dispatch: self.dispatch(&ledger, handoffs),
                counters: Arc::new(StageCounters::default()),
                residence_ns: Arc::new(Histogram::default()),
                handoffs: vec![handed],
                batch: Box::new(Batch::new()),
            },
            ledger,
        }
    }

    /// A last stage.
    pub fn dispatch(&mut self, ledger: &Ledger, handoffs: Vec<Option<RingProducer<Handoff>>>) -> Dispatch {
        let (tell, hear) = notices("dispatch");
        let (traps, trapped) = ring("traps", 1024);
        self.notices.push(hear);
        self.traps.push(trapped);
        Dispatch::new(DispatchParts {
            snapshot: self.publisher.subscribe("dispatch"),
            ledger: ledger.clone(),
            neighbours: self.neighbours.clone(),
            notices: tell,
            traps,
            handoffs,
            transmit: Arc::new(StageCounters::default()),
        })
    }

    /// Publishes the plan again, with `absent` ports taken away.
    pub fn publish(&mut self, absent: &[PortId]) {
        self.publisher.publish(Arc::new(snapshot(&tables(|line| line), &self.devices(), absent)));
    }

    /// Publishes the plan with its rules changed, as [`tables`] takes it.
    pub fn publish_rules(&mut self, change: impl Fn(&str) -> &str) {
        self.publisher.publish(Arc::new(snapshot(&tables(change), &self.devices(), &[])));
    }

    fn devices(&self) -> Devices {
        self.wires.iter().map(|(port, wire)| (*port, wire.to_us.id(), wire.from_us.id())).collect()
    }

    fn wire(&mut self, port: PortId) -> &mut Wire {
        let port = if port == VM3 { TRUNK } else { port };
        &mut self.wires.iter_mut().find(|(owner, _)| *owner == port).unwrap().1
    }

    /// The device that a port sends through.
    pub fn device(&mut self, port: PortId) -> u16 {
        self.wire(port).from_us.id()
    }

    /// Lets a port's device have a packet, to be received in the next round.
    pub fn inject(&mut self, port: PortId, packet: Packet) {
        let mut burst = PacketBurst::new();
        burst.push(packet).unwrap();
        assert_eq!(self.wire(port).inject.transmit(&mut burst), 1, "the device took no packet");
    }

    /// As [`Lab::inject`], with several packets at once.
    pub fn inject_burst(&mut self, port: PortId, burst: &mut PacketBurst) {
        let count = burst.len();
        assert_eq!(self.wire(port).inject.transmit(burst), count, "the device did not take all packets");
    }

    /// As [`Lab::inject`], with a packet of these bytes.
    pub fn put(&mut self, port: PortId, frame: &[u8]) {
        let packet = self.pool.allocate_with(frame).unwrap();
        self.inject(port, packet);
    }

    /// As [`Lab::put`], in pieces that end at `cuts`.
    pub fn put_cut(&mut self, port: PortId, frame: &[u8], cuts: &[usize]) {
        let mut from = 0;
        let mut packet: Option<Packet> = None;
        for cut in cuts.iter().copied().chain([frame.len()]) {
            let piece = self.pieces.allocate_with(&frame[from..cut]).unwrap();
            from = cut;
            match &mut packet {
                None => packet = Some(piece),
                Some(packet) => packet.join(piece).unwrap(),
            }
        }
        self.inject(port, packet.unwrap());
    }

    /// Takes out everything that came out.
    pub fn collect(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        for (port, wire) in &mut self.wires {
            while wire.observe.receive(&mut self.burst) > 0 {
                outcome.out.extend(self.burst.drain().map(|packet| (*port, bytes(&packet))));
            }
        }
        let mut traps = Batch::new();
        while self.traps.iter_mut().any(|ring| ring.pop(&mut traps) > 0) {
            outcome.trapped.extend(traps.drain(..).map(|trapped| (trapped.port, bytes(&trapped.packet))));
        }
        let mut batch = Batch::new();
        for ring in &mut self.notices {
            while ring.pop(&mut batch) > 0 {
                outcome.notices.extend(batch.drain(..));
            }
        }
        outcome
    }

    #[allow(dead_code)] // Only the test of allocations must not keep what comes out.
    /// Throws away everything that came out, without allocating; returns the number of frames that left, and of traps.
    pub fn discard(&mut self) -> (usize, usize) {
        let (mut frames, mut trapped) = (0, 0);
        for (_, wire) in &mut self.wires {
            while wire.observe.receive(&mut self.burst) > 0 {
                frames += self.burst.len();
                self.burst.clear();
            }
        }
        let mut traps = Batch::new();
        while self.traps.iter_mut().any(|ring| ring.pop(&mut traps) > 0) {
            trapped += traps.len();
            traps.clear();
        }
        let mut batch = Batch::new();
        for ring in &mut self.notices {
            while ring.pop(&mut batch) > 0 {
                batch.clear();
            }
        }
        (frames, trapped)
    }

    /// What a port has counted.
    pub fn totals(&self, port: PortId) -> PortTotals {
        let mut totals = PortTotals::default();
        totals.add(&self.tally.ports[port.index()]);
        totals
    }

    /// Packets of a port that wait for a neighbour.
    pub fn waiting(&self) -> u64 {
        PORTS.iter().map(|port| self.totals(*port).waiting).sum()
    }

    /// Every packet that was received has left or waits, and every buffer of the others is back.
    #[track_caller]
    pub fn check(&self) {
        for port in PORTS {
            let totals = self.totals(port);
            assert_eq!(totals.in_flight(), totals.waiting as i64, "{port:?}: {totals:?}");
        }
        assert!(u64::from(self.pool.in_use() + self.pieces.in_use()) >= self.waiting());
        if self.waiting() == 0 {
            assert_eq!((self.pool.in_use(), self.pieces.in_use()), (0, 0), "buffers are lost");
        }
    }
}

/// The bytes of a packet, whatever its pieces.
pub fn bytes(packet: &Packet) -> Vec<u8> {
    let mut out = vec![0; packet.len()];
    assert_eq!(packet.copy_to(0, &mut out), out.len(), "the packet's length is that of its segments");
    out
}
