//! IPv6 Neighbor Discovery (RFC 4861): solicitations and advertisements, read with the checks of sections 7.1.1 and
//! 7.1.2, and written with one link-layer address option.

use super::{ETHERNET_BYTES, IPV6_BYTES, bytes_at, checksum, ethertype, protocol};
use std::net::Ipv6Addr;

/// ICMPv6 type: router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type: neighbor solicitation.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type: neighbor advertisement.
pub const ADVERTISEMENT: u8 = 136;
/// ICMPv6 type: redirect, the last of the five types of ND.
pub const REDIRECT: u8 = 137;

/// Bytes of the ICMPv6 message without options: type, code, checksum, flags, target.
const MESSAGE_BYTES: usize = 24;
/// Bytes of a whole frame with one link-layer address option.
pub const FRAME_BYTES: usize = ETHERNET_BYTES + IPV6_BYTES + MESSAGE_BYTES + OPTION_BYTES;
/// Bytes of a link-layer address option for Ethernet.
const OPTION_BYTES: usize = 8;
/// Option type: source link-layer address.
const SOURCE_LINK_LAYER: u8 = 1;
/// Option type: target link-layer address.
const TARGET_LINK_LAYER: u8 = 2;
/// Options that are looked at: a hostile list of empty ones must not cost more.
const MAX_OPTIONS: usize = 8;

/// A neighbor solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// [`SOLICITATION`] or [`ADVERTISEMENT`].
    pub kind: u8,
    /// IPv6 source; unspecified in duplicate address detection.
    pub src: Ipv6Addr,
    /// IPv6 destination.
    pub dst: Ipv6Addr,
    /// The address that is asked for or advertised.
    pub target: Ipv6Addr,
    /// The link-layer address option that belongs to this kind, if there is one.
    pub link_layer: Option<[u8; 6]>,
    /// Advertisement: the solicited flag.
    pub solicited: bool,
}

/// The solicited-node multicast address of `target` (RFC 4291, section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The Ethernet multicast address of an IPv6 multicast address (RFC 2464, section 7).
pub fn multicast_mac(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = address.octets();
    [0x33, 0x33, a, b, c, d]
}

impl Neighbor {
    /// Reads the message at `l4` of a frame whose IPv6 header is at `l3` and whose IPv6 packet ends at `end`.
    ///
    /// `None` for anything that RFC 4861 says to discard: hop limit, checksum, code, lengths, options, target.
    pub fn parse(bytes: &[u8], l3: usize, l4: usize, end: usize) -> Option<Neighbor> {
        let header: [u8; IPV6_BYTES] = bytes_at(bytes, l3)?;
        let message = bytes.get(l4..end)?;
        let address = |at| bytes_at::<16>(&header, at).map(Ipv6Addr::from);
        let (src, dst) = (address(8)?, address(24)?);
        let kind = *message.first()?;
        let sum = checksum::pseudo_v6(src, dst, protocol::ICMPV6, message.len() as u32);
        let sound = message.len() >= MESSAGE_BYTES
            && header[7] == 255
            && message[1] == 0
            && matches!(kind, SOLICITATION | ADVERTISEMENT)
            && checksum::fold(checksum::add(sum, message)) == 0;
        let target = Ipv6Addr::from(bytes_at::<16>(message, 8)?);
        if !sound || target.is_multicast() {
            return None;
        }
        let wanted = if kind == SOLICITATION { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER };
        let link_layer = find_option(message.get(MESSAGE_BYTES..)?, wanted)?;
        let solicited = kind == ADVERTISEMENT && message[4] & 0x40 != 0;
        Some(Neighbor { kind, src, dst, target, link_layer, solicited })
    }

    /// The frame that carries this message from `src_mac` to `dst_mac`, with the link-layer option of its kind.
    /// An advertisement has the override flag, and the solicited flag as given; hop limit 255.
    pub fn frame(&self, src_mac: [u8; 6], dst_mac: [u8; 6]) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[0..6].copy_from_slice(&dst_mac);
        out[6..12].copy_from_slice(&src_mac);
        out[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
        let length = (MESSAGE_BYTES + OPTION_BYTES) as u16;
        out[14] = 0x60;
        out[18..20].copy_from_slice(&length.to_be_bytes());
        out[20] = protocol::ICMPV6;
        out[21] = 255;
        out[22..38].copy_from_slice(&self.src.octets());
        out[38..54].copy_from_slice(&self.dst.octets());
        out[54] = self.kind;
        if self.kind == ADVERTISEMENT {
            out[58] = 0x20 | if self.solicited { 0x40 } else { 0 };
        }
        out[62..78].copy_from_slice(&self.target.octets());
        out[78] = if self.kind == SOLICITATION { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER };
        out[79] = 1;
        out[80..86].copy_from_slice(&self.link_layer.unwrap_or(src_mac));
        let sum = checksum::pseudo_v6(self.src, self.dst, protocol::ICMPV6, u32::from(length));
        let field = checksum::fold(checksum::add(sum, &out[54..]));
        out[56..58].copy_from_slice(&field.to_be_bytes());
        out
    }

