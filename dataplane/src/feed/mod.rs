//! A whole packet worker in the caller's own thread, fed for ever: the real task with its stages between two of DPDK's ring
//! devices, without hardware, kernel or daemon around it.
//!
//! Packets are injected 64 at a time, run through one round of the worker, taken out on the other side and used again, so
//! that nothing but the worker's round need be looked at, be it by its cycles (`forebay bench --feed memory` and
//! `examples/path.rs`) or by its instructions (`benches/guard.rs`). The same setup always feeds the same packets in the same order.
//! Invariant, checked in every step: as many packets come out as were put in. A feed stays with the thread that made it.

mod frames;
mod host;

use crate::control::notice::notices;
use crate::counters::WorkerTally;
use crate::flows::cache::FlowCache;
use crate::snapshot::{Neighbours, Snapshot};
use crate::stages::admit::Admit;
use crate::stages::classify::Classify;
use crate::stages::dispatch::{Dispatch, DispatchParts, Way};
use crate::stages::inbox::Inboxes;
use crate::stages::ledger::Ledger;
use crate::stages::recall::Recall;
use crate::stages::receive::Receive;
use crate::stages::transform::Transform;
use crate::task::{COMMANDS, Command, Exit, Fused, PacketTask, Part};
use forebay_pipeline::worker::Task;
use forebay_pipeline::{BATCH, Batch, Chain, ChainCounters, Histogram, Publisher, StageCounters, ring};
use forebay_sriov::{
    Device, DeviceError, DeviceOptions, DeviceSpec, DeviceSpecError, Eal, EalError, EalOptions, Hugepages,
    Packet, PacketBurst, PacketPool, PoolError, RxQueue, TxQueue,
};
use frames::{Frames, Order};
use host::Host;
use std::sync::Arc;

/// Packet buffers. One step has 64 in use; the rest is for the caches of DPDK's pool.
const POOL_PACKETS: u32 = 1023;
/// Bytes of a buffer: DPDK's usual room for a frame of an Ethernet MTU.
const ROOM_BYTES: u16 = 2048;
/// Shortest and longest frames of a tenant: over IPv6 there are 62 bytes of headers, and those of a tunnel need room too.
pub const LEAST_FRAME_BYTES: u16 = 62;
/// See [`LEAST_FRAME_BYTES`].
pub const MOST_FRAME_BYTES: u16 = 1900;
/// Bytes of a frame that `forebay bench` sends unless told otherwise.
pub const USUAL_FRAME_BYTES: u16 = 64;
/// Memory for DPDK: the pool takes some 3 MiB of it (without hugepages a page for each buffer, 4 MiB).
const EAL_MEMORY_MIB: u32 = 64;
/// What flow keys are hashed with: fixed, so that flows meet in the same sets of the flow cache in every run.
const FLOW_SEED: u64 = 0x1234_5678_9abc;
/// Places of the rings that nothing comes through here: traps.
const TRAP_PLACES: usize = 1024;

/// Which way the packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the tenant to the underlay.
    Encapsulate,
    /// From the underlay to the tenant.
    Decapsulate,
}

/// Which flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// So many flows (at least one), one packet of each after the other, all of them known to the worker by the time that
    /// [`Feed::new`] returns.
    Known(u32),
    /// Every packet begins a flow: the first 2^32 packets have as many. The flow cache is full of others.
    New,
}

/// What is fed to which worker.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The way of the packets.
    pub direction: Direction,
    /// Their flows, spread evenly over the rules.
    pub flows: Flows,
    /// Rules, from 1 to 2^20, each with a peer and a VXLAN network of its own.
    pub rules: u32,
    /// IPv6, inside the tunnel and outside, instead of IPv4.
    pub ipv6: bool,
    /// Bytes of the tenant's frames, from [`LEAST_FRAME_BYTES`] to [`MOST_FRAME_BYTES`].
    pub frame_bytes: u16,
    /// Flows that the worker remembers at most.
    pub cache_flows: usize,
    /// Whether packets are in huge pages.
    pub hugepages: Hugepages,
}

