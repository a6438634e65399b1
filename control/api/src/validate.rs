//! The validators of single values: text or number in, typed value or an error that names the value and the remedy
//! out.
//!
//! The JSON parsers, the command line, the config file and the daemon all use these, so that a value is accepted by
//! all of them or by none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use crate::mac::MacAddr;

/// The longest rule id, in characters.
pub const MAX_ID_CHARS: usize = 128;

/// The longest port name, in bytes: names become file names, metric labels and thread names.
pub const MAX_PORT_NAME_BYTES: usize = 64;

/// The largest VXLAN network identifier: 24 bits (RFC 7348, section 5).
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// The largest VLAN identifier; 4095 is reserved (IEEE 802.1Q, table 9-2).
pub const MAX_VLAN: u16 = 4094;

/// The largest differentiated services code point: 6 bits (RFC 2474).
pub const MAX_DSCP: u8 = 63;

/// The smallest EtherType; lower values are lengths (IEEE 802.3, 3.2.6).
pub const MIN_ETHERTYPE: u16 = 0x0600;

/// The smallest MTU in bytes: the smallest that IPv4 may cross (RFC 791).
pub const MIN_MTU_BYTES: u32 = 68;

/// The largest MTU in bytes: the longest IPv4 packet.
pub const MAX_MTU_BYTES: u32 = 65_535;

/// The longest piece of a refused value that an error quotes, in characters: an error stays one readable line.
const SHOWN_CHARS: usize = 64;

/// A value that is not what its field takes. `value` is already in its shown form: quoted where it was text, control
/// characters escaped, cut where it was long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each variant is documented by its message.
pub enum ValueError {
    #[error("{value} is not an id (write 1 to {MAX_ID_CHARS} printable characters)")]
    Id { value: String },
    #[error(
        "{value} is not a port name (write 1 to {MAX_PORT_NAME_BYTES} letters, digits, '.', '_' or '-', a letter or digit first)"
    )]
    PortName { value: String },
    #[error("{value} is not a MAC address (write six pairs of hex digits, such as 02:00:00:00:01:02)")]
    Mac { value: String },
    #[error("{value} is not the MAC address of one station (it is all zeros, multicast or broadcast)")]
    GroupMac { value: String },
    #[error("{value} is not an IP address (write 192.0.2.1 or 2001:db8::1)")]
    Address { value: String },
    #[error("{value} is not the address of one host (it is unspecified, multicast or broadcast)")]
    GroupAddress { value: String },
    #[error("{value} is not an address or prefix (write 10.1.0.2, 10.1.0.0/16 or fd00:1::/64)")]
    Prefix { value: String },
    #[error("{value} has bits set behind its prefix length (did you mean {masked}?)")]
    HostBits { value: String, masked: IpNet },
    #[error("{value} is not an IPv4 address with its prefix length (write 192.0.2.1/24)")]
    Interface4 { value: String },
    #[error("{value} is not an IPv6 address with its prefix length (write 2001:db8::1/64)")]
    Interface6 { value: String },
    #[error("{value} is not an IPv4 address (write 192.0.2.254)")]
    Address4 { value: String },
    #[error("{value} is not an IPv6 address (write 2001:db8::fe)")]
    Address6 { value: String },
    #[error("{value} is not a VXLAN network identifier (write a number from 0 to {MAX_VNI})")]
    Vni { value: String },
    #[error("{value} is not a VLAN identifier (write a number from 1 to {MAX_VLAN}, or 0 for untagged)")]
    MatchVlan { value: String },
    #[error("{value} is not a VLAN identifier (write a number from 1 to {MAX_VLAN})")]
    Vlan { value: String },
    #[error("{value} is not a DSCP (write a number from 0 to {MAX_DSCP})")]
    Dscp { value: String },
    #[error("{value} is not a TTL (write a number from 1 to 255)")]
    Ttl { value: String },
    #[error(
        "{value} is not an EtherType (write a number from 1536 to 65535, \"0x86dd\", or one of {ETHERTYPE_NAMES})"
    )]
    Ethertype { value: String },
    #[error("{value} is not an IP protocol (write a number from 0 to 255, or one of {PROTOCOL_NAMES})")]
    Protocol { value: String },
    #[error("{value} is not a port or a range (write 443 or \"8000-8999\", low end first)")]
    PortRange { value: String },
    #[error("{value} is not a priority (write a number from 0 to 4294967295)")]
    Priority { value: String },
    #[error("{value} is not an MTU (write a number of bytes from {MIN_MTU_BYTES} to {MAX_MTU_BYTES})")]
    Mtu { value: String },
    #[error("{value} is not a kind of port (write \"vf\" or \"uplink\")")]
    Kind { value: String },
    #[error("{value} is not a device (write its kind, a colon and its name, such as tap:vm1)")]
    Device { value: String },
    #[error("{value} is not a trap (write a name of lower-case letters, digits and '-', such as \"dhcp\")")]
    Trap { value: String },
}

