//! What the device tests share: EAL, a pool, packets, network namespaces, and a plain packet socket as the peer.

#![allow(dead_code, unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use forebay_sriov::{
    Device, DeviceOptions, DeviceSpec, Eal, EalOptions, Hugepages, PacketBurst, PacketPool, RxQueue, TxQueue,
};

/// Longest time that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

pub fn eal() -> Eal {
    let options = EalOptions { hugepages: Hugepages::Off, memory_mib: 192, name: "forebay-test".into() };
    Eal::start(&options).unwrap()
}

pub fn pool(eal: Eal) -> PacketPool {
    PacketPool::new(eal, "test", 8191, 2048).unwrap()
}

pub fn spec(text: &str) -> DeviceSpec {
    text.parse().unwrap()
}

pub fn open(eal: Eal, text: &str, options: &DeviceOptions<'_>) -> (Device, RxQueue, TxQueue) {
    let mut device = Device::open(eal, &spec(text), options).unwrap_or_else(|error| panic!("{error}"));
    let mut queues = device.take_queues();
    assert_eq!(queues.len(), usize::from(device.queue_count()));
    let (rx, tx) = queues.remove(0);
    (device, rx, tx)
}

/// A test's network namespace, in which the calling thread is from then on. Gone when dropped.
pub struct Namespace(pub String);

impl Namespace {
    pub fn enter(name: &str) -> Self {
        let name = format!("fb-{name}-{}", std::process::id());
        ip(&format!("netns add {name}"));
        enter(&name);
        ip("link set lo up");
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// Moves the calling thread into a namespace.
pub fn enter(name: &str) {
    let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    // SAFETY: the descriptor is a namespace and open.
    assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
}

/// Runs `ip` and gives what it prints.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An Ethernet frame of this length that no kernel answers: the experimental ethertype, and a mark to know it by.
pub fn frame(mark: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, mark, 0x88, 0xb5];
    bytes.extend((14..length).map(|i| (i as u8).wrapping_mul(mark)));
    bytes
}

/// Receives until `enough` packets with our ethertype came, or patience ends.
pub fn receive(rx: &mut RxQueue, enough: usize) -> Vec<Vec<u8>> {
    let begin = Instant::now();
    let mut frames = Vec::new();
    let mut burst = PacketBurst::new();
    while frames.len() < enough && begin.elapsed() < PATIENCE {
        if rx.receive(&mut burst) == 0 {
            sleep(Duration::from_micros(200));
        }
        frames.extend(
            burst
                .drain()
                .map(|packet| packet.segments().collect::<Vec<_>>().concat())
                .filter(|frame| is_ours(frame)),
        );
    }
    frames
}

/// Whether a descriptor is readable now.
pub fn is_readable(descriptor: i32) -> bool {
    let mut polled = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry is read and written; it does not wait.
    (unsafe { libc::poll(&raw mut polled, 1, 0) }) == 1
}

/// How often an event descriptor was written to since the last time.
pub fn writes(descriptor: i32) -> u64 {
    let mut count = 0_u64;
    // SAFETY: eight bytes are written to `count`; it does not wait, and fails where there is nothing to read.
    unsafe { libc::read(descriptor, (&raw mut count).cast(), size_of::<u64>()) };
    count
}

/// Whether it becomes true before patience ends.
pub fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !is_so() {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

pub fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x88, 0xb5])
}

/// Sends all of the burst, or fails the test.
pub fn send(tx: &mut TxQueue, burst: &mut PacketBurst) {
    let begin = Instant::now();
    let count = burst.len();
    let mut sent = 0;
    while !burst.is_empty() {
        sent += tx.transmit(burst);
        assert!(begin.elapsed() < PATIENCE, "sent only {sent} of {count}");
        sleep(Duration::from_micros(200));
    }
}

pub fn burst_of(pool: &PacketPool, frames: &[Vec<u8>]) -> PacketBurst {
    let mut burst = PacketBurst::new();
    for frame in frames {
        burst.push(pool.allocate_with(frame).unwrap()).unwrap();
    }
    burst
}

/// A packet socket of the kernel's on an interface of the current namespace.
pub struct KernelPort(OwnedFd);

impl KernelPort {
    pub fn new(interface: &str) -> Self {
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: plain socket calls on values that outlive them.
        unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            assert_ne!(index, 0, "{interface}");
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, i32::from(protocol));
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = index as i32;
            let length = std::mem::size_of_val(&address) as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
            Self(OwnedFd::from_raw_fd(fd))
        }
    }

    pub fn send(&self, bytes: &[u8]) {
        // SAFETY: the bytes outlive the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Frames with our ethertype, until `enough` came or patience ends.
    pub fn receive(&self, enough: usize) -> Vec<Vec<u8>> {
        let begin = Instant::now();
        let mut frames = Vec::new();
        let mut buffer = vec![0_u8; 65536];
        while frames.len() < enough && begin.elapsed() < PATIENCE {
            // SAFETY: the buffer has the length given.
            let length =
                unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            match usize::try_from(length) {
                Ok(length) => frames.extend(Some(buffer[..length].to_vec()).filter(|frame| is_ours(frame))),
                Err(_) => sleep(Duration::from_micros(200)),
            }
        }
        frames
    }
}
