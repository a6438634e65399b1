//! Changes of the crew while packets flow: workers come and go, and queues, flows and cores move from one to another.
//!
//! Nothing is lost by it as long as the devices' queues have room for what comes in some hundred microseconds, and no packet
//! of a flow overtakes another.

use super::quiet::{Restless, wait};
use super::{Crew, CrewError, Kind, Member, Queues, Unsettled};
use crate::config::PathStage;
use crate::snapshot::MAX_DEVICES;
use crate::stages::spread::{Shares, even_shares};
use crate::task::Command;
use forebay_pipeline::batch::Batch;
use forebay_pipeline::cores;
use forebay_pipeline::ring::{RingStatus, ring};
use forebay_sriov::RxQueue;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How long a queue may take to go to another worker. The worker that gives it gives up much earlier where others are late; only
/// one that is stuck takes longer.
const MOVE_PATIENCE: Duration = Duration::from_secs(2);
/// A worker that is late once, because others had its core, is not stuck.
const MOVE_TRIES: usize = 4;
/// How long a worker that is to go waits for answers of next hops: as long as they take in most networks.
const ANSWER_PATIENCE: Duration = Duration::from_millis(200);
/// How long a worker that is to go may take to send what it holds.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Why the crew does not change.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The core cannot be used.
    #[error(transparent)]
    Core(#[from] cores::CoreError),
    /// A worker is there already.
    #[error("core {core}: worker {worker:?} has it already (choose another core, see: forebay worker list)")]
    CoreTaken {
        /// The core.
        core: usize,
        /// The worker.
        worker: String,
    },
    /// No worker is there.
    #[error("core {core}: no worker has it (see: forebay worker list)")]
    NoWorker {
        /// The core.
        core: usize,
    },
    /// No such pipeline.
    #[error("there is no pipeline {name:?} (there are: {there})")]
    NoPipeline {
        /// What was named.
        name: String,
        /// What there is.
        there: String,
    },
    /// Several pipelines, and none named.
    #[error("core {core}: which pipeline is it for? (add --pipeline NAME; there are: {there})")]
    WhichPipeline {
        /// The core.
        core: usize,
        /// What there is.
        there: String,
    },
    /// No group of the pipeline runs these stages.
    #[error("pipeline {pipeline:?}: no stage {stage:?} of its own to add workers to (there are: {there})")]
    NoStage {
        /// The pipeline.
        pipeline: String,
        /// What was named.
        stage: String,
        /// What there is.
        there: String,
    },
    /// The last worker of its group.
    #[error(
        "worker {worker:?} is the only one that runs {stages} for pipeline {pipeline:?} (add another first: forebay worker add)"
    )]
    Last {
        /// The worker.
        worker: String,
        /// What it runs.
        stages: String,
        /// Its pipeline.
        pipeline: String,
    },
    /// It does not start.
    #[error(transparent)]
    Hire(#[from] CrewError),
    /// It does not come to rest.
    #[error(transparent)]
    Restless(#[from] Restless),
    /// A queue did not move.
    #[error(
        "queue {queue} of worker {worker:?} did not move, in {MOVE_TRIES} tries (is a worker stuck? see: forebay pipeline show)"
    )]
    Stays {
        /// The queue's number.
        queue: u16,
        /// Who has it.
        worker: String,
    },
}

impl Crew {
    /// Adds a worker on a core to a pipeline (the only one, where none is named), to the group that runs `stage` (the last, where
    /// none is named). Returns its name, and whether it was not there before.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then.
    pub fn add_worker(
        &mut self,
        core: usize,
        pipeline: &str,
        stage: &str,
    ) -> Result<(String, bool), ChangeError> {
        let line = self.find_line(core, pipeline)?;
        let group = self.find_group(line, stage)?;
        cores::check(&[core])?;
        if let Some(member) = self.on_core(core) {
            let worker = member.worker.name().to_owned();
            let is_it = (member.line, member.group) == (line, group);
            if !is_it {
                return Err(ChangeError::CoreTaken { core, worker });
            }
            // It may be there from a try that failed half-way.
            let number = member.number;
            self.settle_in(number)?;
            return Ok((worker, false));
        }
        let number = self.hire(line, group, core)?;
        self.settle_in(number)?;
        Ok((self.name_of(number), true))
    }

