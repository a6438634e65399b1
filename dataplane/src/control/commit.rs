//! Changes of rules, many at a time: each request is all or nothing, and all of a group share one write to the disk, one
//! snapshot and one wait for the workers.
//!
//! Requests are staged in the book one after another; one that does not fit is undone alone. What is left is written to the
//! state file while the tables are changed beside it, and published when both are done. A disk that fails brings everything
//! back to where it was. Only then is the book settled, so that nobody is shown a rule that is not in force.

use super::book::{Book, Staged, Step};
use super::desk::Desk;
use super::host::{Host, HostError, PASS_TIMEOUT};
use super::record::{NONE, Stage};
use super::request::{Batch, Counts, Outcome};
use super::resolver::NoSlot;
use super::rule_check::{check, refer};
use super::rule_error::RuleError;
use super::segment::{Entry, Place, entries};
use super::store::{Change, StoreError};
use super::tables::Applied;
use crate::action::PortId;
use crate::rules::rule::{Rule, RuleAction};
use arrayvec::ArrayVec;
use forebay_api::rule_view::RuleView;
use forebay_api::v1;
use forebay_pipeline::memory::give_memory_back;
use hashbrown::{HashMap, HashSet};
use prost::Message;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

/// Rules that are staged or written down while the book is locked: a fraction of a millisecond.
const RULES_AT_ONCE: usize = 256;
/// Rules of small requests, and entries of the log, that are looked for together.
const RULES_FETCHED: usize = 64;
/// Entries of the log that are looked at beyond twice what a change adds: a step of some hundred microseconds.
const CLEANED_AT_LEAST: u64 = 1024;
/// Steps whose remains are freed by a thread of their own: freeing more takes longer than a change should.
const STEPS_FREED_AT_ONCE: usize = 4096;
/// Steps after which freed memory goes back to the system: what fewer take will be taken again.
const STEPS_GIVEN_BACK: usize = 1 << 16;

/// What a group of requests does: the steps, where the rules that come are offered (batch and place in it), and what is
/// written down.
struct Plan {
    steps: Vec<Step>,
    offers: Vec<(u32, u32)>,
    change: Change,
}

impl Plan {
    fn rule<'g>(&self, group: &'g [Batch], index: usize) -> Option<&'g Rule> {
        let (batch, offer) = *self.offers.get(index)?;
        Some(&group.get(batch as usize)?.puts.get(offer as usize)?.rule)
    }

    fn push(&mut self, step: Step, offer: (u32, u32)) {
        self.steps.push(step);
        self.offers.push(offer);
    }
}

/// The next hops that are left, and those that the group takes.
struct Room {
    left: usize,
    seen: HashSet<IpAddr>,
    taken: HashSet<(PortId, IpAddr)>,
}

/// Rules that were moved in the state file: those in force by slot, and those that cannot be read by their old place.
#[derive(Default)]
struct Moves {
    rules: Vec<(u32, Place)>,
    unreadable: Vec<(Place, Place)>,
}

/// What a group of requests came to.
pub struct Committed {
    /// An outcome for each request of each batch.
    pub outcomes: Vec<Vec<Outcome>>,
    /// The memory that the group took goes back to the system already.
    pub gives_back: bool,
}

