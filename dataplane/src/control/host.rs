//! A host: its ports, its rules, its workers, and the one way in which they change.
//!
//! Every change takes the same five steps under one lock: find out whether it can be made; make it durable; apply it to the
//! book; publish a new snapshot; wait until every worker looks at it. What fails before the second step has changed nothing.

use super::book::{Book, PortKind, RuleError, Touched, World};
use super::crew::{Crew, Ends};
use super::ports::{PortRecord, PortSource, Ports, entry};
use super::resolver::Resolver;
use super::store::{Change, Store, StoreError};
use super::tunnels::Tunnels;
use super::view::{raw_rule_counts, totals};
use crate::config::{self, Config, Device as Place};
use crate::rules::rule::{NotCanonical, Rule};
use crate::snapshot::{MAX_PORTS, Neighbours, Snapshot};
use forebay_api::spec_error::SpecError;
use forebay_api::{rule_check, v1};
use forebay_pipeline::publish::{Publisher, Stalled};
use forebay_pipeline::worker::WorkerError;
use forebay_sriov::{
    DEFAULT_DATA_ROOM_BYTES, Device, DeviceError, DeviceOptions, DeviceSpec, Eal, EalError, EalOptions,
    PacketPool, PoolError,
};
use parking_lot::Mutex;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long a change waits for the workers. They pass to a new snapshot within microseconds, naps included.
const PASS_TIMEOUT: Duration = Duration::from_secs(5);
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
    Worker(#[from] WorkerError),
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
    /// A rule does not fit the host.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The change is durable and published, but a worker does not answer.
    #[error("the change is stored, but not yet in force: {0} (see: forebay pipeline show)")]
    Stalled(#[from] Stalled),
}

/// A rule that somebody wants to be in force: parsed, and encoded as it is stored. Made piece by piece while a long load
/// arrives, since the messages themselves take several times the memory.
pub struct Offer {
    rule: Rule,
    encoded: Box<[u8]>,
}

impl Offer {
    /// Checks a rule by itself, whatever the host.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn new(mut message: v1::Rule) -> Result<Offer, HostError> {
        rule_check::canonical(&mut message)?;
        Ok(Offer { rule: Rule::from_canonical(&message)?, encoded: message.encode_to_vec().into() })
    }
}

