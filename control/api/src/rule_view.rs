//! A rule read in place: the fields of an encoded or spelled rule, borrowed from where they stand.
//!
//! A million rules cross this interface at a time, and taking each apart into strings of its own costs several times what
//! checking it does. A view is a short cut and never a second opinion: whatever is unusual (an unknown encoding, a value
//! that is wrong or in another spelling) makes it step back, and the long way by [`crate::v1::Rule`] and
//! [`crate::rule_check`] decides and words the error. The invariant: a view that [`RuleView::is_canonical`] means and
//! encodes the same as the message would.

mod encode;
mod reader;

use ipnet::IpNet;
use std::net::IpAddr;

use crate::rule_check::Spelling;
use crate::v1;
use crate::validate;

/// The fields of a rule; texts are empty where they are absent, as in the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleView<'a> {
    /// The user's name for it.
    pub id: &'a str,
    /// The VF of an egress rule.
    pub port: &'a str,
    /// The tunnel of an ingress rule.
    pub ingress: Option<IngressView<'a>>,
    /// The highest wins.
    pub priority: u32,
    /// What must hold; `None` only where the message has no such field.
    pub matches: Option<MatchView<'a>>,
    /// What is done.
    pub action: Option<ActionView<'a>>,
}

/// Which tunnel packets an ingress rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IngressView<'a> {
    /// Type and opaque field.
    pub tunnel: Option<TunnelView>,
    /// Outer destination.
    pub local: &'a str,
    /// Outer source prefix.
    pub remote: &'a str,
    /// Name of the uplink.
    pub uplink: &'a str,
}

/// A tunnel type with its opaque field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelView {
    /// VXLAN with its VNI.
    Vxlan(u32),
}

/// What must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the proto.
pub struct MatchView<'a> {
    pub dst_mac: &'a str,
    pub src_mac: &'a str,
    pub ethertype: Option<u32>,
    pub vlan: Option<u32>,
    pub src: &'a str,
    pub dst: &'a str,
    pub proto: Option<u32>,
    pub src_port: Option<(u32, u32)>,
    pub dst_port: Option<(u32, u32)>,
    pub dscp: Option<u32>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionView<'a> {
    /// Encapsulate.
    Forward(ForwardView<'a>),
    /// Hand to a local port.
    Deliver {
        /// Its name.
        port: &'a str,
        /// Remove the outermost tag.
        pop_vlan: bool,
        /// Push a tag.
        push_vlan: Option<u32>,
    },
    /// Hand to the trusted software path.
    Trap,
    /// Drop.
    Drop,
}

/// How to encapsulate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the proto.
pub struct ForwardView<'a> {
    pub tunnel: Option<TunnelView>,
    pub remote: &'a str,
    pub source: &'a str,
    pub ttl: Option<u32>,
    pub dscp: Option<u32>,
    pub inner_dst_mac: &'a str,
    pub push_vlan: Option<u32>,
}

