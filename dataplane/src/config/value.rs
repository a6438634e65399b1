//! Checks of single values: text or number in, typed value or [`Fault`] out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use forebay_api::validate::MacAddr;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::model::{Idle, Ipv4Interface, Ipv6Interface, Named};
use super::object::Fault;
use super::suggest::instead_of;

/// The longest name of a port: that of a DNS label, because names become metric labels and parts of host names.
pub(super) const NAME_MAX_BYTES: usize = 63;

/// The longest name of a host: that of a DNS name (RFC 1035, 2.3.4, without the root's dot).
pub(super) const HOST_NAME_MAX_BYTES: usize = 253;

/// The longest path of a Unix socket: `sun_path` of Linux has 108 bytes, of which one ends the text.
pub(super) const SOCKET_PATH_MAX_BYTES: usize = 107;

/// The longest fixed sleep of a worker: as the longest added latency.
const IDLE_SLEEP_MAX_US: u16 = 10_000;

/// The name of a port.
pub(super) fn port_name(text: &str) -> Result<String, Fault> {
    name(text, NAME_MAX_BYTES, "a port name")
}

/// The name of a pipeline, which becomes a metric label as a port's does.
pub(super) fn pipeline_name(text: &str) -> Result<String, Fault> {
    name(text, NAME_MAX_BYTES, "a pipeline name")
}

/// The name of a host.
pub(super) fn host_name(text: &str) -> Result<String, Fault> {
    name(text, HOST_NAME_MAX_BYTES, "a host name")
}

/// Letters and digits first, so that a name is never `.`, `..` or taken for an option of a command.
fn name(text: &str, max_bytes: usize, what: &str) -> Result<String, Fault> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.len() <= max_bytes
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(inner)
    {
        return Ok(text.to_string());
    }
    let remedy = format!(
        "write 1 to {max_bytes} letters, digits, dots, underscores and hyphens, the first a letter or digit"
    );
    Err(Fault::new(format!("not {what}"), remedy))
}

/// A value of an enumeration, by its name.
pub(super) fn named<T: Named>(text: &str) -> Result<T, Fault> {
    let known = T::NAMES.iter().find(|(name, _)| *name == text);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
        Fault::new("unknown value", instead_of(text, &names))
    })
}

/// What a worker does without packets: by name, or `sleep:US`.
pub(super) fn idle(text: &str) -> Result<Idle, Fault> {
    match text.strip_prefix("sleep:") {
        None => named(text),
        Some(us) => {
            let fault =
                || Fault::new("not a time", "write sleep: and a number of microseconds, such as sleep:100");
            within(us.parse().map_err(|_| fault())?, 1, IDLE_SLEEP_MAX_US, " µs").map(|us| Idle::Sleep { us })
        }
    }
}

/// A number from `min` to `max`, both included.
pub(super) fn within<T>(number: i64, min: T, max: T, unit: &str) -> Result<T, Fault>
where
    T: TryFrom<i64> + PartialOrd + Copy + std::fmt::Display,
{
    let fault = |problem: &str| Fault::new(problem, format!("write {min} to {max}{unit}"));
    match T::try_from(number) {
        Ok(typed) if typed < min => Err(fault("too small")),
        Ok(typed) if typed > max => Err(fault("too large")),
        Ok(typed) => Ok(typed),
        Err(_) if number < 0 => Err(fault("too small")),
        Err(_) => Err(fault("too large")),
    }
}

/// The MAC address of one station.
pub(super) fn mac(text: &str) -> Result<MacAddr, Fault> {
    let mac: MacAddr = text
        .parse()
        .map_err(|_| Fault::new("not a MAC address", "write six bytes in hex, such as 02:00:00:00:01:01"))?;
    if mac.0 == [0; 6] {
        return Err(Fault::new("all zeros is no station's MAC address", "write the MAC address of the port"));
    }
    if mac.0[0] & 1 != 0 {
        let remedy = "clear the lowest bit of the first byte, such as 02:00:00:00:01:01";
        return Err(Fault::new("a multicast MAC address, which no station sends from", remedy));
    }
    Ok(mac)
}

