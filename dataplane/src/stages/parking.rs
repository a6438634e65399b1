//! Where packets wait while their next hop is being asked for its MAC: bounded in number and time.
//!
//! How many wait for each next hop is counted, not searched for: else a tenant that sends to a dead next hop at line
//! rate would make the worker look through all places for each of its packets.

use super::ledger::{Ledger, Origin};
use crate::counters::DropReason;
use crate::snapshot::{MAX_NEIGHBOURS, Neighbours};
use forebay_pipeline::tsc;
use forebay_sriov::Packet;
use std::collections::VecDeque;
use std::time::Duration;

/// Packets that wait on one worker: 1,024 buffers are a small part of the smallest pool.
pub const PLACES: usize = 1024;
/// Packets that wait for one next hop: a window of TCP's first flight from several flows, and not all places.
const PLACES_PER_NEXT_HOP: u8 = 128;
/// How long a packet waits: three questions, a second apart (RFC 4861, MAX_MULTICAST_SOLICIT and RETRANS_TIMER).
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the control side is reminded of packets that wait: it may have given up in the meantime.
const REMINDER: Duration = Duration::from_millis(500);
/// How often the places are looked over: a tenth of a millisecond is well below a round trip.
const INTERVAL: Duration = Duration::from_micros(100);

/// A packet with its outer headers, of which only the first six bytes are missing.
struct Waiting {
    packet: Packet,
    origin: Origin,
    next_hop: u32,
    deadline: u64,
}

/// The places of one worker.
pub struct Parking {
    places: VecDeque<Waiting>,
    /// By the next hop's slot, how many wait for it.
    waiting: Box<[u8]>,
    ledger: Ledger,
    next_look: u64,
    next_reminder: u64,
}

impl Parking {
    /// Empty places; they are all allocated now.
    pub fn new(ledger: Ledger) -> Parking {
        let waiting = vec![0; MAX_NEIGHBOURS].into_boxed_slice();
        Parking { places: VecDeque::with_capacity(PLACES), waiting, ledger, next_look: 0, next_reminder: 0 }
    }

    /// The number of packets that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Some packet waits for this next hop.
    #[inline(always)]
    pub fn waits_for(&self, next_hop: u32) -> bool {
        !self.places.is_empty() && self.waiting.get(next_hop as usize).is_some_and(|count| *count > 0)
    }

    /// Makes the next look due.
    pub fn hurry(&mut self) {
        self.next_look = 0;
    }

    /// Lets a packet wait, or drops it where too many do. True where the control side is to be told: for the first packet to a
    /// next hop, and now and then again.
    pub fn park(&mut self, packet: Packet, origin: Origin, next_hop: u32) -> bool {
        let room = self.places.len() < PLACES;
        let count =
            self.waiting.get_mut(next_hop as usize).filter(|count| room && **count < PLACES_PER_NEXT_HOP);
        let Some(count) = count else {
            self.ledger.refused(&origin, DropReason::NoNeighbor);
            return false;
        };
        let is_first = *count == 0;
        *count += 1;
        let now = tsc::now();
        let deadline = now + tsc::from_duration(PATIENCE);
        self.ledger.parked(origin.from);
        self.places.push_back(Waiting { packet, origin, next_hop, deadline });
        let remind = now >= self.next_reminder;
        if remind {
            self.next_reminder = now + tsc::from_duration(REMINDER);
        }
        is_first || remind
    }

    /// Hands on the packets whose next hop is known by now, in their order, and drops those that waited too long.
    /// Returns the number of packets that left.
    #[inline(always)]
    pub fn look(&mut self, neighbours: &Neighbours, go: impl FnMut(Packet, Origin, [u8; 6])) -> usize {
        if self.places.is_empty() { 0 } else { self.look_now(neighbours, go) }
    }

    #[cold]
    fn look_now(&mut self, neighbours: &Neighbours, mut go: impl FnMut(Packet, Origin, [u8; 6])) -> usize {
        let now = tsc::now();
        if now < self.next_look {
            return 0;
        }
        self.next_look = now + tsc::from_duration(INTERVAL);
        let before = self.places.len();
        for _ in 0..before {
            let Some(waiting) = self.places.pop_front() else { break };
            if let Some(mac) = neighbours.resolve(waiting.next_hop) {
                self.let_go(&waiting);
                go(waiting.packet, waiting.origin, mac);
            } else if waiting.deadline <= now {
                self.let_go(&waiting);
                self.ledger.refused(&waiting.origin, DropReason::NoNeighbor);
            } else {
                self.places.push_back(waiting);
            }
        }
        before - self.places.len()
    }

    /// Drops what waits and is not to be kept: the ports that it names may belong to somebody else soon.
    #[cold]
    pub fn retain(&mut self, reason: DropReason, keep: impl Fn(&Origin) -> bool) {
        for _ in 0..self.places.len() {
            let Some(waiting) = self.places.pop_front() else { break };
            if keep(&waiting.origin) {
                self.places.push_back(waiting);
            } else {
                self.let_go(&waiting);
                self.ledger.refused(&waiting.origin, reason);
            }
        }
    }

    /// Drops everything that waits, for that reason.
    pub fn clear(&mut self, reason: DropReason) {
        self.retain(reason, |_| false);
    }

    fn let_go(&mut self, waiting: &Waiting) {
        self.ledger.released(waiting.origin.from);
        if let Some(count) = self.waiting.get_mut(waiting.next_hop as usize) {
            *count = count.saturating_sub(1);
        }
    }
}