impl<'a> RuleView<'a> {
    /// The fields of a message.
    pub fn of(rule: &'a v1::Rule) -> RuleView<'a> {
        RuleView {
            id: &rule.id,
            port: &rule.port,
            ingress: rule.ingress.as_ref().map(IngressView::of),
            priority: rule.priority,
            matches: rule.r#match.as_ref().map(MatchView::of),
            action: rule.action.as_ref().and_then(|action| action.kind.as_ref()).map(ActionView::of),
        }
    }

    /// Whether every field is good and in canonical spelling: whether [`crate::rule_check::canonical`] would accept the
    /// rule and leave it as it is.
    pub fn is_canonical(&self) -> bool {
        let place = match (self.port, &self.ingress) {
            ("", Some(ingress)) => ingress.is_canonical(),
            ("", None) | (_, Some(_)) => false,
            (port, None) => validate::port_name(port).is_ok(),
        };
        place
            && !self.id.is_empty()
            && validate::id(self.id).is_ok()
            && self.matches.is_some_and(|matches| matches.is_canonical())
            && self.action.is_some_and(|action| action.is_canonical())
    }
}

/// A text that is absent, or whose value is good and spelled in the one way.
fn spelled<T: Spelling, E>(text: &str, check: impl FnOnce(&str) -> Result<T, E>) -> Option<Option<T>> {
    if text.is_empty() {
        return Some(None);
    }
    let value = check(text).ok()?;
    value.is_spelled(text).then_some(Some(value))
}

fn number<T, E>(value: Option<u32>, check: impl FnOnce(u32) -> Result<T, E>) -> bool {
    value.is_none_or(|value| check(value).is_ok())
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

impl TunnelView {
    fn of(tunnel: &v1::Tunnel) -> Option<TunnelView> {
        tunnel.kind.as_ref().map(|v1::tunnel::Kind::Vxlan(vxlan)| TunnelView::Vxlan(vxlan.vni))
    }

    fn is_good(self) -> bool {
        let TunnelView::Vxlan(vni) = self;
        validate::vni(vni).is_ok()
    }
}

impl<'a> IngressView<'a> {
    fn of(ingress: &'a v1::Ingress) -> IngressView<'a> {
        IngressView {
            tunnel: ingress.tunnel.as_ref().and_then(TunnelView::of),
            local: &ingress.local,
            remote: &ingress.remote,
            uplink: &ingress.uplink,
        }
    }

    fn is_canonical(&self) -> bool {
        let Some(local) = spelled(self.local, validate::host_address) else { return false };
        let Some(remote) = spelled(self.remote, validate::prefix) else { return false };
        let meet = match (local, remote) {
            (Some(local), Some(remote)) => same_family(local, IpNet::addr(&remote)),
            _ => true,
        };
        let uplink = self.uplink.is_empty() || validate::port_name(self.uplink).is_ok();
        meet && uplink && self.tunnel.is_some_and(TunnelView::is_good)
    }
}

impl<'a> MatchView<'a> {
    fn of(fields: &'a v1::Match) -> MatchView<'a> {
        let range = |range: &v1::PortRange| (range.first, range.last);
        MatchView {
            dst_mac: &fields.dst_mac,
            src_mac: &fields.src_mac,
            ethertype: fields.ethertype,
            vlan: fields.vlan,
            src: &fields.src,
            dst: &fields.dst,
            proto: fields.proto,
            src_port: fields.src_port.as_ref().map(range),
            dst_port: fields.dst_port.as_ref().map(range),
            dscp: fields.dscp,
        }
    }

    fn is_canonical(&self) -> bool {
        let Some(src) = spelled(self.src, validate::prefix) else { return false };
        let Some(dst) = spelled(self.dst, validate::prefix) else { return false };
        let meet = match (src, dst) {
            (Some(src), Some(dst)) => same_family(src.addr(), dst.addr()),
            _ => true,
        };
        let range = |range: Option<(u32, u32)>| {
            range.is_none_or(|(first, last)| validate::l4_range(first, last).is_ok())
        };
        meet && spelled(self.dst_mac, validate::mac).is_some()
            && spelled(self.src_mac, validate::mac).is_some()
            && number(self.ethertype, validate::ethertype)
            && number(self.vlan, validate::match_vlan)
            && number(self.proto, validate::protocol)
            && number(self.dscp, validate::dscp)
            && range(self.src_port)
            && range(self.dst_port)
    }
}

impl<'a> ActionView<'a> {
    fn of(kind: &'a v1::action::Kind) -> ActionView<'a> {
        match kind {
            v1::action::Kind::Forward(forward) => ActionView::Forward(ForwardView {
                tunnel: forward.tunnel.as_ref().and_then(TunnelView::of),
                remote: &forward.remote,
                source: &forward.source,
                ttl: forward.ttl,
                dscp: forward.dscp,
                inner_dst_mac: &forward.inner_dst_mac,
                push_vlan: forward.push_vlan,
            }),
            v1::action::Kind::Deliver(deliver) => ActionView::Deliver {
                port: &deliver.port,
                pop_vlan: deliver.pop_vlan,
                push_vlan: deliver.push_vlan,
            },
            v1::action::Kind::Trap(_) => ActionView::Trap,
            v1::action::Kind::Drop(_) => ActionView::Drop,
        }
    }

    fn is_canonical(&self) -> bool {
        match self {
            ActionView::Trap | ActionView::Drop => true,
            ActionView::Deliver { port, push_vlan, .. } => {
                !port.is_empty() && validate::port_name(port).is_ok() && number(*push_vlan, validate::vlan)
            }
            ActionView::Forward(forward) => forward.is_canonical(),
        }
    }
}

impl ForwardView<'_> {
    fn is_canonical(&self) -> bool {
        let Some(Some(remote)) = spelled(self.remote, validate::host_address) else { return false };
        let Some(source) = spelled(self.source, validate::host_address) else { return false };
        source.is_none_or(|source| same_family(source, remote))
            && self.tunnel.is_some_and(TunnelView::is_good)
            && number(self.ttl, validate::ttl)
            && number(self.dscp, validate::dscp)
            && spelled(self.inner_dst_mac, validate::mac).is_some()
            && number(self.push_vlan, validate::vlan)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::rule_check;
    use crate::rule_json::tests::rule;

    proptest! {
        #[test]
        fn a_view_is_the_message(rule in rule()) {
            let bytes = rule.encode_to_vec();
            let view = RuleView::of(&rule);
            prop_assert_eq!(RuleView::decode(&bytes), Some(view));
            prop_assert!(view.is_canonical());
            prop_assert_eq!(RuleView::first_id(&bytes), Some(view.id));
            let mut out = Vec::new();
            view.encode(&mut out);
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn any_bytes_are_the_message_or_nothing(
            rule in rule(),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
        ) {
            let mut bytes = rule.encode_to_vec();
            for (place, byte, edit) in edits {
                let at = place.index(bytes.len());
                match edit {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let Some(view) = RuleView::decode(&bytes) else { return Ok(()) };
            let message = v1::Rule::decode(&bytes[..]).unwrap();
            prop_assert_eq!(RuleView::of(&message), view);
            let mut checked = message.clone();
            let unchanged = rule_check::canonical(&mut checked).is_ok() && checked == message;
            prop_assert_eq!(view.is_canonical(), unchanged);
        }

        #[test]
        fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(view) = RuleView::decode(&bytes) {
                let message = v1::Rule::decode(&bytes[..]).unwrap();
                prop_assert_eq!(RuleView::of(&message), view);
            }
        }
    }

    #[test]
    fn what_is_wrong_or_spelled_differently_is_not_canonical() {
        let good = crate::rule_json::parse_rule(r#"{"id":"a","port":"p","action":"drop"}"#).unwrap();
        assert!(RuleView::of(&good).is_canonical());
        let not = |change: fn(&mut v1::Rule)| {
            let mut rule = good.clone();
            change(&mut rule);
            assert!(!RuleView::of(&rule).is_canonical(), "{rule:?}");
        };
        not(|rule| rule.id.clear());
        not(|rule| rule.port.clear());
        not(|rule| rule.action = None);
        not(|rule| rule.r#match = None);
        not(|rule| rule.r#match.get_or_insert_default().dst = "10.0.0.1".into());
        not(|rule| rule.r#match.get_or_insert_default().dst = "10.0.0.1/8".into());
        not(|rule| rule.r#match.get_or_insert_default().dst_mac = "02:00:00:00:00:AA".into());
        not(|rule| rule.ingress = Some(v1::Ingress::default()));
    }
}
