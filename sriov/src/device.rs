//! A device: opened from its spec, used through its queues, closed after the last of them.
//!
//! Control of devices is DPDK's least reentrant part, so one lock stands around all of it. A device that fails half-way
//! is undone by the same code that closes a whole one.

use std::ffi::{CString, c_void};
use std::io;
use std::sync::Arc;

use forebay_dpdk_sys as sys;
use parking_lot::ReentrantMutex;
use sys::layout;

use crate::af_packet::{self, Membership};
use crate::capabilities::Capabilities;
use crate::claim::Claim;
use crate::device_plan::{FRAME_OVERHEAD_BYTES, mtu_limit};
use crate::device_spec::DeviceSpec;
use crate::eal::Eal;
use crate::error::{DeviceError, words};
use crate::netdev;
use crate::pool::PacketPool;
use crate::precheck::precheck;
use crate::queue::{RxQueue, TxQueue};
use crate::tap_signals::NoFreeSignals;
use crate::trouble::{LinkMemory, Trouble};
use crate::vf::Functions;
use crate::vhost::{self, Door, GuestQueues, Rings};
use crate::wake::Teller;

pub use forebay_dpdk_sys::PortStats as DeviceStats;

/// Around every call that probes, configures, asks or closes. Reentrant, because a device that fails while it is
/// opened is closed under it.
static CONTROL: ReentrantMutex<()> = ReentrantMutex::new(());

/// Smallest MTU that IPv4 allows (RFC 791).
const SMALLEST_MTU_BYTES: u16 = 68;

const SEE_LOG: &str = "DPDK's lines on stderr say more";

/// How a device is to be opened.
#[derive(Debug, Clone)]
pub struct DeviceOptions<'a> {
    /// The MAC address to set; `None` leaves the device's own.
    pub mac: Option<[u8; 6]>,
    /// Bytes of the longest packet without its Ethernet header.
    pub mtu: u16,
    /// Receive and transmit queues wanted; a device has at least one, and not more than it is able to.
    pub queues: u16,
    /// Descriptors of a receive queue.
    pub rx_descriptors: u16,
    /// Descriptors of a transmit queue.
    pub tx_descriptors: u16,
    /// Where received packets come from.
    pub pool: &'a PacketPool,
    /// Whether frames to other MAC addresses are received too. Multicast always is.
    pub promiscuous: bool,
}

impl<'a> DeviceOptions<'a> {
    /// Options for an ordinary port: MTU 1500, one queue of 512 descriptors each way, promiscuous.
    #[must_use]
    pub fn new(pool: &'a PacketPool) -> Self {
        Self {
            mac: None,
            mtu: 1500,
            queues: 1,
            rx_descriptors: 512,
            tx_descriptors: 512,
            pool,
            promiscuous: true,
        }
    }
}

/// An open device.
#[derive(Debug)]
pub struct Device {
    open: Arc<OpenDevice>,
    queues: Vec<(RxQueue, TxQueue)>,
    /// Every receive queue wakes who waits for it.
    tells: bool,
    link: LinkMemory,
}

impl Device {
    /// Opens and starts a device.
    ///
    /// # Errors
    /// What the device stands on is missing, in use or forbidden, the options do not suit it, or DPDK refuses. The
    /// device is then as it was before.
    pub fn open(_eal: Eal, spec: &DeviceSpec, options: &DeviceOptions<'_>) -> Result<Self, DeviceError> {
        let _control = CONTROL.lock();
        check(spec, options)?;
        let spec = &Functions::of_this_host()
            .resolve(spec)
            .map_err(|error| DeviceError::NoVf { device: spec.to_string(), reason: error.to_string() })?;
        // SAFETY: both read numbers.
        let (used, limit) = unsafe { (sys::fb_port_count(), sys::fb_port_limit()) };
        if used >= limit {
            return Err(DeviceError::NoPortLeft { device: spec.to_string(), limit });
        }
        let claim = Claim::take(spec)?;
        precheck(spec)?;
        let _signals = matches!(spec, DeviceSpec::Tap { .. }).then(NoFreeSignals::hold);

        let wanted = options.queues.min(spec.queue_limit());
        let mut open = OpenDevice::probe(spec, claim, wanted, options)?;
        let queues = open.configure(wanted, options)?;
        open.attach(options)?;
        open.start()?;
        open.let_in()?;

        let linearize = !open.capabilities().multi_segment_tx() && !spec.takes_chains();
        let open = Arc::new(open);
        let mut tells = true;
        let pair = |queue| {
            let teller = open.teller(queue, options);
            tells &= !matches!(teller, Teller::Silent);
            let receive = RxQueue::new(Arc::clone(&open), queue, open.capacity(options), teller);
            (receive, TxQueue::new(Arc::clone(&open), queue, options.mtu, linearize))
        };
        let queues = (0..queues).map(pair).collect();
        Ok(Self { open, queues, tells, link: LinkMemory::default() })
    }