    /// Removes the worker on a core. Returns its name.
    ///
    /// # Errors
    /// [`ChangeError`]; the worker goes on then.
    pub fn remove_worker(&mut self, core: usize) -> Result<String, ChangeError> {
        let member = self.on_core(core).ok_or(ChangeError::NoWorker { core })?;
        let (number, name) = (member.number, member.worker.name().to_owned());
        if self.is_unsettled(number) {
            return Err(Restless { worker: name, waited: MOVE_PATIENCE }.into());
        }
        self.vacate(number)?;
        let member = self.members.iter().position(|member| member.number == number);
        let Some(place) = member else { return Err(ChangeError::NoWorker { core }) };
        let member = self.members.remove(place);
        self.recruiting.publisher.not_waking(&member.bell);
        let report = member.worker.stop(Instant::now() + LEAVE_PATIENCE);
        if !report.drained {
            tracing::warn!("worker {name:?} was removed before it had sent everything");
        }
        if report.ended {
            self.recruiting.retired.push(member.figures.tally);
        } else {
            self.hung.push(member.figures.tally);
        }
        self.links.retain(|link| link.from != number && link.to != number);
        Ok(name)
    }

    /// Moves a core from one pipeline to another. Returns the name of its worker; `None` where the one has none to give that the
    /// other can use. With its last core, a pipeline lends its queues: the worker goes on polling them beside those of the other.
    ///
    /// # Errors
    /// [`ChangeError`]; the worker stays where it is then.
    pub fn move_core(&mut self, from: usize, to: usize) -> Result<Option<String>, ChangeError> {
        let Some(number) = self.movable(from, to) else { return Ok(None) };
        if self.numbers_of(from, 0).len() > 1 || self.lines[from].groups.len() > 1 {
            self.leave_group(number)?;
        }
        let group = self.lines[to].groups.len() - 1;
        if let Some(member) = self.member(number) {
            (member.line, member.group) = (to, group);
        }
        self.join_groups(number);
        self.lines[from].lost += 1;
        self.lines[to].gained += 1;
        // The core has moved; what is not shared out yet is shared out with the next change.
        if let Err(error) = self.settle_in(number) {
            tracing::warn!("{error}");
        }
        Ok(Some(self.name_of(number)))
    }

    /// The worker that a pipeline misses least, if it is of use to the other one: the one that polls queues of the other anyway, else
    /// of those that poll the fewest queues, the last.
    fn movable(&self, from: usize, to: usize) -> Option<usize> {
        let (giver, taker) = (self.lines.get(from)?, self.lines.get(to)?);
        if taker.kind(taker.groups.len() - 1) != Kind::Fused {
            return None;
        }
        let last = (from, giver.groups.len() - 1);
        let candidates: Vec<_> =
            self.members.iter().filter(|member| (member.line, member.group) == last).collect();
        let may_lend_all = giver.groups.len() == 1 && giver.min_cores == 0;
        if candidates.len() < 2 && !may_lend_all {
            return None;
        }
        let polls_for_taker = |number: usize| self.held_by(number, to).len();
        let fused = candidates.into_iter().filter(|member| member.kind == Kind::Fused).rev();
        let least =
            |member: &&Member| (std::cmp::Reverse(polls_for_taker(member.number)), self.queues_of(member));
        fused.min_by_key(least).map(|member| member.number)
    }

    /// Gives a worker that has joined a group its part of the work.
    fn settle_in(&mut self, number: usize) -> Result<(), ChangeError> {
        let Some((line, group)) = self.place_of(number) else { return Ok(()) };
        if let Some(next) = self.lines[line].groups.get(group + 1) {
            // Before anything comes to it: it spreads as the others of its group do.
            let shares = Box::new(next.shares);
            self.send(number, Command::Share(shares));
        }
        if group > 0 { self.reshare(line, group) } else { self.balance(line) }
    }

