//! A rule in its typed form: parsed once from the control API's message, free of anything to check afterwards.

use forebay_api::rule_view::{ActionValues, MatchValues, RuleValues, RuleView, ScopeValues, TunnelView};
use forebay_api::v1;
use forebay_api::validate::MacAddr;
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;

/// What matches, how it ranks, what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The user's name for it, unique on the host.
    pub id: Arc<str>,
    /// Which packets the rule is asked about.
    pub scope: Scope,
    /// The highest wins.
    pub priority: u32,
    /// What must hold.
    pub matches: Match,
    /// What is done.
    pub action: RuleAction,
}

/// Which packets a rule is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What the VF of this name sends.
    Egress(Arc<str>),
    /// What tunnels bring to the uplinks.
    Ingress(Ingress),
}

/// The tunnel of an ingress rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// Tunnel type and opaque field.
    pub tunnel: Opaque,
    /// Outer destination.
    pub local: Option<IpAddr>,
    /// Outer source.
    pub remote: Option<IpNet>,
    /// Name of the uplink.
    pub uplink: Option<Arc<str>>,
}

/// A tunnel type with its opaque field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// VXLAN with its VNI.
    Vxlan(u32),
}

/// What must hold; `None` holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Destination MAC.
    pub dst_mac: Option<MacAddr>,
    /// Source MAC.
    pub src_mac: Option<MacAddr>,
    /// EtherType behind the VLAN tags.
    pub ethertype: Option<u16>,
    /// VLAN identifier of the outermost tag; 0 is untagged.
    pub vlan: Option<u16>,
    /// Source prefix.
    pub src: Option<IpNet>,
    /// Destination prefix.
    pub dst: Option<IpNet>,
    /// IP protocol.
    pub proto: Option<u8>,
    /// Source ports, inclusive.
    pub src_port: Option<(u16, u16)>,
    /// Destination ports, inclusive.
    pub dst_port: Option<(u16, u16)>,
    /// Differentiated services code point.
    pub dscp: Option<u8>,
}

/// What is done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Encapsulate, and send out of the uplink.
    Forward(Forward),
    /// Hand to a local port.
    Deliver {
        /// Its name.
        port: Arc<str>,
        /// Remove the outermost tag, if there is one.
        pop_vlan: bool,
        /// Push a tag with this VLAN.
        push_vlan: Option<u16>,
    },
    /// Hand to the trusted software path.
    Trap,
    /// Drop, and count.
    Drop,
}

/// How to encapsulate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Tunnel type and opaque field.
    pub tunnel: Opaque,
    /// Outer destination.
    pub remote: IpAddr,
    /// Outer source; the uplink's address where `None`.
    pub source: Option<IpAddr>,
    /// Outer TTL or hop limit.
    pub ttl: u8,
    /// Outer DSCP.
    pub dscp: u8,
    /// Replaces the inner destination MAC.
    pub inner_dst_mac: Option<MacAddr>,
    /// Push a tag with this VLAN onto the inner frame.
    pub push_vlan: Option<u16>,
}

/// The default TTL of outer headers (RFC 1700).
const DEFAULT_TTL: u8 = 64;

/// A rule that [`forebay_api::rule_check::canonical`] would refuse or spell otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {id:?} is not in canonical form")]
pub struct NotCanonical {
    /// The rule.
    pub id: String,
}

impl From<TunnelView> for Opaque {
    fn from(TunnelView::Vxlan(vni): TunnelView) -> Opaque {
        Opaque::Vxlan(vni)
    }
}

impl Rule {
    /// The rule of a message in canonical form.
    ///
    /// # Errors
    /// The message is not in that form.
    pub fn from_canonical(message: &v1::Rule) -> Result<Rule, NotCanonical> {
        let values = RuleView::of(message).values();
        let values = values.ok_or_else(|| NotCanonical { id: message.id.clone() })?;
        Ok(Rule::new(&values, |name| name.into()))
    }

    /// The rule of these values. Port names are made by `name`, which can share them between rules.
    pub fn new(values: &RuleValues<'_>, mut name: impl FnMut(&str) -> Arc<str>) -> Rule {
        let scope = match &values.scope {
            ScopeValues::Ingress(ingress) => Scope::Ingress(Ingress {
                tunnel: ingress.tunnel.into(),
                local: ingress.local,
                remote: ingress.remote,
                uplink: ingress.uplink.map(&mut name),
            }),
            ScopeValues::Egress(port) => Scope::Egress(name(port)),
        };
        let action = RuleAction::new(&values.action, name);
        let (id, priority, matches) = (values.id.into(), values.priority, Match::new(&values.matches));
        Rule { id, scope, priority, matches, action }
    }
}

impl Match {
    fn new(values: &MatchValues) -> Match {
        let MatchValues { dst_mac, src_mac, ethertype, vlan, src, dst, proto, src_port, dst_port, dscp } =
            *values;
        Match { dst_mac, src_mac, ethertype, vlan, src, dst, proto, src_port, dst_port, dscp }
    }

    /// The rule is about layer 2 by name: it decides even about what is trapped otherwise (ARP, ND, broadcast).
    pub fn names_layer2(&self) -> bool {
        self.dst_mac.is_some() || self.ethertype == Some(crate::wire::ethertype::ARP)
    }
}

impl RuleAction {
    fn new(values: &ActionValues<'_>, mut name: impl FnMut(&str) -> Arc<str>) -> RuleAction {
        match values {
            ActionValues::Forward(forward) => RuleAction::Forward(Forward {
                tunnel: forward.tunnel.into(),
                remote: forward.remote,
                source: forward.source,
                ttl: forward.ttl.unwrap_or(DEFAULT_TTL),
                dscp: forward.dscp.unwrap_or(0),
                inner_dst_mac: forward.inner_dst_mac,
                push_vlan: forward.push_vlan,
            }),
            ActionValues::Deliver { port, pop_vlan, push_vlan } => {
                RuleAction::Deliver { port: name(port), pop_vlan: *pop_vlan, push_vlan: *push_vlan }
            }
            ActionValues::Trap => RuleAction::Trap,
            ActionValues::Drop => RuleAction::Drop,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The rule of one JSON line.
    pub(crate) fn rule(json: &str) -> Rule {
        let message = forebay_api::rule_json::parse_rule(json).unwrap();
        Rule::from_canonical(&message).unwrap()
    }

    #[test]
    fn the_rules_of_the_contract_parse() {
        let e1 = rule(
            r#"{"id":"e1","port":"vm1","priority":100,"match":{"dst":"10.1.0.2/32"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.2","inner_dst_mac":"02:00:00:00:01:02"}}}"#,
        );
        assert_eq!(e1.scope, Scope::Egress("vm1".into()));
        let RuleAction::Forward(forward) = &e1.action else { panic!("not forward: {e1:?}") };
        assert_eq!((forward.tunnel, forward.ttl, forward.dscp), (Opaque::Vxlan(100), 64, 0));
        let e2 = rule(
            r#"{"id":"e2","port":"vm1","priority":10,"match":{"dst":"10.9.0.0/16","proto":"tcp","dst_port":"8000-8999"},"action":"drop"}"#,
        );
        assert_eq!((e2.matches.proto, e2.matches.dst_port), (Some(6), Some((8000, 8999))));
        assert!(!e2.matches.names_layer2());
        let i1 = rule(
            r#"{"id":"i1","ingress":{"tunnel":"vxlan","vni":100},"match":{"dst_mac":"02:00:00:00:01:01"},"action":{"deliver":{"port":"vm1"}}}"#,
        );
        assert!(i1.matches.names_layer2());
    }
}
