//! The workers of a host, and everything that joins them: rings between fronts and backs, between backs, and to and from
//! the control side.

use super::notice::{Notice, Trapped, notices};
use crate::config::{Idle, Layout, Workers};
use crate::counters::{PortTotals, WorkerTally};
use crate::flows::cache::FlowCache;
use crate::snapshot::{MAX_PORTS, Neighbours, Snapshot};
use crate::stages::admit::Admit;
use crate::stages::classify::Classify;
use crate::stages::dispatch::{Dispatch, DispatchParts, Handoff, Way};
use crate::stages::ledger::Ledger;
use crate::stages::parcel::Parcel;
use crate::stages::parking;
use crate::stages::recall::Recall;
use crate::stages::receive::Receive;
use crate::stages::transform::Transform;
use crate::task::{Back, COMMANDS, Command, Exit, Front, Fused, PacketTask, Part, RING_PACKETS};
use crate::upstream::Upstream;
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::bell::Bell;
use forebay_pipeline::counters::{Histogram, StageCounters};
use forebay_pipeline::idle::IdlePolicy;
use forebay_pipeline::publish::Publisher;
use forebay_pipeline::ring::{RingConsumer, RingProducer, RingStatus, ring};
use forebay_pipeline::stage::{Chain, ChainCounters};
use forebay_pipeline::worker::{Worker, WorkerError, WorkerEvent, WorkerOptions};
use forebay_sriov::{Eal, RxQueue, TxQueue};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Trapped packets that wait for the control side, per worker. It reads every millisecond.
const TRAPS: usize = 1024;
/// Worker events that wait to be logged.
const EVENTS: usize = 64;

