//! What tunnels bring, as it reaches the tenants; and what the host says itself on the underlay.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::counters::DropReason;

/// A frame from afar for a tenant.
fn inner4(to: [u8; 6], tos: u8, length: usize) -> Vec<u8> {
    frame4(OTHER_MAC, to, "10.1.0.2", "10.1.0.1", tos, length)
}

fn inner6(to: [u8; 6], class: u8, length: usize) -> Vec<u8> {
    frame6(OTHER_MAC, to, "fd00:1::2", "fd00:1::1", class, length)
}

/// The outer headers of every kind that we accept.
fn outers(vni: u32) -> [Outer; 4] {
    let (v4, v6) = (Outer::to_us(vni), Outer::to_us_v6(vni));
    [Outer { checksum: true, ..v4.clone() }, v4, Outer { checksum: false, ..v6.clone() }, v6]
}

#[test]
fn every_shape_arrives_unchanged() {
    let mut world = World::new();
    for outer in outers(100) {
        for length in [0, 1, 2, 99, 1000, 1472] {
            for inner in [inner4(mac(VM1), 0, length), inner6(mac(VM1), 0, length.min(1452))] {
                assert_eq!(world.run(UPLINK, &outer.wrap(&inner)).frame(VM1), inner);
                let tagged = tagged(&inner, 0x8100, 0xe123);
                assert_eq!(world.run(UPLINK, &outer.wrap(&tagged)).frame(VM1), tagged);
            }
        }
        let inner = layer2(OTHER_MAC, mac(VM1), 300);
        assert_eq!(world.run(UPLINK, &outer.wrap(&inner)).frame(VM1), inner);
    }
    let totals = world.totals(UPLINK);
    assert_eq!(totals.delivered, totals.rx_packets);
}

#[test]
fn vni_and_mac_choose_the_port() {
    let mut world = World::new();
    let inner = inner4(mac(VM1), 0, 10);
    for (vni, to, at) in [
        (100, mac(VM1), VM1),
        (100, mac(VM4), VM4),
        (200, mac(VM1), VM2),
        (200, mac(VM4), VM2),
        (400, mac(VM1), TRUNK),
    ] {
        let inner = [&to[..], &inner[6..]].concat();
        assert_eq!(world.run(UPLINK, &Outer::to_us(vni).wrap(&inner)).frame(at), inner);
    }
    // VM3 is behind a tag of the trunk's device.
    let tag = tagged(&inner, 0x8100, VM3_VLAN);
    assert_eq!(world.run(UPLINK, &Outer::to_us(300).wrap(&inner)).frame(TRUNK), tag);
    world.run(UPLINK, &Outer::to_us(100).wrap(&inner4(mac(VM2), 0, 1))).is_drop(DropReason::NoRule);
    world.run(UPLINK, &Outer::to_us(999).wrap(&inner)).is_drop(DropReason::UnknownTunnel);
    world.run(UPLINK, &Outer::to_us(104).wrap(&inner)).is_trap(UPLINK, &inner);
}

#[test]
fn tags_are_popped_and_pushed() {
    let mut world = World::new();
    let inner = inner4(mac(VM1), 0, 33);
    let (seven, nine) = (tagged(&inner, 0x8100, 7), tagged(&inner, 0x88a8, 9));
    let mut run = |vni, frame: &[u8]| world.run(UPLINK, &Outer::to_us(vni).wrap(frame)).frame(VM1).to_vec();
    assert_eq!(run(101, &seven), inner);
    assert_eq!(run(101, &nine), inner);
    assert_eq!(run(101, &inner), inner);
    assert_eq!(run(101, &tagged(&nine, 0x8100, 7)), nine);
    assert_eq!(run(102, &inner), tagged(&inner, 0x8100, 5));
    assert_eq!(run(102, &seven), tagged(&seven, 0x8100, 5));
    assert_eq!(run(103, &seven), tagged(&inner, 0x8100, 5));
    assert_eq!(run(103, &inner), tagged(&inner, 0x8100, 5));
}

