//! The slow, obvious rule table: a list, asked rule by rule, field by field, in the words of the contract. It is the
//! oracle of the compiled table and shares no code with it.

use super::key::Key;
use super::rule::{Match, Opaque, Rule, Scope};
use ipnet::IpNet;
use std::net::IpAddr;

/// Rules in a list.
pub struct ReferenceTable {
    rules: Vec<Rule>,
}

fn addresses(key: &Key) -> Option<(IpAddr, IpAddr)> {
    match (key.ipv4(), key.ipv6()) {
        (Some((src, dst)), _) => Some((IpAddr::V4(src.into()), IpAddr::V4(dst.into()))),
        (_, Some((src, dst))) => Some((IpAddr::V6(src.into()), IpAddr::V6(dst.into()))),
        _ => None,
    }
}

fn within(net: Option<IpNet>, address: Option<IpAddr>) -> bool {
    net.is_none_or(|net| address.is_some_and(|address| net.contains(&address)))
}

fn in_range(range: Option<(u16, u16)>, port: Option<u16>) -> bool {
    range.is_none_or(|(first, last)| port.is_some_and(|port| (first..=last).contains(&port)))
}

/// Whether everything that is given holds.
pub fn holds(matches: &Match, key: &Key) -> bool {
    let ip = addresses(key);
    let dscp = ip.map(|_| (key.0[6] >> 16) as u8);
    matches.dst_mac.is_none_or(|mac| crate::wire::mac_from_bits(key.dst_mac()) == mac.0)
        && matches.src_mac.is_none_or(|mac| crate::wire::mac_from_bits(key.src_mac()) == mac.0)
        && matches.ethertype.is_none_or(|ethertype| key.ethertype() == ethertype)
        && matches.vlan.is_none_or(|vlan| key.vlan() == vlan)
        && within(matches.src, ip.map(|(src, _)| src))
        && within(matches.dst, ip.map(|(_, dst)| dst))
        && matches.proto.is_none_or(|proto| ip.is_some() && key.proto() == proto)
        && in_range(matches.src_port, key.ports().map(|(src, _)| src))
        && in_range(matches.dst_port, key.ports().map(|(_, dst)| dst))
        && matches.dscp.is_none_or(|wanted| dscp == Some(wanted))
}

impl ReferenceTable {
    /// A table of these rules.
    pub fn new(rules: Vec<Rule>) -> ReferenceTable {
        ReferenceTable { rules }
    }

    fn best(&self, holds: impl Fn(&Rule) -> bool) -> Option<&Rule> {
        let length = |net: Option<IpNet>| net.map_or(0, |net| net.prefix_len());
        let mut best: Option<&Rule> = None;
        for rule in self.rules.iter().filter(|rule| holds(rule)) {
            let wins = best.is_none_or(|best| {
                let (new, old) = (&rule.matches, &best.matches);
                if rule.priority != best.priority {
                    rule.priority > best.priority
                } else if length(new.dst) != length(old.dst) {
                    length(new.dst) > length(old.dst)
                } else if length(new.src) != length(old.src) {
                    length(new.src) > length(old.src)
                } else {
                    rule.id < best.id
                }
            });
            if wins {
                best = Some(rule);
            }
        }
        best
    }

    /// The rule that decides about a packet from a VF.
    pub fn egress(&self, key: &Key) -> Option<&Rule> {
        self.best(|rule| holds(&rule.matches, key))
    }

    /// The rule that decides about a packet out of a tunnel, received by the uplink of that name.
    pub fn ingress(&self, inner: &Key, outer: &Key, tunnel: Opaque, uplink: &str) -> Option<&Rule> {
        let outer = addresses(outer);
        self.best(|rule| {
            let Scope::Ingress(scope) = &rule.scope else { return false };
            scope.tunnel == tunnel
                && scope.local.is_none_or(|local| outer.is_some_and(|(_, dst)| dst == local))
                && within(scope.remote, outer.map(|(src, _)| src))
                && scope.uplink.as_ref().is_none_or(|name| &**name == uplink)
                && holds(&rule.matches, inner)
        })
    }
}

