//! The other side of `forebay bench --feed memif`: a process that sends the packets of a file through a device for ever, as
//! fast as they are taken.
//!
//! It ends when its standard input does, so that it never outlives the harness that holds the other end of it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use forebay_sriov::{
    BURST, DEFAULT_DATA_ROOM_BYTES, Device, DeviceError, DeviceOptions, DeviceSpec, Eal, EalError,
    EalOptions, Hugepages, PacketBurst, PacketPool, PoolError, TxQueue,
};

/// Packet buffers: a thread's cache and some bursts; what is sent is copied, and comes back at once.
const POOL_PACKETS: u32 = 4095;
/// Memory for DPDK: the pool takes some 10 MiB, with the longest frames some 40.
pub const EAL_MEMORY_MIB: u32 = 128;
/// How long the other end may take to come.
pub const LINK_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether it has.
pub const LINK_STEP: Duration = Duration::from_millis(5);
/// Bursts between two looks at whether to stop.
const BURSTS: usize = 1024;
/// Headers of the classic format of libpcap: of the file, and of each packet; its magic number, little endian.
const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
const MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
/// The Ethernet header, which the MTU does not count.
const ETHERNET_BYTES: u16 = 14;

/// What is sent, and how.
#[derive(Clone, Debug, Args)]
pub struct GeneratorArgs {
    /// The device that the packets go to
    #[arg(long, value_name = "DEVICE")]
    device: DeviceSpec,
    /// The packets, in the classic format of libpcap
    #[arg(long, value_name = "FILE")]
    packets: PathBuf,
    /// The core to use up
    #[arg(long, value_name = "CORE")]
    core: usize,
}

/// Why nothing is sent.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// No such core, or it is not for this process.
    #[error("core {0} cannot be had (see: taskset -p $$)")]
    Core(usize),
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has something else in it.
    #[error("{}: byte {at} is not of a capture file of whole packets (write it with libpcap's classic format)", path.display())]
    NoPackets {
        /// Which.
        path: PathBuf,
        /// Where it stops making sense.
        at: usize,
    },
    /// DPDK did not start.
    #[error(transparent)]
    Eal(#[from] EalError),
    /// No memory for packets.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Nobody is at the other end.
    #[error("device \"{device}\": nobody came to its other end within {} s", LINK_PATIENCE.as_secs())]
    NoLink {
        /// The device.
        device: String,
    },
    /// The device takes none of the packets, or has no queue.
    #[error("device \"{device}\": {refused} packets are such as it never sends (shorten them)")]
    Refused {
        /// The device.
        device: String,
        /// How many.
        refused: u64,
    },
    /// The thread that waits for the end did not start.
    #[error("start a thread: {0}")]
    Thread(io::Error),
}

/// Sends until standard input ends.
pub fn main(args: &GeneratorArgs) -> ExitCode {
    match send(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the calling thread to a core.
///
/// # Errors
/// There is no such core.
pub fn pin(core: usize) -> Result<(), GeneratorError> {
    let done = core_affinity::set_for_current(core_affinity::CoreId { id: core });
    if done { Ok(()) } else { Err(GeneratorError::Core(core)) }
}

fn send(args: &GeneratorArgs) -> Result<(), GeneratorError> {
    let frames = Frames::read(&args.packets)?;
    let eal = Eal::start(&EalOptions {
        hugepages: Hugepages::Auto,
        memory_mib: EAL_MEMORY_MIB,
        name: "forebay-generator".into(),
    })?;
    let room = frames.room();
    let pool = PacketPool::new(eal, "generator", POOL_PACKETS, room)?;
    let mtu = room - ETHERNET_BYTES;
    let mut device = Device::open(eal, &args.device, &DeviceOptions { mtu, ..DeviceOptions::new(&pool) })?;
    let text = || args.device.to_string();
    let queue = device.take_queues().pop().map(|(_, transmit)| transmit);
    let mut queue = queue.ok_or_else(|| GeneratorError::Refused { device: text(), refused: 0 })?;
    let began = Instant::now();
    while !device.link_up() {
        if began.elapsed() > LINK_PATIENCE {
            return Err(GeneratorError::NoLink { device: text() });
        }
        std::thread::sleep(LINK_STEP);
    }
    let stop = stop_with_input()?;
    // After the start of DPDK, whose own threads stay off this core.
    pin(args.core)?;
    let _registered = eal.register_thread()?;
    eprintln!("{}", forebay_benches::GENERATOR_SENDING);
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        next = bursts(&frames, next, &pool, &mut queue);
        if queue.refused() > 0 {
            return Err(GeneratorError::Refused { device: text(), refused: queue.refused() });
        }
    }
    Ok(())
}

/// Sends some bursts, from a frame on; gives the frame after the last.
fn bursts(frames: &Frames, mut next: usize, pool: &PacketPool, queue: &mut TxQueue) -> usize {
    let mut burst = PacketBurst::new();
    for _ in 0..BURSTS {
        // What the device had no room for goes first, in its order.
        let left = burst.len();
        if !pool.allocate_into(&mut burst, BURST - left) {
            // Some are on their way.
            queue.transmit(&mut burst);
            continue;
        }
        for packet in burst.iter_mut().skip(left) {
            let frame = frames.get(next);
            next = if next + 1 == frames.count() { 0 } else { next + 1 };
            if let Some(data) = packet.append(frame.len()) {
                data.copy_from_slice(frame);
            }
        }
        queue.transmit(&mut burst);
    }
    // The order of packets shall not depend on where a round of bursts ends.
    while !burst.is_empty() && queue.transmit(&mut burst) > 0 {}
    (next + frames.count() - burst.len() % frames.count()) % frames.count()
}

/// Tells when standard input has ended.
///
/// # Errors
/// There is no thread to wait for it.
pub fn stop_with_input() -> Result<Arc<AtomicBool>, GeneratorError> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let wait = move || {
        let mut input = io::stdin().lock();
        let mut bytes = [0; 64];
        while matches!(input.read(&mut bytes), Ok(count) if count > 0) {}
        told.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("input".into()).spawn(wait).map_err(GeneratorError::Thread)?;
    Ok(stop)
}

/// The frames of a file, one behind the other. There is at least one.
#[derive(Debug)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
}

