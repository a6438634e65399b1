//! Packets that wait for a next hop: how many, how long, in which order, and on whose behalf.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::control::notice::Notice;
use forebay_dataplane::counters::DropReason;
use forebay_pipeline::worker::Task;
use std::time::{Duration, Instant};

/// A packet of VM1 to a next hop that nobody knows; `number` tells it from others.
fn dead(number: u16) -> Vec<u8> {
    let mut frame = udp4("10.7.0.1", 20);
    frame[18..20].copy_from_slice(&number.to_be_bytes());
    fix_ipv4(&mut frame, 14);
    frame
}

/// The numbers of the packets that left.
fn numbers(outcome: &Outcome) -> Vec<u16> {
    let at = |frame: &[u8]| u16::from_be_bytes([frame[68], frame[69]]);
    outcome
        .out
        .iter()
        .map(|(port, frame)| {
            assert_eq!(*port, UPLINK);
            assert_eq!(frame[..6], PEER_MAC);
            at(frame)
        })
        .collect()
}

/// What leaves from now on, until `count` packets have left or a second is over.
fn leave(world: &mut World, count: usize) -> Vec<u16> {
    let (begin, mut seen) = (Instant::now(), Vec::new());
    while seen.len() < count && begin.elapsed() < Duration::from_secs(1) {
        seen.extend(numbers(&world.step(VM1)));
    }
    seen
}

#[test]
fn packets_wait_and_leave_in_order() {
    let mut world = World::new();
    let slot = world.hops.slot("192.0.2.9");
    let outcome = world.run(VM1, &dead(0));
    assert_eq!(outcome.notices, [Notice::Unresolved { slot }]);
    for number in 1..40 {
        assert!(world.run(VM1, &dead(number)).out.is_empty());
    }
    let totals = world.totals(VM1);
    assert_eq!((totals.waiting, totals.in_flight(), totals.sent), (40, 40, 0));
    // Others are not held up.
    assert_eq!(world.run(VM1, &udp4("10.1.0.2", 5)).out.len(), 1);
    world.neighbours.set(slot, Some(PEER_MAC));
    assert_eq!(leave(&mut world, 40), (0..40).collect::<Vec<_>>());
    let totals = world.totals(VM1);
    assert_eq!((totals.waiting, totals.in_flight(), totals.sent), (0, 0, 41));
}

#[test]
fn a_packet_does_not_overtake_those_that_wait() {
    let mut world = World::new();
    let slot = world.hops.slot("192.0.2.9");
    for turn in 0..50 {
        for number in 0..5 {
            world.put(VM1, &dead(number));
        }
        world.task.round();
        // The worker has just looked; now the neighbour answers, and at once the next packets come.
        world.task.round();
        world.neighbours.set(slot, Some(PEER_MAC));
        world.put(VM1, &dead(5));
        world.put(VM1, &dead(6));
        assert_eq!(numbers(&world.step(VM1)), [0, 1, 2, 3, 4, 5, 6], "turn {turn}");
        world.neighbours.set(slot, None);
    }
}

#[test]
fn so_many_wait_for_one_next_hop() {
    let mut world = World::new();
    let to = |number: u16, dst: &str| {
        let mut frame = udp4(dst, 20);
        frame[18..20].copy_from_slice(&number.to_be_bytes());
        fix_ipv4(&mut frame, 14);
        frame
    };
    for number in 0..127 {
        world.run(VM1, &dead(number));
    }
    assert_eq!((world.waiting(), world.totals(VM1).dropped()), (127, 0));
    world.run(VM1, &dead(127));
    assert_eq!((world.waiting(), world.totals(VM1).dropped()), (128, 0));
    world.run(VM1, &dead(128)).is_drop(DropReason::NoNeighbor);
    assert_eq!(world.waiting(), 128);
    // Another next hop has places of its own.
    for number in 0..129 {
        world.run(VM1, &to(number, "10.6.0.1"));
    }
    assert_eq!((world.waiting(), world.totals(VM1).drops[DropReason::NoNeighbor as usize]), (256, 2));
    world.neighbours.set(world.hops.slot("192.0.2.8"), Some(PEER_MAC));
    assert_eq!(leave(&mut world, 128), (0..128).collect::<Vec<_>>());
    assert_eq!(world.waiting(), 128);
    // The places are free again.
    world.neighbours.set(world.hops.slot("192.0.2.8"), None);
    world.run(VM1, &to(7, "10.6.0.1"));
    assert_eq!(world.waiting(), 129);
    world.neighbours.set(world.hops.slot("192.0.2.8"), Some(PEER_MAC));
    world.neighbours.set(world.hops.slot("192.0.2.9"), Some(PEER_MAC));
    assert_eq!(leave(&mut world, 129).len(), 129);
    assert_eq!((world.waiting(), world.totals(VM1).in_flight()), (0, 0));
}

#[test]
fn patience_ends() {
    let mut world = World::new();
    let begin = Instant::now();
    for number in 0..10 {
        world.run(VM1, &dead(number));
    }
    let mut reminders = 0;
    while world.waiting() > 0 && begin.elapsed() < Duration::from_secs(10) {
        if begin.elapsed() < Duration::from_millis(2_900) {
            assert_eq!(world.waiting(), 10, "after {:?}", begin.elapsed());
        }
        let outcome = world.step(VM1);
        assert!(outcome.out.is_empty());
        reminders += outcome.notices.len();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(begin.elapsed() > Duration::from_millis(2_900));
    let totals = world.totals(VM1);
    assert_eq!(
        (totals.waiting, totals.drops[DropReason::NoNeighbor as usize], totals.dropped()),
        (0, 10, 10)
    );
    assert_eq!(reminders, 0, "nobody new waits, so nobody is reminded");
    world.check();
}

#[test]
fn reminders_are_rare() {
    let mut world = World::new();
    let mut told = 0;
    for number in 0..100 {
        told += world.run(VM1, &dead(number)).notices.len();
    }
    assert!((1..=3).contains(&told), "the control side was told {told} times");
}

#[test]
fn nothing_waits_for_ports_that_are_gone() {
    for gone in [VM1, UPLINK] {
        let mut world = World::new();
        for number in 0..10 {
            world.run(VM1, &dead(number));
        }
        world.publish(&[gone]);
        world.step(VM1);
        let totals = world.totals(VM1);
        assert_eq!((totals.waiting, totals.drops[DropReason::PortDown as usize]), (0, 10));
        world.neighbours.set(world.hops.slot("192.0.2.9"), Some(PEER_MAC));
        assert!(world.step(VM1).out.is_empty());
        // A change that leaves the ports alone leaves the packets alone.
        world.publish(&[]);
        world.neighbours.set(world.hops.slot("192.0.2.9"), None);
        world.step(VM1);
        world.run(VM1, &dead(1));
        world.publish(&[]);
        world.step(VM1);
        assert_eq!(world.waiting(), 1);
        world.neighbours.set(world.hops.slot("192.0.2.9"), Some(PEER_MAC));
        assert_eq!(leave(&mut world, 1), [1]);
    }
}
