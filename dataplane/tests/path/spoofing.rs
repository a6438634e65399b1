//! Tenants that say they are somebody else; and what is trapped, in which order.

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::counters::DropReason;

/// The frame as it is, and behind one, two and four tags.
fn at_every_depth(frame: &[u8]) -> [Vec<u8>; 4] {
    let one = tagged(frame, 0x8100, 100);
    let two = tagged(&one, 0x88a8, 7);
    let four = tagged(&tagged(&two, 0x8100, 0), 0x8100, 1);
    [frame.to_vec(), one, two, four]
}

#[track_caller]
fn refused(world: &mut World, frame: &[u8], reason: DropReason) {
    for frame in at_every_depth(frame) {
        world.run(VM1, &frame).is_drop(reason);
    }
}

#[test]
fn macs_and_addresses_of_ip() {
    let mut world = World::new();
    let to = [2, 0, 0, 0, 1, 0x66];
    for from in [mac(VM2), mac(VM4), GATEWAY_MAC, [0; 6], BROADCAST] {
        refused(&mut world, &frame4(from, to, "10.1.0.1", "10.1.0.2", 0, 9), DropReason::SourceMac);
        refused(&mut world, &layer2(from, to, 9), DropReason::SourceMac);
    }
    for src in ["10.1.0.2", "10.1.0.4", "0.0.0.0", "255.255.255.255", "127.0.0.1", "192.0.2.1"] {
        refused(&mut world, &frame4(mac(VM1), to, src, "10.1.0.2", 0, 9), DropReason::SourceIp);
    }
    for src in ["fd00:1::2", "::", "::1", "fe80::1", "2001:db8::1", "::ffff:10.1.0.1"] {
        refused(&mut world, &frame6(mac(VM1), to, src, "fd00:1::2", 0, 9), DropReason::SourceIp);
    }
    // Nor in fragments, whose later ones have no ports.
    for field in [0x2000u16, 1, 0x1fff] {
        let mut frame = frame4(mac(VM1), to, "10.1.0.2", "10.1.0.3", 0, 9);
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        fix_ipv4(&mut frame, 14);
        refused(&mut world, &frame, DropReason::SourceIp);
    }
}

#[test]
fn five_tags_hide_nothing() {
    let mut world = World::new();
    let to = [2, 0, 0, 0, 1, 0x66];
    let four = at_every_depth(&frame4(mac(VM1), to, "10.1.0.1", "10.1.0.2", 0, 9))[3].clone();
    assert_eq!(world.run(VM1, &four).out.len(), 1);
    world.run(VM1, &tagged(&four, 0x8100, 1)).is_drop(DropReason::Malformed);
}

#[test]
fn a_spoofed_frame_behind_a_tag_counts_for_the_port_behind_it() {
    let mut world = World::new();
    let frame = |from, src| tagged(&frame4(from, OTHER_MAC, src, "10.1.0.2", 0, 9), 0x8100, VM3_VLAN);
    world.put(TRUNK, &frame(mac(TRUNK), "10.1.0.1"));
    world.step(VM3).is_drop(DropReason::SourceMac);
    world.put(TRUNK, &frame(mac(VM3), "11.1.0.1"));
    world.step(VM3).is_drop(DropReason::SourceIp);
    world.put(TRUNK, &frame(mac(VM3), "10.1.0.1"));
    assert_eq!(world.step(VM3).frame(UPLINK)[46..49], [0, 1, 44]);
    assert_eq!(world.totals(TRUNK).rx_packets, 0);
}

#[test]
fn the_tag_is_found_in_whatever_pieces() {
    let mut world = World::new();
    let frame = tagged(&frame4(mac(VM3), OTHER_MAC, "10.1.0.1", "10.1.0.2", 0, 9), 0x8100, VM3_VLAN);
    for cut in 1..frame.len() {
        world.put_cut(TRUNK, &frame, &[cut]);
        assert_eq!(world.step(VM3).frame(UPLINK)[46..49], [0, 1, 44], "cut at {cut}");
    }
    assert_eq!(world.totals(TRUNK).rx_packets, 0);
}

#[test]
fn senders_of_arp() {
    let mut world = World::new();
    let own = (mac(VM1), "10.1.0.1");
    let from = |sender, operation| arp(mac(VM1), BROADCAST, operation, sender, ([0; 6], "10.1.0.9"));
    for operation in [1, 2, 3] {
        refused(&mut world, &from((mac(VM2), "10.1.0.1"), operation), DropReason::SourceMac);
        refused(&mut world, &from((mac(VM1), "10.1.0.9"), operation), DropReason::SourceIp);
        refused(&mut world, &from((mac(VM1), "192.0.2.1"), operation), DropReason::SourceIp);
    }
    refused(&mut world, &arp(mac(VM2), BROADCAST, 1, own, ([0; 6], "10.1.0.9")), DropReason::SourceMac);
    // Not for Ethernet and IPv4, or cut off: not what it says.
    for (at, value) in [(15, 6), (16, 9), (18, 5), (19, 16)] {
        let mut frame = from(own, 1);
        frame[at] = value;
        refused(&mut world, &frame, DropReason::Malformed);
    }
    refused(&mut world, &from(own, 1)[..41], DropReason::Malformed);
}

