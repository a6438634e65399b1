//! vhost-user ports with guests that come and go: DPDK's virtio_user, in this process or in one that is killed; and a bare
//! client of the protocol, which asks what is offered.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{burst_of, eal, frame, is_ours, open, pool, send, spec, wait_until};
use forebay_sriov::{Device, DeviceOptions, GuestQueues, PacketBurst, PacketPool, RxQueue, TxQueue};

/// Names the device of the guest that a test starts as a process of its own.
const GUEST: &str = "FOREBAY_TEST_GUEST";

type Queues = Vec<(RxQueue, TxQueue)>;

/// A device with so many queues.
fn wide(pool: &PacketPool, text: &str, queues: u16) -> (Device, Queues) {
    let options = DeviceOptions { queues, ..DeviceOptions::new(pool) };
    let mut device = Device::open(eal(), &spec(text), &options).unwrap_or_else(|error| panic!("{error}"));
    let handles = device.take_queues();
    assert_eq!(handles.len(), usize::from(queues));
    (device, handles)
}

/// What all queues receive, until `enough` frames are there; sorted, since nothing orders the queues.
fn receive_all(queues: &mut Queues, enough: usize) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut burst = PacketBurst::new();
    wait_until(|| {
        for (rx, _) in queues.iter_mut() {
            rx.receive(&mut burst);
            frames.extend(burst.drain().map(|packet| packet.segments().collect::<Vec<_>>().concat()));
        }
        frames.retain(|frame| is_ours(frame));
        frames.len() >= enough
    });
    frames.sort();
    frames
}

/// Sends a few frames through each queue, and gives all of them, sorted.
fn send_through_each(pool: &PacketPool, queues: &mut Queues) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    for (index, (_, tx)) in queues.iter_mut().enumerate() {
        let frames: Vec<_> =
            (1..=10).map(|i| frame(index as u8 * 20 + i, 64 + usize::from(i) * 40)).collect();
        send(tx, &mut burst_of(pool, &frames));
        sent.extend(frames);
    }
    sent.sort();
    sent
}

/// A host with some workers and a guest with some queues reach each other over each of them.
fn meet(workers: u16, guest_queues: u16) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let pool = pool(eal());
    let (host, mut host_queues) = wide(&pool, &format!("vhost:{}", path.display()), workers);
    assert_eq!(host.queue_count(), workers);
    let departures = host.guest_queues().unwrap().departures;
    assert_eq!(host.guest_queues(), Some(GuestQueues { departures, ..GuestQueues::default() }));
    // More queues than one are a matter of virtio's control queue.
    let control = if guest_queues > 1 { ",cq=1" } else { "" };
    let (guest, mut queues) = wide(&pool, &format!("virtio_user:{}{control}", path.display()), guest_queues);
    assert!(wait_until(|| host.link_up()));
    let expected = GuestQueues { pairs: guest_queues.into(), unserved: false, departures };
    assert!(wait_until(|| host.guest_queues() == Some(expected)), "{:?}", host.guest_queues());

    let sent = send_through_each(&pool, &mut host_queues);
    assert_eq!(receive_all(&mut queues, sent.len()), sent, "to the guest");
    let sent = send_through_each(&pool, &mut queues);
    assert_eq!(receive_all(&mut host_queues, sent.len()), sent, "from the guest");

    guest.close(queues).unwrap();
    assert!(wait_until(|| !host.link_up()));
    let gone = GuestQueues { departures: departures + 1, ..GuestQueues::default() };
    assert!(wait_until(|| host.guest_queues() == Some(gone)), "{:?}", host.guest_queues());
    let burst = &mut burst_of(&pool, &[frame(1, 64)]);
    assert_eq!(host_queues[0].1.transmit(burst), 0, "nobody is there");
    burst.clear();
    host.close(host_queues).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_guest_may_have_fewer_queues_than_there_are_workers() {
    meet(3, 1);
}

#[test]
fn a_guest_may_have_more_queues_than_there_are_workers() {
    meet(2, 5);
}

#[test]
fn a_guest_may_have_as_many_queues_as_there_are_workers() {
    meet(2, 2);
}

