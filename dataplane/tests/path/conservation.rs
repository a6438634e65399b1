//! No packet disappears uncounted: received = sent + delivered + trapped + local + dropped + waiting, whatever is full
//! or gone.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::action::PortId;
use forebay_dataplane::counters::{DropReason, PortTotals, WorkerTally};
use forebay_dataplane::stages::dispatch::{Dispatch, Handoff, Way};
use forebay_dataplane::stages::ledger::{Class, Ledger, Origin};
use forebay_dataplane::task::Command;
use forebay_pipeline::worker::Task;
use forebay_pipeline::{Batch, RingConsumer, ring};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Frames of every verdict.
fn mix() -> Vec<(PortId, Vec<u8>)> {
    let question = arp(mac(VM1), BROADCAST, 1, (mac(VM1), "10.1.0.1"), ([0; 6], "10.1.0.2"));
    vec![
        (VM1, udp4("10.1.0.2", 100)),
        (VM1, udp6("fd00:1::2", 100)),
        (VM1, udp4("10.1.0.2", 1560)),
        (VM1, udp4("10.99.0.2", 10)),
        (VM1, udp4("10.8.0.1", 10)),
        (VM1, tcp4("10.9.0.1", 8000, 10)),
        (VM1, question),
        (VM1, frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10)),
        (VM1, frame4(mac(VM2), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10)),
        (VM2, frame4(mac(VM2), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 10)),
        (TRUNK, tagged(&frame4(mac(VM3), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 10), 0x8100, VM3_VLAN)),
        (UPLINK, Outer::to_us(100).wrap(&frame4(OTHER_MAC, mac(VM1), "10.1.0.2", "10.1.0.1", 0, 10))),
        (UPLINK, Outer::to_us_v6(300).wrap(&frame4(OTHER_MAC, mac(VM1), "10.1.0.2", "10.1.0.1", 0, 10))),
        (UPLINK, Outer::to_us(999).wrap(&frame4(OTHER_MAC, mac(VM1), "10.1.0.2", "10.1.0.1", 0, 10))),
        (UPLINK, Outer::to_us(104).wrap(&frame4(OTHER_MAC, mac(VM1), "10.1.0.2", "10.1.0.1", 0, 10))),
        (UPLINK, arp(PEER_MAC, BROADCAST, 1, (PEER_MAC, "192.0.2.2"), ([0; 6], "192.0.2.1"))),
    ]
}

#[test]
fn whatever_leaves_was_counted() {
    let mut world = World::new();
    let mix = mix();
    let (mut out, mut trapped, mut fed) = (0, 0, 0u64);
    for turn in 0..50 {
        for (port, frame) in mix.iter().cycle().take(16 + turn) {
            world.put(*port, frame);
            fed += 1;
        }
        let outcome = world.step(VM1);
        out += outcome.out.len() as u64;
        trapped += outcome.trapped.len() as u64;
    }
    let totals = PORTS.map(|port| world.totals(port));
    let sum = |count: fn(&PortTotals) -> u64| totals.iter().map(count).sum::<u64>();
    assert_eq!(sum(|port| port.rx_packets), fed);
    assert_eq!((sum(|port| port.tx_packets), sum(|port| port.trapped)), (out, trapped));
    assert_eq!(sum(|port| port.tx_packets), sum(|port| port.sent + port.delivered + port.originated));
    assert_eq!(sum(|port| port.originated_lost + port.waiting), 0);
}

#[test]
fn bytes_and_rules_are_counted() {
    let mut world = World::new();
    let frame = udp4("10.1.0.2", 100);
    world.run(VM1, &frame);
    let (vm1, uplink) = (world.totals(VM1), world.totals(UPLINK));
    assert_eq!((vm1.rx_bytes, vm1.tx_bytes), (frame.len() as u64, 0));
    assert_eq!(uplink.tx_bytes, frame.len() as u64 + 50);
    let inner = frame4(OTHER_MAC, mac(VM3), "10.1.0.2", "10.1.0.1", 0, 10);
    world.run(UPLINK, &Outer::to_us(300).wrap(&inner));
    assert_eq!(world.totals(VM3).tx_bytes, inner.len() as u64 + 4, "the tag of the port is on the wire");
    let hits = |id: &str| {
        let slot =
            crate::rules::RULES.iter().position(|line| line.contains(&format!("\"id\":\"{id}\""))).unwrap();
        let counter = world.tally.rules.get(slot as u32).unwrap();
        (counter.packets.get(), counter.bytes.get())
    };
    assert_eq!(
        (hits("a4"), hits("ic"), hits("a6")),
        ((1, frame.len() as u64), (1, inner.len() as u64), (0, 0))
    );
}

