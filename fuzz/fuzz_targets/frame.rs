//! What tenants and the underlay send: the pass over the headers, and everything that is read or built from its result.
//! etherparse is asked for its opinion, too: where both accept a frame, they must have read the same.

#![no_main]

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use forebay_dataplane::wire::frame::{Fragment, Frame, MAX_VLAN_TAGS, Network, WINDOW_BYTES};
use forebay_dataplane::wire::{arp, checksum, icmp, nd, protocol};
use libfuzzer_sys::fuzz_target;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

fuzz_target!(|data: &[u8]| {
    // Each parser by itself, where nothing has been checked before.
    let _ = arp::Arp::parse(data, 14);
    let _ = nd::Neighbor::parse(data, 14, 54, data.len());
    let Some(frame) = parse(data) else { return };
    check_offsets(&frame, data.len());
    compare(&frame, data);
    match frame.network {
        Network::Arp => check_arp(&frame, data),
        Network::Ipv6 if frame.key.proto() == protocol::ICMPV6 => check_nd(&frame, data),
        _ => {}
    }
    check_too_big(&frame, data);
    check_echo(&frame, data);
});

fn parse(data: &[u8]) -> Option<Frame> {
    Frame::parse(&data[..data.len().min(WINDOW_BYTES)], data.len()).ok()
}

fn check_offsets(frame: &Frame, length: usize) {
    let (l3, l4, end) = (usize::from(frame.l3_offset), usize::from(frame.l4_offset), frame.l3_bytes as usize);
    let tags = usize::from(frame.vlan_tags);
    assert!(tags <= MAX_VLAN_TAGS && l3 == 14 + 4 * tags && l3 + end <= length);
    let is_ip = matches!(frame.network, Network::Ipv4 | Network::Ipv6);
    assert_eq!(is_ip, frame.key.ipv4().is_some() != frame.key.ipv6().is_some());
    if l4 != 0 {
        assert!(
            is_ip
                && frame.fragment != Fragment::Later
                && l3 + 20 <= l4
                && l4 + 4 <= l3 + end
                && l4 < WINDOW_BYTES
        );
    }
    if frame.key.ports().is_some() {
        assert!(l4 != 0 && l4 + 8 <= l3 + end);
    }
}

fn compare(frame: &Frame, data: &[u8]) {
    let Ok(other) = SlicedPacket::from_ethernet(data) else { return };
    let (net, transport) = (&other.net, &other.transport);
    match net {
        Some(NetSlice::Ipv4(ip)) if frame.network == Network::Ipv4 => {
            let header = ip.header();
            let addresses = (header.source_addr().into(), header.destination_addr().into());
            assert_eq!(frame.key.ipv4(), Some(addresses));
            assert_eq!(frame.fragment != Fragment::Whole, header.is_fragmenting_payload());
        }
        Some(NetSlice::Ipv6(ip)) if frame.network == Network::Ipv6 => {
            let header = ip.header();
            let addresses = (header.source_addr().into(), header.destination_addr().into());
            assert_eq!(frame.key.ipv6(), Some(addresses));
        }
        _ => {}
    }
    let ports = match transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => return,
    };
    if let Some(read) = frame.key.ports() {
        assert_eq!(read, ports);
    }
}

fn check_arp(frame: &Frame, data: &[u8]) {
    let arp =
        arp::Arp::parse(data, usize::from(frame.l3_offset)).expect("the pass has seen a whole ARP packet");
    let written = arp.frame(MAC, arp.sender_mac);
    assert_eq!(arp::Arp::parse(&written, 14), Some(arp));
    assert!(!arp.answer(MAC).is_question());
}

fn check_nd(frame: &Frame, data: &[u8]) {
    let (l3, l4) = (usize::from(frame.l3_offset), usize::from(frame.l4_offset));
    let Some(neighbor) = nd::Neighbor::parse(data, l3, l4, l3 + frame.l3_bytes as usize) else { return };
    let written = neighbor.frame(MAC, MAC);
    let back = nd::Neighbor::parse(&written, 14, 54, written.len());
    assert_eq!(back, Some(nd::Neighbor { link_layer: neighbor.link_layer.or(Some(MAC)), ..neighbor }));
    assert!(parse(&neighbor.answer(MAC).frame(MAC, MAC)).is_some());
}

fn check_too_big(frame: &Frame, data: &[u8]) {
    let mut out = [0xaa; icmp::MAX_FRAME_BYTES];
    let Some(length) = icmp::packet_too_big(data, frame, 1400, MAC, &mut out) else { return };
    let error = parse(&out[..length]).expect("the error is a sound frame");
    assert_eq!(usize::from(error.l3_offset) + error.l3_bytes as usize, length);
    assert_eq!(error.key.ipv4().map(|(src, dst)| (dst, src)), frame.key.ipv4());
    assert_eq!(error.key.ipv6().map(|(src, dst)| (dst, src)), frame.key.ipv6());
    let l4 = usize::from(error.l4_offset);
    let mut sum = checksum::add(0, &out[l4..length]);
    if let Some((src, dst)) = error.key.ipv6() {
        sum += checksum::pseudo_v6(src.into(), dst.into(), protocol::ICMPV6, (length - l4) as u32);
    }
    assert_eq!(checksum::fold(sum), 0);
    let mut nothing = [0; icmp::MAX_FRAME_BYTES];
    assert_eq!(
        icmp::packet_too_big(&out[..length], &error, 1400, MAC, &mut nothing),
        None,
        "an error about an error"
    );
}

fn check_echo(frame: &Frame, data: &[u8]) {
    let mut bytes = data.to_vec();
    if !icmp::answer_echo(&mut bytes, frame) {
        assert_eq!(bytes, data, "refused, and yet changed");
        return;
    }
    let reply = parse(&bytes).expect("the reply is as sound as the request");
    assert_eq!(
        (reply.l3_offset, reply.l4_offset, reply.l3_bytes),
        (frame.l3_offset, frame.l4_offset, frame.l3_bytes)
    );
    assert_eq!(reply.key.ipv4().map(|(src, dst)| (dst, src)), frame.key.ipv4());
    assert_eq!(reply.key.ipv6().map(|(src, dst)| (dst, src)), frame.key.ipv6());
    assert!(!icmp::answer_echo(&mut bytes, &reply), "a reply was answered");
}
