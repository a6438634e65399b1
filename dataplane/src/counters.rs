//! What the packet path counts: per port, per rule, by reason.
//!
//! Every counter is written by one worker and read by the control side, which sums over the workers. A packet that
//! was received on a port leaves in exactly one way, and the way is counted at the port that *received* it; so for
//! each port `rx = sent + delivered + trapped + local + drops + in flight`, and [`PortTotals`] can check it.

use forebay_pipeline::counters::Counter;
use forebay_sriov::HugeSlice;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::FromZeros;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped. The names are the contract with users: docs/counters.md lists them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// Every reason.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)+];

            /// The reason's name in counters.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The source MAC is not the tenant's.
    SourceMac = "source_mac",
    /// The source address (of IP, ARP or ND) is not the tenant's.
    SourceIp = "source_ip",
    /// A header is truncated, inconsistent, or has a wrong checksum.
    Malformed = "malformed",
    /// No rule of the port, or of the tunnel, matches.
    NoRule = "no_rule",
    /// A rule says drop.
    RuleDrop = "rule_drop",
    /// Addressed to this host, and no tunnel that an ingress rule names.
    UnknownTunnel = "unknown_tunnel",
    /// The next hop did not answer in time, or too many packets wait for it already.
    NoNeighbor = "no_neighbor",
    /// Larger than what the way out can carry.
    TooBig = "too_big",
    /// The transmit queue is full.
    TxFull = "tx_full",
    /// The port, or the port to send to, is not there or does not pass traffic.
    PortDown = "port_down",
    /// Received by an uplink, and for another MAC or address than the host's.
    NotLocal = "not_local",
    /// A fragment of a tunnel's outer packet: tunnels are not reassembled.
    OuterFragment = "outer_fragment",
    /// Congestion was marked outside on a packet that does not understand marks (RFC 6040).
    Congestion = "congestion",
    /// The ring to the next worker, or to the trusted software path, is full.
    RingFull = "ring_full",
    /// No packet buffer, or no room in it for what must be added.
    NoBuffer = "no_buffer",
    /// A worker panicked with the packet in its hands.
    WorkerPanic = "worker_panic",
}

/// The number of reasons.
pub const DROP_REASONS: usize = DropReason::ALL.len();

/// The counters of one port on one worker. Written by that worker, read by the control side.
#[derive(Default)]
#[repr(align(64))]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: Counter,
    /// Bytes received, without the frame check sequence.
    pub rx_bytes: Counter,
    /// Packets sent through this port, whoever they came from.
    pub tx_packets: Counter,
    /// Bytes sent through this port.
    pub tx_bytes: Counter,
    /// Of the received: sent out of an uplink.
    pub sent: Counter,
    /// Of the received: delivered to a local port.
    pub delivered: Counter,
    /// Of the received: handed to the trusted software path.
    pub trapped: Counter,
    /// Of the received: answered or used by the host itself.
    pub local: Counter,
    /// Packets that the host made itself, sent through this port.
    pub originated: Counter,
    /// Packets that the host made itself and could not send.
    pub originated_lost: Counter,
    /// Of the received: put to wait for a neighbour.
    pub parked: Counter,
    /// Of the received: waited for a neighbour, and do not any more.
    pub released: Counter,
    /// Of the received: given by this worker to another one.
    pub handed: Counter,
    /// Received on another worker, and taken over by this one.
    pub taken: Counter,
    /// Of the received: dropped, by reason.
    pub drops: [Counter; DROP_REASONS],
}

impl PortCounters {
    /// Packets that came to this worker and did not leave it; called by the worker itself, between bursts.
    pub fn held(&self) -> u64 {
        let came = self.rx_packets.get() + self.taken.get();
        let dropped: u64 = self.drops.iter().map(Counter::get).sum();
        let left = self.sent.get() + self.delivered.get() + self.trapped.get() + self.local.get();
        came.saturating_sub(left + dropped + self.handed.get())
    }
}

