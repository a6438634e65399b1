//! How a receive queue tells that packets wait, so that its user can sleep.
//!
//! What the drivers of DPDK 22.11 offer: tap and af_packet queues are kernel files, readable while they hold packets. memif
//! tells by an event descriptor while it is asked to, which the driver cannot do itself (see `memif_wake.c`). A null device
//! has nothing to tell. The rest do not tell: who uses them has to look.

use std::os::fd::RawFd;

use forebay_dpdk_sys as sys;

/// What a queue says to its user, who is about to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Packets wait already.
    Now,
    /// When this descriptor is readable, packets wait. It stays open as long as the queue is not used otherwise.
    Readable(RawFd),
    /// When this event descriptor (eventfd(2)) is written to, packets have come. Nobody has to read it empty, and it stays open
    /// as long as the queue is not used otherwise. Hardly ever it might not be written to: look again before long.
    Signalled(RawFd),
    /// Nobody is at the other end: look again before long.
    Unconnected,
    /// No packet will ever come.
    Never,
    /// The queue does not tell.
    Silent,
}

/// How a queue tells.
#[derive(Debug)]
pub(crate) enum Teller {
    /// A kernel file.
    File(RawFd),
    /// memif's own way.
    Memif(sys::MemifQueue),
    /// There is nothing to tell.
    Never,
    /// It does not.
    Silent,
}

// SAFETY: the pointers of a memif queue are DPDK's; they are valid as long as the device is open, and the queue's handle,
// which keeps it open and owns this, has one user at a time, on whatever thread.
unsafe impl Send for Teller {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl Sync for Teller {}

impl Teller {
    /// The file of a tap's queue, if DPDK names it.
    pub(crate) fn tap(port: u16, queue: u16) -> Self {
        // SAFETY: the port is started.
        match unsafe { sys::fb_rx_descriptor(port, queue) } {
            descriptor if descriptor >= 0 => Self::File(descriptor),
            _ => Self::Silent,
        }
    }

    /// A memif queue that receives into this pool.
    pub(crate) fn memif(port: u16, queue: u16, pool: *const sys::RteMempool) -> Self {
        let mut found = sys::MemifQueue::default();
        // SAFETY: the port is started, and `found` is written.
        match unsafe { sys::fb_memif_find(port, queue, pool, &raw mut found) } {
            0 => Self::Memif(found),
            _ => Self::Silent,
        }
    }

    /// From now on the queue tells. `&mut`: the queue is not being received from.
    pub(crate) fn arm(&mut self) -> Wake {
        match self {
            Self::File(descriptor) => Wake::Readable(*descriptor),
            Self::Never => Wake::Never,
            Self::Silent => Wake::Silent,
            // SAFETY: the queue was found when the device had been started, which is open as long as we are.
            Self::Memif(queue) => match unsafe { sys::fb_memif_arm(queue) } {
                descriptor if descriptor >= 0 => Wake::Signalled(descriptor),
                error if error == -libc::EAGAIN => Wake::Now,
                _ => Wake::Unconnected,
            },
        }
    }

    /// From now on it need not.
    pub(crate) fn disarm(&mut self) {
        if let Self::Memif(queue) = self {
            // SAFETY: as in `arm`.
            unsafe { sys::fb_memif_disarm(queue) };
        }
    }
}
