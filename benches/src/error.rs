//! What can go wrong in a benchmark: one line each, that names the object, the value and the remedy.

use std::path::PathBuf;
use std::time::Duration;

use forebay_api::client::ConnectError;
use forebay_pipeline::{CoreError, WorkerError};

use crate::memory_feed::Problem;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("--cores: {0}")]
    Cores(#[from] CoreError),
    #[error("--cores {given:?}: {count} cores (the ring joins two: name two cores, such as 0,1)")]
    RingCores { given: String, count: usize },
    #[error("--core: {count} cores (name one: no peer is compared on several)")]
    CompareCores { count: usize },
    #[error(
        "--policy {policy:?}: unknown (name busy-poll, last-packet, interrupt or sleep:US, US being microseconds)"
    )]
    Policy { policy: String },
    #[error("--size {size}: out of range (a frame over IPv{version} has {least} to {most} bytes)")]
    Size { size: u16, version: u8, least: u16, most: u16 },
    #[error(
        "--cores: {count} cores (each needs two devices of the daemon, which takes those of {most} cores)"
    )]
    ManyCores { count: usize, most: usize },
    #[error(
        "--ports {ports} on {count} cores: too many (each core has as many ports, and all together at most {most})"
    )]
    ManyPorts { ports: u16, count: usize, most: u16 },
    #[error(
        "--tunnels on {count} cores (one core: the daemon reaches what lies behind routers by one uplink)"
    )]
    TunnelsOnCores { count: usize },
    #[error(
        "--new-flows-per-second {wanted}: beside {flows} flows that go on, at {rate:.0} packets/s, {packets} packets would \
         have to be kept so that a flow that comes again is new (at most {most}: ask for {least:.0} or more, or for fewer \
         flows)"
    )]
    NewFlows { wanted: u32, flows: u32, rate: f64, packets: u64, most: u32, least: f64 },
    #[error("--feed {feed} with {words}: not possible ({remedy})")]
    Feed { feed: &'static str, words: &'static str, remedy: &'static str },
    #[error("--feed memory: {0}")]
    MemoryFeed(Problem),
    #[error("the packet generator failed: {what}: {tail}")]
    Generator { what: String, tail: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("frame of {size_bytes} bytes: {reason}")]
    Frame { size_bytes: usize, reason: String },
    #[error("{what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("the daemon under test ended ({status}) before it was ready: {tail}")]
    Died { status: std::process::ExitStatus, tail: String },
    #[error(
        "the daemon under test was not ready after {} s (is the machine short of memory or cores?): {tail}",
        waited.as_secs()
    )]
    NotReady { waited: Duration, tail: String },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the daemon under test refused to {what}: {message} {tail}")]
    Refused { what: &'static str, message: String, tail: String },
    #[error("the daemon under test took more than {} s to {what}: {tail}", waited.as_secs())]
    Slow { what: &'static str, waited: Duration, tail: String },
    #[error(
        "the daemon under test did not receive {packets} packets twice in {} s (is the machine busy? see: uptime)",
        waited.as_secs()
    )]
    Unsettled { packets: u32, waited: Duration },
    #[error("the figures cannot be trusted: {0}")]
    Insane(String),
    #[error("testpmd: {what}: {tail}")]
    Testpmd { what: String, tail: String },
    #[error("ovs-dpdk: {what}: {tail}")]
    Ovs { what: String, tail: String },
    #[error("{wanted} cores are wanted, and {available} are there (see: nproc)")]
    FewCores { wanted: usize, available: usize },
    #[error("rows that were not measured: {names}")]
    Rows { names: String },
    #[error("the chart could not be drawn: {reason}")]
    Chart { reason: String },
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("stopped by a signal")]
    Stopped,
}

impl BenchError {
    /// 2 where the words are wrong, 1 otherwise.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Cores(_)
            | Self::RingCores { .. }
            | Self::Size { .. }
            | Self::Policy { .. }
            | Self::ManyCores { .. }
            | Self::ManyPorts { .. }
            | Self::Feed { .. }
            | Self::TunnelsOnCores { .. }
            | Self::CompareCores { .. }
            | Self::NewFlows { .. } => 2,
            _ => 1,
        }
    }
}
