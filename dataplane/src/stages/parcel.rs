//! A packet on its way, with what the stages have found out about it.

use crate::action::{Action, PortId};
use crate::counters::DropReason;
use crate::rules::pattern::INGRESS_WORDS;
use crate::wire::frame::Frame;
use forebay_sriov::Packet;

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
    /// What becomes of it.
    pub verdict: Verdict,
    /// Trapped unless a rule that names layer 2 decides otherwise.
    pub trap_by_default: bool,
    /// Where the inner frame begins: 0 for what a VF sent.
    pub inner_offset: u16,
    /// The outer packet's ECN bits.
    pub outer_ecn: u8,
    /// The packet that rules look at: of a tunnelled packet, the inner one.
    pub frame: Frame,
    /// What an ingress rule looks at; of an egress packet, only the first words count.
    pub words: [u64; INGRESS_WORDS],
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided.
    Open,
    /// A rule decided; the action is to be done.
    Act(Action),
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
            verdict: Verdict::Open,
            trap_by_default: false,
            inner_offset: 0,
            outer_ecn: 0,
            frame: Frame::UNKNOWN,
            words: [0; INGRESS_WORDS],
        }
    }
}