impl Host {
    /// Carries out the requests of a group, in order. Returns when they are durable and in force.
    pub fn commit(&self, mut group: Vec<Batch>) -> Committed {
        let desk = &mut *self.desk.lock();
        let begun = Instant::now();
        let mut plan = Plan { steps: Vec::new(), offers: Vec::new(), change: self.store.change() };
        let left = self.resolver.lock().room(Instant::now());
        let mut room = Room { left, seen: HashSet::new(), taken: HashSet::new() };
        let mut outcomes: Vec<Vec<Outcome>> = Vec::with_capacity(group.len());
        for (number, batch) in group.iter_mut().enumerate() {
            let mut answers = Vec::with_capacity(batch.requests.len());
            let mut fetched = 0;
            for request in 0..batch.requests.len() {
                let puts_end = batch.bounds(request).1.end;
                if puts_end > fetched {
                    let ahead = batch.puts[fetched..].iter().take(RULES_FETCHED);
                    fetched = puts_end.max(fetched + ahead.len());
                    self.book.lock().fetch(ahead.map(|offer| &*offer.rule.id));
                }
                if let Some(refusal) = batch.requests[request].refusal.take() {
                    answers.push(Err(Arc::new(refusal)));
                    continue;
                }
                let (from, mark) = (plan.steps.len(), plan.change.rows.mark());
                let staged = self.stage(desk, batch, (number, request), &mut plan, &mut room);
                if staged.is_err() || batch.dry_run {
                    self.book.lock().undo(&plan.steps[from..]);
                    plan.change.rows.truncate(mark);
                    plan.steps.truncate(from);
                    plan.offers.truncate(from);
                }
                answers.push(staged.map_err(Arc::new));
            }
            outcomes.push(answers);
        }
        tracing::debug!("{} steps staged after {:?}", plan.steps.len(), begun.elapsed());
        let mut gives_back = plan.steps.len() >= STEPS_GIVEN_BACK;
        if !plan.steps.is_empty()
            && let Err(error) = self.carry_out(desk, group, plan)
        {
            let error = Arc::new(error);
            for outcome in outcomes.iter_mut().flatten().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(error.clone());
            }
            gives_back = false;
        }
        Committed { outcomes, gives_back }
    }

    fn stage(
        &self,
        desk: &Desk,
        batch: &Batch,
        (number, request): (usize, usize),
        plan: &mut Plan,
        room: &mut Room,
    ) -> Result<Counts, HostError> {
        let (deletes, puts) = batch.bounds(request);
        let mut counts = Counts::default();
        // Ids that the request itself has put before, where there are any.
        let (from, mut own) = (plan.steps.len(), None::<HashSet<u32>>);
        let deletes = &batch.deletes[deletes];
        let mut deleted = None::<HashSet<&str>>;
        for (index, id) in deletes.iter().enumerate() {
            let staged = self.book.lock().stage_delete(id);
            if staged.is_err() {
                deleted.get_or_insert_with(|| deletes[..index].iter().map(String::as_str).collect());
            }
            if let Some(deleted) = &mut deleted
                && !deleted.insert(id)
            {
                // The same id twice in one request is one deletion.
                continue;
            }
            plan.push(staged?, (NONE, NONE));
            plan.change.rows.delete(id);
            counts.changed += 1;
        }
        if puts.len() > RULES_AT_ONCE {
            self.book.lock().reserve(puts.len());
            plan.steps.reserve(puts.len());
            plan.offers.reserve(puts.len());
        }
        for chunk in chunks(puts.clone(), RULES_AT_ONCE) {
            let book = &mut *self.book.lock();
            if chunk.start > puts.start {
                book.fetch(batch.puts[chunk.clone()].iter().map(|offer| &*offer.rule.id));
            }
            for index in chunk {
                let offer = &batch.puts[index];
                let references = check(&offer.rule, &book.names, &desk.routes)?;
                self.check_next_hop(&offer.rule, desk, room)?;
                match book.stage_put(&offer.rule, offer.fingerprint, references)? {
                    Staged::Unchanged => counts.unchanged += 1,
                    Staged::Step(step) => {
                        let place = plan.change.rows.put(batch.encoded(offer));
                        if let Some(record) = book.records.get_mut(step.new) {
                            record.place = place;
                        }
                        counts.changed += usize::from(!replaces_own(book, plan, from, &mut own, step));
                        plan.push(step, (number as u32, index as u32));
                    }
                }
            }
        }
        Ok(counts)
    }

    /// Finds out whether there is a slot for the next hop that a rule needs.
    fn check_next_hop(&self, rule: &Rule, desk: &Desk, room: &mut Room) -> Result<(), RuleError> {
        let RuleAction::Forward(forward) = &rule.action else { return Ok(()) };
        if room.seen.contains(&forward.remote) {
            return Ok(());
        }
        let Ok(route) = desk.routes.find(forward.remote) else { return Ok(()) };
        let hop = (route.uplink, route.next_hop);
        if !room.taken.contains(&hop) && !self.resolver.lock().knows(hop.0, hop.1) {
            if room.left == 0 {
                return Err(RuleError::NextHops { id: rule.id.to_string(), source: NoSlot });
            }
            room.left -= 1;
            room.taken.insert(hop);
        }
        room.seen.insert(forward.remote);
        Ok(())
    }

    /// Makes what was staged durable, and puts it in force.
    fn carry_out(&self, desk: &mut Desk, group: Vec<Batch>, mut plan: Plan) -> Result<(), HostError> {
        let moves = match self.clean(&mut plan.change) {
            Ok(moves) => moves,
            Err(error) => {
                self.book.lock().undo(&plan.steps);
                return Err(error.into());
            }
        };
        let begun = Instant::now();
        let (stored, applied) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| (self.store.write(&plan.change), begun.elapsed()));
            let rule_of = |index| plan.rule(&group, index);
            let Desk { tables, tunnels, routes, .. } = &mut *desk;
            let mut applied = tables.apply(&plan.steps, rule_of, &self.book, tunnels, routes);
            let put_in = begun.elapsed();
            tables.compile(&mut applied, &plan.steps, rule_of);
            tracing::debug!("put in after {put_in:?}, compiled after {:?}", begun.elapsed());
            // A panic there goes on here, as it would without the thread.
            (writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), applied)
        });
        tracing::debug!("stored after {:?}", stored.1);
        let Plan { steps, offers, change } = plan;
        // What was offered is in the tables and in the state file, and is gone before anybody is told.
        let freeing = free(steps.len(), (group, offers, change));
        if let Err(error) = stored.0 {
            desk.tables.revert(applied, &mut desk.tunnels);
            self.book.lock().undo(&steps);
            return Err(error.into());
        }
        self.move_rules(&moves);
        let before = desk.snapshot.clone();
        let passed = self.put_in_force(desk, &steps, &applied);
        tracing::debug!("in force after {:?}", begun.elapsed());
        if steps.len() >= STEPS_GIVEN_BACK {
            // A thread that frees has nothing to say.
            let _ = freeing.map(JoinHandle::join);
        }
        tracing::debug!("offers freed after {:?}", begun.elapsed());
        free(steps.len(), (steps, applied, before));
        passed
    }

    fn put_in_force(&self, desk: &mut Desk, steps: &[Step], applied: &Applied) -> Result<(), HostError> {
        self.start_rule_counters(steps.iter().map(|step| step.new).filter(|slot| *slot != NONE));
        let next = desk.redraw(applied, &self.book.lock());
        let version = self.publisher.publish(next);
        let passed = self.publisher.wait(version, PASS_TIMEOUT);
        let freed = {
            let mut book = self.book.lock();
            let freed = book.settle(steps);
            self.rules.store(book.len(), Ordering::Relaxed);
            freed
        };
        // Without the workers' word the old tunnels are kept for good: a leak, where the other way would be a misdirected packet.
        if passed.is_ok() {
            desk.tunnels.release(&applied.released);
            self.book.lock().records.reuse(&freed);
        }
        Ok(passed?)
    }

    /// Adds the rules in force of the oldest rows to a change that leaves the rows out, where too much of the log is out of
    /// date. The more a change adds, the more it cleans, so that the log stays in bounds.
    fn clean(&self, change: &mut Change) -> Result<Moves, StoreError> {
        let mut moves = Moves::default();
        let bound = 2 * change.rows.entries + CLEANED_AT_LEAST;
        while change.cleaned_entries < bound {
            let rules = self.book.lock().len() + self.unreadable.lock().len();
            if !self.store.wants_cleaning(rules, change) {
                break;
            }
            let Some((number, row)) = self.store.oldest(change)? else { break };
            change.cleaned.push(number);
            let (book, unreadable) = (self.book.lock(), self.unreadable.lock());
            change.cleaned_entries += entries(&row).flatten().count() as u64;
            let puts = entries(&row).flatten().filter_map(|(offset, entry)| match entry {
                Entry::Put(rule) => Some((Place::new(number, offset), rule, id_of(rule))),
                Entry::Delete(_) => None,
            });
            let mut puts = puts.peekable();
            while puts.peek().is_some() {
                let puts: ArrayVec<_, RULES_FETCHED> = puts.by_ref().take(RULES_FETCHED).collect();
                book.fetch(puts.iter().map(|(_, _, id)| &**id));
                for (here, rule, id) in puts {
                    if let Some((slot, place)) = book.in_force(&id)
                        && place == here
                        && book.records.get(slot).is_some_and(|record| record.stage == Stage::Here)
                    {
                        moves.rules.push((slot, change.rows.put(rule)));
                    } else if unreadable.contains(&here) {
                        moves.unreadable.push((here, change.rows.put(rule)));
                    }
                }
            }
        }
        Ok(moves)
    }

    fn move_rules(&self, moves: &Moves) {
        let mut book = self.book.lock();
        for (slot, place) in &moves.rules {
            if let Some(record) = book.records.get_mut(*slot) {
                record.place = *place;
            }
        }
        let mut unreadable = self.unreadable.lock();
        for (old, new) in &moves.unreadable {
            unreadable.remove(old);
            unreadable.insert(*new);
        }
    }

    /// Cleans a piece of the log. False where there was nothing to do.
    ///
    /// # Errors
    /// The state file cannot be read or written; nothing has changed then.
    pub fn clean_log(&self) -> Result<bool, HostError> {
        let _desk = self.desk.lock();
        let mut change = self.store.change();
        let moves = self.clean(&mut change)?;
        if change.cleaned.is_empty() {
            return Ok(false);
        }
        self.store.write(&change)?;
        self.move_rules(&moves);
        Ok(true)
    }

    /// Puts the rules of the state file in force; the caller publishes.
    pub(super) fn restore_rules(&self, desk: &mut Desk) -> Result<Applied, HostError> {
        let mut newest: HashMap<Box<str>, Place> = HashMap::new();
        self.store.replay(|place, entry| match entry {
            Entry::Put(rule) => {
                newest.insert(id_of(rule).into(), place);
            }
            Entry::Delete(id) => {
                newest.remove(id);
            }
        })?;
        let mut batch = Batch::new(self.book.lock().fingerprints());
        let mut places = Vec::with_capacity(newest.len());
        self.store.replay(|place, entry| {
            let Entry::Put(rule) = entry else { return };
            if newest.get(&*id_of(rule)) == Some(&place) {
                match batch.put(rule) {
                    Ok(()) => places.push(place),
                    Err(error) => {
                        tracing::error!("{error}: this rule of the state is not in force");
                        self.unreadable.lock().insert(place);
                    }
                }
            }
        })?;
        drop(newest);
        let mut steps = Vec::with_capacity(places.len());
        {
            let book = &mut *self.book.lock();
            book.reserve(places.len());
            for (offer, place) in batch.puts.iter().zip(places) {
                let references = refer(&offer.rule, &mut book.names);
                if let Staged::Step(step) = book.stage_put(&offer.rule, offer.fingerprint, references)? {
                    if let Some(record) = book.records.get_mut(step.new) {
                        record.place = place;
                    }
                    steps.push(step);
                }
            }
        }
        let applied =
            self.put_in_tables(desk, &steps, |index| batch.puts.get(index).map(|offer| &offer.rule));
        tracing::info!("{} rules restored", steps.len());
        Ok(applied)
    }

    /// Stages rules in place of themselves, since what they refer to has come; the caller publishes.
    pub(super) fn stage_again(&self, desk: &mut Desk, slots: &[u32]) -> Result<Applied, HostError> {
        let places: Vec<Place> = {
            let book = self.book.lock();
            slots.iter().filter_map(|slot| book.records.get(*slot)).map(|record| record.place).collect()
        };
        let (mut rules, mut steps) = (Vec::new(), Vec::new());
        for (slot, message) in slots.iter().zip(self.store.rules_at(&places)?) {
            let Some(message) = message else { continue };
            let rule = Rule::from_canonical(&message)?;
            let book = &mut *self.book.lock();
            let references = refer(&rule, &mut book.names);
            if let Some(step) = book.stage_again(*slot, &rule, references) {
                steps.push(step);
                rules.push(rule);
            }
        }
        Ok(self.put_in_tables(desk, &steps, |index| rules.get(index)))
    }

    /// Carries out steps that are durable already.
    fn put_in_tables<'r>(
        &self,
        desk: &mut Desk,
        steps: &[Step],
        rule_of: impl Fn(usize) -> Option<&'r Rule> + Sync,
    ) -> Applied {
        let Desk { tables, tunnels, routes, .. } = desk;
        let mut applied = tables.apply(steps, &rule_of, &self.book, tunnels, routes);
        tables.compile(&mut applied, steps, &rule_of);
        self.start_rule_counters(steps.iter().map(|step| step.new));
        // The slots of rules that were staged again are not reused: workers may count there until the snapshot is
        // published, and such rules are few.
        let mut book = self.book.lock();
        book.settle(steps);
        self.rules.store(book.len(), Ordering::Relaxed);
        applied
    }
}

