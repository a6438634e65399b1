//! Keeps the tap driver from using signals.
//!
//! By default DPDK's tap driver has the kernel send a real-time signal for every packet, and reads the interface only
//! when one has come. That costs more than the read it saves, interrupts system calls of unrelated threads, ends the
//! process by SIGIO when the signal queue is full, and loses packets' wake-ups when a read stopped for want of
//! memory. The driver polls plainly when it finds no real-time signal free, so while a tap device is set up, the free
//! ones are made to look taken.

use std::mem;

/// While this lives, no real-time signal is at its default. Two at once would restore wrongly: the device lock is
/// held around it.
pub(crate) struct NoFreeSignals {
    ours: Vec<i32>,
}

impl NoFreeSignals {
    pub(crate) fn hold() -> Self {
        // The range that the driver searches.
        let range = libc::SIGRTMIN() + 1..libc::SIGRTMAX();
        let ours = range.filter(|&signal| disposition(signal) == Some(libc::SIG_DFL)).collect();
        let held = Self { ours };
        held.set(libc::SIG_IGN);
        held
    }

    fn set(&self, disposition: libc::sighandler_t) {
        for &signal in &self.ours {
            // SAFETY: a zeroed action is valid; ignoring and default run no code of ours.
            unsafe {
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = disposition;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }
}

impl Drop for NoFreeSignals {
    fn drop(&mut self) {
        self.set(libc::SIG_DFL);
    }
}

fn disposition(signal: i32) -> Option<libc::sighandler_t> {
    // SAFETY: only reads the disposition, into a zeroed action.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action) == 0).then_some(action.sa_sigaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_taken_for_a_while_only() {
        let signal = libc::SIGRTMIN() + 5;
        assert_eq!(disposition(signal), Some(libc::SIG_DFL));
        let held = NoFreeSignals::hold();
        assert_eq!(disposition(signal), Some(libc::SIG_IGN));
        drop(held);
        assert_eq!(disposition(signal), Some(libc::SIG_DFL));
    }
}
