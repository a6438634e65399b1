//! The flow cache on the path: what is remembered about a flow is what the tables say, for as long as they say it.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::action::{Action, PortId};
use forebay_dataplane::counters::DropReason;
use forebay_dataplane::flows::listing::{FlowCopy, Listing, Report};
use forebay_dataplane::flows::record::{FlowRecord, Outer as Tunnel};
use forebay_dataplane::stages::admit::Admit;
use forebay_dataplane::stages::classify::Classify;
use forebay_dataplane::stages::parcel::{Meta, Parcel, Parcels};
use forebay_dataplane::stages::recall::Recall;
use forebay_dataplane::task::Command;
use forebay_pipeline::worker::Task;
use forebay_pipeline::{Batch, Stage};

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
fn what_older_tables_decided_is_not_remembered_as_what_newer_ones_say() {
    let (mut lab, _queues) = Lab::new();
    let Stages { mut recall, mut admit, mut classify, .. } = lab.stages(Vec::new());
    let to_vm4 = frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 60);
    let mut burst = Parcels::new();
    let pool = lab.pool.clone();
    let mut is_delivered = |recall: &mut Recall, admit: &mut Admit, classify: &mut Classify| {
        burst.drain().for_each(drop);
        let packet = pool.allocate_with(&to_vm4).unwrap();
        assert!(burst.push(Parcel { packet, meta: Meta::received(VM1) }).is_ok());
        recall.process(&mut burst);
        if burst.exit.is_some() {
            return true;
        }
        admit.process(&mut burst);
        classify.process(&mut burst);
        let (_, meta) = burst.iter().next().unwrap();
        meta.decision.action.plain_deliver() == Some(VM4)
    };
    for _ in 0..2 {
        assert!(is_delivered(&mut recall, &mut admit, &mut classify));
    }
    // The rule goes, and the stages come to know it one by one.
    lab.publish_rules(|line| if line.contains("\"a-vm4\"") { "" } else { line });
    recall.refresh();
    assert!(is_delivered(&mut recall, &mut admit, &mut classify), "by the tables of before");
    admit.refresh();
    assert!(is_delivered(&mut recall, &mut admit, &mut classify), "and again");
    classify.refresh();
    for _ in 0..3 {
        assert!(!is_delivered(&mut recall, &mut admit, &mut classify), "the tables of before are remembered");
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

/// Asks the worker for its flows, and lets it go on while nothing is received.
fn listed(world: &mut World) -> Vec<FlowCopy> {
    let (listing, mut reports) = Listing::new();
    let mut batch = Batch::new();
    batch.push(Command::ListFlows(listing));
    assert_eq!(world.commands.push(&mut batch), 1);
    let (mut flows, mut batch) = (Vec::new(), Batch::new());
    for _ in 0..100 {
        world.task.round();
        while reports.pop(&mut batch) > 0 {
            for report in batch.drain(..) {
                match report {
                    Report::Flow(flow) => flows.push(flow),
                    Report::Through => {
                        assert_eq!(world.task.round().backlog, 0, "the worker may sleep again");
                        return flows;
                    }
                }
            }
        }
    }
    panic!("the worker does not come to an end");
}

#[test]
fn a_worker_tells_its_flows_with_what_they_brought() {
    let mut world = World::new();
    assert!(listed(&mut world).is_empty());
    let sent = udp4("10.1.0.2", 60);
    let dropped = udp4("10.99.0.1", 200);
    let inner = frame6(OTHER_MAC, mac(VM3), "fd00:1::2", "fd00:1::1", 0xb8, 40);
    let came = Outer::to_us_v6(300).wrap(&inner);
    for (port, frame, packets) in [(VM1, &sent, 5), (VM1, &dropped, 3), (UPLINK, &came, 2)] {
        (0..packets).for_each(|_| drop(world.run(port, frame)));
    }
    let mut flows: Vec<_> =
        listed(&mut world).iter().map(|flow| (FlowRecord::decode(&flow.head, &flow.tail), *flow)).collect();
    flows.sort_by_key(|(_, flow)| flow.packets);
    let [(ingress, two), (unwanted, three), (egress, five)] = &flows[..] else { panic!("{flows:?}") };
    assert_eq!((five.packets, five.bytes), (5, 5 * sent.len() as u64));
    assert_eq!((three.packets, three.bytes), (3, 3 * dropped.len() as u64));
    assert_eq!((two.packets, two.bytes), (2, 2 * inner.len() as u64));
    let expected = FlowRecord {
        port: VM1,
        outer: None,
        src_mac: mac(VM1),
        dst_mac: OTHER_MAC,
        src: "10.1.0.1".parse().unwrap(),
        dst: "10.1.0.2".parse().unwrap(),
        protocol: 17,
        ports: Some((4000, 5000)),
        dscp: 0,
    };
    assert_eq!(*egress, expected);
    assert_eq!(*unwanted, FlowRecord { dst: "10.99.0.1".parse().unwrap(), ..expected });
    let expected = FlowRecord {
        port: UPLINK,
        outer: Some(Tunnel { vni: 300, source: "2001:db8::2".parse().unwrap() }),
        src_mac: OTHER_MAC,
        dst_mac: mac(VM3),
        src: "fd00:1::2".parse().unwrap(),
        dst: "fd00:1::1".parse().unwrap(),
        dscp: 0xb8 >> 2,
        ..expected
    };
    assert_eq!(*ingress, expected);
    assert_eq!(five.decision.slot, 0, "the first rule decided");
    assert_eq!(three.decision.action.unpack(), Action::Drop(DropReason::NoRule));
}

#[test]
fn a_listing_goes_on_between_bursts_that_find_what_they_look_for() {
    let mut world = World::new();
    let frame = udp4("10.1.0.2", 60);
    world.run(VM1, &frame);
    let (listing, mut reports) = Listing::new();
    let mut batch = Batch::new();
    batch.push(Command::ListFlows(listing));
    world.commands.push(&mut batch);
    assert_eq!(world.run(VM1, &frame).frame(UPLINK)[50..], with_mac(frame)[..]);
    let mut batch = Batch::new();
    assert!(reports.pop(&mut batch) > 0);
    assert!(matches!(batch[0], Report::Flow(FlowCopy { packets: 2, .. })), "{batch:?}");
}
