//! Before the first stage: takes a burst from a receive queue, and tells whose packets they are.

use super::admit::make_contiguous;
use super::ledger::Ledger;
use super::parcel::{Meta, Parcels, Parts, Verdict};
use super::vlan;
use crate::action::PortId;
use crate::counters::DropReason;
use crate::snapshot::{DeviceEntry, MAX_DEVICES, Snapshot};
use forebay_pipeline::bell::Watch;
use forebay_pipeline::counters::StageCounters;
use forebay_pipeline::publish::Subscriber;
use forebay_pipeline::tsc;
use forebay_sriov::{Packet, RxQueue, Wake};
use std::sync::Arc;
use std::time::Duration;

/// MACs, one tag, and the EtherType behind it: what must lie in one piece for the tag to be read and taken off.
const TAGGED_BYTES: usize = crate::wire::ETHERNET_BYTES + crate::wire::VLAN_TAG_BYTES;

/// Between two looks at queues of which it is as good as certain that they tell.
const CERTAINTY_INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks at whether somebody has come to the other end: who comes waits for longer than that anyway.
const ARRIVAL_INTERVAL: Duration = Duration::from_millis(10);

/// The receive queues of one worker.
pub struct Receive {
    snapshot: Subscriber<Snapshot>,
    ledger: Ledger,
    queues: Vec<RxQueue>,
    next: usize,
    counters: Arc<StageCounters>,
}

impl Receive {
    /// No queues yet.
    pub fn new(snapshot: Subscriber<Snapshot>, ledger: Ledger, counters: Arc<StageCounters>) -> Receive {
        let queues = Vec::with_capacity(MAX_DEVICES);
        Receive { snapshot, ledger, queues, next: 0, counters }
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
        self.next = 0;
    }

    /// Takes a queue away; `None` where it is not polled here.
    pub fn detach_queue(&mut self, device: u16, queue: u16) -> Option<RxQueue> {
        let place = self.queues.iter().position(|known| (known.port(), known.queue()) == (device, queue))?;
        self.next = 0;
        Some(self.queues.remove(place))
    }

    /// To be called before the worker sleeps: has the queues tell when packets come, and says what it is to wait for.
    pub fn arm(&mut self, watch: &mut Watch) {
        for queue in &mut self.queues {
            match queue.arm() {
                Wake::Now => watch.work(),
                Wake::Readable(descriptor) => watch.readable(descriptor),
                Wake::Signalled(descriptor) => {
                    watch.signalled(descriptor);
                    watch.at_most(CERTAINTY_INTERVAL);
                }
                Wake::Unconnected => watch.at_most(ARRIVAL_INTERVAL),
                Wake::Silent => watch.unannounced(queue.capacity()),
                Wake::Never => {}
            }
        }
    }

    /// To be called after each [`Receive::arm`].
    pub fn disarm(&mut self) {
        self.queues.iter_mut().for_each(RxQueue::disarm);
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Takes a burst from the next queue into the empty `burst`. Returns the time stamp of its end.
    #[inline(always)]
    pub fn receive(&mut self, burst: &mut Parcels) -> u64 {
        let count = self.queues.len();
        let Some(queue) = self.queues.get_mut(self.next) else { return 0 };
        self.next = if self.next + 1 < count { self.next + 1 } else { 0 };
        let before = tsc::now();
        let received = burst.fill(|packets| queue.receive(packets));
        if received == 0 {
            return before;
        }
        let after = tsc::now();
        self.counters.record(received as u64, after - before);
        let Receive { snapshot, ledger, .. } = self;
        match snapshot.current().devices.get(usize::from(queue.port())) {
            Some(DeviceEntry { port: Some(port), vlans: None }) => {
                let is_vf = snapshot.current().port(*port).is_some_and(|port| port.is_vf());
                if take_all(burst, *port, is_vf, ledger) {
                    if queue.has_foreign_tags() {
                        forget_tags(burst);
                    } else {
                        restore_tags(burst, *port);
                    }
                }
            }
            Some(entry) => {
                if queue.has_foreign_tags() {
                    forget_tags(burst);
                }
                take_by_vlan(burst, entry, ledger);
            }
            None => burst.clear(),
        }
        after
    }
}

/// Every packet belongs to the device's own port. Gives whether any has a tag beside it.
#[inline(never)]
fn take_all(burst: &mut Parcels, port: PortId, is_vf: bool, ledger: &Ledger) -> bool {
    burst.sole_port = Some(port);
    let Parts { packets, .. } = burst.parts();
    if is_vf {
        // It will mostly be encapsulated.
        packets.iter().for_each(Packet::prefetch_headroom);
    }
    let (mut bytes, mut tagged) = (0, false);
    for packet in packets.iter() {
        packet.prefetch_header();
        tagged |= packet.has_stripped_vlan();
        bytes += packet.len() as u64;
    }
    ledger.received(port, packets.len() as u64, bytes);
    tagged
}

/// The tags are the NIC's own, and no part of what was sent here.
#[cold]
#[inline(never)]
fn forget_tags(burst: &mut Parcels) {
    for packet in burst.parts().packets.iter_mut() {
        let _ = packet.take_stripped_vlan();
    }
}

/// Writes the metas, too: not every packet may be sound any more.
#[cold]
#[inline(never)]
fn restore_tags(burst: &mut Parcels, port: PortId) {
    burst.sole_port = None;
    let Parts { packets, metas, .. } = burst.parts();
    for (packet, meta) in packets.iter_mut().zip(metas) {
        *meta = Meta { verdict: restore_tag(packet), ..Meta::received(port) };
    }
}

/// The tag tells whose packet it is; what has no port of its own belongs to the device's port.
#[inline(never)]
fn take_by_vlan(burst: &mut Parcels, entry: &DeviceEntry, ledger: &Ledger) {
    if entry.port.is_none() {
        // The device is being taken away: nobody counts the packets of its own port any more.
        burst.fill(|packets| packets.retain(|packet| behind_tag(entry, packet).is_some()));
    }
    burst.sole_port = None;
    let Parts { packets, metas, .. } = burst.parts();
    packets.iter().for_each(Packet::prefetch_header);
    for (packet, meta) in packets.iter_mut().zip(metas.iter_mut()) {
        let bytes = packet.len() as u64;
        let mut verdict = restore_tag(packet);
        let behind = behind_tag(entry, packet);
        if !make_contiguous(packet, TAGGED_BYTES) || (behind.is_some() && !vlan::pop(packet)) {
            verdict = Verdict::Drop(DropReason::NoBuffer);
        }
        let port = behind.or(entry.port).unwrap_or(PortId(u16::MAX));
        *meta = Meta { verdict, ..Meta::received(port) };
        ledger.received(port, 1, bytes);
    }
}

/// The port behind the packet's tag.
#[inline(always)]
fn behind_tag(entry: &DeviceEntry, packet: &mut Packet) -> Option<PortId> {
    make_contiguous(packet, TAGGED_BYTES);
    let id = packet.stripped_vlan().map(|tci| tci & 0x0fff).or_else(|| vlan::outermost(packet.data()))?;
    *entry.vlans.as_ref()?.get(usize::from(id))?
}

/// Some devices hand over the outermost tag beside the packet; the packet path expects it inside. A packet that cannot
/// take it back is dropped: without its tag it would be taken for another port's.
#[inline(never)]
fn restore_tag(packet: &mut Packet) -> Verdict {
    match packet.take_stripped_vlan() {
        None => Verdict::Open,
        Some(tci) if vlan::push(packet, tci) => Verdict::Open,
        Some(_) => Verdict::Drop(DropReason::NoBuffer),
    }
}
