//! Packet memory: a fixed number of segments, made at the start, handed out and taken back.
//!
//! A pool lives as long as the process. Packets may sit in queues, rings and devices after everyone who knew the
//! pool is gone, and each must find its way home; so a pool is never freed and a handle is a plain pointer.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use forebay_dpdk_sys as sys;

use crate::burst::PacketBurst;
use crate::eal::Eal;
use crate::error::{PoolError, words};
use crate::packet::Packet;

/// Bytes free before a packet's data when it is allocated or received: room to put headers in front.
pub const HEADROOM_BYTES: u16 = sys::layout::HEADROOM_BYTES;

/// Data bytes of a segment that hold a 1500-byte MTU with any encapsulation, and every driver's wishes.
pub const DEFAULT_DATA_ROOM_BYTES: u16 = 2048;

/// Segments that each registered thread keeps at hand: four bursts, so that a thread goes to the shared ring
/// only every few bursts. DPDK allows 512.
const CACHE_PACKETS: u32 = 256;

/// What a segment costs besides its buffer: the mbuf, the pool's header and trailer, padding.
const SEGMENT_OVERHEAD_BYTES: u64 = 256;

/// Makes the names unique: DPDK wants them so, users need not care.
static NEXT_POOL: AtomicU32 = AtomicU32::new(0);

/// A pool of packet segments, kept for the life of the process.
#[derive(Debug, Clone)]
pub struct PacketPool {
    raw: NonNull<sys::RteMempool>,
    capacity: u32,
    data_room_bytes: u16,
}

// SAFETY: a mempool with the default operations may be used by any thread at any time, registered or not.
unsafe impl Send for PacketPool {}
// SAFETY: as above.
unsafe impl Sync for PacketPool {}