impl Frames {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Frames, GeneratorError> {
        let bytes =
            std::fs::read(path).map_err(|source| GeneratorError::File { path: path.to_owned(), source })?;
        let wrong = |at| GeneratorError::NoPackets { path: path.to_owned(), at };
        if !bytes.starts_with(&MAGIC) || u32::try_from(bytes.len()).is_err() {
            return Err(wrong(0));
        }
        let (mut places, mut at) = (Vec::new(), FILE_HEADER_BYTES);
        while at < bytes.len() {
            let header = bytes.get(at..at + RECORD_HEADER_BYTES).ok_or_else(|| wrong(at))?;
            let length = header.get(8..12).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
            let length = length.and_then(|length| u16::try_from(length).ok()).ok_or_else(|| wrong(at))?;
            let begin = at + RECORD_HEADER_BYTES;
            let end = begin + usize::from(length);
            if end > bytes.len() {
                return Err(wrong(at));
            }
            places.push((begin as u32, end as u32));
            at = end;
        }
        if places.is_empty() { Err(wrong(at)) } else { Ok(Frames { bytes, places }) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// A frame; an empty one beyond the last.
    pub fn get(&self, number: usize) -> &[u8] {
        let place = self.places.get(number);
        place.and_then(|(begin, end)| self.bytes.get(*begin as usize..*end as usize)).unwrap_or_default()
    }

    /// Bytes that a packet buffer needs to hold any of them.
    pub fn room(&self) -> u16 {
        self.longest().max(DEFAULT_DATA_ROOM_BYTES)
    }

    /// Bytes of the longest.
    fn longest(&self) -> u16 {
        let lengths = self.places.iter().map(|(begin, end)| (end - begin) as u16);
        lengths.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), &[0; 20]].concat();
        for (length, frame) in records {
            bytes.extend([0; 8]);
            bytes.extend(length.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(*frame);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Frames, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("packets.pcap");
        std::fs::write(&path, bytes).unwrap();
        Frames::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn frames_are_read_whole() {
        let frames = read(&file(&[(3, &[1, 2, 3]), (2, &[4, 5])])).unwrap();
        assert_eq!((frames.count(), frames.longest()), (2, 3));
        assert_eq!((frames.get(0), frames.get(1)), ([1, 2, 3].as_slice(), [4, 5].as_slice()));
        assert!(frames.get(2).is_empty());
    }

    #[test]
    fn a_file_of_something_else_is_refused_with_the_place() {
        for (bytes, place) in [
            (b"no packets at all".to_vec(), "byte 0 "),
            (file(&[]), "byte 24 "),
            (file(&[(3, &[1, 2, 3]), (9, &[4, 5])]), "byte 43 "),
            (file(&[(70_000, &[0; 70_000])]), "byte 24 "),
            ([file(&[]), vec![0; 7]].concat(), "byte 24 "),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(error.contains(place), "{place}: {error}");
        }
        let error = Frames::read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/file: No such file"), "{error}");
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let error = pin(1023).unwrap_err().to_string();
        assert_eq!(error, "core 1023 cannot be had (see: taskset -p $$)");
    }
}