/// A source prefix of a tenant: an address, or a prefix without host bits. Always canonical.
pub(super) fn source_prefix(text: &str) -> Result<IpNet, Fault> {
    let net = match text.parse::<IpAddr>() {
        Ok(addr) => IpNet::from(addr),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            Fault::new("not an address or prefix", "write 10.1.0.1, 10.1.0.0/24, fd00:1::1 or fd00:1::/64")
        })?,
    };
    if net != net.trunc() {
        let remedy = format!("write {} for the prefix, or {} for the address", net.trunc(), net.addr());
        return Err(Fault::new("bits are set behind the prefix length", remedy));
    }
    let remedy = "write the addresses that the tenant's packets come from";
    if is_multicast(&net) {
        return Err(Fault::new("multicast, which is no source of packets", remedy));
    }
    if net.prefix_len() == net.max_prefix_len() && !is_source(net.addr()) {
        return Err(Fault::new("not the address of a host", remedy));
    }
    Ok(net)
}

/// The whole prefix is multicast: `224.0.0.0/4` (RFC 5771) or `ff00::/8` (RFC 4291, 2.7).
fn is_multicast(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() >= 4 && net.addr().is_multicast(),
        IpNet::V6(net) => net.prefix_len() >= 8 && net.addr().is_multicast(),
    }
}

/// An address that a host on a network can have.
pub(super) fn is_source(addr: IpAddr) -> bool {
    let broadcast = addr == IpAddr::V4(Ipv4Addr::BROADCAST);
    let mapped = matches!(addr, IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some());
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || broadcast || mapped)
}

/// The IPv4 address of an uplink, with its prefix length.
pub(super) fn ipv4_interface(text: &str) -> Result<Ipv4Interface, Fault> {
    let form = "write an address with its prefix length, such as 192.0.2.1/24";
    match text.parse() {
        Ok(IpNet::V4(net)) => {
            host_of(net.into(), net.network(), net.broadcast(), net.prefix_len() < 31)?;
            Ok(Ipv4Interface { addr: net.addr(), prefix_len: net.prefix_len() })
        }
        Ok(IpNet::V6(_)) => Err(Fault::new("an IPv6 address", format!("move it to ipv6, or {form}"))),
        Err(_) => Err(Fault::new("not an IPv4 address with its prefix length", form)),
    }
}

/// The IPv6 address of an uplink, with its prefix length.
pub(super) fn ipv6_interface(text: &str) -> Result<Ipv6Interface, Fault> {
    let form = "write an address with its prefix length, such as 2001:db8::1/64";
    match text.parse() {
        Ok(IpNet::V6(net)) => {
            // The address without host bits is the routers' anycast address (RFC 4291, 2.6.1), but on links between
            // two routers (RFC 6164). IPv6 has no broadcast.
            host_of(net.into(), net.network(), net.network(), net.prefix_len() < 127)?;
            Ok(Ipv6Interface { addr: net.addr(), prefix_len: net.prefix_len() })
        }
        Ok(IpNet::V4(_)) => Err(Fault::new("an IPv4 address", format!("move it to ipv4, or {form}"))),
        Err(_) => Err(Fault::new("not an IPv6 address with its prefix length", form)),
    }
}

/// The address is one that a host of its own prefix can have.
fn host_of<A: PartialEq + Into<IpAddr>>(net: IpNet, first: A, last: A, reserved: bool) -> Result<(), Fault> {
    let remedy = "write the uplink's own address, which other hosts send tunnels to";
    if net.prefix_len() == 0 {
        return Err(Fault::new(
            "prefix length 0 puts every address on the link",
            "write the link's prefix length",
        ));
    }
    if !is_source(net.addr()) {
        return Err(Fault::new("not the address of a host", remedy));
    }
    if reserved && (first.into() == net.addr() || last.into() == net.addr()) {
        let problem = format!("stands for {} itself, not for a host of it", net.trunc());
        return Err(Fault::new(problem, remedy));
    }
    Ok(())
}

/// The address of a router, of either family.
pub(super) fn gateway(text: &str) -> Result<IpAddr, Fault> {
    let addr: IpAddr = text.parse().map_err(|_| {
        Fault::new(
            "not an address",
            "write the router's address without a prefix length, such as 192.0.2.254",
        )
    })?;
    if is_source(addr) {
        Ok(addr)
    } else {
        Err(Fault::new("not the address of a router", "write the router's unicast address"))
    }
}

/// The address is another host's on the IPv4 link of the uplink; `who` says whose, for messages.
pub(super) fn beside4(addr: Ipv4Addr, own: Ipv4Interface, who: &str) -> Result<(), Fault> {
    let net = Ipv4Net::new_assert(own.addr, own.prefix_len);
    if addr == own.addr {
        return Err(own_address(who));
    }
    if !net.contains(&addr) {
        return Err(outside(net.trunc().into(), who));
    }
    if net.prefix_len() < 31 && (addr == net.network() || addr == net.broadcast()) {
        let remedy = format!("write the {who}'s unicast address");
        return Err(Fault::new(format!("not the address of a {who}"), remedy));
    }
    Ok(())
}

