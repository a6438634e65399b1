//! The control socket: the gRPC services of `forebay.v1` over a Unix socket, with reflection.

use super::committer::{Committer, Stopping};
use super::flows::FlowsError;
use super::host::{Host, HostError};
use super::ports::{PortRecord, PortSource};
use super::request::{Batch, Counts};
use super::rule_error::RuleError;
use super::steward::TrappedFrame;
use crate::config;
use crate::counters::PortTotals;
use forebay_api::v1;
use forebay_pipeline::counters::StageCounters;
use forebay_pipeline::tsc;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// The services, over one host.
#[derive(Clone)]
pub struct Service {
    pub(super) host: Arc<Host>,
    pub(super) committer: Committer,
    layout: config::Layout,
    idle: config::Idle,
    trapped: broadcast::Sender<Arc<TrappedFrame>>,
}

/// The status of an error. By reference: one error can be the answer to many requests.
pub(super) fn status(error: &HostError) -> Status {
    let text = error.to_string();
    match error {
        HostError::Spec(_) | HostError::NotCanonical(_) | HostError::Encoding(_) | HostError::Port(_) => {
            Status::invalid_argument(text)
        }
        HostError::Rule(RuleError::NoRule { .. }) | HostError::NoPort { .. } => Status::not_found(text),
        HostError::Rule(RuleError::TooMany { .. } | RuleError::TooLong | RuleError::NextHops { .. }) => {
            Status::resource_exhausted(text)
        }
        HostError::Flows(FlowsError::TooMany { .. }) => Status::invalid_argument(text),
        HostError::Flows(FlowsError::Busy) => Status::aborted(text),
        HostError::Flows(FlowsError::Late { .. }) => Status::deadline_exceeded(text),
        HostError::Rule(_) => Status::invalid_argument(text),
        HostError::PortExists { .. } => Status::already_exists(text),
        HostError::PortInUse { .. }
        | HostError::Device { .. }
        | HostError::Function { .. }
        | HostError::Functions(_) => Status::failed_precondition(text),
        HostError::Stalled(_) => Status::unavailable(text),
        HostError::Eal(_) | HostError::Pool(_) | HostError::Worker(_) | HostError::Store(_) => {
            Status::internal(text)
        }
    }
}

impl From<HostError> for Status {
    fn from(error: HostError) -> Status {
        status(&error)
    }
}

impl From<Stopping> for Status {
    fn from(stopping: Stopping) -> Status {
        Status::unavailable(stopping.to_string())
    }
}

impl Service {
    /// Services over `host`; what is trapped comes from `trapped`.
    pub fn new(
        host: Arc<Host>,
        committer: Committer,
        workers: &config::Workers,
        trapped: broadcast::Sender<Arc<TrappedFrame>>,
    ) -> Service {
        Service { host, committer, layout: workers.layout, idle: workers.idle, trapped }
    }

    /// Hands in a batch of one request, and waits until it is in force.
    pub(super) async fn commit(&self, batch: Batch) -> Result<Counts, Status> {
        let answered = self.committer.hand_in(batch).await?;
        let outcomes = answered.await.map_err(|_| Status::internal("the change failed unexpectedly"))?;
        match outcomes.into_iter().next() {
            Some(Ok(counts)) => Ok(counts),
            Some(Err(error)) => Err(status(&error)),
            None => Ok(Counts::default()),
        }
    }

    /// Runs a change where it may block: it writes to disk and waits for workers.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Host) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Status> {
        let host = self.host.clone();
        let done = tokio::task::spawn_blocking(move || change(&host)).await;
        done.map_err(|error| Status::internal(format!("the change failed unexpectedly: {error}")))?
            .map_err(Status::from)
    }

    fn find_port(&self, name: &str) -> Result<v1::Port, Status> {
        let ports = self.host.visit_ports(|record, totals, rules| {
            (record.config.name == name).then(|| port_message(record, &totals, rules))
        });
        let missing = || Status::from(HostError::NoPort { port: name.to_owned() });
        ports.into_iter().flatten().next().ok_or_else(missing)
    }
}

