//! The flows of a host: what its workers report of their caches, the busiest of them, in words.

use super::crew::Crew;
use super::host::{Host, HostError};
use crate::action::{Action, PortId};
use crate::flows::cache::NO_SLOT;
use crate::flows::listing::{FlowCopy, Listing, Report};
use crate::flows::record::FlowRecord;
use crate::snapshot::{PortRole, Snapshot};
use crate::task::Command;
use forebay_api::mac::MacAddr;
use forebay_api::v1;
use forebay_pipeline::Batch;
use forebay_pipeline::ring::RingConsumer;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the workers may take to report: a full cache of 16 million flows takes a busy one some 2 s.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a listing waits for one that is under way.
const TURN: Duration = Duration::from_secs(2);
/// Between two looks at the rings of reports.
const LOOK_AGAIN: Duration = Duration::from_micros(100);
/// Flows that have brought no packet for so long are over.
const OVER: Duration = Duration::from_secs(60);
/// Flows that wait to be decided anew are shown while they go on. With [`PATIENCE`] less than a port's number rests, so that
/// none of a port that is gone is taken for one of the next port of that number.
const OUTDATED: Duration = Duration::from_secs(1);
/// Flows of a listing where nobody says how many.
const USUAL: u32 = 100;
/// The most flows of a listing.
pub const MOST: u32 = 100_000;

/// Why flows cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// More than a listing has room for.
    #[error("limit = {limit}: too many flows (write 1 to {MOST})")]
    TooMany {
        /// Flows asked for.
        limit: u32,
    },
    /// Another listing goes on.
    #[error("flows: another listing is under way (try again when it is done)")]
    Busy,
    /// A worker does not answer.
    #[error(
        "flows: worker {worker:?} did not report within {} s (see: forebay pipeline show)",
        PATIENCE.as_secs()
    )]
    Late {
        /// The worker.
        worker: String,
    },
}

/// A worker that has been asked.
struct Asked {
    worker: Arc<str>,
    reports: RingConsumer<Report>,
    through: bool,
}

/// The busiest flows of those that have been reported.
struct Busiest {
    limit: usize,
    only: Option<PortId>,
    flows: Vec<(Arc<str>, FlowCopy)>,
}