#[test]
fn a_tag_does_not_lead_to_a_port_behind_it() {
    let mut world = World::new();
    let inner = inner4(mac(TRUNK), 0, 33);
    let hop = tagged(&inner, 0x8100, 0xe000 | VM3_VLAN);
    world.run(UPLINK, &Outer::to_us(400).wrap(&hop)).is_drop(DropReason::NoRule);
    world.run(UPLINK, &Outer::to_us(400).wrap(&tagged(&inner, 0x88a8, VM3_VLAN))).is_drop(DropReason::NoRule);
    let local = tagged(&frame4(mac(VM1), mac(TRUNK), "10.1.0.1", "10.2.0.1", 0, 10), 0x8100, VM3_VLAN);
    world.run(VM1, &local).is_drop(DropReason::NoRule);
    // Other tags, and a second one of that number, are the tenant's own affair.
    for frame in [tagged(&inner, 0x8100, 8), tagged(&hop, 0x8100, 8), inner] {
        assert_eq!(world.run(UPLINK, &Outer::to_us(400).wrap(&frame)).frame(TRUNK), frame);
    }
}

#[test]
fn congestion_is_carried_in_by_all_of_rfc_6040() {
    let mut world = World::new();
    // Figure 4: rows are the inner field, columns the outer one; both in the order of their codes, Not-ECT, ECT(1),
    // ECT(0), CE.
    let table: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (inner_ecn, row) in table.iter().enumerate() {
        for (outer_ecn, expected) in row.iter().enumerate() {
            for outer in outers(100) {
                let outer = Outer { class: 0x28 | outer_ecn as u8, ..outer };
                for (tos, tag) in [(inner_ecn as u8, false), (0xb8 | inner_ecn as u8, true)] {
                    for build in [inner4, inner6] {
                        let shape = |tos| {
                            let frame = build(mac(VM1), tos, 40);
                            if tag { tagged(&frame, 0x8100, 3) } else { frame }
                        };
                        let outcome = world.run(UPLINK, &outer.wrap(&shape(tos)));
                        match expected {
                            Some(ecn) => assert_eq!(outcome.frame(VM1), shape(tos & !3 | ecn)),
                            None => outcome.is_drop(DropReason::Congestion),
                        }
                    }
                }
                let other = layer2(OTHER_MAC, mac(VM1), 40);
                assert_eq!(world.run(UPLINK, &outer.wrap(&other)).frame(VM1), other);
            }
        }
    }
}

#[test]
fn the_outer_headers_must_be_right() {
    let mut world = World::new();
    let inner = inner4(mac(VM1), 0, 50);
    let base = Outer::to_us(100);
    let mut refused = |outer: &Outer, reason| world.run(UPLINK, &outer.wrap(&inner)).is_drop(reason);
    refused(&Outer { macs: (PEER_MAC, [2, 0, 0, 0, 9, 9]), ..base.clone() }, DropReason::NotLocal);
    refused(&Outer { macs: (PEER_MAC, BROADCAST), ..base.clone() }, DropReason::NotLocal);
    refused(&Outer { macs: ([3, 0, 0, 0, 0, 2], UPLINK_MAC), ..base.clone() }, DropReason::Malformed);
    refused(&Outer { dst: "192.0.2.4".into(), ..base.clone() }, DropReason::NotLocal);
    for src in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        refused(&Outer { src: src.into(), ..base.clone() }, DropReason::Malformed);
    }
    for src in ["::", "::1", "ff02::1"] {
        refused(&Outer { src: src.into(), ..Outer::to_us_v6(100) }, DropReason::Malformed);
    }
    for outer in [Outer { checksum: true, ..base }, Outer::to_us_v6(100)] {
        let at = outer.bytes() + 20;
        let mut frame = outer.wrap(&inner);
        frame[at] ^= 1;
        world.run(UPLINK, &frame).is_drop(DropReason::Malformed);
    }
    let tag = tagged(&Outer::to_us(100).wrap(&inner), 0x8100, 5);
    world.run(UPLINK, &tag).is_drop(DropReason::NotLocal);
}

#[test]
fn rules_may_ask_for_the_outer_addresses() {
    let mut world = World::new();
    let inner = inner4(mac(VM1), 0, 50);
    let good = Outer { dst: "192.0.2.77".into(), ..Outer::to_us(105) };
    assert_eq!(world.run(UPLINK, &good.wrap(&inner)).frame(VM1), inner);
    let elsewhere = Outer { src: "192.0.2.3".into(), ..good.clone() };
    world.run(UPLINK, &elsewhere.wrap(&inner)).is_drop(DropReason::NoRule);
    world.run(UPLINK, &Outer::to_us(105).wrap(&inner)).is_drop(DropReason::NoRule);
    world.run(UPLINK, &Outer::to_us_v6(105).wrap(&inner)).is_drop(DropReason::NoRule);
}

