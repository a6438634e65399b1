//! A packet: one owned chain of mbuf segments.
//!
//! Invariants, given by DPDK and kept by every method here and in `packet_edit`: a `Packet` is the only owner of its
//! chain; in each segment data starts and ends within the buffer; the chain ends with a null pointer. The bytes may
//! be anything. Lengths are never taken from the bytes, and memory is never reached by `pkt_len` or `nb_segs` (which
//! a driver could get wrong) but only by each segment's own length and the `next` pointer.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::Ordering;

use forebay_dpdk_sys as sys;
use sys::layout;

use crate::pool::PacketPool;

/// An owned packet. Dropping it returns its segments to their pools.
#[derive(Debug)]
#[repr(transparent)]
pub struct Packet(pub(crate) NonNull<sys::RteMbuf>);

// SAFETY: a packet owns its segments alone, and pools take segments back from any thread.
unsafe impl Send for Packet {}

impl Drop for Packet {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the chain is owned and not used after.
        unsafe { sys::fb_packet_free(self.0.as_ptr()) };
    }
}

/// What a device found when it checked a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumStatus {
    /// It did not look: software must.
    Unknown,
    /// It is right.
    Good,
    /// It is wrong.
    Bad,
    /// The field is not filled in, yet the bytes are whole: they never left a machine's memory. Software that sends
    /// the packet on must fill it in.
    NotFilledIn,
}

