//! A whole packet worker in the test's own thread: the real task with its stages, between rings.
//!
//! Each port's device is a DPDK ring device with two queues. What a test puts into queue 1 the worker receives; what
//! the worker sends comes out of queue 0. So every frame can be compared byte for byte, without a kernel in between.
//! Invariant, checked after every step: received = left + waiting for each port, and no packet buffer is lost.

use crate::rules::{Hops, Plan, tables};
use forebay_dataplane::action::PortId;
use forebay_dataplane::config::Traps;
use forebay_dataplane::control::notice::{Notice, Trapped, notices};
use forebay_dataplane::counters::{DropReason, PortTotals, WorkerTally};
use forebay_dataplane::snapshot::{DeviceEntry, Neighbours, PortEntry, PortRole, Snapshot, Sources, UplinkEntry, VfEntry};
use forebay_dataplane::stages::admit::Admit;
use forebay_dataplane::stages::classify::Classify;
use forebay_dataplane::stages::dispatch::{Dispatch, DispatchParts, Handoff, Way};
use forebay_dataplane::stages::ledger::Ledger;
use forebay_dataplane::stages::receive::Receive;
use forebay_dataplane::stages::transform::Transform;
use forebay_dataplane::task::{COMMANDS, Command, Exit, Fused, PacketTask, Part};
use forebay_pipeline::worker::Task;
use forebay_pipeline::{Batch, Chain, Histogram, Publisher, RingConsumer, RingProducer, StageCounters, ring};
use forebay_sriov::{Device, DeviceOptions, DeviceSpec, Eal, EalOptions, Hugepages, Packet, PacketBurst, PacketPool};
use forebay_sriov::{RxQueue, TxQueue};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The uplink; underlay addresses 192.0.2.1 and 2001:db8::1, and 192.0.2.77 by an ingress rule.
pub const UPLINK: PortId = PortId(0);
/// Tenant A, VNI 100, with a gateway MAC.
pub const VM1: PortId = PortId(1);
/// Tenant B, VNI 200, with the addresses of VM1.
pub const VM2: PortId = PortId(2);
/// Tenant C, VNI 300, behind VLAN 7 of TRUNK's device.
pub const VM3: PortId = PortId(3);
/// Tenant D, VNI 400, untagged on a device that has a port behind a tag.
pub const TRUNK: PortId = PortId(4);
/// Tenant A too, MTU 1400.
pub const VM4: PortId = PortId(5);
/// Every port.
pub const PORTS: [PortId; 6] = [UPLINK, VM1, VM2, VM3, TRUNK, VM4];

pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The VLAN that VM3 is behind.
pub const VM3_VLAN: u16 = 7;

/// The MAC of a tenant's port.
pub fn mac(port: PortId) -> [u8; 6] {
    if port == UPLINK { UPLINK_MAC } else { [2, 0, 0, 0, port.0 as u8, 1] }
}

/// Segments in the worker's pool: more than a ring device and all waiting places hold.
const POOL_PACKETS: u32 = 4095;
/// Bytes of a buffer.
const ROOM_BYTES: u16 = 2048;
/// The uplink's MTU: a tenant's 1500 bytes and the outer headers.
pub const UPLINK_MTU: u16 = 1600;

static NEXT_RING: AtomicU32 = AtomicU32::new(0);

