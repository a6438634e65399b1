//! What tenants send, as it leaves through the uplink: byte for byte what another builder makes.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::counters::DropReason;
use std::collections::HashSet;

/// The outer UDP source port of a frame that left.
fn source_port(frame: &[u8]) -> u16 {
    let at = if frame[12..14] == [8, 0] { 34 } else { 54 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// VM1 sends `inner`; what leaves is `expected` behind the headers to `remote`.
#[track_caller]
fn leaves_as(world: &mut World, inner: &[u8], expected: &[u8], change: impl Fn(&mut Outer), remote: &str) {
    let outcome = world.run(VM1, inner);
    let frame = outcome.frame(UPLINK);
    let port = source_port(frame);
    assert!(port >= 49_152, "{port} is no dynamic port");
    let mut outer = Outer::from_us(100, remote, port);
    change(&mut outer);
    assert_eq!(frame, outer.wrap(expected));
    assert_eq!((outcome.drops.len(), outcome.local, outcome.trapped.len()), (0, 0, 0));
}

fn with_destination(frame: &[u8], mac: [u8; 6]) -> Vec<u8> {
    [&mac[..], &frame[6..]].concat()
}

#[test]
fn over_ipv4_and_ipv6() {
    let mut world = World::new();
    for length in [0, 1, 2, 7, 100, 1001, 1400] {
        let inner = udp4("10.1.0.2", length);
        leaves_as(&mut world, &inner, &with_destination(&inner, [2, 0, 0, 0, 1, 2]), |_| (), "192.0.2.2");
        let inner = udp6("fd00:1::2", length);
        leaves_as(&mut world, &inner, &inner, |_| (), "2001:db8::2");
    }
    assert_eq!(world.totals(UPLINK).tx_packets, 14);
    assert_eq!(world.totals(VM1).sent, 14);
}

#[test]
fn layer_2_and_every_family_over_either_underlay() {
    let mut world = World::new();
    for (to, remote) in [([2, 0, 0, 0, 1, 0x66], "192.0.2.2"), ([2, 0, 0, 0, 1, 0x67], "2001:db8::2")] {
        let (v4, v6) = (
            frame4(mac(VM1), to, "10.1.0.1", "10.200.0.1", 0, 61),
            frame6(mac(VM1), to, "fd00:1::1", "fd00:9::1", 0, 61),
        );
        for inner in [layer2(mac(VM1), to, 50), layer2(mac(VM1), to, 0), v4, v6] {
            leaves_as(&mut world, &inner, &inner, |_| (), remote);
            let tagged = tagged(&inner, 0x8100, 0x6064);
            leaves_as(&mut world, &tagged, &tagged, |_| (), remote);
        }
    }
}

#[test]
fn a_pushed_tag_ttl_and_dscp() {
    let mut world = World::new();
    let change = |outer: &mut Outer| (outer.ttl, outer.class) = (7, 46 << 2);
    for (inner, remote) in [(udp4("10.1.0.3", 99), "192.0.2.3"), (udp6("fd00:1::3", 99), "2001:db8::2")] {
        leaves_as(&mut world, &inner, &tagged(&inner, 0x8100, 9), change, remote);
        let own_tag = tagged(&inner, 0x88a8, 0x2005);
        leaves_as(&mut world, &own_tag, &tagged(&own_tag, 0x8100, 9), change, remote);
    }
}

#[test]
fn congestion_bits_are_copied_out_and_the_dscp_is_not() {
    let mut world = World::new();
    for ecn in 0..4 {
        let change = |outer: &mut Outer| outer.class = ecn;
        let inner = frame4(mac(VM1), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0xb8 | ecn, 10);
        leaves_as(&mut world, &inner, &with_destination(&inner, [2, 0, 0, 0, 1, 2]), change, "192.0.2.2");
        let inner = frame6(mac(VM1), OTHER_MAC, "fd00:1::1", "fd00:1::2", 0xb8 | ecn, 10);
        leaves_as(&mut world, &inner, &inner, change, "2001:db8::2");
        let inner = frame4(mac(VM1), OTHER_MAC, "10.1.0.1", "10.1.0.3", ecn, 10);
        let change = |outer: &mut Outer| (outer.ttl, outer.class) = (7, 46 << 2 | ecn);
        leaves_as(&mut world, &inner, &tagged(&inner, 0x8100, 9), change, "192.0.2.3");
    }
}

#[test]
fn a_flow_keeps_its_source_port_and_flows_spread() {
    let mut world = World::new();
    let mut ports = HashSet::new();
    for flow in 0..200u16 {
        let mut inner = udp4("10.1.0.2", 20);
        inner[34..36].copy_from_slice(&(10_000 + flow).to_be_bytes());
        inner[40..42].fill(0);
        let first = source_port(world.run(VM1, &inner).frame(UPLINK));
        // Another length, payload, DSCP and TTL are the same flow.
        let mut other = frame4(mac(VM1), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0x28, 300);
        other[34..36].copy_from_slice(&(10_000 + flow).to_be_bytes());
        other[40..42].fill(0);
        assert_eq!(source_port(world.run(VM1, &other).frame(UPLINK)), first);
        ports.insert(first);
    }
    assert!(ports.len() > 190, "200 flows have {} source ports", ports.len());
}

/// The fragments of one datagram, IPv4: a first and a later one.
fn fragments4() -> [Vec<u8>; 2] {
    let mut first = udp4("10.1.0.2", 64);
    first[20..22].copy_from_slice(&0x2000u16.to_be_bytes());
    fix_ipv4(&mut first, 14);
    let mut later = udp4("10.1.0.2", 64);
    later[20..22].copy_from_slice(&9u16.to_be_bytes());
    fix_ipv4(&mut later, 14);
    [first, later]
}

#[test]
fn fragments_pass_and_share_a_source_port() {
    let mut world = World::new();
    let mut ports = HashSet::new();
    for inner in fragments4() {
        leaves_as(&mut world, &inner, &with_destination(&inner, [2, 0, 0, 0, 1, 2]), |_| (), "192.0.2.2");
        ports.insert(source_port(world.run(VM1, &inner).frame(UPLINK)));
    }
    assert_eq!(ports.len(), 1);
    let mut ports = HashSet::new();
    for offset_and_more in [1u16, 9 << 3] {
        let udp = udp6("fd00:1::2", 64);
        let mut inner = [&udp[..54], &[17, 0, 0, 0, 0, 0, 0, 1], &udp[54..]].concat();
        inner[20] = 44;
        inner[18..20].copy_from_slice(&80u16.to_be_bytes());
        inner[56..58].copy_from_slice(&offset_and_more.to_be_bytes());
        leaves_as(&mut world, &inner, &inner, |_| (), "2001:db8::2");
        ports.insert(source_port(world.run(VM1, &inner).frame(UPLINK)));
    }
    assert_eq!(ports.len(), 1);
}

#[test]
fn rules_decide() {
    let mut world = World::new();
    world.run(VM1, &tcp4("10.9.1.1", 8500, 10)).is_drop(DropReason::RuleDrop);
    world.run(VM1, &tcp4("10.9.1.1", 7999, 10)).is_drop(DropReason::NoRule);
    world.run(VM1, &udp4("10.9.1.1", 10)).is_drop(DropReason::NoRule);
    let frame = udp4("10.8.0.1", 10);
    world.run(VM1, &frame).is_trap(VM1, &frame);
    let deliver = frame4(mac(VM1), mac(VM4), "10.1.0.1", "10.1.0.4", 0, 10);
    assert_eq!(world.run(VM1, &deliver).frame(VM4), deliver);
    assert_eq!(world.totals(VM1).delivered, 1);
    assert_eq!((world.totals(VM4).tx_packets, world.totals(VM4).tx_bytes), (1, deliver.len() as u64));
}

#[test]
fn options_and_extension_headers_do_not_hide_the_addresses() {
    let mut world = World::new();
    let plain = udp4("10.1.0.2", 20);
    let mut options = [&plain[..34], &[1; 40], &plain[34..]].concat();
    options[14] = 0x4f;
    options[16..18].copy_from_slice(&88u16.to_be_bytes());
    fix_ipv4(&mut options, 14);
    leaves_as(&mut world, &options, &with_destination(&options, [2, 0, 0, 0, 1, 2]), |_| (), "192.0.2.2");
    options[29] = 9;
    fix_ipv4(&mut options, 14);
    world.run(VM1, &options).is_drop(DropReason::SourceIp);

    let plain = udp6("fd00:1::2", 20);
    for (count, passes) in [(1, true), (7, true), (8, false), (20, false)] {
        let mut chain = plain[..54].to_vec();
        chain[20] = 60;
        chain[18..20].copy_from_slice(&(28 + 8 * count as u16).to_be_bytes());
        for n in 0..count {
            chain.extend([if n + 1 == count { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        chain.extend(&plain[54..]);
        if passes {
            leaves_as(&mut world, &chain, &chain, |_| (), "2001:db8::2");
        } else {
            world.run(VM1, &chain).is_drop(DropReason::Malformed);
        }
    }
}

#[test]
fn padding_travels_with_the_frame() {
    let mut world = World::new();
    let mut inner = udp4("10.1.0.2", 4);
    inner.resize(60, 0);
    leaves_as(&mut world, &inner, &with_destination(&inner, [2, 0, 0, 0, 1, 2]), |_| (), "192.0.2.2");
}
