//! Everything that tenants and the underlay could send: cut off, bent, in pieces, and at random.
//!
//! After each frame: no panic, exact conservation, no lost buffer ([`Lab::check`]), and nothing of one tenant leaves
//! by another's port or tunnel ([`is_allowed`]).

use crate::frames::*;
use crate::harness::*;
use forebay_dataplane::action::PortId;
use forebay_dataplane::counters::DropReason;
use forebay_dataplane::stages::parcel::{Meta, Parcel, Parcels};
use forebay_pipeline::Stage;

/// Valid frames of every kind, and the port whose device receives them.
fn corpus() -> Vec<(PortId, Vec<u8>)> {
    let mut frames = tenant_frames();
    for (vni, to) in
        [(100, VM1), (100, VM4), (200, VM2), (300, VM3), (400, TRUNK), (101, VM1), (102, VM1), (104, VM1)]
    {
        let inner = frame4(OTHER_MAC, mac(to), "10.1.0.2", "10.1.0.1", 1, 21);
        for outer in
            [Outer::to_us(vni), Outer::to_us_v6(vni), Outer { checksum: true, class: 3, ..Outer::to_us(vni) }]
        {
            frames.push((UPLINK, outer.wrap(&inner)));
            frames.push((UPLINK, outer.wrap(&tagged(&inner, 0x8100, VM3_VLAN))));
        }
    }
    let inner = frame6(OTHER_MAC, mac(VM1), "fd00:1::2", "fd00:1::1", 2, 9);
    frames.push((UPLINK, Outer { class: 3, ..Outer::to_us(100) }.wrap(&inner)));
    frames.push((UPLINK, Outer::to_us(100).wrap(&Outer::to_us(200).wrap(&inner))));
    frames.push((UPLINK, arp(PEER_MAC, BROADCAST, 1, (PEER_MAC, "192.0.2.2"), ([0; 6], "192.0.2.1"))));
    let ask = nd(135, 0, "2001:db8::1", Some((1, PEER_MAC)));
    frames.push((UPLINK, icmp6((PEER_MAC, UPLINK_MAC), "2001:db8::2", "ff02::1:ff00:1", &ask)));
    frames.push((
        UPLINK,
        icmp6((PEER_MAC, UPLINK_MAC), "2001:db8::2", "2001:db8::1", &[128, 0, 0, 0, 1, 2, 3, 4]),
    ));
    frames
}

fn tenant_frames() -> Vec<(PortId, Vec<u8>)> {
    let mut frames = Vec::new();
    for port in [VM1, VM2, TRUNK] {
        for to in [OTHER_MAC, [2, 0, 0, 0, 1, 0x66], mac(VM4), mac(TRUNK), mac(VM3)] {
            frames.push((port, frame4(mac(port), to, "10.1.0.1", "10.1.0.2", 0, 18)));
        }
        frames.push((port, frame6(mac(port), OTHER_MAC, "fd00:1::1", "fd00:1::2", 0, 18)));
        frames.push((port, frame4(mac(port), OTHER_MAC, "10.1.0.1", "10.1.0.3", 0, 18)));
        frames.push((port, layer2(mac(port), [2, 0, 0, 0, 1, 0x67], 20)));
        let question = arp(mac(port), BROADCAST, 1, (mac(port), "10.1.0.1"), ([0; 6], "10.1.0.2"));
        frames.push((port, question));
        let ask = nd(135, 0, "fd00:1::2", Some((1, mac(port))));
        frames.push((port, icmp6((mac(port), BROADCAST), "fd00:1::1", "ff02::1:ff00:2", &ask)));
        let mut nested = Outer::to_us(200);
        (nested.macs, nested.src, nested.dst) =
            ((mac(port), OTHER_MAC), "10.1.0.1".into(), "10.1.0.2".into());
        frames.push((port, nested.wrap(&layer2(OTHER_MAC, mac(VM2), 8))));
    }
    let plain = udp6("fd00:1::2", 20);
    let mut chain =
        [&plain[..54], &[60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 1]].concat();
    chain.extend(&plain[54..]);
    (chain[20], chain[19]) = (0, 52);
    frames.push((VM1, chain));
    let plain = tcp4("10.1.0.2", 80, 5);
    let mut options = [&plain[..34], &[1; 12], &plain[34..]].concat();
    (options[14], options[17]) = (0x48, 57);
    fix_ipv4(&mut options, 14);
    frames.push((VM1, options));
    let stacks = frames.clone();
    for (port, frame) in stacks.iter().step_by(3) {
        frames.push((*port, tagged(frame, 0x8100, VM3_VLAN)));
        frames.push((*port, tagged(&tagged(&tagged(frame, 0x8100, 1), 0x88a8, VM3_VLAN), 0x8100, 0)));
    }
    frames
}

