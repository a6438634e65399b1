//! In which order the packets of the flows come, and how long each is.
//!
//! Established flows come each once in a pass, shuffled by a fixed generator: neighbouring packets shall not happen to
//! need neighbouring memory, and two runs shall be comparable. Drawn at random, some flows come twice in a pass and some
//! not at all, as in a network. New flows are spread evenly between them, each once in the whole file.
//! Invariant: the same settings give the same sequence.

/// Bytes of the frames of the simple IMIX without their checksum, and the pattern in which they come: of twelve, seven
/// are of 64 bytes on the wire, four of 594 and one of 1518.
const IMIX_FRAME_BYTES: [usize; 12] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590, 60];
/// Most flows whose pass is repeated until each of them had every length: twelve passes of it are few packets.
const MOST_REPEATED_FLOWS: u32 = 4096;

/// How long frames are, without their checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// All of this many bytes.
    Fixed(usize),
    /// 7:4:1 of 64, 594 and 1518 bytes with checksum.
    Imix,
}

impl Sizes {
    /// Bytes of the frame at a position of the sequence, at least `least`.
    pub(crate) fn at(self, position: usize, least: usize) -> usize {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Imix => IMIX_FRAME_BYTES[position % IMIX_FRAME_BYTES.len()].max(least),
        }
    }

    /// Bytes of the longest frame.
    pub(crate) fn longest(self) -> usize {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Imix => IMIX_FRAME_BYTES.into_iter().fold(0, usize::max),
        }
    }

    /// Bytes of a frame on average, before any minimum.
    pub(crate) fn mean(self) -> f64 {
        match self {
            Self::Fixed(bytes) => bytes as f64,
            Self::Imix => IMIX_FRAME_BYTES.iter().sum::<usize>() as f64 / IMIX_FRAME_BYTES.len() as f64,
        }
    }

    /// Passes of so many flows after which the proportions are right, for few flows.
    fn passes(self, flows: u32) -> u32 {
        match self {
            Self::Imix if flows <= MOST_REPEATED_FLOWS => IMIX_FRAME_BYTES.len() as u32,
            _ => 1,
        }
    }
}

/// Which flows the packets of a file belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Established flows, numbered from 0.
    pub flows: u32,
    /// How often each of them comes.
    pub passes: u32,
    /// Flows that come once, numbered on from the established ones.
    pub new_flows: u32,
    /// Drawn at random instead of each once in a pass.
    pub random: bool,
}

impl Sequence {
    /// A sequence of flows that has all lengths of `sizes` in their proportions.
    pub(crate) fn new(flows: u32, sizes: Sizes, random: bool) -> Self {
        Self { flows, passes: sizes.passes(flows), new_flows: 0, random }
    }

    /// How many packets it is.
    pub(crate) fn packets(&self) -> u32 {
        self.flows.saturating_mul(self.passes).saturating_add(self.new_flows)
    }

    /// The share of packets that begin a flow.
    pub(crate) fn new_share(&self) -> f64 {
        f64::from(self.new_flows) / f64::from(self.packets().max(1))
    }

    /// The flow of each packet.
    pub(crate) fn order(&self) -> Vec<u32> {
        let mut state = 0;
        let established = (0..self.passes).flat_map(|_| self.pass(&mut state)).collect::<Vec<_>>();
        if self.new_flows == 0 {
            return established;
        }
        let (packets, new_flows) = (u64::from(self.packets()), u64::from(self.new_flows));
        let mut established = established.into_iter();
        let mut newcomers = self.flows..;
        let began = |position: u64| position * new_flows / packets;
        let flow = |position| {
            let begins = began(position + 1) > began(position);
            if begins { newcomers.next() } else { established.next() }
        };
        (0..packets).filter_map(flow).collect()
    }

    /// One pass over the established flows.
    fn pass(&self, state: &mut u64) -> Vec<u32> {
        if self.random {
            let draw = |_| (splitmix(state) % u64::from(self.flows.max(1))) as u32;
            return (0..self.flows).map(draw).collect();
        }
        // Fisher and Yates.
        let mut order: Vec<u32> = (0..self.flows).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, (splitmix(state) % (last as u64 + 1)) as usize);
        }
        order
    }
}

/// The generator splitmix64 of Steele, Lea and Flood.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_pass_has_each_flow_once_in_the_same_order_each_time() {
        let sequence = Sequence::new(70_000, Sizes::Fixed(64), false);
        let order = sequence.order();
        assert_eq!(order, sequence.order());
        assert_ne!(order, (0..70_000).collect::<Vec<_>>());
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), 70_000);
    }

    #[test]
    fn drawn_flows_repeat() {
        let order = Sequence::new(10_000, Sizes::Fixed(64), true).order();
        let distinct = order.iter().collect::<HashSet<_>>().len();
        // One less 1/e of them come at all: 6321 are to be expected.
        assert_eq!(order.len(), 10_000);
        assert!((6_000..6_700).contains(&distinct), "{distinct}");
        assert!(order.iter().all(|flow| *flow < 10_000));
    }

    #[test]
    fn imix_is_seven_to_four_to_one() {
        for flows in [1, 5, 1000, 1_000_000] {
            let packets = Sequence::new(flows, Sizes::Imix, false).packets();
            let lengths: Vec<_> = (0..packets as usize).map(|place| Sizes::Imix.at(place, 42)).collect();
            let count = |bytes| lengths.iter().filter(|length| **length == bytes).count() * 12;
            for (bytes, share) in [(60, 7), (590, 4), (1514, 1)] {
                let away = count(bytes).abs_diff(lengths.len() * share);
                assert!(away <= 12 * 7, "{flows} flows: {bytes} bytes are {away} twelfths away");
            }
        }
        assert_eq!(Sizes::Imix.at(0, 62), 62, "over IPv6 no frame is shorter");
        assert_eq!((Sizes::Imix.longest(), Sizes::Imix.mean().round()), (1514, 358.0));
        assert_eq!((Sizes::Fixed(100).at(7, 42), Sizes::Fixed(100).longest()), (100, 100));
    }

    #[test]
    fn new_flows_come_once_and_evenly() {
        let sequence = Sequence { new_flows: 250, passes: 3, ..Sequence::new(250, Sizes::Fixed(64), false) };
        let order = sequence.order();
        assert_eq!((order.len(), sequence.packets()), (1000, 1000));
        assert!((sequence.new_share() - 0.25).abs() < 1e-9);
        for quarter in order.chunks(100) {
            assert_eq!(quarter.iter().filter(|flow| **flow >= 250).count(), 25);
        }
        let newcomers: Vec<_> = order.iter().filter(|flow| **flow >= 250).copied().collect();
        assert_eq!(newcomers, (250..500).collect::<Vec<_>>());
        let count = |wanted: u32| order.iter().filter(|flow| **flow == wanted).count();
        assert!((0..250).all(|flow| count(flow) == 3));
    }
}
