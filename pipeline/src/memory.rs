//! Memory that was freed goes back to the system.
//!
//! glibc keeps freed pages inside of its heaps for what may come. After a change of a million rules that is several times
//! what the rules themselves take, and the next such change may never come.
#![allow(unsafe_code)]

/// Gives whole pages that nobody uses back to the system. Takes up to some 100 ms after a gigabyte was freed, and may hold
/// up threads that allocate at the same time: not for workers. Does nothing where the C library is not glibc.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes the allocator's own locks, may be called by any thread at any time, and touches no memory
    // that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_pages() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_is_given_back() {
        let kept: Vec<Vec<u8>> = (0..200_000).map(|_| vec![1; 512]).collect();
        let full = resident_pages();
        let last: Vec<Vec<u8>> = kept.into_iter().step_by(50_000).collect();
        give_memory_back();
        // 100 MB were freed, 24,000 pages; other tests of this process may allocate meanwhile.
        assert!(resident_pages() + 12_000 < full, "{full} pages, then {}", resident_pages());
        assert_eq!(last.len(), 4);
    }
}
