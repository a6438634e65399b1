//! Before the first stage: takes a burst from a receive queue, and tells whose packets they are.

use super::admit::make_contiguous;
use super::ledger::Ledger;
use super::parcel::{Meta, Parcel, Verdict};
use super::vlan;
use crate::action::PortId;
use crate::counters::DropReason;
use crate::snapshot::{DeviceEntry, MAX_DEVICES, Snapshot};
use forebay_pipeline::batch::Batch;
use forebay_pipeline::counters::StageCounters;
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::tsc;
use forebay_sriov::{Packet, PacketBurst, RxQueue};
use std::sync::Arc;

/// MACs, one tag, and the EtherType behind it: what must lie in one piece for the tag to be read and taken off.
const TAGGED_BYTES: usize = crate::wire::ETHERNET_BYTES + crate::wire::VLAN_TAG_BYTES;

/// The receive queues of one worker.
pub struct Receive {
    snapshot: Subscriber<Snapshot>,
    ledger: Ledger,
    queues: Vec<RxQueue>,
    next: usize,
    burst: Box<PacketBurst>,
    counters: Arc<StageCounters>,
}

impl Receive {
    /// No queues yet.
    pub fn new(snapshot: Subscriber<Snapshot>, ledger: Ledger, counters: Arc<StageCounters>) -> Receive {
        let queues = Vec::with_capacity(MAX_DEVICES);
        Receive { snapshot, ledger, queues, next: 0, burst: Box::new(PacketBurst::new()), counters }
    }

    /// Looks at the newest snapshot from now on.
    #[inline(always)]
    pub fn refresh(&mut self) {
        self.snapshot.refresh();
    }

    /// From now on this queue is polled.
    pub fn attach(&mut self, queue: RxQueue) {
        self.queues.push(queue);
    }

    /// The queues of this device are not polled any more.
    pub fn detach(&mut self, device: u16) {
        self.queues.retain(|queue| queue.port() != device);
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Takes a burst from the next queue into the empty `batch`. Returns the time stamp of its end.
    #[inline(always)]
    pub fn receive(&mut self, batch: &mut Batch<Parcel>) -> u64 {
        let count = self.queues.len();
        let Some(queue) = self.queues.get_mut(self.next) else { return 0 };
        self.next = if self.next + 1 < count { self.next + 1 } else { 0 };
        let before = tsc::now();
        let received = queue.receive(&mut self.burst);
        if received == 0 {
            return before;
        }
        let after = tsc::now();
        self.counters.record(received as u64, after - before);
        let Receive { snapshot, ledger, burst, .. } = self;
        match snapshot.current().devices.get(usize::from(queue.port())) {
            Some(DeviceEntry { port: Some(port), vlans: None }) => take_all(burst, *port, ledger, batch),
            Some(entry) => take_by_vlan(burst, entry, ledger, batch),
            None => burst.clear(),
        }
        after
    }
}

/// Every packet belongs to the device's own port.
#[inline(always)]
fn take_all(burst: &mut PacketBurst, port: PortId, ledger: &Ledger, batch: &mut Batch<Parcel>) {
    let (mut packets, mut bytes) = (0, 0);
    for mut packet in burst.drain() {
        packet.prefetch_header();
        let verdict = restore_tag(&mut packet);
        packets += 1;
        bytes += packet.len() as u64;
        batch.push(Parcel { packet, meta: Meta { verdict, ..Meta::received(port) } });
    }
    ledger.received(port, packets, bytes);
}

/// The tag tells whose packet it is; what has no port of its own belongs to the device's port.
fn take_by_vlan(burst: &mut PacketBurst, entry: &DeviceEntry, ledger: &Ledger, batch: &mut Batch<Parcel>) {
    for mut packet in burst.drain() {
        let mut verdict = restore_tag(&mut packet);
        if !make_contiguous(&mut packet, TAGGED_BYTES) {
            verdict = Verdict::Drop(DropReason::NoBuffer);
        }
        let tag = entry.vlans.as_ref().zip(vlan::outermost(packet.data()));
        let behind = tag.and_then(|(vlans, id)| *vlans.get(usize::from(id))?);
        let bytes = packet.len() as u64;
        let port = match (behind, entry.port) {
            (Some(port), _) => {
                vlan::pop(&mut packet);
                port
            }
            (None, Some(port)) => port,
            // The device is being taken away: nobody counts its packets any more.
            (None, None) => continue,
        };
        ledger.received(port, 1, bytes);
        batch.push(Parcel { packet, meta: Meta { verdict, ..Meta::received(port) } });
    }
}

/// Some devices hand over the outermost tag beside the packet; the packet path expects it inside. A packet that cannot
/// take it back is dropped: without its tag it would be taken for another port's.
#[inline(always)]
fn restore_tag(packet: &mut Packet) -> Verdict {
    match packet.take_stripped_vlan() {
        None => Verdict::Open,
        Some(tci) if vlan::push(packet, tci) => Verdict::Open,
        Some(_) => Verdict::Drop(DropReason::NoBuffer),
    }
}