/// Why there is no feed, or no packet.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Frames of a length that no buffer has room for, or shorter than their headers.
    #[error("frames of {0} bytes (choose {LEAST_FRAME_BYTES} to {MOST_FRAME_BYTES})")]
    FrameBytes(u16),
    /// DPDK did not start.
    #[error(transparent)]
    Eal(#[from] EalError),
    /// No memory for packets.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The name of a ring device is not one.
    #[error(transparent)]
    Spec(#[from] DeviceSpecError),
    /// A ring device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A ring device has no queues.
    #[error("device \"{0}\" has no pair of queues (does this DPDK have the net_ring driver?)")]
    NoQueues(String),
    /// No memory for the flow cache.
    #[error("no memory for a flow cache of {flows} flows: {source} (choose fewer)")]
    FlowCache {
        /// Flows asked for.
        flows: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// No address space for the counters of rules.
    #[error("no address space for counters: {0} (raise the limit, see: ulimit -v)")]
    Counters(std::io::Error),
    /// The pool of packets is empty.
    #[error("the pool of {POOL_PACKETS} packets gave none (the worker keeps packets: a bug)")]
    NoPacket,
    /// The worker dropped packets, or kept them.
    #[error(
        "{out} of {BATCH} packets came out of the worker as they should (its counters of drops tell why)"
    )]
    Lost {
        /// Those that came out with the right length.
        out: usize,
    },
}

