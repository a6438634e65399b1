//! Under which masks a rule may be hashed, coarse ones first.
//!
//! One tuple per mask would be hundreds of tuples, and each costs every lookup a probe. So rules share coarse tuples: at
//! first only addresses (shortened to a grid of lengths), MACs and tunnels are hashed, and the rest of a rule is
//! compared. Where too many rules fall together, finer masks follow, and at last the rule's own.

use super::key::{FLAG_IPV4, FLAG_IPV6, KEY_WORDS};
use super::pattern::{Pattern, prefix_mask};
use super::tuple::is_ranged;

/// What the rules of a tuple have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class<const W: usize> {
    /// Bits that all of them look at: what is hashed.
    pub common: [u64; W],
    /// Bits that some of them may look at: what an entry has room for.
    pub allowed: [u64; W],
    /// Some may have ranges of ports.
    pub ranged: bool,
}

/// Steps of the ladder.
pub const STEPS: usize = 3;

/// Lengths of an IPv4 prefix are rounded down to multiples of these: where one address is given, and where both are
/// (nearly all pairs of random lengths are then in four classes). Those of IPv6 are rounded to twice as much.
const GRID_ONE: [u32; STEPS] = [8, 4, 1];
const GRID_BOTH: [u32; STEPS] = [16, 8, 1];

/// EtherType and VLAN, low in words 0 and 1: few values, not worth a table of their own.
const LOW_FIELD: u64 = 0xffff;
/// Source and destination port in word 6.
const PORTS: u64 = 0xffff_ffff << 32;
/// Protocol, DSCP and flags in word 6.
const TRANSPORT: u64 = 0xffff_ffff;

/// The words where addresses begin, and where their family flags are: word and shift.
const ADDRESSES: [(usize, (usize, u32)); 4] =
    [(2, (6, 0)), (4, (6, 0)), (KEY_WORDS + 1, (KEY_WORDS, 16)), (KEY_WORDS + 3, (KEY_WORDS, 16))];

fn is_ipv4<const W: usize>(pattern: &Pattern<W>, (word, shift): (usize, u32)) -> bool {
    pattern.mask[word] >> shift & (FLAG_IPV4 | FLAG_IPV6) == FLAG_IPV4 | FLAG_IPV6
        && pattern.value[word] >> shift & (FLAG_IPV4 | FLAG_IPV6) == FLAG_IPV4
}

fn allowed<const W: usize>(pattern: &Pattern<W>, both: bool) -> [u64; W] {
    let mut allowed = [0; W];
    for (allowed, mask) in allowed.iter_mut().zip(&pattern.mask) {
        *allowed = if *mask == 0 { 0 } else { !0 };
    }
    for (word, family) in ADDRESSES.into_iter().filter(|(word, _)| *word < W) {
        if (pattern.mask[word] | pattern.mask[word + 1]) != 0 {
            (allowed[word], allowed[word + 1]) =
                if is_ipv4(pattern, family) { (!0 << 32, 0) } else { (!0, !0) };
        }
    }
    allowed[6] = if both || has_ports(pattern) { TRANSPORT | PORTS } else { TRANSPORT };
    // A mask that no field explains still fits its own class.
    allowed.iter_mut().zip(&pattern.mask).for_each(|(allowed, mask)| *allowed |= mask);
    allowed
}

fn has_ports<const W: usize>(pattern: &Pattern<W>) -> bool {
    is_ranged(pattern) || pattern.mask[6] & PORTS != 0
}

fn common<const W: usize>(pattern: &Pattern<W>, both: bool, step: usize) -> [u64; W] {
    let mut common = pattern.mask;
    if step + 1 == STEPS {
        return common;
    }
    common[0] &= !LOW_FIELD;
    common[1] &= !LOW_FIELD;
    common[6] &= FLAG_IPV4 | FLAG_IPV6;
    for (word, family) in ADDRESSES.into_iter().filter(|(word, _)| *word < W) {
        let length = common[word].count_ones() + common[word + 1].count_ones();
        let grid =
            if both { GRID_BOTH } else { GRID_ONE }[step] * if is_ipv4(pattern, family) { 1 } else { 2 };
        let mask = prefix_mask((length / grid * grid) as u8);
        (common[word], common[word + 1]) = (common[word] & mask[0], common[word + 1] & mask[1]);
    }
    let hashed = common.iter().enumerate().any(|(word, bits)| word != 6 && *bits != 0);
    if hashed { common } else { pattern.mask }
}

/// The classes that a rule may stand in; equal ones in a row are possible.
pub fn ladder<const W: usize>(pattern: &Pattern<W>) -> [Class<W>; STEPS] {
    let both = pattern.mask[2] != 0 && pattern.mask[4] != 0;
    let (allowed, ranged) = (allowed(pattern, both), both || has_ports(pattern));
    std::array::from_fn(|step| Class { common: common(pattern, both, step), allowed, ranged })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::reference::arbitrary;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_rule_fits_every_class_of_its_ladder(rules in arbitrary::egress_rules(1..30)) {
            for rule in rules {
                let pattern = Pattern::egress(&rule.matches);
                let ladder = ladder(&pattern);
                for class in &ladder {
                    prop_assert!(class.ranged || !is_ranged(&pattern));
                    for word in 0..KEY_WORDS {
                        prop_assert_eq!(class.common[word] & !pattern.mask[word], 0);
                        prop_assert_eq!(pattern.mask[word] & !class.allowed[word], 0);
                    }
                }
                prop_assert_eq!(ladder[STEPS - 1].common, pattern.mask);
            }
        }
    }
}