#[test]
fn the_gateway_answers_arp() {
    let mut world = World::new();
    let own = (mac(VM1), "10.1.0.1");
    let ask = |sender, target| arp(mac(VM1), BROADCAST, 1, sender, ([0; 6], target));
    for target in ["10.1.0.2", "10.1.0.254", "192.0.2.1"] {
        let answer = arp(GATEWAY_MAC, mac(VM1), 2, (GATEWAY_MAC, target), own);
        let answers = at_every_depth(&answer);
        for (question, answer) in at_every_depth(&ask(own, target)).into_iter().zip(answers) {
            let outcome = world.run(VM1, &question);
            assert_eq!((outcome.frame(VM1), outcome.local), (&answer[..], 1));
        }
    }
    // Not for the tenant's own address, not a probe for any (RFC 5227), and not what is no question.
    for silent in [
        ask(own, "10.1.0.1"),
        ask((mac(VM1), "0.0.0.0"), "10.1.0.1"),
        ask((mac(VM1), "0.0.0.0"), "10.1.0.2"),
        arp(mac(VM1), BROADCAST, 2, own, ([0; 6], "10.1.0.2")),
    ] {
        world.run(VM1, &silent).is_trap(VM1, &silent);
    }
    let question = arp(mac(VM2), BROADCAST, 1, (mac(VM2), "10.1.0.1"), ([0; 6], "10.1.0.2"));
    world.run(VM2, &question).is_trap(VM2, &question);
    assert_eq!(world.totals(VM1).originated, 12);
}

#[test]
fn senders_and_targets_of_neighbor_discovery() {
    let mut world = World::new();
    let macs = (mac(VM1), [0x33, 0x33, 0xff, 0, 0, 2]);
    let own = Some((1, mac(VM1)));
    let ask = |src, option| icmp6(macs, src, "ff02::1:ff00:2", &nd(135, 0, "fd00:1::2", option));
    let say = |src, target, option| icmp6(macs, src, "ff02::1", &nd(136, 0x20, target, option));
    let target = Some((2, mac(VM1)));
    for src in ["fd00:1::2", "2001:db8::1", "::1", "ff02::1"] {
        refused(&mut world, &ask(src, own), DropReason::SourceIp);
        refused(&mut world, &say(src, "fd00:1::1", target), DropReason::SourceIp);
    }
    // Somebody else's MAC, or address, in the message.
    refused(&mut world, &ask("fd00:1::1", Some((1, mac(VM2)))), DropReason::SourceMac);
    refused(&mut world, &say("fd00:1::1", "fd00:1::1", Some((2, mac(VM2)))), DropReason::SourceMac);
    refused(&mut world, &say("fd00:1::1", "fd00:1::2", target), DropReason::SourceIp);
    refused(&mut world, &say("fe80::1", "2001:db8::1", target), DropReason::SourceIp);
    // Two addresses of one kind, or so many options that not all are looked at.
    let both = [&nd(136, 0x20, "fd00:1::1", Some((2, mac(VM2))))[..], &[2, 1], &mac(VM1)].concat();
    refused(&mut world, &icmp6(macs, "fd00:1::1", "ff02::1", &both), DropReason::Malformed);
    let late =
        [&nd(136, 0x20, "fd00:1::1", None)[..], &[14, 1, 0, 0, 0, 0, 0, 0].repeat(8), &[2, 1], &mac(VM2)]
            .concat();
    refused(&mut world, &icmp6(macs, "fd00:1::1", "ff02::1", &late), DropReason::Malformed);
    let long = [&nd(136, 0x20, "fd00:1::1", None)[..], &[2, 2], &mac(VM2), &[0; 8]].concat();
    refused(&mut world, &icmp6(macs, "fd00:1::1", "ff02::1", &long), DropReason::Malformed);
    // A wrong checksum, code or hop limit.
    for (at, value) in [(21, 254), (55, 1), (57, 0x99)] {
        let mut frame = ask("fd00:1::1", own);
        frame[at] = value;
        refused(&mut world, &frame, DropReason::Malformed);
    }
    for fine in [say("fd00:1::1", "fd00:1::1", target), say("fe80::1", "fe80::1", target)] {
        world.run(VM1, &fine).is_trap(VM1, &fine);
    }
}