fn counters_message(totals: &PortTotals) -> v1::PortCounters {
    v1::PortCounters {
        rx_packets: totals.rx_packets,
        rx_bytes: totals.rx_bytes,
        tx_packets: totals.tx_packets,
        tx_bytes: totals.tx_bytes,
        sent_packets: totals.sent,
        delivered_packets: totals.delivered,
        trapped_packets: totals.trapped,
        local_packets: totals.local,
        drops: totals.drops_by_name().into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        originated_packets: totals.originated,
        originated_lost_packets: totals.originated_lost,
        waiting_packets: totals.waiting,
    }
}

fn port_message(record: &PortRecord, totals: &PortTotals, rules: usize) -> v1::Port {
    let device = record.device.as_ref();
    v1::Port {
        spec: Some(config::port_to_spec(&record.config)),
        origin: match record.source {
            PortSource::Config => v1::PortOrigin::Config.into(),
            PortSource::Control => v1::PortOrigin::Control.into(),
        },
        up: record.up.load(Ordering::Relaxed),
        mac: forebay_api::validate::MacAddr(record.mac).to_string(),
        driver: device.map(|device| device.driver().to_owned()).unwrap_or_default(),
        queues: device.map_or(0, |device| u32::from(device.queue_count())),
        capabilities: device
            .map(|device| device.capabilities().names().into_iter().map(str::to_owned).collect())
            .unwrap_or_default(),
        rules: rules as u64,
        counters: Some(counters_message(totals)),
    }
}

/// The equation, and whether it holds: nothing negative, and no more in flight than can be.
fn conservation(totals: &PortTotals, bound: u64) -> v1::Conservation {
    let in_flight = totals.in_flight();
    v1::Conservation {
        received_packets: totals.rx_packets,
        sent_packets: totals.sent,
        delivered_packets: totals.delivered,
        trapped_packets: totals.trapped,
        local_packets: totals.local,
        dropped_packets: totals.dropped(),
        in_flight_packets: in_flight,
        in_flight_bound_packets: bound,
        holds: (0..=bound as i64).contains(&in_flight),
    }
}

#[tonic::async_trait]
impl v1::ports_server::Ports for Service {
    async fn list(
        &self,
        _: Request<v1::ListPortsRequest>,
    ) -> Result<Response<v1::ListPortsResponse>, Status> {
        let ports = self.host.visit_ports(|record, totals, rules| port_message(record, &totals, rules));
        Ok(Response::new(v1::ListPortsResponse { ports }))
    }

    async fn get(&self, request: Request<v1::GetPortRequest>) -> Result<Response<v1::Port>, Status> {
        self.find_port(&request.into_inner().name).map(Response::new)
    }

    async fn add(
        &self,
        request: Request<v1::AddPortRequest>,
    ) -> Result<Response<v1::AddPortResponse>, Status> {
        let spec = request.into_inner().port.unwrap_or_default();
        let port = config::port_from_spec(&spec).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Status::invalid_argument(lines.join("; "))
        })?;
        let changed = self.change(move |host| host.add_port(port)).await?;
        Ok(Response::new(v1::AddPortResponse { changed }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemovePortRequest>,
    ) -> Result<Response<v1::RemovePortResponse>, Status> {
        let name = request.into_inner().name;
        self.change(move |host| host.remove_port(&name)).await?;
        Ok(Response::new(v1::RemovePortResponse {}))
    }
}

fn stage_message(name: &str, io: bool, counters: &StageCounters) -> v1::Stage {
    v1::Stage {
        name: name.to_owned(),
        io,
        packets: counters.items.get(),
        calls: counters.calls.get(),
        cycles: counters.cycles.get(),
    }
}