/// Text as an error shows it: in quotes, control characters escaped, cut after 64 characters.
pub fn shown(text: &str) -> String {
    let mut out = String::from("\"");
    for (index, character) in text.chars().enumerate() {
        if index == SHOWN_CHARS {
            out.push_str("...");
            break;
        }
        match character {
            // Inside double quotes a single one needs no escape.
            '\'' => out.push('\''),
            other => out.extend(other.escape_debug()),
        }
    }
    out.push('"');
    out
}

/// A rule's id: 1 to [`MAX_ID_CHARS`] printable characters.
///
/// # Errors
/// Empty, longer, or with a character that a terminal does not print as itself.
pub fn id(text: &str) -> Result<(), ValueError> {
    let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let good = if plain {
        (1..=MAX_ID_CHARS).contains(&text.len())
    } else {
        text.chars().all(is_printable) && text.chars().take(MAX_ID_CHARS + 1).count() <= MAX_ID_CHARS
    };
    if good { Ok(()) } else { Err(ValueError::Id { value: shown(text) }) }
}

/// Whether a character shows as itself: no control character, nothing that breaks the line or turns its direction.
fn is_printable(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A port's name: 1 to [`MAX_PORT_NAME_BYTES`] letters, digits, `.`, `_` or `-`, a letter or digit first.
///
/// # Errors
/// Anything else.
pub fn port_name(text: &str) -> Result<(), ValueError> {
    let bytes = text.as_bytes();
    let good = bytes.len() <= MAX_PORT_NAME_BYTES
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if good { Ok(()) } else { Err(ValueError::PortName { value: shown(text) }) }
}

/// Any MAC address.
///
/// # Errors
/// Not six pairs of hex digits joined by colons.
pub fn mac(text: &str) -> Result<MacAddr, ValueError> {
    text.parse()
}

/// The MAC address of one station, for a port's own address and its gateway's.
///
/// # Errors
/// Not a MAC address, or a group's, or all zeros.
pub fn station_mac(text: &str) -> Result<MacAddr, ValueError> {
    let mac = mac(text)?;
    if mac.is_unicast() { Ok(mac) } else { Err(ValueError::GroupMac { value: shown(text) }) }
}

/// Any IP address, of either family.
///
/// # Errors
/// Not an address.
pub fn address(text: &str) -> Result<IpAddr, ValueError> {
    any_address(text).ok_or(()).map_err(|_| ValueError::Address { value: shown(text) })
}

/// An address of either family. The usual IPv4 spelling is read by hand, in a fifth of the time: a load of a million rules
/// holds millions of addresses.
fn any_address(text: &str) -> Option<IpAddr> {
    match plain_ipv4(text.as_bytes()) {
        Some(address) => Some(address.into()),
        None => text.parse().ok(),
    }
}

/// Four decimal numbers without leading zeros, joined by dots.
fn plain_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let (mut octets, mut at, mut value, mut digits) = ([0_u8; 4], 0, 0_u32, 0);
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                value = value * 10 + u32::from(byte - b'0');
                digits += 1;
                // More digits than three, a leading zero, or a number beyond 255.
                if digits > 3 || (digits > 1 && value < 10) || value > 255 {
                    return None;
                }
            }
            b'.' if digits > 0 && at < 3 => {
                octets[at] = value as u8;
                (at, value, digits) = (at + 1, 0, 0);
            }
            _ => return None,
        }
    }
    if at != 3 || digits == 0 {
        return None;
    }
    octets[3] = value as u8;
    Some(octets.into())
}

/// The address of one host: tunnels start and end at it.
///
/// # Errors
/// Not an address, or unspecified, multicast or broadcast.
pub fn host_address(text: &str) -> Result<IpAddr, ValueError> {
    let address = address(text)?;
    if is_host(address) { Ok(address) } else { Err(ValueError::GroupAddress { value: shown(text) }) }
}

