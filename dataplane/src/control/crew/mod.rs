//! The workers of a host, and everything that joins them: rings between the stages of a pipeline, between workers of which
//! only some reach a device, and to and from the control side.
//!
//! A host has pipelines, a pipeline has groups of stages, a group has one worker or several alike. All this can change while
//! packets flow: workers are hired and let go ([`change`]), and what is joined is said to them by commands, whether at the start
//! or later ([`hire`]). Invariant: at every moment each queue of a device has one user, and each ring one at either end.

mod change;
pub mod demand;
mod hire;
mod quiet;

pub use self::change::ChangeError;

use super::notice::{Notice, Trapped};
use crate::config::{self, Idle, PathStage, WhenFull, Workers};
use crate::counters::{PortTotals, WorkerTally};
use crate::snapshot::{Neighbours, Snapshot};
use crate::stages::dispatch::{Handoff, Way};
use crate::stages::parking;
use crate::stages::spread::{BUCKETS, MAX_WAYS, Shares};
use crate::task::Command;
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::bell::Bell;
use forebay_pipeline::counters::{Histogram, StageCounters};
use forebay_pipeline::idle::IdlePolicy;
use forebay_pipeline::publish::Publisher;
use forebay_pipeline::ring::{RingConsumer, RingProducer, RingStatus, ring};
use forebay_pipeline::stage::ChainCounters;
use forebay_pipeline::worker::{Worker, WorkerError, WorkerEvent};
use forebay_sriov::{Eal, PacketPool, RxQueue, TxQueue};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

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
    /// More workers than numbers for them.
    #[error("core {core}: the host has {MAX_WAYS} workers already (remove some, see: forebay worker list)")]
    TooMany {
        /// The core.
        core: usize,
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
}

/// What a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All stages, or all but the receiving.
    Fused,
    /// A beginning.
    Front,
    /// The end.
    Back,
}

impl Kind {
    /// It has transmit queues.
    fn sends(self) -> bool {
        self != Kind::Front
    }
}

/// One worker as the control side sees it.
pub struct Member {
    /// Its number in the tables of ways and of rings: unique among the workers that are there.
    number: usize,
    /// Its pipeline, an index.
    line: usize,
    /// Its group in the pipeline, an index.
    group: usize,
    kind: Kind,
    worker: Worker,
    bell: Arc<Bell>,
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

    /// Whether it looks packets up.
    pub fn classifies(&self) -> bool {
        self.figures.chain.as_ref().is_some_and(|chain| chain.stages().any(|(name, _)| name == "classify"))
    }