/// Everything that changes.
pub(super) struct State {
    pub(super) ports: Ports,
    pub(super) book: Book,
    pub(super) tunnels: Tunnels,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) crew: Option<Crew>,
    /// By rule slot: what it had counted before the rule was there.
    pub(super) rule_baselines: Vec<(u64, u64)>,
    /// The last generation that a port or the ingress rules were given: one for each publication, 0 before the first.
    /// After 2^32 publications the numbers begin again.
    pub(super) generation: u32,
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
    pub(super) state: Mutex<State>,
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
        let state = State {
            ports: Ports::default(),
            book: Book::default(),
            tunnels: Tunnels::new(resolver.clone()),
            snapshot: Arc::default(),
            crew: Some(crew),
            rule_baselines: Vec::new(),
            generation: 0,
        };
        let name = config.host.name.clone();
        let state = Mutex::new(state);
        let host = Host { name, started: Instant::now(), eal, pool, store, publisher, resolver, state };
        host.restore(config)?;
        Ok((Arc::new(host), ends))
    }

    /// Opens the ports of the config file and of the state, and loads the state's rules.
    fn restore(&self, config: &Config) -> Result<(), HostError> {
        let mut state = self.state.lock();
        // Ports with devices first: ports behind VLAN tags need theirs.
        let (with_device, behind): (Vec<_>, Vec<_>) =
            config.ports.iter().partition(|port| matches!(port.device, Place::Dpdk(_)));
        for port in with_device.into_iter().chain(behind) {
            self.open_port(&mut state, port.clone(), PortSource::Config)?;
        }
        self.restore_added_ports(&mut state)?;
        self.resolver.lock().configure(state.ports.static_neighbours());
        let mut rules = Vec::new();
        for message in self.store.rules()? {
            match Rule::from_canonical(&message) {
                Ok(rule) => rules.push((0, rule)),
                Err(error) => tracing::error!("{error}: this rule of the state is not in force"),
            }
        }
        let count = rules.len();
        let State { ports, book, tunnels, .. } = &mut *state;
        let (names, routes) = (ports.names(), ports.routes());
        let world = World { ports: &names, routes: &routes, resolver: &self.resolver };
        let plan = super::book::Plan { put: rules, ..Default::default() };
        let touched = book.apply(plan, &world, tunnels);
        tracing::info!("{count} rules restored");
        self.publish_all(&mut state, touched)
    }

    fn restore_added_ports(&self, state: &mut State) -> Result<(), HostError> {
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
        for port in stored {
            let name = port.name.clone();
            if let Some(record) = state.ports.by_name.get(&name) {
                if record.config != port {
                    tracing::warn!(
                        "port {name:?} is in the config file and in the state: the config file counts"
                    );
                }
                continue;
            }
            if let Err(error) = self
                .check_beside(state, &port)
                .and_then(|()| self.open_port(state, port, PortSource::Control))
            {
                tracing::error!("port {name:?} of the state is left out: {error}");
            }
        }
        Ok(())
    }

    fn check_beside(&self, state: &State, port: &config::Port) -> Result<(), HostError> {
        let existing: Vec<config::Port> =
            state.ports.by_name.values().map(|record| record.config.clone()).collect();
        let problems = config::port_beside(port, &existing);
        if problems.is_empty() { Ok(()) } else { Err(HostError::Port(one_line(&problems))) }
    }

    /// Opens a port's device and adds the port. Nothing is published.
    fn open_port(&self, state: &mut State, port: config::Port, source: PortSource) -> Result<(), HostError> {
        let id = state.ports.free_id().ok_or_else(|| {
            HostError::Port(format!(
                "port {:?}: the host has {MAX_PORTS} ports already (remove some)",
                port.name
            ))
        })?;
        let (device, device_id, device_mac) = match &port.device {
            Place::Vlan { port: parent, .. } => {
                let parent = state
                    .ports
                    .by_name
                    .get(parent)
                    .ok_or_else(|| HostError::NoPort { port: parent.clone() })?;
                (None, parent.device_id, parent.mac)
            }
            Place::Dpdk(text) => {
                let crew = state.crew.as_mut();
                let queues = crew.as_ref().map_or(1, |crew| crew.queues_wanted());
                let mut device = self.open_device(&port, text, queues)?;
                if let Some(crew) = crew {
                    crew.attach(device.id(), device.take_queues());
                }
                let (id, mac) = (device.id(), device.mac());
                (Some(device), id, mac)
            }
        };
        let mac = port.mac.map_or(device_mac, |mac| mac.0);
        let baseline = totals(state, id);
        let up = Arc::new(AtomicBool::new(true));
        let record =
            PortRecord { id, config: port, source, device, device_id, mac, up, baseline, entry: None };
        state.ports.insert(record);
        Ok(())
    }

    fn open_device(&self, port: &config::Port, text: &str, queues: u16) -> Result<Device, HostError> {
        let spec: DeviceSpec =
            text.parse().map_err(|error| HostError::Port(format!("port {:?}: {error}", port.name)))?;
        // A tenant's tap is the tenant's interface, so it gets the tenant's MAC; other devices of tenants are the near end
        // of something whose far end has it.
        let mac = match port.kind {
            config::PortKind::Vf(_) if !matches!(spec, DeviceSpec::Tap { .. }) => None,
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
        let mut state = self.state.lock();
        let name = port.name.clone();
        if let Some(record) = state.ports.by_name.get(&name) {
            return if record.config == port { Ok(false) } else { Err(HostError::PortExists { port: name }) };
        }
        self.check_beside(&state, &port)?;
        let spec = config::port_to_spec(&port);
        self.open_port(&mut state, port, PortSource::Control)?;
        if let Err(error) = self.store.write(&Change { put_ports: vec![spec], ..Change::default() }) {
            self.close_port(&mut state, &name)?;
            return Err(error.into());
        }
        let touched = self.resolve_again(&mut state);
        self.publish_all(&mut state, touched)?;
        Ok(true)
    }

    /// Removes a port that was added over the control socket.
    ///
    /// # Errors
    /// Something refers to it, or the state cannot be written.
    pub fn remove_port(&self, name: &str) -> Result<(), HostError> {
        let mut state = self.state.lock();
        let in_use = |why: String| HostError::PortInUse { port: name.to_owned(), why };
        let record =
            state.ports.by_name.get(name).ok_or_else(|| HostError::NoPort { port: name.to_owned() })?;
        if record.source == PortSource::Config {
            return Err(in_use("the config file declares it (remove it there and restart)".into()));
        }
        if let Some((count, first)) = state.book.mentions(name) {
            return Err(in_use(format!(
                "{count} rules refer to it, the first is {first:?} (delete them first)"
            )));
        }
        if let Some(behind) = state.ports.behind(name) {
            return Err(in_use(format!("port {behind:?} is a VLAN of it (remove that first)")));
        }
        if record.kind() == PortKind::Uplink {
            let others = state.ports.by_name.values();
            let left =
                others.filter(|other| other.config.name != name && other.kind() == PortKind::Uplink).count();
            if left == 0 && !state.book.is_empty() && state.book.forwards() {
                return Err(in_use(
                    "rules forward through it and no other uplink is there (delete them first)".into(),
                ));
            }
        }
        self.store.write(&Change { delete_ports: vec![name.to_owned()], ..Change::default() })?;
        self.close_port(&mut state, name)
    }

    /// Takes a port out of the snapshot, then closes its device when no worker can touch it any more.
    fn close_port(&self, state: &mut State, name: &str) -> Result<(), HostError> {
        let Some(record) = state.ports.remove(name) else { return Ok(()) };
        let touched = self.resolve_again(state);
        self.publish_all(state, touched)?;
        let Some(device) = record.device else { return Ok(()) };
        if let Some(crew) = &mut state.crew {
            crew.release(device.id());
        }
        self.settle(state)?;
        if let Err(error) = device.close(Vec::new()) {
            tracing::error!("port {name:?}: {error}");
        }
        Ok(())
    }

    /// Waits until every worker has begun a round after now: what it was asked to do before, it has done then.
    fn settle(&self, state: &State) -> Result<(), HostError> {
        for _ in 0..2 {
            let version = self.publisher.publish(state.snapshot.clone());
            self.publisher.wait(version, PASS_TIMEOUT)?;
        }
        Ok(())
    }

    fn resolve_again(&self, state: &mut State) -> Touched {
        self.resolver.lock().configure(state.ports.static_neighbours());
        let State { ports, book, tunnels, .. } = state;
        let (names, routes) = (ports.names(), ports.routes());
        book.resolve_again(&World { ports: &names, routes: &routes, resolver: &self.resolver }, tunnels)
    }

    /// Puts rules: all or none. Returns how many changed and how many stood there already.
    ///
    /// # Errors
    /// The first rule that does not fit the host, or the state cannot be written; nothing has changed then.
    pub fn put_rules(&self, offers: Vec<Offer>, dry_run: bool) -> Result<(usize, usize), HostError> {
        let (rules, mut encoded): (Vec<Rule>, Vec<Box<[u8]>>) =
            offers.into_iter().map(|offer| (offer.rule, offer.encoded)).unzip();
        let mut state = self.state.lock();
        let State { ports, book, tunnels, .. } = &mut *state;
        let (names, routes) = (ports.names(), ports.routes());
        let world = World { ports: &names, routes: &routes, resolver: &self.resolver };
        let plan = book.plan_put(rules, &world)?;
        let (changed, unchanged) = (plan.put.len(), plan.unchanged);
        if dry_run || changed == 0 {
            return Ok((changed, unchanged));
        }
        let taken =
            |(index, rule): &(usize, Rule)| Some((rule.id.clone(), std::mem::take(encoded.get_mut(*index)?)));
        let put_rules = plan.put.iter().filter_map(taken).collect();
        self.store.write(&Change { put_rules, ..Change::default() })?;
        let touched = book.apply(plan, &world, tunnels);
        self.publish(&mut state, touched)?;
        Ok((changed, unchanged))
    }

    /// Deletes rules: all or none. Returns how many.
    ///
    /// # Errors
    /// An id that is not there, or the state cannot be written; nothing has changed then.
    pub fn delete_rules(&self, ids: &[String]) -> Result<usize, HostError> {
        let mut state = self.state.lock();
        let State { ports, book, tunnels, .. } = &mut *state;
        let plan = book.plan_delete(ids)?;
        let deleted = plan.delete.len();
        let delete_rules = plan.delete.iter().map(ToString::to_string).collect();
        self.store.write(&Change { delete_rules, ..Change::default() })?;
        let (names, routes) = (ports.names(), ports.routes());
        let world = World { ports: &names, routes: &routes, resolver: &self.resolver };
        let touched = book.apply(plan, &world, tunnels);
        self.publish(&mut state, touched)?;
        Ok(deleted)
    }

    /// Publishes after ports have come or gone: every entry is made anew.
    fn publish_all(&self, state: &mut State, touched: Touched) -> Result<(), HostError> {
        state.ports.by_name.values_mut().for_each(|record| record.entry = None);
        self.publish(state, touched)
    }

    /// Publishes what a change touched, and waits until it is in force.
    fn publish(&self, state: &mut State, touched: Touched) -> Result<(), HostError> {
        start_rule_counters(state, &touched.slots);
        let State { ports, book, tunnels, snapshot, generation, .. } = &mut *state;
        *generation = generation.wrapping_add(1);
        let mut ingress_generation = if touched.ingress { *generation } else { snapshot.ingress_generation };
        let names = ports.names();
        let scopes = book.ingress_scopes();
        for record in ports.by_name.values_mut() {
            let name = record.config.name.as_str();
            let uplink = record.kind() == PortKind::Uplink;
            if record.entry.is_some() && !touched.ports.contains(name) && !(uplink && touched.ingress) {
                continue;
            }
            if uplink {
                ingress_generation = *generation;
            }
            let table = Arc::new(book.egress_table(name));
            record.entry = Some(Arc::new(entry(record, table, *generation, &scopes.locals_of(name))));
        }
        let mut by_id = Vec::new();
        for record in ports.by_name.values() {
            by_id.resize_with(by_id.len().max(record.id.index() + 1), || None);
            by_id[record.id.index()] = record.entry.clone();
        }
        let ingress = match touched.ingress {
            true => Arc::new(book.ingress_table(&names)),
            false => snapshot.ingress.clone(),
        };
        let next = Arc::new(Snapshot {
            ports: by_id,
            devices: ports.devices(),
            tunnels: tunnels.entries(),
            ingress,
            known_tunnels: Arc::new(scopes.known),
            ingress_generation,
        });
        *snapshot = next.clone();
        let version = self.publisher.publish(next);
        let passed = self.publisher.wait(version, PASS_TIMEOUT);
        // Without the workers' word the old tunnels are kept for good: a leak, where the other way would be a misdirected packet.
        if passed.is_ok() {
            tunnels.release(&touched.tunnels);
            book.reuse(touched.freed);
        }
        Ok(passed?)
    }

    /// Stops the workers after they have sent what they hold, and closes every device.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        if let Some(crew) = state.crew.take() {
            let late = crew.stop(DRAIN_TIMEOUT);
            if !late.is_empty() {
                tracing::warn!("stopped before everything was sent: {}", late.join(", "));
            }
        }
        for (name, record) in std::mem::take(&mut state.ports.by_name) {
            if let Some(device) = record.device
                && let Err(error) = device.close(Vec::new())
            {
                tracing::warn!("port {name:?}: {error}");
            }
        }
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

/// New rules count from zero, whoever had their slot before.
fn start_rule_counters(state: &mut State, slots: &[u32]) {
    for slot in slots {
        for member in state.crew.iter().flat_map(Crew::members) {
            member.figures.tally.rules.prepare(*slot);
        }
        let baseline = raw_rule_counts(state, *slot);
        let index = *slot as usize;
        if state.rule_baselines.len() <= index {
            state.rule_baselines.resize(index + 1, (0, 0));
        }
        state.rule_baselines[index] = baseline;
    }
}
