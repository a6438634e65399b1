//! What makes a rule acceptable by itself, on its proto form; and its one canonical spelling.
//!
//! The JSON parser ends with this check and the daemon begins with it, so that a rule is refused with the same words
//! wherever it comes from. What depends on the host (does the port exist, is `local` free) is the daemon's to check.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::mac::MacAddr;
use crate::spec_error::{At, FieldError, Problem, SpecError};
use crate::v1;
use crate::validate::{self, ValueError};

const ACTION_REMEDY: &str = "give forward, deliver, trap or drop";

/// Checks every field of a rule and rewrites it in canonical spelling: MACs in lower case, addresses in RFC 5952's
/// form, prefixes with their length, `match` present. Two canonical rules mean the same exactly where they are equal.
///
/// # Errors
/// The first field that is wrong; the rule may be half rewritten then.
pub fn canonical(rule: &mut v1::Rule) -> Result<(), SpecError> {
    fields(rule).map_err(|error| error.named("rule", Some(&rule.id)))
}

fn fields(rule: &mut v1::Rule) -> Result<(), FieldError> {
    if rule.id.is_empty() {
        return Err(Problem::Missing { key: "id", remedy: "give 1 to 128 printable characters" }.into());
    }
    validate::id(&rule.id).at("id")?;
    match (rule.port.as_str(), &mut rule.ingress) {
        ("", None) => {
            return Err(Problem::Missing {
                key: "port or ingress",
                remedy: "give port for what a VF sends, ingress for what a tunnel brings",
            }
            .into());
        }
        ("", Some(ingress)) => ingress_fields(ingress).at("ingress")?,
        (port, None) => validate::port_name(port).at("port")?,
        (_, Some(_)) => return Err(Problem::PortAndIngress.into()),
    }
    match_fields(rule.r#match.get_or_insert_default()).at("match")?;
    match rule.action.as_mut().and_then(|action| action.kind.as_mut()) {
        None => Err(Problem::Missing { key: "action", remedy: ACTION_REMEDY }.into()),
        Some(v1::action::Kind::Forward(forward)) => forward_fields(forward).at("action.forward"),
        Some(v1::action::Kind::Deliver(deliver)) => deliver_fields(deliver).at("action.deliver"),
        Some(v1::action::Kind::Trap(_) | v1::action::Kind::Drop(_)) => Ok(()),
    }
}

fn ingress_fields(ingress: &mut v1::Ingress) -> Result<(), FieldError> {
    tunnel(ingress.tunnel.as_ref())?;
    let local = rewrite(&mut ingress.local, validate::host_address).at("local")?;
    let remote = rewrite(&mut ingress.remote, validate::prefix).at("remote")?;
    if let (Some(local), Some(remote)) = (local, remote) {
        same_family(local, "remote", remote.addr()).at("local")?;
    }
    if !ingress.uplink.is_empty() {
        validate::port_name(&ingress.uplink).at("uplink")?;
    }
    Ok(())
}

fn match_fields(fields: &mut v1::Match) -> Result<(), FieldError> {
    rewrite(&mut fields.dst_mac, validate::mac).at("dst_mac")?;
    rewrite(&mut fields.src_mac, validate::mac).at("src_mac")?;
    fields.ethertype.map(validate::ethertype).transpose().at("ethertype")?;
    fields.vlan.map(validate::match_vlan).transpose().at("vlan")?;
    let src = rewrite(&mut fields.src, validate::prefix).at("src")?;
    let dst = rewrite(&mut fields.dst, validate::prefix).at("dst")?;
    if let (Some(src), Some(dst)) = (src, dst) {
        same_family(src.addr(), "dst", dst.addr()).at("src")?;
    }
    fields.proto.map(validate::protocol).transpose().at("proto")?;
    port_range(fields.src_port.as_ref()).at("src_port")?;
    port_range(fields.dst_port.as_ref()).at("dst_port")?;
    fields.dscp.map(validate::dscp).transpose().at("dscp")?;
    Ok(())
}

fn forward_fields(forward: &mut v1::Forward) -> Result<(), FieldError> {
    tunnel(forward.tunnel.as_ref())?;
    let Some(remote) = rewrite(&mut forward.remote, validate::host_address).at("remote")? else {
        return Err(
            Problem::Missing { key: "remote", remedy: "give the address of the tunnel's far end" }.into()
        );
    };
    if let Some(source) = rewrite(&mut forward.source, validate::host_address).at("source")? {
        same_family(source, "remote", remote).at("source")?;
    }
    forward.ttl.map(validate::ttl).transpose().at("ttl")?;
    forward.dscp.map(validate::dscp).transpose().at("dscp")?;
    rewrite(&mut forward.inner_dst_mac, validate::mac).at("inner_dst_mac")?;
    forward.push_vlan.map(validate::vlan).transpose().at("push_vlan")?;
    Ok(())
}

fn deliver_fields(deliver: &mut v1::Deliver) -> Result<(), FieldError> {
    if deliver.port.is_empty() {
        return Err(Problem::Missing { key: "port", remedy: "name the port to deliver to" }.into());
    }
    validate::port_name(&deliver.port).at("port")?;
    deliver.push_vlan.map(validate::vlan).transpose().at("push_vlan")?;
    Ok(())
}

fn tunnel(tunnel: Option<&v1::Tunnel>) -> Result<(), FieldError> {
    match tunnel.and_then(|tunnel| tunnel.kind.as_ref()) {
        None => {
            Err(Problem::Missing { key: "tunnel", remedy: "give the tunnel's type, such as vxlan" }.into())
        }
        Some(v1::tunnel::Kind::Vxlan(vxlan)) => validate::vni(vxlan.vni).map(|_| ()).at("vni"),
    }
}

fn port_range(range: Option<&v1::PortRange>) -> Result<(), ValueError> {
    range.map(|range| validate::l4_range(range.first, range.last)).transpose().map(|_| ())
}

fn same_family(address: IpAddr, other_field: &'static str, other: IpAddr) -> Result<(), Problem> {
    if address.is_ipv4() == other.is_ipv4() {
        return Ok(());
    }
    Err(Problem::Family { value: address.to_string(), other_field, other: other.to_string() })
}

/// Checks a text unless it is empty (absent), and rewrites it where its canonical spelling is another.
pub(crate) fn rewrite<T: Spelling>(
    text: &mut String,
    check: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Result<Option<T>, ValueError> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = check(text)?;
    if !value.is_spelled(text) {
        *text = value.to_string();
    }
    Ok(Some(value))
}

/// A value whose canonical spelling is its `Display`. Most texts are canonical already, and the tests here are a
/// fraction of the cost of formatting the value: loading a million rules runs each of them a million times.
pub(crate) trait Spelling: fmt::Display {
    /// Whether `text`, which the value was parsed from, is its canonical spelling.
    fn is_spelled(&self, text: &str) -> bool;
}

impl Spelling for MacAddr {
    fn is_spelled(&self, text: &str) -> bool {
        !text.bytes().any(|byte| byte.is_ascii_uppercase())
    }
}

impl Spelling for Ipv4Addr {
    /// The standard parser takes one spelling only: no leading zeros, four numbers.
    fn is_spelled(&self, _: &str) -> bool {
        true
    }
}

impl Spelling for Ipv6Addr {
    fn is_spelled(&self, text: &str) -> bool {
        self.to_string() == text
    }
}

impl Spelling for IpAddr {
    fn is_spelled(&self, text: &str) -> bool {
        match self {
            Self::V4(address) => address.is_spelled(text),
            Self::V6(address) => address.is_spelled(text),
        }
    }
}

impl Spelling for Ipv4Net {
    /// The prefix length, too, has one spelling only; but it may be absent.
    fn is_spelled(&self, text: &str) -> bool {
        text.contains('/')
    }
}

impl Spelling for Ipv6Net {
    fn is_spelled(&self, text: &str) -> bool {
        self.to_string() == text
    }
}

impl Spelling for IpNet {
    fn is_spelled(&self, text: &str) -> bool {
        match self {
            Self::V4(net) => net.is_spelled(text),
            Self::V6(net) => net.is_spelled(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward() -> v1::Rule {
        let vxlan = v1::tunnel::Kind::Vxlan(v1::Vxlan { vni: 100 });
        v1::Rule {
            id: "e1".into(),
            port: "vm1".into(),
            action: Some(v1::Action {
                kind: Some(v1::action::Kind::Forward(v1::Forward {
                    tunnel: Some(v1::Tunnel { kind: Some(vxlan) }),
                    remote: "2001:DB8:0::2".into(),
                    inner_dst_mac: "02:00:00:00:0A:02".into(),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut v1::Rule)) -> String {
        let mut rule = forward();
        change(&mut rule);
        canonical(&mut rule).unwrap_err().to_string()
    }

    #[test]
    fn rewrites_into_one_spelling() {
        let mut rule = forward();
        rule.r#match = Some(v1::Match { dst: "10.1.0.2".into(), ..Default::default() });
        canonical(&mut rule).unwrap();
        assert_eq!(rule.r#match.as_ref().unwrap().dst, "10.1.0.2/32");
        let Some(v1::action::Kind::Forward(forward)) = &rule.action.as_ref().unwrap().kind else {
            panic!("forward")
        };
        assert_eq!(
            (forward.remote.as_str(), forward.inner_dst_mac.as_str()),
            ("2001:db8::2", "02:00:00:00:0a:02")
        );
        let before = rule.clone();
        canonical(&mut rule).unwrap();
        assert_eq!(rule, before);
    }

    #[test]
    fn spelling_tests_agree_with_the_display() {
        for text in
            ["10.1.0.2", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8", "FD00::/8", "fd00:0::/32", "::ffff:1.2.3.4"]
        {
            let net = validate::prefix(text).unwrap();
            assert_eq!(net.is_spelled(text), net.to_string() == text, "{text}");
        }
        for text in ["10.1.0.2", "2001:db8::2", "2001:db8:0::2", "2001:DB8::2"] {
            let address = validate::address(text).unwrap();
            assert_eq!(address.is_spelled(text), address.to_string() == text, "{text}");
        }
        for text in ["02:00:00:00:0a:01", "02:00:00:00:0A:01"] {
            let mac = validate::mac(text).unwrap();
            assert_eq!(mac.is_spelled(text), mac.to_string() == text, "{text}");
        }
    }

    #[test]
    fn wants_exactly_one_of_port_and_ingress() {
        assert!(refused(|rule| rule.port.clear()).starts_with("rule \"e1\": port or ingress is missing"));
        assert!(refused(|rule| rule.ingress = Some(v1::Ingress::default())).contains("are both there"));
    }

    #[test]
    fn wants_an_action_a_tunnel_and_a_remote() {
        assert!(refused(|rule| rule.action = None).contains("action is missing"));
        let tunnelless = refused(|rule| {
            rule.port.clear();
            rule.ingress = Some(v1::Ingress::default());
        });
        assert!(tunnelless.contains("ingress: tunnel is missing"), "{tunnelless}");
        let farless = refused(|rule| {
            if let Some(v1::action::Kind::Forward(forward)) = &mut rule.action.as_mut().unwrap().kind {
                forward.remote.clear();
            }
        });
        assert!(farless.contains("action.forward: remote is missing"), "{farless}");
    }

    #[test]
    fn refuses_families_that_never_meet() {
        let text = refused(|rule| {
            rule.r#match =
                Some(v1::Match { src: "10.0.0.0/8".into(), dst: "fd00::/8".into(), ..Default::default() });
        });
        assert_eq!(
            text,
            "rule \"e1\": match.src: 10.0.0.0 and dst fd00:: are of different IP versions (write both as IPv4 or both \
             as IPv6)"
        );
    }

    #[test]
    fn refuses_numbers_out_of_range() {
        let set = |fields: v1::Match| refused(move |rule| rule.r#match = Some(fields));
        assert!(
            set(v1::Match { vlan: Some(4095), ..Default::default() }).contains("match.vlan: 4095 is not")
        );
        assert!(set(v1::Match { dscp: Some(64), ..Default::default() }).contains("match.dscp: 64 is not"));
        assert!(
            set(v1::Match { proto: Some(256), ..Default::default() }).contains("match.proto: 256 is not")
        );
        let range = Some(v1::PortRange { first: 2, last: 1 });
        assert!(
            set(v1::Match { dst_port: range, ..Default::default() })
                .contains("match.dst_port: \"2-1\" is not")
        );
    }
}