    /// Takes all work from a worker that is to go, and its queues.
    fn vacate(&mut self, number: usize) -> Result<(), ChangeError> {
        self.leave_group(number)?;
        let left = self.leave_rest(number);
        if left.is_err() {
            // It goes on as before.
            self.join_groups(number);
            if let Err(error) = self.settle_in(number) {
                tracing::warn!("{error}");
            }
        }
        left
    }

    fn leave_rest(&mut self, number: usize) -> Result<(), ChangeError> {
        // Queues of a pipeline that has lent its last core.
        if let Some((own, group)) = self.place_of(number)
            && let Some(other) = self.numbers_of(own, group).into_iter().find(|other| *other != number)
        {
            for line in 0..self.lines.len() {
                for (device, queue) in self.held_by(number, line) {
                    self.move_queue(device, queue, other)?;
                }
            }
        }
        // What waits for a next hop here may still leave; else it is given up with the transmit queues.
        if let Some(member) = self.members.iter().find(|member| member.number == number) {
            let tally = member.figures.tally.clone();
            let waiting = || tally.ports.iter().any(|port| port.parked.get() != port.released.get());
            wait(|| !waiting(), ANSWER_PATIENCE);
        }
        if self.exits().contains(&number) {
            let all: Vec<usize> = (0..self.lines.len()).collect();
            self.while_quiet(&all, |crew| crew.give_up_sending(number))??;
        }
        Ok(())
    }

    /// Takes a worker out of its group: it receives nothing any more, from devices or from other workers.
    fn leave_group(&mut self, number: usize) -> Result<(), ChangeError> {
        let Some((line, group)) = self.place_of(number) else { return Ok(()) };
        let alike = |crew: &Crew| -> Vec<usize> {
            let members = crew.members.iter().filter(|member| (member.line, member.group) == (line, group));
            members.map(|member| member.number).filter(|other| *other != number).collect()
        };
        let others = alike(self);
        if others.is_empty() {
            let stages = self.lines[line].groups[group].stages.iter().map(ToString::to_string);
            return Err(ChangeError::Last {
                worker: self.name_of(number),
                stages: stages.collect::<Vec<_>>().join(", "),
                pipeline: self.lines[line].name.clone(),
            });
        }
        if group == 0 {
            for (device, queue) in self.held_by(number, line) {
                let least = others.iter().copied().min_by_key(|other| self.held_by(*other, line).len());
                let Some(to) = least else { break };
                self.move_queue(device, queue, to)?;
            }
        } else {
            let shares = even_shares(&self.lines[line].groups[group].shares, &ways(&others));
            self.while_quiet(&[line], |crew| crew.set_shares(line, group, shares))?;
            let before: Vec<usize> = self.numbers_of(line, group - 1);
            before
                .into_iter()
                .for_each(|from| self.send(from, Command::Onto { place: number as u8, ring: None }));
        }
        let behind = self.numbers_of(line, group + 1);
        behind.into_iter().for_each(|to| self.send(number, Command::Onto { place: to as u8, ring: None }));
        self.links.retain(|link| !(link.is_inner && (link.from == number || link.to == number)));
        Ok(())
    }

    /// Takes the transmit queues from a worker, and sends everybody who used them another way. Nothing is on its way.
    fn give_up_sending(&mut self, number: usize) -> Result<(), Restless> {
        let (to, mut returned) = ring("returned", MAX_DEVICES);
        self.send(number, Command::Return(to));
        self.obeyed(&[number])?;
        let mut queues = Batch::new();
        returned.pop(&mut queues);
        for queue in queues.drain(..) {
            if let Some(record) = self.queues.iter_mut().find(|record| record.device == queue.port()) {
                record.spare.push(queue);
            }
        }
        let mut lost = Vec::new();
        for record in &mut self.queues {
            record.transmit.retain(|user| *user != number);
            let device = record.device;
            lost.extend(
                record.through.iter().filter(|(_, owner)| *owner == number).map(|(user, _)| (device, *user)),
            );
            record.through.retain(|(user, owner)| *user != number && *owner != number);
        }
        lost.into_iter().for_each(|(device, user)| self.find_way(device, user));
        for other in self.exits().into_iter().filter(|other| *other != number) {
            self.send(other, Command::Peer { number, ring: None });
        }
        if self.injects == Some(number)
            && let Some(other) = self.exits().into_iter().find(|other| *other != number)
        {
            self.inject_through(other);
        }
        Ok(())
    }

