//! The tables of rules that are published, and what ingress rules say about the outside of tunnels.
//!
//! Steps that were staged in the book are carried out here: first every rule that leaves is taken out, then every rule that
//! comes is put in (or, where a port had none, all of them are compiled at once). An egress rule that only does something
//! else than the one that it follows takes its place. The tables of before are kept until the
//! change is durable, which costs nothing, since tables share what they have in common; [`Tables::revert`] brings them back.

use super::book::{Book, PortKind, Step};
use super::names::{NameId, Names};
use super::record::{Owner, Record, Shape, Stage, Target};
use super::routes::Routes;
use super::tunnels::Tunnels;
use crate::action::Action;
use crate::counters::DropReason;
use crate::rules::key::{FLAG_IPV4, FLAG_IPV6, KEY_WORDS};
use crate::rules::pattern::{INGRESS_WORDS, Pattern, precedence};
use crate::rules::rule::{Rule, RuleAction};
use crate::rules::table::{Table, TableRule};
use forebay_pipeline::prefetch::{CACHE_LINE_BYTES, prefetch_address};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Rules that are fetched ahead while they are replaced: the reads of each take as long as replacing some.
const STEPS_AHEAD: usize = 8;
/// Steps that are carried out while the book is locked: a fraction of a millisecond.
const STEPS_AT_ONCE: usize = 256;
/// Steps that are put in the order of their tables: what is known of their rules is some megabytes, and stays near.
const STEPS_ORDERED: usize = 1 << 14;

/// What ingress rules say about the outside of tunnels, counted over the rules.
#[derive(Default)]
pub struct Scopes {
    known: HashMap<u64, u32>,
    locals: BTreeMap<(Option<NameId>, IpAddr), u32>,
}

impl Scopes {
    /// The tunnels that some rule names.
    pub fn known(&self) -> HashSet<u64> {
        self.known.keys().copied().collect()
    }

    /// The addresses that an uplink answers for because of rules, in order.
    pub fn locals_of(&self, uplink: NameId) -> Vec<IpAddr> {
        let here = self.locals.keys().filter(|(named, _)| named.is_none_or(|named| named == uplink));
        here.map(|(_, local)| *local).collect()
    }
}

/// The tables of a host.
#[derive(Default)]
pub struct Tables {
    egress: Vec<Table<KEY_WORDS>>,
    /// The rules of the uplinks.
    pub ingress: Table<INGRESS_WORDS>,
    /// What they say about the outside of tunnels.
    pub scopes: Scopes,
}

/// A port whose rules changed.
pub struct Touched {
    /// Its name.
    pub port: NameId,
    /// Its table of before.
    before: Table<KEY_WORDS>,
    /// The steps of its rules and what these do, where it had none.
    fresh: Vec<(u32, Action)>,
}

impl Applied {
    fn touch(&mut self, port: NameId, table: &Table<KEY_WORDS>) -> &mut Touched {
        // Rules of one port often come together.
        let index = match self.egress.last() {
            Some(last) if last.port == port => self.egress.len() - 1,
            _ => *self.touched.entry(port).or_insert(self.egress.len()),
        };
        if index == self.egress.len() {
            self.egress.push(Touched { port, before: table.clone(), fresh: Vec::new() });
        }
        &mut self.egress[index]
    }

    fn release(&mut self, record: &Record) {
        if let Target::Tunnel(slot) = record.target() {
            self.released.push(slot);
        }
    }
}

