//! Between two groups of stages: gives each flow to one of the workers that run the next group.
//!
//! Flows fall into buckets by a hash of their addresses, and a table says whose each bucket is. So the packets of a flow always
//! take the same way, and the control side moves load by changing the table, which it does while nothing is on any of
//! the ways.

use super::admit::make_contiguous;
use super::ledger::Ledger;
use super::parcel::{Meta, Parcel, Parcels};
use crate::counters::DropReason;
use crate::wire::frame::{Fragment, Frame, WINDOW_BYTES};
use forebay_pipeline::batch::{BATCH, Batch};
use forebay_pipeline::ring::RingProducer;
use forebay_sriov::Packet;

/// Buckets of flows: enough that 16 workers differ by an eighth at most in what they get, few enough for two cache lines.
pub const BUCKETS: usize = 128;

/// Bucket to the place of a way.
pub type Shares = [u8; BUCKETS];

/// The most ways.
pub const MAX_WAYS: usize = 1 << u8::BITS;

const _: () = assert!(BUCKETS.is_power_of_two() && MAX_WAYS >= BUCKETS);

/// Buckets given to these ways in turn: shares that differ by one bucket at most.
///
/// What is theirs in `before` stays theirs as far as that is even: a flow that is moved costs its new worker a look at
/// the rules.
pub fn even_shares(before: &Shares, ways: &[u8]) -> Shares {
    let mut shares = *before;
    let Some(count) = u32::try_from(ways.len()).ok().filter(|count| *count > 0) else { return shares };
    let (least, more) = (BUCKETS as u32 / count, BUCKETS as u32 % count);
    let mut left: Vec<(u8, u32)> =
        ways.iter().zip(0..).map(|(way, at)| (*way, least + u32::from(at < more))).collect();
    let mut homeless = Vec::new();
    for (bucket, way) in shares.iter().enumerate() {
        match left.iter_mut().find(|(other, left)| other == way && *left > 0) {
            Some((_, left)) => *left -= 1,
            None => homeless.push(bucket),
        }
    }
    let places = left.into_iter().flat_map(|(way, left)| std::iter::repeat_n(way, left as usize));
    for (bucket, way) in homeless.into_iter().zip(places) {
        shares[bucket] = way;
    }
    shares
}

/// How flows are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowBy {
    /// By the addresses, protocol and ports in the packet as it was received; of fragments by those without the ports.
    /// Unsound packets are one flow.
    Packet,
    /// By what an earlier stage has found out.
    Meta,
}

/// What a full ring costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The packets that do not fit, counted as `ring_full`.
    Drop,
    /// Time: nothing is received until every ring has room for a burst. What overflows then is the device's queue.
    Wait,
}

struct Way {
    ring: RingProducer<Parcel>,
    /// Empty between bursts.
    batch: Box<Batch<Parcel>>,
}

/// The way from a worker to those that run the next stages.
pub struct Spread {
    ledger: Ledger,
    by: FlowBy,
    full: Full,
    ways: Vec<Option<Way>>,
    shares: Box<Shares>,
}

impl Spread {
    /// No ways yet; all buckets are the first one's.
    pub fn new(ledger: Ledger, by: FlowBy, full: Full) -> Spread {
        Spread { ledger, by, full, ways: Vec::new(), shares: Box::new([0; BUCKETS]) }
    }

    /// From now on, the way of this place is this ring.
    pub fn attach(&mut self, place: u8, ring: RingProducer<Parcel>) {
        let place = usize::from(place);
        if self.ways.len() <= place {
            self.ways.resize_with(place + 1, || None);
        }
        self.ways[place] = Some(Way { ring, batch: Box::default() });
    }

    /// The way of this place ends.
    pub fn detach(&mut self, place: u8) {
        if let Some(way) = self.ways.get_mut(usize::from(place)) {
            *way = None;
        }
    }

    /// Who gets what from now on.
    pub fn share(&mut self, shares: &Shares) {
        *self.shares = *shares;
    }

    /// Whether a burst may come.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.full == Full::Drop || self.ways.iter().flatten().all(|way| way.ring.free() >= BATCH)
    }

    /// How much has gone each way up to now.
    pub fn marks(&self) -> impl Iterator<Item = u64> {
        self.ways.iter().map(|way| way.as_ref().map_or(0, |way| way.ring.mark()))
    }

    /// Whether those that come next have worked on all that had gone their ways by these marks.
    pub fn is_done_with(&self, marks: &[u64]) -> bool {
        let pairs = self.ways.iter().zip(marks);
        pairs
            .filter_map(|(way, mark)| Some((way.as_ref()?, *mark)))
            .all(|(way, mark)| way.ring.is_done_with(mark))
    }

    /// Gives each flow of the burst to its worker. What finds no room is dropped.
    #[inline(always)]
    pub fn hand_on(&mut self, burst: &mut Parcels) {
        burst.write_metas();
        let Spread { ledger, by, ways, shares, .. } = self;
        for (mut packet, meta) in burst.drain() {
            let flow = match by {
                FlowBy::Meta => meta.decision.affinity,
                FlowBy::Packet => flow_of(&mut packet),
            };
            let place = usize::from(shares[usize::from(flow) % BUCKETS]);
            match ways.get_mut(place) {
                Some(Some(way)) => {
                    let sequence = ledger.newest(meta.port) as u16;
                    way.batch.push(Parcel { packet, meta: Meta { sequence, ..*meta } });
                }
                _ => ledger.dropped(meta.port, DropReason::RingFull),
            }
        }
        for way in ways.iter_mut().flatten().filter(|way| !way.batch.is_empty()) {
            push(way, ledger);
        }
    }

    /// Frees what was on its way when a panic came.
    pub fn clear(&mut self) {
        self.ways.iter_mut().flatten().for_each(|way| way.batch.clear());
    }
}

#[inline(always)]
fn push(Way { ring, batch }: &mut Way, ledger: &Ledger) {
    batch.iter().for_each(|parcel| ledger.handed(parcel.meta.port));
    ring.push(batch);
    for parcel in batch.drain(..) {
        ledger.taken(parcel.meta.port);
        ledger.dropped(parcel.meta.port, DropReason::RingFull);
    }
}

/// A hash of what all packets of a flow have in common.
#[inline(always)]
fn flow_of(packet: &mut Packet) -> u16 {
    make_contiguous(packet, WINDOW_BYTES);
    let bytes = packet.data();
    let window = bytes.get(..WINDOW_BYTES).unwrap_or(bytes);
    match Frame::parse(window, packet.len()) {
        Ok(frame) => frame.key.flow_hash(frame.fragment == Fragment::Whole) as u16,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(shares: &Shares, way: u8) -> usize {
        shares.iter().filter(|share| **share == way).count()
    }

    #[test]
    fn shares_are_even_and_move_as_little_as_they_can() {
        let one = even_shares(&[0; BUCKETS], &[0]);
        assert_eq!(one, [0; BUCKETS]);
        let three = even_shares(&one, &[0, 4, 7]);
        assert_eq!([0, 4, 7].map(|way| count(&three, way)), [43, 43, 42]);
        let two = even_shares(&three, &[4, 7]);
        assert_eq!([4, 7].map(|way| count(&two, way)), [64, 64]);
        let kept = (0..BUCKETS).filter(|bucket| three[*bucket] != 0 && three[*bucket] == two[*bucket]);
        assert_eq!(kept.count(), 85, "only the buckets of the first have moved");
        assert_eq!(even_shares(&two, &[]), two);
    }
}
