//! What a host shows of itself: counters, rules, links. Nothing here changes what workers do but for the link state of
//! ports.

use super::crew::Crew;
use super::host::{Host, HostError};
use super::ports::PortRecord;
use super::resolver::Resolver;
use super::segment::Place;
use crate::action::PortId;
use crate::counters::PortTotals;
use crate::snapshot::{MAX_DEVICES, Snapshot};
use forebay_api::v1;
use forebay_sriov::{GuestQueues, PacketPool};
use parking_lot::Mutex;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Looks at a rule that is being moved in the state file: each move takes a change of its own, so two in a row are rare.
const MOVES: usize = 4;

impl Host {
    /// Rules with their counters, in the order of these ids; those that are gone are left out.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn rules(&self, ids: &[Arc<str>]) -> Result<Vec<v1::RuleStatus>, HostError> {
        let mut statuses: Vec<Option<v1::RuleStatus>> = vec![None; ids.len()];
        let mut missing: Vec<usize> = (0..ids.len()).collect();
        // A rule that was moved in the file between the two looks is looked for once more.
        for _ in 0..MOVES {
            let found: Vec<(usize, u32, Place)> = {
                let book = self.book.lock();
                let place = |index: &usize| {
                    let (slot, place) = book.in_force(&ids[*index])?;
                    Some((*index, slot, place))
                };
                missing.iter().filter_map(place).collect()
            };
            let places: Vec<Place> = found.iter().map(|(.., place)| *place).collect();
            missing.clear();
            for ((index, slot, _), rule) in found.into_iter().zip(self.store.rules_at(&places)?) {
                // The slot's place may be another rule's by now.
                match rule.filter(|rule| rule.id == *ids[index]) {
                    Some(rule) => {
                        let (packets, bytes) = self.rule_counts(slot);
                        statuses[index] = Some(v1::RuleStatus { rule: Some(rule), packets, bytes });
                    }
                    None => missing.push(index),
                }
            }
            if missing.is_empty() {
                break;
            }
        }
        Ok(statuses.into_iter().flatten().collect())
    }

    /// Ids of a port's egress rules, or of all rules, sorted. Rules that come or go while they are gathered may be there or
    /// not.
    ///
    /// # Errors
    /// There is no such port.
    pub fn rule_ids(&self, port: &str) -> Result<Vec<Arc<str>>, HostError> {
        if !port.is_empty() && !self.ports.read().by_name.contains_key(port) {
            return Err(HostError::NoPort { port: port.to_owned() });
        }
        let name = if port.is_empty() { None } else { self.book.lock().names.find(port) };
        let mut ids = Vec::new();
        for chunk in 0.. {
            // A lock for each chunk: a change need not wait for a list of a million rules.
            let Some(found) = self.book.lock().ids(chunk, name) else { break };
            ids.extend(found);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Calls `visit` with every port and what it has counted, in the order of names.
    pub fn visit_ports<T>(&self, mut visit: impl FnMut(&PortRecord, PortTotals, usize) -> T) -> Vec<T> {
        let ports = self.ports.read();
        let crew = self.crew.lock();
        let all = ports.by_name.values();
        all.map(|record| {
            let totals = totals(crew.as_ref(), record.id).since(&record.baseline);
            visit(record, totals, record.mentions.count())
        })
        .collect()
    }

    /// Calls `look` with the workers, if they run.
    pub fn with_crew<T>(&self, look: impl FnOnce(&Crew) -> T) -> Option<T> {
        self.crew.lock().as_ref().map(look)
    }

    /// Calls `change` with the workers; `None` where they do not run.
    pub fn change_crew<T>(&self, change: impl FnOnce(&mut Crew) -> T) -> Option<T> {
        self.crew.lock().as_mut().map(change)
    }

    /// What fingerprints of rules are made with.
    pub fn fingerprints(&self) -> RandomState {
        self.book.lock().fingerprints()
    }

    /// The number of rules.
    pub fn rule_count(&self) -> usize {
        self.rules.load(Ordering::Relaxed)
    }

    fn rule_counts(&self, slot: u32) -> (u64, u64) {
        let (packets, bytes) = raw_rule_counts(self.crew.lock().as_ref(), slot);
        let (before_packets, before_bytes) = self.baselines.lock().get(slot);
        (packets.saturating_sub(before_packets), bytes.saturating_sub(before_bytes))
    }

    /// Rules in these slots count from zero, whoever had the slots before.
    pub(super) fn start_rule_counters(&self, slots: impl Iterator<Item = u32>) {
        let mut crew = self.crew.lock();
        let mut baselines = self.baselines.lock();
        for slot in slots {
            if let Some(crew) = crew.as_mut() {
                crew.make_rules_ready(slot);
            }
            baselines.set(slot, raw_rule_counts(crew.as_ref(), slot));
        }
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

    /// Asks every device for its link, and tells the workers.
    pub fn watch_links(&self) -> LinkNews {
        let ports = self.ports.read();
        let records = || ports.by_name.values();
        let mut links = [true; MAX_DEVICES];
        let mut news = LinkNews::default();
        for record in records() {
            let Some(device) = &record.device else { continue };
            if let Some(link) = links.get_mut(usize::from(device.id())) {
                *link = device.link_up();
            }
            news.guests.extend(device.guest_queues().map(|guest| (record.config.name.clone(), guest)));
        }
        for record in records() {
            // One that waits for its device has a number that no device has.
            let up = links.get(usize::from(record.device_id)).copied().unwrap_or(false);
            if record.up.swap(up, Ordering::Relaxed) != up {
                news.changed.push((record.config.name.clone(), up));
            }
        }
        news
    }
}

/// What a look at the devices' links tells.
#[derive(Default)]
pub struct LinkNews {
    /// The ports that went up or down.
    pub changed: Vec<(String, bool)>,
    /// What the guests of vhost ports use of them.
    pub guests: Vec<(String, GuestQueues)>,
}

/// What all workers have counted for a port number.
pub(super) fn totals(crew: Option<&Crew>, id: PortId) -> PortTotals {
    let mut totals = PortTotals::default();
    for tally in crew.into_iter().flat_map(Crew::tallies) {
        if let Some(counters) = tally.ports.get(id.index()) {
            totals.add(counters);
        }
    }
    totals
}

fn raw_rule_counts(crew: Option<&Crew>, slot: u32) -> (u64, u64) {
    let tallies = crew.into_iter().flat_map(Crew::tallies);
    let counters = tallies.filter_map(|tally| tally.rules.get(slot));
    counters.fold((0, 0), |(packets, bytes), counter| {
        (packets + counter.packets.get(), bytes + counter.bytes.get())
    })
}