/// What a change did to the tables.
#[derive(Default)]
pub struct Applied {
    /// Ports whose rules changed.
    pub egress: Vec<Touched>,
    touched: HashMap<NameId, usize>,
    /// The ingress rules changed; the table of before.
    pub ingress: Option<Table<INGRESS_WORDS>>,
    /// Some tunnel is named for the first time, or by no rule any more.
    pub known: bool,
    /// Some address is named for the first time, or by no rule any more.
    pub locals: bool,
    /// Tunnels that rules do not use any more: to be released when no worker looks at them.
    pub released: Vec<u32>,
    /// Tunnels that new rules use.
    acquired: Vec<u32>,
    /// Rules for the uplinks' table, where it had none.
    fresh_ingress: Vec<TableRule<INGRESS_WORDS>>,
    /// Opaque field and local address of ingress rules that came (true) or went.
    scopes: Vec<(bool, Pattern<INGRESS_WORDS>, Option<NameId>)>,
}

/// Of word 7: the opaque field and tunnel type, without family and uplink.
const OPAQUE_AND_TYPE: u64 = !0 << 24;

/// The local address that a pattern asks for: all its bits, or none.
fn local_of(pattern: &Pattern<INGRESS_WORDS>) -> Option<IpAddr> {
    let (at, value) = (KEY_WORDS + 1, &pattern.value);
    let family = pattern.value[KEY_WORDS] >> 16;
    let wide = u128::from(value[at]) << 64 | u128::from(value[at + 1]);
    match (pattern.mask[at], family & (FLAG_IPV4 | FLAG_IPV6)) {
        (0, _) => None,
        (_, FLAG_IPV4) => Some(Ipv4Addr::from((value[at] >> 32) as u32).into()),
        _ => Some(Ipv6Addr::from(wide).into()),
    }
}

impl Tables {
    /// The rules of a port.
    pub fn egress(&self, port: NameId) -> Table<KEY_WORDS> {
        self.egress.get(port.0 as usize).cloned().unwrap_or_default()
    }

    fn egress_mut(&mut self, port: NameId) -> &mut Table<KEY_WORDS> {
        let index = port.0 as usize;
        if self.egress.len() <= index {
            self.egress.resize_with(index + 1, Table::default);
        }
        &mut self.egress[index]
    }

