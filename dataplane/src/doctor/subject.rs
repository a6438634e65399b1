//! What the machine is examined for: a config file, or without one an ordinary host.

use crate::config::{self, Config, Device, Hugepages, Idle, Problems};
use std::path::PathBuf;

/// A config file that leaves everything open but the name, which a machine may not have yet.
const DEFAULTS: &str = "[host]\nname = \"host\"\n";

/// What a host needs of a machine.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Whether a config file says so: what it asks for and cannot have fails, else it warns.
    pub asked: bool,
    /// The cores of workers; ascending.
    pub cores: Vec<usize>,
    /// Whether packet memory comes from hugepages.
    pub hugepages: Hugepages,
    /// Packet memory in MiB.
    pub memory_mib: u64,
    /// Port and device of each port that has a device of its own.
    pub devices: Vec<(String, String)>,
    /// Folder of the rules that survive a restart.
    pub state: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Whether workers sleep at all.
    pub sleeps: bool,
    /// What a sleep may cost a packet, microseconds.
    pub max_added_latency_us: u32,
}

impl Subject {
    /// What a config file asks for.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let own = config.ports.iter().filter_map(|port| match &port.device {
            Device::Dpdk(device) => Some((port.name.clone(), device.clone())),
            Device::Vlan { .. } => None,
        });
        Self {
            asked: true,
            cores: config.workers.cores.clone(),
            hugepages: config.dpdk.hugepages,
            memory_mib: config.dpdk.memory_mib.into(),
            devices: own.collect(),
            state: config.host.state.clone(),
            socket: config.control.socket.clone(),
            sleeps: config.workers.idle != Idle::BusyPoll,
            max_added_latency_us: config.workers.max_added_latency_us,
        }
    }

    /// A host with every default and no ports, on this machine.
    ///
    /// # Errors
    /// The defaults do not suit this machine, as a config file would not.
    pub fn ordinary() -> Result<Self, Problems> {
        Ok(Self { asked: false, ..Self::of(&config::parse(DEFAULTS)?) })
    }

    /// The ports whose device is of one of these kinds: name, and what stands behind the kind without the driver's
    /// arguments.
    pub(super) fn ports_of<'a>(&'a self, kinds: &'a [&str]) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.devices.iter().filter_map(move |(port, device)| {
            let (kind, rest) = device.split_once(':')?;
            kinds.contains(&kind).then(|| (port.as_str(), rest.split(',').next().unwrap_or_default()))
        })
    }
}