/// Whether an address can be one host's.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || broadcast)
}

/// An IPv4 gateway.
///
/// # Errors
/// Not the IPv4 address of one host.
pub fn gateway4(text: &str) -> Result<Ipv4Addr, ValueError> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) if is_host(address.into()) => Ok(address),
        Ok(_) => Err(ValueError::GroupAddress { value: shown(text) }),
        Err(_) => Err(ValueError::Address4 { value: shown(text) }),
    }
}

/// An IPv6 gateway.
///
/// # Errors
/// Not the IPv6 address of one host.
pub fn gateway6(text: &str) -> Result<Ipv6Addr, ValueError> {
    match text.parse::<Ipv6Addr>() {
        Ok(address) if is_host(address.into()) => Ok(address),
        Ok(_) => Err(ValueError::GroupAddress { value: shown(text) }),
        Err(_) => Err(ValueError::Address6 { value: shown(text) }),
    }
}

/// A prefix, or a bare address as the prefix of that one address.
///
/// # Errors
/// Not a prefix, or bits set behind its length: then the error names the prefix that may have been meant.
pub fn prefix(text: &str) -> Result<IpNet, ValueError> {
    let net = address_and_length(text).ok_or_else(|| ValueError::Prefix { value: shown(text) })?;
    let masked = net.trunc();
    if masked == net { Ok(net) } else { Err(ValueError::HostBits { value: shown(text), masked }) }
}

/// An address, and its prefix length: the full one where none is written. Strict about digits, where other parsers
/// take leading zeros and signs.
fn address_and_length(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return Some(IpNet::from(any_address(text)?));
    };
    let digits = length.as_bytes();
    let canonical =
        matches!(digits, [b'0'..=b'9'] | [b'1'..=b'9', b'0'..=b'9'] | [b'1', b'0'..=b'9', b'0'..=b'9']);
    if !canonical {
        return None;
    }
    IpNet::new(any_address(address)?, length.parse().ok()?).ok()
}

/// An uplink's IPv4 address with the length of its network: `192.0.2.1/24`.
///
/// # Errors
/// No prefix length, not IPv4, or not the address of one host.
pub fn interface4(text: &str) -> Result<Ipv4Net, ValueError> {
    match address_and_length(text) {
        Some(IpNet::V4(net)) if text.contains('/') && is_host(net.addr().into()) => Ok(net),
        _ => Err(ValueError::Interface4 { value: shown(text) }),
    }
}

/// An uplink's IPv6 address with the length of its network: `2001:db8::1/64`.
///
/// # Errors
/// No prefix length, not IPv6, or not the address of one host.
pub fn interface6(text: &str) -> Result<Ipv6Net, ValueError> {
    match address_and_length(text) {
        Some(IpNet::V6(net)) if text.contains('/') && is_host(net.addr().into()) => Ok(net),
        _ => Err(ValueError::Interface6 { value: shown(text) }),
    }
}

macro_rules! number_validators {
    ($($(#[$doc:meta])* $name:ident -> $type:ty, $range:expr, $error:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// Outside of that range.
        pub fn $name(number: impl Into<u64>) -> Result<$type, ValueError> {
            let number: u64 = number.into();
            match <$type>::try_from(number) {
                Ok(value) if ($range).contains(&value) => Ok(value),
                _ => Err(ValueError::$error { value: number.to_string() }),
            }
        }
    )*};
}

number_validators! {
    /// A VXLAN network identifier: 0 to 16777215.
    vni -> u32, 0..=MAX_VNI, Vni;
    /// The VLAN that a rule matches: 1 to 4094, or 0 for untagged.
    match_vlan -> u16, 0..=MAX_VLAN, MatchVlan;
    /// The VLAN of a tag: 1 to 4094.
    vlan -> u16, 1..=MAX_VLAN, Vlan;
    /// A differentiated services code point: 0 to 63.
    dscp -> u8, 0..=MAX_DSCP, Dscp;
    /// The TTL or hop limit of a packet that is sent: 1 to 255.
    ttl -> u8, 1..=u8::MAX, Ttl;
    /// An EtherType: 1536 to 65535.
    ethertype -> u16, MIN_ETHERTYPE..=u16::MAX, Ethertype;
    /// An IP protocol number: 0 to 255.
    protocol -> u8, 0..=u8::MAX, Protocol;
    /// A layer-4 port: 0 to 65535.
    l4_port -> u16, 0..=u16::MAX, PortRange;
    /// A rule's priority: any 32-bit number.
    priority -> u32, 0..=u32::MAX, Priority;
    /// An MTU in bytes, layer 3: 68 to 65535.
    mtu -> u32, MIN_MTU_BYTES..=MAX_MTU_BYTES, Mtu;
}

/// An inclusive range of layer-4 ports.
///
/// # Errors
/// A port beyond 65535, or the low end last.
pub fn l4_range(first: u32, last: u32) -> Result<(u16, u16), ValueError> {
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(ValueError::PortRange { value: format!("\"{first}-{last}\"") }),
    }
}

