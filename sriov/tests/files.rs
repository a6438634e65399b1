//! Devices without a kernel or a peer: null, pcap, and what their limits say.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{burst_of, eal, frame, open, pool, receive, send, spec};
use forebay_sriov::{Device, DeviceError, DeviceOptions, PacketBurst, PacketPool};

/// A capture file in the classic format (tcpdump.org, pcap-savefile), little endian, Ethernet.
fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, 65535, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    fs::write(path, bytes).unwrap();
}

fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let mut frames = Vec::new();
    let mut rest = &bytes[24..];
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..16 + length].to_vec());
        rest = &rest[16 + length..];
    }
    frames
}

#[test]
fn null_swallows_and_gives_nothing() {
    let pool = pool(eal());
    let (device, mut rx, mut tx) = open(eal(), "null:", &DeviceOptions::new(&pool));
    assert_eq!((device.driver(), device.queue_count(), device.mtu()), ("net_null", 1, 1500));
    assert!(device.link_up());
    let mut burst = PacketBurst::new();
    assert_eq!(rx.receive(&mut burst), 0);
    // A chain too: the driver takes it, though it does not say so.
    let mut burst = burst_of(&pool, &[frame(1, 64), frame(2, 1514)]);
    let tail = pool.allocate_with(&[0; 500]).unwrap();
    burst[0].join(tail).unwrap();
    send(&mut tx, &mut burst);
    assert_eq!(device.device_stats().tx_packets, 2);
    device.close(vec![(rx, tx)]).unwrap();
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn null_with_a_size_gives_without_end() {
    let pool = pool(eal());
    let (device, mut rx, _tx) = open(eal(), "null:size=64", &DeviceOptions::new(&pool));
    let mut burst = PacketBurst::new();
    for _ in 0..10 {
        assert_eq!(rx.receive(&mut burst), 64);
        assert_eq!(rx.receive(&mut burst), 0, "a full burst takes no more");
        assert!(burst.iter().all(|packet| packet.len() == 64 && packet.port() == device.id()));
        burst.clear();
    }
    assert_eq!(pool.in_use(), 0);
    let error = Device::open(eal(), &spec("null:size=9000"), &DeviceOptions::new(&pool)).unwrap_err();
    assert!(matches!(error, DeviceError::BuffersTooSmall { needed_bytes: 9000, .. }), "{error}");
}

#[test]
fn pcap_gives_a_file_and_writes_another() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.pcap"), folder.path().join("out.pcap"));
    let frames: Vec<_> = (1..=100).map(|i| frame(i, 60 + usize::from(i))).collect();
    write_pcap(&input, &frames);
    let pool = pool(eal());
    let text = format!("pcap:{},tx={}", input.display(), output.display());
    let (device, mut rx, mut tx) = open(eal(), &text, &DeviceOptions::new(&pool));
    let got = receive(&mut rx, 100);
    assert_eq!(got, frames);
    for part in got.chunks(64) {
        send(&mut tx, &mut burst_of(&pool, part));
    }
    device.close(vec![(rx, tx)]).unwrap();
    assert_eq!(read_pcap(&output), frames);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn pcap_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.pcap");
    let frames: Vec<_> = (1..=3).map(|i| frame(i, 100)).collect();
    write_pcap(&input, &frames);
    let pool = pool(eal());
    let text = format!("pcap:{},infinite_rx=1", input.display());
    let (device, mut rx, mut tx) = open(eal(), &text, &DeviceOptions::new(&pool));
    let got = receive(&mut rx, 1000);
    assert!(got.len() >= 1000 && got.iter().zip(frames.iter().cycle()).all(|(a, b)| a == b));
    // Without tx= what is sent is dropped.
    send(&mut tx, &mut burst_of(&pool, &frames));
    device.close(vec![(rx, tx)]).unwrap();
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn packets_that_can_never_leave_do_not_block_the_others() {
    let pool = pool(eal());
    let (_device, _rx, mut tx) = open(eal(), "null:", &DeviceOptions::new(&pool));
    let mut burst = burst_of(&pool, &[vec![0; 13], frame(1, 60), frame(2, 1523), frame(3, 1522)]);
    assert_eq!(tx.transmit(&mut burst), 2);
    assert!(burst.is_empty());
    assert_eq!(tx.refused(), 2);
}

#[test]
fn a_device_closes_with_its_last_handle() {
    let pool = pool(eal());
    let spec = spec("null:");
    let mut device = Device::open(eal(), &spec, &DeviceOptions::new(&pool)).unwrap();
    let id = device.id();
    let queues = device.take_queues();
    assert!(device.take_queues().is_empty());
    let error = device.close(Vec::new()).unwrap_err();
    assert_eq!(error, DeviceError::StillHeld { device: "null:".into(), holders: 2 });
    drop(queues);
    let again = Device::open(eal(), &spec, &DeviceOptions::new(&pool)).unwrap();
    assert_eq!(again.id(), id, "the port number is free again");
}

#[test]
fn the_33rd_device_is_refused_with_a_remedy() {
    let pool = pool(eal());
    let options = DeviceOptions::new(&pool);
    let mut devices: Vec<Device> =
        (0..32).map(|_| Device::open(eal(), &spec("null:"), &options).unwrap()).collect();
    let error = Device::open(eal(), &spec("null:"), &options).unwrap_err();
    assert_eq!(error, DeviceError::NoPortLeft { device: "null:".into(), limit: 32 });
    assert!(error.to_string().contains("vlan:PORT/ID"), "{error}");
    devices.pop();
    assert!(Device::open(eal(), &spec("null:"), &options).is_ok(), "one left, one may come");
}

#[test]
fn options_that_make_no_sense_are_named() {
    let pool = pool(eal());
    let base = DeviceOptions::new(&pool);
    for (options, part) in [
        (DeviceOptions { mtu: 67, ..base.clone() }, "mtu = 67"),
        (DeviceOptions { queues: 0, ..base.clone() }, "0 queues"),
        (DeviceOptions { mac: Some([1, 0, 0, 0, 0, 0]), ..base.clone() }, "mac = 01:00:00:00:00:00"),
    ] {
        let error = Device::open(eal(), &spec("null:"), &options).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let tiny = PacketPool::new(eal(), "tiny", 63, 256).unwrap();
    let error = Device::open(eal(), &spec("af_packet:lo"), &DeviceOptions::new(&tiny)).unwrap_err();
    assert!(matches!(error, DeviceError::BuffersTooSmall { pool_bytes: 256, .. }), "{error}");
}

#[test]
fn a_broken_file_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.pcap");
    fs::write(&input, "no capture").unwrap();
    let pool = pool(eal());
    let text = format!("pcap:{}", input.display());
    let error = Device::open(eal(), &spec(&text), &DeviceOptions::new(&pool)).unwrap_err();
    assert!(matches!(error, DeviceError::Step { step: "attach it", .. }), "{error}");
    write_pcap(&input, &[frame(1, 60)]);
    let (device, ..) = open(eal(), &text, &DeviceOptions::new(&pool));
    assert_eq!(device.id(), 0);
}

#[test]
fn raw_arguments_reach_dpdk() {
    let pool = pool(eal());
    let (device, mut rx, mut tx) = open(eal(), "dpdk:net_ring7", &DeviceOptions::new(&pool));
    assert_eq!(device.driver(), "net_ring");
    send(&mut tx, &mut burst_of(&pool, &[frame(7, 60)]));
    assert_eq!(receive(&mut rx, 1), [frame(7, 60)]);
    drop((rx, tx));
    drop(device);
    assert_eq!(pool.in_use(), 0);
}
