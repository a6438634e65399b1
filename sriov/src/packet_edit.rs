//! Growing, trimming and straightening packets, across segments.
//!
//! The first segment is the common case and is inlined; what crosses segments is kept out of the way. Every method
//! either does all it was asked or says no and leaves the bytes as they were.

use std::{ptr, slice};

use forebay_dpdk_sys as sys;
use sys::layout;

use crate::packet::{Packet, data_start, tailroom_of};

impl Packet {
    /// Puts `count` bytes in front and gives them for writing; their content is stale until written. `None` when
    /// the headroom is too short.
    #[inline(always)]
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        let head = self.head_mut();
        let length = u16::try_from(count).ok().filter(|&length| length <= head.data_off)?;
        let data_len = head.data_len.checked_add(length)?;
        head.data_off -= length;
        head.data_len = data_len;
        head.pkt_len = head.pkt_len.wrapping_add(u32::from(length));
        // SAFETY: the bytes are within the buffer: they were headroom.
        Some(unsafe { slice::from_raw_parts_mut(data_start(head), count) })
    }

    /// As [`Self::prepend`], for a number of bytes that is known when this is compiled.
    #[inline(always)]
    pub fn prepend_array<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.prepend(N)?.first_chunk_mut()
    }

    /// Puts `count` bytes behind the last segment's and gives them for writing; their content is stale until
    /// written. `None` when the tailroom is too short.
    #[inline]
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        // SAFETY: the last segment belongs to the chain, which is borrowed for writing.
        let last = unsafe { &mut *self.last() };
        let length = u16::try_from(count).ok().filter(|_| count <= tailroom_of(last))?;
        // SAFETY: the end of the data is within the buffer.
        let start = unsafe { data_start(last).add(usize::from(last.data_len)) };
        last.data_len += length;
        let head = self.head_mut();
        head.pkt_len = head.pkt_len.wrapping_add(u32::from(length));
        // SAFETY: the bytes are within the buffer: they were tailroom.
        Some(unsafe { slice::from_raw_parts_mut(start, count) })
    }

    /// Takes `count` bytes off the front, and with them the segments that become empty, but never the last one.
    /// False, and nothing changed, when the packet is shorter.
    #[inline(always)]
    pub fn trim_front(&mut self, count: usize) -> bool {
        let head = self.head_mut();
        if count < usize::from(head.data_len) || (count == usize::from(head.data_len) && head.next.is_null())
        {
            head.data_off += count as u16;
            head.data_len -= count as u16;
            head.pkt_len = head.pkt_len.wrapping_sub(count as u32);
            return true;
        }
        self.trim_front_segments(count)
    }

    #[cold]
    fn trim_front_segments(&mut self, mut count: usize) -> bool {
        if count > self.chain_len() {
            return false;
        }
        loop {
            let head = self.head_mut();
            let length = usize::from(head.data_len);
            if count < length || head.next.is_null() {
                // The chain was long enough, so here `count <= length`.
                head.data_off += count as u16;
                head.data_len -= count as u16;
                head.pkt_len = head.pkt_len.wrapping_sub(count as u32);
                return true;
            }
            count -= length;
            self.drop_head();
        }
    }

    /// Frees the first segment; the next one, which must exist, becomes the packet's head.
    fn drop_head(&mut self) {
        let old = self.0;
        let head = self.head_mut();
        let Some(mut next) = ptr::NonNull::new(head.next) else { return };
        // SAFETY: the next segment belongs to the chain and is not the head, so the two do not alias.
        let new = unsafe { next.as_mut() };
        let of_buffer = layout::EXTERNAL | layout::INDIRECT;
        new.pkt_len = head.pkt_len.wrapping_sub(u32::from(head.data_len));
        new.nb_segs = head.nb_segs.saturating_sub(1).max(1);
        new.port = head.port;
        new.ol_flags = (head.ol_flags & !of_buffer) | (new.ol_flags & of_buffer);
        new.packet_type = head.packet_type;
        new.vlan_tci = head.vlan_tci;
        new.hash_rss = head.hash_rss;
        new.tx_offload = head.tx_offload;
        head.next = ptr::null_mut();
        self.0 = next;
        // SAFETY: the old head is out of the chain and owned by nobody else.
        unsafe { sys::fb_packet_free_segment(old.as_ptr()) };
    }

    /// Takes `count` bytes off the end. False, and nothing changed, when the packet is shorter.
    #[inline]
    pub fn trim_end(&mut self, count: usize) -> bool {
        self.len().checked_sub(count).is_some_and(|length| self.truncate(length))
    }

    /// Cuts the packet to `length` bytes and frees the segments behind. False, and nothing changed, when the packet
    /// is shorter.
    #[inline]
    pub fn truncate(&mut self, length: usize) -> bool {
        let head = self.head_mut();
        if head.next.is_null() && length <= usize::from(head.data_len) {
            head.data_len = length as u16;
            head.pkt_len = length as u32;
            return true;
        }
        self.truncate_segments(length)
    }

    #[cold]
    fn truncate_segments(&mut self, length: usize) -> bool {
        if length > self.chain_len() {
            return false;
        }
        let mut rest = length;
        let mut count = 1;
        let mut last = self.0.as_ptr();
        // SAFETY: `last` walks the owned chain; it is long enough, so the walk ends before null. What is cut off
        // behind is owned by nobody else and freed.
        unsafe {
            while rest > usize::from((*last).data_len) {
                rest -= usize::from((*last).data_len);
                last = (*last).next;
                count += 1;
            }
            (*last).data_len = rest as u16;
            let tail = std::mem::replace(&mut (*last).next, ptr::null_mut());
            if !tail.is_null() {
                sys::fb_packet_free(tail);
            }
        }
        let head = self.head_mut();
        head.nb_segs = count;
        head.pkt_len = length as u32;
        true
    }

    /// Makes the first `count` bytes contiguous in the first segment, by moving bytes of the following ones into
    /// it. False, and nothing changed, when the packet is shorter or the segment's buffer too small.
    #[inline]
    pub fn pull_up(&mut self, count: usize) -> bool {
        count <= usize::from(self.head().data_len) || self.pull_up_segments(count)
    }

    #[cold]
    fn pull_up_segments(&mut self, count: usize) -> bool {
        let buffer = usize::from(self.head().buf_len);
        if count > buffer || count > self.chain_len() || self.is_shared() {
            return false;
        }
        let head = self.head_mut();
        let room = buffer - usize::from(head.data_off);
        if count > room {
            let start = data_start(head);
            head.data_off = (buffer - count) as u16;
            // SAFETY: source and target are within the buffer, since the data gets shorter than `count`.
            unsafe { ptr::copy(start, data_start(head), usize::from(head.data_len)) };
        }
        while usize::from(head.data_len) < count {
            // SAFETY: the chain has `count` bytes, so a next segment exists; it does not alias the head.
            let next = unsafe { &mut *head.next };
            let length = next.data_len.min((count - usize::from(head.data_len)) as u16);
            // SAFETY: the source is the next segment's data; the target ends within the head's buffer.
            unsafe {
                let end = data_start(head).add(usize::from(head.data_len));
                ptr::copy_nonoverlapping(data_start(next), end, usize::from(length));
            }
            head.data_len += length;
            next.data_off += length;
            next.data_len -= length;
            if next.data_len == 0 {
                let emptied = head.next;
                head.next = std::mem::replace(&mut next.next, ptr::null_mut());
                head.nb_segs = head.nb_segs.saturating_sub(1).max(1);
                // SAFETY: the segment is out of the chain and owned by nobody else.
                unsafe { sys::fb_packet_free_segment(emptied) };
            }
        }
        true
    }

    /// Makes the packet one segment. False, and nothing changed, when it does not fit into the first one's buffer.
    #[inline]
    pub fn linearize(&mut self) -> bool {
        if self.head().next.is_null() {
            return true;
        }
        // Segments without bytes at the end are not pulled up by length; cut them off.
        let length = self.chain_len();
        self.pull_up(length) && self.truncate(length)
    }

    /// Writes `bytes` over the packet's from `offset` on. False, and nothing changed, when the packet is shorter.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.chain_len()) || self.is_shared() {
            return false;
        }
        let (mut skip, mut rest) = (offset, bytes);
        let mut next = self.0.as_ptr();
        // SAFETY: null or a segment of the chain, which is borrowed for writing.
        while let Some(segment) = unsafe { next.as_mut() } {
            let length = usize::from(segment.data_len);
            if skip < length {
                let (now, later) = rest.split_at(rest.len().min(length - skip));
                // SAFETY: the target is within the segment's data.
                unsafe { ptr::copy_nonoverlapping(now.as_ptr(), data_start(segment).add(skip), now.len()) };
                (skip, rest) = (0, later);
            } else {
                skip -= length;
            }
            next = segment.next;
        }
        true
    }

    /// Chains `tail` behind. Errors: gives it back when the chain would get longer than DPDK counts.
    pub fn join(&mut self, tail: Packet) -> Result<(), Packet> {
        let (segments, bytes) = (tail.head().nb_segs, tail.head().pkt_len);
        let head = self.head();
        let (Some(segments), Some(bytes)) =
            (head.nb_segs.checked_add(segments), head.pkt_len.checked_add(bytes))
        else {
            return Err(tail);
        };
        let last = self.last();
        let mut tail = tail.into_raw();
        // SAFETY: the tail was owned alone and now belongs to this chain; `last` is its end.
        unsafe {
            tail.as_mut().nb_segs = 1;
            (*last).next = tail.as_ptr();
        }
        let head = self.head_mut();
        head.nb_segs = segments;
        head.pkt_len = bytes;
        Ok(())
    }

    /// Chains single segments behind, in order; false when there are too many.
    pub(crate) fn join_all(&mut self, tails: Vec<Packet>) -> bool {
        // From the back, so that each step finds its end at once.
        let mut chain: Option<Packet> = None;
        for mut segment in tails.into_iter().rev() {
            if let Some(behind) = chain.take()
                && segment.join(behind).is_err()
            {
                return false;
            }
            chain = Some(segment);
        }
        chain.is_none_or(|chain| self.join(chain).is_ok())
    }

    /// Bytes of the chain, by its segments.
    pub(crate) fn chain_len(&self) -> usize {
        self.segments().map(<[u8]>::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eal::tests::eal;
    use crate::pool::PacketPool;

    const ROOM: usize = 32;

    fn pool() -> PacketPool {
        PacketPool::new(eal(), "test", 127, ROOM as u16).unwrap()
    }

    /// A packet whose segments have these lengths, and the bytes that it holds.
    fn chain(pool: &PacketPool, lengths: &[usize]) -> (Packet, Vec<u8>) {
        let bytes: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|i| (i as u8).wrapping_add(1)).collect();
        let mut at = 0;
        let mut packet: Option<Packet> = None;
        for &length in lengths {
            let segment = pool.allocate_with(&bytes[at..at + length]).unwrap();
            at += length;
            match &mut packet {
                None => packet = Some(segment),
                Some(packet) => packet.join(segment).unwrap(),
            }
        }
        (packet.unwrap(), bytes)
    }

    /// The packet holds these bytes, and its own books agree.
    #[track_caller]
    fn holds(packet: &Packet, bytes: &[u8]) {
        assert_eq!(packet.segments().collect::<Vec<_>>().concat(), bytes);
        assert_eq!(packet.len(), bytes.len());
        assert_eq!(packet.segment_count(), packet.segments().count());
    }

    const SHAPES: &[&[usize]] = &[
        &[0],
        &[1],
        &[32],
        &[0, 0],
        &[0, 5],
        &[5, 0],
        &[1, 1, 1, 1],
        &[3, 0, 5, 1],
        &[0, 0, 7, 0, 0],
        &[32, 32, 32],
        &[10, 32, 1, 20],
    ];

    #[test]
    fn trims_and_truncates_like_a_vector() {
        let pool = pool();
        for shape in SHAPES {
            let total: usize = shape.iter().sum();
            for count in 0..=total + 2 {
                let (mut packet, bytes) = chain(&pool, shape);
                let done = packet.trim_front(count);
                assert_eq!(done, count <= total, "{shape:?} trim_front({count})");
                holds(&packet, if done { &bytes[count..] } else { &bytes });
                if done && !packet.is_empty() && count > 0 {
                    assert!(
                        !packet.data().is_empty() || shape.contains(&0),
                        "{shape:?} keeps an emptied head"
                    );
                }

                let (mut packet, bytes) = chain(&pool, shape);
                let done = packet.trim_end(count);
                assert_eq!(done, count <= total, "{shape:?} trim_end({count})");
                holds(&packet, if done { &bytes[..total - count] } else { &bytes });

                let (mut packet, bytes) = chain(&pool, shape);
                assert_eq!(packet.truncate(count), count <= total, "{shape:?} truncate({count})");
                holds(&packet, &bytes[..count.min(total)]);
            }
        }
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn pulls_up_like_a_vector() {
        let pool = pool();
        let buffer = ROOM + usize::from(crate::HEADROOM_BYTES);
        for shape in SHAPES.iter().copied().chain([&[32; 8][..]]) {
            let total: usize = shape.iter().sum();
            for count in 0..=total + 2 {
                let (mut packet, bytes) = chain(&pool, shape);
                let done = packet.pull_up(count);
                assert_eq!(done, count <= total && count <= buffer, "{shape:?} pull_up({count})");
                holds(&packet, &bytes);
                assert!(!done || packet.data().len() >= count);
            }
            let (mut packet, bytes) = chain(&pool, shape);
            let done = packet.linearize();
            assert_eq!(done, total <= buffer, "{shape:?} linearize");
            holds(&packet, &bytes);
            assert!(!done || packet.segment_count() == 1);
        }
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn random_edits_agree_with_a_vector() {
        let pool = pool();
        // A xorshift generator: the same edits in every run.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        for _ in 0..500 {
            let lengths: Vec<usize> = (0..1 + random(5)).map(|_| random(ROOM + 1)).collect();
            let (mut packet, mut model) = chain(&pool, &lengths);
            for _ in 0..20 {
                let count = random(40);
                match random(7) {
                    0 if packet.trim_front(count) => drop(model.drain(..count)),
                    1 if packet.trim_end(count) => model.truncate(model.len() - count),
                    2 => {
                        if let Some(front) = packet.prepend(count) {
                            front.fill(0xaa);
                            model.splice(..0, std::iter::repeat_n(0xaa, count));
                        }
                    }
                    3 => {
                        if let Some(back) = packet.append(count) {
                            back.fill(0xbb);
                            model.extend(std::iter::repeat_n(0xbb, count));
                        }
                    }
                    4 => {
                        packet.pull_up(count);
                    }
                    5 => {
                        let offset = random(60);
                        let fits = offset + count <= model.len();
                        assert_eq!(packet.write_at(offset, &vec![0xcc; count]), fits);
                        if fits {
                            model[offset..offset + count].fill(0xcc);
                        }
                    }
                    6 if random(4) == 0 => {
                        packet.linearize();
                    }
                    _ => {}
                }
                holds(&packet, &model);
            }
        }
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let pool = pool();
        let (mut packet, bytes) = chain(&pool, &[10]);
        assert!(packet.prepend(129).is_none());
        assert!(packet.prepend(usize::MAX).is_none());
        assert!(packet.append(23).is_none());
        assert!(packet.append(70_000).is_none());
        assert!(!packet.write_at(usize::MAX, &[1]));
        holds(&packet, &bytes);
        assert_eq!((packet.headroom(), packet.tailroom()), (128, 22));
        packet.prepend(128).unwrap().fill(0);
        packet.append(22).unwrap().fill(0);
        assert_eq!((packet.headroom(), packet.tailroom(), packet.len()), (0, 0, 160));
    }

    #[test]
    fn a_new_head_keeps_what_was_known() {
        let pool = pool();
        let (mut packet, _) = chain(&pool, &[4, 4]);
        packet.head_mut().ol_flags = layout::RX_VLAN | layout::RX_VLAN_STRIPPED | layout::RX_RSS_HASH;
        packet.head_mut().vlan_tci = 9;
        packet.head_mut().hash_rss = 11;
        packet.head_mut().port = 3;
        assert!(packet.trim_front(4));
        assert_eq!((packet.segment_count(), packet.port(), packet.flow_hash()), (1, 3, Some(11)));
        assert_eq!(packet.take_stripped_vlan(), Some(9));
    }
}