/// A layer-4 port or an inclusive range of them as text: `443` or `8000-8999`.
///
/// # Errors
/// Neither, or the low end last.
pub fn l4_range_text(text: &str) -> Result<(u16, u16), ValueError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (decimal(first), decimal(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(ValueError::PortRange { value: shown(text) }),
    }
}

/// Digits only: no sign, no space.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Names of EtherTypes; the IEEE's numbers.
const ETHERTYPES: [(&str, u16); 3] = [("arp", 0x0806), ("ipv4", 0x0800), ("ipv6", 0x86dd)];
const ETHERTYPE_NAMES: &str = "arp, ipv4, ipv6";

/// An EtherType as text: a name, `0x` and hex digits, or decimal digits.
///
/// # Errors
/// None of these, or below 1536.
pub fn ethertype_text(text: &str) -> Result<u16, ValueError> {
    let named = || ETHERTYPES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    let hex = || {
        let digits = text.strip_prefix("0x")?;
        let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
    };
    named()
        .or_else(hex)
        .or_else(|| decimal(text))
        .filter(|number| *number >= MIN_ETHERTYPE)
        .ok_or_else(|| ValueError::Ethertype { value: shown(text) })
}

/// The name of an EtherType, where it has one here.
pub fn ethertype_name(number: u32) -> Option<&'static str> {
    ETHERTYPES.iter().find(|(_, known)| u32::from(*known) == number).map(|(name, _)| *name)
}

/// Names of IP protocols, as in IANA's registry and `/etc/protocols`; the first name of a number is the one shown.
const PROTOCOLS: [(&str, u8); 20] = [
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("icmpv6", 58),
    ("sctp", 132),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("igmp", 2),
    ("ospf", 89),
    ("ipip", 4),
    ("ipv6", 41),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("dccp", 33),
    ("rsvp", 46),
    ("eigrp", 88),
    ("udplite", 136),
    ("ipv6-icmp", 58),
];
const PROTOCOL_NAMES: &str = "tcp, udp, icmp, icmpv6, sctp, gre, esp, ah, igmp, ospf, ipip, ipv6, pim, vrrp, l2tp, \
    dccp, rsvp, eigrp, udplite";

/// An IP protocol as text: a name, or decimal digits.
///
/// # Errors
/// Neither.
pub fn protocol_text(text: &str) -> Result<u8, ValueError> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    named.or_else(|| decimal(text)).ok_or_else(|| ValueError::Protocol { value: shown(text) })
}

/// The name of an IP protocol, where it has one here.
pub fn protocol_name(number: u32) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(_, known)| u32::from(*known) == number).map(|(name, _)| *name)
}

/// The name of a device: its kind, a colon, and what that kind takes. Which kinds there are, the daemon says.
///
/// # Errors
/// No colon behind a kind, a character that a terminal does not print as itself, or more than 512 characters.
pub fn device(text: &str) -> Result<(), ValueError> {
    let kind = text.split_once(':').map_or("", |(kind, _)| kind);
    let good = !kind.is_empty() && text.chars().all(is_printable) && text.chars().count() <= 512;
    if good { Ok(()) } else { Err(ValueError::Device { value: shown(text) }) }
}

