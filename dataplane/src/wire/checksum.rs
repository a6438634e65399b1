//! The Internet checksum (RFC 1071): sums over slices, pseudo-headers, and incremental update (RFC 1624).
//!
//! A sum is kept as a `u64` of unfolded 16-bit words in network order; [`fold`] makes the field out of it. Sums add,
//! so headers, pseudo-headers and the segments of a chained packet are summed each by itself.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes that [`add`] takes at a time.
const STRIDE: usize = 32;

/// Adds the bytes to `sum` as big-endian 16-bit words; an odd last byte counts as the high byte of a word.
#[inline]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    // Summed in the byte order of the machine, which the end-around carry does not mind (RFC 1071, section 2), in lanes
    // that do not wait for each other and have room for 2^32 words.
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    let mut lanes = [0u64; STRIDE / 8];
    for stride in strides {
        let (words, _) = stride.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            let word = u64::from_le_bytes(*word);
            *lane += (word & 0xffff_ffff) + (word >> 32);
        }
    }
    let [a, b, c, d] = lanes;
    let (words, rest) = rest.as_chunks::<4>();
    let mut low = a + b + c + d + words.iter().map(|word| u64::from(u32::from_le_bytes(*word))).sum::<u64>();
    low += match *rest {
        [a, b, c] => u64::from(u16::from_le_bytes([a, b])) + u64::from(c),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a] => u64::from(a),
        _ => 0,
    };
    sum + u64::from((!fold(low)).swap_bytes())
}

/// The sum folded to 16 bits and complemented: the value of the checksum field.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    // The upper half of the sum of both halves, once each way round, has the carry of the lower one added.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    !(sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// As [`fold`], for the sum of less than 65,536 words.
#[inline(always)]
pub fn fold_small(sum: u64) -> u16 {
    let sum = sum as u32;
    !(sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The checksum field of `bytes`, whose own field is zero; over a header with its field in place, 0 means correct.
#[inline]
pub fn of(bytes: &[u8]) -> u16 {
    fold(add(0, bytes))
}

/// The sum of the IPv4 pseudo-header (RFC 768).
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length: u16) -> u64 {
    add(add(0, &src.octets()), &dst.octets()) + u64::from(protocol) + u64::from(length)
}

/// The sum of the IPv6 pseudo-header (RFC 8200, section 8.1).
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, length: u32) -> u64 {
    add(add(0, &src.octets()), &dst.octets()) + u64::from(protocol) + u64::from(length)
}

/// A UDP checksum field: a computed zero is sent as all ones (RFC 768).
#[inline(always)]
pub fn udp_field(sum: u64) -> u16 {
    match fold(sum) {
        0 => 0xffff,
        field => field,
    }
}

/// Sums the segments of one packet, keeping track of odd lengths between them.
#[derive(Default)]
pub struct Segments {
    sum: u64,
    odd: bool,
}

impl Segments {
    /// Starts with `sum` (of a pseudo-header).
    pub fn new(sum: u64) -> Segments {
        Segments { sum, odd: false }
    }

    /// Adds the next segment.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd
            && let Some((first, rest)) = bytes.split_first()
        {
            self.sum += u64::from(*first);
            bytes = rest;
            self.odd = false;
        }
        if !bytes.is_empty() {
            self.sum = add(self.sum, bytes);
            self.odd = bytes.len() % 2 == 1;
        }
    }

    /// The sum over all segments.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// The checksum field after one 16-bit word of the covered bytes changed (RFC 1624, equation 3).
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    fold(u64::from(!field) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    proptest! {
        #[test]
        fn equals_the_slow_sum(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(of(&bytes), slow(&bytes));
        }

        #[test]
        fn segments_sum_to_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..200), cuts in proptest::collection::vec(0usize..200, 0..4)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut segments = Segments::new(0);
            let mut from = 0;
            for cut in cuts {
                segments.add(&bytes[from..cut]);
                from = cut;
            }
            segments.add(&bytes[from..]);
            prop_assert_eq!(fold(segments.sum()), slow(&bytes));
        }

        #[test]
        fn an_update_equals_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 20), at in 0usize..9, new: u16) {
            bytes[10] = 0; bytes[11] = 0;
            let at = if at >= 5 { (at + 1) * 2 } else { at * 2 };
            let before = of(&bytes);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let after = update(before, old, new);
            // 0 and 0xffff are the same number in ones' complement.
            prop_assert_eq!(after % 0xffff, of(&bytes) % 0xffff);
        }
    }
}