    /// Hands it a command. It takes commands in every round, so it is waited for where its ring is full; one that is stuck for a
    /// second does not get it.
    fn send(&mut self, command: Command) {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut batch = Batch::from_iter([command]);
        while self.commands.push(&mut batch) == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// A group of stages of a pipeline.
struct Group {
    stages: Vec<PathStage>,
    full: WhenFull,
    ring_packets: usize,
    /// Who of this group gets what.
    shares: Shares,
}

/// A pipeline.
pub struct Line {
    /// Its name.
    pub name: String,
    /// The higher, the more important.
    pub priority: u32,
    /// What it keeps whatever others need.
    pub min_cores: usize,
    /// The ports whose packets it receives; `None`: all that no other names.
    ports: Option<Vec<String>>,
    groups: Vec<Group>,
    /// Packet memory of its own.
    pool: Option<PacketPool>,
    /// Cores that came from other pipelines, since the start.
    pub gained: u64,
    /// Cores that went to other pipelines, since the start.
    pub lost: u64,
}

impl Line {
    /// The ports whose packets it receives; none for the one that takes all that no other names.
    pub fn ports(&self) -> &[String] {
        self.ports.as_deref().unwrap_or_default()
    }

    /// The kind of the workers in a group.
    fn kind(&self, group: usize) -> Kind {
        let runs = |stage| self.groups.get(group).is_some_and(|group| group.stages.contains(&stage));
        match (runs(PathStage::Classify), runs(PathStage::Transform)) {
            (true, true) => Kind::Fused,
            (false, true) => Kind::Back,
            (_, false) => Kind::Front,
        }
    }
}

/// The users of a device's queues.
struct Queues {
    device: u16,
    /// The pipeline that receives from it, an index.
    line: usize,
    /// Each receive queue, with the number of the worker that polls it.
    receive: Vec<(u16, usize)>,
    /// The numbers of workers with a transmit queue of their own.
    transmit: Vec<usize>,
    /// Transmit queues that nobody has.
    spare: Vec<TxQueue>,
    /// Each worker without a transmit queue, and the one that it reaches the device through.
    through: Vec<(usize, usize)>,
}

/// A ring between two workers.
struct Link {
    from: usize,
    to: usize,
    /// Packets that wait there can still be passed on further.
    is_inner: bool,
    status: Arc<RingStatus>,
}

/// A receive queue on its way to a worker, as far as it is known.
struct Unsettled {
    device: u16,
    queue: u16,
    from: usize,
    to: usize,
    /// Of the ring that it goes through.
    status: Arc<RingStatus>,
}

/// The control side's end of something new.
pub enum Joined {
    /// What a worker saw.
    Notices(RingConsumer<Notice>),
    /// What a worker trapped.
    Traps(RingConsumer<Trapped>),
    /// Packets that the control side wants to be sent.
    Inject(RingProducer<Handoff>),
}

/// The control side's ends of the rings.
pub struct Ends {
    /// More of them, as workers come.
    pub joined: Receiver<Joined>,
    /// Panics.
    pub events: Receiver<WorkerEvent>,
}

/// What workers are made with.
struct Recruiting {
    eal: Eal,
    publisher: Arc<Publisher<Snapshot>>,
    neighbours: Arc<Neighbours>,
    idle: IdlePolicy,
    /// Flows that a worker remembers.
    flows: u32,
    joined: mpsc::Sender<Joined>,
    events: SyncSender<WorkerEvent>,
    /// Counters of workers that are gone: they go on counting, and are the first to be used again.
    retired: Vec<Arc<WorkerTally>>,
    /// The highest slot of a rule so far: its counters are in memory.
    highest_rule: u32,
}

/// The workers of a host.
pub struct Crew {
    recruiting: Recruiting,
    members: Vec<Member>,
    lines: Vec<Line>,
    queues: Vec<Queues>,
    links: Vec<Link>,
    /// The number of the worker that sends what the control side wants to be sent.
    injects: Option<usize>,
    /// Moves of queues that a worker has neither made nor refused in time.
    unsettled: Vec<Unsettled>,
    /// Counters of threads that hang, and may count yet.
    hung: Vec<Arc<WorkerTally>>,
}

impl Crew {
    /// Starts the workers of these pipelines; each with memory of its own, if it has some, in `pools`.
    ///
    /// # Errors
    /// A core cannot be used; the workers that run already are stopped.
    pub fn start(
        eal: Eal,
        config: &Workers,
        pipelines: &[config::Pipeline],
        pools: Vec<Option<PacketPool>>,
        publisher: Arc<Publisher<Snapshot>>,
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
        let (joined_in, joined) = mpsc::channel();
        let recruiting = Recruiting {
            eal,
            publisher,
            neighbours,
            idle,
            flows: config.flow_cache_entries,
            joined: joined_in,
            events: events_in,
            retired: Vec::new(),
            highest_rule: 0,
        };
        let lines = pipelines.iter().zip(pools).map(|(pipeline, pool)| Line::new(pipeline, pool)).collect();
        let mut crew = Crew {
            recruiting,
            members: Vec::new(),
            lines,
            queues: Vec::new(),
            links: Vec::new(),
            injects: None,
            unsettled: Vec::new(),
            hung: Vec::new(),
        };
        for (line, pipeline) in pipelines.iter().enumerate() {
            for (group, plan) in pipeline.groups.iter().enumerate() {
                for core in &plan.cores {
                    crew.hire(line, group, *core)?;
                }
                crew.share(line, group);
            }
        }
        Ok((crew, Ends { joined, events }))
    }

    /// The workers.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The pipelines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The workers of a pipeline, group by group.
    pub fn members_of(&self, line: usize) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.line == line)
    }