/// Why the workers of a host cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// A thread.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Counters.
    #[error(
        "worker {worker:?}: no address space for its counters: {source} (raise the limit, see: ulimit -v)"
    )]
    Counters {
        /// The worker.
        worker: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A flow cache.
    #[error(
        "worker {worker:?}: no memory for a flow cache of {entries} flows: {source} (lower workers.flow_cache_entries)"
    )]
    FlowCache {
        /// The worker.
        worker: String,
        /// Flows.
        entries: u32,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The figures of one worker, for whoever shows them.
pub struct Figures {
    /// Its counters of packets.
    pub tally: Arc<WorkerTally>,
    /// Receive and transmit.
    pub io: Vec<(&'static str, Arc<StageCounters>)>,
    /// The stages in a chain.
    pub chain: Option<ChainCounters>,
    /// The last stage.
    pub dispatch: Option<Arc<StageCounters>>,
    /// Nanoseconds from after receive to after transmit, per packet.
    pub residence_ns: Option<Arc<Histogram>>,
    /// The rings that it reads.
    pub rings: Vec<Arc<RingStatus>>,
}

/// One worker as the control side sees it.
pub struct Member {
    worker: Worker,
    commands: RingProducer<Command>,
    /// Its figures.
    pub figures: Figures,
}

impl Member {
    /// What became of all packets that the worker had in its hands.
    pub fn totals(&self) -> PortTotals {
        let mut totals = PortTotals::default();
        for counters in &self.figures.tally.ports {
            totals.add_as_worker(counters);
        }
        totals
    }

    /// The worker's name, core and counters.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }
}

/// The control side's ends of the rings.
pub struct Ends {
    /// What workers saw.
    pub notices: Vec<RingConsumer<Notice>>,
    /// What workers trapped.
    pub traps: Vec<RingConsumer<Trapped>>,
    /// Packets that the control side wants to be sent.
    pub inject: RingProducer<Handoff>,
    /// Panics.
    pub events: Receiver<WorkerEvent>,
}

/// The workers of a host.
pub struct Crew {
    members: Vec<Member>,
    /// Members that receive.
    pub(super) fronts: Vec<usize>,
    /// Members that transmit.
    backs: Vec<usize>,
}

/// What is made before the workers: everything that two of them share.
struct Joints<'a> {
    eal: Eal,
    publisher: &'a Publisher<Snapshot>,
    neighbours: Arc<Neighbours>,
    /// Flows that a worker remembers.
    flows: u32,
    ends: EndsBuilder,
}

#[derive(Default)]
struct EndsBuilder {
    notices: Vec<RingConsumer<Notice>>,
    traps: Vec<RingConsumer<Trapped>>,
}

/// The rings that end at one back.
struct BackRings {
    fronts: Vec<RingConsumer<Parcel>>,
    handoffs_in: Vec<RingConsumer<Handoff>>,
    handoffs_out: Vec<Option<RingProducer<Handoff>>>,
}

impl Crew {
    /// Starts the workers that the config asks for.
    ///
    /// # Errors
    /// A core cannot be used; the workers that run already are stopped.
    pub fn start(
        eal: Eal,
        config: &Workers,
        publisher: &Publisher<Snapshot>,
        neighbours: Arc<Neighbours>,
    ) -> Result<(Crew, Ends), CrewError> {
        let max_added_latency = Duration::from_micros(u64::from(config.max_added_latency_us));
        let idle = match config.idle {
            Idle::BusyPoll => IdlePolicy::BusyPoll,
            Idle::LastPacket => IdlePolicy::LastItem { max_added_latency },
            Idle::Interrupt => IdlePolicy::Interrupt { max_added_latency },
            Idle::Sleep { us } => IdlePolicy::Sleep { time: Duration::from_micros(u64::from(us)) },
        };
        let (events_in, events) = sync_channel(EVENTS);
        // Each sleeps by itself, and is woken by those that come before it.
        let bells: Vec<_> = config.cores.iter().map(|_| Arc::new(Bell::new())).collect();
        bells.iter().for_each(|bell| publisher.waking(bell));
        let options = |name: String, core, bell: &Arc<Bell>| {
            let options = WorkerOptions::new(name, Some(core), idle).with_events(events_in.clone());
            WorkerOptions { bell: Arc::clone(bell), ..options }
        };
        let flows = config.flow_cache_entries;
        let mut joints = Joints { eal, publisher, neighbours, flows, ends: EndsBuilder::default() };
        let mut crew = Crew { members: Vec::new(), fronts: Vec::new(), backs: Vec::new() };
        let front_count = match config.layout {
            Layout::Fused => 0,
            Layout::Split => config.cores.len() / 2,
        };
        let (front_cores, back_cores) = config.cores.split_at(front_count);
        let (front_bells, back_bells) = bells.split_at(front_count);
        let (mut to_backs, mut back_rings, inject) = join(front_cores.len(), back_bells);
        for (number, (core, bell)) in front_cores.iter().zip(front_bells).enumerate() {
            let rings = std::mem::take(&mut to_backs[number]);
            let member = joints.front(options(format!("front{number}"), *core, bell), rings)?;
            crew.fronts.push(crew.members.len());
            crew.members.push(member);
        }
        for (number, (core, bell)) in back_cores.iter().zip(back_bells).enumerate() {
            let rings = back_rings.remove(0);
            let index = crew.members.len();
            let member = if front_count == 0 {
                crew.fronts.push(index);
                joints.fused(options(format!("worker{number}"), *core, bell), rings)?
            } else {
                let fronts = crew.fronts.iter().filter_map(|front| crew.members.get(*front));
                let upstream = fronts.map(|front| Upstream::new(front.figures.tally.clone())).collect();
                joints.back(options(format!("back{number}"), *core, bell), rings, upstream)?
            };
            crew.backs.push(index);
            crew.members.push(member);
        }
        let EndsBuilder { notices, traps } = joints.ends;
        Ok((crew, Ends { notices, traps, inject, events }))
    }

    /// The workers.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Queues that a device is best opened with: one for each worker that needs one.
    pub fn queues_wanted(&self) -> u16 {
        self.fronts.len().max(self.backs.len()) as u16
    }

    /// Gives the queues of a device to the workers. Each takes them at the beginning of its next round.
    pub fn attach(&mut self, device: u16, queues: Vec<(RxQueue, TxQueue)>) {
        let count = queues.len().min(self.backs.len());
        for (number, (rx, tx)) in queues.into_iter().enumerate() {
            // Devices of one queue are spread over the workers.
            let place = number + usize::from(device);
            let front = self.fronts[place % self.fronts.len()];
            self.send(front, Command::Receive(rx));
            if number < count {
                let back = self.backs[place % self.backs.len()];
                self.send(back, Command::Reach { device, way: Way::Queue(tx) });
            }
        }
        for number in count..self.backs.len() {
            // Workers without a transmit queue of their own hand over to the one that has the first.
            let place = number + usize::from(device);
            let owner = usize::from(device) % self.backs.len();
            let back = self.backs[place % self.backs.len()];
            self.send(back, Command::Reach { device, way: Way::Worker(owner) });
        }
    }

    /// Takes the queues of a device away from the workers.
    pub fn release(&mut self, device: u16) {
        for member in 0..self.members.len() {
            self.send(member, Command::Release { device });
        }
    }

    /// Waits for room in the worker's ring: it takes commands in every round.
    pub(super) fn send(&mut self, member: usize, command: Command) {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut batch = Batch::new();
        batch.push(command);
        while let Some(member) = self.members.get_mut(member)
            && member.commands.push(&mut batch) == 0
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The most packets that bursts, rings and waiting places can hold.
    pub fn holds_packets(&self) -> usize {
        let per_worker = 2 * BATCH + parking::PLACES;
        let rings = self.members.iter().flat_map(|member| &member.figures.rings).map(|ring| ring.capacity());
        self.members.len() * per_worker + rings.sum::<usize>()
    }

    /// Stops the workers, those first that others get packets from. Returns the names of those that did not drain.
    pub fn stop(self, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        // Members stand in the order of the way: fronts, then backs. Ones of the same kind hand packets to each other, so
        // they stop together.
        let first_back = self.backs.first().copied().unwrap_or(0);
        let (mut fronts, mut backs) = (Vec::new(), Vec::new());
        for (index, member) in self.members.into_iter().enumerate() {
            if index < first_back { fronts.push(member.worker) } else { backs.push(member.worker) }
        }
        let mut late = Vec::new();
        for group in [fronts, backs] {
            group.iter().for_each(|worker| worker.request_stop(deadline));
            for worker in group {
                let report = worker.stop(deadline);
                if !report.drained {
                    late.push(report.name);
                }
            }
        }
        late
    }
}

/// The rings between `fronts` and the backs, between the backs, and from the control side to the first back. Each wakes the
/// back that it ends at.
fn join(
    fronts: usize,
    bells: &[Arc<Bell>],
) -> (Vec<Vec<RingProducer<Parcel>>>, Vec<BackRings>, RingProducer<Handoff>) {
    let backs = bells.len();
    let mut to_backs: Vec<Vec<RingProducer<Parcel>>> = (0..fronts).map(|_| Vec::new()).collect();
    let mut rings: Vec<BackRings> = (0..backs)
        .map(|_| BackRings { fronts: Vec::new(), handoffs_in: Vec::new(), handoffs_out: Vec::new() })
        .collect();
    for (front, producers) in to_backs.iter_mut().enumerate() {
        for (back, rings) in rings.iter_mut().enumerate() {
            let (producer, consumer) = ring(format!("front{front}-back{back}"), RING_PACKETS);
            producers.push(producer.waking(&bells[back]));
            rings.fronts.push(consumer);
        }
    }
    for from in 0..backs {
        for to in 0..backs {
            if from == to {
                rings[from].handoffs_out.push(None);
                continue;
            }
            let (producer, consumer) = ring(format!("worker{from}-worker{to}"), RING_PACKETS);
            rings[from].handoffs_out.push(Some(producer.waking(&bells[to])));
            rings[to].handoffs_in.push(consumer);
        }
    }
    let (mut inject, consumer) = ring("control", RING_PACKETS);
    if let (Some(first), Some(bell)) = (rings.first_mut(), bells.first()) {
        first.handoffs_in.push(consumer);
        inject = inject.waking(bell);
    }
    (to_backs, rings, inject)
}

impl Joints<'_> {
    fn front(
        &mut self,
        options: WorkerOptions,
        backs: Vec<RingProducer<Parcel>>,
    ) -> Result<Member, CrewError> {
        let tally = tally(&options.name)?;
        let ledger = Ledger::new(tally.clone());
        let (receive, rx) = self.receive(&options.name, &ledger);
        // It does not send: what it knows about the MACs of next hops is nothing.
        let recall = self.recall(&options.name, &ledger, None)?;
        let chain = Chain::new((recall, self.admit(&options.name), self.classify(&options.name, &ledger)));
        let figures = Figures {
            tally,
            io: vec![("receive", rx)],
            chain: Some(chain.counters()),
            dispatch: None,
            residence_ns: None,
            rings: Vec::new(),
        };
        let outgoing = backs.iter().map(|_| Box::default()).collect();
        self.spawn(options, Part::Front(Box::new(Front { receive, chain, backs, outgoing, ledger })), figures)
    }

    fn back(
        &mut self,
        options: WorkerOptions,
        rings: BackRings,
        upstream: Vec<Upstream>,
    ) -> Result<Member, CrewError> {
        let tally = tally(&options.name)?;
        let ledger = Ledger::new(tally.clone());
        let chain = Chain::new((Transform::new(self.publisher.subscribe(&options.name)),));
        let mut figures = Figures {
            tally,
            io: Vec::new(),
            chain: Some(chain.counters()),
            dispatch: None,
            residence_ns: None,
            rings: rings.fronts.iter().map(RingConsumer::status).collect(),
        };
        let exit = self.exit(&options.name, &ledger, rings.handoffs_in, rings.handoffs_out, &mut figures);
        self.spawn(
            options,
            Part::Back(Box::new(Back {
                chain,
                exit,
                fronts: rings.fronts,
                upstream,
                incoming: Box::default(),
                ledger,
            })),
            figures,
        )
    }

    fn fused(&mut self, options: WorkerOptions, rings: BackRings) -> Result<Member, CrewError> {
        let tally = tally(&options.name)?;
        let ledger = Ledger::new(tally.clone());
        let (receive, rx) = self.receive(&options.name, &ledger);
        let transform = Transform::new(self.publisher.subscribe(&options.name));
        let recall = self.recall(&options.name, &ledger, Some(self.neighbours.clone()))?;
        let classify = self.classify(&options.name, &ledger);
        let chain = Chain::new((recall, self.admit(&options.name), classify, transform));
        let mut figures = Figures {
            tally,
            io: vec![("receive", rx)],
            chain: Some(chain.counters()),
            dispatch: None,
            residence_ns: None,
            rings: Vec::new(),
        };
        let exit = self.exit(&options.name, &ledger, rings.handoffs_in, rings.handoffs_out, &mut figures);
        self.spawn(options, Part::Fused(Box::new(Fused { receive, chain, exit, ledger })), figures)
    }

    fn receive(&self, name: &str, ledger: &Ledger) -> (Receive, Arc<StageCounters>) {
        let counters = Arc::new(StageCounters::default());
        (Receive::new(self.publisher.subscribe(name), ledger.clone(), counters.clone()), counters)
    }

    fn admit(&mut self, name: &str) -> Admit {
        let (tell, hear) = notices(name);
        self.ends.notices.push(hear);
        Admit::new(self.publisher.subscribe(name), tell)
    }

    fn recall(
        &self,
        name: &str,
        ledger: &Ledger,
        neighbours: Option<Arc<Neighbours>>,
    ) -> Result<Recall, CrewError> {
        let flows = FlowCache::new(self.flows as usize).map_err(|source| CrewError::FlowCache {
            worker: name.to_owned(),
            entries: self.flows,
            source,
        })?;
        Ok(Recall::new(self.publisher.subscribe(name), ledger.clone(), flows, seed(), neighbours))
    }

    fn classify(&self, name: &str, ledger: &Ledger) -> Classify {
        Classify::new(self.publisher.subscribe(name), ledger.clone())
    }

    fn exit(
        &mut self,
        name: &str,
        ledger: &Ledger,
        handoffs_in: Vec<RingConsumer<Handoff>>,
        handoffs_out: Vec<Option<RingProducer<Handoff>>>,
        figures: &mut Figures,
    ) -> Exit {
        let (notices, hear) = notices(name);
        let (traps, trapped) = ring(format!("{name}-traps"), TRAPS);
        self.ends.notices.push(hear);
        self.ends.traps.push(trapped);
        let (transmit, counters) = (Arc::new(StageCounters::default()), Arc::new(StageCounters::default()));
        let residence_ns = Arc::new(Histogram::default());
        figures.io.push(("transmit", transmit.clone()));
        figures.dispatch = Some(counters.clone());
        figures.residence_ns = Some(residence_ns.clone());
        figures.rings.extend(handoffs_in.iter().map(RingConsumer::status));
        let dispatch = Dispatch::new(DispatchParts {
            snapshot: self.publisher.subscribe(name),
            ledger: ledger.clone(),
            neighbours: self.neighbours.clone(),
            notices,
            traps,
            handoffs: handoffs_out,
            transmit,
        });
        Exit { dispatch, counters, residence_ns, handoffs: handoffs_in, batch: Box::new(Batch::new()) }
    }

    fn spawn(&self, options: WorkerOptions, part: Part, figures: Figures) -> Result<Member, CrewError> {
        let (commands, obeyed) = ring(format!("{}-commands", options.name), COMMANDS);
        let commands = commands.waking(&options.bell);
        let eal = self.eal;
        let worker = Worker::spawn(options, move || PacketTask::new(eal, part, obeyed))?;
        Ok(Member { worker, commands, figures })
    }
}

fn tally(worker: &str) -> Result<Arc<WorkerTally>, CrewError> {
    let counters = WorkerTally::new(MAX_PORTS);
    let tally = counters.map_err(|source| CrewError::Counters { worker: worker.to_owned(), source })?;
    Ok(Arc::new(tally))
}

/// A number that nobody outside can guess: by knowing it, a tenant could choose flows that share a set of the cache.
fn seed() -> u64 {
    RandomState::new().hash_one(0)
}
