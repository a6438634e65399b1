//! The time-stamp counter: the only clock of the hot path.
//!
//! Cycles here are ticks of that counter, whose rate is constant on every CPU of the last fifteen years and is not the
//! core's momentary frequency. Readings of different cores agree closely but not exactly, so differences between
//! threads are taken with saturation.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the rate is measured. 10 ms: `Instant` is good to some 50 ns, which leaves an error of about 1e-5.
const CALIBRATION_MS: u64 = 10;

/// The time-stamp counter now, in cycles.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[must_use]
#[allow(unsafe_code)]
pub fn now() -> u64 {
    // SAFETY: RDTSC exists on every x86_64 CPU, touches no memory and has no preconditions; an operating system that
    // forbids it to user space (CR4.TSD) would raise a signal, not cause undefined behaviour.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The stand-in for the time-stamp counter elsewhere: nanoseconds of the monotonic clock since the first call.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Rate of the counter in cycles per second. The first call measures it and takes 10 ms: make it at start-up.
#[must_use]
pub fn hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let (wall, cycles) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(CALIBRATION_MS));
        let cycles = now().saturating_sub(cycles);
        let elapsed_ns = wall.elapsed().as_nanos().max(1);
        u64::try_from(u128::from(cycles) * 1_000_000_000 / elapsed_ns).unwrap_or(u64::MAX).max(1)
    })
}

/// Cycles as nanoseconds. For readers, not for the hot path (a wide division).
#[must_use]
pub fn to_ns(cycles: u64) -> u64 {
    u64::try_from(u128::from(cycles) * 1_000_000_000 / u128::from(hz())).unwrap_or(u64::MAX)
}

/// A duration as cycles; saturates.
#[must_use]
pub fn from_duration(duration: Duration) -> u64 {
    let cycles = duration.as_nanos().saturating_mul(u128::from(hz())) / 1_000_000_000;
    u64::try_from(cycles).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advances_on_one_thread() {
        let first = now();
        std::thread::sleep(Duration::from_micros(100));
        assert!(now() > first);
    }

    #[test]
    fn conversions_are_inverse() {
        let cycles = from_duration(Duration::from_millis(3));
        let ns = to_ns(cycles);
        assert!((2_999_990..=3_000_000).contains(&ns), "{cycles} cycles are {ns} ns");
        assert_eq!(to_ns(0), 0);
        assert_eq!(from_duration(Duration::MAX), u64::MAX);
    }
}