impl PacketPool {
    /// Makes a pool of `packets` segments that hold `data_room_bytes` of data each, beside [`HEADROOM_BYTES`].
    ///
    /// # Errors
    /// No packets, segments too long, or too little memory.
    pub fn new(_eal: Eal, name: &str, packets: u32, data_room_bytes: u16) -> Result<Self, PoolError> {
        if packets == 0 {
            return Err(PoolError::Empty(name.to_owned()));
        }
        let Some(buffer_bytes) = data_room_bytes.checked_add(HEADROOM_BYTES) else {
            let limit_bytes = u16::MAX - HEADROOM_BYTES;
            return Err(PoolError::DataRoom { name: name.to_owned(), data_room_bytes, limit_bytes });
        };
        // DPDK's rule: a cache must be flushable, 1.5 times its size within the pool. Small pools do without,
        // since segments in one thread's cache are out of reach of the others.
        let cache = if packets >= 8 * CACHE_PACKETS { CACHE_PACKETS } else { 0 };
        let number = NEXT_POOL.fetch_add(1, Ordering::Relaxed);
        let unique = CString::new(format!("forebay_pool_{number}")).unwrap_or_default();
        let mut error = 0;
        // SAFETY: EAL runs (`_eal`); the name is copied; `error` outlives the call.
        let raw = unsafe { sys::fb_pool_create(unique.as_ptr(), packets, cache, buffer_bytes, &mut error) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, capacity: packets, data_room_bytes }),
            None => Err(PoolError::NoMemory {
                name: name.to_owned(),
                packets,
                data_room_bytes,
                needed_mib: (u64::from(packets) * (u64::from(buffer_bytes) + SEGMENT_OVERHEAD_BYTES)) >> 20,
                reason: words(error),
            }),
        }
    }

    /// An empty packet of one segment; `None` when the pool is empty.
    #[inline]
    #[must_use]
    pub fn allocate(&self) -> Option<Packet> {
        // SAFETY: the pool lives for ever; the call gives null or a segment that nobody else has.
        NonNull::new(unsafe { sys::fb_packet_alloc(self.raw.as_ptr()) })
            .map(|raw| unsafe { Packet::from_raw(raw) })
    }

    /// Adds `count` empty packets to the burst at once, cheaper than one by one. False, and nothing changed, when the
    /// pool has fewer or the burst less room.
    #[inline]
    #[must_use]
    pub fn allocate_into(&self, burst: &mut PacketBurst, count: usize) -> bool {
        if count > burst.spare() {
            return false;
        }
        // SAFETY: the pool lives for ever; the burst has room for `count`, of which all are written or none.
        unsafe {
            let done = sys::fb_packet_alloc_bulk(self.raw.as_ptr(), burst.spare_raw(), count as u32) == 0;
            burst.added(if done { count } else { 0 });
            done
        }
    }

    /// A packet with these bytes, of as many segments as they need; `None` when the pool has too few.
    #[must_use]
    pub fn allocate_with(&self, bytes: &[u8]) -> Option<Packet> {
        let room = usize::from(self.data_room_bytes).max(1);
        let mut pieces = bytes.chunks(room);
        let mut packet = self.allocate()?;
        packet
            .append(pieces.next().unwrap_or_default().len())?
            .copy_from_slice(&bytes[..bytes.len().min(room)]);
        let mut rest = Vec::with_capacity(bytes.len() / room);
        for piece in pieces {
            let mut segment = self.allocate()?;
            segment.append(piece.len())?.copy_from_slice(piece);
            rest.push(segment);
        }
        packet.join_all(rest).then_some(packet)
    }

    /// Segments of the pool.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Segments that are out: in packets, and in the receive queues of devices.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool lives for ever; counting only reads.
        unsafe { sys::fb_pool_in_use(self.raw.as_ptr()) }
    }

    /// Data bytes that a segment holds beside its headroom.
    #[must_use]
    pub fn data_room_bytes(&self) -> u16 {
        self.data_room_bytes
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::RteMempool {
        self.raw.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eal::tests::eal;

    #[test]
    fn gives_what_it_has_and_takes_it_back() {
        let pool = PacketPool::new(eal(), "test", 7, 64).unwrap();
        assert_eq!((pool.capacity(), pool.in_use()), (7, 0));
        let packets: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!((packets.len(), pool.in_use()), (7, 7));
        drop(packets);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn fills_bursts_all_or_nothing() {
        let pool = PacketPool::new(eal(), "test", 127, 64).unwrap();
        let mut burst = PacketBurst::new();
        assert!(pool.allocate_into(&mut burst, 60) && pool.allocate_into(&mut burst, 4));
        assert!(!pool.allocate_into(&mut burst, 1), "the burst is full");
        assert_eq!((burst.len(), pool.in_use()), (64, 64));
        assert!(burst.iter().all(|packet| packet.is_empty() && packet.headroom() == 128));
        let mut other = PacketBurst::new();
        assert!(!pool.allocate_into(&mut other, 64), "the pool has 63 left");
        assert_eq!((other.len(), pool.in_use()), (0, 64));
        burst.clear();
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn long_bytes_make_a_chain() {
        let pool = PacketPool::new(eal(), "test", 15, 64).unwrap();
        let bytes: Vec<u8> = (0..200).collect();
        for length in [0, 1, 63, 64, 65, 128, 129, 200] {
            let packet = pool.allocate_with(&bytes[..length]).unwrap();
            assert_eq!(packet.len(), length);
            assert_eq!(packet.segment_count(), length.div_ceil(64).max(1));
            assert_eq!(packet.segments().collect::<Vec<_>>().concat(), bytes[..length]);
        }
        let too_long = vec![0; 64 * 16];
        assert!(pool.allocate_with(&too_long).is_none());
        assert_eq!(pool.in_use(), 0, "a failed allocation leaves nothing out");
    }

    #[test]
    fn errors_name_the_pool_and_the_remedy() {
        let error = PacketPool::new(eal(), "huge", 1_000_000, 2048).unwrap_err().to_string();
        assert!(error.contains("\"huge\"") && error.contains("memory_mib"), "{error}");
        assert_eq!(PacketPool::new(eal(), "none", 0, 64).unwrap_err(), PoolError::Empty("none".into()));
        let error = PacketPool::new(eal(), "wide", 1, u16::MAX).unwrap_err();
        assert!(matches!(error, PoolError::DataRoom { limit_bytes: 65407, .. }), "{error}");
    }
}