/// A device that gives back what it is sent.
struct Wire {
    inject: TxQueue,
    observe: RxQueue,
    id: u16,
    _device: Device,
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

/// The worker, its devices, and the control side's ends.
pub struct World {
    pub pool: PacketPool,
    /// Buffers of few bytes, for packets in many pieces.
    pub pieces: PacketPool,
    pub publisher: Publisher<Snapshot>,
    pub neighbours: Arc<Neighbours>,
    pub hops: Hops,
    pub tally: Arc<WorkerTally>,
    pub task: PacketTask,
    pub commands: RingProducer<Command>,
    pub handoff: RingProducer<Handoff>,
    pub traps: RingConsumer<Trapped>,
    notices: [RingConsumer<Notice>; 2],
    wires: Vec<(PortId, Wire)>,
    burst: PacketBurst,
}

pub fn eal() -> Eal {
    let options = EalOptions { hugepages: Hugepages::Off, memory_mib: 64, name: "forebay-path".into() };
    Eal::start(&options).unwrap()
}

fn open_wire(eal: Eal, pool: &PacketPool, mtu: u16) -> (Wire, RxQueue, TxQueue) {
    let name = format!("dpdk:net_ring{}", NEXT_RING.fetch_add(1, Ordering::Relaxed));
    let options = DeviceOptions { queues: 2, mtu, ..DeviceOptions::new(pool) };
    let mut device = Device::open(eal, &name.parse::<DeviceSpec>().unwrap(), &options).unwrap();
    let mut queues = device.take_queues();
    assert_eq!(queues.len(), 2, "a ring device has two queues");
    let (receive, inject) = queues.remove(1);
    let (observe, transmit) = queues.remove(0);
    (Wire { inject, observe, id: device.id(), _device: device }, receive, transmit)
}

fn vf(ip: &[&str], gateway_mac: Option<[u8; 6]>, traps: Traps, plan: &Plan, port: PortId) -> PortRole {
    let prefixes: Vec<_> = ip.iter().map(|ip| ip.parse().unwrap()).collect();
    let rules = plan.egress.get(&port).cloned().unwrap_or_default();
    PortRole::Vf(VfEntry { sources: Sources::new(&prefixes), gateway_mac, traps, rules })
}

/// The addresses of VM1, and of others that must not be mistaken for it.
const VM1_IP: [&str; 2] = ["10.1.0.1/32", "fd00:1::1/128"];

fn role(port: PortId, plan: &Plan) -> PortRole {
    match port {
        UPLINK => {
            let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
            let mut locals = vec![IpAddr::V4(v4), IpAddr::V6(v6), IpAddr::from([192, 0, 2, 77])];
            locals.sort_unstable();
            PortRole::Uplink(UplinkEntry { locals, ipv4: Some(v4), ipv6: Some(v6) })
        }
        VM1 => vf(&VM1_IP, Some(GATEWAY_MAC), Traps { dhcp: true, igmp: true, ..Traps::default() }, plan, port),
        VM2 => vf(&VM1_IP, None, Traps { lldp: true, multicast: true, ..Traps::default() }, plan, port),
        VM4 => vf(&["10.1.0.4/32", "fd00:1::4/128"], None, Traps::default(), plan, port),
        _ => vf(&["10.0.0.0/8", "fd00::/8"], None, Traps::default(), plan, port),
    }
}

/// The MTU of a port.
pub fn mtu(port: PortId) -> u16 {
    match port {
        UPLINK => UPLINK_MTU,
        VM4 => 1400,
        _ => 1500,
    }
}

/// The snapshot: who is where, and the compiled rules. `absent` ports have been taken away.
fn snapshot(plan: &Plan, devices: &[(PortId, u16)], absent: &[PortId]) -> Snapshot {
    let device_of = |port| devices.iter().find(|(owner, _)| *owner == port).map(|(_, id)| *id);
    let entry = |id: PortId| PortEntry {
        id,
        name: format!("port{}", id.0).into(),
        device: device_of(if id == VM3 { TRUNK } else { id }).unwrap(),
        vlan: if id == VM3 { VM3_VLAN } else { 0 },
        mtu: mtu(id),
        mac: mac(id),
        up: Arc::new(AtomicBool::new(true)),
        role: role(id, plan),
    };
    let ports = PORTS.map(|id| (!absent.contains(&id)).then(|| Arc::new(entry(id)))).to_vec();
    let mut entries: [DeviceEntry; 32] = Default::default();
    for (port, device) in devices {
        entries[usize::from(*device)].port = Some(*port);
    }
    let mut vlans = vec![None; 4096];
    vlans[usize::from(VM3_VLAN)] = Some(VM3);
    entries[usize::from(device_of(TRUNK).unwrap())].vlans = Some(Arc::new(vlans));
    Snapshot {
        ports,
        devices: entries,
        tunnels: plan.tunnels.clone(),
        ingress: plan.ingress.clone(),
        known_tunnels: plan.known_tunnels.clone(),
    }
}

impl World {
    /// A fused worker with every port; the peers 192.0.2.2, 192.0.2.3 and 2001:db8::2 are known, others are not.
    pub fn new() -> World {
        World::with(|way| way)
    }

    /// As [`World::new`], with other ways to the devices.
    pub fn with(mut way_to: impl FnMut(Way) -> Way) -> World {
        let eal = eal();
        let pool = PacketPool::new(eal, "path", POOL_PACKETS, ROOM_BYTES).unwrap();
        let pieces = PacketPool::new(eal, "pieces", 2047, ROOM_BYTES).unwrap();
        let plan = tables(|text| text);
        let (mut wires, mut devices) = (Vec::new(), Vec::new());
        let (mut commands, obeyed) = ring("commands", COMMANDS);
        let mut batch = Batch::new();
        for port in PORTS.into_iter().filter(|port| *port != VM3) {
            let (wire, receive, transmit) = open_wire(eal, &pool, mtu(port));
            devices.push((port, wire.id));
            batch.push(Command::Receive(receive));
            batch.push(Command::Reach { device: wire.id, way: way_to(Way::Queue(transmit)) });
            wires.push((port, wire));
        }
        assert_eq!(commands.push(&mut batch), 10);
        let publisher = Publisher::new(Arc::new(snapshot(&plan, &devices, &[])));
        let neighbours = Arc::new(Neighbours::default());
        for remote in ["192.0.2.2", "192.0.2.3", "2001:db8::2"] {
            neighbours.set(plan.hops.slot(remote), Some(PEER_MAC));
        }
        let tally = Arc::new(WorkerTally::new(PORTS.len()));
        plan.slots.iter().for_each(|slot| tally.rules.prepare(*slot));
        let (part, ends) = fused(&publisher, &tally, &neighbours);
        let task = PacketTask::new(eal, part, obeyed);
        let Ends { handoff, traps, notices } = ends;
        let hops = plan.hops;
        let burst = PacketBurst::new();
        let mut world =
            World { pool, pieces, publisher, neighbours, hops, tally, task, commands, handoff, traps, notices, wires, burst };
        world.task.start();
        world.task.round();
        assert_eq!((world.pool.in_use(), world.pieces.in_use()), (0, 0));
        world
    }

