//! A hint to the CPU to bring in what will be read soon.

// One instruction that no safe function of the standard library gives.
#![allow(unsafe_code)]

/// Bytes of a cache line on the machines that matter here.
const LINE_BYTES: usize = 64;

/// Asks the CPU to bring the first line of `value` into its nearest cache. Never faults, never waits.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_at(std::ptr::from_ref(value).cast());
}

/// As [`prefetch`], for the first two lines.
#[inline(always)]
pub fn prefetch_two_lines<T>(value: &T) {
    let start: *const u8 = std::ptr::from_ref(value).cast();
    prefetch_at(start);
    prefetch_at(start.wrapping_add(LINE_BYTES));
}

#[inline(always)]
fn prefetch_at(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; no address makes it fault.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