    /// DPDK's number of the port; received packets carry it.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.open.port
    }

    /// What the device was opened from.
    #[must_use]
    pub fn spec(&self) -> &DeviceSpec {
        &self.open.spec
    }

    /// Name of DPDK's driver.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.open.driver
    }

    /// The MAC address: the device's, or the one asked for where the device has none.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.open.mac
    }

    /// The MTU, bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.open.mtu
    }

    /// Queues each way.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.open.queues
    }

    /// The queues, each exactly once: a second call gives none.
    #[must_use]
    pub fn take_queues(&mut self) -> Vec<(RxQueue, TxQueue)> {
        std::mem::take(&mut self.queues)
    }

    /// What the device is able to do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.open.capabilities().with_rx_interrupts(self.tells)
    }

    /// Whether it fills in UDP checksums where [asked](crate::Packet::request_udp_checksum_v6).
    #[must_use]
    pub fn computes_udp_checksums(&self) -> bool {
        self.open.computes_udp_checksums()
    }

    /// Whether the link is up. A system call for devices that stand on a kernel interface. A tap interface that was
    /// moved to another network namespace counts as up: from here nobody can tell.
    #[must_use]
    pub fn link_up(&self) -> bool {
        if let Some(name) = self.open.spec.netdev() {
            let here = netdev::index(name) == Some(self.open.if_index);
            let moved = !here && matches!(self.open.spec, DeviceSpec::Tap { .. });
            return moved || (here && netdev::is_running(name).unwrap_or(false));
        }
        let _control = CONTROL.lock();
        // SAFETY: the port is open.
        let up = unsafe { sys::fb_port_link_up(self.open.port) == 1 };
        self.link.seen(up);
        up
    }

    /// What has befallen the device since the last call. It passes no packets then, until it is closed and opened again; one
    /// that goes away holds up whoever takes it until it is closed. Some drivers do not tell; there [`Self::link_up`] must
    /// be asked from time to time.
    #[must_use]
    pub fn take_trouble(&self) -> Option<Trouble> {
        // SAFETY: exchanges a number.
        let events = unsafe { sys::fb_port_take_events(self.open.port) };
        if events & sys::EVENT_GOES_AWAY != 0 {
            return Some(Trouble::GoesAway);
        }
        let was_reset = events & sys::EVENT_WAS_RESET != 0 || self.link.take_reset(&self.open.driver);
        was_reset.then_some(Trouble::WasReset)
    }

    /// Of a vhost port, what its guest uses of it.
    #[must_use]
    pub fn guest_queues(&self) -> Option<GuestQueues> {
        self.open.rings().map(|rings| rings.guest())
    }

    /// The device's own counters; zeroes where the driver has none.
    #[must_use]
    pub fn device_stats(&self) -> DeviceStats {
        let _control = CONTROL.lock();
        let mut stats = DeviceStats::default();
        // SAFETY: the port is open and `stats` is written as a whole or not at all.
        if unsafe { sys::fb_port_stats(self.open.port, &mut stats) } == 0 {
            stats
        } else {
            DeviceStats::default()
        }
    }

    /// Closes the device now, given its queues back. Merely dropping everything closes it too.
    ///
    /// # Errors
    /// Other queue handles are still held, or DPDK does not let go of the device.
    pub fn close(self, queues: Vec<(RxQueue, TxQueue)>) -> Result<(), DeviceError> {
        let Self { open, queues: own, .. } = self;
        drop((queues, own));
        match Arc::try_unwrap(open) {
            Ok(mut open) => open.shut(),
            Err(open) => {
                let holders = Arc::strong_count(&open) - 1;
                Err(DeviceError::StillHeld { device: open.spec.to_string(), holders })
            }
        }
    }
}

// Devices and queues move between threads; a queue that two threads could use at once would not compile.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Device>();
    is_send::<RxQueue>();
    is_send::<TxQueue>();
    is_send::<crate::PacketBurst>();
};