    /// Publishes the plan again, with `absent` ports taken away and rule lines changed by `change`.
    pub fn publish(&mut self, absent: &[PortId], change: impl Fn(&str) -> &str) {
        let devices: Vec<_> = self.wires.iter().map(|(port, wire)| (*port, wire.id)).collect();
        self.publisher.publish(Arc::new(snapshot(&tables(change), &devices, absent)));
    }

    fn wire(&mut self, port: PortId) -> &mut Wire {
        let port = if port == VM3 { TRUNK } else { port };
        &mut self.wires.iter_mut().find(|(owner, _)| *owner == port).unwrap().1
    }

    /// The device of a port.
    pub fn device(&mut self, port: PortId) -> u16 {
        self.wire(port).id
    }

    /// Lets a port's device have a packet, to be received in the next round.
    pub fn inject(&mut self, port: PortId, packet: Packet) {
        let mut burst = PacketBurst::new();
        burst.push(packet).unwrap();
        assert_eq!(self.wire(port).inject.transmit(&mut burst), 1, "the device took no packet");
    }

    /// As [`World::inject`], with a packet of these bytes.
    pub fn put(&mut self, port: PortId, frame: &[u8]) {
        let packet = self.pool.allocate_with(frame).unwrap();
        self.inject(port, packet);
    }

    /// As [`World::put`], in pieces that end at `cuts`.
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

    /// Runs a round and tells what came of it; `port` is whose drops are of interest.
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
    pub fn run(&mut self, port: PortId, frame: &[u8]) -> Outcome {
        self.put(port, frame);
        self.step(port)
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
        while self.traps.pop(&mut traps) > 0 {
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
        while self.traps.pop(&mut traps) > 0 {
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

/// What the control side has of a worker.
pub struct Ends {
    pub handoff: RingProducer<Handoff>,
    pub traps: RingConsumer<Trapped>,
    pub notices: [RingConsumer<Notice>; 2],
}

/// The parts of a dispatch stage whose rings to other workers are `handoffs`, and their ends.
pub fn dispatch(
    publisher: &Publisher<Snapshot>,
    ledger: &Ledger,
    neighbours: &Arc<Neighbours>,
    handoffs: Vec<Option<RingProducer<Handoff>>>,
) -> (Dispatch, RingConsumer<Trapped>, RingConsumer<Notice>) {
    let (tell, hear) = notices("dispatch");
    let (traps, trapped) = ring("traps", 1024);
    let dispatch = Dispatch::new(DispatchParts {
        snapshot: publisher.subscribe("dispatch"),
        ledger: ledger.clone(),
        neighbours: neighbours.clone(),
        notices: tell,
        traps,
        handoffs,
        transmit: Arc::new(StageCounters::default()),
    });
    (dispatch, trapped, hear)
}

fn fused(publisher: &Publisher<Snapshot>, tally: &Arc<WorkerTally>, neighbours: &Arc<Neighbours>) -> (Part, Ends) {
    let ledger = Ledger::new(tally.clone());
    let (tell, heard_by_admit) = notices("admit");
    let receive = Receive::new(publisher.subscribe("receive"), ledger.clone(), Arc::new(StageCounters::default()));
    let chain = Chain::new((
        Admit::new(publisher.subscribe("admit"), tell),
        Classify::new(publisher.subscribe("classify"), ledger.clone()),
        Transform::new(publisher.subscribe("transform")),
    ));
    let (dispatch, traps, heard_by_dispatch) = dispatch(publisher, &ledger, neighbours, Vec::new());
    let (handoff, handed) = ring("control", 1024);
    let exit = Exit {
        dispatch,
        counters: Arc::new(StageCounters::default()),
        residence_ns: Arc::new(Histogram::default()),
        handoffs: vec![handed],
        batch: Box::new(Batch::new()),
    };
    let part = Part::Fused(Box::new(Fused { receive, chain, exit, ledger }));
    (part, Ends { handoff, traps, notices: [heard_by_admit, heard_by_dispatch] })
}

/// The bytes of a packet, whatever its pieces.
pub fn bytes(packet: &Packet) -> Vec<u8> {
    let mut out = vec![0; packet.len()];
    assert_eq!(packet.copy_to(0, &mut out), out.len(), "the packet's length is that of its segments");
    out
}