    /// Gives the workers of a pipeline that receive as many of its queues each, as far as that goes.
    fn balance(&mut self, line: usize) -> Result<(), ChangeError> {
        let heads = self.heads(line);
        let least = |crew: &Crew| heads.iter().copied().min_by_key(|head| crew.held_by(*head, line).len());
        // Those that another pipeline's worker polls while this one had none.
        for (device, queue) in self.held_elsewhere(line, &heads) {
            let Some(to) = least(self) else { return Ok(()) };
            self.move_queue(device, queue, to)?;
        }
        // Each turn moves one: there are no more turns than queues.
        for _ in 0..MAX_DEVICES * usize::from(u8::MAX) {
            let most = heads.iter().copied().max_by_key(|head| self.held_by(*head, line).len());
            let (Some(most), Some(least)) = (most, least(self)) else { break };
            let held = self.held_by(most, line);
            if held.len() <= self.held_by(least, line).len() + 1 {
                break;
            }
            // The last: the first queue of a device that does not spread its flows has all of them.
            let Some((device, queue)) = held.last().copied() else { break };
            self.move_queue(device, queue, least)?;
        }
        Ok(())
    }

    /// Moves a receive queue from the worker that polls it to another one.
    pub(super) fn move_queue(&mut self, device: u16, queue: u16, to: usize) -> Result<(), ChangeError> {
        let record = self.queues.iter().find(|record| record.device == device);
        let held = record.and_then(|record| record.receive.iter().find(|(number, _)| *number == queue));
        let Some((_, from)) = held.copied().filter(|(_, from)| *from != to) else { return Ok(()) };
        if self.is_unsettled(from) || self.is_unsettled(to) || !self.tries_to_move(device, queue, from, to) {
            return Err(ChangeError::Stays { queue, worker: self.name_of(from) });
        }
        hold(&mut self.queues, device, queue, to);
        Ok(())
    }

    /// False where the worker that has the queue keeps it, or does nothing.
    fn tries_to_move(&mut self, device: u16, queue: u16, from: usize, to: usize) -> bool {
        for _ in 0..MOVE_TRIES {
            let Some(reader) = self.member(to) else { return false };
            let (giver, taker) = ring::<RxQueue>("queue", 1);
            let giver = giver.waking(&reader.bell);
            let status = giver.status();
            reader.send(Command::Take(taker));
            self.send(from, Command::Give { device, queue, to: giver });
            if !wait(|| is_over(&status), MOVE_PATIENCE) {
                self.unsettled.push(Unsettled { device, queue, from, to, status });
                return false;
            }
            if status.popped() > 0 {
                return true;
            }
        }
        false
    }

    /// Whether this worker may still give or get a queue that was given up on.
    fn is_unsettled(&mut self, number: usize) -> bool {
        for Unsettled { device, queue, to, status, .. } in
            self.unsettled.extract_if(.., |one| is_over(&one.status))
        {
            if status.popped() > 0 {
                hold(&mut self.queues, device, queue, to);
            }
        }
        self.unsettled.iter().any(|one| one.from == number || one.to == number)
    }

    /// Spreads the flows evenly over the workers of a group, while nothing is on its way to them.
    fn reshare(&mut self, line: usize, group: usize) -> Result<(), ChangeError> {
        let shares = self.even(line, group);
        if shares != self.lines[line].groups[group].shares {
            self.while_quiet(&[line], |crew| crew.set_shares(line, group, shares))?;
        }
        Ok(())
    }

    /// As [`Crew::reshare`], where nothing comes yet.
    pub(super) fn share(&mut self, line: usize, group: usize) {
        if group > 0 {
            let shares = self.even(line, group);
            self.set_shares(line, group, shares);
        }
    }