#[test]
fn a_full_device_costs_packets() {
    let mut world = World::new();
    let (own, other) = (udp4("10.1.0.2", 50), frame4(mac(VM2), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 9));
    // Nobody takes what the uplink sends; the ring device holds less than these.
    let mut fed = 0;
    while world.totals(VM1).dropped() + world.totals(VM2).dropped() < 500 {
        for _ in 0..20 {
            world.put(VM1, &own);
            world.put(VM2, &other);
            fed += 2;
        }
        world.task.round();
        let (one, two) = (world.totals(VM1), world.totals(VM2));
        assert_eq!((one.in_flight(), two.in_flight()), (0, 0));
        assert_eq!(one.rx_packets + two.rx_packets, fed);
        assert!(fed < 10_000, "the device never fills");
    }
    let (one, two) = (world.totals(VM1), world.totals(VM2));
    assert_eq!(one.dropped() + two.dropped(), fed - world.totals(UPLINK).tx_packets);
    assert_eq!(one.dropped(), one.drops[DropReason::TxFull as usize]);
    assert!(one.sent > 0 && two.sent > 0);
    // A device that is full does not stop the others, nor answers.
    let deliver = frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10);
    world.put(VM1, &deliver);
    world.put(UPLINK, &arp(PEER_MAC, BROADCAST, 1, (PEER_MAC, "192.0.2.2"), ([0; 6], "192.0.2.1")));
    world.task.round();
    assert_eq!((world.totals(VM1).delivered, world.totals(UPLINK).originated_lost), (1, 1));
    let out = world.collect().out.len() as u64;
    assert_eq!(out, world.totals(UPLINK).tx_packets + 1);
    world.check();
    assert_eq!(world.run(VM1, &own).out.len(), 1);
}

#[test]
fn traps_that_nobody_takes_cost_packets() {
    let mut world = World::new();
    let frame = udp4("10.8.0.1", 10);
    for _ in 0..40 {
        for _ in 0..32 {
            world.put(VM1, &frame);
        }
        world.task.round();
    }
    let totals = world.totals(VM1);
    assert_eq!((totals.trapped, totals.drops[DropReason::RingFull as usize]), (1024, 1280 - 1024));
    assert_eq!(world.collect().trapped.len(), 1024);
    world.check();
}

#[test]
fn ports_that_are_down_or_gone() {
    let mut world = World::new();
    let deliver = frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10);
    let up = world.publisher.current().port(VM4).unwrap().up.clone();
    up.store(false, Ordering::Relaxed);
    world.run(VM1, &deliver).is_drop(DropReason::PortDown);
    up.store(true, Ordering::Relaxed);
    assert_eq!(world.run(VM1, &deliver).out.len(), 1);
    world.publish(&[VM4, UPLINK]);
    world.run(VM1, &deliver).is_drop(DropReason::PortDown);
    world.run(VM1, &udp4("10.1.0.2", 10)).is_drop(DropReason::PortDown);
    // What a port without an entry receives.
    world.put(UPLINK, &Outer::to_us(100).wrap(&deliver));
    world.step(UPLINK).is_drop(DropReason::PortDown);
    world.publish(&[]);
    assert_eq!(world.run(VM1, &deliver).out.len(), 1);
}

