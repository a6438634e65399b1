//! The queues of a device: one user each at a time, held by types.
//!
//! Each handle keeps the device open. A handle is `Send` and takes `&mut self`, so DPDK's rule that a queue has one
//! thread at a time cannot be broken.

use std::sync::Arc;

use forebay_dpdk_sys as sys;

use crate::burst::PacketBurst;
use crate::device::OpenDevice;
use crate::device_plan::FRAME_OVERHEAD_BYTES;
use crate::vhost::{Share, Turn};
use crate::wake::{Teller, Wake};

/// Shortest frame that every driver takes: an Ethernet header. The tap driver would try a shorter one for ever.
const SHORTEST_FRAME_BYTES: u32 = 14;

/// A receive queue.
#[derive(Debug)]
pub struct RxQueue {
    port: u16,
    queue: u16,
    descriptors: u16,
    teller: Teller,
    /// Of a vhost port: in place of one queue, the rings of the guest that are this user's.
    share: Option<Share>,
    foreign_tags: bool,
    _device: Arc<OpenDevice>,
}

impl RxQueue {
    pub(crate) fn new(device: Arc<OpenDevice>, queue: u16, descriptors: u16, teller: Teller) -> Self {
        let share = device.rings().map(|rings| Share::new(Arc::clone(rings), queue, device.queue_count()));
        let foreign_tags = device.has_foreign_tags();
        Self { port: device.port(), queue, descriptors, teller, share, foreign_tags, _device: device }
    }

    /// Packets that the queue holds, as far as it is known.
    #[must_use]
    pub fn capacity(&self) -> usize {
        usize::from(self.descriptors)
    }

    /// Whether a tag that stands beside a packet is the NIC's own: that of the VLAN which a PF keeps the VF in, and which
    /// is not the VF's to see. Nobody else takes tags out of a PCI function's packets, because nobody asks for it.
    #[must_use]
    pub fn has_foreign_tags(&self) -> bool {
        self.foreign_tags
    }

    /// To be called before a sleep: from now on the queue tells when packets come, as it says. To be followed by
    /// [`RxQueue::disarm`] before packets are received again.
    pub fn arm(&mut self) -> Wake {
        self.teller.arm()
    }

    /// To be called after a sleep.
    pub fn disarm(&mut self) {
        self.teller.disarm();
    }

    /// The device's port number, which received packets carry.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of the queue within its device.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Adds waiting packets to the burst, as many as fit; gives how many came. Never waits. Drivers with wide
    /// receive paths give nothing when asked for fewer than 32, so ask with an empty burst.
    #[inline]
    pub fn receive(&mut self, burst: &mut PacketBurst) -> usize {
        match &mut self.share {
            None => receive_from(self.port, self.queue, burst),
            Some(share) => {
                let (port, before) = (self.port, burst.len());
                share.each(|ring| {
                    receive_from(port, ring, burst);
                    burst.spare() == 0
                });
                burst.len() - before
            }
        }
    }
}

/// Receives from a queue of which the caller is the only user.
#[inline]
fn receive_from(port: u16, queue: u16, burst: &mut PacketBurst) -> usize {
    let room = burst.spare();
    // SAFETY: only handles call this: they keep the device started and are the queue's only user; at most `room` packets
    // are written, and those are ours.
    unsafe {
        let count = sys::fb_rx_burst(port, queue, burst.spare_raw(), room as u16);
        burst.added(usize::from(count));
        usize::from(count)
    }
}

/// A transmit queue.
#[derive(Debug)]
pub struct TxQueue {
    port: u16,
    queue: u16,
    longest_frame_bytes: u32,
    /// Whether the driver wants each packet in one piece.
    linearize: bool,
    refused: u64,
    /// Of a vhost port: in place of one queue, a ring that the guest has enabled.
    turn: Option<Turn>,
    _device: Arc<OpenDevice>,
}

impl TxQueue {
    pub(crate) fn new(device: Arc<OpenDevice>, queue: u16, mtu: u16, linearize: bool) -> Self {
        let longest_frame_bytes = u32::from(mtu) + FRAME_OVERHEAD_BYTES;
        let turn = device.rings().map(|rings| Turn::new(Arc::clone(rings), queue));
        Self { port: device.port(), queue, longest_frame_bytes, linearize, refused: 0, turn, _device: device }
    }

    /// The device's port number.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of the queue within its device.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Sends packets from the front of the burst, gives how many the device took, and leaves those for which it had
    /// no room, in order. Packets that the device could never send are dropped and counted in [`Self::refused`], so
    /// that they do not stand in the others' way. Never waits for the device.
    #[inline]
    pub fn transmit(&mut self, burst: &mut PacketBurst) -> usize {
        self.refuse_unsendable(burst);
        if burst.is_empty() {
            return 0;
        }
        match &self.turn {
            None => send_to(self.port, self.queue, burst),
            Some(turn) => turn.take(|ring| send_to(self.port, ring, burst)).unwrap_or(0),
        }
    }

    /// Packets dropped because the device could never send them: longer than its MTU allows, shorter than an
    /// Ethernet header, or in pieces that the driver does not take and that do not fit into one buffer.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The longest frame that the queue sends, bytes from the destination address to the end of the payload.
    #[must_use]
    pub fn longest_frame_bytes(&self) -> u32 {
        self.longest_frame_bytes
    }

    #[inline]
    fn refuse_unsendable(&mut self, burst: &mut PacketBurst) {
        let sendable = SHORTEST_FRAME_BYTES..=self.longest_frame_bytes;
        let linearize = self.linearize;
        let fits = |packet: &crate::Packet| {
            sendable.contains(&packet.head().pkt_len) && !(linearize && packet.segment_count() > 1)
        };
        if burst.iter().all(fits) {
            return;
        }
        let before = burst.len();
        burst
            .retain(|packet| sendable.contains(&packet.head().pkt_len) && (!linearize || packet.linearize()));
        self.refused += (before - burst.len()) as u64;
    }
}

/// Sends through a queue of which the caller is the only user.
#[inline]
fn send_to(port: u16, queue: u16, burst: &mut PacketBurst) -> usize {
    // SAFETY: only handles call this: they keep the device started and are the queue's only user; the device takes
    // ownership of the packets that it counts.
    unsafe {
        let length = burst.len() as u16;
        let sent = usize::from(sys::fb_tx_burst(port, queue, burst.filled_raw(), length));
        burst.taken(sent);
        sent
    }
}