impl Host {
    /// The `limit` busiest flows (0: 100) that were received on `port`, or of all ports; those with the most bytes first.
    ///
    /// # Errors
    /// There is no such port, a worker does not answer, or others list flows for too long.
    pub fn flows(&self, port: &str, limit: u32) -> Result<Vec<v1::Flow>, HostError> {
        let only = match port {
            "" => None,
            name => match self.ports.read().by_name.get(name) {
                Some(record) => Some(record.id),
                None => return Err(HostError::NoPort { port: name.to_owned() }),
            },
        };
        let limit = if limit == 0 { USUAL } else { limit };
        if limit > MOST {
            return Err(FlowsError::TooMany { limit }.into());
        }
        let Some(_turn) = self.listing.try_lock_for(TURN) else { return Err(FlowsError::Busy.into()) };
        let mut asked = self.crew.lock().as_mut().map(ask).unwrap_or_default();
        let mut busiest = Busiest { limit: limit as usize, only, flows: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.snapshot();
            asked.iter_mut().for_each(|asked| busiest.read(asked, &snapshot));
            let Some(late) = asked.iter().find(|asked| !asked.through) else { break };
            if Instant::now() > deadline {
                return Err(FlowsError::Late { worker: late.worker.to_string() }.into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(self.describe(busiest.in_order()))
    }

    /// Puts flows into words.
    fn describe(&self, flows: Vec<(Arc<str>, FlowCopy)>) -> Vec<v1::Flow> {
        let rule = |flow: &FlowCopy| match flow.decision.slot {
            NO_SLOT => None,
            slot => self.book.lock().records.get(slot).map(|record| record.id.text().to_owned()),
        };
        let rules: Vec<Option<String>> = flows.iter().map(|(_, flow)| rule(flow)).collect();
        // Looked at after the rules: while a flow's tables stand, the slot is still its rule's.
        let snapshot = self.snapshot();
        let described = flows.into_iter().zip(rules);
        described.filter_map(|((worker, flow), rule)| message(&worker, &flow, rule, &snapshot)).collect()
    }
}

/// Asks the workers that have flow caches.
fn ask(crew: &mut Crew) -> Vec<Asked> {
    crew.ask_classifiers(|worker| {
        let (listing, reports) = Listing::new();
        (Command::ListFlows(listing), Asked { worker: worker.into(), reports, through: false })
    })
}

/// Whether a flow was decided by the tables of this snapshot; `None` where its port is gone.
fn is_current(flow: &FlowCopy, snapshot: &Snapshot) -> Option<bool> {
    let generation = match &snapshot.port(flow.port())?.role {
        PortRole::Vf(vf) => vf.generation,
        PortRole::Uplink(_) => snapshot.ingress_generation,
    };
    Some(flow.generation == u64::from(generation))
}

impl Busiest {
    fn read(&mut self, asked: &mut Asked, snapshot: &Snapshot) {
        let mut batch = Batch::new();
        while asked.reports.pop(&mut batch) > 0 {
            for report in batch.drain(..) {
                match report {
                    Report::Flow(flow) if self.wants(&flow, snapshot) => {
                        self.flows.push((asked.worker.clone(), flow));
                    }
                    Report::Flow(_) => {}
                    Report::Through => asked.through = true,
                }
            }
            // Room for as many again, so that each flow is looked at a few times only.
            if self.flows.len() >= 2 * self.limit + 1024 {
                self.cut();
            }
        }
    }

    fn wants(&self, flow: &FlowCopy, snapshot: &Snapshot) -> bool {
        let longest = match is_current(flow, snapshot) {
            None => return false,
            Some(true) => OVER,
            Some(false) => OUTDATED,
        };
        flow.idle() < longest && self.only.is_none_or(|port| flow.port() == port)
    }

    fn cut(&mut self) {
        if self.flows.len() > self.limit {
            self.flows.select_nth_unstable_by_key(self.limit, |(_, flow)| Reverse(flow.bytes));
            self.flows.truncate(self.limit);
        }
    }

    fn in_order(mut self) -> Vec<(Arc<str>, FlowCopy)> {
        self.cut();
        self.flows.sort_by_key(|(_, flow)| (Reverse(flow.bytes), flow.head));
        self.flows
    }
}

/// A flow in words; `None` where its port is gone.
fn message(worker: &str, flow: &FlowCopy, rule: Option<String>, snapshot: &Snapshot) -> Option<v1::Flow> {
    let record = FlowRecord::decode(&flow.head, &flow.tail);
    let is_current = is_current(flow, snapshot)?;
    let drop = match flow.decision.action.unpack() {
        Action::Drop(reason) if is_current => reason.name(),
        _ => "",
    };
    Some(v1::Flow {
        worker: worker.to_owned(),
        port: snapshot.port(record.port)?.name.to_string(),
        src_mac: MacAddr(record.src_mac).to_string(),
        dst_mac: MacAddr(record.dst_mac).to_string(),
        src: record.src.to_string(),
        dst: record.dst.to_string(),
        proto: record.protocol.into(),
        src_port: record.ports.map(|(source, _)| source.into()),
        dst_port: record.ports.map(|(_, destination)| destination.into()),
        dscp: record.dscp.into(),
        vni: record.outer.map(|outer| outer.vni),
        remote: record.outer.map(|outer| outer.source.to_string()).unwrap_or_default(),
        packets: flow.packets.into(),
        bytes: flow.bytes,
        idle_ms: flow.idle().as_millis() as u64,
        rule: rule.filter(|_| is_current).unwrap_or_default(),
        drop: drop.to_owned(),
        outdated: !is_current,
    })
}
