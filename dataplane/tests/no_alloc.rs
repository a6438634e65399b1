//! Proof that the packet path allocates nothing: an allocator that counts, per thread, around the worker's rounds.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]
// A part of the tests in `path` uses each helper; this one uses few of them.
#![allow(dead_code)]

#[path = "path/frames.rs"]
mod frames;
#[path = "path/harness.rs"]
mod harness;
#[path = "path/host.rs"]
mod host;
#[path = "path/rules.rs"]
mod rules;

use forebay_dataplane::action::PortId;
use forebay_dataplane::flows::listing::Listing;
use forebay_dataplane::task::Command;
use forebay_pipeline::Batch;
use forebay_pipeline::worker::Task;
use forebay_sriov::PacketBurst;
use frames::*;
use harness::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting each call of this thread that takes or returns memory.
struct Counting;

fn count() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every method hands its arguments to the system's allocator unchanged and returns what that returned; the
// counter is a constant-initialised thread-local without a destructor, so using it allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the pointer came from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`; the caller's promise about `size` is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A frame of every verdict, and one in a tunnel over each family.
fn mix() -> Vec<(PortId, Vec<u8>)> {
    let inner = |to| frame4(OTHER_MAC, mac(to), "10.1.0.2", "10.1.0.1", 2, 40);
    let ask = nd(135, 0, "fd00:1::2", Some((1, mac(VM1))));
    vec![
        (VM1, udp4("10.1.0.2", 100)),
        (VM1, udp6("fd00:1::2", 101)),
        (VM1, udp6("fd00:1::3", 102)),
        (VM1, tagged(&udp4("10.1.0.3", 100), 0x8100, 6)),
        (VM1, udp4("10.1.0.2", 1560)),
        (VM1, udp6("fd00:1::2", 1540)),
        (VM1, udp4("10.99.0.2", 10)),
        (VM1, udp4("10.7.0.2", 10)),
        (VM1, udp4("10.8.0.1", 10)),
        (VM1, tcp4("10.9.0.1", 8000, 10)),
        (VM1, arp(mac(VM1), BROADCAST, 1, (mac(VM1), "10.1.0.1"), ([0; 6], "10.1.0.2"))),
        (VM1, icmp6((mac(VM1), BROADCAST), "fd00:1::1", "ff02::1:ff00:2", &ask)),
        (VM1, frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10)),
        (VM1, frame4(mac(VM2), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10)),
        (TRUNK, tagged(&frame4(mac(VM3), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 10), 0x8100, VM3_VLAN)),
        (UPLINK, Outer { class: 3, ..Outer::to_us(100) }.wrap(&inner(VM1))),
        (UPLINK, Outer::to_us_v6(300).wrap(&inner(VM3))),
        (UPLINK, Outer::to_us(101).wrap(&tagged(&inner(VM1), 0x8100, 9))),
        (UPLINK, Outer::to_us(999).wrap(&inner(VM1))),
        (UPLINK, Outer::to_us(104).wrap(&inner(VM1))),
        (UPLINK, arp(PEER_MAC, BROADCAST, 1, (PEER_MAC, "192.0.2.2"), ([0; 6], "192.0.2.1"))),
        (UPLINK, icmp6((PEER_MAC, UPLINK_MAC), "2001:db8::2", "2001:db8::1", &[128, 0, 0, 0, 1, 2, 3, 4])),
    ]
}

/// Gives the devices the frames, all in one piece or each in two.
fn feed(world: &mut World, frames: &[(PortId, Vec<u8>)], cut: bool) {
    for (port, frame) in frames {
        if cut {
            world.put_cut(*port, frame, &[20]);
        } else {
            world.put(*port, frame);
        }
    }
}

#[test]
fn the_counter_counts() {
    let before = CALLS.with(Cell::get);
    drop(Box::new(std::hint::black_box(7)));
    assert_eq!(CALLS.with(Cell::get) - before, 2);
}

#[test]
fn a_hundred_thousand_packets_of_all_verdicts_allocate_nothing() {
    let mut world = World::new();
    let slot = world.hops.slot("192.0.2.9");
    let mix = mix();
    let (mut packets, mut calls) = (0, 0);
    for turn in 0..5_000 {
        feed(&mut world, &mix, turn % 16 == 7);
        // Some turns let packets wait, some resolve them.
        world.neighbours.set(slot, (turn % 8 == 3).then_some(PEER_MAC));
        let before = CALLS.with(Cell::get);
        world.task.round();
        // The first turns warm up: threads register, clocks are calibrated.
        if turn >= 16 {
            calls += CALLS.with(Cell::get) - before;
            packets += mix.len();
        }
        assert_eq!(calls, 0, "in turn {turn}");
        let (frames, trapped) = world.discard();
        assert!(frames >= 14 && trapped == 2, "turn {turn}: {frames} left, {trapped} trapped");
    }
    assert!(packets > 100_000);
    let totals = world.totals(VM1);
    assert_eq!(totals.in_flight(), totals.waiting as i64);
    assert!(
        totals.sent > 20_000 && totals.delivered > 4_000 && totals.local > 8_000 && totals.dropped() > 20_000
    );
}

#[test]
fn overload_and_panics_allocate_nothing_either() {
    let mut world = World::new();
    let frames: Vec<_> = (0..32).map(|_| (VM1, udp4("10.1.0.2", 20))).collect();
    world.task.round();
    for turn in 0..100 {
        feed(&mut world, &frames, false);
        let before = CALLS.with(Cell::get);
        world.task.round();
        if turn % 50 == 49 {
            world.task.recover();
        }
        assert!(turn == 0 || CALLS.with(Cell::get) == before, "in turn {turn}");
    }
    assert!(world.totals(VM1).dropped() > 1_000);
    let mut burst = PacketBurst::new();
    burst.clear();
    world.discard();
    world.check();
}

#[test]
fn a_listing_of_flows_allocates_nothing() {
    let mut world = World::new();
    for (port, frame) in [(VM1, udp4("10.1.0.2", 60)), (VM1, udp6("fd00:1::2", 60))] {
        world.put(port, &frame);
        world.task.round();
        world.discard();
    }
    let (listing, mut reports) = Listing::new();
    let (mut orders, mut found) = (Batch::new(), Batch::new());
    orders.push(Command::ListFlows(listing));
    world.commands.push(&mut orders);
    let before = CALLS.with(Cell::get);
    world.task.round();
    assert_eq!(CALLS.with(Cell::get) - before, 0);
    assert_eq!(reports.pop(&mut found), 3, "two flows and the end: {found:?}");
}
