//! How a worker comes to be: its part of the pipeline, its thread, and everything that joins it to the others.

use super::{Crew, CrewError, Figures, Joined, Kind, Line, Link, Member, Recruiting, ring_to};
use crate::config::{PathStage, WhenFull};
use crate::control::notice::notices;
use crate::counters::WorkerTally;
use crate::flows::cache::FlowCache;
use crate::snapshot::{MAX_PORTS, Neighbours};
use crate::stages::admit::Admit;
use crate::stages::classify::Classify;
use crate::stages::dispatch::{Dispatch, DispatchParts};
use crate::stages::inbox::{Inbox, Inboxes};
use crate::stages::ledger::Ledger;
use crate::stages::recall::Recall;
use crate::stages::receive::Receive;
use crate::stages::spread::{FlowBy, Full, MAX_WAYS, Spread};
use crate::stages::transform::Transform;
use crate::task::{Back, COMMANDS, Command, Exit, Front, Fused, PacketTask, Part, RING_PACKETS};
use crate::upstream::Upstream;
use forebay_pipeline::batch::Batch;
use forebay_pipeline::bell::Bell;
use forebay_pipeline::counters::{Histogram, StageCounters};
use forebay_pipeline::ring::ring;
use forebay_pipeline::stage::Chain;
use forebay_pipeline::worker::{Worker, WorkerOptions};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Trapped packets that wait for the control side, per worker. It reads every millisecond.
const TRAPS: usize = 1024;

impl Crew {
    /// Starts a worker on a core and joins it to the others. Nothing comes to it yet. Returns its number.
    pub(super) fn hire(&mut self, line: usize, group: usize, core: usize) -> Result<usize, CrewError> {
        let taken = |number: &usize| self.members.iter().all(|member| member.number != *number);
        let number = (0..MAX_WAYS).find(taken).ok_or(CrewError::TooMany { core })?;
        let name = self.free_name(line, group);
        let kind = self.lines[line].kind(group);
        let recruit = Recruit::new(&mut self.recruiting, name)?;
        let member = recruit.member(&self.lines[line], (line, group), kind, number, core)?;
        self.members.push(member);
        if kind.sends() {
            self.meet_exits(number);
            if self.injects.is_none() {
                self.inject_through(number);
            }
        }
        self.join_groups(number);
        let devices: Vec<u16> = self.queues.iter().map(|queues| queues.device).collect();
        if kind.sends() {
            devices.into_iter().for_each(|device| self.find_way(device, number));
        }
        Ok(number)
    }

    /// A name that tells what the worker does, and that no other has.
    fn free_name(&self, line: usize, group: usize) -> String {
        let stages = self.lines[line].groups[group].stages.as_slice();
        let prefix = match stages {
            [PathStage::Receive] => "receiver",
            [PathStage::Receive, PathStage::Classify] => "front",
            [PathStage::Classify] => "classifier",
            [PathStage::Transform] => "back",
            _ => "worker",
        };
        let is_free = |name: &String| self.members.iter().all(|member| member.worker.name() != name);
        (0..=MAX_WAYS).map(|number| format!("{prefix}{number}")).find(is_free).unwrap_or_default()
    }

    /// From now on what the control side wants to be sent goes through this worker.
    pub(super) fn inject_through(&mut self, number: usize) {
        let Some(member) = self.member(number) else { return };
        let (inject, served) = ring_to("control".into(), RING_PACKETS, &member.bell);
        let status = inject.status();
        member.send(Command::Serve(served));
        // While nobody listens, nobody wants anything to be sent.
        let _ = self.recruiting.joined.send(Joined::Inject(inject));
        self.links.push(Link { from: usize::MAX, to: number, is_inner: false, status });
        self.injects = Some(number);
    }

    /// Rings between a worker that sends and all others that do, both ways.
    fn meet_exits(&mut self, number: usize) {
        for other in self.exits().into_iter().filter(|other| *other != number) {
            for (from, to) in [(number, other), (other, number)] {
                let Some(name) = self.link_name(from, to) else { continue };
                let Some(reader) = self.member(to) else { continue };
                let (producer, consumer) = ring_to(name, RING_PACKETS, &reader.bell);
                reader.send(Command::Serve(consumer));
                self.links.push(Link { from, to, is_inner: false, status: producer.status() });
                self.send(from, Command::Peer { number: to, ring: Some(producer) });
            }
        }
    }