#[test]
fn a_released_device_takes_nothing_any_more() {
    let mut world = World::new();
    let device = world.device(VM4);
    let deliver = frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10);
    let mut batch = Batch::new();
    batch.push(Command::Release { device });
    world.commands.push(&mut batch);
    world.run(VM1, &deliver).is_drop(DropReason::PortDown);
    assert_eq!(world.totals(VM4).rx_packets, 0);
}

#[test]
fn what_the_control_side_sends_is_counted_apart() {
    let mut world = World::new();
    let frame = layer2(GATEWAY_MAC, mac(VM1), 20);
    let hand_in = |world: &mut World, to: PortId, bytes: &[u8]| {
        let packet = world.pool.allocate_with(bytes).unwrap();
        let origin = Origin { from: to, to, class: Class::Originated, bytes: bytes.len() as u32 };
        let mut batch = Batch::new();
        batch.push(Handoff { packet, origin });
        assert_eq!(world.handoff.as_mut().unwrap().push(&mut batch), 1);
        world.step(to)
    };
    assert_eq!(hand_in(&mut world, VM1, &frame).frame(VM1), frame);
    assert!(hand_in(&mut world, VM4, &layer2(GATEWAY_MAC, mac(VM4), 1500)).out.is_empty());
    let (vm1, vm4) = (world.totals(VM1), world.totals(VM4));
    assert_eq!((vm1.originated, vm1.tx_packets, vm4.originated_lost, vm4.tx_packets), (1, 1, 1, 0));
}

/// Two workers: the first receives, the second has every transmit queue.
fn two_workers() -> (World, Dispatch, RingConsumer<Handoff>, Arc<WorkerTally>) {
    let (producer, consumer) = ring("first-second", 256);
    let mut queues = Vec::new();
    let mut world = World::with(vec![Some(producer)], |queue| {
        queues.push(queue);
        Way::Worker(0)
    });
    let tally = Arc::new(WorkerTally::new(PORTS.len()).unwrap());
    let mut second = world.dispatch(&Ledger::new(tally.clone()), Vec::new());
    for queue in queues {
        second.attach(queue.port(), Way::Queue(queue));
    }
    (world, second, consumer, tally)
}

#[test]
fn packets_that_change_workers() {
    let (mut world, mut second, mut handed, tally) = two_workers();
    let mix = mix();
    let both = |world: &World, port: PortId| {
        let mut totals = world.totals(port);
        totals.add(&tally.ports[port.index()]);
        totals
    };
    let (mut fed, mut out, mut trapped) = (0, 0, 0);
    for turn in 0..30 {
        for (port, frame) in &mix {
            world.put(*port, frame);
            fed += 1;
        }
        world.task.round();
        // In some turns the second worker is late: its ring fills.
        if turn % 10 < 7 && turn > 3 {
            continue;
        }
        let mut batch = Batch::new();
        while handed.pop(&mut batch) > 0 {
            second.take_over(&mut batch);
        }
        let outcome = world.collect();
        out += outcome.out.len() as u64;
        trapped += outcome.trapped.len() as u64;
        assert_eq!((world.pool.in_use(), handed.len()), (0, 0));
        for port in PORTS {
            assert_eq!(both(&world, port).in_flight(), 0, "{port:?}");
        }
    }
    let totals = PORTS.map(|port| both(&world, port));
    assert_eq!(totals.iter().map(|port| port.rx_packets).sum::<u64>(), fed);
    assert_eq!(totals.iter().map(|port| port.tx_packets).sum::<u64>(), out);
    assert_eq!(totals.iter().map(|port| port.trapped).sum::<u64>(), trapped);
    assert!(totals[VM1.index()].originated > 0 && totals[VM1.index()].sent > 0);
}

#[test]
fn a_full_ring_between_workers_costs_packets() {
    let (mut world, _second, handed, _) = two_workers();
    for _ in 0..20 {
        for _ in 0..30 {
            world.put(VM1, &udp4("10.1.0.2", 9));
        }
        world.task.round();
    }
    let totals = world.totals(VM1);
    assert_eq!((handed.len(), totals.drops[DropReason::RingFull as usize]), (256, 600 - 256));
    assert_eq!(totals.in_flight(), 256);
    drop(handed);
    drop(world.task);
}
