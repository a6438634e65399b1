//! A long, zeroed slice in memory of its own, for tables that are read at random: in huge pages where the kernel has
//! them to give, so that a lookup does not pay for the translation of its address as well.
//!
//! The pages come from `mmap` and are advised to be huge (transparent huge pages), not taken from the pool of reserved
//! ones: that pool belongs to packet memory. They appear, zeroed, on first touch: what is never used costs nothing. To make
//! a huge page takes milliseconds where memory is in pieces, so whoever must not wait has them made before
//! ([`HugeSlice::populate`]). Invariant: the mapping is as long as the slice, is owned
//! by it alone, and holds nothing but what is valid when all of its bytes are zero.

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::{io, slice};

use zerocopy::FromZeros;

/// Mappings are a multiple of this long and begin at one, so that each huge page of x86-64 and aarch64 fits.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A zeroed slice in pages of its own.
#[derive(Debug)]
pub struct HugeSlice<T> {
    start: NonNull<T>,
    length: usize,
    mapping: NonNull<libc::c_void>,
    mapped_bytes: usize,
}

// SAFETY: the memory is owned by the value alone, like that of a boxed slice.
unsafe impl<T: Send> Send for HugeSlice<T> {}
// SAFETY: as above; a shared reference gives shared references only.
unsafe impl<T: Sync> Sync for HugeSlice<T> {}

impl<T: FromZeros> HugeSlice<T> {
    /// A slice of `length` zeroed items.
    ///
    /// # Errors
    /// The system has no address space of that size to give.
    pub fn new(length: usize) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= HUGE_PAGE_BYTES, "pages are not aligned enough") };
        const { assert!(!std::mem::needs_drop::<T>(), "nothing drops the items") };
        let too_long = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = size_of::<T>().checked_mul(length.max(1)).ok_or_else(too_long)?;
        // One page more than needed, since the mapping begins where the kernel likes.
        let mapped_bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE_BYTES)
            .and_then(|bytes| bytes.checked_add(HUGE_PAGE_BYTES))
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or_else(too_long)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory in use.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(mapping).ok_or_else(too_long)?;
        let skip = mapping.as_ptr().align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        // SAFETY: at most one huge page is skipped, and the mapping is longer than that.
        let start = unsafe { mapping.byte_add(skip) };
        // A kernel without transparent huge pages says no; ordinary pages do as well, slower.
        // SAFETY: the range is part of the mapping; the advice changes no contents.
        unsafe { libc::madvise(start.as_ptr(), mapped_bytes - HUGE_PAGE_BYTES, libc::MADV_HUGEPAGE) };
        Ok(Self { start: start.cast(), length, mapping, mapped_bytes })
    }
}

impl<T> HugeSlice<T> {
    /// Has the system make the pages of these items now, not when one is written. False where it cannot (Linux before 5.14,
    /// or no memory left): then they appear on first touch.
    pub fn populate(&self, items: Range<usize>) -> bool {
        /// `MADV_POPULATE_WRITE` of Linux 5.14, which the oldest C libraries do not name.
        const POPULATE_WRITE: libc::c_int = 23;
        let end = items.end.min(self.length) * size_of::<T>();
        let start = items.start * size_of::<T>() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        // The mapping is whole pages, at least up to the one that the last item ends in.
        let bytes = end.next_multiple_of(HUGE_PAGE_BYTES).saturating_sub(start);
        // SAFETY: the range begins in the mapping at a page of it, and ends in it; the advice changes no contents, and may
        // come while others read and write them.
        bytes == 0
            || unsafe {
                libc::madvise(self.start.as_ptr().byte_add(start).cast(), bytes, POPULATE_WRITE) == 0
            }
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `length` items stand there: zeroed by the kernel, which `T` allows, or written since; the alignment
        // was checked, and the memory lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> DerefMut for HugeSlice<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and whole; its items need no drop, as `new` has checked.
        unsafe { libc::munmap(self.mapping.as_ptr(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_writable_to_its_ends() {
        let mut slice = HugeSlice::<[u64; 16]>::new(100_000).unwrap();
        assert_eq!(slice.len(), 100_000);
        assert!(slice.iter().step_by(997).all(|item| *item == [0; 16]));
        assert_eq!(slice.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        slice[0] = [1; 16];
        slice[99_999] = [2; 16];
        assert_eq!((slice[0][15], slice[99_999][15]), (1, 2));
    }

    #[test]
    fn pages_are_made_before_they_are_written() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let mut slice = HugeSlice::<[u64; 16]>::new(1 << 20).unwrap();
        slice[0] = [7; 16];
        let before = resident();
        if !slice.populate(1..(1 << 20)) {
            eprintln!("this system makes pages on first touch only");
            return;
        }
        assert!(resident() >= before + 100 * (1 << 20), "128 MiB, but for the first page");
        assert_eq!((slice[0], slice[(1 << 20) - 1]), ([7; 16], [0; 16]));
        assert!(slice.populate(0..usize::MAX >> 8) && slice.populate(9..9));
    }

    #[test]
    fn an_empty_one_is_empty_and_an_impossible_one_is_refused() {
        assert!(HugeSlice::<u8>::new(0).unwrap().is_empty());
        assert!(HugeSlice::<u64>::new(usize::MAX / 4).is_err());
        assert!(HugeSlice::<u64>::new(1 << 59).is_err());
    }
}