    /// Carries out steps. `rule_of` gives the rule of a step that comes, by the step's index. Tables that had no rules are
    /// left for [`Tables::compile`].
    pub fn apply<'r>(
        &mut self,
        steps: &[Step],
        rule_of: impl Fn(usize) -> Option<&'r Rule>,
        book: &Mutex<Book>,
        tunnels: &mut Tunnels,
        routes: &Routes,
    ) -> Applied {
        let mut applied = Applied::default();
        let order = by_table(steps, book);
        for part in order.chunks(STEPS_AT_ONCE) {
            let book = book.lock();
            for (at, index) in part.iter().enumerate() {
                fetch(&book, part.get(at + STEPS_AHEAD).map(|ahead| &steps[*ahead as usize]));
                let step = &steps[*index as usize];
                if let Some(record) = book.records.get(step.old)
                    && record.stage == Stage::Leaving
                {
                    match followed(step, &book) {
                        Some(_) => applied.release(record),
                        None => self.take_out(record, book.shapes.get(record.shape), &mut applied),
                    }
                }
            }
        }
        for part in order.chunks(STEPS_AT_ONCE) {
            let book = &mut *book.lock();
            let mut successors = Vec::new();
            for (at, index) in part.iter().enumerate() {
                let ahead = |steps| part.get(at + steps).map(|ahead| *ahead as usize);
                fetch(book, ahead(STEPS_AHEAD).map(|ahead| &steps[ahead]));
                ahead(STEPS_AHEAD).and_then(&rule_of).inspect(|rule| fetch_rule(rule));
                ahead(STEPS_AHEAD / 2).and_then(&rule_of).inspect(|rule| prefetch_address(rule.id.as_ptr()));
                let index = *index as usize;
                let step = &steps[index];
                let before = followed(step, book);
                if let Some(record) = book.records.get_mut(step.new)
                    && record.stage == Stage::Coming
                    && let Some(rule) = rule_of(index)
                {
                    let shape = book.shapes.get(record.shape);
                    let uplink_there = match shape.owner {
                        Owner::Ingress(Some(uplink)) => book.names.port(uplink).is_some(),
                        Owner::Ingress(None) | Owner::Egress(_) => true,
                    };
                    let action = act(rule, record, &book.names, tunnels, routes, &mut applied);
                    if !uplink_there || action.is_none() {
                        book.dangling.insert(step.new);
                    }
                    // A port that was there when the rule was loaded, and is not any more, drops as one that is down.
                    let action = action.unwrap_or(Action::Drop(DropReason::PortDown));
                    let action = uplink_there.then_some(action);
                    match (before, shape.owner, action) {
                        (Some(before), Owner::Egress(port), Some(action)) => {
                            let rule = table_rule(rule, record, shape, (step.new, action));
                            successors.push((port, before, rule));
                        }
                        _ => self.put_in((index, step.new), rule, record, shape, action, &mut applied),
                    }
                }
            }
            self.succeed(successors, &mut applied);
        }
        applied
    }

    /// Puts egress rules in the place of those with their pattern and id, and with these precedences.
    fn succeed(&mut self, rules: Vec<(NameId, u64, TableRule<KEY_WORDS>)>, applied: &mut Applied) {
        let fetch = |tables: &Tables, rule: Option<&(NameId, u64, TableRule<KEY_WORDS>)>, closer| {
            if let Some((port, _, rule)) = rule
                && let Some(table) = tables.egress.get(port.0 as usize)
            {
                table.prefetch(&rule.pattern, closer);
            }
        };
        rules.iter().take(STEPS_AHEAD).for_each(|rule| fetch(self, Some(rule), false));
        let mut rules = rules.into_iter();
        while let Some((port, before, rule)) = rules.next() {
            fetch(self, rules.as_slice().get(STEPS_AHEAD - 1), false);
            fetch(self, rules.as_slice().get(STEPS_AHEAD / 2 - 1), true);
            let table = self.egress_mut(port);
            applied.touch(port, table);
            if let Err(rule) = table.replace(before, rule) {
                table.insert(rule);
            }
        }
    }

    fn take_out(&mut self, record: &Record, shape: &Shape, applied: &mut Applied) {
        let precedence = record.precedence(shape);
        match shape.owner {
            Owner::Egress(port) => {
                let table = self.egress_mut(port);
                applied.touch(port, table);
                table.remove(&record.pattern(shape), precedence, record.id.text());
            }
            Owner::Ingress(uplink) => {
                let pattern = record.pattern(shape);
                applied.ingress.get_or_insert_with(|| self.ingress.clone());
                self.ingress.remove(&pattern, precedence, record.id.text());
                self.note_scope(false, &pattern, uplink, applied);
                applied.scopes.push((false, pattern, uplink));
            }
        }
        applied.release(record);
    }

    /// Puts a rule into its table; one without an action is about an uplink that is not there, and is left out.
    fn put_in(
        &mut self,
        (step, slot): (usize, u32),
        rule: &Rule,
        record: &Record,
        shape: &Shape,
        action: Option<Action>,
        applied: &mut Applied,
    ) {
        if let Owner::Ingress(uplink) = shape.owner {
            let pattern = record.pattern(shape);
            applied.ingress.get_or_insert_with(|| self.ingress.clone());
            self.note_scope(true, &pattern, uplink, applied);
            applied.scopes.push((true, pattern, uplink));
        }
        let Some(action) = action else { return };
        match shape.owner {
            Owner::Egress(port) => {
                let table = self.egress_mut(port);
                let touched = applied.touch(port, table);
                if table.is_empty() {
                    touched.fresh.push((step as u32, action));
                } else {
                    table.insert(table_rule(rule, record, shape, (slot, action)));
                }
            }
            Owner::Ingress(_) => {
                let rule = table_rule(rule, record, shape, (slot, action));
                match self.ingress.is_empty() {
                    true => applied.fresh_ingress.push(rule),
                    false => self.ingress.insert(rule),
                }
            }
        }
    }

    fn note_scope(
        &mut self,
        comes: bool,
        pattern: &Pattern<INGRESS_WORDS>,
        uplink: Option<NameId>,
        applied: &mut Applied,
    ) {
        let tunnel = pattern.value[KEY_WORDS] & OPAQUE_AND_TYPE;
        let known = self.scopes.known.entry(tunnel).or_default();
        *known = if comes { *known + 1 } else { *known - 1 };
        applied.known |= *known == u32::from(comes);
        if *known == 0 {
            self.scopes.known.remove(&tunnel);
        }
        let Some(local) = local_of(pattern) else { return };
        let rules = self.scopes.locals.entry((uplink, local)).or_default();
        *rules = if comes { *rules + 1 } else { *rules - 1 };
        applied.locals |= *rules == u32::from(comes);
        if *rules == 0 {
            self.scopes.locals.remove(&(uplink, local));
        }
    }

    /// Compiles the tables that had no rules before a change. Steps and rules are those of [`Tables::apply`].
    pub fn compile<'r>(
        &mut self,
        applied: &mut Applied,
        steps: &[Step],
        rule_of: impl Fn(usize) -> Option<&'r Rule> + Sync,
    ) {
        if !applied.fresh_ingress.is_empty() {
            self.ingress = Table::compile(std::mem::take(&mut applied.fresh_ingress));
        }
        let fresh_rule = |(step, action): (u32, Action)| {
            let rule = rule_of(step as usize)?;
            Some(TableRule {
                pattern: Pattern::egress(&rule.matches),
                precedence: precedence(rule.priority, &rule.matches),
                id: rule.id.clone(),
                slot: steps.get(step as usize)?.new,
                action,
                names_layer2: rule.matches.names_layer2(),
            })
        };
        let compile = |part: Fresh| -> Vec<(NameId, Table<KEY_WORDS>)> {
            let table = |rules: Vec<_>| Table::compile(rules.into_iter().filter_map(fresh_rule));
            part.into_iter().map(|(port, rules)| (port, table(rules))).collect()
        };
        let (first, second) = halves(applied);
        let compiled = match second.is_empty() {
            true => [compile(first), Vec::new()],
            false => std::thread::scope(|scope| {
                let other = scope.spawn(|| compile(second));
                let first = compile(first);
                // A panic there goes on here, as it would without the thread.
                [first, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
            }),
        };
        for (port, table) in compiled.into_iter().flatten() {
            *self.egress_mut(port) = table;
        }
    }

    /// Brings the tables of before a change back. Nothing of it was published.
    pub fn revert(&mut self, applied: Applied, tunnels: &mut Tunnels) {
        let mut ignored = Applied::default();
        for (came, pattern, uplink) in &applied.scopes {
            self.note_scope(!came, pattern, *uplink, &mut ignored);
        }
        for Touched { port, before, .. } in applied.egress {
            *self.egress_mut(port) = before;
        }
        if let Some(ingress) = applied.ingress {
            self.ingress = ingress;
        }
        tunnels.release(&applied.acquired);
    }
}