/// Totals of one port over all workers, at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTotals {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent through the port.
    pub tx_packets: u64,
    /// Bytes sent through the port.
    pub tx_bytes: u64,
    /// Received here and sent out of an uplink.
    pub sent: u64,
    /// Received here and delivered to a local port.
    pub delivered: u64,
    /// Received here and trapped.
    pub trapped: u64,
    /// Received here and answered by the host.
    pub local: u64,
    /// Made by the host, sent here.
    pub originated: u64,
    /// Made by the host, lost here.
    pub originated_lost: u64,
    /// Received here and waiting for a neighbour.
    pub waiting: u64,
    /// Received here and dropped, by reason.
    pub drops: [u64; DROP_REASONS],
}

impl PortTotals {
    /// Adds what one worker counted. What came of the packets is read before how many there were, so that a packet
    /// on its way shows as in flight and never the other way round.
    pub fn add(&mut self, counters: &PortCounters) {
        for (total, counter) in self.drops.iter_mut().zip(&counters.drops) {
            *total += counter.get();
        }
        self.sent += counters.sent.get();
        self.delivered += counters.delivered.get();
        self.trapped += counters.trapped.get();
        self.local += counters.local.get();
        self.originated += counters.originated.get();
        self.originated_lost += counters.originated_lost.get();
        self.tx_packets += counters.tx_packets.get();
        self.tx_bytes += counters.tx_bytes.get();
        let released = counters.released.get();
        self.waiting = self.waiting.wrapping_add(counters.parked.get()).wrapping_sub(released);
        self.rx_bytes += counters.rx_bytes.get();
        self.rx_packets += counters.rx_packets.get();
    }

    /// Counts what a worker took over from others as received, and not what it gave to them: so that the equation holds for
    /// the worker by itself.
    pub fn add_as_worker(&mut self, counters: &PortCounters) {
        let handed = counters.handed.get();
        self.add(counters);
        self.rx_packets = self.rx_packets.wrapping_add(counters.taken.get()).wrapping_sub(handed);
    }

    /// Adds the totals of another port.
    pub fn join(&mut self, other: &PortTotals) {
        self.rx_packets += other.rx_packets;
        self.rx_bytes += other.rx_bytes;
        self.tx_packets += other.tx_packets;
        self.tx_bytes += other.tx_bytes;
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.trapped += other.trapped;
        self.local += other.local;
        self.originated += other.originated;
        self.originated_lost += other.originated_lost;
        self.waiting += other.waiting;
        for (total, drops) in self.drops.iter_mut().zip(&other.drops) {
            *total += drops;
        }
    }

    /// What was counted since `earlier` totals of the same port; the waiting are those of now.
    pub fn since(&self, earlier: &PortTotals) -> PortTotals {
        let mut drops = self.drops;
        for (now, then) in drops.iter_mut().zip(&earlier.drops) {
            *now = now.saturating_sub(*then);
        }
        PortTotals {
            rx_packets: self.rx_packets.saturating_sub(earlier.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(earlier.rx_bytes),
            tx_packets: self.tx_packets.saturating_sub(earlier.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(earlier.tx_bytes),
            sent: self.sent.saturating_sub(earlier.sent),
            delivered: self.delivered.saturating_sub(earlier.delivered),
            trapped: self.trapped.saturating_sub(earlier.trapped),
            local: self.local.saturating_sub(earlier.local),
            originated: self.originated.saturating_sub(earlier.originated),
            originated_lost: self.originated_lost.saturating_sub(earlier.originated_lost),
            waiting: self.waiting,
            drops,
        }
    }

    /// Received packets that were dropped, whatever the reason.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Received packets not accounted for yet; negative would mean that one was counted twice.
    pub fn in_flight(&self) -> i64 {
        let out = self.sent + self.delivered + self.trapped + self.local + self.dropped();
        self.rx_packets as i64 - out as i64
    }

    /// Reason to packets, with every reason present.
    pub fn drops_by_name(&self) -> BTreeMap<&'static str, u64> {
        DropReason::ALL.iter().map(|reason| (reason.name(), self.drops[*reason as usize])).collect()
    }
}

/// A slot of the rule counters. Written by one worker, read by the control side.
#[derive(Default, FromZeros)]
#[repr(C)]
pub struct RuleCounter {
    /// Packets that the rule decided.
    pub packets: Counter,
    /// Their bytes, as received (egress) or inside the tunnel (ingress).
    pub bytes: Counter,
}

/// The most rules that a host holds: 4,194,304. Their counters take 64 MiB of address space on each worker, and memory as
/// far as they are used.
pub const MAX_RULES: usize = 1 << 22;

/// The counters of all rules on one worker.
pub struct RuleCounters {
    counters: HugeSlice<RuleCounter>,
    /// The counters below this slot are in memory. Written by the control side alone.
    ready: AtomicUsize,
}

/// Slots whose counters are brought into memory together: 2 MiB of them.
const READY_TOGETHER: usize = 1 << 17;

impl RuleCounters {
    /// All at zero.
    ///
    /// # Errors
    /// The system has no address space to give.
    pub fn new() -> io::Result<RuleCounters> {
        let counters = RuleCounters { counters: HugeSlice::new(MAX_RULES)?, ready: AtomicUsize::new(0) };
        counters.make_ready(0);
        Ok(counters)
    }