    /// The name of a worker's pipeline.
    pub fn pipeline_of(&self, member: &Member) -> &str {
        self.lines.get(member.line).map_or("", |line| &line.name)
    }

    /// The rings that a worker reads.
    pub fn rings_into(&self, member: &Member) -> impl Iterator<Item = &Arc<RingStatus>> {
        self.links.iter().filter(|link| link.to == member.number).map(|link| &link.status)
    }

    /// The receive queues that a worker polls.
    pub fn queues_of(&self, member: &Member) -> usize {
        let held = self.queues.iter().flat_map(|queues| &queues.receive);
        held.filter(|(_, holder)| *holder == member.number).count()
    }

    /// The counters of all workers, those that are gone included.
    pub fn tallies(&self) -> impl Iterator<Item = &Arc<WorkerTally>> {
        let retired = self.recruiting.retired.iter();
        self.members.iter().map(|member| &member.figures.tally).chain(retired).chain(&self.hung)
    }

    /// Brings the counters of rules in these slots into memory, before a worker counts there.
    pub fn make_rules_ready(&mut self, slot: u32) {
        self.recruiting.highest_rule = self.recruiting.highest_rule.max(slot);
        self.tallies().for_each(|tally| tally.rules.make_ready(slot));
    }

    fn member(&mut self, number: usize) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.number == number)
    }

    fn send(&mut self, number: usize, command: Command) {
        if let Some(member) = self.member(number) {
            member.send(command);
        }
    }

    /// Calls `ask` for each worker that classifies, and hands it the command.
    pub fn ask_classifiers<T>(&mut self, mut ask: impl FnMut(&str) -> (Command, T)) -> Vec<T> {
        let classifiers = self.members.iter_mut().filter(|member| member.classifies());
        classifiers
            .map(|member| {
                let (command, answer) = ask(member.worker.name());
                member.send(command);
                answer
            })
            .collect()
    }

    /// Numbers of the workers that a pipeline's new queues go to: its own, and while it has lent its last core, that core's, or any that
    /// runs all stages.
    fn receivers(&self, line: usize) -> Vec<usize> {
        let own = self.heads(line);
        if !own.is_empty() {
            return own;
        }
        let held = self.queues.iter().filter(|queues| queues.line == line).flat_map(|queues| &queues.receive);
        let fused = self.members.iter().filter(|member| member.kind == Kind::Fused);
        held.map(|(_, holder)| *holder).chain(fused.map(|member| member.number)).take(1).collect()
    }

    /// Numbers of the workers that receive for a pipeline.
    fn heads(&self, line: usize) -> Vec<usize> {
        let heads = self.members.iter().filter(|member| (member.line, member.group) == (line, 0));
        heads.map(|member| member.number).collect()
    }

    /// Numbers of the workers that send.
    fn exits(&self) -> Vec<usize> {
        self.members.iter().filter(|member| member.kind.sends()).map(|member| member.number).collect()
    }

    /// The pipeline that receives a port's packets: the one that names it, else the one that takes all others. `None`: no pipeline
    /// does.
    pub fn line_of_port(&self, port: &str) -> Option<usize> {
        let names =
            |line: &Line| line.ports.as_ref().is_some_and(|ports| ports.iter().any(|name| name == port));
        self.lines.iter().position(names).or_else(|| self.lines.iter().position(|line| line.ports.is_none()))
    }

    /// The packet memory of a pipeline's own.
    pub fn pool(&self, line: usize) -> Option<&PacketPool> {
        self.lines.get(line)?.pool.as_ref()
    }

    /// Queues that a device of that pipeline is best opened with: one for each worker that needs one.
    pub fn queues_wanted(&self, line: usize) -> u16 {
        self.heads(line).len().max(self.exits().len()) as u16
    }

    /// Gives the queues of a device to the workers: the receive queues to those that receive for its pipeline. Each takes them at the
    /// beginning of its next round.
    pub fn attach(&mut self, device: u16, line: usize, queues: Vec<(RxQueue, TxQueue)>) {
        let (heads, exits) = (self.receivers(line), self.exits());
        let mut record = Queues {
            device,
            line,
            receive: Vec::new(),
            transmit: Vec::new(),
            spare: Vec::new(),
            through: Vec::new(),
        };
        for (number, (rx, tx)) in queues.into_iter().enumerate() {
            // Devices of one queue are spread over the workers.
            let place = number + usize::from(device);
            if let Some(head) = heads.get(place % heads.len().max(1)).copied() {
                record.receive.push((rx.queue(), head));
                self.send(head, Command::Receive(rx));
            }
            if number < exits.len() {
                let exit = exits[place % exits.len()];
                record.transmit.push(exit);
                self.send(exit, Command::Reach { device, way: Way::Queue(tx) });
            } else {
                record.spare.push(tx);
            }
        }
        self.queues.push(record);
        for exit in exits {
            self.find_way(device, exit);
        }
    }

    /// Gives a worker a way to a device that it does not reach: a queue that nobody has, else through the worker that has the
    /// first.
    fn find_way(&mut self, device: u16, exit: usize) {
        let Some(record) = self.queues.iter_mut().find(|queues| queues.device == device) else { return };
        if record.transmit.contains(&exit) {
            return;
        }
        record.through.retain(|(user, _)| *user != exit);
        let way = match record.spare.pop() {
            Some(queue) => {
                record.transmit.push(exit);
                Way::Queue(queue)
            }
            None => {
                let Some(owner) = record.transmit.first().copied() else { return };
                record.through.push((exit, owner));
                Way::Worker(owner)
            }
        };
        self.send(exit, Command::Reach { device, way });
    }

    /// Takes the queues of a device away from the workers.
    pub fn release(&mut self, device: u16) {
        self.queues.retain(|queues| queues.device != device);
        self.members.iter_mut().for_each(|member| member.send(Command::Release { device }));
    }

    /// The most packets that bursts, rings and waiting places can hold.
    pub fn holds_packets(&self) -> usize {
        let per_worker = 2 * BATCH + parking::PLACES;
        let rings: usize = self.links.iter().map(|link| link.status.capacity()).sum();
        self.members.len() * per_worker + rings
    }

    /// Stops the workers, those first that others get packets from. Returns the names of those that did not drain.
    pub fn stop(self, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        let depth = self.lines.iter().map(|line| line.groups.len()).max().unwrap_or(0);
        // Workers that send hand packets to each other, so they stop together, and last.
        let order = |member: &Member| if member.kind.sends() { depth } else { member.group };
        let mut groups: Vec<Vec<Worker>> = (0..=depth).map(|_| Vec::new()).collect();
        for member in self.members {
            groups[order(&member)].push(member.worker);
        }
        let mut late = Vec::new();
        for group in groups {
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

impl Line {
    fn new(pipeline: &config::Pipeline, pool: Option<PacketPool>) -> Line {
        let groups = pipeline.groups.iter().map(|group| Group {
            stages: group.stages.clone(),
            full: group.when_full,
            ring_packets: group.ring_packets,
            shares: [0; BUCKETS],
        });
        Line {
            name: pipeline.name.clone(),
            priority: pipeline.priority,
            min_cores: pipeline.min_cores,
            ports: pipeline.ports.clone(),
            groups: groups.collect(),
            pool,
            gained: 0,
            lost: 0,
        }
    }
}

/// A ring that wakes its reader.
fn ring_to<T>(name: String, capacity: usize, reader: &Arc<Bell>) -> (RingProducer<T>, RingConsumer<T>) {
    let (producer, consumer) = ring(name, capacity);
    (producer.waking(reader), consumer)
}
