//! MAC addresses: six octets, written as six pairs of hex digits joined by colons.

use std::fmt;
use std::str::FromStr;

use crate::validate::{ValueError, shown};

/// An IEEE 802 MAC address, in the order of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether this is a group address (multicast or broadcast): IEEE 802's I/G bit.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this is the address of one station: not a group, not all zeros.
    pub fn is_unicast(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl FromStr for MacAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse(text.as_bytes()).map(MacAddr).ok_or_else(|| ValueError::Mac { value: shown(text) })
    }
}

/// Exactly `xx:xx:xx:xx:xx:xx`, in either case: other spellings exist, but one spelling can be searched for.
fn parse(text: &[u8]) -> Option<[u8; 6]> {
    // Six pairs and five colons.
    if text.len() != 17 {
        return None;
    }
    let mut octets = [0; 6];
    for (index, octet) in octets.iter_mut().enumerate() {
        let at = index * 3;
        if index > 0 && text[at - 1] != b':' {
            return None;
        }
        *octet = hex(text[at])? << 4 | hex(text[at + 1])?;
    }
    Some(octets)
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b':'; 17];
        for (index, octet) in self.0.iter().enumerate() {
            text[index * 3] = DIGITS[usize::from(octet >> 4)];
            text[index * 3 + 1] = DIGITS[usize::from(octet & 15)];
        }
        out.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_either_case_and_writes_lower() {
        let mac: MacAddr = "02:00:00:aB:CD:ef".parse().unwrap();
        assert_eq!(mac, MacAddr([2, 0, 0, 0xab, 0xcd, 0xef]));
        assert_eq!(mac.to_string(), "02:00:00:ab:cd:ef");
        assert!(mac.is_unicast());
    }

    #[test]
    fn refuses_other_spellings() {
        for text in
            ["", "02:00", "02-00-00-00-01-02", "0200.0000.0102", "02:00:00:00:01:0g", "02:00:00:00:01:02 "]
        {
            let error = text.parse::<MacAddr>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("is not a MAC address"), "{error}");
        }
    }

    #[test]
    fn tells_groups_apart() {
        assert!(MacAddr([0xff; 6]).is_group());
        assert!(MacAddr([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(!MacAddr([0; 6]).is_unicast());
    }
}
