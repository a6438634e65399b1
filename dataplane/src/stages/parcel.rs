//! A packet on its way, with what the stages have found out about it, and the burst in which it travels.

use crate::action::{PackedAction, PortId};
use crate::counters::DropReason;
use crate::flows::key::FlowKey;
use crate::rules::pattern::INGRESS_WORDS;
use crate::wire::frame::{Fragment, Frame, Layout};
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
    /// Hash of the flow, for the outer source port.
    pub flow_hash: u16,
    /// Hash of the flow without its ports, for the choice of a worker.
    pub affinity: u16,
    /// The outer packet's ECN bits.
    pub outer_ecn: u8,
    /// Trapped unless a rule that names layer 2 decides otherwise.
    pub trap_by_default: bool,
    /// What becomes of it.
    pub verdict: Verdict,
    /// With [`Verdict::Act`], what is to be done. It stands beside the verdict, not in it, so that it is copied as a whole.
    pub action: PackedAction,
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
            flow_hash: 0,
            affinity: 0,
            outer_ecn: 0,
            trap_by_default: false,
            verdict: Verdict::Open,
            action: PackedAction::TRAP,
        }
    }

    /// A rule decided.
    #[inline(always)]
    pub fn act(&mut self, action: PackedAction) {
        self.verdict = Verdict::Act;
        self.action = action;
    }

    /// Takes from the packet that rules look at what the later stages need.
    #[inline(always)]
    pub fn set_flow(&mut self, frame: &Frame) {
        self.layout = frame.layout;
        self.flow_hash = frame.key.flow_hash(frame.fragment == Fragment::Whole) as u16;
        self.affinity = frame.key.flow_hash(false) as u16;
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

    /// Frees the packets.
    pub fn clear(&mut self) {
        self.packets.clear();
    }

    /// Everything, place by place.
    #[inline(always)]
    pub fn parts(&mut self) -> Parts<'_> {
        let Parcels { packets, metas, keys, words, .. } = self;
        let count = packets.len();
        Parts {
            packets,
            metas: metas.get_mut(..count).unwrap_or_default(),
            keys: keys.get_mut(..count).unwrap_or_default(),
            words: words.get_mut(..count).unwrap_or_default(),
        }
    }

    /// Lets `fill` add packets to an empty burst. Their metas are to be written by [`Parcels::parts`].
    #[inline(always)]
    pub fn fill<T>(&mut self, fill: impl FnOnce(&mut PacketBurst) -> T) -> T {
        fill(&mut self.packets)
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
    #[inline(always)]
    fn count(&self) -> usize {
        self.len()
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
