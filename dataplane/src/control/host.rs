//! A host: its ports, its rules, its workers, and the one way in which they change.
//!
//! Every change takes the same steps, one change after another at the [`Desk`]: find out whether it can be made; make it
//! durable; publish a new snapshot; wait until every worker looks at it. What fails before it is durable has changed nothing.
//! Changes of rules are in [`super::commit`]. Ports, book and workers have locks of their own, each held for moments, so that
//! whoever shows them never waits for a change.

use super::baselines::Baselines;
use super::book::{Book, PortKind};
use super::crew::{Crew, CrewError, Ends};
use super::desk::Desk;
use super::flows::FlowsError;
use super::functions::PortFunctions;
use super::ports::{PortRecord, PortSource, Ports};
use super::resolver::Resolver;
use super::rule_error::RuleError;
use super::segment;
use super::store::{Store, StoreError};
use super::tables::Applied;
use super::tunnels::Tunnels;
use super::view::totals;
use crate::config::{self, Config, Device as Place};
use crate::rules::rule::NotCanonical;
use crate::snapshot::{MAX_PORTS, Neighbours, Snapshot};
use forebay_api::spec_error::SpecError;
use forebay_pipeline::publish::{Publisher, Stalled};
use forebay_sriov::vf::VfError;
use forebay_sriov::{
    DEFAULT_DATA_ROOM_BYTES, Device, DeviceError, DeviceOptions, DeviceSpec, Eal, EalError, EalOptions,
    PacketPool, PoolError,
};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

/// How long a change waits for the workers. They pass to a new snapshot within microseconds, naps included.
pub(super) const PASS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long workers may take to send what they hold when the host stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Memory that a packet takes beside its data room: mbuf and its pool header (192), headroom (128), rounding to lines (64).
const OVERHEAD_BYTES_PER_PACKET: u64 = 384;
/// Pages of memory that is not huge.
const ORDINARY_PAGE_BYTES: u64 = 4096;