/// Whether a step takes the place of a rule that the same request has put.
fn replaces_own(book: &Book, plan: &Plan, from: usize, own: &mut Option<HashSet<u32>>, step: Step) -> bool {
    if let Some(own) = own {
        own.insert(step.new);
    }
    if book.records.get(step.old).is_none_or(|old| old.stage != Stage::Stillborn) {
        return false;
    }
    let own =
        own.get_or_insert_with(|| plan.steps[from..].iter().map(|step| step.new).chain([step.new]).collect());
    own.contains(&step.old)
}

/// The id of an encoded rule; empty where it is none.
fn id_of(rule: &[u8]) -> Cow<'_, str> {
    if let Some(id) = RuleView::first_id(rule) {
        return id.into();
    }
    match RuleView::decode(rule) {
        Some(view) => view.id.into(),
        None => v1::Rule::decode(rule).map(|rule| rule.id).unwrap_or_default().into(),
    }
}

fn chunks(range: std::ops::Range<usize>, size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |begin| begin..(begin + size).min(end))
}

/// Frees what a change leaves behind: at once where that is quick, else by a thread of its own.
fn free(steps: usize, remains: impl Send + 'static) -> Option<JoinHandle<()>> {
    let free = move || {
        drop(remains);
        if steps >= STEPS_GIVEN_BACK {
            give_memory_back();
        }
    };
    // Where there is no thread to be had, they are freed here.
    (steps >= STEPS_FREED_AT_ONCE)
        .then_some(free)
        .and_then(|free| std::thread::Builder::new().name("freeing".into()).spawn(free).ok())
}
