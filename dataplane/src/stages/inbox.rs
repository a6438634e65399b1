//! What comes from workers that run the stages before.

use super::ledger::Ledger;
use super::parcel::{Parcel, Parcels};
use crate::counters::DropReason;
use crate::upstream::Upstream;
use forebay_pipeline::batch::Batch;
use forebay_pipeline::ring::RingConsumer;

/// A way from another worker.
pub struct Inbox {
    ring: RingConsumer<Parcel>,
    /// What the other worker has received behind that.
    upstream: Option<Upstream>,
}

impl Inbox {
    /// What comes out of this ring. `upstream` counts what its packets' numbers are numbers of.
    pub fn new(ring: RingConsumer<Parcel>, upstream: Option<Upstream>) -> Inbox {
        Inbox { ring, upstream }
    }
}

/// The ways from all workers that pass packets on to this one.
pub struct Inboxes {
    ledger: Ledger,
    inboxes: Vec<Inbox>,
    /// What has come, empty between bursts.
    incoming: Box<Batch<Parcel>>,
}

impl Inboxes {
    /// No ways yet.
    pub fn new(ledger: Ledger) -> Inboxes {
        Inboxes { ledger, inboxes: Vec::new(), incoming: Box::default() }
    }

    /// From now on, this one is looked into.
    pub fn attach(&mut self, inbox: Inbox) {
        self.inboxes.push(inbox);
    }

    /// The number of ways.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.inboxes.len()
    }

    /// Forgets the ways that have ended and are empty.
    pub fn forget_ended(&mut self) {
        self.inboxes.retain(|inbox| !(inbox.ring.is_abandoned() && inbox.ring.is_empty()));
    }

    /// Takes a burst from one of them into the empty `burst`. Returns the number of packets.
    #[inline(always)]
    pub fn take(&mut self, number: usize, burst: &mut Parcels) -> usize {
        let Inboxes { ledger, inboxes, incoming } = self;
        let Some(inbox) = inboxes.get_mut(number) else { return 0 };
        let taken = inbox.ring.pop(incoming);
        if taken == 0 {
            return 0;
        }
        if let (Some(Parcel { meta, .. }), Some(upstream)) = (incoming.last(), &mut inbox.upstream) {
            upstream.came(meta.port, meta.sequence);
        }
        for parcel in incoming.drain(..) {
            ledger.taken(parcel.meta.port);
            // The burst is empty, and as long as a batch: there is room.
            if let Err(Parcel { packet, meta }) = burst.push(parcel) {
                ledger.dropped(meta.port, DropReason::RingFull);
                drop(packet);
            }
        }
        burst.find_sole_port();
        taken
    }

    /// Says of one of them that what was taken has been worked on, while nothing more can be taken.
    #[inline(always)]
    pub fn acknowledge(&mut self, number: usize) {
        if let Some(inbox) = self.inboxes.get_mut(number) {
            inbox.ring.acknowledge();
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.inboxes.iter().all(|inbox| inbox.ring.is_empty())
    }

    /// Packets that have entered the pipeline behind those that came, as far as it is known.
    #[inline(always)]
    pub fn behind(&self) -> usize {
        self.inboxes.iter().filter_map(|inbox| inbox.upstream.as_ref()).map(Upstream::behind).sum()
    }

    /// Frees what had come when a panic did.
    pub fn clear(&mut self) {
        self.incoming.clear();
    }
}
