//! Where the packets come from that a benchmark of the packet path measures, and what each way of feeding cannot do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use forebay_pipeline::cores;

use crate::args::PathPlan;
use crate::child::{OwnChild, Waited};
use crate::error::BenchError;
use crate::scenario::Scenario;
use crate::sequence::Sizes;

/// The command of this program that sends the packets of a file for ever, and what it says when it begins.
pub const GENERATOR_COMMAND: &str = "bench-generator";
/// What the generator says when the other end of its device is there.
pub const GENERATOR_SENDING: &str = "forebay: sending";
/// How long the generator may take to start and to find the other end.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Longest frame that the in-process feed has room for, with every header in front.
const MOST_MEMORY_BYTES: usize = 1900;

/// Where packets come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Feed {
    /// A file of packets, which the daemon receives for ever
    #[default]
    Pcap,
    /// Memory shared with another process, which sends as fast as the daemon takes
    Memif,
    /// No daemon: a worker's rounds in this process, between two rings, cycles alone
    Memory,
    /// Memory shared with another process, which sends at a rate and gets back what is sent
    #[value(skip)]
    Paced,
}

impl Feed {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pcap => "pcap",
            Self::Memif => "memif",
            Self::Memory => "memory",
            Self::Paced => "paced",
        }
    }

    /// The device that receives the packets of a lane, as a config file names it.
    pub(crate) fn device(self, packets: &Path, own: &Path, lane: u8) -> String {
        match self {
            Self::Memif | Self::Paced => format!("memif:{}", socket(own, lane).display()),
            Self::Pcap | Self::Memory => {
                format!("pcap:{},infinite_rx=1", Scenario::file(packets, lane).display())
            }
        }
    }

    /// Whether the daemon keeps a buffer for each packet.
    pub(crate) fn keeps_packets(self) -> bool {
        self == Self::Pcap
    }
}

/// Where a daemon and its generator meet.
pub(crate) fn socket(own: &Path, lane: u8) -> PathBuf {
    own.join(format!("memif{lane}"))
}

/// Where they meet on the way back.
pub(crate) fn back_socket(own: &Path, lane: u8) -> PathBuf {
    own.join(format!("back{lane}"))
}

/// Says what a plan asks of its feed that the feed cannot do.
pub(crate) fn check(plan: &PathPlan) -> Result<(), BenchError> {
    let (feed, flows) = (plan.scenario.feed, plan.scenario.flows);
    let remedy = "leave one of the two out";
    let refused = |words, remedy| Err(BenchError::Feed { feed: feed.name(), words, remedy });
    if feed == Feed::Pcap {
        return Ok(());
    }
    if plan.cores.len() > 1 {
        return refused("several --cores", "name one core");
    }
    if plan.baseline.is_some() {
        return refused("--baseline", remedy);
    }
    if feed == Feed::Memif {
        return Ok(());
    }
    let longest = flows.sizes.longest();
    for (asked, words) in [
        (flows.sizes == Sizes::Imix, "--imix"),
        (flows.sequence.random, "--random"),
        (flows.tunnels.is_some(), "--tunnels"),
        (plan.new_flows_per_second.is_some(), "--new-flows-per-second"),
    ] {
        if asked {
            return refused(words, remedy);
        }
    }
    if flows.ipv6 != flows.underlay_ipv6 {
        return refused("IPv6 on one side of the tunnel", "give both --ipv6 and --underlay ipv6, or neither");
    }
    if longest > MOST_MEMORY_BYTES {
        return refused("a --size beyond 1900", "choose a shorter one");
    }
    Ok(())
}

/// Starts the process that sends a file's packets to a daemon.
pub(crate) async fn generator(
    scenario: &Scenario,
    packets: &Path,
    own: &Path,
    worker_cores: &[usize],
) -> Result<OwnChild, BenchError> {
    let device = client(&socket(own, 0), scenario);
    let words = (GENERATOR_COMMAND, GENERATOR_SENDING);
    sender(words, &device, &[], packets, own, worker_cores).await
}

/// Starts the command of this program that sends a file's packets by `device`, and waits until it `says` that it does. What it
/// says stands in the folder `own`. It has a core that no worker has, and ends when its input does, so that it never outlives this program.
pub(crate) async fn sender(
    (command, says): (&str, &str),
    device: &str,
    more: &[String],
    packets: &Path,
    own: &Path,
    worker_cores: &[usize],
) -> Result<OwnChild, BenchError> {
    let available = cores::available();
    let Some(core) = available.iter().find(|core| !worker_cores.contains(core)) else {
        return Err(BenchError::FewCores { wanted: worker_cores.len() + 1, available: available.len() });
    };
    let program = std::env::current_exe();
    let program =
        program.map_err(|source| BenchError::System { what: "find this program's file", source })?;
    let log = own.join(format!("{command}.log"));
    let mut words = Command::new(program);
    words.arg(command).arg("--device").arg(device);
    words.arg("--packets").arg(Scenario::file(packets, 0)).arg("--core").arg(core.to_string()).args(more);
    let mut child = OwnChild::start(&mut words, &log, true)?;
    match child.wait_for(Some(says), START_PATIENCE).await? {
        Waited::Said => Ok(child),
        Waited::Ended(status) => {
            Err(BenchError::Generator { what: format!("it ended ({status})"), tail: child.tail() })
        }
        Waited::Neither => {
            let what = format!("it sent nothing within {} s", START_PATIENCE.as_secs());
            Err(BenchError::Generator { what, tail: child.tail() })
        }
    }
}

/// The other end of a daemon's memif socket. A frame is handed over in one piece.
pub(crate) fn client(socket: &Path, scenario: &Scenario) -> String {
    format!("memif:{},role=client,bsize={}", socket.display(), scenario.buffer_bytes())
}