impl Packet {
    /// Takes ownership of a chain.
    ///
    /// # Safety
    /// `raw` is the head of a valid chain that nobody else owns.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::RteMbuf>) -> Self {
        Self(raw)
    }

    /// Gives up ownership of the chain.
    #[inline]
    pub(crate) fn into_raw(self) -> NonNull<sys::RteMbuf> {
        ManuallyDrop::new(self).0
    }

    #[inline]
    pub(crate) fn head(&self) -> &sys::RteMbuf {
        // SAFETY: the chain is owned by `self`, which is borrowed.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    pub(crate) fn head_mut(&mut self) -> &mut sys::RteMbuf {
        // SAFETY: the chain is owned by `self`, which is borrowed for writing.
        unsafe { self.0.as_mut() }
    }

    /// Bytes of the whole packet.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.head().pkt_len as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments of the chain.
    #[inline]
    #[must_use]
    pub fn segment_count(&self) -> usize {
        usize::from(self.head().nb_segs)
    }

    /// The bytes of the first segment.
    #[inline]
    #[must_use]
    pub fn data(&self) -> &[u8] {
        bytes_of(self.head())
    }

    /// The bytes of the first segment, for writing.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        debug_assert!(!self.is_shared(), "a shared segment must be made private before it is written");
        let head = self.head_mut();
        // SAFETY: the data is within the buffer (invariant), which belongs to this segment alone, and the pools'
        // memory is initialised.
        unsafe { slice::from_raw_parts_mut(data_start(head), usize::from(head.data_len)) }
    }

    /// Free bytes before the data of the first segment.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.head().data_off)
    }

    /// Free bytes after the data of the last segment.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        // SAFETY: the last segment belongs to the chain, which is borrowed.
        tailroom_of(unsafe { &*self.last() })
    }

    /// The segments' bytes, first to last.
    #[inline]
    #[must_use]
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: self.0.as_ptr(), _packet: PhantomData }
    }

    /// Copies bytes from `offset` on into `out`; gives how many there were to copy.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> usize {
        let mut skip = offset;
        let mut copied = 0;
        for segment in self.segments() {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let length = (segment.len() - skip).min(out.len() - copied);
            out[copied..copied + length].copy_from_slice(&segment[skip..skip + length]);
            copied += length;
            skip = 0;
            if copied == out.len() {
                break;
            }
        }
        copied
    }

    /// The port that received the packet.
    #[inline]
    #[must_use]
    pub fn port(&self) -> u16 {
        self.head().port
    }

    /// The VLAN tag that the device took out of the packet, if nobody has taken it over yet.
    #[inline]
    #[must_use]
    pub fn stripped_vlan(&self) -> Option<u16> {
        self.has_stripped_vlan().then(|| self.head().vlan_tci)
    }

    /// Whether the device took a VLAN tag out of the packet, and nobody has taken it over yet.
    #[inline]
    #[must_use]
    pub fn has_stripped_vlan(&self) -> bool {
        self.head().ol_flags & layout::RX_VLAN_STRIPPED != 0
    }

    /// The VLAN tag that the device took out of the packet, as its 16-bit TCI in host order; it is given once.
    /// Tags that stand in the packet's bytes are not concerned.
    #[inline]
    pub fn take_stripped_vlan(&mut self) -> Option<u16> {
        let head = self.head_mut();
        if head.ol_flags & layout::RX_VLAN_STRIPPED == 0 {
            return None;
        }
        head.ol_flags &= !(layout::RX_VLAN_STRIPPED | layout::RX_VLAN);
        Some(head.vlan_tci)
    }

    /// What the device found out about the IPv4 header checksum.
    #[inline]
    #[must_use]
    pub fn ip_checksum(&self) -> ChecksumStatus {
        match self.head().ol_flags & layout::RX_IP_CKSUM_MASK {
            layout::RX_IP_CKSUM_GOOD => ChecksumStatus::Good,
            layout::RX_IP_CKSUM_BAD => ChecksumStatus::Bad,
            layout::RX_IP_CKSUM_NONE => ChecksumStatus::NotFilledIn,
            _ => ChecksumStatus::Unknown,
        }
    }

    /// What the device found out about the TCP or UDP checksum.
    #[inline]
    #[must_use]
    pub fn l4_checksum(&self) -> ChecksumStatus {
        match self.head().ol_flags & layout::RX_L4_CKSUM_MASK {
            layout::RX_L4_CKSUM_GOOD => ChecksumStatus::Good,
            layout::RX_L4_CKSUM_BAD => ChecksumStatus::Bad,
            layout::RX_L4_CKSUM_NONE => ChecksumStatus::NotFilledIn,
            _ => ChecksumStatus::Unknown,
        }
    }

    /// The flow hash that the device computed, if it did.
    #[inline]
    #[must_use]
    pub fn flow_hash(&self) -> Option<u32> {
        let head = self.head();
        (head.ol_flags & layout::RX_RSS_HASH != 0).then_some(head.hash_rss)
    }

    /// Forgets everything that a device said about the packet, so that nothing said on receive is taken for a wish
    /// on transmit.
    #[inline]
    pub fn clear_offloads(&mut self) {
        let head = self.head_mut();
        head.ol_flags &= layout::EXTERNAL | layout::INDIRECT;
        head.packet_type = 0;
        head.tx_offload = 0;
    }

    /// Has the device that sends the packet compute its UDP checksum over IPv6, from the sum of the pseudo-header that stands
    /// in the field, without its complement. The headers must stand at these bytes when it leaves, and the device must be
    /// one that [computes UDP checksums](crate::Device::computes_udp_checksums).
    #[inline(always)]
    pub fn request_udp_checksum_v6(&mut self, ethernet_bytes: u8, ipv6_bytes: u8) {
        let head = self.head_mut();
        head.ol_flags |= layout::TX_IPV6 | layout::TX_UDP_CKSUM;
        // `l2_len` has seven bits, `l3_len` nine (rte_mbuf_core.h).
        head.tx_offload = u64::from(ethernet_bytes) & 0x7f | u64::from(ipv6_bytes) << 7;
    }

    /// Whether any segment's bytes have another owner too. This crate never shares segments; a driver might.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let mut next = self.0.as_ptr();
        while !next.is_null() {
            // SAFETY: the segment belongs to the borrowed chain.
            let segment = unsafe { &*next };
            if segment.refcnt.load(Ordering::Acquire) > 1 || segment.ol_flags & layout::INDIRECT != 0 {
                return true;
            }
            next = segment.next;
        }
        false
    }

    /// Replaces shared segments by a copy from `pool`; false, and nothing changed, when the pool is empty.
    pub fn make_private(&mut self, pool: &PacketPool) -> bool {
        if !self.is_shared() {
            return true;
        }
        let mut bytes = vec![0; self.segments().map(<[u8]>::len).sum()];
        self.copy_to(0, &mut bytes);
        let Some(mut copy) = pool.allocate_with(&bytes) else { return false };
        let (old, new) = (self.head(), copy.head_mut());
        new.port = old.port;
        new.ol_flags |= old.ol_flags & !(layout::EXTERNAL | layout::INDIRECT);
        new.packet_type = old.packet_type;
        new.vlan_tci = old.vlan_tci;
        new.hash_rss = old.hash_rss;
        new.tx_offload = old.tx_offload;
        *self = copy;
        true
    }

    /// Asks the CPU to bring in the first line of the packet's description: call it some packets ahead.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_line(self.0.as_ptr().cast());
    }

    /// Asks the CPU to bring in the first line of the data: call it a few packets ahead, after [`Self::prefetch`].
    #[inline]
    pub fn prefetch_header(&self) {
        prefetch_line(data_start(self.head()));
    }

    /// As [`Self::prefetch_header`], for the line before: what is put in front is written there.
    #[inline]
    pub fn prefetch_headroom(&self) {
        prefetch_line(data_start(self.head()).wrapping_sub(LINE_BYTES));
    }

    /// The last segment of the chain.
    pub(crate) fn last(&self) -> *mut sys::RteMbuf {
        let mut last = self.0.as_ptr();
        // SAFETY: every pointer is a segment of the borrowed chain, which ends with null.
        unsafe {
            while !(*last).next.is_null() {
                last = (*last).next;
            }
        }
        last
    }
}

