//! The flow cache on the path: what is remembered about a flow is what the tables say, for as long as they say it.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::action::PortId;
use forebay_dataplane::counters::DropReason;

/// Frames of flows that are remembered, and of some that are not.
fn frames() -> Vec<(PortId, Vec<u8>)> {
    let inner = |to| frame4(OTHER_MAC, mac(to), "10.1.0.2", "10.1.0.1", 1, 40);
    vec![
        (VM1, udp4("10.1.0.2", 60)),
        (VM1, udp4("10.1.0.3", 60)),
        (VM1, udp6("fd00:1::2", 60)),
        (VM1, tcp4("10.9.0.1", 8000, 60)),
        (VM1, udp4("10.99.0.1", 60)),
        (VM1, udp4("10.8.0.1", 60)),
        (VM1, udp4("10.1.0.2", 1560)),
        (VM1, frame4(mac(VM2), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 60)),
        (VM1, frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 60)),
        (VM2, frame4(mac(VM2), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 60)),
        (UPLINK, Outer { class: 3, ..Outer::to_us(100) }.wrap(&inner(VM1))),
        (UPLINK, Outer::to_us(200).wrap(&inner(VM2))),
        (UPLINK, Outer::to_us_v6(300).wrap(&inner(VM3))),
        (UPLINK, Outer::to_us(999).wrap(&inner(VM1))),
    ]
}

#[test]
fn the_second_packet_of_a_flow_fares_as_the_first() {
    let mut world = World::new();
    for (port, frame) in frames() {
        let first = world.run(port, &frame);
        for _ in 0..3 {
            let again = world.run(port, &frame);
            let seen =
                |outcome: &Outcome| (outcome.out.clone(), outcome.trapped.clone(), outcome.drops.clone());
            assert_eq!(seen(&again), seen(&first), "{port:?} {frame:02x?}");
        }
    }
}

#[test]
fn rules_count_every_packet_of_a_flow() {
    let mut world = World::new();
    let counts = |world: &World| world.tally.rules.get(0).map(|rule| (rule.packets.get(), rule.bytes.get()));
    let frame = udp4("10.1.0.2", 60);
    for packets in 1..=5u64 {
        world.run(VM1, &frame);
        assert_eq!(counts(&world), Some((packets, packets * frame.len() as u64)));
    }
}

#[test]
fn what_differs_between_packets_of_a_flow_is_seen_in_each() {
    let mut world = World::new();
    let plain = udp4("10.1.0.2", 60);
    assert_eq!(world.run(VM1, &plain).frame(UPLINK).len(), plain.len() + 50);
    // Another length, ECN, TTL: the same flow, other outer fields.
    let longer = udp4("10.1.0.2", 61);
    assert_eq!(world.run(VM1, &longer).frame(UPLINK)[50..].len(), longer.len());
    let mut marked = plain.clone();
    marked[15] |= 3;
    fix_ipv4(&mut marked, 14);
    assert_eq!(world.run(VM1, &marked).frame(UPLINK)[15] & 3, 3);
    // A wrong checksum, a length beyond the frame, a cut header: each is dropped although its flow is known.
    for (at, value) in [(24, plain[24] ^ 1), (17, 0xff), (39, 0xff)] {
        let mut bad = plain.clone();
        bad[at] = value;
        if at == 17 {
            fix_ipv4(&mut bad, 14);
        }
        world.run(VM1, &bad).is_drop(DropReason::Malformed);
    }
    // Another source address or MAC is another flow, which is not admitted.
    world.run(VM1, &frame4(mac(VM1), OTHER_MAC, "10.1.0.9", "10.1.0.2", 0, 60)).is_drop(DropReason::SourceIp);
}

#[test]
fn a_flow_is_decided_anew_when_its_tables_change() {
    let mut world = World::new();
    let (out, back) = (
        frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 60),
        Outer::to_us(100).wrap(&frame4(OTHER_MAC, mac(VM4), "10.1.0.2", "10.1.0.4", 1, 40)),
    );
    for _ in 0..2 {
        world.run(VM1, &out).frame(VM4);
        world.run(UPLINK, &back).frame(VM4);
    }
    world.publish(&[VM4]);
    for _ in 0..2 {
        world.run(VM1, &out).is_drop(DropReason::PortDown);
        world.run(UPLINK, &back).is_drop(DropReason::PortDown);
    }
    world.publish(&[]);
    for _ in 0..2 {
        world.run(VM1, &out).frame(VM4);
        world.run(UPLINK, &back).frame(VM4);
    }
}

#[test]
fn more_flows_than_are_remembered_all_pass() {
    let mut world = World::new();
    for round in 0..3 {
        for port in 0..500u16 {
            let mut frame = udp4("10.1.0.2", 60);
            frame[34..36].copy_from_slice(&port.to_be_bytes());
            assert_eq!(world.run(VM1, &frame).frame(UPLINK)[50..], with_mac(frame)[..], "round {round}");
        }
    }
}

/// The frame with the inner destination MAC that its rule writes.
fn with_mac(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 1, 2]);
    frame
}