/// Why a host cannot start or change.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// DPDK does not start.
    #[error(transparent)]
    Eal(#[from] EalError),
    /// There is no packet memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A worker does not start.
    #[error(transparent)]
    Worker(#[from] CrewError),
    /// The state cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port's device cannot be opened.
    #[error("port {port:?}: {source}")]
    Device {
        /// The port.
        port: String,
        /// What is wrong.
        source: DeviceError,
    },
    /// What a port's device stands on cannot be had.
    #[error("port {port:?}: {source}")]
    Function {
        /// The port.
        port: String,
        /// What is wrong.
        source: VfError,
    },
    /// VFs cannot be made.
    #[error(transparent)]
    Functions(#[from] VfError),
    /// A port cannot be accepted.
    #[error("{0}")]
    Port(String),
    /// A port of that name exists and is another.
    #[error("port {port:?} exists with other values (remove it first, or give the same values)")]
    PortExists {
        /// The port.
        port: String,
    },
    /// No such port.
    #[error("there is no port {port:?} (see: forebay port list)")]
    NoPort {
        /// The port.
        port: String,
    },
    /// A port that cannot be removed.
    #[error("port {port:?}: {why}")]
    PortInUse {
        /// The port.
        port: String,
        /// Why not, and what to do.
        why: String,
    },
    /// A rule has a wrong field.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A rule cannot be parsed.
    #[error(transparent)]
    NotCanonical(#[from] NotCanonical),
    /// A rule cannot be decoded.
    #[error("a rule of the request is no protobuf message: {0} (are client and daemon of the same version?)")]
    Encoding(String),
    /// Flows cannot be listed.
    #[error(transparent)]
    Flows(#[from] FlowsError),
    /// A rule does not fit the host.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The change is durable and published, but a worker does not answer.
    #[error("the change is stored, but not yet in force: {0} (see: forebay pipeline show)")]
    Stalled(#[from] Stalled),
}

/// A host.
pub struct Host {
    pub(super) name: String,
    pub(super) started: Instant,
    pub(super) eal: Eal,
    pub(super) pool: PacketPool,
    pub(super) store: Store,
    pub(super) publisher: Publisher<Snapshot>,
    pub(super) resolver: Arc<Mutex<Resolver>>,
    /// Taken by whoever changes ports or rules, for as long as that takes; before any of the locks below.
    pub(super) desk: Mutex<Desk>,
    pub(super) ports: RwLock<Ports>,
    pub(super) crew: Mutex<Option<Crew>>,
    pub(super) book: Mutex<Book>,
    pub(super) baselines: Mutex<Baselines>,
    /// Taken by whoever lists flows: a worker reports to one at a time.
    pub(super) listing: Mutex<()>,
    /// Rules in force.
    pub(super) rules: AtomicUsize,
    /// Rules of the state file that this program cannot read. They stay there, for the one that wrote them.
    pub(super) unreadable: Mutex<BTreeSet<segment::Place>>,
    /// What devices stand on.
    pub(super) functions: PortFunctions,
}

impl Host {
    /// Starts DPDK, the workers and every port of the config file and of the state; loads the rules of the state.
    ///
    /// # Errors
    /// Whatever is missing. Ports that were added over the control socket and cannot be opened now are reported in the log and
    /// left out; they stay in the state.
    pub fn start(config: &Config) -> Result<(Arc<Host>, Ends), HostError> {
        let store = Store::open(&config.host.state)?;
        let eal = Eal::start(&EalOptions {
            hugepages: match config.dpdk.hugepages {
                config::Hugepages::Auto => forebay_sriov::Hugepages::Auto,
                config::Hugepages::Required => forebay_sriov::Hugepages::Required,
                config::Hugepages::Off => forebay_sriov::Hugepages::Off,
            },
            memory_mib: config.dpdk.memory_mib,
            name: format!("forebay-{}", std::process::id()),
        })?;
        if !eal.uses_hugepages() {
            tracing::info!("packet memory is in ordinary pages: hugepages are off or too few are free");
        }
        // Three quarters for packets; the rest is for the rings and queues of devices.
        let mut bytes_per_packet = u64::from(data_room_bytes(config)) + OVERHEAD_BYTES_PER_PACKET;
        if !eal.uses_hugepages() {
            // DPDK lets no packet cross from one ordinary page into the next.
            bytes_per_packet = bytes_per_packet.next_multiple_of(ORDINARY_PAGE_BYTES);
        }
        let packets = (u64::from(config.dpdk.memory_mib) << 20) * 3 / 4 / bytes_per_packet;
        let pool = PacketPool::new(eal, "packets", packets as u32, data_room_bytes(config))?;
        let neighbours = Arc::new(Neighbours::default());
        let resolver = Arc::new(Mutex::new(Resolver::new(neighbours.clone())));
        let publisher = Publisher::new(Arc::new(Snapshot::default()));
        let (crew, ends) = Crew::start(eal, &config.workers, &publisher, neighbours)?;
        let host = Host {
            name: config.host.name.clone(),
            started: Instant::now(),
            eal,
            pool,
            store,
            publisher,
            desk: Mutex::new(Desk::new(Tunnels::new(resolver.clone()))),
            resolver,
            ports: RwLock::default(),
            crew: Mutex::new(Some(crew)),
            book: Mutex::default(),
            baselines: Mutex::default(),
            listing: Mutex::default(),
            rules: AtomicUsize::new(0),
            unreadable: Mutex::default(),
            functions: PortFunctions::new(&config.host.name),
        };
        if let Err(error) = host.restore(config) {
            host.stop();
            return Err(error);
        }
        Ok((Arc::new(host), ends))
    }

    /// Opens the ports of the config file and of the state, and loads the state's rules.
    fn restore(&self, config: &Config) -> Result<(), HostError> {
        let desk = &mut *self.desk.lock();
        self.functions.make_vfs(config.ports.iter())?;
        // Ports with devices first: ports behind VLAN tags need theirs.
        let (with_device, behind): (Vec<_>, Vec<_>) =
            config.ports.iter().partition(|port| matches!(port.device, Place::Dpdk(_)));
        for port in with_device.into_iter().chain(behind) {
            self.open_port(port.clone(), PortSource::Config)?;
        }
        self.restore_added_ports()?;
        self.meet_ports(desk);
        let applied = self.restore_rules(desk)?;
        self.publish_ports(desk, applied, true)
    }

    fn restore_added_ports(&self) -> Result<(), HostError> {
        let mut stored: Vec<config::Port> = Vec::new();
        for spec in self.store.ports()? {
            match config::port_from_spec(&spec) {
                Ok(port) => stored.push(port),
                Err(problems) => {
                    let problems = one_line(&problems);
                    tracing::error!("port {:?} of the state is left out: {problems}", spec.name);
                }
            }
        }
        stored.sort_by_key(|port| matches!(port.device, Place::Vlan { .. }));
        if let Err(error) = self.functions.make_vfs(stored.iter()) {
            tracing::error!("ports of the state: {error}");
        }
        for port in stored {
            let name = port.name.clone();
            if let Some(record) = self.ports.read().by_name.get(&name) {
                if record.config != port {
                    tracing::warn!(
                        "port {name:?} is in the config file and in the state: the config file counts"
                    );
                }
                continue;
            }
            if let Err(error) =
                self.check_beside(&port).and_then(|()| self.open_port(port, PortSource::Control))
            {
                tracing::error!("port {name:?} of the state is left out: {error}");
            }
        }
        Ok(())
    }

    fn check_beside(&self, port: &config::Port) -> Result<(), HostError> {
        let existing: Vec<config::Port> =
            self.ports.read().by_name.values().map(|record| record.config.clone()).collect();
        let problems = config::port_beside(port, &existing);
        if problems.is_empty() { Ok(()) } else { Err(HostError::Port(one_line(&problems))) }
    }

    /// Opens a port's device and adds the port. Nothing is published.
    fn open_port(&self, port: config::Port, source: PortSource) -> Result<(), HostError> {
        let id = self.ports.read().free_id().ok_or_else(|| {
            HostError::Port(format!(
                "port {:?}: the host has {MAX_PORTS} ports already (remove some)",
                port.name
            ))
        })?;
        let (device, device_id, device_mac) = match &port.device {
            Place::Vlan { port: parent, .. } => {
                let ports = self.ports.read();
                let parent =
                    ports.by_name.get(parent).ok_or_else(|| HostError::NoPort { port: parent.clone() })?;
                (None, parent.device_id, parent.mac)
            }
            Place::Dpdk(text) => {
                let queues = self.crew.lock().as_ref().map_or(1, Crew::queues_wanted);
                let mut device = self.open_device(&port, text, queues)?;
                if let Some(crew) = self.crew.lock().as_mut() {
                    crew.attach(device.id(), device.take_queues());
                }
                let (id, mac) = (device.id(), device.mac());
                (Some(device), id, mac)
            }
        };
        let mac = port.mac.map_or(device_mac, |mac| mac.0);
        let baseline = totals(self.crew.lock().as_ref(), id);
        let up = Arc::new(AtomicBool::new(true));
        let mentions = {
            let mut book = self.book.lock();
            let name = book.names.number(&port.name);
            book.names.mentions(name).clone()
        };
        let record = PortRecord { id, config: port, source, device, device_id, mac, up, baseline, mentions };
        self.ports.write().insert(record);
        Ok(())
    }

    fn open_device(&self, port: &config::Port, text: &str, queues: u16) -> Result<Device, HostError> {
        let spec: DeviceSpec =
            text.parse().map_err(|error| HostError::Port(format!("port {:?}: {error}", port.name)))?;
        let is_vf = matches!(spec, DeviceSpec::Vf { .. });
        let spec = self.functions.prepare(port, spec)?;
        // A tenant's tap is the tenant's interface, so it gets the tenant's MAC; other devices of tenants are the near end
        // of something whose far end has it.
        let mac = match port.kind {
            config::PortKind::Vf(_) if !matches!(spec, DeviceSpec::Tap { .. }) => None,
            // Its PF has set it, and takes no word of the VF's any more.
            config::PortKind::Uplink(_) if is_vf => None,
            config::PortKind::Vf(_) | config::PortKind::Uplink(_) => port.mac.map(|mac| mac.0),
        };
        let options = DeviceOptions { mac, mtu: port.mtu, queues, ..DeviceOptions::new(&self.pool) };
        Device::open(self.eal, &spec, &options)
            .map_err(|source| HostError::Device { port: port.name.clone(), source })
    }

    /// Adds a port. True where it was not there before.
    ///
    /// # Errors
    /// The port does not fit the host, its device cannot be opened, or the state cannot be written.
    pub fn add_port(&self, port: config::Port) -> Result<bool, HostError> {
        let desk = &mut *self.desk.lock();
        let name = port.name.clone();
        if let Some(record) = self.ports.read().by_name.get(&name) {
            return if record.config == port { Ok(false) } else { Err(HostError::PortExists { port: name }) };
        }
        self.check_beside(&port)?;
        let mut change = self.store.change();
        change.put_ports.push(config::port_to_spec(&port));
        self.open_port(port, PortSource::Control)?;
        if let Err(error) = self.store.write(&change) {
            self.close_port(desk, &name)?;
            return Err(error.into());
        }
        let moved = self.meet_ports(desk);
        let applied = self.restore_dangling(desk, &name)?;
        self.publish_ports(desk, applied, moved)?;
        Ok(true)
    }

    /// Removes a port that was added over the control socket.
    ///
    /// # Errors
    /// Something refers to it, or the state cannot be written.
    pub fn remove_port(&self, name: &str) -> Result<(), HostError> {
        let desk = &mut *self.desk.lock();
        self.check_removal(name)?;
        let mut change = self.store.change();
        change.delete_ports.push(name.to_owned());
        self.store.write(&change)?;
        self.close_port(desk, name)
    }

    fn check_removal(&self, name: &str) -> Result<(), HostError> {
        let ports = self.ports.read();
        let in_use = |why: String| HostError::PortInUse { port: name.to_owned(), why };
        let record = ports.by_name.get(name).ok_or_else(|| HostError::NoPort { port: name.to_owned() })?;
        if record.source == PortSource::Config {
            return Err(in_use("the config file declares it (remove it there and restart)".into()));
        }
        let book = self.book.lock();
        if let Some((count, first)) = book.mentions(name) {
            return Err(in_use(format!(
                "{count} rules refer to it, the first is {first:?} (delete them first)"
            )));
        }
        if let Some(behind) = ports.behind(name) {
            return Err(in_use(format!("port {behind:?} is a VLAN of it (remove that first)")));
        }
        if record.kind() == PortKind::Uplink {
            let others = ports.by_name.values();
            let left =
                others.filter(|other| other.config.name != name && other.kind() == PortKind::Uplink).count();
            if left == 0 && !book.is_empty() && book.forwards() {
                return Err(in_use(
                    "rules forward through it and no other uplink is there (delete them first)".into(),
                ));
            }
        }
        Ok(())
    }

    /// Takes a port out of the snapshot, then closes its device when no worker can touch it any more.
    fn close_port(&self, desk: &mut Desk, name: &str) -> Result<(), HostError> {
        let Some(record) = self.ports.write().remove(name) else { return Ok(()) };
        self.book.lock().names.set_port(name, None);
        let moved = self.meet_ports(desk);
        self.publish_ports(desk, Applied::default(), moved)?;
        let Some(device) = record.device else { return Ok(()) };
        if let Some(crew) = self.crew.lock().as_mut() {
            crew.release(device.id());
        }
        self.settle(desk)?;
        let spec = device.spec().clone();
        if let Err(error) = device.close(Vec::new()) {
            tracing::error!("port {name:?}: {error}");
        }
        self.functions.give_back(name, &spec);
        Ok(())
    }

    /// Waits until every worker has begun a round after now: what it was asked to do before, it has done then.
    fn settle(&self, desk: &Desk) -> Result<(), HostError> {
        for _ in 0..2 {
            let version = self.publisher.publish(desk.snapshot.clone());
            self.publisher.wait(version, PASS_TIMEOUT)?;
        }
        Ok(())
    }

    /// Tells rules and tunnels which ports are there. True where the way of some tunnel is another one now.
    fn meet_ports(&self, desk: &mut Desk) -> bool {
        let ports = self.ports.read();
        let mut book = self.book.lock();
        for (name, record) in &ports.by_name {
            book.names.set_port(name, Some((record.id, record.kind())));
        }
        drop(book);
        self.resolver.lock().configure(ports.static_neighbours());
        desk.routes = ports.routes();
        match desk.tunnels.find_ways_again(&desk.routes) {
            Some(left) => {
                desk.left_hops.extend(left);
                true
            }
            None => false,
        }
    }

    /// Believes what the underlay said about the paths to tunnels' far ends, which is `told` and taken from there, unless a
    /// change is being made: then next time.
    pub fn mind_path_mtus(&self, told: &mut HashMap<IpAddr, u16>, now: Instant) {
        let Some(mut desk) = self.desk.try_lock() else { return };
        if desk.tunnels.mind_path_mtus(told.drain(), now) {
            let next = desk.redraw(&Applied::default(), &self.book.lock());
            self.publisher.publish(next);
        }
    }

    /// Puts rules in force that waited for this port.
    fn restore_dangling(&self, desk: &mut Desk, port: &str) -> Result<Applied, HostError> {
        let slots = {
            let mut book = self.book.lock();
            let name = book.names.number(port);
            book.dangling_on(&HashSet::from([name]))
        };
        self.stage_again(desk, &slots)
    }

    /// Publishes after ports have come or gone. Where `moved` is set, what every rule leads to may have changed.
    fn publish_ports(&self, desk: &mut Desk, applied: Applied, moved: bool) -> Result<(), HostError> {
        let next = {
            let ports = self.ports.read();
            desk.redraw_ports(&ports.by_name, ports.devices(), &applied, moved, &self.book.lock())
        };
        let version = self.publisher.publish(next);
        self.publisher.wait(version, PASS_TIMEOUT)?;
        let left = std::mem::take(&mut desk.left_hops);
        desk.tunnels.release_hops(&left);
        desk.tunnels.release(&applied.released);
        Ok(())
    }

    /// Stops the workers after they have sent what they hold, and closes every device.
    pub fn stop(&self) {
        let _desk = self.desk.lock();
        if let Some(crew) = self.crew.lock().take() {
            let late = crew.stop(DRAIN_TIMEOUT);
            if !late.is_empty() {
                tracing::warn!("stopped before everything was sent: {}", late.join(", "));
            }
        }
        let records = std::mem::take(&mut self.ports.write().by_name);
        for (name, record) in records {
            if let Some(device) = record.device
                && let Err(error) = device.close(Vec::new())
            {
                tracing::warn!("port {name:?}: {error}");
            }
        }
        self.functions.give_all_back();
    }
}

/// The data room that every device of the config can use: some want a whole packet in one buffer.
fn data_room_bytes(config: &Config) -> u16 {
    let wanted = config.ports.iter().filter_map(|port| match &port.device {
        Place::Dpdk(text) => {
            text.parse::<DeviceSpec>().ok().map(|spec| spec.needed_data_room_bytes(port.mtu))
        }
        Place::Vlan { .. } => None,
    });
    let most = wanted.max().unwrap_or(0).max(u32::from(DEFAULT_DATA_ROOM_BYTES));
    u16::try_from(most).unwrap_or(u16::MAX)
}

fn one_line(problems: &[config::Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