    fn even(&self, line: usize, group: usize) -> Shares {
        even_shares(&self.lines[line].groups[group].shares, &ways(&self.numbers_of(line, group)))
    }

    fn set_shares(&mut self, line: usize, group: usize, shares: Shares) {
        self.lines[line].groups[group].shares = shares;
        for from in self.numbers_of(line, group - 1) {
            self.send(from, Command::Share(Box::new(shares)));
        }
    }

    fn find_line(&self, core: usize, pipeline: &str) -> Result<usize, ChangeError> {
        let there = || self.lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>().join(", ");
        if pipeline.is_empty() {
            return if self.lines.len() == 1 {
                Ok(0)
            } else {
                Err(ChangeError::WhichPipeline { core, there: there() })
            };
        }
        let found = self.lines.iter().position(|line| line.name == pipeline);
        found.ok_or_else(|| ChangeError::NoPipeline { name: pipeline.to_owned(), there: there() })
    }

    fn find_group(&self, line: usize, stage: &str) -> Result<usize, ChangeError> {
        let groups = &self.lines[line].groups;
        if stage.is_empty() {
            return Ok(groups.len() - 1);
        }
        let runs = |stages: &[PathStage]| stages.iter().any(|known| known.to_string() == stage);
        groups.iter().position(|group| runs(&group.stages)).ok_or_else(|| ChangeError::NoStage {
            pipeline: self.lines[line].name.clone(),
            stage: stage.to_owned(),
            there: PathStage::PATH.map(|stage| stage.to_string()).join(", "),
        })
    }

    fn on_core(&self, core: usize) -> Option<&Member> {
        self.members.iter().find(|member| member.worker.core() == Some(core))
    }

    fn name_of(&self, number: usize) -> String {
        let member = self.members.iter().find(|member| member.number == number);
        member.map_or_else(String::new, |member| member.worker.name().to_owned())
    }

    fn place_of(&self, number: usize) -> Option<(usize, usize)> {
        let member = self.members.iter().find(|member| member.number == number)?;
        Some((member.line, member.group))
    }

    fn numbers_of(&self, line: usize, group: usize) -> Vec<usize> {
        let members = self.members.iter().filter(|member| (member.line, member.group) == (line, group));
        members.map(|member| member.number).collect()
    }

    /// The receive queues of a pipeline: device, number, and who polls it.
    pub(super) fn queues_of_line(&self, line: usize) -> impl Iterator<Item = (u16, u16, usize)> {
        let records = self.queues.iter().filter(move |record| record.line == line);
        records
            .flat_map(|record| record.receive.iter().map(|(queue, holder)| (record.device, *queue, *holder)))
    }

    /// The receive queues of a pipeline that this worker polls: device and number.
    fn held_by(&self, number: usize, line: usize) -> Vec<(u16, u16)> {
        let held = self.queues_of_line(line).filter(|(.., holder)| *holder == number);
        held.map(|(device, queue, _)| (device, queue)).collect()
    }

    /// The receive queues of a pipeline that none of these workers polls.
    fn held_elsewhere(&self, line: usize, heads: &[usize]) -> Vec<(u16, u16)> {
        let held = self.queues_of_line(line).filter(|(.., holder)| !heads.contains(holder));
        held.map(|(device, queue, _)| (device, queue)).collect()
    }
}

/// Whether both ends of a ring are gone: only this reference to its figures is left.
fn is_over(status: &Arc<RingStatus>) -> bool {
    let is_over = Arc::strong_count(status) == 1;
    // What the ends counted, they counted before they went.
    fence(Ordering::Acquire);
    is_over
}

/// Notes who polls a queue.
fn hold(queues: &mut [Queues], device: u16, queue: u16, holder: usize) {
    for record in queues.iter_mut().filter(|record| record.device == device) {
        record.receive.iter_mut().filter(|(number, _)| *number == queue).for_each(|held| held.1 = holder);
    }
}

/// The places of workers in a table of shares.
fn ways(numbers: &[usize]) -> Vec<u8> {
    // Numbers are below the number of ways.
    numbers.iter().map(|number| *number as u8).collect()
}