/// Where the VNI of a tunnelled frame stands, by a walk over the outer headers that believes everything.
fn vni(frame: &[u8]) -> Option<u32> {
    let byte = |at: usize| frame.get(at).copied();
    let mut l4 = 14;
    if frame.get(12..14)? == [8, 0] {
        l4 += usize::from(byte(14)? & 15) * 4;
    } else {
        let mut next = byte(20)?;
        l4 += 40;
        while matches!(next, 0 | 43 | 44 | 51 | 60) {
            let length = usize::from(byte(l4 + 1)?);
            let header = match next {
                44 => 8,
                51 => (length + 2) * 4,
                _ => (length + 1) * 8,
            };
            next = byte(l4)?;
            l4 += header;
        }
    }
    let field = frame.get(l4 + 12..l4 + 15)?;
    Some(u32::from(field[0]) << 16 | u32::from(field[1]) << 8 | u32::from(field[2]))
}

/// The VLAN of the outermost tag.
fn tag(frame: &[u8]) -> Option<u16> {
    let is_tag = matches!(frame.get(12..14)?, [0x81, 0] | [0x88, 0xa8]);
    let tci = u16::from_be_bytes([*frame.get(14)?, *frame.get(15)?]);
    is_tag.then_some(tci & 0xfff)
}

/// The MAC stands in the frame: as its source, or as the sender in ARP.
fn names(frame: &[u8], mac: &[u8]) -> bool {
    frame.windows(6).take(40).any(|window| window == mac)
}

/// Whether `input`, received by the device of `from`, may have brought about `frame` at `at`.
fn is_allowed(from: PortId, input: &[u8], at: PortId, frame: &[u8]) -> bool {
    let behind = tag(input) == Some(VM3_VLAN);
    match (from, at) {
        (UPLINK, UPLINK) => {
            frame[6..12] == UPLINK_MAC && (names(input, &frame[..6]) || frame[..2] == [0x33, 0x33])
        }
        (UPLINK, VM1) => matches!(vni(input), Some(100..=103 | 105)),
        (UPLINK, VM2) => vni(input) == Some(200),
        (UPLINK, VM4) => vni(input) == Some(100) && frame[..6] == mac(VM4),
        (UPLINK, TRUNK) => vni(input) == Some(if tag(frame) == Some(VM3_VLAN) { 300 } else { 400 }),
        (VM1, UPLINK) => vni(frame) == Some(100),
        (VM2, UPLINK) => vni(frame) == Some(200),
        (TRUNK, UPLINK) => vni(frame) == Some(if behind { 300 } else { 400 }),
        (VM1, VM4) => input[..6] == mac(VM4),
        (VM1, TRUNK) => input[..6] == if tag(frame) == Some(VM3_VLAN) { mac(VM3) } else { mac(TRUNK) },
        // Answers of the host: to ARP, ND, and packets that are too big.
        (TRUNK, TRUNK) => behind == (tag(frame) == Some(VM3_VLAN)) && frame[..6] == input[6..12],
        (from, at) => from == at && frame[..6] == mac(from),
    }
}

/// What came of a frame must have been allowed.
#[track_caller]
fn check_isolation(from: PortId, input: &[u8], outcome: &Outcome) {
    for (at, frame) in &outcome.out {
        assert!(
            is_allowed(from, input, *at, frame),
            "{input:02x?} from {from:?} gave {frame:02x?} at {at:?}"
        );
    }
    for (port, _) in &outcome.trapped {
        let behind = from == TRUNK && tag(input) == Some(VM3_VLAN);
        assert_eq!(*port, if behind { VM3 } else { from });
    }
    assert!(outcome.out.len() + outcome.trapped.len() <= 1, "{input:02x?} gave {outcome:02x?}");
}