/// Rules and keys out of a small world, so that they often meet.
#[cfg(test)]
pub(crate) mod arbitrary {
    use super::*;
    use crate::rules::rule::{Ingress, RuleAction};
    use forebay_api::validate::MacAddr;
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;
    use std::ops::Range;

    fn mac() -> impl Strategy<Value = MacAddr> {
        (0u8..3).prop_map(|last| MacAddr([2, 0, 0, 0, 0, last]))
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u8..2, 0u8..4).prop_map(|(net, host)| IpAddr::from([10, net, 0, host])),
            (0u16..2, 0u16..4).prop_map(|(net, host)| IpAddr::from([0xfd00, net, 0, 0, 0, 0, 0, host])),
        ]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), any::<u8>()).prop_map(|(address, bits)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let length = [0, 8, 15, 16, 24, 30, 31, 32, 64, 127, 128][usize::from(bits) % 11].min(longest);
            IpNet::new(address, length).unwrap().trunc()
        })
    }

    fn range() -> impl Strategy<Value = (u16, u16)> {
        (0u16..6, 0u16..6).prop_map(|(a, b)| (a.min(b), a.max(b)))
    }

    fn matches() -> impl Strategy<Value = Match> {
        let layer2 = (of(mac()), of(mac()), of(prop_oneof![Just(0x0800u16), Just(0x86dd)]), of(0u16..3));
        let layer3 = (of(prefix()), of(prefix()), of(0u8..3), of(0u8..2));
        (layer2, layer3, of(range()), of(range())).prop_map(
            |((dst_mac, src_mac, ethertype, vlan), (src, dst, proto, dscp), src_port, dst_port)| Match {
                dst_mac,
                src_mac,
                ethertype,
                vlan,
                src,
                dst,
                proto,
                src_port,
                dst_port,
                dscp,
            },
        )
    }

    fn rules(
        scope: impl Strategy<Value = Scope> + 'static,
        count: Range<usize>,
    ) -> impl Strategy<Value = Vec<Rule>> {
        vec((scope, 0u32..3, matches(), any::<u16>()), count).prop_map(|rules| {
            let with_ids =
                rules.into_iter().enumerate().map(|(index, (scope, priority, matches, id))| Rule {
                    id: format!("{id}-{index}").into(),
                    scope,
                    priority,
                    matches,
                    action: RuleAction::Drop,
                });
            with_ids.collect()
        })
    }

    pub(crate) fn egress_rules(count: Range<usize>) -> impl Strategy<Value = Vec<Rule>> {
        rules(Just(Scope::Egress("vm1".into())), count)
    }

    pub(crate) fn ingress_rules(count: Range<usize>) -> impl Strategy<Value = Vec<Rule>> {
        let scope =
            (0u32..3, of(address()), of(prefix()), of(0u16..3)).prop_map(|(vni, local, remote, uplink)| {
                let uplink = uplink.map(|number| number.to_string().into());
                Scope::Ingress(Ingress { tunnel: Opaque::Vxlan(vni), local, remote, uplink })
            });
        rules(scope, count)
    }

    pub(crate) fn key() -> impl Strategy<Value = Key> {
        let ip = of((address(), address(), 0u8..3, 0u8..2));
        (mac(), mac(), 0u16..3, ip, of((0u16..6, 0u16..6))).prop_map(|(dst, src, vlan, ip, ports)| {
            let bits = |mac: MacAddr| crate::wire::mac_bits(mac.0);
            let ethertype = match ip {
                Some((IpAddr::V4(_), ..)) => 0x0800,
                Some(_) => 0x86dd,
                None => 0x1234,
            };
            let mut key = Key::ethernet(bits(dst), bits(src), ethertype, vlan);
            match ip {
                Some((IpAddr::V4(src), dst, proto, dscp)) => {
                    let dst = if let IpAddr::V4(dst) = dst { dst } else { src };
                    key.set_ipv4(src.into(), dst.into(), proto, dscp);
                }
                Some((IpAddr::V6(src), dst, proto, dscp)) => {
                    let dst = if let IpAddr::V6(dst) = dst { dst } else { src };
                    key.set_ipv6(src.into(), dst.into(), proto, dscp);
                }
                None => {}
            }
            if let (Some((src, dst)), true) = (ports, ip.is_some()) {
                key.set_ports(src, dst);
            }
            key
        })
    }
}
