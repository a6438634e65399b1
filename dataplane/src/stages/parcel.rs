//! A packet on its way, with what the stages have found out about it, and the burst in which it travels.

use super::ledger::Class;
use crate::action::{PackedAction, PortId};
use crate::counters::DropReason;
use crate::flows::cache::{Decision, NO_SLOT};
use crate::flows::key::FlowKey;
use crate::flows::shape::ecn_of_plain;
use crate::rules::pattern::INGRESS_WORDS;
use crate::wire::frame::{Fragment, Frame, Layout};
use arrayvec::ArrayVec;
use forebay_pipeline::batch::{BATCH, Items};
use forebay_sriov::{BURST, Packet, PacketBurst};

/// A packet on its way.
pub struct Parcel {
    /// The packet.
    pub packet: Packet,
    /// What is known about it.
    pub meta: Meta,
}

/// What the stages have found out about a packet.
#[derive(Clone, Copy)]
pub struct Meta {
    /// The port that received it.
    pub port: PortId,
    /// Where the inner frame begins: 0 for what a VF sent.
    pub inner_offset: u16,
    /// Of the packet that rules look at (of a tunnelled packet, the inner one), where its layers begin.
    pub layout: Layout,
    /// The outer packet's ECN bits.
    pub outer_ecn: u8,
    /// Trapped unless a rule that names layer 2 decides otherwise.
    pub trap_by_default: bool,
    /// In a ring between two workers: what was the newest number of its port when its burst had been received.
    pub sequence: u16,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The flow's hashes; and with [`Verdict::Act`], what is to be done. It stands beside the verdict, not in it, so that it
    /// is copied as a whole.
    pub decision: Decision,
}

// A parcel is one cache line: stages pass over them in turn, and rings between cores carry them.
const _: () = assert!(size_of::<Parcel>() <= 64);

const _: () = assert!(BURST == BATCH);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided.
    Open,
    /// A rule decided; [`Meta::action`] is to be done.
    Act,
    /// Ready to leave through an uplink, but for the next hop's MAC.
    Send {
        /// The uplink.
        uplink: PortId,
        /// The next hop's slot.
        next_hop: u32,
    },
    /// Ready for a local port.
    Deliver(PortId),
    /// The buffer holds the host's answer, to be sent back through the port that received the question. The question is
    /// counted as dropped for that reason, or as local.
    Answer(Option<DropReason>),
    /// For the trusted software path.
    Trap,
    /// Used by the host itself.
    Local,
    /// Dropped.
    Drop(DropReason),
}

impl Meta {
    /// A packet that `port` has just received.
    #[inline(always)]
    pub fn received(port: PortId) -> Meta {
        Meta {
            port,
            inner_offset: 0,
            layout: Layout::UNKNOWN,
            outer_ecn: 0,
            trap_by_default: false,
            sequence: 0,
            verdict: Verdict::Open,
            decision: Decision { action: PackedAction::TRAP, slot: NO_SLOT, flow_hash: 0, affinity: 0 },
        }
    }

    /// As [`Meta::received`], in the place of an earlier packet's: what only counts once it is found out is left as it is.
    #[inline(always)]
    pub fn renew(&mut self, port: PortId) {
        self.port = port;
        self.inner_offset = 0;
        self.outer_ecn = 0;
        self.trap_by_default = false;
        self.verdict = Verdict::Open;
        self.decision.affinity = 0;
    }

    /// As [`Meta::renew`], of a packet with a key, and tells what it is.
    #[inline(always)]
    pub fn describe(&mut self, port: PortId, packet: &Packet, key: &FlowKey) {
        self.renew(port);
        let (mut bytes, outer) = (packet.data(), key.outer());
        if !outer.is_empty() {
            self.inner_offset = outer.len() as u16;
            self.outer_ecn = ecn_of_plain(bytes, outer.is_ipv6());
            bytes = bytes.get(outer.len()..).unwrap_or_default();
        }
        self.layout = Layout::of_plain(bytes);
    }

    /// In the place of an earlier packet's: it is ready and leaves that way.
    #[inline(always)]
    pub fn leave(&mut self, exit: &Exit) {
        self.renew(exit.from);
        self.verdict = exit.verdict();
    }

    /// It is decided what becomes of it.
    #[inline(always)]
    pub fn act(&mut self, decision: &Decision) {
        self.verdict = Verdict::Act;
        self.decision = *decision;
    }

