//! The time-stamp counter: the only clock that the packet path reads.
//!
//! It counts at a constant rate on every machine that DPDK supports, is equal across cores, and costs some 20
//! cycles, without a system call.

use crate::eal::Eal;

/// The counter now, in ticks.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: rdtsc is part of x86-64 and touches no memory.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        // SAFETY: it reads a counter and touches no memory.
        unsafe { forebay_dpdk_sys::fb_tsc_now() }
    }
}

/// Ticks per second, as EAL measured it.
#[must_use]
pub fn hz(eal: Eal) -> u64 {
    eal.tsc_hz()
}