#[track_caller]
fn feed(world: &mut World, port: PortId, frame: &[u8]) -> Outcome {
    let outcome = world.run(port, frame);
    check_isolation(port, frame, &outcome);
    outcome
}

/// Every next hop is known, so that nothing waits.
fn world() -> World {
    let world = World::new();
    for remote in ["192.0.2.8", "192.0.2.9"] {
        world.neighbours.set(world.hops.slot(remote), Some(PEER_MAC));
    }
    world
}

#[test]
fn the_corpus_is_valid() {
    let mut world = world();
    let (mut out, mut trapped) = (0, 0);
    let corpus = corpus();
    for (port, frame) in &corpus {
        let outcome = feed(&mut world, *port, frame);
        out += outcome.out.len();
        trapped += outcome.trapped.len();
    }
    assert!(
        out + trapped > corpus.len() * 3 / 4,
        "of {} frames {out} left and {trapped} were trapped",
        corpus.len()
    );
}

#[test]
fn truncated_at_every_length() {
    let mut world = world();
    for (port, frame) in corpus() {
        for length in 14..frame.len() {
            feed(&mut world, port, &frame[..length]);
        }
    }
}

#[test]
fn shorter_than_a_header() {
    // The ring devices take no such frame, so the stages get it from the test's hands.
    let (mut lab, _queues) = Lab::new();
    let Stages { mut admit, mut classify, mut transform, mut exit, ledger, .. } = lab.stages(Vec::new());
    for (port, frame) in corpus() {
        for length in 0..14 {
            let packet = lab.pool.allocate_with(&frame[..length]).unwrap();
            ledger.received(port, 1, length as u64);
            let mut batch = Parcels::new();
            assert!(batch.push(Parcel { packet, meta: Meta::received(port) }).is_ok());
            admit.process(&mut batch);
            classify.process(&mut batch);
            transform.process(&mut batch);
            exit.dispatch.process(&mut batch);
            lab.check();
        }
        let totals = lab.totals(port);
        assert_eq!(totals.drops[DropReason::Malformed as usize], totals.rx_packets);
    }
}

#[test]
fn every_header_byte_at_many_values() {
    let mut world = world();
    for (port, frame) in corpus() {
        for at in 0..frame.len().min(134) {
            let old = frame[at];
            for value in
                [0, 1, 4, 0x0f, 0x3f, 0x40, 0x45, 0x7f, 0x80, 0xff, old ^ 1, old ^ 0x20, old ^ 0x80, !old]
            {
                let mut bent = frame.clone();
                bent[at] = value;
                feed(&mut world, port, &bent);
                if repair(&mut bent) {
                    feed(&mut world, port, &bent);
                }
            }
        }
    }
}

/// Makes the outer IPv4 checksum right, and the inner one of a tunnel, where there are such.
fn repair(frame: &mut [u8]) -> bool {
    let mut changed = false;
    for l3 in [14, 18, 64, 84] {
        let is_ip = frame.get(l3 - 2..l3) == Some(&[8, 0]) && frame.len() >= l3 + 60;
        if is_ip && frame[l3] & 15 >= 5 {
            fix_ipv4(frame, l3);
            changed = true;
        }
    }
    changed
}

#[test]
fn pieces_change_nothing() {
    let mut world = world();
    for (port, frame) in corpus() {
        let whole = feed(&mut world, port, &frame);
        let mut same = |cuts: &[usize]| {
            world.put_cut(port, &frame, cuts);
            let cut = world.step(port);
            assert_eq!(
                (&cut.out, &cut.trapped),
                (&whole.out, &whole.trapped),
                "{port:?} {frame:02x?} cut at {cuts:?}"
            );
            assert_eq!((&cut.drops, cut.local), (&whole.drops, whole.local), "{frame:02x?} cut at {cuts:?}");
        };
        for cut in 0..=frame.len() {
            same(&[cut]);
        }
        same(&[0, 0, 0]);
        let all: Vec<usize> = (1..frame.len()).collect();
        same(&all);
        let odd: Vec<usize> = (0..frame.len()).step_by(7).collect();
        same(&odd);
    }
}