/// The address is another host's on the IPv6 link of the uplink; link-local addresses are on every link.
pub(super) fn beside6(addr: Ipv6Addr, own: Ipv6Interface, who: &str) -> Result<(), Fault> {
    let net = Ipv6Net::new_assert(own.addr, own.prefix_len);
    if addr == own.addr {
        Err(own_address(who))
    } else if net.contains(&addr) || addr.is_unicast_link_local() {
        Ok(())
    } else {
        Err(outside(net.trunc().into(), who))
    }
}

fn own_address(who: &str) -> Fault {
    Fault::new("the uplink's own address", format!("write the {who}'s address"))
}

fn outside(net: IpNet, who: &str) -> Fault {
    Fault::new(
        format!("outside the uplink's prefix {net}"),
        format!("write a {who} on the link, or correct the prefix length"),
    )
}

/// The path of a Unix socket.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, Fault> {
    let path = path(text)?;
    if text.len() > SOCKET_PATH_MAX_BYTES {
        let problem = format!("{} bytes, too long for a Unix socket", text.len());
        return Err(Fault::new(problem, format!("write a path of at most {SOCKET_PATH_MAX_BYTES} bytes")));
    }
    if text.ends_with('/') {
        return Err(Fault::new("a directory", "write the path of the socket itself"));
    }
    Ok(path)
}

/// A path that does not depend on where the daemon was started.
pub(super) fn path(text: &str) -> Result<PathBuf, Fault> {
    if text.starts_with('/') && !text.contains(char::is_control) {
        Ok(PathBuf::from(text))
    } else {
        Err(Fault::new("not an absolute path", "write a path that begins with /"))
    }
}

