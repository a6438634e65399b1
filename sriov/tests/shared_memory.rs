//! Devices that share memory with another process, here with each other: memif, and vhost with virtio_user.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{burst_of, eal, frame, open, pool, receive, send, wait_until, writes};
use forebay_sriov::{DeviceOptions, PacketBurst, Wake};

#[test]
fn memif_passes_packets_between_two_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.sock");
    let pool = pool(eal());
    let options = DeviceOptions { mtu: 9000, ..DeviceOptions::new(&pool) };
    let (server, mut rx, mut tx) = open(eal(), &format!("memif:{},id=5", path.display()), &options);
    assert!(path.exists(), "a real socket, not an abstract one");
    let text = format!("memif:{},role=client,id=5", path.display());
    let (client, mut client_rx, mut client_tx) = open(eal(), &text, &options);
    assert!(wait_until(|| server.link_up() && client.link_up()));
    let mut frames: Vec<_> = (1..=40).map(|i| frame(i, 64 + usize::from(i) * 20)).collect();
    frames.push(frame(41, 9014));
    // The client lends its receive buffers to the server when it polls, so it has to poll once first.
    assert_eq!(client_rx.receive(&mut PacketBurst::new()), 0);
    send(&mut tx, &mut burst_of(&pool, &frames));
    assert_eq!(receive(&mut client_rx, 41), frames);
    send(&mut client_tx, &mut burst_of(&pool, &frames));
    assert_eq!(receive(&mut rx, 41), frames);
    client.close(vec![(client_rx, client_tx)]).unwrap();
    server.close(vec![(rx, tx)]).unwrap();
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn vhost_passes_packets_to_its_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let pool = pool(eal());
    let options = DeviceOptions::new(&pool);
    let (host, mut rx, mut tx) = open(eal(), &format!("vhost:{}", path.display()), &options);
    assert!(path.exists() && !host.link_up());
    let mac = Some([2, 0, 0, 0, 0, 9]);
    let guest_options = DeviceOptions { mac, ..options.clone() };
    let (guest, mut guest_rx, mut guest_tx) =
        open(eal(), &format!("virtio_user:{}", path.display()), &guest_options);
    assert_eq!(guest.mac(), [2, 0, 0, 0, 0, 9]);
    assert!(wait_until(|| host.link_up()));
    let frames: Vec<_> = (1..=40).map(|i| frame(i, 64 + usize::from(i) * 20)).collect();
    send(&mut tx, &mut burst_of(&pool, &frames));
    assert_eq!(receive(&mut guest_rx, 40), frames);
    send(&mut guest_tx, &mut burst_of(&pool, &frames));
    assert_eq!(receive(&mut rx, 40), frames);
    guest.close(vec![(guest_rx, guest_tx)]).unwrap();
    host.close(vec![(rx, tx)]).unwrap();
    assert!(!path.exists());
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn memif_tells_a_sleeper_that_packets_come() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.sock");
    let pool = pool(eal());
    let options = DeviceOptions::new(&pool);
    let (server, mut rx, tx) = open(eal(), &format!("memif:{}", path.display()), &options);
    if rx.arm() == Wake::Silent {
        // Only with the DPDK whose driver is known.
        rx.disarm();
        return;
    }
    assert_eq!(rx.arm(), Wake::Unconnected);
    rx.disarm();
    let (client, client_rx, mut client_tx) =
        open(eal(), &format!("memif:{},role=client", path.display()), &options);
    assert!(wait_until(|| server.link_up() && client.link_up()));
    for round in 1..=3 {
        let Wake::Signalled(descriptor) = rx.arm() else { panic!("it does not tell, in round {round}") };
        assert_eq!(writes(descriptor), 0, "round {round}");
        send(&mut client_tx, &mut burst_of(&pool, &[frame(round, 100)]));
        assert_eq!(writes(descriptor), 1, "round {round}");
        rx.disarm();
        assert_eq!(rx.arm(), Wake::Now, "a packet waits");
        rx.disarm();
        assert_eq!(receive(&mut rx, 1), [frame(round, 100)]);
        // Nobody sleeps: nothing is told.
        send(&mut client_tx, &mut burst_of(&pool, &[frame(round, 200)]));
        assert_eq!(writes(descriptor), 0);
        assert_eq!(receive(&mut rx, 1), [frame(round, 200)]);
    }
    client.close(vec![(client_rx, client_tx)]).unwrap();
    assert!(wait_until(|| !server.link_up()));
    assert_eq!(rx.arm(), Wake::Unconnected);
    rx.disarm();
    server.close(vec![(rx, tx)]).unwrap();
}
