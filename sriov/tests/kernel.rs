//! Devices that share an interface with the kernel: tap and af_packet. Root only; each test in its own namespaces.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{
    KernelPort, Namespace, burst_of, eal, enter, frame, ip, is_ours, is_readable, open, pool, receive, send,
    spec, wait_until,
};
use forebay_sriov::{Device, DeviceError, DeviceOptions, PacketBurst, PacketPool, RxQueue, Wake};

const MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

#[test]
fn tap_has_the_name_and_mac_and_passes_packets() {
    let _ns = Namespace::enter("tap");
    let pool = pool(eal());
    let options = DeviceOptions { mac: Some(MAC), ..DeviceOptions::new(&pool) };
    let (device, mut rx, mut tx) = open(eal(), "tap:vm1", &options);
    assert_eq!((device.driver(), device.mac()), ("net_tap", MAC));
    let link = ip("link show vm1");
    assert!(
        link.contains("02:00:00:00:01:01") && link.contains("mtu 1500") && !link.contains("PROMISC"),
        "{link}"
    );
    assert!(device.link_up());

    let kernel = KernelPort::new("vm1");
    let frames: Vec<_> = (1..=50).map(|i| frame(i, 60 + usize::from(i) * 29)).collect();
    frames.iter().for_each(|frame| kernel.send(frame));
    assert_eq!(receive(&mut rx, 50), frames);
    // A chain leaves whole.
    let mut burst = burst_of(&pool, &frames[..49]);
    let mut chain = pool.allocate_with(&frames[49][..20]).unwrap();
    chain.join(pool.allocate_with(&frames[49][20..]).unwrap()).unwrap();
    burst.push(chain).unwrap();
    send(&mut tx, &mut burst);
    assert_eq!(kernel.receive(50), frames);

    ip("link set vm1 down");
    assert!(!device.link_up());
    device.close(vec![(rx, tx)]).unwrap();
    assert!(!ip("link").contains("vm1"), "the interface goes with the device");
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn tap_survives_its_move_to_another_namespace() {
    let home = Namespace::enter("home");
    let guest = Namespace::enter("guest");
    enter(&home.0);
    let pool = pool(eal());
    let (device, mut rx, mut tx) = open(eal(), "tap:vm1", &DeviceOptions::new(&pool));
    ip(&format!("link set vm1 netns {}", guest.0));
    ip(&format!("-n {} link set vm1 up", guest.0));
    enter(&guest.0);
    let kernel = KernelPort::new("vm1");
    enter(&home.0);
    assert!(device.link_up());
    for round in 1..=3 {
        kernel.send(&frame(round, 300));
        assert_eq!(receive(&mut rx, 1), [frame(round, 300)]);
        send(&mut tx, &mut burst_of(&pool, &[frame(round + 10, 400)]));
        assert_eq!(kernel.receive(1), [frame(round + 10, 400)]);
    }
    device.close(vec![(rx, tx)]).unwrap();
    assert!(!ip(&format!("-n {} link", guest.0)).contains("vm1"));
}

#[test]
fn tap_has_several_queues_and_no_free_name_twice() {
    let _ns = Namespace::enter("tapq");
    let pool = pool(eal());
    let options = DeviceOptions { queues: 40, ..DeviceOptions::new(&pool) };
    let mut device = Device::open(eal(), &spec("tap:vm1"), &options).unwrap();
    let count = device.queue_count();
    assert!((4..=16).contains(&count), "{count}: as many as the driver bears");
    let mut queues = device.take_queues();
    let kernel = KernelPort::new("vm1");
    (1..=40).for_each(|i| kernel.send(&frame(i, 100)));
    // The kernel picks the queue; all frames come out of one or the other.
    let mut got = 0;
    for _ in 0..200 {
        for (rx, _) in &mut queues {
            let mut burst = PacketBurst::new();
            rx.receive(&mut burst);
            got += burst.iter().filter(|packet| is_ours(packet.data())).count();
        }
    }
    assert_eq!(got, 40);
    let error = Device::open(eal(), &spec("tap:vm1"), &options).unwrap_err();
    assert!(matches!(error, DeviceError::InUse { .. }), "{error}");
    ip("link add busy0 type veth peer name busy1");
    let error = Device::open(eal(), &spec("tap:busy0"), &options).unwrap_err().to_string();
    assert!(error.contains("interface busy0 is in use") && error.contains("ip link delete"), "{error}");
}

#[test]
fn tap_is_removed_and_added_again() {
    let _ns = Namespace::enter("again");
    let pool = pool(eal());
    for round in 1..=4 {
        let (device, mut rx, _tx) = open(eal(), "tap:vm1", &DeviceOptions::new(&pool));
        assert_eq!(device.id(), 0);
        KernelPort::new("vm1").send(&frame(round, 99));
        assert_eq!(receive(&mut rx, 1), [frame(round, 99)]);
    }
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn tap_goes_on_after_the_pool_was_empty() {
    let _ns = Namespace::enter("dry");
    let pool = PacketPool::new(eal(), "small", 63, 2048).unwrap();
    let (_device, mut rx, _tx) = open(eal(), "tap:vm1", &DeviceOptions::new(&pool));
    let kernel = KernelPort::new("vm1");
    let hoard: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
    (1..=5).for_each(|i| kernel.send(&frame(i, 100)));
    let mut burst = PacketBurst::new();
    for _ in 0..100 {
        rx.receive(&mut burst);
    }
    burst.clear();
    drop(hoard);
    // What was read without memory is lost, as on any device; what comes later must not be.
    kernel.send(&frame(9, 100));
    let mut last = Vec::new();
    while last != frame(9, 100) {
        last = receive(&mut rx, 1).pop().expect("the queue stands still");
    }
}

#[test]
fn tap_takes_frames_beyond_its_mtu_whole() {
    let _ns = Namespace::enter("long");
    let pool = pool(eal());
    let (_device, mut rx, _tx) = open(eal(), "tap:vm1", &DeviceOptions::new(&pool));
    // The far end is the tenant's, who sets what length it likes.
    ip("link set vm1 mtu 65000");
    let kernel = KernelPort::new("vm1");
    for length in [2048, 2049, 9042, 65_000] {
        kernel.send(&frame(7, length));
        assert_eq!(receive(&mut rx, 1), [frame(7, length)], "{length} bytes");
    }
}

#[test]
fn tap_says_which_mtu_it_bears() {
    let _ns = Namespace::enter("tapmtu");
    let pool = pool(eal());
    let options = DeviceOptions { mtu: 1504, ..DeviceOptions::new(&pool) };
    let (device, ..) = open(eal(), "tap:vm1", &options);
    assert!(ip("link show vm1").contains("mtu 1504"));
    drop(device);
    let options = DeviceOptions { mtu: 9000, ..DeviceOptions::new(&pool) };
    match Device::open(eal(), &spec("tap:vm2"), &options) {
        // Newer DPDK takes jumbo frames, in chains of our buffers.
        Ok(_) => assert!(ip("link show vm2").contains("mtu 9000")),
        Err(error) => {
            assert!(matches!(error, DeviceError::MtuTooLarge { limit: 1504, .. }), "{error}");
            assert!(!ip("link").contains("vm2"), "a half-opened device is undone");
        }
    }
}

/// A veth pair `und0` - `peer0`, both up, without offloads that would make the kernel send super-frames.
fn veth(mtu: u16) {
    ip(&format!("link add und0 mtu {mtu} type veth peer name peer0 mtu {mtu}"));
    ip("link set und0 up");
    ip("link set peer0 up");
}

#[test]
fn af_packet_passes_packets_and_leaves_the_interface_as_it_was() {
    let _ns = Namespace::enter("afp");
    veth(1500);
    let before = ip("-d link show und0");
    let pool = pool(eal());
    let (device, mut rx, mut tx) = open(eal(), "af_packet:und0", &DeviceOptions::new(&pool));
    assert_eq!(device.driver(), "net_af_packet");
    assert!(before.contains(&device.mac().map(|byte| format!("{byte:02x}")).join(":")));
    assert!(ip("-d link show und0").contains("promiscuity 1"));
    assert!(wait_until(|| device.link_up()));

    let kernel = KernelPort::new("peer0");
    let frames: Vec<_> = (1..=60).map(|i| frame(i, 64 + usize::from(i) * 24)).collect();
    frames.iter().for_each(|frame| kernel.send(frame));
    assert_eq!(receive(&mut rx, 60), frames);
    send(&mut tx, &mut burst_of(&pool, &frames));
    assert_eq!(kernel.receive(60), frames);

    // What the host sends on the interface is not received as if it came from the wire.
    KernelPort::new("und0").send(&frame(77, 100));
    assert_eq!(kernel.receive(1), [frame(77, 100)]);
    kernel.send(&frame(78, 100));
    assert_eq!(receive(&mut rx, 1), [frame(78, 100)]);

    ip("link set peer0 down");
    // The kernel tells of a lost carrier up to a second later.
    assert!(wait_until(|| !device.link_up()));
    ip("link set peer0 up");
    device.close(vec![(rx, tx)]).unwrap();
    assert!(ip("-d link show und0").contains("promiscuity 0"));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn af_packet_bears_jumbo_frames() {
    let _ns = Namespace::enter("jumbo");
    veth(9000);
    let small = pool(eal());
    let options = DeviceOptions { mtu: 9000, ..DeviceOptions::new(&small) };
    let error = Device::open(eal(), &spec("af_packet:und0"), &options).unwrap_err();
    assert!(matches!(error, DeviceError::BuffersTooSmall { needed_bytes: 9184, .. }), "{error}");

    let needed = spec("af_packet:und0").needed_data_room_bytes(9000);
    let large = PacketPool::new(eal(), "jumbo", 1023, u16::try_from(needed).unwrap()).unwrap();
    ip("link set und0 mtu 1500");
    let options = DeviceOptions { mtu: 9000, ..DeviceOptions::new(&large) };
    let (_device, mut rx, mut tx) = open(eal(), "af_packet:und0", &options);
    assert!(ip("link show und0").contains("mtu 9000"), "the interface's MTU was raised");
    let kernel = KernelPort::new("peer0");
    // Enough to go round the ring more than once: its frames must lie where the kernel puts them.
    for round in 1..=40 {
        let frames: Vec<_> = (1..=20).map(|i| frame(i, 9014 - usize::from(i) * round % 7)).collect();
        frames.iter().for_each(|frame| kernel.send(frame));
        assert_eq!(receive(&mut rx, 20), frames);
    }
    let mut chain = small.allocate_with(&frame(5, 9014)).unwrap();
    assert_eq!(chain.segment_count(), 5);
    chain.clear_offloads();
    let mut burst = PacketBurst::new();
    burst.push(chain).unwrap();
    send(&mut tx, &mut burst);
    assert_eq!(kernel.receive(1), [frame(5, 9014)]);
}

#[test]
fn af_packet_gives_vlan_tags_one_way_or_the_other() {
    let _ns = Namespace::enter("vlan");
    veth(1500);
    let pool = pool(eal());
    let (_device, mut rx, _tx) = open(eal(), "af_packet:und0", &DeviceOptions::new(&pool));
    // The kernel takes the tag out on receive, whether or not anyone made an interface for it.
    let mut tagged = frame(3, 1514);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    KernelPort::new("peer0").send(&tagged);
    let mut burst = PacketBurst::new();
    for _ in 0..3000 {
        rx.receive(&mut burst);
        burst.retain(|packet| packet.len() >= 1514);
        if !burst.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut packet = burst.pop().unwrap();
    let bytes = packet.data().to_vec();
    match packet.take_stripped_vlan() {
        Some(tci) => assert_eq!((tci & 0xfff, bytes), (7, frame(3, 1514))),
        None => assert_eq!((&bytes[12..16], &bytes[16..]), (&[0x81, 0, 0, 7][..], &frame(3, 1514)[12..])),
    }
}

#[test]
fn af_packet_has_several_queues() {
    let _ns = Namespace::enter("afpq");
    veth(1500);
    let pool = pool(eal());
    let options = DeviceOptions { queues: 4, rx_descriptors: 64, ..DeviceOptions::new(&pool) };
    let mut device = Device::open(eal(), &spec("af_packet:und0"), &options).unwrap();
    assert_eq!(device.queue_count(), 4);
    let mut queues = device.take_queues();
    let kernel = KernelPort::new("peer0");
    (1..=30).for_each(|i| kernel.send(&frame(i, 100)));
    let mut got = 0;
    for _ in 0..200 {
        for (rx, _) in &mut queues {
            let mut burst = PacketBurst::new();
            rx.receive(&mut burst);
            got += burst.iter().filter(|packet| is_ours(packet.data())).count();
        }
    }
    assert_eq!(got, 30, "each frame once, whatever the queue");
    for (_, tx) in &mut queues {
        send(tx, &mut burst_of(&pool, &[frame(1, 64)]));
    }
    assert_eq!(kernel.receive(4).len(), 4);
    let error = Device::open(eal(), &spec("af_packet:und0"), &options).unwrap_err().to_string();
    assert!(error.contains("another port of this daemon"), "{error}");
}

/// That a queue is readable exactly while it holds packets.
fn tells(rx: &mut RxQueue, kernel: &KernelPort) {
    let Wake::Readable(descriptor) = rx.arm() else { panic!("it does not tell: {:?}", rx.arm()) };
    // What the kernel itself has sent is taken out.
    assert!(wait_until(|| {
        rx.receive(&mut PacketBurst::new());
        !is_readable(descriptor)
    }));
    for round in 1..=3 {
        kernel.send(&frame(round, 100));
        assert!(wait_until(|| is_readable(descriptor)), "round {round}");
        assert_eq!(receive(rx, 1), [frame(round, 100)]);
        assert!(wait_until(|| {
            rx.receive(&mut PacketBurst::new());
            !is_readable(descriptor)
        }));
    }
    rx.disarm();
}

#[test]
fn a_tap_tells_a_sleeper_that_packets_come() {
    let _ns = Namespace::enter("tapwake");
    let pool = pool(eal());
    let (device, mut rx, tx) = open(eal(), "tap:vm1", &DeviceOptions::new(&pool));
    tells(&mut rx, &KernelPort::new("vm1"));
    device.close(vec![(rx, tx)]).unwrap();
}

#[test]
fn every_queue_of_af_packet_tells_of_its_own_packets() {
    for queues in [1, 3] {
        let _ns = Namespace::enter("afwake");
        ip("link add und0 type veth peer name und1");
        ip("link set und0 up");
        ip("link set und1 up");
        let pool = pool(eal());
        let options = DeviceOptions { queues, ..DeviceOptions::new(&pool) };
        let mut device = Device::open(eal(), &spec("af_packet:und0"), &options).unwrap();
        let kernel = KernelPort::new("und1");
        let mut pairs = device.take_queues();
        assert_eq!(pairs.len(), usize::from(queues));
        if let [(rx, _)] = &mut pairs[..] {
            tells(rx, &kernel);
        } else {
            let descriptors: Vec<_> = pairs.iter_mut().map(|(rx, _)| rx.arm()).collect();
            assert!(descriptors.iter().all(|wake| matches!(wake, Wake::Readable(_))), "{descriptors:?}");
            for round in 1..=20 {
                kernel.send(&frame(round, 100));
                let is_told = |wake: &Wake| matches!(wake, Wake::Readable(fd) if is_readable(*fd));
                // Only queues that tell are received from: that one has it, and then has nothing to tell any more. (The
                // kernel sends packets of its own meanwhile.)
                let mut got = Vec::new();
                assert!(
                    wait_until(|| {
                        for ((rx, _), wake) in pairs.iter_mut().zip(&descriptors) {
                            if is_told(wake) {
                                let mut burst = PacketBurst::new();
                                assert!(rx.receive(&mut burst) > 0);
                                got.extend(
                                    burst.iter().map(|packet| packet.data().to_vec()).filter(|f| is_ours(f)),
                                );
                            }
                        }
                        !got.is_empty() && !descriptors.iter().any(is_told)
                    }),
                    "round {round}"
                );
                assert_eq!(got, [frame(round, 100)]);
            }
        }
        device.close(pairs).unwrap();
    }
}
