//! The other side of `forebay bench idle`: a process that sends the packets of a file at a rate, in bursts, and measures how
//! long each takes to come back through another device.
//!
//! Each packet carries the time of its sending in its last bytes, which no encapsulation touches; both times are read from
//! the time-stamp counter on one core. While somebody else has that core, nothing can be measured: packets that were on
//! their way then are counted, but their latency is not. It sends until its standard input ends, waits for what is still
//! on its way, and writes what it measured as one line of JSON.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use forebay_benches::{PACER_MEASURED, PACER_SENDING, PacerFigures};
use forebay_pipeline::{Histogram, tsc};
use forebay_sriov::{
    BURST, Device, DeviceOptions, DeviceSpec, Eal, EalOptions, Hugepages, Packet, PacketBurst, PacketPool,
    RxQueue, TxQueue,
};

use super::generator::{
    EAL_MEMORY_MIB, Frames, GeneratorError, LINK_PATIENCE, LINK_STEP, pin, stop_with_input,
};

/// Packet buffers: rings of both devices, and bursts.
const POOL_PACKETS: u32 = 8191;
/// At first nothing is measured: caches, averages and the other side settle.
const WARM_UP: Duration = Duration::from_millis(300);
/// A turn takes a microsecond, one that wakes the other side some ten: whose turn takes longer did not have its core.
const TURN: Duration = Duration::from_micros(30);
/// How long the last packets may take to come back.
const RETURN_PATIENCE: Duration = Duration::from_millis(300);
/// The time of sending, and what kind of packet it is.
const STAMP_BYTES: usize = 16;
const NOT_MEASURED: u64 = 0x6672_6279_0000;
const FIRST_OF_BURST: u64 = NOT_MEASURED + 1;
const REST_OF_BURST: u64 = NOT_MEASURED + 2;

/// What is sent, and how.
#[derive(Clone, Debug, Args)]
pub struct PacerArgs {
    /// The device that the packets go to
    #[arg(long, value_name = "DEVICE")]
    device: DeviceSpec,
    /// The device that they come back by
    #[arg(long, value_name = "DEVICE")]
    back: DeviceSpec,
    /// The packets, in the classic format of libpcap
    #[arg(long, value_name = "FILE")]
    packets: PathBuf,
    /// The core to use up
    #[arg(long, value_name = "CORE")]
    core: usize,
    /// Packets a second; 0 sends none
    #[arg(long, value_name = "N")]
    pps: u64,
    /// Packets that are sent at once
    #[arg(long, value_name = "N")]
    burst: u32,
    /// Send as fast as the device takes
    #[arg(long)]
    saturate: bool,
}

