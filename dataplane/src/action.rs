//! What is done with a packet, small enough to travel with it: names are resolved to numbers when a rule is compiled.

use crate::counters::DropReason;
use zerocopy::FromZeros;

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
    /// Hand to the trusted software path.
    Trap,
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
    /// Drop. Not always [`DropReason::RuleDrop`]: a rule whose port is not there drops as [`DropReason::PortDown`].
    Drop(DropReason),
}

/// An [`Action`] as it travels with a packet and stands in the flow cache: 20 bytes, which mean "trap" where all are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct PackedAction {
    /// Tunnel's slot, or port.
    target: u32,
    /// Tunnel's generation.
    generation: u32,
    mac: [u8; 6],
    push_vlan: u16,
    kind: u8,
    /// Whether the MAC is to be replaced, or a tag popped; or the reason of a drop.
    detail: u8,
    _pad: u16,
}

const TRAP: u8 = 0;
const FORWARD: u8 = 1;
const DELIVER: u8 = 2;
const DROP: u8 = 3;

impl PackedAction {
    /// [`Action::Trap`]: all zero.
    pub const TRAP: PackedAction =
        PackedAction { target: 0, generation: 0, mac: [0; 6], push_vlan: 0, kind: TRAP, detail: 0, _pad: 0 };

    /// The tunnel, of an action that only encapsulates, whether or not with a new inner MAC.
    #[inline(always)]
    pub fn plain_forward(&self) -> Option<TunnelRef> {
        let is_plain = self.kind == FORWARD && self.push_vlan == 0;
        is_plain.then_some(TunnelRef { slot: self.target, generation: self.generation })
    }

    /// The slot of the tunnel, of an action that encapsulates.
    #[inline(always)]
    pub fn tunnel_slot(&self) -> Option<u32> {
        (self.kind == FORWARD).then_some(self.target)
    }

    /// Replaces the destination of a frame that is encapsulated, where the action says so.
    #[inline(always)]
    pub fn set_inner_dst_mac(&self, frame: &mut [u8]) {
        if self.kind == FORWARD
            && self.detail != 0
            && let Some(field) = frame.first_chunk_mut()
        {
            *field = self.mac;
        }
    }

    /// The port, of an action that only delivers.
    #[inline(always)]
    pub fn plain_deliver(&self) -> Option<PortId> {
        let is_plain = self.kind == DELIVER && self.push_vlan == 0 && self.detail == 0;
        is_plain.then_some(PortId(self.target as u16))
    }

    /// The action.
    #[inline(always)]
    pub fn unpack(&self) -> Action {
        match self.kind {
            FORWARD => Action::Forward {
                tunnel: TunnelRef { slot: self.target, generation: self.generation },
                inner_dst_mac: (self.detail != 0).then_some(self.mac),
                push_vlan: self.push_vlan,
            },
            DELIVER => Action::Deliver {
                port: PortId(self.target as u16),
                pop_vlan: self.detail != 0,
                push_vlan: self.push_vlan,
            },
            DROP => Action::Drop(
                DropReason::ALL.get(usize::from(self.detail)).copied().unwrap_or(DropReason::RuleDrop),
            ),
            _ => Action::Trap,
        }
    }
}

impl From<Action> for PackedAction {
    fn from(action: Action) -> PackedAction {
        match action {
            Action::Forward { tunnel, inner_dst_mac, push_vlan } => PackedAction {
                kind: FORWARD,
                target: tunnel.slot,
                generation: tunnel.generation,
                mac: inner_dst_mac.unwrap_or_default(),
                detail: u8::from(inner_dst_mac.is_some()),
                push_vlan,
                ..PackedAction::TRAP
            },
            Action::Deliver { port, pop_vlan, push_vlan } => PackedAction {
                kind: DELIVER,
                target: u32::from(port.0),
                detail: u8::from(pop_vlan),
                push_vlan,
                ..PackedAction::TRAP
            },
            Action::Trap => PackedAction::TRAP,
            Action::Drop(reason) => PackedAction { kind: DROP, detail: reason as u8, ..PackedAction::TRAP },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_come_back_as_they_went_in() {
        let tunnel = TunnelRef { slot: 7, generation: u32::MAX };
        let mut actions = vec![
            Action::Trap,
            Action::Forward { tunnel, inner_dst_mac: Some([0; 6]), push_vlan: 0 },
            Action::Forward { tunnel, inner_dst_mac: None, push_vlan: 4095 },
            Action::Deliver { port: PortId(8191), pop_vlan: true, push_vlan: 1 },
            Action::Deliver { port: PortId(0), pop_vlan: false, push_vlan: 0 },
        ];
        actions.extend(DropReason::ALL.iter().map(|reason| Action::Drop(*reason)));
        for action in actions {
            assert_eq!(PackedAction::from(action).unpack(), action);
        }
        assert_eq!(PackedAction::new_zeroed().unpack(), Action::Trap);
    }
}