    /// Bytes that count for a rule: as received, or inside the tunnel.
    #[inline(always)]
    pub fn counted_bytes(&self, packet: &Packet) -> u32 {
        (packet.len() - usize::from(self.inner_offset)) as u32
    }

    /// Takes from the packet that rules look at what the later stages need.
    #[inline(always)]
    pub fn set_flow(&mut self, frame: &Frame) {
        self.layout = frame.layout;
        self.decision.flow_hash = frame.key.flow_hash(frame.fragment == Fragment::Whole) as u16;
        self.decision.affinity = frame.key.flow_hash(false) as u16;
    }
}

/// What rules look at: of an egress packet, the first [`KEY_WORDS`](crate::rules::key::KEY_WORDS) words count.
pub type Words = [u64; INGRESS_WORDS];

/// Packets that travel together, with what the stages have found out about each of them.
///
/// Packets and metas stand in arrays of their own: a device fills the one, stages write the other in place, and nothing is
/// moved until a packet leaves. `keys` and `words` belong to the packets by their place as well, but count only
/// where the bit of that place says so, and do not travel through rings: only the stages up to the decision need them.
pub struct Parcels {
    packets: PacketBurst,
    /// Those of places beyond the last packet are stale.
    metas: Box<[Meta; BATCH]>,
    /// Keys in the flow cache, of packets that have their bit in `keyed`.
    keys: Box<[FlowKey; BATCH]>,
    /// What rules look at, of packets that were admitted in full and are not decided: those with their bit in `admitted`.
    words: Box<[Words; BATCH]>,
    /// A bit for each place with a key. Such a packet is sound, but not known to be from who it says it is.
    pub keyed: u64,
    /// A bit for each place with words.
    pub admitted: u64,
    /// The version of the snapshot that the keys' generations were taken from.
    pub keyed_by: u64,
    /// Every stage that has decided about the packets did so by that snapshot, or by a newer one: what it decided may be
    /// remembered under those generations.
    pub may_learn: bool,
    /// The port that received all packets, whose metas the first stage has yet to write. Where there is none, they are written.
    pub sole_port: Option<PortId>,
    /// Of a burst that leaves as a whole: how. Its metas tell nothing then.
    pub exit: Option<Exit>,
    lessons: ArrayVec<Lesson, BATCH>,
}

/// What was decided about a flow that was not known.
#[derive(Clone, Copy, Debug)]
pub struct Lesson {
    /// The place of its key.
    pub place: usize,
    /// The decision.
    pub decision: Decision,
    /// Bytes of the packet.
    pub bytes: u32,
}

/// How packets of one burst leave that are ready, down to the next hop's MAC, and all counted alike.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// The port that received them.
    pub from: PortId,
    /// The port that they leave through.
    pub to: PortId,
    /// With [`Class::Sent`], the next hop's slot.
    pub next_hop: u32,
    /// How they are counted.
    pub class: Class,
    /// All their bytes.
    pub bytes: u64,
    /// Bytes of the longest of them.
    pub longest: usize,
}

impl Exit {
    /// A way out that nothing has taken yet.
    #[inline(always)]
    pub fn new(from: PortId, to: PortId, next_hop: u32, class: Class) -> Exit {
        Exit { from, to, next_hop, class, bytes: 0, longest: 0 }
    }

    /// The same way, counted alike.
    #[inline(always)]
    pub fn is_like(&self, other: &Exit) -> bool {
        (self.from, self.to, self.next_hop, self.class) == (other.from, other.to, other.next_hop, other.class)
    }

    /// What it means for one packet.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        match self.class {
            Class::Sent => Verdict::Send { uplink: self.to, next_hop: self.next_hop },
            Class::Delivered | Class::Originated => Verdict::Deliver(self.to),
        }
    }
}

/// All of a burst, place by place.
pub struct Parts<'a> {
    /// The packets.
    pub packets: &'a mut [Packet],
    /// What is known about each.
    pub metas: &'a mut [Meta],
    /// Their keys, where they have one.
    pub keys: &'a mut [FlowKey],
    /// What rules look at, where it is known.
    pub words: &'a mut [Words],
    /// What was decided about flows that were not known.
    pub lessons: &'a mut ArrayVec<Lesson, BATCH>,
}