/// Iterator over the bytes of a packet's segments.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    next: *mut sys::RteMbuf,
    _packet: PhantomData<&'a Packet>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        // SAFETY: null or a segment of the chain, which is borrowed for 'a.
        let segment: &'a sys::RteMbuf = unsafe { self.next.as_ref()? };
        self.next = segment.next;
        Some(bytes_of(segment))
    }
}

/// Where a segment's data starts.
#[inline]
pub(crate) fn data_start(segment: &sys::RteMbuf) -> *mut u8 {
    // SAFETY: a segment has a buffer, and `data_off` is within it (invariant).
    unsafe {
        std::hint::assert_unchecked(!segment.buf_addr.is_null());
        segment.buf_addr.add(usize::from(segment.data_off))
    }
}

#[inline]
pub(crate) fn bytes_of(segment: &sys::RteMbuf) -> &[u8] {
    // SAFETY: the data is within the buffer (invariant), and the pools' memory is initialised.
    unsafe { slice::from_raw_parts(data_start(segment), usize::from(segment.data_len)) }
}

#[inline]
pub(crate) fn tailroom_of(segment: &sys::RteMbuf) -> usize {
    usize::from(segment.buf_len).saturating_sub(usize::from(segment.data_off) + usize::from(segment.data_len))
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

#[inline]
fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; no address makes it fault.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eal::tests::eal;

    #[test]
    fn copies_from_any_offset() {
        let pool = PacketPool::new(eal(), "test", 31, 16).unwrap();
        let bytes: Vec<u8> = (0..50).collect();
        let packet = pool.allocate_with(&bytes).unwrap();
        assert_eq!(packet.segment_count(), 4);
        for offset in 0..=52 {
            for length in 0..=52 {
                let mut out = vec![0xff; length];
                let copied = packet.copy_to(offset, &mut out);
                let expected = bytes.get(offset..).unwrap_or_default();
                let expected = &expected[..expected.len().min(length)];
                assert_eq!(copied, expected.len());
                assert_eq!(&out[..copied], expected);
            }
        }
    }

    #[test]
    fn says_what_the_device_said_once() {
        let pool = PacketPool::new(eal(), "test", 3, 64).unwrap();
        let mut packet = pool.allocate_with(&[1, 2, 3]).unwrap();
        assert_eq!(packet.take_stripped_vlan(), None);
        assert_eq!(
            (packet.ip_checksum(), packet.l4_checksum()),
            (ChecksumStatus::Unknown, ChecksumStatus::Unknown)
        );
        assert_eq!(packet.flow_hash(), None);

        let head = packet.head_mut();
        head.ol_flags = layout::RX_VLAN
            | layout::RX_VLAN_STRIPPED
            | layout::RX_IP_CKSUM_BAD
            | layout::RX_L4_CKSUM_GOOD
            | layout::RX_RSS_HASH;
        head.vlan_tci = 0x2064;
        head.hash_rss = 77;
        assert_eq!(packet.take_stripped_vlan(), Some(0x2064));
        assert_eq!(packet.take_stripped_vlan(), None);
        assert_eq!((packet.ip_checksum(), packet.l4_checksum()), (ChecksumStatus::Bad, ChecksumStatus::Good));
        assert_eq!(packet.flow_hash(), Some(77));
        packet.head_mut().ol_flags |= layout::RX_L4_CKSUM_NONE;
        assert_eq!(packet.l4_checksum(), ChecksumStatus::NotFilledIn);

        packet.clear_offloads();
        assert_eq!((packet.ip_checksum(), packet.flow_hash()), (ChecksumStatus::Unknown, None));
        assert_eq!(packet.data(), [1, 2, 3]);
    }

    #[test]
    fn shared_segments_are_seen_and_copied() {
        let pool = PacketPool::new(eal(), "test", 7, 8).unwrap();
        let mut packet = pool.allocate_with(b"twelve bytes").unwrap();
        assert!(!packet.is_shared());
        // SAFETY: the second segment is part of the chain. A second owner is played, and taken back below.
        let second = unsafe { &*packet.head().next };
        second.refcnt.fetch_add(1, Ordering::AcqRel);
        assert!(packet.is_shared());
        let raw = packet.head().next;
        assert!(packet.make_private(&pool));
        assert!(!packet.is_shared());
        assert_eq!(packet.segments().collect::<Vec<_>>().concat(), b"twelve bytes");
        assert_eq!(pool.in_use(), 3, "the copy, and the segment that the other owner still has");
        // SAFETY: the played second owner gives its segment back.
        unsafe { sys::fb_packet_free_segment(raw) };
        drop(packet);
        assert_eq!(pool.in_use(), 0);
    }
}
