//! VLAN tags (IEEE 802.1Q): pushed onto and popped off the front of a frame.

use crate::wire::{VLAN_TAG_BYTES, be16, ethertype};
use forebay_sriov::Packet;

/// Bytes of the two MACs, behind which tags stand.
const MACS_BYTES: usize = 12;

/// Whether the frame's outermost header after the MACs is a tag; its VLAN identifier.
#[inline(always)]
pub fn outermost(bytes: &[u8]) -> Option<u16> {
    let ether_type = be16(bytes, MACS_BYTES)?;
    if ether_type != ethertype::VLAN && ether_type != ethertype::QINQ {
        return None;
    }
    Some(be16(bytes, MACS_BYTES + 2)? & 0x0fff)
}

/// Removes the outermost tag; false, and nothing changed, where there is none.
pub fn pop(packet: &mut Packet) -> bool {
    let bytes = packet.data_mut();
    if outermost(bytes).is_none() || bytes.len() < MACS_BYTES + VLAN_TAG_BYTES {
        return false;
    }
    bytes.copy_within(..MACS_BYTES, VLAN_TAG_BYTES);
    packet.trim_front(VLAN_TAG_BYTES)
}

/// Puts a tag in front; false, and nothing changed, where the buffer has no room.
pub fn push(packet: &mut Packet, tci: u16) -> bool {
    if packet.data().len() < MACS_BYTES || packet.prepend(VLAN_TAG_BYTES).is_none() {
        return false;
    }
    let bytes = packet.data_mut();
    bytes.copy_within(VLAN_TAG_BYTES..VLAN_TAG_BYTES + MACS_BYTES, 0);
    bytes[MACS_BYTES..MACS_BYTES + 2].copy_from_slice(&ethertype::VLAN.to_be_bytes());
    bytes[MACS_BYTES + 2..MACS_BYTES + 4].copy_from_slice(&tci.to_be_bytes());
    true
}
