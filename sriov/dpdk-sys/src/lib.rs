//! Declarations of the C shim over libdpdk (`shim.c`, `memif_wake.c`, `vhost.c`), and of the part of `rte_mbuf` that Rust touches.
//!
//! Most of what Forebay needs from DPDK is `static inline` in headers full of packed and SIMD types, so a narrow,
//! hand-written shim stands between: no bindgen, no libclang. What both languages must agree on is checked at
//! compile time, in C by `_Static_assert`s made from `layout.rs`, in Rust by the `const` block below. Nothing here
//! is safe to call as it stands; `forebay-sriov` gives these calls their rules.

// Declaring foreign functions is unsafe by nature; there is no logic in this crate.
#![allow(unsafe_code)]

pub mod layout;

use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU16, AtomicU64};

use layout::offset;

/// An opaque `struct rte_mempool`.
#[repr(C)]
pub struct RteMempool {
    _opaque: [u8; 0],
}

/// One segment of a packet: the fields of `struct rte_mbuf` that Rust reads or writes, at their places.
#[repr(C, align(64))]
pub struct RteMbuf {
    /// Start of the segment's buffer.
    pub buf_addr: *mut u8,
    _buf_iova: u64,
    /// Bytes from `buf_addr` to the first byte of data.
    pub data_off: u16,
    /// How many owners the segment has. Drivers change it, so it is atomic.
    pub refcnt: AtomicU16,
    /// Segments of the chain; counts only in the first.
    pub nb_segs: u16,
    /// The port that the packet came from.
    pub port: u16,
    /// Offload flags, see [`layout`].
    pub ol_flags: u64,
    /// What the device found the packet to be.
    pub packet_type: u32,
    /// Bytes of the whole chain; counts only in the first segment.
    pub pkt_len: u32,
    /// Bytes of data in this segment.
    pub data_len: u16,
    /// The VLAN tag, in host order, if `ol_flags` has `RX_VLAN`.
    pub vlan_tci: u16,
    /// The device's flow hash, if `ol_flags` has `RX_RSS_HASH`.
    pub hash_rss: u32,
    _hash_high: u32,
    _vlan_tci_outer: u16,
    /// Bytes of the segment's buffer.
    pub buf_len: u16,
    /// The pool that the segment goes back to.
    pub pool: *mut RteMempool,
    /// The next segment, or null.
    pub next: *mut RteMbuf,
    /// Header lengths for transmit offloads.
    pub tx_offload: u64,
    _rest: [u8; 48],
}

const _: () = {
    assert!(size_of::<RteMbuf>() == layout::MBUF_SIZE_BYTES);
    assert!(offset_of!(RteMbuf, buf_addr) == offset::BUF_ADDR);
    assert!(offset_of!(RteMbuf, data_off) == offset::DATA_OFF);
    assert!(offset_of!(RteMbuf, refcnt) == offset::REFCNT);
    assert!(offset_of!(RteMbuf, nb_segs) == offset::NB_SEGS);
    assert!(offset_of!(RteMbuf, port) == offset::PORT);
    assert!(offset_of!(RteMbuf, ol_flags) == offset::OL_FLAGS);
    assert!(offset_of!(RteMbuf, packet_type) == offset::PACKET_TYPE);
    assert!(offset_of!(RteMbuf, pkt_len) == offset::PKT_LEN);
    assert!(offset_of!(RteMbuf, data_len) == offset::DATA_LEN);
    assert!(offset_of!(RteMbuf, vlan_tci) == offset::VLAN_TCI);
    assert!(offset_of!(RteMbuf, hash_rss) == offset::HASH_RSS);
    assert!(offset_of!(RteMbuf, buf_len) == offset::BUF_LEN);
    assert!(offset_of!(RteMbuf, pool) == offset::POOL);
    assert!(offset_of!(RteMbuf, next) == offset::NEXT);
    assert!(offset_of!(RteMbuf, tx_offload) == offset::TX_OFFLOAD);
};