#[test]
fn outer_fragments_and_other_traffic() {
    let mut world = World::new();
    let inner = inner4(mac(VM1), 0, 50);
    for (field, reason) in [(0x2000u16, DropReason::OuterFragment), (9, DropReason::OuterFragment)] {
        let mut frame = Outer::to_us(100).wrap(&inner);
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        fix_ipv4(&mut frame, 14);
        world.run(UPLINK, &frame).is_drop(reason);
    }
    let mut dns = Outer::to_us(100).wrap(&inner);
    dns[36..38].copy_from_slice(&53u16.to_be_bytes());
    world.run(UPLINK, &dns).is_drop(DropReason::UnknownTunnel);
    world.run(UPLINK, &layer2(PEER_MAC, UPLINK_MAC, 50)).is_drop(DropReason::NotLocal);
    // The I flag is required; every other reserved bit is ignored.
    let mut frame = Outer::to_us(100).wrap(&inner);
    frame[42] = 0xf7;
    world.run(UPLINK, &frame).is_drop(DropReason::Malformed);
    frame[42..46].copy_from_slice(&[0xff; 4]);
    frame[49] = 0xff;
    assert_eq!(world.run(UPLINK, &frame).frame(VM1), inner);
}

#[test]
fn what_stands_behind_the_datagram_is_not_delivered() {
    let mut world = World::new();
    let inner = inner4(mac(VM1), 0, 50);
    let mut frame = Outer::to_us(100).wrap(&inner);
    frame.extend([0xaa; 30]);
    assert_eq!(world.run(UPLINK, &frame).frame(VM1), inner);
    // Behind the datagram, but within the IP packet.
    let mut frame = Outer::to_us(100).wrap(&inner);
    frame.extend([0xaa; 30]);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fix_ipv4(&mut frame, 14);
    assert_eq!(world.run(UPLINK, &frame).frame(VM1), inner);
    // An inner frame from a group address.
    let group = frame4([3; 6], mac(VM1), "10.1.0.2", "10.1.0.1", 0, 5);
    world.run(UPLINK, &Outer::to_us(100).wrap(&group)).is_drop(DropReason::Malformed);
}

#[test]
fn a_tunnel_in_a_tunnel_is_the_tenants_payload() {
    let mut world = World::new();
    let nested = Outer { macs: (OTHER_MAC, mac(VM1)), ..Outer::to_us(200) }.wrap(&inner4(mac(VM2), 0, 30));
    let frame = Outer::to_us(100).wrap(&nested);
    assert_eq!(world.run(UPLINK, &frame).frame(VM1), nested);
    // And from a tenant: the underlay's addresses are not its own.
    let mut outer = Outer::to_us(200);
    outer.macs = (mac(VM1), OTHER_MAC);
    world.run(VM1, &outer.wrap(&inner4(mac(VM2), 0, 30))).is_drop(DropReason::SourceIp);
    (outer.src, outer.dst) = ("10.1.0.1".into(), "10.1.0.2".into());
    let outcome = world.run(VM1, &outer.wrap(&inner4(mac(VM2), 0, 30)));
    assert_eq!(&outcome.frame(UPLINK)[46..49], [0, 0, 100]);
}