/// The name of an extra trap: lower-case letters, digits and `-`. Which traps there are, the classifier says.
///
/// # Errors
/// Anything else.
pub fn trap(text: &str) -> Result<(), ValueError> {
    let good = (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if good { Ok(()) } else { Err(ValueError::Trap { value: shown(text) }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_by_the_standard_parser() {
        let parts = ["0", "1", "9", "10", "25", "255", "256", "00", "01", "007", "1000", "", "-1", "+1", "a"];
        for (a, b) in parts.iter().flat_map(|a| parts.map(|b| (*a, b))) {
            for text in [
                format!("{a}.{b}.3.4"),
                format!("1.2.{a}.{b}"),
                format!("1.{a}.{b}"),
                format!("{a}.2.3.4.{b}"),
            ] {
                assert_eq!(plain_ipv4(text.as_bytes()), text.parse().ok(), "{text}");
            }
        }
    }

    #[test]
    fn prefixes() {
        assert_eq!(prefix("10.1.0.2").unwrap().to_string(), "10.1.0.2/32");
        assert_eq!(prefix("fd00:1::/64").unwrap().to_string(), "fd00:1::/64");
        assert_eq!(prefix("0.0.0.0/0").unwrap().prefix_len(), 0);
        assert_eq!(
            prefix("10.1.0.1/16").unwrap_err().to_string(),
            "\"10.1.0.1/16\" has bits set behind its prefix length (did you mean 10.1.0.0/16?)"
        );
        for text in
            ["", "10.1.0.0/33", "10.1.0.0/", "10.1.0.0/+8", "10.1.0.0/08", "010.1.0.0/16", "fd00::/129", "x"]
        {
            assert!(matches!(prefix(text), Err(ValueError::Prefix { .. })), "{text}");
        }
    }

    #[test]
    fn interfaces_keep_their_host_bits() {
        assert_eq!(interface4("192.0.2.1/24").unwrap().addr(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(interface6("2001:db8::1/64").unwrap().prefix_len(), 64);
        assert!(interface4("192.0.2.1").is_err() && interface4("2001:db8::1/64").is_err());
        assert!(interface6("ff02::1/64").is_err() && interface4("0.0.0.0/0").is_err());
    }

    #[test]
    fn numbers_stay_in_their_ranges() {
        assert_eq!(vni(MAX_VNI), Ok(MAX_VNI));
        assert!(vni(1_u32 << 24).is_err() && vni(u64::MAX).is_err());
        assert!(match_vlan(0_u32).is_ok() && vlan(0_u32).is_err() && vlan(4095_u32).is_err());
        assert!(dscp(63_u32).is_ok() && dscp(64_u32).is_err());
        assert!(ttl(0_u32).is_err() && ttl(255_u32).is_ok() && ttl(256_u32).is_err());
        assert_eq!(priority(1_u64 << 32).unwrap_err(), ValueError::Priority { value: "4294967296".into() });
    }

    #[test]
    fn ranges_and_names() {
        assert_eq!(l4_range_text("443"), Ok((443, 443)));
        assert_eq!(l4_range_text("8000-8999"), Ok((8000, 8999)));
        for text in ["8999-8000", "-1", "1-", "1-2-3", "65536", "+5", " 5", ""] {
            assert!(l4_range_text(text).is_err(), "{text}");
        }
        assert_eq!(protocol_text("ipv6-icmp"), Ok(58));
        assert_eq!(protocol_name(58), Some("icmpv6"));
        assert_eq!(ethertype_text("0x86DD"), Ok(0x86dd));
        assert!(
            ethertype_text("0x").is_err()
                && ethertype_text("0x05ff").is_err()
                && ethertype_text("IPv4").is_err()
        );
    }

    #[test]
    fn error_texts_list_every_name() {
        for (name, _) in PROTOCOLS.iter().filter(|(name, _)| *name != "ipv6-icmp") {
            assert!(PROTOCOL_NAMES.split(", ").any(|listed| listed == *name), "{name}");
        }
        for (name, _) in ETHERTYPES {
            assert!(ETHERTYPE_NAMES.split(", ").any(|listed| listed == name), "{name}");
        }
    }

    #[test]
    fn names_and_ids() {
        assert!(id("a b/ü").is_ok() && id(&"ü".repeat(128)).is_ok());
        for text in ["", "a\nb", "a\u{202e}b", &"x".repeat(129), &"ü".repeat(129)] {
            assert!(id(text).is_err(), "{text:?}");
        }
        assert!(
            device("null:").is_ok()
                && device("tap").is_err()
                && device(":x").is_err()
                && device("a:\n").is_err()
        );
        assert!(port_name("vm-1.0_a").is_ok());
        for text in ["", "-a", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(port_name(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn shown_values_are_short_and_harmless() {
        let text = shown(&"\u{1b}[31m".repeat(1000));
        assert!(text.len() < 400 && text.ends_with("...\"") && !text.contains('\u{1b}'), "{text}");
    }
}
