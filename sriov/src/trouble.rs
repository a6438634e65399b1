//! What befalls an open device, and how it is noticed where the driver does not tell.

use std::sync::atomic::{AtomicU8, Ordering};

/// What can befall an open device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It was reset from outside: a VF with its PF.
    WasReset,
    /// It is being taken away: unplugged, or its PF's VFs are removed.
    GoesAway,
}

/// Drivers that do not tell of a reset. Of the 82576's VFs DPDK 22.11 means to, but takes the interrupt's cause for another.
const SILENT_DRIVERS: &[&str] = &["net_e1000_igb_vf"];

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const LOST: u8 = 2;
const BACK: u8 = 3;

/// Takes a link that was lost and came back for a reset: a PF that is reset loses its link, and so do its VFs. A VF whose
/// cable was pulled is opened anew without need, which costs it half a second more.
#[derive(Debug, Default)]
pub(crate) struct LinkMemory(AtomicU8);

impl LinkMemory {
    /// To be told of each look at the link.
    pub(crate) fn seen(&self, up: bool) {
        let next = |state| match (state, up) {
            (UNKNOWN, true) => Some(UP),
            (UP, false) => Some(LOST),
            (LOST, true) => Some(BACK),
            _ => None,
        };
        // Nothing to change is no failure.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Whether the driver keeps silent and the link tells of a reset; once for each.
    pub(crate) fn take_reset(&self, driver: &str) -> bool {
        SILENT_DRIVERS.contains(&driver)
            && self.0.compare_exchange(BACK, UP, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_comes_back_is_a_reset_once() {
        let link = LinkMemory::default();
        let told = |looks: &[bool]| {
            looks.iter().for_each(|&up| link.seen(up));
            link.take_reset("net_e1000_igb_vf")
        };
        assert!(!told(&[false, false, true, true]), "it was never lost");
        assert!(!told(&[false, false]), "it is not back yet");
        assert!(told(&[true]) && !told(&[true]));
        assert!(told(&[false, true, false, true]));
        link.seen(false);
        link.seen(true);
        assert!(!link.take_reset("net_ixgbe_vf"), "its driver tells by itself");
    }
}