    /// Brings the counters of slots up to this one into memory, before a worker counts there and has to wait for the system.
    /// Control side.
    pub fn make_ready(&self, slot: u32) {
        let (ready, wanted) = (self.ready.load(Ordering::Relaxed), slot as usize + 1);
        if wanted > ready {
            let wanted = wanted.next_multiple_of(READY_TOGETHER).min(MAX_RULES);
            // Where it fails, counters appear as they are used.
            self.counters.populate(ready..wanted);
            self.ready.store(wanted, Ordering::Relaxed);
        }
    }

    /// The counters of all slots.
    #[inline(always)]
    pub fn all(&self) -> &[RuleCounter] {
        &self.counters
    }

    /// The counters of `slot`; `None` beyond the last.
    #[inline(always)]
    pub fn get(&self, slot: u32) -> Option<&RuleCounter> {
        self.counters.get(slot as usize)
    }
}

/// Everything that one worker counts about packets.
pub struct WorkerTally {
    /// By port number.
    pub ports: Box<[PortCounters]>,
    /// By rule slot.
    pub rules: RuleCounters,
}

impl WorkerTally {
    /// Zeroed counters for `ports` ports.
    ///
    /// # Errors
    /// The system has no address space to give.
    pub fn new(ports: usize) -> io::Result<WorkerTally> {
        let ports = (0..ports).map(|_| PortCounters::default()).collect();
        Ok(WorkerTally { ports, rules: RuleCounters::new()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_names_and_their_own_slot() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DROP_REASONS);
        assert!(DropReason::ALL.iter().enumerate().all(|(slot, reason)| *reason as usize == slot));
    }

    #[test]
    fn totals_balance() {
        let counters = PortCounters::default();
        counters.rx_packets.add(10);
        counters.sent.add(3);
        counters.drops[DropReason::NoRule as usize].add(4);
        counters.parked.add(3);
        counters.released.add(1);
        let mut totals = PortTotals::default();
        totals.add(&counters);
        totals.add(&PortCounters::default());
        assert_eq!((totals.in_flight(), totals.waiting, totals.dropped()), (3, 2, 4));
        assert_eq!(totals.since(&totals.clone()).in_flight(), 0);
        assert_eq!(totals.drops_by_name()["no_rule"], 4);
        counters.taken.add(2);
        counters.handed.add(5);
        let mut worker = PortTotals::default();
        worker.add_as_worker(&counters);
        assert_eq!(worker.in_flight(), 0);
    }

    #[test]
    fn rules_count_in_their_own_slots() {
        let counters = RuleCounters::new().unwrap();
        let last = MAX_RULES as u32 - 1;
        for slot in [0, 5000, last] {
            counters.get(slot).unwrap().packets.add(u64::from(slot) + 1);
        }
        assert_eq!(counters.get(5000).unwrap().packets.get(), 5001);
        assert_eq!(counters.get(last).unwrap().packets.get(), MAX_RULES as u64);
        assert_eq!(counters.get(1).unwrap().packets.get(), 0);
        assert!(counters.get(last + 1).is_none());
    }
}