/// What DPDK says about a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortInfo {
    /// Name of the driver, NUL-terminated.
    pub driver: [u8; 32],
    /// Receive offloads that the port is able to do.
    pub rx_offloads: u64,
    /// Transmit offloads that the port is able to do.
    pub tx_offloads: u64,
    /// Flow types that RSS is able to hash.
    pub rss_flow_types: u64,
    /// The kernel interface behind the port, or 0.
    pub if_index: u32,
    /// Longest frame that the driver claims to receive, bytes.
    pub max_rx_frame_bytes: u32,
    /// Most receive queues.
    pub max_rx_queues: u16,
    /// Most transmit queues.
    pub max_tx_queues: u16,
    /// Smallest MTU, bytes.
    pub min_mtu: u16,
    /// Largest MTU, bytes.
    pub max_mtu: u16,
}
const _: () = assert!(size_of::<PortInfo>() == 72);

/// How a port is to be set up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortConfig {
    /// Receive offloads to switch on.
    pub rx_offloads: u64,
    /// Transmit offloads to switch on.
    pub tx_offloads: u64,
    /// Flow types for RSS to hash; 0 leaves RSS off.
    pub rss_flow_types: u64,
    /// Receive queues, and as many transmit queues.
    pub queues: u16,
    /// Descriptors of each receive queue, before the device's limits.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue, before the device's limits.
    pub tx_descriptors: u16,
    /// MTU, bytes.
    pub mtu: u16,
    /// Whether receive queues are to tell by descriptors that they hold packets.
    pub rx_interrupts: u16,
    /// Nothing.
    pub fill: [u8; 6],
}
const _: () = assert!(size_of::<PortConfig>() == 40);

/// A receive queue of a memif device, as the driver keeps it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MemifQueue {
    device: *mut c_void,
    queue: *mut c_void,
}

impl Default for MemifQueue {
    fn default() -> Self {
        Self { device: std::ptr::null_mut(), queue: std::ptr::null_mut() }
    }
}

/// The rings that the guest of a vhost port has enabled, a bit for each queue pair. DPDK's thread that speaks with the guest
/// writes them; workers read them.
#[repr(C)]
#[derive(Debug)]
pub struct VhostRings {
    /// Rings that the guest sends on.
    pub from_guest: AtomicU64,
    /// Rings that the guest receives on.
    pub to_guest: AtomicU64,
    /// Not 0: the guest has enabled a ring that has no bit here.
    pub beyond: AtomicU64,
    /// How often a guest has gone.
    pub departures: AtomicU64,
}
const _: () = assert!(size_of::<VhostRings>() == 32);

/// A port's own counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device dropped because no receive buffer was free.
    pub rx_missed: u64,
    /// Broken packets received.
    pub rx_errors: u64,
    /// Packets that the device did not send.
    pub tx_errors: u64,
    /// Times that the pool had no packet for the device.
    pub rx_no_memory: u64,
}
const _: () = assert!(size_of::<PortStats>() == 64);

/// Of [`fb_port_take_events`]: the device was reset from outside.
pub const EVENT_WAS_RESET: u32 = 1;
/// Of [`fb_port_take_events`]: the device is being taken away.
pub const EVENT_GOES_AWAY: u32 = 2;