/// What is not a matter of the device's state.
fn check(spec: &DeviceSpec, options: &DeviceOptions<'_>) -> Result<(), DeviceError> {
    let bad = |value: String, reason: &str| {
        Err(DeviceError::BadValue { device: spec.to_string(), value, reason: reason.to_owned() })
    };
    if options.mtu < SMALLEST_MTU_BYTES {
        return bad(format!("mtu = {}", options.mtu), "IPv4 needs at least 68");
    }
    if options.queues == 0 || options.rx_descriptors == 0 || options.tx_descriptors == 0 {
        return bad("0 queues or descriptors".into(), "a device needs at least one of each");
    }
    if options.mac.is_some_and(|mac| mac == [0; 6] || mac[0] & 1 != 0) {
        let mac = crate::device_plan::mac_text(options.mac.unwrap_or_default());
        return bad(format!("mac = {mac}"), "an interface's MAC address is neither zero nor multicast");
    }
    let needed_bytes = spec.needed_data_room_bytes(options.mtu);
    let pool_bytes = options.pool.data_room_bytes();
    if needed_bytes > u32::from(pool_bytes) {
        let device = spec.to_string();
        return Err(DeviceError::BuffersTooSmall { device, mtu: options.mtu, needed_bytes, pool_bytes });
    }
    Ok(())
}

/// The device itself, shared by the `Device` and its queues; closed when the last of them goes.
#[derive(Debug)]
pub(crate) struct OpenDevice {
    spec: DeviceSpec,
    port: u16,
    info: sys::PortInfo,
    driver: String,
    mac: [u8; 6],
    mtu: u16,
    queues: u16,
    if_index: u32,
    door: Option<Door>,
    rings: Option<Arc<Rings>>,
    started: bool,
    closed: bool,
    _membership: Option<Membership>,
    _claim: Claim,
}

impl OpenDevice {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn queue_count(&self) -> u16 {
        self.queues
    }

    /// Of a vhost port, the rings of its guest.
    pub(crate) fn rings(&self) -> Option<&Arc<Rings>> {
        self.rings.as_ref()
    }

    /// Packets that a receive queue holds.
    fn capacity(&self, options: &DeviceOptions<'_>) -> u16 {
        match self.spec {
            DeviceSpec::Vhost { .. } => vhost::RING_PACKETS,
            _ => options.rx_descriptors,
        }
    }

    pub(crate) fn has_foreign_tags(&self) -> bool {
        matches!(self.spec, DeviceSpec::Pci { .. })
    }

