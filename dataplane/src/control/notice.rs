//! What workers tell the control side: bounded rings, never waited for.

use crate::action::PortId;
use forebay_pipeline::batch::Batch;
use forebay_pipeline::ring::{RingConsumer, RingProducer, ring};
use forebay_sriov::Packet;
use std::net::IpAddr;

/// Something that a worker saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A neighbour of an uplink said that it has an address.
    Seen {
        /// The uplink.
        uplink: PortId,
        /// The neighbour's address.
        address: IpAddr,
        /// Its MAC.
        mac: [u8; 6],
    },
    /// A router of the underlay dropped a tunnel's packet because it was too large for the path.
    TooBig {
        /// The far end of the tunnel.
        remote: IpAddr,
        /// The largest network packet that the path takes, bytes.
        mtu: u16,
    },
    /// Packets wait for the next hop of this slot.
    Unresolved {
        /// The slot.
        slot: u32,
    },
}

/// A packet for the trusted software path.
pub struct Trapped {
    /// The port that received it.
    pub port: PortId,
    /// The packet; of a tunnelled one, the inner frame.
    pub packet: Packet,
}

/// Notices that a worker can have told before the control side has read them. It reads every millisecond; ARP and ND at
/// a million per second would be an attack, and losing notices then is right.
const NOTICES: usize = 1024;

/// The worker's end.
pub struct Notices {
    ring: RingProducer<Notice>,
}

impl Notices {
    /// Tells the control side, unless it is too far behind.
    pub fn tell(&mut self, notice: Notice) -> bool {
        let mut batch = Batch::new();
        batch.push(notice);
        self.ring.push(&mut batch) == 1
    }
}

/// A ring of notices.
pub fn notices(name: &str) -> (Notices, RingConsumer<Notice>) {
    let (producer, consumer) = ring(name, NOTICES);
    (Notices { ring: producer }, consumer)
}