/// What the worker has counted since it began.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Cycles of the time-stamp counter by stage: those of the packet path, in order.
    pub path: Vec<(&'static str, u64)>,
    /// The devices' part.
    pub io: [(&'static str, u64); 2],
    /// Packets that were sent on.
    pub packets: u64,
}

/// The counters behind [`Figures`], which the worker writes.
struct Meters {
    chain: ChainCounters,
    dispatch: Arc<StageCounters>,
    receive: Arc<StageCounters>,
    transmit: Arc<StageCounters>,
}

/// A worker, and the packets that go round through it. Fields are dropped in this order: packets before their pool.
pub struct Feed {
    task: PacketTask,
    meters: Meters,
    frames: Frames,
    order: Order,
    free: Vec<Packet>,
    burst: PacketBurst,
    inject: TxQueue,
    observe: RxQueue,
    _devices: [Device; 2],
    _publisher: Publisher<Snapshot>,
    _pool: PacketPool,
}

/// A ring device: it gives back what it is sent.
fn open_ring(eal: Eal, pool: &PacketPool, number: u32) -> Result<(Device, RxQueue, TxQueue), FeedError> {
    let name = format!("dpdk:net_ring{number}");
    let options = DeviceOptions { mtu: host::MTU, ..DeviceOptions::new(pool) };
    let mut device = Device::open(eal, &name.parse::<DeviceSpec>()?, &options)?;
    match device.take_queues().pop() {
        Some((receive, transmit)) => Ok((device, receive, transmit)),
        None => Err(FeedError::NoQueues(name)),
    }
}

impl Feed {
    /// A worker with everything that `setup` names, warmed up: known flows have been seen twice, and where every packet
    /// begins a flow, the flow cache is full.
    ///
    /// # Errors
    /// DPDK, its devices or the system's memory are not to be had; or the worker drops packets.
    pub fn new(setup: &Setup) -> Result<Feed, FeedError> {
        if !(LEAST_FRAME_BYTES..=MOST_FRAME_BYTES).contains(&setup.frame_bytes) {
            return Err(FeedError::FrameBytes(setup.frame_bytes));
        }
        let eal = Eal::start(&EalOptions {
            hugepages: setup.hugepages,
            memory_mib: EAL_MEMORY_MIB,
            name: "forebay-feed".into(),
        })?;
        let pool = PacketPool::new(eal, "feed", POOL_PACKETS, ROOM_BYTES)?;
        let (to_worker, receive, inject) = open_ring(eal, &pool, 0)?;
        let (from_worker, observe, transmit) = open_ring(eal, &pool, 1)?;
        let host = Host::new(setup);
        let publisher = Publisher::new(Arc::new(host.snapshot(to_worker.id(), from_worker.id())));
        let (task, meters) = worker(eal, setup, &publisher, receive, transmit)?;
        let frames = Frames::new(&host);
        let packets = (0..BATCH).map(|_| pool.allocate_with(&vec![0; frames.len()]));
        let free = packets.collect::<Option<Vec<Packet>>>().ok_or(FeedError::NoPacket)?;
        let mut feed = Feed {
            task,
            meters,
            frames,
            order: Order::new(setup.flows),
            free,
            burst: PacketBurst::new(),
            inject,
            observe,
            _devices: [to_worker, from_worker],
            _publisher: publisher,
            _pool: pool,
        };
        let packets = match setup.flows {
            Flows::Known(flows) => 2 * flows as usize,
            // New flows fall into sets of eight at random: four times as many leave hardly a place free.
            Flows::New => 4 * setup.cache_flows,
        };
        for _ in 0..packets.div_ceil(BATCH) {
            feed.step()?;
        }
        Ok(feed)
    }

    /// Feeds the next 64 packets.
    ///
    /// # Errors
    /// They did not all come out again.
    pub fn step(&mut self) -> Result<(), FeedError> {
        self.step_by(|task| {
            task.round();
        })
    }

    /// As [`Feed::step`], where `round` is what calls the worker's round: whoever counts what it costs puts it apart.
    ///
    /// # Errors
    /// The packets did not all come out again.
    pub fn step_by(&mut self, round: impl FnOnce(&mut PacketTask)) -> Result<(), FeedError> {
        for mut packet in self.free.drain(..) {
            self.frames.write(self.order.next_flow(), packet.data_mut());
            if self.burst.push(packet).is_err() {
                break;
            }
        }
        self.inject.transmit(&mut self.burst);
        round(&mut self.task);
        self.observe.receive(&mut self.burst);
        for mut packet in self.burst.drain() {
            if self.frames.restore(&mut packet) {
                self.free.push(packet);
            }
        }
        match self.free.len() {
            BATCH => Ok(()),
            out => Err(FeedError::Lost { out }),
        }
    }

    /// What the worker has counted so far, the warming up included.
    pub fn figures(&self) -> Figures {
        let Meters { chain, dispatch, receive, transmit } = &self.meters;
        let mut path: Vec<_> = chain.stages().map(|(name, stage)| (name, stage.cycles.get())).collect();
        path.push(("dispatch", dispatch.cycles.get()));
        Figures {
            path,
            io: [("receive", receive.cycles.get()), ("transmit", transmit.cycles.get())],
            packets: dispatch.items.get(),
        }
    }
}

/// A fused worker that receives from one queue and sends through the other, as the daemon makes them.
fn worker(
    eal: Eal,
    setup: &Setup,
    publisher: &Publisher<Snapshot>,
    receive: RxQueue,
    transmit: TxQueue,
) -> Result<(PacketTask, Meters), FeedError> {
    let cache = FlowCache::new(setup.cache_flows)
        .map_err(|source| FeedError::FlowCache { flows: setup.cache_flows, source })?;
    let tally = Arc::new(WorkerTally::new(host::PORTS).map_err(FeedError::Counters)?);
    let ledger = Ledger::new(tally);
    let [dispatched, received, transmitted] = std::array::from_fn(|_| Arc::new(StageCounters::default()));
    let neighbours = Arc::new(Neighbours::default());
    neighbours.set(host::NEXT_HOP, Some(host::PEER_MAC));
    // The other ends of these rings may go: a worker does not mind that nobody listens.
    let ((tell, _), (tell_last, _)) = (notices("admit"), notices("dispatch"));
    let (traps, _) = ring("traps", TRAP_PLACES);
    let chain = Chain::new((
        Recall::new(
            publisher.subscribe("recall"),
            ledger.clone(),
            cache,
            FLOW_SEED,
            Some(neighbours.clone()),
        ),
        Admit::new(publisher.subscribe("admit"), tell),
        Classify::new(publisher.subscribe("classify"), ledger.clone()),
        Transform::new(publisher.subscribe("transform")),
    ));
    let meters = Meters {
        chain: chain.counters(),
        dispatch: dispatched.clone(),
        receive: received.clone(),
        transmit: transmitted.clone(),
    };
    let dispatch = Dispatch::new(DispatchParts {
        snapshot: publisher.subscribe("dispatch"),
        ledger: ledger.clone(),
        neighbours,
        notices: tell_last,
        traps,
        handoffs: Vec::new(),
        transmit: transmitted,
    });
    let part = Part::Fused(Box::new(Fused {
        receive: Receive::new(publisher.subscribe("receive"), ledger.clone(), received),
        inboxes: Inboxes::new(ledger.clone()),
        chain,
        exit: Exit {
            dispatch,
            counters: dispatched,
            residence_ns: Arc::new(Histogram::default()),
            handoffs: Vec::new(),
            batch: Box::new(Batch::new()),
        },
        ledger,
    }));
    let (mut commands, obeyed) = ring("commands", COMMANDS);
    let mut batch = Batch::new();
    batch.push(Command::Receive(receive));
    batch.push(Command::Reach { device: transmit.port(), way: Way::Queue(transmit) });
    commands.push(&mut batch);
    let mut task = PacketTask::new(eal, part, obeyed);
    task.start();
    task.round();
    Ok((task, meters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_no_buffer_holds_is_refused_before_anything_starts() {
        for frame_bytes in [LEAST_FRAME_BYTES - 1, MOST_FRAME_BYTES + 1] {
            let setup = Setup {
                direction: Direction::Encapsulate,
                flows: Flows::Known(1),
                rules: 1,
                ipv6: false,
                frame_bytes,
                cache_flows: 64,
                hugepages: Hugepages::Off,
            };
            let error = Feed::new(&setup).err().map(|error| error.to_string());
            assert_eq!(error, Some(format!("frames of {frame_bytes} bytes (choose 62 to 1900)")));
        }
    }
}
