//! Keys made small: the words of a key that some rule of a tuple looks at, masked and laid over each other.
//!
//! A key has 7 or 12 words, and a typical rule looks at 34 bits of them (a destination prefix and its family). The
//! masked words are rotated and joined where their bits do not overlap, so that most tuples compare one word or two.
//! Packing is linear over bits: pattern values and masks are packed like keys, and compare packed as they do unpacked.

use super::key::mix;

/// How one word of the key gets into the packed key.
#[derive(Clone, Copy, Debug)]
struct Part {
    mask: u64,
    word: u8,
    to: u8,
    rotate: u8,
}

/// How keys of `W` words are packed: by the bits of one mask.
#[derive(Clone, Debug)]
pub struct Packing<const W: usize> {
    parts: Box<[Part]>,
    words: usize,
}

/// The bits that two words of a key take in one packed word are brought apart by these rotations. Whole bytes are
/// enough: fields are.
const ROTATIONS: [u8; 8] = [0, 32, 16, 48, 8, 24, 40, 56];

impl<const W: usize> Packing<W> {
    /// A packing that keeps these bits.
    pub fn new(mask: &[u64; W]) -> Packing<W> {
        let mut used = [0u64; W];
        let mut words = 0;
        let mut parts = Vec::new();
        for (word, mask) in mask.iter().copied().enumerate().filter(|(_, mask)| *mask != 0) {
            let places = (0..words).flat_map(|to| ROTATIONS.map(|rotate| (to, rotate)));
            let free =
                places.into_iter().find(|(to, rotate)| used[*to] & mask.rotate_left(u32::from(*rotate)) == 0);
            let (to, rotate) = free.unwrap_or((words, 0));
            words = words.max(to + 1);
            used[to] |= mask.rotate_left(u32::from(rotate));
            parts.push(Part { mask, word: word as u8, to: to as u8, rotate });
        }
        Packing { parts: parts.into(), words }
    }

    /// A packing that keeps only those bits of this one that `mask` has, where this one puts them.
    pub fn part(&self, mask: &[u64; W]) -> Packing<W> {
        let kept = |part: &Part| Part { mask: part.mask & mask[usize::from(part.word)], ..*part };
        let parts = self.parts.iter().map(kept).filter(|part| part.mask != 0).collect();
        Packing { parts, words: self.words }
    }

    /// The words of a packed key, at most `W`.
    #[inline(always)]
    pub fn words(&self) -> usize {
        self.words
    }

    /// Packs a key, a value or a mask; what is behind [`Packing::words`] is 0.
    #[inline(always)]
    pub fn pack(&self, key: &[u64; W]) -> [u64; W] {
        let mut packed = [0; W];
        for part in &self.parts {
            packed[usize::from(part.to)] |=
                (key[usize::from(part.word)] & part.mask).rotate_left(u32::from(part.rotate));
        }
        packed
    }

    /// Bytes on the heap.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.parts)
    }
}

/// A hash of what `mask` leaves of packed words; words of which it leaves nothing are passed over. All its bits are used:
/// the low ones choose a shard, the high ones tag an entry.
#[inline(always)]
pub fn hash(packed: &[u64], mask: &[u64]) -> u64 {
    let words = packed.iter().zip(mask).filter(|(_, mask)| **mask != 0);
    words.fold(0, |hash: u64, (word, mask)| mix(hash.rotate_left(29) ^ (word & mask), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_and_its_family_take_one_word() {
        assert_eq!(Packing::new(&[0, 0, 0, 0, 0xffff_ffff << 32, 0, 3]).words(), 1);
        assert_eq!(Packing::new(&[0, 0, !0 << 32, 0, !0 << 32, 0, 0xff00_0003]).words(), 2);
        assert_eq!(Packing::new(&[0u64; 7]).words(), 0);
        assert_eq!(Packing::new(&[!0u64; 7]).words(), 7);
    }

    proptest! {
        #[test]
        fn packed_keys_compare_as_unpacked_ones(
            mask in proptest::array::uniform7(prop_oneof![Just(0u64), Just(!0 << 32), Just(0xffff), any::<u64>()]),
            a in any::<[u64; 7]>(),
            bit in 0usize..448,
        ) {
            let packing = Packing::new(&mask);
            let mut b = a;
            b[bit / 64] ^= 1 << (bit % 64);
            let differ = mask[bit / 64] >> (bit % 64) & 1 == 1;
            prop_assert_eq!(packing.pack(&a) != packing.pack(&b), differ);
        }
    }
}
