//! What a host shows of itself: counters, rules, links. Nothing here changes what workers do but for the link state of
//! ports.

use super::crew::Crew;
use super::host::{Host, HostError, State};
use super::ports::PortRecord;
use super::resolver::Resolver;
use crate::action::PortId;
use crate::counters::PortTotals;
use crate::snapshot::{MAX_DEVICES, Snapshot};
use forebay_api::v1;
use forebay_sriov::PacketPool;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Host {
    /// Rules with their counters, in the order of their ids.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn rules(&self, ids: &[Arc<str>]) -> Result<Vec<v1::RuleStatus>, HostError> {
        let messages = self.store.rules_by_id(ids.iter().map(|id| &**id))?;
        let state = self.state.lock();
        let statuses = messages.into_iter().map(|rule| {
            let (packets, bytes) = state.book.slot(&rule.id).map_or((0, 0), |slot| rule_counts(&state, slot));
            v1::RuleStatus { rule: Some(rule), packets, bytes }
        });
        Ok(statuses.collect())
    }

    /// Ids of a port's egress rules, or of all rules, sorted.
    ///
    /// # Errors
    /// There is no such port.
    pub fn rule_ids(&self, port: &str) -> Result<Vec<Arc<str>>, HostError> {
        let state = self.state.lock();
        if port.is_empty() {
            return Ok(state.book.ids(None));
        }
        if !state.ports.by_name.contains_key(port) {
            return Err(HostError::NoPort { port: port.to_owned() });
        }
        Ok(state.book.ids(Some(port)))
    }

    /// Calls `visit` with every port and what it has counted, in the order of names.
    pub fn visit_ports<T>(&self, mut visit: impl FnMut(&PortRecord, PortTotals, usize) -> T) -> Vec<T> {
        let state = self.state.lock();
        let all = state.ports.by_name.values();
        all.map(|record| {
            let totals = totals(&state, record.id).since(&record.baseline);
            visit(record, totals, state.book.mention_count(&record.config.name))
        })
        .collect()
    }

    /// Calls `look` with the workers, if they run.
    pub fn with_crew<T>(&self, look: impl FnOnce(&Crew) -> T) -> Option<T> {
        self.state.lock().crew.as_ref().map(look)
    }

    /// The number of rules.
    pub fn rule_count(&self) -> usize {
        self.state.lock().book.len()
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the host has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The packet memory.
    pub fn pool(&self) -> &PacketPool {
        &self.pool
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.publisher.current()
    }

    /// The next hops.
    pub fn resolver(&self) -> &Mutex<Resolver> {
        &self.resolver
    }

    /// Asks every device for its link, and tells the workers. Returns the ports that went up or down.
    pub fn watch_links(&self) -> Vec<(String, bool)> {
        let Some(state) = self.state.try_lock() else { return Vec::new() };
        let records = || state.ports.by_name.values();
        let mut links = [true; MAX_DEVICES];
        for device in records().filter_map(|record| record.device.as_ref()) {
            if let Some(link) = links.get_mut(usize::from(device.id())) {
                *link = device.link_up();
            }
        }
        let mut changed = Vec::new();
        for record in records() {
            let up = links.get(usize::from(record.device_id)).copied().unwrap_or(true);
            if record.up.swap(up, Ordering::Relaxed) != up {
                changed.push((record.config.name.clone(), up));
            }
        }
        changed
    }
}

/// What all workers have counted for a port number.
pub(super) fn totals(state: &State, id: PortId) -> PortTotals {
    let mut totals = PortTotals::default();
    for member in state.crew.iter().flat_map(Crew::members) {
        if let Some(counters) = member.figures.tally.ports.get(id.index()) {
            totals.add(counters);
        }
    }
    totals
}

pub(super) fn raw_rule_counts(state: &State, slot: u32) -> (u64, u64) {
    let counters =
        state.crew.iter().flat_map(Crew::members).filter_map(|member| member.figures.tally.rules.get(slot));
    counters.fold((0, 0), |(packets, bytes), counter| {
        (packets + counter.packets.get(), bytes + counter.bytes.get())
    })
}

fn rule_counts(state: &State, slot: u32) -> (u64, u64) {
    let (packets, bytes) = raw_rule_counts(state, slot);
    let (before_packets, before_bytes) = state.rule_baselines.get(slot as usize).copied().unwrap_or_default();
    (packets - before_packets, bytes - before_bytes)
}