/// The places of steps in an order in which those of one table come together: what a change finds on its way through the
/// table is then still near for the next one. Steps of one shape stay in their order.
fn by_table(steps: &[Step], book: &Mutex<Book>) -> Vec<u32> {
    let mut order = Vec::with_capacity(steps.len());
    let mut keys = Vec::with_capacity(steps.len().min(STEPS_ORDERED));
    for (first, steps) in (0_u64..).step_by(STEPS_ORDERED).zip(steps.chunks(STEPS_ORDERED)) {
        let book = book.lock();
        let shape_of = |slot| book.records.get(slot).map(|record| record.shape);
        let shapes = steps.iter().map(|step| shape_of(step.new).or_else(|| shape_of(step.old)).unwrap_or(0));
        keys.clear();
        keys.extend((first..).zip(shapes).map(|(index, shape)| u64::from(shape) << 32 | index));
        drop(book);
        keys.sort_unstable();
        order.extend(keys.iter().map(|key| *key as u32));
    }
    order
}

/// Fetches the records of a step.
fn fetch(book: &Book, step: Option<&Step>) {
    step.into_iter().flat_map(|step| [step.new, step.old]).for_each(|slot| book.records.prefetch(slot));
}

/// Fetches a rule but for its id.
fn fetch_rule(rule: &Rule) {
    let lines = (0..size_of::<Rule>()).step_by(CACHE_LINE_BYTES);
    lines.for_each(|line| prefetch_address(std::ptr::from_ref(rule).cast::<u8>().wrapping_add(line)));
}

