//! A burst: up to 64 packets that travel together, on the stack, without allocation.

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::ptr;

use forebay_dpdk_sys as sys;

use crate::packet::Packet;

/// Most packets of a burst. Wide enough to hide memory latency behind prefetches, small enough that the headers of a
/// burst (64 x 2 lines) stay in a first-level cache of 32 KiB.
pub const BURST: usize = 64;

/// Up to [`BURST`] packets in order. Reads as a slice; frees in bulk what it still holds when dropped.
pub struct PacketBurst {
    /// The first `len` are packets.
    slots: [MaybeUninit<Packet>; BURST],
    len: usize,
}

impl PacketBurst {
    /// An empty burst.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: [const { MaybeUninit::uninit() }; BURST], len: 0 }
    }

    /// Whether no further packet fits.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == BURST
    }

    /// Packets that still fit.
    #[inline]
    #[must_use]
    pub fn spare(&self) -> usize {
        BURST - self.len
    }

    /// Adds a packet at the end. Errors: gives it back when the burst is full.
    #[inline]
    pub fn push(&mut self, packet: Packet) -> Result<(), Packet> {
        match self.slots.get_mut(self.len) {
            Some(slot) => {
                slot.write(packet);
                self.len += 1;
                Ok(())
            }
            None => Err(packet),
        }
    }

    /// Moves the packets of `other` behind these, first to last; those for which there is no room stay there.
    #[inline]
    pub fn append(&mut self, other: &mut PacketBurst) {
        let count = self.spare().min(other.len);
        // SAFETY: so many slots behind the last packet of `self` are free, so many of `other` hold packets, and the two
        // are not the same burst. The packets then have one owner: `self`, and in `other` they are counted out.
        unsafe {
            ptr::copy_nonoverlapping(other.raw_mut(), self.spare_raw(), count);
            self.added(count);
            other.taken(count);
        }
    }

    /// Takes the last packet.
    #[inline]
    pub fn pop(&mut self) -> Option<Packet> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: the slot was filled, and by the shorter length it is given up.
        Some(unsafe { self.slots[self.len].assume_init_read() })
    }

    /// Takes the packet at `index` and puts the last one in its place. `None` beyond the end.
    #[inline]
    pub fn swap_remove(&mut self, index: usize) -> Option<Packet> {
        if index >= self.len {
            return None;
        }
        let last = self.len - 1;
        self.slots.swap(index, last);
        self.pop()
    }

    /// Keeps the packets for which `keep` says so, in order, and frees the others.
    #[inline]
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Packet) -> bool) {
        let len = std::mem::take(&mut self.len);
        for index in 0..len {
            // SAFETY: each slot below the old length is read once; kept packets are written at or before it. Should
            // `keep` panic, the rest leaks, which is safe.
            let mut packet = unsafe { self.slots[index].assume_init_read() };
            if keep(&mut packet) {
                self.slots[self.len].write(packet);
                self.len += 1;
            }
        }
    }

    /// Takes the packets out, first to last; those not taken are freed with the iterator.
    #[inline]
    pub fn drain(&mut self) -> Drain<'_> {
        let len = std::mem::take(&mut self.len);
        Drain { burst: self, next: 0, len }
    }

    /// Frees all packets.
    #[inline]
    pub fn clear(&mut self) {
        let len = std::mem::take(&mut self.len);
        self.free(0, len);
    }

    /// Frees the packets in the slots from `start` to `end`, which are no longer counted by `len`.
    #[inline]
    fn free(&mut self, start: usize, end: usize) {
        if start < end {
            // SAFETY: the slots hold packets that nothing counts any more; `Packet` is a bare mbuf pointer.
            unsafe { sys::fb_packet_free_bulk(self.raw_mut().add(start), (end - start) as u32) };
        }
    }

    #[inline]
    fn raw_mut(&mut self) -> *mut *mut sys::RteMbuf {
        self.slots.as_mut_ptr().cast()
    }

    /// Where a driver may write [`Self::spare`] packets; then [`Self::added`] says how many it wrote.
    #[inline]
    pub(crate) fn spare_raw(&mut self) -> *mut *mut sys::RteMbuf {
        let len = self.len;
        // SAFETY: `len` is at most the array's length.
        unsafe { self.raw_mut().add(len) }
    }

    /// Counts packets that were written at [`Self::spare_raw`].
    ///
    /// # Safety
    /// `count` is at most [`Self::spare`], and so many owned packets stand there.
    #[inline]
    pub(crate) unsafe fn added(&mut self, count: usize) {
        debug_assert!(count <= self.spare());
        self.len += count;
    }

    /// The packets, for a driver to read.
    #[inline]
    pub(crate) fn filled_raw(&mut self) -> *mut *mut sys::RteMbuf {
        self.raw_mut()
    }

    /// Forgets the first packets, moving the others to the front.
    ///
    /// # Safety
    /// `count` is at most the length, and a driver has taken ownership of so many packets.
    #[inline]
    pub(crate) unsafe fn taken(&mut self, count: usize) {
        debug_assert!(count <= self.len);
        self.len -= count;
        if count > 0 && self.len > 0 {
            let base = self.slots.as_mut_ptr();
            // SAFETY: both ranges are within the array; the moved-from slots count no longer.
            unsafe { ptr::copy(base.add(count), base, self.len) };
        }
    }
}

