//! What is done with a packet, small enough to travel with it: names are resolved to numbers when a rule is compiled.

use crate::counters::DropReason;

/// The number of a port on this host; below [`crate::snapshot::MAX_PORTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// As an index.
    #[inline(always)]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A tunnel of the snapshot. The generation tells a slot that was given to another tunnel in the meantime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelRef {
    /// Slot.
    pub slot: u32,
    /// The slot's generation when the rule was compiled.
    pub generation: u32,
}

/// What is done with a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Encapsulate for a tunnel, and send out of its uplink.
    Forward {
        /// Where to.
        tunnel: TunnelRef,
        /// Replaces the inner destination MAC.
        inner_dst_mac: Option<[u8; 6]>,
        /// Tag to push; 0 for none.
        push_vlan: u16,
    },
    /// Hand to a local port.
    Deliver {
        /// Which.
        port: PortId,
        /// Remove the outermost tag.
        pop_vlan: bool,
        /// Tag to push; 0 for none.
        push_vlan: u16,
    },
    /// Hand to the trusted software path.
    Trap,
    /// Drop. Not always [`DropReason::RuleDrop`]: a rule whose port is not there drops as [`DropReason::PortDown`].
    Drop(DropReason),
}