impl Default for Parcels {
    fn default() -> Self {
        Parcels {
            packets: PacketBurst::new(),
            metas: Box::new([Meta::received(PortId(0)); BATCH]),
            keys: Box::new([FlowKey::NONE; BATCH]),
            words: Box::new([[0; INGRESS_WORDS]; BATCH]),
            keyed: 0,
            admitted: 0,
            keyed_by: 0,
            may_learn: false,
            sole_port: None,
            exit: None,
            lessons: ArrayVec::new(),
        }
    }
}

impl Parcels {
    /// No packets.
    pub fn new() -> Parcels {
        Parcels::default()
    }

    /// The number of packets.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// No packets.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Frees the packets, and forgets what was decided about them.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.lessons.clear();
        self.sole_port = None;
        self.exit = None;
    }

    /// A bit for each place.
    #[inline(always)]
    pub fn all(&self) -> u64 {
        u64::MAX.checked_shr((BATCH - self.len()) as u32).unwrap_or(0)
    }

    /// Everything, place by place.
    #[inline(always)]
    pub fn parts(&mut self) -> Parts<'_> {
        let Parcels { packets, metas, keys, words, lessons, .. } = self;
        let count = packets.len();
        Parts {
            packets,
            metas: metas.get_mut(..count).unwrap_or_default(),
            keys: keys.get_mut(..count).unwrap_or_default(),
            words: words.get_mut(..count).unwrap_or_default(),
            lessons,
        }
    }

    /// Takes out what was decided about flows of the last burst, with their keys.
    #[inline(always)]
    pub fn take_lessons(&mut self) -> impl Iterator<Item = (&FlowKey, Lesson)> {
        let Parcels { keys, lessons, .. } = self;
        lessons.drain(..).filter_map(|lesson| Some((keys.get(lesson.place)?, lesson)))
    }

    /// Something was decided about flows of the last burst.
    #[inline(always)]
    pub fn has_lessons(&self) -> bool {
        !self.lessons.is_empty()
    }

    /// Lets `fill` add packets to an empty burst. Their metas are to be written by [`Parcels::parts`], or
    /// [`Parcels::sole_port`] to be set.
    #[inline(always)]
    pub fn fill<T>(&mut self, fill: impl FnOnce(&mut PacketBurst) -> T) -> T {
        fill(&mut self.packets)
    }

    /// Writes the metas of packets that have just been received, where that was left for later.
    #[inline(always)]
    pub fn write_metas(&mut self) {
        if let Some(port) = self.sole_port.take() {
            self.parts().metas.fill(Meta::received(port));
        }
    }

    /// Of packets that come from another worker: leaves it to the first stage to write their metas, where nothing is known but
    /// the one port that received them all.
    #[inline(always)]
    pub fn find_sole_port(&mut self) {
        let Parts { metas, .. } = self.parts();
        let Some(port) = metas.first().map(|meta| meta.port) else { return };
        let is_alike = metas.iter().all(|meta| meta.port == port && meta.verdict == Verdict::Open);
        self.sole_port = is_alike.then_some(port);
    }

    /// The packets with what is known about each.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = (&Packet, &Meta)> {
        self.packets.iter().zip(self.metas.iter())
    }

    /// As [`Parcels::iter`], to change them.
    #[inline(always)]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&mut Packet, &mut Meta)> {
        self.packets.iter_mut().zip(self.metas.iter_mut())
    }

    /// Moves all packets to the end of another burst, as far as there is room.
    #[inline(always)]
    pub fn move_to(&mut self, burst: &mut PacketBurst) {
        burst.append(&mut self.packets);
    }

    /// Takes the packets out, in order.
    #[inline(always)]
    pub fn drain(&mut self) -> impl Iterator<Item = (Packet, &Meta)> {
        self.packets.drain().zip(self.metas.iter())
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// Gives it back where the burst is full.
    pub fn push(&mut self, Parcel { packet, meta }: Parcel) -> Result<(), Parcel> {
        let place = self.packets.len();
        self.packets.push(packet).map_err(|packet| Parcel { packet, meta })?;
        if let Some(slot) = self.metas.get_mut(place) {
            *slot = meta;
        }
        Ok(())
    }
}

impl Items for Parcels {
    /// Those that stages have to look at: none of a burst that leaves as a whole.
    #[inline(always)]
    fn count(&self) -> usize {
        if self.exit.is_some() { 0 } else { self.len() }
    }
}

/// The places of a burst whose bits are set in `places`.
#[inline(always)]
pub fn each_place(mut places: u64, mut visit: impl FnMut(usize)) {
    while places != 0 {
        visit(places.trailing_zeros() as usize);
        places &= places - 1;
    }
}