impl Default for PacketBurst {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PacketBurst {
    #[inline]
    fn drop(&mut self) {
        self.clear();
    }
}

impl Deref for PacketBurst {
    type Target = [Packet];

    #[inline]
    fn deref(&self) -> &[Packet] {
        // SAFETY: the first `len` slots are packets.
        unsafe { std::slice::from_raw_parts(self.slots.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for PacketBurst {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Packet] {
        // SAFETY: the first `len` slots are packets.
        unsafe { std::slice::from_raw_parts_mut(self.slots.as_mut_ptr().cast(), self.len) }
    }
}

impl fmt::Debug for PacketBurst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketBurst").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Iterator that takes the packets out of a burst.
#[derive(Debug)]
pub struct Drain<'a> {
    burst: &'a mut PacketBurst,
    next: usize,
    len: usize,
}

impl Iterator for Drain<'_> {
    type Item = Packet;

    #[inline]
    fn next(&mut self) -> Option<Packet> {
        if self.next == self.len {
            return None;
        }
        // SAFETY: the slot holds a packet; by the step it is given up.
        let packet = unsafe { self.burst.slots[self.next].assume_init_read() };
        self.next += 1;
        Some(packet)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.len - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        self.burst.free(self.next, self.len);
    }
}

// A burst is handed to C as an array of mbuf pointers.
const _: () = assert!(size_of::<Packet>() == size_of::<*mut sys::RteMbuf>());
const _: () = assert!(size_of::<ManuallyDrop<Packet>>() == size_of::<MaybeUninit<Packet>>());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eal::tests::eal;
    use crate::pool::PacketPool;

    fn filled(pool: &PacketPool, count: u8) -> PacketBurst {
        let mut burst = PacketBurst::new();
        for i in 0..count {
            burst.push(pool.allocate_with(&[i]).unwrap()).unwrap();
        }
        burst
    }

    fn marks(burst: &[Packet]) -> Vec<u8> {
        burst.iter().map(|packet| packet.data()[0]).collect()
    }

    #[test]
    fn holds_64_and_keeps_order() {
        let pool = PacketPool::new(eal(), "test", 127, 64).unwrap();
        let mut burst = filled(&pool, 64);
        assert!(burst.is_full());
        let extra = burst.push(pool.allocate_with(&[99]).unwrap()).unwrap_err();
        assert_eq!(extra.data(), [99]);
        drop(extra);
        assert_eq!(marks(&burst), (0..64).collect::<Vec<u8>>());
        burst.retain(|packet| packet.data()[0] % 2 == 1);
        assert_eq!(marks(&burst), (0..64).filter(|i| i % 2 == 1).collect::<Vec<u8>>());
        assert_eq!(pool.in_use(), 32);
        assert_eq!(burst.swap_remove(0).map(|packet| packet.data()[0]), Some(1));
        assert_eq!(burst[0].data(), [63]);
        assert!(burst.swap_remove(31).is_none());
        assert_eq!(burst.pop().map(|packet| packet.data()[0]), Some(61));
        drop(burst);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn a_drain_frees_what_it_does_not_give() {
        let pool = PacketPool::new(eal(), "test", 63, 64).unwrap();
        let mut burst = filled(&pool, 10);
        let mut drain = burst.drain();
        assert_eq!(drain.len(), 10);
        let first: Vec<Packet> = drain.by_ref().take(3).collect();
        assert_eq!(marks(&first), [0, 1, 2]);
        drop(drain);
        assert_eq!((burst.len(), pool.in_use()), (0, 3));
        drop(first);
        filled(&pool, 20).clear();
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn what_a_driver_takes_is_taken_from_the_front() {
        let pool = PacketPool::new(eal(), "test", 63, 64).unwrap();
        let mut burst = filled(&pool, 5);
        for packet in burst.iter().take(2) {
            // SAFETY: this plays the driver, which takes the first two packets.
            unsafe { sys::fb_packet_free(packet.0.as_ptr()) };
        }
        // SAFETY: as above.
        unsafe { burst.taken(2) };
        assert_eq!(marks(&burst), [2, 3, 4]);
        drop(burst);
        assert_eq!(pool.in_use(), 0);
    }
}