/// Sends and measures until standard input ends.
pub fn main(args: &PacerArgs) -> ExitCode {
    match pace(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(
    eal: Eal,
    spec: &DeviceSpec,
    pool: &PacketPool,
) -> Result<(Device, RxQueue, TxQueue), GeneratorError> {
    let options = DeviceOptions { rx_descriptors: 1024, tx_descriptors: 1024, ..DeviceOptions::new(pool) };
    let mut device = Device::open(eal, spec, &options)?;
    let none = || GeneratorError::Refused { device: spec.to_string(), refused: 0 };
    let (receive, transmit) = device.take_queues().pop().ok_or_else(none)?;
    Ok((device, receive, transmit))
}

fn pace(args: &PacerArgs) -> Result<(), GeneratorError> {
    let frames = Frames::read(&args.packets)?;
    let eal = Eal::start(&EalOptions {
        hugepages: Hugepages::Auto,
        memory_mib: EAL_MEMORY_MIB,
        name: "forebay-pacer".into(),
    })?;
    let pool = PacketPool::new(eal, "pacer", POOL_PACKETS, frames.room())?;
    let (there, _unused, transmit) = open(eal, &args.device, &pool)?;
    let (back, receive, _other) = open(eal, &args.back, &pool)?;
    let began = Instant::now();
    while !(there.link_up() && back.link_up()) {
        if began.elapsed() > LINK_PATIENCE {
            return Err(GeneratorError::NoLink { device: args.device.to_string() });
        }
        std::thread::sleep(LINK_STEP);
    }
    let stop = stop_with_input()?;
    let interval = match args.pps {
        0 => None,
        pps => Some((tsc::hz() as u128 * u128::from(args.burst) / u128::from(pps)) as u64),
    };
    pin(args.core)?;
    let _registered = eal.register_thread()?;
    eprintln!("{PACER_SENDING}");
    let mut pacer = Pacer {
        frames: &frames,
        pool: &pool,
        transmit,
        receive,
        next_frame: 0,
        outgoing: PacketBurst::new(),
        incoming: PacketBurst::new(),
        first: Histogram::new(),
        rest: Histogram::new(),
        sent: 0,
        received: 0,
        refused: 0,
        unjudged: 0,
        turn: tsc::from_duration(TURN),
        turned_at: tsc::now(),
        away_until: 0,
    };
    let start = tsc::now();
    let measured_from = start + tsc::from_duration(WARM_UP);
    let mut next = start;
    while !stop.load(Ordering::Relaxed) {
        pacer.take_back();
        let now = pacer.turned_at;
        if args.saturate {
            pacer.send(args.burst, now >= measured_from);
        } else if let Some(interval) = interval
            && now >= next
        {
            pacer.send(args.burst, now >= measured_from);
            // What was missed is not made up for: it would come as one burst.
            next = (next + interval).max(now.saturating_sub(interval));
        }
    }
    let elapsed = tsc::now().saturating_sub(measured_from);
    let deadline = Instant::now() + RETURN_PATIENCE;
    while pacer.received < pacer.sent && Instant::now() < deadline {
        pacer.take_back();
    }
    eprintln!("{PACER_MEASURED}{}", pacer.figures(tsc::to_ns(elapsed)).to_json());
    Ok(())
}

struct Pacer<'a> {
    frames: &'a Frames,
    pool: &'a PacketPool,
    transmit: TxQueue,
    receive: RxQueue,
    next_frame: usize,
    outgoing: PacketBurst,
    incoming: PacketBurst,
    /// Latency of the first packet of each burst, and of the others, nanoseconds.
    first: Histogram,
    rest: Histogram,
    sent: u64,
    received: u64,
    /// Packets that the device had no room for.
    refused: u64,
    /// Packets that were on their way while somebody else had the core.
    unjudged: u64,
    /// The longest turn, when the last one ended, and until when somebody else had the core; time-stamp cycles.
    turn: u64,
    turned_at: u64,
    away_until: u64,
}

impl Pacer<'_> {
    /// Sends so many packets at once.
    fn send(&mut self, count: u32, is_measured: bool) {
        let mut left = count as usize;
        while left > 0 {
            let now = left.min(BURST);
            if !self.pool.allocate_into(&mut self.outgoing, now) {
                return;
            }
            let is_first = left == count as usize;
            for (place, packet) in self.outgoing.iter_mut().enumerate() {
                let frame = self.frames.get(self.next_frame);
                self.next_frame = (self.next_frame + 1) % self.frames.count();
                let kind = match (is_measured, is_first && place == 0) {
                    (false, _) => NOT_MEASURED,
                    (true, true) => FIRST_OF_BURST,
                    (true, false) => REST_OF_BURST,
                };
                fill(packet, frame, kind);
            }
            let sent = self.transmit.transmit(&mut self.outgoing);
            self.end_turn();
            if is_measured {
                self.sent += sent as u64;
                self.refused += (now - sent) as u64;
            }
            self.outgoing.clear();
            left -= now;
        }
    }

    /// Sees whether it had the core since the last turn.
    fn end_turn(&mut self) {
        let now = tsc::now();
        if now.saturating_sub(self.turned_at) > self.turn {
            self.away_until = now;
        }
        self.turned_at = now;
    }

    /// Takes what has come back.
    fn take_back(&mut self) {
        let received = self.receive.receive(&mut self.incoming);
        self.end_turn();
        if received == 0 {
            return;
        }
        let now = self.turned_at;
        for packet in self.incoming.drain() {
            let Some((at, kind)) = stamp(packet.data()) else { continue };
            let histogram = match kind {
                FIRST_OF_BURST => &self.first,
                REST_OF_BURST => &self.rest,
                _ => continue,
            };
            if at < self.away_until {
                self.unjudged += 1;
            } else {
                histogram.record(tsc::to_ns(now.saturating_sub(at)), 1);
            }
            self.received += 1;
        }
    }

    fn figures(&self, elapsed_ns: u64) -> PacerFigures {
        PacerFigures {
            sent: self.sent,
            received: self.received,
            refused: self.refused,
            unjudged: self.unjudged,
            elapsed_ns,
            first_ns: self.first.snapshot(),
            rest_ns: self.rest.snapshot(),
        }
    }
}

/// Writes a frame with its stamp.
fn fill(packet: &mut Packet, frame: &[u8], kind: u64) {
    let Some(data) = packet.append(frame.len()) else { return };
    data.copy_from_slice(frame);
    if let Some((_, end)) = data.split_at_mut_checked(frame.len().saturating_sub(STAMP_BYTES))
        && let Some((at, of)) = end.split_at_mut_checked(STAMP_BYTES / 2)
    {
        at.copy_from_slice(&tsc::now().to_le_bytes());
        of.copy_from_slice(&kind.to_le_bytes());
    }
}

/// When a packet was sent, and what kind it is; of packets that are not ours, none.
fn stamp(data: &[u8]) -> Option<(u64, u64)> {
    let (end, kind) = data.split_last_chunk::<{ STAMP_BYTES / 2 }>()?;
    let (_, at) = end.split_last_chunk::<{ STAMP_BYTES / 2 }>()?;
    let kind = u64::from_le_bytes(*kind);
    (NOT_MEASURED..=REST_OF_BURST).contains(&kind).then(|| (u64::from_le_bytes(*at), kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_others_are_none() {
        let bytes = |at: u64, kind: u64| [&[7; 40][..], &at.to_le_bytes(), &kind.to_le_bytes()].concat();
        assert_eq!(stamp(&bytes(5, FIRST_OF_BURST)), Some((5, FIRST_OF_BURST)));
        assert_eq!(stamp(&bytes(5, 7)), None);
        assert_eq!(stamp(&[0; 15]), None);
    }
}