#[test]
fn echo_requests_to_the_uplink_are_answered() {
    let mut world = World::new();
    let mut echo = [&[8, 0, 0, 0, 1, 2, 3, 4][..], &payload(32)].concat();
    let sum = internet_sum(&[&echo]);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = |src: &str, dst: &str, ttl: u8, message: &[u8]| {
        let mut frame =
            [&UPLINK_MAC[..], &PEER_MAC, &[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, ttl, 1, 0, 0]].concat();
        frame.extend(v4(src));
        frame.extend(v4(dst));
        frame.extend(message);
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        fix_ipv4(&mut frame, 14);
        frame
    };
    let mut reply = echo.clone();
    reply[0] = 0;
    reply[2..4].fill(0);
    let sum = internet_sum(&[&reply]);
    reply[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut expected = packet("192.0.2.1", "192.0.2.2", 64, &reply);
    expected[..12].copy_from_slice(&[PEER_MAC, UPLINK_MAC].concat());
    for ttl in [64, 1, 255] {
        let outcome = world.run(UPLINK, &packet("192.0.2.2", "192.0.2.1", ttl, &echo));
        assert_eq!(outcome.frame(UPLINK), expected, "asked with TTL {ttl}");
        assert_eq!(outcome.local, 1);
    }
    for src in ["224.0.0.1", "0.0.0.0", "127.0.0.1", "255.255.255.255"] {
        world.run(UPLINK, &packet(src, "192.0.2.1", 64, &echo)).is_drop(DropReason::UnknownTunnel);
    }
    world.run(UPLINK, &packet("192.0.2.2", "192.0.2.1", 64, &reply)).is_drop(DropReason::UnknownTunnel);

    let (ask, said) = (
        [&[128, 0, 0, 0, 0, 1][..], &payload(9)].concat(),
        [&[129, 0, 0, 0, 0, 1][..], &payload(9)].concat(),
    );
    let mut question = icmp6((PEER_MAC, UPLINK_MAC), "2001:db8::2", "2001:db8::1", &ask);
    question[21] = 3;
    let mut expected = icmp6((UPLINK_MAC, PEER_MAC), "2001:db8::1", "2001:db8::2", &said);
    expected[21] = 64;
    assert_eq!(world.run(UPLINK, &question).frame(UPLINK), expected);
}

#[test]
fn neighbours_of_the_uplink_are_answered_and_believed() {
    use forebay_dataplane::control::notice::Notice;
    let mut world = World::new();
    let seen =
        |address: &str| Notice::Seen { uplink: UPLINK, address: address.parse().unwrap(), mac: PEER_MAC };
    for asked in ["192.0.2.1", "192.0.2.77"] {
        let question = arp(PEER_MAC, BROADCAST, 1, (PEER_MAC, "192.0.2.2"), ([0; 6], asked));
        let outcome = world.run(UPLINK, &question);
        let answer = arp(UPLINK_MAC, PEER_MAC, 2, (UPLINK_MAC, asked), (PEER_MAC, "192.0.2.2"));
        assert_eq!((outcome.frame(UPLINK), &outcome.notices[..]), (&answer[..], &[seen("192.0.2.2")][..]));
    }
    let other = arp(PEER_MAC, BROADCAST, 1, (PEER_MAC, "192.0.2.2"), ([0; 6], "192.0.2.5"));
    let outcome = world.run(UPLINK, &other);
    assert_eq!((outcome.out.len(), outcome.local), (0, 1));
    let lie = arp(PEER_MAC, UPLINK_MAC, 2, ([3, 0, 0, 0, 0, 1], "192.0.2.2"), (UPLINK_MAC, "192.0.2.1"));
    world.run(UPLINK, &lie).is_drop(DropReason::Malformed);
    assert!(world.run(UPLINK, &lie).notices.is_empty());

    let ask = nd(135, 0, "2001:db8::1", Some((1, PEER_MAC)));
    let question = icmp6((PEER_MAC, [0x33, 0x33, 0xff, 0, 0, 1]), "2001:db8::2", "ff02::1:ff00:1", &ask);
    let outcome = world.run(UPLINK, &question);
    let said = nd(136, 0x60, "2001:db8::1", Some((2, UPLINK_MAC)));
    let answer = icmp6((UPLINK_MAC, PEER_MAC), "2001:db8::1", "2001:db8::2", &said);
    assert_eq!((outcome.frame(UPLINK), &outcome.notices[..]), (&answer[..], &[seen("2001:db8::2")][..]));
    // Somebody tries our address: all nodes are told, and nobody is believed.
    let probe = icmp6(
        (PEER_MAC, [0x33, 0x33, 0xff, 0, 0, 1]),
        "::",
        "ff02::1:ff00:1",
        &nd(135, 0, "2001:db8::1", None),
    );
    let outcome = world.run(UPLINK, &probe);
    let said = nd(136, 0x20, "2001:db8::1", Some((2, UPLINK_MAC)));
    let answer = icmp6((UPLINK_MAC, [0x33, 0x33, 0, 0, 0, 1]), "2001:db8::1", "ff02::1", &said);
    assert_eq!((outcome.frame(UPLINK), outcome.notices.len()), (&answer[..], 0));
    // Not from beyond a router, and not with two answers.
    let mut far = question.clone();
    far[21] = 254;
    world.run(UPLINK, &far).is_drop(DropReason::Malformed);
    let two = [&ask[..], &[1, 1, 2, 9, 9, 9, 9, 9]].concat();
    let question = icmp6((PEER_MAC, UPLINK_MAC), "2001:db8::2", "ff02::1:ff00:1", &two);
    world.run(UPLINK, &question).is_drop(DropReason::Malformed);
}