fn worker_message(member: &super::crew::Member, bound: u64) -> v1::Worker {
    let (worker, figures) = (member.worker(), &member.figures);
    let counters = worker.counters();
    let io = |wanted: &'static str| {
        figures
            .io
            .iter()
            .filter(move |(name, _)| *name == wanted)
            .map(|(name, counters)| stage_message(name, true, counters))
    };
    let chain = figures.chain.as_ref().map(|chain| {
        chain.stages().map(|(name, counters)| stage_message(name, false, counters)).collect::<Vec<_>>()
    });
    let dispatch = figures.dispatch.iter().map(|counters| stage_message("dispatch", false, counters));
    let stages =
        io("receive").chain(chain.unwrap_or_default()).chain(dispatch).chain(io("transmit")).collect();
    let queues = figures.rings.iter().map(|ring| v1::Queue {
        name: ring.name().to_owned(),
        depth: ring.depth() as u32,
        capacity: ring.capacity() as u32,
        refused: ring.refused(),
    });
    v1::Worker {
        name: worker.name().to_owned(),
        core: worker.core().unwrap_or_default() as u32,
        total_cycles: counters.total_cycles.get(),
        busy_cycles: counters.busy_cycles.get(),
        asleep_cycles: counters.asleep_cycles.get(),
        rounds: counters.rounds.get(),
        empty_rounds: counters.empty_rounds.get(),
        panics: counters.panics.get(),
        stages,
        queues: queues.collect(),
        burst_ns_histogram: figures
            .residence_ns
            .as_ref()
            .map(|histogram| histogram.snapshot())
            .unwrap_or_default(),
        conservation: Some(conservation(&member.totals(), bound)),
    }
}

#[tonic::async_trait]
impl v1::stats_server::Stats for Service {
    async fn get(
        &self,
        request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        let wanted = request.into_inner().port;
        let bound = self.host.with_crew(super::crew::Crew::holds_packets).unwrap_or(0) as u64;
        let mut all = PortTotals::default();
        let mut ports = self.host.visit_ports(|record, totals, _| {
            all.join(&totals);
            let kind = match record.config.kind {
                config::PortKind::Vf(_) => v1::PortKind::Vf,
                config::PortKind::Uplink(_) => v1::PortKind::Uplink,
            };
            v1::PortStats {
                name: record.config.name.clone(),
                kind: kind.into(),
                counters: Some(counters_message(&totals)),
                conservation: Some(conservation(&totals, bound)),
            }
        });
        if !wanted.is_empty() {
            self.find_port(&wanted)?;
            ports.retain(|port| port.name == wanted);
        }
        Ok(Response::new(v1::GetStatsResponse {
            host: self.host.name().to_owned(),
            ports,
            conservation: Some(conservation(&all, bound)),
            buffers: u64::from(self.host.pool().capacity()),
            buffers_in_use: u64::from(self.host.pool().in_use()),
            rules: self.host.rule_count() as u64,
            uptime_ns: self.host.uptime().as_nanos() as u64,
        }))
    }

    async fn pipeline(
        &self,
        _: Request<v1::GetPipelineRequest>,
    ) -> Result<Response<v1::GetPipelineResponse>, Status> {
        let workers = self.host.with_crew(|crew| {
            let bound = crew.holds_packets() as u64;
            crew.members().iter().map(|member| worker_message(member, bound)).collect()
        });
        Ok(Response::new(v1::GetPipelineResponse {
            layout: self.layout.to_string(),
            idle: self.idle.to_string(),
            tsc_hz: tsc::hz(),
            workers: workers.unwrap_or_default(),
        }))
    }
}

#[tonic::async_trait]
impl v1::traps_server::Traps for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::TrappedPacket, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchTrapsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let port = request.into_inner().port;
        if !port.is_empty() {
            self.find_port(&port)?;
        }
        let frames = tokio_stream::wrappers::BroadcastStream::new(self.trapped.subscribe());
        let wanted = frames.filter_map(move |frame| match frame {
            Ok(frame) if port.is_empty() || frame.port == port => {
                Some(Ok(v1::TrappedPacket { port: frame.port.clone(), frame: frame.frame.clone(), lost: 0 }))
            }
            Ok(_) => None,
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(lost)) => {
                Some(Ok(v1::TrappedPacket { port: String::new(), frame: Vec::new(), lost }))
            }
        });
        Ok(Response::new(Box::pin(wanted)))
    }
}