    /// Rings from all workers of the group before, and to all of the group behind.
    pub(super) fn join_groups(&mut self, number: usize) {
        let Some(member) = self.member(number) else { return };
        let (line, group) = (member.line, member.group);
        let of_group = |group: usize| {
            let members =
                self.members.iter().filter(move |member| (member.line, member.group) == (line, group));
            members.map(|member| member.number).collect::<Vec<_>>()
        };
        let before = if group > 0 { of_group(group - 1) } else { Vec::new() };
        let behind = of_group(group + 1);
        let pairs =
            before.into_iter().map(|from| (from, number)).chain(behind.into_iter().map(|to| (number, to)));
        for (from, to) in pairs {
            self.join(from, to);
        }
    }

    fn join(&mut self, from: usize, to: usize) {
        let Some(name) = self.link_name(from, to) else { return };
        let Some(sender) = self.members.iter().find(|member| member.number == from) else { return };
        // Numbers of packets are counted by the worker that received them.
        let upstream = (sender.group == 0).then(|| Upstream::new(sender.figures.tally.clone()));
        let Some(reader) = self.member(to) else { return };
        let (line, group, bell) = (reader.line, reader.group, reader.bell.clone());
        let ring_packets = self.lines[line].groups[group].ring_packets;
        let (producer, consumer) = ring_to(name, ring_packets, &bell);
        self.send(to, Command::Inbox(Box::new(Inbox::new(consumer, upstream))));
        self.links.push(Link { from, to, is_inner: true, status: producer.status() });
        // Numbers of workers are below the number of ways.
        self.send(from, Command::Onto { place: to as u8, ring: Some(producer) });
    }

    fn link_name(&self, from: usize, to: usize) -> Option<String> {
        let name = |number: usize| {
            self.members.iter().find(|member| member.number == number).map(|member| member.worker.name())
        };
        Some(format!("{}-{}", name(from)?, name(to)?))
    }
}

/// A worker in the making.
struct Recruit<'a> {
    recruiting: &'a mut Recruiting,
    name: String,
    tally: Arc<WorkerTally>,
    ledger: Ledger,
    figures: Figures,
}

