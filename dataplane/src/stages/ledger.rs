//! The worker's account book: the one place where packets are counted.

use crate::action::PortId;
use crate::counters::{DropReason, PortCounters, RuleCounter, WorkerTally};
use forebay_pipeline::prefetch::prefetch;
use std::sync::Arc;

/// Writes the counters of one worker.
#[derive(Clone)]
pub struct Ledger {
    tally: Arc<WorkerTally>,
}

/// How a packet that is handed to a transmit queue is to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Received on a port, sent out of an uplink.
    Sent,
    /// Received on a port, delivered to a local port.
    Delivered,
    /// Made by the host.
    Originated,
}

/// Where a packet in a transmit queue comes from, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The port that received it; of what the host made, the port it is sent through.
    pub from: PortId,
    /// The port that it is sent through.
    pub to: PortId,
    /// How it counts.
    pub class: Class,
    /// Its bytes.
    pub bytes: u32,
}

impl Origin {
    /// Counted alike but for the bytes.
    #[inline(always)]
    pub fn is_like(&self, other: &Origin) -> bool {
        (self.from, self.to, self.class) == (other.from, other.to, other.class)
    }

    /// A packet that was received, not made by the host.
    #[inline(always)]
    pub fn is_received(&self) -> bool {
        self.class != Class::Originated
    }
}

impl Ledger {
    /// The book of a worker.
    pub fn new(tally: Arc<WorkerTally>) -> Ledger {
        Ledger { tally }
    }

    #[inline(always)]
    fn port(&self, port: PortId) -> Option<&PortCounters> {
        self.tally.ports.get(port.index())
    }

    /// `packets` of `bytes` bytes were received on a port.
    #[inline(always)]
    pub fn received(&self, port: PortId, packets: u64, bytes: u64) {
        if let Some(counters) = self.port(port) {
            counters.rx_packets.add(packets);
            counters.rx_bytes.add(bytes);
        }
    }

    /// The number of the newest packet that a port received here: how many they are.
    #[inline(always)]
    pub fn newest(&self, port: PortId) -> u64 {
        self.port(port).map_or(0, |counters| counters.rx_packets.get())
    }

    /// A received packet was dropped.
    #[inline(always)]
    pub fn dropped(&self, port: PortId, reason: DropReason) {
        if let Some(counters) = self.port(port) {
            counters.drops[reason as usize].add(1);
        }
    }

    /// A received packet was handed to the trusted software path.
    pub fn trapped(&self, port: PortId) {
        if let Some(counters) = self.port(port) {
            counters.trapped.add(1);
        }
    }

    /// A received packet was for the host itself.
    pub fn local(&self, port: PortId) {
        if let Some(counters) = self.port(port) {
            counters.local.add(1);
        }
    }

    /// A received packet waits for a neighbour.
    pub fn parked(&self, port: PortId) {
        if let Some(counters) = self.port(port) {
            counters.parked.add(1);
        }
    }

    /// A packet does not wait any more.
    pub fn released(&self, port: PortId) {
        if let Some(counters) = self.port(port) {
            counters.released.add(1);
        }
    }

    /// A packet on its way out was dropped after all.
    #[inline(always)]
    pub fn refused(&self, origin: &Origin, reason: DropReason) {
        match origin.class {
            Class::Sent | Class::Delivered => self.dropped(origin.from, reason),
            Class::Originated => {
                if let Some(counters) = self.port(origin.from) {
                    counters.originated_lost.add(1);
                }
            }
        }
    }

    /// A received packet was given to another worker.
    #[inline(always)]
    pub fn handed(&self, port: PortId) {
        if let Some(counters) = self.port(port) {
            counters.handed.add(1);
        }
    }

    /// A packet that another worker received was taken over.
    #[inline(always)]
    pub fn taken(&self, port: PortId) {
        if let Some(counters) = self.port(port) {
            counters.taken.add(1);
        }
    }

    /// After a panic, when nothing is held any more: what is not accounted for was lost by it.
    pub fn reconcile(&self) {
        for counters in &self.tally.ports {
            counters.drops[DropReason::WorkerPanic as usize].add(counters.held());
        }
    }

    /// The counters of rules by themselves, for many packets.
    #[inline(always)]
    pub fn rules(&self) -> RuleBook<'_> {
        RuleBook { counters: self.tally.rules.all() }
    }

    /// Packets of `bytes` bytes left by a transmit queue, all of the same origin.
    #[inline(always)]
    pub fn transmitted_many(&self, origin: &Origin, packets: u64, bytes: u64) {
        if let Some(counters) = self.port(origin.to) {
            counters.tx_packets.add(packets);
            counters.tx_bytes.add(bytes);
        }
        if let Some(counters) = self.port(origin.from) {
            match origin.class {
                Class::Sent => counters.sent.add(packets),
                Class::Delivered => counters.delivered.add(packets),
                Class::Originated => counters.originated.add(packets),
            }
        }
    }

    /// A rule decided about a packet.
    #[inline(always)]
    pub fn matched(&self, slot: u32, bytes: u64) {
        self.rules().matched(slot, bytes);
    }
}

/// The counters of rules.
#[derive(Clone, Copy)]
pub struct RuleBook<'a> {
    counters: &'a [RuleCounter],
}

impl RuleBook<'_> {
    /// Asks for the counters that [`RuleBook::matched`] will write.
    #[inline(always)]
    pub fn prefetch(self, slot: u32) {
        if let Some(counter) = self.counters.get(slot as usize) {
            prefetch(counter);
        }
    }

    /// A rule decided about a packet.
    #[inline(always)]
    pub fn matched(self, slot: u32, bytes: u64) {
        if let Some(counter) = self.counters.get(slot as usize) {
            counter.packets.add(1);
            counter.bytes.add(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::PortTotals;

    #[test]
    fn what_a_panic_took_is_found() {
        let tally = Arc::new(WorkerTally::new(2).unwrap());
        let ledger = Ledger::new(tally.clone());
        ledger.received(PortId(0), 5, 500);
        ledger.local(PortId(0));
        ledger.handed(PortId(0));
        ledger.taken(PortId(1));
        ledger.reconcile();
        assert_eq!(tally.ports[0].drops[DropReason::WorkerPanic as usize].get(), 3);
        assert_eq!(tally.ports[1].drops[DropReason::WorkerPanic as usize].get(), 1);
    }

    #[test]
    fn the_book_balances() {
        let tally = Arc::new(WorkerTally::new(4).unwrap());
        let ledger = Ledger::new(tally.clone());
        let (a, b) = (PortId(0), PortId(1));
        ledger.received(a, 5, 500);
        ledger.transmitted_many(&Origin { from: a, to: b, class: Class::Sent, bytes: 150 }, 1, 150);
        ledger.refused(&Origin { from: a, to: b, class: Class::Delivered, bytes: 100 }, DropReason::TxFull);
        ledger.local(a);
        ledger.trapped(a);
        ledger.dropped(a, DropReason::NoRule);
        ledger.transmitted_many(&Origin { from: b, to: b, class: Class::Originated, bytes: 42 }, 1, 42);
        ledger.refused(&Origin { from: b, to: b, class: Class::Originated, bytes: 42 }, DropReason::TxFull);
        let mut totals = [PortTotals::default(), PortTotals::default()];
        totals[0].add(&tally.ports[0]);
        totals[1].add(&tally.ports[1]);
        assert_eq!((totals[0].in_flight(), totals[1].in_flight()), (0, 0));
        assert_eq!((totals[1].tx_packets, totals[1].tx_bytes), (2, 192));
        assert_eq!((totals[1].originated, totals[1].originated_lost), (1, 1));
    }
}
