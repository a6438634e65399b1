//! The errors of EAL, pools and devices. Each names the object, the value and the remedy.

use std::ffi::CStr;

use forebay_dpdk_sys as sys;

/// Why EAL did not start, or a thread did not join it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EalError {
    /// Huge pages are required, and too few are free.
    #[error(
        "hugepages: {free_mib} MiB are free in huge pages, memory_mib = {needed_mib} needs more \
         (make them: echo {pages} > /proc/sys/vm/nr_hugepages; or set hugepages = \"auto\")"
    )]
    TooFewHugepages {
        /// Memory in free huge pages, MiB.
        free_mib: u64,
        /// Memory asked for, MiB.
        needed_mib: u64,
        /// Pages of the default size that the machine would need in all.
        pages: u64,
    },
    /// The memory size makes no sense.
    #[error("memory_mib = {0}: must be between 16 and 1048576")]
    BadMemory(u32),
    /// The name would not do as a file name.
    #[error("EAL name {0:?}: must be 1 to 32 letters, digits, '-' or '_'")]
    BadName(String),
    /// EAL runs already, with other options.
    #[error(
        "EAL runs already with other options (it starts once per process: start it with one set of options)"
    )]
    AlreadyStarted,
    /// EAL failed before in this process; DPDK allows no second try.
    #[error("EAL failed to start before in this process (restart the process to try again)")]
    FailedBefore,
    /// `rte_eal_init` failed.
    #[error(
        "EAL does not start: {reason} (its log on stderr says more; it needs root and {memory_mib} MiB of memory)"
    )]
    Init {
        /// DPDK's words for the error.
        reason: String,
        /// Memory asked for, MiB.
        memory_mib: u32,
    },
    /// No identity is left for another thread.
    #[error("EAL takes no further thread: {0} (DPDK's RTE_MAX_LCORE bounds them: use fewer workers)")]
    Thread(String),
}

/// Why a packet pool was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The segments would be longer than DPDK counts.
    #[error("packet pool {name:?}: {data_room_bytes} bytes a segment are too many (at most {limit_bytes})")]
    DataRoom {
        /// The pool.
        name: String,
        /// Bytes asked for.
        data_room_bytes: u16,
        /// Most bytes a segment holds beside its headroom.
        limit_bytes: u16,
    },
    /// A pool without packets serves nobody.
    #[error("packet pool {0:?}: needs at least one packet")]
    Empty(String),
    /// The memory does not suffice, or DPDK refused.
    #[error(
        "packet pool {name:?}: no room for {packets} packets of {data_room_bytes} bytes, about {needed_mib} MiB: \
         {reason} (raise memory_mib in [dpdk])"
    )]
    NoMemory {
        /// The pool.
        name: String,
        /// Packets asked for.
        packets: u32,
        /// Bytes of each.
        data_room_bytes: u16,
        /// What that takes, MiB.
        needed_mib: u64,
        /// DPDK's words for the error.
        reason: String,
    },
}

/// Why a device was not opened, or not closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// DPDK has no place for another port.
    #[error(
        "device {device}: all {limit} ports that DPDK was built for are in use \
         (tenants behind a VLAN tag need no port of their own: device = \"vlan:PORT/ID\")"
    )]
    NoPortLeft {
        /// The device, as written in the configuration.
        device: String,
        /// How many ports DPDK was built for.
        limit: u16,
    },
    /// What the device stands on does not exist.
    #[error("device {device}: {missing} does not exist ({remedy})")]
    Missing {
        /// The device, as written in the configuration.
        device: String,
        /// What was looked for.
        missing: String,
        /// What to do.
        remedy: String,
    },
    /// The VF cannot be found.
    #[error("device {device}: {reason}")]
    NoVf {
        /// The device, as written in the configuration.
        device: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// Something else holds what the device stands on.
    #[error("device {device}: {what} is in use ({remedy})")]
    InUse {
        /// The device, as written in the configuration.
        device: String,
        /// What is held.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The kernel does not let this process at it.
    #[error("device {device}: no permission for {what} (run as root, or grant {capability})")]
    NoPermission {
        /// The device, as written in the configuration.
        device: String,
        /// What was refused.
        what: String,
        /// The capability that would do.
        capability: &'static str,
    },
    /// The PCI function belongs to a driver that DPDK cannot share.
    #[error(
        "device {device}: bound to {driver}, not to vfio-pci (forebay vf bind {address}; see: forebay vf list)"
    )]
    NotBoundToVfio {
        /// The device, as written in the configuration.
        device: String,
        /// The PCI address.
        address: String,
        /// The kernel driver that holds it, or "no driver".
        driver: String,
    },
    /// The device does not carry packets that long.
    #[error("device {device}: mtu = {mtu} is more than its driver {driver} allows, {limit} ({remedy})")]
    MtuTooLarge {
        /// The device, as written in the configuration.
        device: String,
        /// DPDK's driver.
        driver: String,
        /// The MTU asked for, bytes.
        mtu: u16,
        /// The largest MTU, bytes.
        limit: u16,
        /// What to do.
        remedy: &'static str,
    },
    /// The pool's segments are too short for a driver that does not chain them.
    #[error(
        "device {device}: mtu = {mtu} needs packet buffers of {needed_bytes} bytes, the pool has {pool_bytes} \
         (make the pool with larger buffers, or lower the mtu)"
    )]
    BuffersTooSmall {
        /// The device, as written in the configuration.
        device: String,
        /// The MTU asked for, bytes.
        mtu: u16,
        /// Bytes that a segment must hold beside its headroom.
        needed_bytes: u32,
        /// Bytes that the pool's segments hold.
        pool_bytes: u16,
    },
    /// A value of the device's options makes no sense.
    #[error("device {device}: {value} is not valid: {reason}")]
    BadValue {
        /// The device, as written in the configuration.
        device: String,
        /// The value.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A step of DPDK's or the kernel's failed.
    #[error("device {device}: cannot {step}: {reason} ({remedy})")]
    Step {
        /// The device, as written in the configuration.
        device: String,
        /// What was tried.
        step: &'static str,
        /// DPDK's or the kernel's words for the error.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Queues of the device are still held.
    #[error(
        "device {device}: {holders} of its queue handles are still held (it closes when the last is dropped)"
    )]
    StillHeld {
        /// The device, as written in the configuration.
        device: String,
        /// How many handles are held.
        holders: usize,
    },
}

/// DPDK's words for an error number, negated or not.
pub(crate) fn words(error: i32) -> String {
    // SAFETY: the text is constant or thread-local and copied at once; every number has some text.
    let text = unsafe { CStr::from_ptr(sys::fb_strerror(error.saturating_abs())) };
    text.to_string_lossy().into_owned()
}