    fn computes_udp_checksums(&self) -> bool {
        self.tx_offloads() & layout::TX_OFFLOAD_UDP_CKSUM != 0
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.info.rx_offloads, self.info.tx_offloads, self.info.rss_flow_types)
    }

    /// How a queue of the started device tells that packets wait.
    fn teller(&self, queue: u16, options: &DeviceOptions<'_>) -> Teller {
        match &self.spec {
            DeviceSpec::Tap { .. } => Teller::tap(self.port, queue),
            DeviceSpec::Memif { .. } => Teller::memif(self.port, queue, options.pool.as_ptr()),
            DeviceSpec::AfPacket { .. } => match af_packet::socket_of(self.port, queue, self.if_index) {
                Some(socket) => Teller::File(socket),
                None => Teller::Silent,
            },
            DeviceSpec::Null { extras } if extras.get("size").is_none() => Teller::Never,
            _ => Teller::Silent,
        }
    }

    fn failed(&self, step: &'static str, error: i32) -> DeviceError {
        failed(&self.spec, step, error)
    }

    /// Makes DPDK find the device and give it a port.
    fn probe(
        spec: &DeviceSpec,
        claim: Claim,
        queues: u16,
        options: &DeviceOptions<'_>,
    ) -> Result<Self, DeviceError> {
        let door = Door::of(spec)?;
        let known = door.as_ref().map(|door| door.disguise(spec));
        let known = known.as_ref().unwrap_or(spec);
        let text = known.devargs(queues, options.mtu, options.rx_descriptors, options.mac);
        let devargs = CString::new(text).unwrap_or_default();
        let mut port = 0;
        // SAFETY: EAL runs, the arguments outlive the calls, and `port` has room for the one port asked for.
        let (result, found) = unsafe {
            match sys::fb_device_probe(devargs.as_ptr()) {
                0 => (0, sys::fb_ports_of(devargs.as_ptr(), &mut port, 1)),
                error => (error, 0),
            }
        };
        if result != 0 || found == 0 {
            return Err(failed(spec, "attach it", if result == 0 { -libc::ENODEV } else { result }));
        }
        let mut open = Self {
            spec: spec.clone(),
            port,
            info: sys::PortInfo::default(),
            driver: String::new(),
            mac: [0; 6],
            mtu: options.mtu,
            queues: 0,
            if_index: spec.netdev().and_then(netdev::index).unwrap_or(0),
            door,
            rings: None,
            started: false,
            closed: false,
            _membership: None,
            _claim: claim,
        };
        // SAFETY: the port exists, and `info` is written as a whole.
        match unsafe { sys::fb_port_info(port, &mut open.info) } {
            0 => {
                let name = open.info.driver.split(|&byte| byte == 0).next().unwrap_or_default();
                open.driver = String::from_utf8_lossy(name).into_owned();
                Ok(open)
            }
            error => Err(open.failed("ask it for its limits", error)),
        }
    }

    /// Sets up queues, offloads and MTU; gives the number of queues.
    fn configure(&mut self, wanted: u16, options: &DeviceOptions<'_>) -> Result<u16, DeviceError> {
        self.queues = wanted.min(self.info.max_rx_queues).min(self.info.max_tx_queues).max(1);
        let limit = mtu_limit(&self.info);
        if options.mtu > limit && !self.spec.bears_any_mtu() {
            return Err(DeviceError::MtuTooLarge {
                device: self.spec.to_string(),
                driver: self.driver.clone(),
                mtu: options.mtu,
                limit,
                remedy: "lower the mtu; longer packets pass by af_packet, for instance over a veth pair",
            });
        }
        let room = options.pool.data_room_bytes();
        // A tap without scatter swallows frames longer than a buffer without a word, and looks for the next one in the
        // same call for as long as they come; and its far end sets the length as it likes.
        let is_tap = matches!(self.spec, DeviceSpec::Tap { .. });
        let is_long = is_tap || u32::from(options.mtu) + FRAME_OVERHEAD_BYTES > u32::from(room);
        let config = sys::PortConfig {
            rx_offloads: if is_long { self.info.rx_offloads & layout::RX_OFFLOAD_SCATTER } else { 0 },
            tx_offloads: self.tx_offloads(),
            // The kernel spreads flows over the queues of its own interfaces.
            rss_flow_types: match self.spec {
                DeviceSpec::Pci { .. } if self.queues > 1 => self.info.rss_flow_types,
                _ => 0,
            },
            queues: self.spec.queue_pairs(self.queues),
            rx_descriptors: self.spec.rx_descriptors(options.rx_descriptors, room),
            tx_descriptors: options.tx_descriptors,
            mtu: options.mtu.min(limit),
            rx_interrupts: u16::from(is_tap),
            ..sys::PortConfig::default()
        };
        // SAFETY: the port exists and is stopped; pools live for ever.
        match unsafe { sys::fb_port_configure(self.port, &config, options.pool.as_ptr()) } {
            0 => Ok(self.queues),
            error => Err(self.failed("configure its queues", error)),
        }
    }

    /// What is switched on of what the device does for packets that are sent. Checksums are left to hardware: what drivers of
    /// other devices compute, they compute as we do.
    fn tx_offloads(&self) -> u64 {
        let wanted = match self.spec {
            DeviceSpec::Pci { .. } => layout::TX_OFFLOAD_MULTI_SEGS | layout::TX_OFFLOAD_UDP_CKSUM,
            _ => layout::TX_OFFLOAD_MULTI_SEGS,
        };
        self.info.tx_offloads & wanted
    }

    /// MTU, MAC address and promiscuity, before the start.
    fn attach(&mut self, options: &DeviceOptions<'_>) -> Result<(), DeviceError> {
        let mtu = self.mtu.min(mtu_limit(&self.info));
        let result = match self.spec.sets_mtu() {
            // SAFETY: the port is configured.
            true => unsafe { sys::fb_port_set_mtu(self.port, mtu) },
            false => 0,
        };
        if result != 0 && result != -libc::ENOTSUP {
            return Err(self.failed("set its MTU", result));
        }
        self.attach_mac(options.mac)?;
        if let DeviceSpec::AfPacket { iface, .. } = &self.spec {
            self._membership =
                Some(self.attach_interface(iface, options).map_err(|error| DeviceError::Step {
                    device: self.spec.to_string(),
                    step: "set up its interface",
                    reason: error.to_string(),
                    remedy: "run as root, or grant CAP_NET_ADMIN and CAP_NET_RAW",
                })?);
        }
        if self.spec.sets_promiscuity() {
            // Drivers without either hear everything, so their refusal is no error.
            // SAFETY: the port is configured.
            unsafe {
                if options.promiscuous {
                    sys::fb_port_promiscuous(self.port);
                }
                sys::fb_port_all_multicast(self.port);
            }
        }
        Ok(())
    }

    fn attach_mac(&mut self, wanted: Option<[u8; 6]>) -> Result<(), DeviceError> {
        if let Some(mac) = wanted {
            // SAFETY: the port is configured; six bytes are read.
            let result = unsafe { sys::fb_port_set_mac(self.port, mac.as_ptr()) };
            if result != 0 && self.spec.has_mac() {
                return Err(self.failed("set its MAC address", result));
            }
            self.mac = mac;
            return Ok(());
        }
        // SAFETY: the port exists; six bytes are written.
        match unsafe { sys::fb_port_mac(self.port, self.mac.as_mut_ptr()) } {
            0 => Ok(()),
            error => Err(self.failed("ask for its MAC address", error)),
        }
    }

    /// An af_packet interface: at least the MTU, no echo of the host's own packets, promiscuous while we live.
    fn attach_interface(&self, name: &str, options: &DeviceOptions<'_>) -> io::Result<Membership> {
        if netdev::mtu(name)? < u32::from(options.mtu) {
            netdev::set_mtu(name, options.mtu)?;
        }
        af_packet::ignore_outgoing(self.if_index)?;
        Membership::join(self.if_index, options.promiscuous)
    }

    fn start(&mut self) -> Result<(), DeviceError> {
        // SAFETY: the port is configured.
        match unsafe { sys::fb_port_start(self.port) } {
            0 => {
                self.started = true;
                // Before the start a driver may tell of a reset that it makes itself. Without the telling all else works.
                // SAFETY: the port is started.
                let _ = unsafe { sys::fb_port_watch(self.port) };
                Ok(())
            }
            error => Err(self.failed("start it", error)),
        }
    }

    /// Of a vhost port: lets the guest in, now that it is known what it is offered.
    fn let_in(&mut self) -> Result<(), DeviceError> {
        let Some(door) = &self.door else { return Ok(()) };
        self.rings = Rings::of(self.port);
        door.open(self.port).map_err(|error| DeviceError::Step {
            device: self.spec.to_string(),
            step: "let its guest in",
            reason: error.to_string(),
            remedy: "see the kernel's reason",
        })
    }

    /// Stops, closes and removes the device, once.
    fn shut(&mut self) -> Result<(), DeviceError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let _control = CONTROL.lock();
        if let Some(door) = &self.door {
            door.close();
            // SAFETY: the port is not closed yet.
            unsafe { sys::fb_vhost_forget(self.port) };
        }
        // SAFETY: the port exists, and no queue handle is left that could use it: `self` is owned or last.
        let (stopped, closed, removed) = unsafe {
            let device: *mut c_void = sys::fb_port_device(self.port);
            let stopped = if self.started { sys::fb_port_stop(self.port) } else { 0 };
            let closed = sys::fb_port_close(self.port);
            (stopped, closed, if device.is_null() { 0 } else { sys::fb_device_remove(device) })
        };
        for (step, result) in [("stop it", stopped), ("close it", closed), ("remove it", removed)] {
            if result != 0 {
                return Err(self.failed(step, result));
            }
        }
        Ok(())
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // Nobody is left to tell; DPDK has written the reason to the log.
        let _ = self.shut();
    }
}

fn failed(spec: &DeviceSpec, step: &'static str, error: i32) -> DeviceError {
    let remedy = match -error {
        // The tap driver answers everything with one number, and its log is silenced for its false alarms.
        libc::EINVAL if matches!(spec, DeviceSpec::Tap { .. }) => {
            "run as root, or grant CAP_NET_ADMIN; see: dmesg"
        }
        libc::EPERM | libc::EACCES => "run as root, or grant CAP_NET_ADMIN and CAP_NET_RAW",
        libc::ENOMEM => "raise memory_mib in [dpdk], or lower descriptors and queues",
        libc::EBUSY | libc::EEXIST => "another process or port has it",
        _ => SEE_LOG,
    };
    DeviceError::Step { device: spec.to_string(), step, reason: words(error), remedy }
}