#[test]
fn long_frames_in_pieces_are_checksummed_right() {
    let mut world = world();
    let inner = udp6("fd00:1::2", 1400);
    let whole = feed(&mut world, VM1, &inner);
    let arrived = Outer::to_us_v6(100).wrap(&frame4(OTHER_MAC, mac(VM1), "10.1.0.2", "10.1.0.1", 0, 1400));
    let delivered = feed(&mut world, UPLINK, &arrived);
    assert_eq!((whole.out.len(), delivered.out.len()), (1, 1));
    for cut in (1..1400).step_by(3) {
        world.put_cut(VM1, &inner, &[cut, cut + 1, cut + 30]);
        assert_eq!(world.step(VM1).out, whole.out, "cut at {cut}");
        world.put_cut(UPLINK, &arrived, &[cut, cut + 1, cut + 30]);
        assert_eq!(world.step(UPLINK).out, delivered.out, "cut at {cut}");
    }
}

#[test]
fn jumbo_frames() {
    let mut world = world();
    for length in [1541, 1601, 2040, 2100, 4100, 9000, 16_000, 65_000] {
        for frame in [udp4("10.1.0.2", length), udp6("fd00:1::2", length), layer2(mac(VM1), mac(VM4), length)]
        {
            let outcome = feed(&mut world, VM1, &frame);
            assert_eq!(outcome.drops, [("too_big", 1)], "{length} bytes");
        }
        let inner = frame4(OTHER_MAC, mac(VM1), "10.1.0.2", "10.1.0.1", 0, length.min(65_000));
        let outcome = feed(&mut world, UPLINK, &Outer::to_us(100).wrap(&inner));
        assert_eq!(outcome.drops, [("too_big", 1)], "{length} bytes in a tunnel");
    }
}

/// A small generator of numbers (xorshift64*, Vigna 2016): the same run each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % limit.max(1)
    }
}

/// Bytes that mean something in headers.
const TELLING: [u8; 16] = [0, 1, 2, 4, 6, 8, 17, 43, 44, 51, 58, 60, 0x45, 0x60, 0x81, 0xff];

fn mutate(frame: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(frame.len().min(160));
    match dice.below(10) {
        0..=4 => frame[at] = TELLING[dice.below(TELLING.len())],
        5 => frame[at] = dice.below(256) as u8,
        6 => frame.truncate(at.max(1)),
        7 => frame.extend(vec![0x5a; dice.below(80)]),
        8 => {
            let copied = frame[at..(at + dice.below(40)).min(frame.len())].to_vec();
            let to = dice.below(frame.len());
            frame.splice(to..to, copied);
        }
        _ => {
            let end = (at + 1 + dice.below(8)).min(frame.len());
            frame.drain(at..end);
        }
    }
    // The ring devices take nothing shorter.
    frame.resize(frame.len().max(14), 0);
}

fn random(seed: u64) {
    let mut world = world();
    let corpus = corpus();
    let mut dice = Dice(seed);
    for _ in 0..200_000 {
        let (port, mut frame) = corpus[dice.below(corpus.len())].clone();
        for _ in 0..=dice.below(4) {
            mutate(&mut frame, &mut dice);
        }
        if dice.below(3) > 0 {
            repair(&mut frame);
        }
        if dice.below(8) == 0 {
            let cut = dice.below(frame.len());
            world.put_cut(port, &frame, &[cut]);
        } else {
            world.put(port, &frame);
        }
        let outcome = world.step(port);
        check_isolation(port, &frame, &outcome);
    }
    let passed: u64 =
        PORTS.iter().map(|port| world.totals(*port)).map(|totals| totals.sent + totals.delivered).sum();
    assert!(passed > 10_000, "only {passed} of 200000 mutants got through: the mutations are too coarse");
}

#[test]
fn two_hundred_thousand_mutants() {
    random(0x0f0e_bac1);
}

#[test]
fn two_hundred_thousand_other_mutants() {
    random(0x5eed_0002);
}