#[test]
fn neighbor_discovery_behind_extension_headers_is_looked_at() {
    let mut world = World::new();
    let macs = (mac(VM1), BROADCAST);
    let plain = icmp6(macs, "fd00:1::1", "ff02::1", &nd(136, 0x20, "fd00:1::2", Some((2, mac(VM1)))));
    for count in 1..=7 {
        for kind in [0, 43, 60] {
            let mut frame = plain[..54].to_vec();
            frame[18..20].copy_from_slice(&(32 + 8 * count as u16).to_be_bytes());
            frame[20] = kind;
            for n in 0..count {
                frame.extend([if n + 1 == count { 58 } else { kind }, 0, 1, 4, 0, 0, 0, 0]);
            }
            frame.extend(&plain[54..]);
            world.run(VM1, &frame).is_drop(DropReason::SourceIp);
        }
    }
    // In a fragment by itself (RFC 6980): checked all the same.
    let mut frame = [&plain[..54], &[58, 0, 0, 0, 0, 0, 0, 1], &plain[54..]].concat();
    frame[20] = 44;
    frame[18..20].copy_from_slice(&40u16.to_be_bytes());
    world.run(VM1, &frame).is_drop(DropReason::SourceIp);
}

#[test]
fn the_gateway_answers_neighbor_solicitations() {
    let mut world = World::new();
    let macs = (mac(VM1), [0x33, 0x33, 0xff, 0, 0, 2]);
    let ask = |src, target| icmp6(macs, src, "ff02::1:ff00:2", &nd(135, 0, target, Some((1, mac(VM1)))));
    for src in ["fd00:1::1", "fe80::abcd"] {
        let said = nd(136, 0x60, "fd00:1::2", Some((2, GATEWAY_MAC)));
        let answer = icmp6((GATEWAY_MAC, mac(VM1)), "fd00:1::2", src, &said);
        let answers = at_every_depth(&answer);
        for (question, answer) in at_every_depth(&ask(src, "fd00:1::2")).into_iter().zip(answers) {
            let outcome = world.run(VM1, &question);
            assert_eq!((outcome.frame(VM1), outcome.local), (&answer[..], 1));
        }
    }
    let probe = icmp6(macs, "::", "ff02::1:ff00:2", &nd(135, 0, "fd00:1::2", None));
    for silent in [ask("fd00:1::1", "fd00:1::1"), probe] {
        world.run(VM1, &silent).is_trap(VM1, &silent);
    }
}

#[test]
fn traps_go_before_rules_unless_a_rule_names_layer_2() {
    let mut world = World::new();
    let (unicast, group) = ([2, 0, 0, 0, 1, 2], [1, 0, 0x5e, 0, 0, 9]);
    let dhcp = |src, dst, to| {
        let mut frame = frame4(mac(VM1), to, src, dst, 0, 240);
        frame[36..38].copy_from_slice(&67u16.to_be_bytes());
        frame
    };
    for trapped in [
        dhcp("0.0.0.0", "255.255.255.255", BROADCAST),
        dhcp("10.1.0.1", "255.255.255.255", BROADCAST),
        dhcp("10.1.0.1", "10.1.0.2", unicast),
        frame4(mac(VM1), BROADCAST, "10.1.0.1", "10.1.0.2", 0, 5),
        layer2(mac(VM1), BROADCAST, 30),
    ] {
        for frame in at_every_depth(&trapped) {
            world.run(VM1, &frame).is_trap(VM1, &frame);
        }
    }
    world.run(VM1, &dhcp("10.1.0.9", "255.255.255.255", BROADCAST)).is_drop(DropReason::SourceIp);
    // A rule that names the destination MAC decides even about DHCP; one that does not, does not.
    let named = dhcp("10.1.0.1", "10.200.0.1", [2, 0, 0, 0, 1, 0x66]);
    assert_eq!(world.run(VM1, &named).out.len(), 1);
    // Multicast and link-local control are trapped where that is configured: for VM2, not for VM1.
    let multicast = |port| frame4(mac(port), group, "10.1.0.1", "224.0.0.9", 0, 5);
    let lldp = |port| layer2(mac(port), [1, 0x80, 0xc2, 0, 0, 0x0e], 40);
    for frame in [multicast(VM2), lldp(VM2)] {
        world.run(VM2, &frame).is_trap(VM2, &frame);
    }
    for frame in [multicast(VM1), lldp(VM1)] {
        world.run(VM1, &frame).is_drop(DropReason::NoRule);
    }
    let mut igmp = multicast(VM1);
    igmp[23] = 2;
    fix_ipv4(&mut igmp, 14);
    world.run(VM1, &igmp).is_trap(VM1, &igmp);
    let mld =
        icmp6((mac(VM1), [0x33, 0x33, 0, 0, 0, 0x16]), "fe80::1", "ff02::16", &[143, 0, 0, 0, 0, 0, 0, 0]);
    world.run(VM1, &mld).is_trap(VM1, &mld);
}
