//! Packets that do not fit: the tenant learns how long they may be, by RFC 1191 and RFC 8201.

use crate::frames::*;
use crate::harness::*;
use crate::rules::PATH_MTU;
use forebay_dataplane::control::notice::Notice;
use forebay_dataplane::counters::DropReason;

/// The ICMP error about `frame` (whose tags begin at 12), as its sender should get it.
fn error4(frame: &[u8], from: [u8; 6], tags: usize, fits: u16) -> Vec<u8> {
    let packet = &frame[14 + tags..];
    let quoted = &packet[..packet.len().min(548)];
    let mut message = [&[3, 4, 0, 0, 0, 0][..], &fits.to_be_bytes(), quoted].concat();
    let sum = internet_sum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let total = (20 + message.len()) as u16;
    let head =
        [&[0x45, 0][..], &total.to_be_bytes(), &[0, 0, 0, 0, 64, 1, 0, 0], &packet[16..20], &packet[12..16]];
    let mut out = [&frame[6..12], &from, &frame[12..14 + tags], &head.concat(), &message].concat();
    fix_ipv4(&mut out, 14 + tags);
    out
}

fn error6(frame: &[u8], from: [u8; 6], tags: usize, fits: u16) -> Vec<u8> {
    let packet = &frame[14 + tags..];
    let quoted = &packet[..packet.len().min(1232)];
    let mut message = [&[2, 0, 0, 0, 0, 0][..], &fits.to_be_bytes(), quoted].concat();
    let length = (message.len() as u32).to_be_bytes();
    let (src, dst) = (&packet[24..40], &packet[8..24]);
    let sum = internet_sum(&[src, dst, &length, &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [&[0x60, 0, 0, 0][..], &length[2..], &[58, 64], src, dst].concat();
    [&frame[6..12], &from, &frame[12..14 + tags], &head, &message].concat()
}

#[track_caller]
fn too_big(world: &mut World, frame: &[u8], expected: &[u8]) {
    let outcome = world.run(VM1, frame);
    assert_eq!(outcome.frame(VM1), expected);
    assert_eq!(outcome.drops, [("too_big", 1)]);
}

#[test]
fn for_the_uplink() {
    let mut world = World::new();
    // Over IPv4: 20 + 8 + 8 outer bytes and the inner Ethernet header; over IPv6 20 more; a tag takes 4.
    let cases = [("10.1.0.2", UPLINK_MTU - 50), ("10.1.0.3", UPLINK_MTU - 54)];
    for (dst, fits) in cases {
        let payload = usize::from(fits) - 28;
        let fitting = world.run(VM1, &udp4(dst, payload));
        assert_eq!(fitting.frame(UPLINK).len(), usize::from(UPLINK_MTU) + 14);
        for extra in [1, 2, 300, 420] {
            let frame = udp4(dst, payload + extra);
            too_big(&mut world, &frame, &error4(&frame, GATEWAY_MAC, 0, fits));
        }
        let tagged = tagged(&udp4(dst, payload), 0x8100, 5);
        too_big(&mut world, &tagged, &error4(&tagged, GATEWAY_MAC, 4, fits - 4));
    }
    for (dst, fits) in [("fd00:1::2", UPLINK_MTU - 70), ("fd00:1::3", UPLINK_MTU - 74)] {
        let payload = usize::from(fits) - 48;
        let fitting = world.run(VM1, &udp6(dst, payload));
        assert_eq!(fitting.frame(UPLINK).len(), usize::from(UPLINK_MTU) + 14);
        for extra in [1, 100] {
            let frame = udp6(dst, payload + extra);
            too_big(&mut world, &frame, &error6(&frame, GATEWAY_MAC, 0, fits));
        }
        let tags = tagged(&tagged(&udp6(dst, payload), 0x8100, 5), 0x88a8, 6);
        too_big(&mut world, &tags, &error6(&tags, GATEWAY_MAC, 8, fits - 8));
    }
}

#[test]
fn for_the_path() {
    let mut world = World::new();
    let fits = PATH_MTU - 50;
    let payload = usize::from(fits) - 28;
    // The second time the flow is known.
    for _ in 0..2 {
        let fitting = world.run(VM1, &udp4("10.5.0.1", payload));
        assert_eq!(fitting.frame(UPLINK).len(), usize::from(PATH_MTU) + 14);
        let frame = udp4("10.5.0.1", payload + 1);
        too_big(&mut world, &frame, &error4(&frame, GATEWAY_MAC, 0, fits));
    }
}

#[test]
fn for_a_local_port() {
    let mut world = World::new();
    let frame = |length| frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, length);
    assert_eq!(world.run(VM1, &frame(1372)).frame(VM4), frame(1372));
    too_big(&mut world, &frame(1373), &error4(&frame(1373), GATEWAY_MAC, 0, 1400));
    // What is no IP has nobody to tell.
    world.run(VM1, &layer2(mac(VM1), mac(VM4), 1401)).is_drop(DropReason::TooBig);
    // From a tunnel: the sender is far away.
    let inner = frame4(OTHER_MAC, mac(VM4), "10.1.0.2", "10.1.0.4", 0, 1373);
    world.run(UPLINK, &Outer::to_us(100).wrap(&inner)).is_drop(DropReason::TooBig);
    // A short packet with a long padding: within the MTU by its header, but not as a frame.
    let mut padded = frame(10);
    padded.resize(1500, 0);
    world.run(VM1, &padded).is_drop(DropReason::TooBig);
}

#[test]
fn in_pieces_and_without_a_gateway() {
    let mut world = World::new();
    let frame = udp4("10.1.0.2", 1550);
    for cuts in [&[1, 2, 3][..], &[14], &[34, 600], &[500, 582, 583]] {
        world.put_cut(VM1, &frame, cuts);
        assert_eq!(
            world.step(VM1).frame(VM1),
            error4(&frame, GATEWAY_MAC, 0, UPLINK_MTU - 50),
            "cut at {cuts:?}"
        );
    }
    // VM2 has no gateway: the error comes from whom it talked to.
    let frame = frame4(mac(VM2), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 1550);
    assert_eq!(world.run(VM2, &frame).frame(VM2), error4(&frame, OTHER_MAC, 0, UPLINK_MTU - 50));
}

#[test]
fn no_error_where_there_must_be_none() {
    let mut world = World::new();
    let silent = |world: &mut World, frame: &[u8]| world.run(VM2, frame).is_drop(DropReason::TooBig);
    let base = |dst| frame4(mac(VM2), OTHER_MAC, "10.1.0.1", dst, 0, 1550);
    // To a group by MAC is trapped for VM2; by address alone it is not.
    silent(&mut world, &base("224.0.0.1"));
    silent(&mut world, &base("255.255.255.255"));
    silent(&mut world, &frame6(mac(VM2), OTHER_MAC, "fd00:1::1", "ff05::1", 0, 1550));
    let mut later = base("10.1.0.2");
    later[20..22].copy_from_slice(&1u16.to_be_bytes());
    fix_ipv4(&mut later, 14);
    silent(&mut world, &later);
    // About an ICMP error.
    for (kind, quiet) in [(3, true), (11, true), (12, true), (8, false), (0, false)] {
        let mut icmp = base("10.1.0.2");
        icmp[23] = 1;
        icmp[34] = kind;
        fix_ipv4(&mut icmp, 14);
        let outcome = world.run(VM2, &icmp);
        assert_eq!(outcome.out.is_empty(), quiet, "ICMP type {kind}");
    }
    for (kind, quiet) in [(1, true), (2, true), (127, true), (128, false), (129, false)] {
        let mut icmp = frame6(mac(VM2), OTHER_MAC, "fd00:1::1", "fd00:1::2", 0, 1550);
        icmp[20] = 58;
        icmp[54] = kind;
        let outcome = world.run(VM2, &icmp);
        assert_eq!(outcome.out.is_empty(), quiet, "ICMPv6 type {kind}");
    }
}

#[test]
fn a_router_tells_what_a_path_takes() {
    let mut world = World::new();
    for (frame, remote, least) in
        [(udp4("10.1.0.2", 1450), "192.0.2.2", 576), (udp6("fd00:1::2", 1450), "2001:db8::2", 1280)]
    {
        let sent = world.run(VM1, &frame).frame(UPLINK).to_vec();
        let error = |fits| match sent[12] {
            8 => error4(&sent, PEER_MAC, 0, fits),
            _ => error6(&sent, PEER_MAC, 0, fits),
        };
        for (fits, mtu) in [(1400, 1400), (least, least), (0, least), (68, least)] {
            let told = Notice::TooBig { remote: remote.parse().unwrap(), mtu };
            let outcome = world.run(UPLINK, &error(fits));
            assert_eq!((outcome.notices, outcome.local), (vec![told], 1), "{remote}: {fits}");
        }
        // As much as the packet had is not too little for it.
        let length = (sent.len() - 14) as u16;
        world.run(UPLINK, &error(length)).is_drop(DropReason::UnknownTunnel);
        assert_eq!(world.run(UPLINK, &error(length - 1)).local, 1);
        // A wrong checksum; cut within the quoted addresses; about what this host did not send, or not through a tunnel.
        let l4 = if sent[12] == 8 { 34 } else { 54 };
        let quoted = l4 + 8;
        let wrong = |at: usize| {
            let mut bent = error(1400);
            bent[at] ^= 1;
            bent
        };
        let source = if l4 == 34 { quoted + 15 } else { quoted + 23 };
        let ports = quoted + l4 - 14;
        for bent in [wrong(l4 + 2), wrong(source), wrong(ports + 3)] {
            world.run(UPLINK, &bent).is_drop(DropReason::UnknownTunnel);
        }
    }
}
