//! ARP for IPv4 over Ethernet (RFC 826): reading, and the two packets that a host originates.

use super::{ETHERNET_BYTES, be16, bytes_at, ethertype};
use std::net::Ipv4Addr;

/// Bytes of an ARP packet for IPv4 over Ethernet.
pub const ARP_BYTES: usize = 28;
/// Bytes of a whole ARP frame, without padding.
pub const FRAME_BYTES: usize = ETHERNET_BYTES + ARP_BYTES;
/// Operation: request.
pub const REQUEST: u16 = 1;
/// Operation: reply.
pub const REPLY: u16 = 2;

/// The fields of an ARP packet, by their names in RFC 826 and RFC 5227.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`], [`REPLY`], or another.
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: [u8; 6],
    /// Sender protocol address; unspecified in a probe.
    pub sender_ip: Ipv4Addr,
    /// Target hardware address.
    pub target_mac: [u8; 6],
    /// Target protocol address.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Reads the packet at `offset`; `None` where the bytes end before.
    pub fn parse(bytes: &[u8], offset: usize) -> Option<Arp> {
        let ip = |at| bytes_at::<4>(bytes, at).map(Ipv4Addr::from);
        Some(Arp {
            operation: be16(bytes, offset + 6)?,
            sender_mac: bytes_at(bytes, offset + 8)?,
            sender_ip: ip(offset + 14)?,
            target_mac: bytes_at(bytes, offset + 18)?,
            target_ip: ip(offset + 24)?,
        })
    }

    /// Somebody asks who has an address that is not its own: not a probe, not an announcement.
    pub fn is_question(&self) -> bool {
        self.operation == REQUEST && !self.sender_ip.is_unspecified() && self.sender_ip != self.target_ip
    }

    /// The frame that carries this packet from `src` to `dst`.
    pub fn frame(&self, src: [u8; 6], dst: [u8; 6]) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[0..6].copy_from_slice(&dst);
        out[6..12].copy_from_slice(&src);
        out[12..14].copy_from_slice(&ethertype::ARP.to_be_bytes());
        out[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        out[20..22].copy_from_slice(&self.operation.to_be_bytes());
        out[22..28].copy_from_slice(&self.sender_mac);
        out[28..32].copy_from_slice(&self.sender_ip.octets());
        out[32..38].copy_from_slice(&self.target_mac);
        out[38..42].copy_from_slice(&self.target_ip.octets());
        out
    }

    /// The answer to this request: `mac` has the target address.
    pub fn answer(&self, mac: [u8; 6]) -> Arp {
        Arp {
            operation: REPLY,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back() {
        let arp = Arp {
            operation: REQUEST,
            sender_mac: [2, 0, 0, 0, 0, 1],
            sender_ip: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: [0; 6],
            target_ip: Ipv4Addr::new(10, 0, 0, 2),
        };
        let frame = arp.frame(arp.sender_mac, crate::wire::BROADCAST_MAC);
        assert_eq!(Arp::parse(&frame, 14), Some(arp));
        assert!(arp.is_question());
        assert!(!Arp { target_ip: arp.sender_ip, ..arp }.is_question());
        assert_eq!(arp.answer([9; 6]).answer([2, 0, 0, 0, 0, 1]).target_ip, arp.target_ip);
        assert_eq!(Arp::parse(&frame[..41], 14), None);
    }
}