    /// The answer to this solicitation: `mac` has the target address.
    pub fn answer(&self, mac: [u8; 6]) -> Neighbor {
        Neighbor {
            kind: ADVERTISEMENT,
            src: self.target,
            dst: self.src,
            target: self.target,
            link_layer: Some(mac),
            solicited: true,
        }
    }

    /// Asks `target` (at its solicited-node address, or directly) who has it.
    pub fn question(src: Ipv6Addr, mac: [u8; 6], target: Ipv6Addr) -> Neighbor {
        let dst = solicited_node(target);
        Neighbor { kind: SOLICITATION, src, dst, target, link_layer: Some(mac), solicited: false }
    }
}

/// The link-layer address of the option `wanted`. The outer `None` is a malformed list.
///
/// Stricter than the RFC where receivers differ: a list with two link-layer addresses of one kind, or longer than what
/// is looked at, would let one address be checked here and another be believed behind us.
fn find_option(mut options: &[u8], wanted: u8) -> Option<Option<[u8; 6]>> {
    let mut found = None;
    for _ in 0..MAX_OPTIONS {
        let [kind, units, ..] = *options else { break };
        let bytes = usize::from(units) * 8;
        if bytes == 0 || bytes > options.len() {
            return None;
        }
        if kind == wanted {
            if found.is_some() || bytes != OPTION_BYTES {
                return None;
            }
            found = bytes_at(options, 2);
        }
        options = &options[bytes..];
    }
    options.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn address(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
    }

    #[test]
    fn a_question_and_its_answer_read_back() {
        let question = Neighbor::question(address(1), MAC, address(2));
        let frame = question.frame(MAC, multicast_mac(question.dst));
        assert_eq!(&frame[..6], &[0x33, 0x33, 0xff, 0, 0, 2]);
        assert_eq!(Neighbor::parse(&frame, 14, 54, frame.len()), Some(question));
        let answer = question.answer([2, 0, 0, 0, 0, 9]);
        let frame = answer.frame([2, 0, 0, 0, 0, 9], MAC);
        assert_eq!(Neighbor::parse(&frame, 14, 54, frame.len()), Some(answer));
    }

    #[test]
    fn an_ambiguous_list_of_options_is_malformed() {
        const OTHER: [u8; 8] = [1, 1, 2, 9, 9, 9, 9, 9];
        let question = Neighbor::question(address(1), MAC, address(2));
        let with = |options: &[u8]| {
            let mut frame = question.frame(MAC, MAC)[..78].to_vec();
            frame.extend(options);
            let length = (frame.len() - 54) as u16;
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            frame[56..58].fill(0);
            let sum = checksum::pseudo_v6(question.src, question.dst, protocol::ICMPV6, u32::from(length));
            let field = checksum::fold(checksum::add(sum, &frame[54..]));
            frame[56..58].copy_from_slice(&field.to_be_bytes());
            Neighbor::parse(&frame, 14, 54, frame.len()).map(|neighbor| neighbor.link_layer)
        };
        assert_eq!(with(&[]), Some(None));
        assert_eq!(with(&OTHER), Some(Some([2, 9, 9, 9, 9, 9])));
        let nonces = [14, 1, 0, 0, 0, 0, 0, 0].repeat(8);
        assert_eq!(with(&nonces), Some(None));
        assert_eq!(with(&[OTHER, OTHER].concat()), None, "two addresses of one kind");
        assert_eq!(with(&[&nonces[..], &OTHER].concat()), None, "an address behind what is looked at");
        assert_eq!(
            with(&[1, 2, 2, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]),
            None,
            "an address that is no MAC"
        );
        assert_eq!(with(&[&OTHER[..], &[0]].concat()), None, "a byte behind the options");
    }

    #[test]
    fn what_rfc_4861_discards_is_discarded() {
        let question = Neighbor::question(address(1), MAC, address(2));
        let good = question.frame(MAC, MAC);
        for (at, value) in [(21, 64), (55, 1), (56, 0xaa), (79, 0), (79, 2), (54, 200)] {
            let mut frame = good;
            frame[at] = value;
            assert_eq!(Neighbor::parse(&frame, 14, 54, frame.len()), None, "byte {at} = {value}");
        }
        for end in 0..good.len() {
            assert_eq!(Neighbor::parse(&good[..end], 14, 54, end), None, "{end} bytes");
        }
    }
}