#[allow(missing_docs)] // Each is its namesake in the C files, described there.
unsafe extern "C" {
    pub fn fb_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    pub fn fb_eal_cleanup() -> c_int;
    pub fn fb_eal_has_hugepages() -> c_int;
    pub fn fb_tsc_hz() -> u64;
    pub fn fb_tsc_now() -> u64;
    pub fn fb_runtime_dir() -> *const c_char;
    pub fn fb_strerror(error: c_int) -> *const c_char;
    pub fn fb_thread_register() -> c_int;
    pub fn fb_thread_unregister();
    pub fn fb_lcore_id() -> u32;

    pub fn fb_pool_create(
        name: *const c_char,
        packets: u32,
        cache: u32,
        buffer_bytes: u16,
        error: *mut c_int,
    ) -> *mut RteMempool;
    pub fn fb_pool_in_use(pool: *const RteMempool) -> u32;
    pub fn fb_pool_available(pool: *const RteMempool) -> u32;
    pub fn fb_packet_alloc(pool: *mut RteMempool) -> *mut RteMbuf;
    pub fn fb_packet_alloc_bulk(pool: *mut RteMempool, packets: *mut *mut RteMbuf, count: u32) -> c_int;
    pub fn fb_packet_free(packet: *mut RteMbuf);
    pub fn fb_packet_free_segment(segment: *mut RteMbuf);
    pub fn fb_packet_free_bulk(packets: *mut *mut RteMbuf, count: u32);

    pub fn fb_rx_burst(port: u16, queue: u16, packets: *mut *mut RteMbuf, count: u16) -> u16;
    pub fn fb_tx_burst(port: u16, queue: u16, packets: *mut *mut RteMbuf, count: u16) -> u16;

    pub fn fb_rx_descriptor(port: u16, queue: u16) -> c_int;
    pub fn fb_af_packet_descriptor(port: u16, queue: u16) -> c_int;
    pub fn fb_memif_find(port: u16, queue: u16, pool: *const RteMempool, out: *mut MemifQueue) -> c_int;
    pub fn fb_memif_arm(queue: *const MemifQueue) -> c_int;
    pub fn fb_memif_disarm(queue: *const MemifQueue);

    pub fn fb_vhost_attach(port: u16, path: *const c_char) -> c_int;
    pub fn fb_vhost_forget(port: u16);
    pub fn fb_vhost_hurry(path: *const c_char) -> c_int;
    pub fn fb_vhost_rings(port: u16) -> *const VhostRings;

    pub fn fb_port_limit() -> u16;
    pub fn fb_tap_queue_limit() -> u16;
    pub fn fb_port_count() -> u16;
    pub fn fb_port_is_valid(port: u16) -> c_int;
    pub fn fb_device_probe(devargs: *const c_char) -> c_int;
    pub fn fb_port_device(port: u16) -> *mut c_void;
    pub fn fb_device_remove(device: *mut c_void) -> c_int;
    pub fn fb_ports_of(devargs: *const c_char, ports: *mut u16, room: u16) -> u16;
    pub fn fb_port_info(port: u16, out: *mut PortInfo) -> c_int;
    pub fn fb_port_configure(port: u16, config: *const PortConfig, pool: *mut RteMempool) -> c_int;
    pub fn fb_port_start(port: u16) -> c_int;
    pub fn fb_port_stop(port: u16) -> c_int;
    pub fn fb_port_close(port: u16) -> c_int;
    pub fn fb_port_set_mtu(port: u16, mtu: u16) -> c_int;
    pub fn fb_port_promiscuous(port: u16) -> c_int;
    pub fn fb_port_all_multicast(port: u16) -> c_int;
    pub fn fb_port_mac(port: u16, mac: *mut u8) -> c_int;
    pub fn fb_port_set_mac(port: u16, mac: *const u8) -> c_int;
    pub fn fb_port_link_up(port: u16) -> c_int;
    pub fn fb_port_watch(port: u16) -> c_int;
    pub fn fb_port_take_events(port: u16) -> u32;
    pub fn fb_port_stats(port: u16, out: *mut PortStats) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_links_and_answers_without_eal() {
        // SAFETY: both read constants; neither needs EAL.
        let (limit, text) = unsafe { (fb_port_limit(), std::ffi::CStr::from_ptr(fb_strerror(libc::ENOMEM))) };
        assert!(limit >= 32, "DPDK was built with room for only {limit} ports");
        assert_eq!(text.to_str(), Ok("Cannot allocate memory"));
    }
}