impl<'a> Recruit<'a> {
    fn new(recruiting: &'a mut Recruiting, name: String) -> Result<Recruit<'a>, CrewError> {
        let tally = match recruiting.retired.pop() {
            Some(tally) => tally,
            None => Arc::new(
                WorkerTally::new(MAX_PORTS)
                    .map_err(|source| CrewError::Counters { worker: name.clone(), source })?,
            ),
        };
        tally.rules.make_ready(recruiting.highest_rule);
        let ledger = Ledger::new(tally.clone());
        let figures =
            Figures { tally: tally.clone(), io: Vec::new(), chain: None, dispatch: None, residence_ns: None };
        Ok(Recruit { recruiting, name, tally, ledger, figures })
    }

    fn member(
        mut self,
        plan: &Line,
        (line, group): (usize, usize),
        kind: Kind,
        number: usize,
        core: usize,
    ) -> Result<Member, CrewError> {
        let made = self.part(plan, group, kind);
        let Recruit { recruiting, name, tally, figures, .. } = self;
        let spawned = made.and_then(|part| {
            let bell = Arc::new(Bell::new());
            let options = WorkerOptions::new(name.clone(), Some(core), recruiting.idle)
                .with_events(recruiting.events.clone());
            let options = WorkerOptions { bell: bell.clone(), ..options };
            let (commands, obeyed) = ring_to(format!("{name}-commands"), COMMANDS, &bell);
            let eal = recruiting.eal;
            let worker = Worker::spawn(options, move || PacketTask::new(eal, part, obeyed))?;
            recruiting.publisher.waking(&bell);
            Ok(Member { number, line, group, kind, worker, bell, commands, figures })
        });
        if spawned.is_err() {
            // What it counted before stays counted.
            recruiting.retired.push(tally);
        }
        spawned
    }

    fn part(&mut self, plan: &Line, group: usize, kind: Kind) -> Result<Part, CrewError> {
        let inboxes = Inboxes::new(self.ledger.clone());
        let ledger = self.ledger.clone();
        Ok(match kind {
            Kind::Fused => {
                let receive = self.receive();
                let recall = self.recall(Some(self.recruiting.neighbours.clone()))?;
                let (admit, classify) = (self.admit(), self.classify());
                let transform = Transform::new(self.recruiting.publisher.subscribe(&self.name));
                let chain = Chain::new((recall, admit, classify, transform));
                self.figures.chain = Some(chain.counters());
                Part::Fused(Box::new(Fused { receive, inboxes, chain, exit: self.exit(), ledger }))
            }
            Kind::Back => {
                let chain = Chain::new((Transform::new(self.recruiting.publisher.subscribe(&self.name)),));
                self.figures.chain = Some(chain.counters());
                Part::Back(Box::new(Back { chain, exit: self.exit(), inboxes, ledger }))
            }
            Kind::Front => {
                let receive = self.receive();
                let classifies = |group: usize| plan.groups[group].stages.contains(&PathStage::Classify);
                let mut chain = None;
                if classifies(group) {
                    // It does not send: what it knows about the MACs of next hops is nothing.
                    let made = Chain::new((self.recall(None)?, self.admit(), self.classify()));
                    self.figures.chain = Some(made.counters());
                    chain = Some(made);
                }
                let by = if (0..=group).any(classifies) { FlowBy::Meta } else { FlowBy::Packet };
                let full = match plan.groups.get(group + 1).map(|next| next.full) {
                    Some(WhenFull::Wait) => Full::Wait,
                    Some(WhenFull::Drop) | None => Full::Drop,
                };
                let spread = Spread::new(ledger.clone(), by, full);
                Part::Front(Box::new(Front { receive, inboxes, chain, spread, ledger }))
            }
        })
    }

    fn receive(&mut self) -> Receive {
        let counters = Arc::new(StageCounters::default());
        self.figures.io.push(("receive", counters.clone()));
        Receive::new(self.recruiting.publisher.subscribe(&self.name), self.ledger.clone(), counters)
    }

    fn recall(&self, neighbours: Option<Arc<Neighbours>>) -> Result<Recall, CrewError> {
        let entries = self.recruiting.flows;
        let flows = FlowCache::new(entries as usize).map_err(|source| CrewError::FlowCache {
            worker: self.name.clone(),
            entries,
            source,
        })?;
        let snapshot = self.recruiting.publisher.subscribe(&self.name);
        Ok(Recall::new(snapshot, self.ledger.clone(), flows, seed(), neighbours))
    }

    fn admit(&self) -> Admit {
        let (tell, hear) = notices(&self.name);
        self.join(Joined::Notices(hear));
        Admit::new(self.recruiting.publisher.subscribe(&self.name), tell)
    }

    fn classify(&self) -> Classify {
        Classify::new(self.recruiting.publisher.subscribe(&self.name), self.ledger.clone())
    }

    fn exit(&mut self) -> Exit {
        let (notices, hear) = notices(&self.name);
        let (traps, trapped) = ring(format!("{}-traps", self.name), TRAPS);
        self.join(Joined::Notices(hear));
        self.join(Joined::Traps(trapped));
        let (transmit, counters) = (Arc::new(StageCounters::default()), Arc::new(StageCounters::default()));
        let residence_ns = Arc::new(Histogram::default());
        self.figures.io.push(("transmit", transmit.clone()));
        self.figures.dispatch = Some(counters.clone());
        self.figures.residence_ns = Some(residence_ns.clone());
        let dispatch = Dispatch::new(DispatchParts {
            snapshot: self.recruiting.publisher.subscribe(&self.name),
            ledger: self.ledger.clone(),
            neighbours: self.recruiting.neighbours.clone(),
            notices,
            traps,
            handoffs: Vec::new(),
            transmit,
        });
        Exit { dispatch, counters, residence_ns, handoffs: Vec::new(), batch: Box::new(Batch::new()) }
    }

    fn join(&self, joined: Joined) {
        // A control side that does not listen any more is about to stop us.
        let _ = self.recruiting.joined.send(joined);
    }
}

/// A number that nobody outside can guess: by knowing it, a tenant could choose flows that share a set of the cache.
fn seed() -> u64 {
    RandomState::new().hash_one(0)
}
