//! Hints to the cache: what is needed soon is fetched while something else is worked on.

/// Bytes of a cache line on the machines that this is for.
pub const CACHE_LINE_BYTES: usize = 64;

/// Starts to fetch the cache line where a value begins, for reading. Only a hint: nothing changes but the time of a
/// later read.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_address(value);
}

/// As [`prefetch`], for the first two lines.
#[inline(always)]
pub fn prefetch_two_lines<T>(value: &T) {
    let start: *const u8 = std::ptr::from_ref(value).cast();
    prefetch_address(start);
    prefetch_address(start.wrapping_add(CACHE_LINE_BYTES));
}

/// Starts to fetch the cache line of an address, which need not be valid.
#[inline(always)]
#[allow(unsafe_code)]
pub fn prefetch_address<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint. It never faults, whatever the address, and changes no memory; every x86_64 CPU has
    // it (SSE).
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_will_do() {
        let value = [1u64; 8];
        prefetch(&value);
        prefetch_address(std::ptr::null::<u64>());
        prefetch_address((&raw const value).wrapping_add(1 << 40));
        assert_eq!(value, [1; 8]);
    }
}