/// The features that a vhost-user server offers, asked as a hypervisor does (GET_FEATURES is request 1 of the protocol).
fn offered(path: &Path) -> u64 {
    let mut stream = UnixStream::connect(path).unwrap();
    let [request, version, size] = [1_u32, 1, 0].map(u32::to_ne_bytes);
    stream.write_all(&[request, version, size].concat()).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], request);
    u64::from_ne_bytes(reply[12..].try_into().unwrap())
}

#[test]
fn what_is_offered_is_what_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let pool = pool(eal());
    let (host, rx, tx) = open(eal(), &format!("vhost:{}", path.display()), &DeviceOptions::new(&pool));
    let offered = offered(&path);
    for (name, bit) in [("CSUM", 0), ("GUEST_CSUM", 1), ("MRG_RXBUF", 15), ("MQ", 22), ("VERSION_1", 32)] {
        assert_ne!(offered & 1 << bit, 0, "{name} is not offered");
    }
    let not_ours = [("GSO", 6), ("TSO4", 11), ("TSO6", 12), ("ECN", 13), ("UFO", 14), ("RING_PACKED", 34)];
    for (name, bit) in not_ours {
        assert_eq!(offered & 1 << bit, 0, "{name} is offered");
    }
    host.close(vec![(rx, tx)]).unwrap();
}

/// The guest that tests start as another process: sends back what it receives, until it is killed.
#[test]
fn guest() {
    let Ok(text) = std::env::var(GUEST) else { return };
    let pool = pool(eal());
    let (_device, mut rx, mut tx) = open(eal(), &text, &DeviceOptions::new(&pool));
    let mut burst = PacketBurst::new();
    // A test that ends without killing it leaves it a minute.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::time::Instant::now() < end {
        if rx.receive(&mut burst) == 0 {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        tx.transmit(&mut burst);
        burst.clear();
    }
}

/// A guest as a process, killed when dropped.
struct Guest(Child);

impl Guest {
    fn start(device: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "guest"]).env(GUEST, device);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest sends back what is sent to it, sooner or later: what is sent before both sides have settled is lost.
fn echoes(pool: &PacketPool, rx: &mut RxQueue, tx: &mut TxQueue, mark: u8) {
    let wanted = frame(mark, 300);
    assert!(
        wait_until(|| {
            let mut burst = burst_of(pool, std::slice::from_ref(&wanted));
            tx.transmit(&mut burst);
            burst.clear();
            let mut burst = PacketBurst::new();
            rx.receive(&mut burst);
            burst.drain().any(|packet| packet.segments().collect::<Vec<_>>().concat() == wanted)
        }),
        "no echo of {mark}"
    );
}

#[test]
fn a_port_outlives_guests_that_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let pool = pool(eal());
    let (host, mut rx, mut tx) =
        open(eal(), &format!("vhost:{}", path.display()), &DeviceOptions::new(&pool));
    for life in 1..=3 {
        assert!(!host.link_up());
        let guest = Guest::start(&format!("virtio_user:{}", path.display()));
        assert!(wait_until(|| host.link_up()), "life {life}");
        echoes(&pool, &mut rx, &mut tx, life);
        drop(guest);
        // In the middle of traffic, as the host sees it.
        assert!(
            wait_until(|| {
                let mut burst = burst_of(&pool, &[frame(99, 100)]);
                tx.transmit(&mut burst);
                burst.clear();
                rx.receive(&mut burst);
                burst.clear();
                !host.link_up()
            }),
            "life {life}"
        );
    }
    host.close(vec![(rx, tx)]).unwrap();
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_client_port_calls_guests_that_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let pool = pool(eal());
    let text = format!("vhost:{},client=1", path.display());
    let listening = format!("virtio_user:{},server=1", path.display());
    let options = DeviceOptions::new(&pool);
    let (host, mut rx, mut tx) = open(eal(), &text, &options);
    assert!(!host.link_up(), "the guest is not there yet");
    let guest = Guest::start(&listening);
    assert!(wait_until(|| host.link_up()), "it does not call");
    echoes(&pool, &mut rx, &mut tx, 1);
    // The next one makes a socket of its own.
    drop(guest);
    assert!(wait_until(|| !host.link_up()));
    std::fs::remove_file(&path).unwrap();
    let _guest = Guest::start(&listening);
    assert!(wait_until(|| host.link_up()), "it does not call the new guest");
    echoes(&pool, &mut rx, &mut tx, 2);
    host.close(vec![(rx, tx)]).unwrap();
    assert_eq!(pool.in_use(), 0);
}