/// The precedence of the egress rule that leaves in a step, where the one that comes looks at the same packets.
fn followed(step: &Step, book: &Book) -> Option<u64> {
    let (old, new) = (book.records.get(step.old)?, book.records.get(step.new)?);
    let (left, right) = (book.shapes.get(old.shape), book.shapes.get(new.shape));
    let egress = matches!(left.owner, Owner::Egress(_));
    let in_turn = old.stage == Stage::Leaving && new.stage == Stage::Coming;
    (egress && in_turn && left == right && old.value() == new.value()).then(|| old.precedence(left))
}

fn table_rule<const W: usize>(
    rule: &Rule,
    record: &Record,
    shape: &Shape,
    (slot, action): (u32, Action),
) -> TableRule<W> {
    TableRule {
        pattern: record.pattern(shape),
        precedence: record.precedence(shape),
        id: rule.id.clone(),
        slot,
        action,
        names_layer2: rule.matches.names_layer2(),
    }
}

type Fresh = Vec<(NameId, Vec<(u32, Action)>)>;

/// The tables to be compiled, in two parts of like size; the second is empty where that is not worth a thread.
fn halves(applied: &mut Applied) -> (Fresh, Fresh) {
    let half = applied.egress.iter().map(|touched| touched.fresh.len()).sum::<usize>() / 2;
    let (mut first, mut second, mut taken) = (Vec::new(), Vec::new(), 0);
    for touched in applied.egress.iter_mut().filter(|touched| !touched.fresh.is_empty()) {
        let part = if taken < half || half < STEPS_AT_ONCE { &mut first } else { &mut second };
        taken += touched.fresh.len();
        part.push((touched.port, std::mem::take(&mut touched.fresh)));
    }
    (first, second)
}

/// The action of a rule in numbers; `None` where a port that it delivers to is not there.
fn act(
    rule: &Rule,
    record: &mut Record,
    names: &Names,
    tunnels: &mut Tunnels,
    routes: &Routes,
    applied: &mut Applied,
) -> Option<Action> {
    match &rule.action {
        RuleAction::Trap => Some(Action::Trap),
        RuleAction::Drop => Some(Action::Drop(DropReason::RuleDrop)),
        RuleAction::Deliver { pop_vlan, push_vlan, .. } => {
            let Target::Port(name) = record.target() else { return None };
            match names.port(name)? {
                (port, PortKind::Vf) => {
                    let push_vlan = push_vlan.unwrap_or(0);
                    Some(Action::Deliver { port, pop_vlan: *pop_vlan, push_vlan })
                }
                (_, PortKind::Uplink) => None,
            }
        }
        RuleAction::Forward(forward) => {
            let tunnel = tunnels.acquire(forward.into(), routes);
            applied.acquired.push(tunnel.slot);
            record.set_target(Target::Tunnel(tunnel.slot));
            let inner_dst_mac = forward.inner_dst_mac.map(|mac| mac.0);
            Some(Action::Forward { tunnel, inner_dst_mac, push_vlan: forward.push_vlan.unwrap_or(0) })
        }
    }
}