/// An address and a port to listen on.
pub(super) fn socket_addr(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        Fault::new("not an address with a port", "write 127.0.0.1:9464 or [::1]:9464, without a host name")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
        result.unwrap_err().problem
    }

    #[test]
    fn names_begin_with_a_letter_or_digit_and_fit() {
        for good in ["a", "vm-1.eth_0", "0", &"x".repeat(63)] {
            assert_eq!(port_name(good).unwrap(), good);
        }
        for bad in ["", ".", "..", "-a", "a b", "a/b", "ü", "a\n", &"x".repeat(64)] {
            assert_eq!(fault(port_name(bad)), "not a port name", "{bad:?}");
        }
        assert!(host_name(&"x".repeat(253)).is_ok() && host_name(&"x".repeat(254)).is_err());
    }

    #[test]
    fn macs_are_unicast() {
        assert_eq!(mac("02:00:00:00:01:01").unwrap(), MacAddr([2, 0, 0, 0, 1, 1]));
        assert_eq!(fault(mac("02:00:00:00:01")), "not a MAC address");
        assert!(fault(mac("00:00:00:00:00:00")).starts_with("all zeros"));
        assert!(fault(mac("ff:ff:ff:ff:ff:ff")).starts_with("a multicast"));
    }

    #[test]
    fn source_prefixes_are_canonical() {
        for (text, net) in
            [("10.1.0.1", "10.1.0.1/32"), ("10.1.0.0/24", "10.1.0.0/24"), ("fd00::1", "fd00::1/128")]
        {
            assert_eq!(source_prefix(text).unwrap().to_string(), net);
        }
        // A router's port may send from anywhere.
        assert!(source_prefix("0.0.0.0/0").is_ok() && source_prefix("::/0").is_ok());
        assert_eq!(
            source_prefix("10.1.0.1/24").unwrap_err(),
            Fault::new(
                "bits are set behind the prefix length",
                "write 10.1.0.0/24 for the prefix, or 10.1.0.1 for the address"
            )
        );
        assert_eq!(fault(source_prefix("10.1")), "not an address or prefix");
        assert_eq!(fault(source_prefix("10.1.0.0/33")), "not an address or prefix");
        for multicast in ["224.0.0.1", "239.0.0.0/8", "ff02::1", "ff00::/8"] {
            assert!(fault(source_prefix(multicast)).starts_with("multicast"), "{multicast}");
        }
        for nobody in ["0.0.0.0", "::", "127.0.0.1", "::1", "255.255.255.255", "::ffff:10.0.0.1"] {
            assert_eq!(fault(source_prefix(nobody)), "not the address of a host", "{nobody}");
        }
    }

    #[test]
    fn interfaces_have_a_host_address_and_a_prefix_length() {
        let v4 = ipv4_interface("192.0.2.1/24").unwrap();
        assert_eq!(v4, Ipv4Interface { addr: Ipv4Addr::new(192, 0, 2, 1), prefix_len: 24 });
        assert!(ipv4_interface("192.0.2.0/31").is_ok() && ipv4_interface("192.0.2.1/32").is_ok());
        assert!(ipv6_interface("2001:db8::/127").is_ok() && ipv6_interface("2001:db8::1/64").is_ok());
        assert_eq!(fault(ipv4_interface("192.0.2.1")), "not an IPv4 address with its prefix length");
        assert_eq!(fault(ipv4_interface("2001:db8::1/64")), "an IPv6 address");
        assert_eq!(fault(ipv6_interface("192.0.2.1/24")), "an IPv4 address");
        assert_eq!(fault(ipv6_interface("2001:db8::1")), "not an IPv6 address with its prefix length");
        assert!(fault(ipv4_interface("192.0.2.255/24")).starts_with("stands for 192.0.2.0/24 itself"));
        assert!(fault(ipv4_interface("192.0.2.0/24")).starts_with("stands for"));
        assert!(fault(ipv6_interface("2001:db8::/64")).starts_with("stands for"));
        assert!(fault(ipv4_interface("192.0.2.1/0")).starts_with("prefix length 0"));
        assert_eq!(fault(ipv4_interface("127.0.0.1/8")), "not the address of a host");
        assert_eq!(fault(ipv6_interface("ff02::1/64")), "not the address of a host");
    }

    #[test]
    fn gateways_are_other_hosts_on_the_link() {
        let own = Ipv4Interface { addr: Ipv4Addr::new(192, 0, 2, 1), prefix_len: 24 };
        assert_eq!(beside4(Ipv4Addr::new(192, 0, 2, 254), own, "router"), Ok(()));
        assert_eq!(fault(beside4(own.addr, own, "router")), "the uplink's own address");
        assert_eq!(
            fault(beside4(Ipv4Addr::new(198, 51, 100, 1), own, "router")),
            "outside the uplink's prefix 192.0.2.0/24"
        );
        assert_eq!(
            fault(beside4(Ipv4Addr::new(192, 0, 2, 255), own, "router")),
            "not the address of a router"
        );
        let own = Ipv6Interface { addr: "2001:db8::1".parse().unwrap(), prefix_len: 64 };
        assert_eq!(beside6("fe80::1".parse().unwrap(), own, "router"), Ok(()));
        assert_eq!(beside6("2001:db8::2".parse().unwrap(), own, "router"), Ok(()));
        assert_eq!(fault(beside6(own.addr, own, "router")), "the uplink's own address");
        assert!(fault(beside6("2001:db9::2".parse().unwrap(), own, "router")).starts_with("outside"));
        assert_eq!(fault(gateway("192.0.2.254/24")), "not an address");
        assert_eq!(fault(gateway("224.0.0.1")), "not the address of a router");
    }

    #[test]
    fn paths_are_absolute_and_sockets_fit() {
        assert_eq!(path("/var/lib/forebay").unwrap(), PathBuf::from("/var/lib/forebay"));
        assert_eq!(fault(path("state")), "not an absolute path");
        assert_eq!(fault(path("/a\0b")), "not an absolute path");
        assert!(socket_path(&format!("/{}", "x".repeat(106))).is_ok());
        assert_eq!(
            fault(socket_path(&format!("/{}", "x".repeat(107)))),
            "108 bytes, too long for a Unix socket"
        );
        assert_eq!(fault(socket_path("/run/")), "a directory");
    }

    #[test]
    fn numbers_stay_within_their_range() {
        assert_eq!(within(576, 576u16, 9600, " bytes").unwrap(), 576);
        let fault = within(-1, 576u16, 9600, " bytes").unwrap_err();
        assert_eq!(fault, Fault::new("too small", "write 576 to 9600 bytes"));
        assert_eq!(within(70_000, 576u16, 9600, "").unwrap_err().problem, "too large");
        assert_eq!(within(9601, 576u16, 9600, "").unwrap_err().problem, "too large");
        assert_eq!(within(1, 576u16, 9600, "").unwrap_err().problem, "too small");
    }
}
