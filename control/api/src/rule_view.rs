//! A rule read in place: the fields of an encoded or spelled rule, borrowed from where they stand.
//!
//! A million rules cross this interface at a time, and taking each apart into strings of its own costs several times what
//! checking it does. A view is a short cut and never a second opinion: whatever is unusual (an unknown encoding, a value
//! that is wrong or in another spelling) makes it step back, and the long way by [`crate::v1::Rule`] and
//! [`crate::rule_check`] decides and words the error. The invariant: a view that has [`RuleView::values`] means and
//! encodes the same as the message would.

mod encode;
mod reader;
mod values;

pub use values::{ActionValues, ForwardValues, IngressValues, MatchValues, RuleValues, ScopeValues};

use crate::v1;

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

    /// Whether every field is good and in canonical spelling.
    pub fn is_canonical(&self) -> bool {
        self.values().is_some()
    }
}

impl TunnelView {
    fn of(tunnel: &v1::Tunnel) -> Option<TunnelView> {
        tunnel.kind.as_ref().map(|v1::tunnel::Kind::Vxlan(vxlan)| TunnelView::Vxlan(vxlan.vni))
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
        fn values_are_those_of_the_texts_and_numbers(rule in rule()) {
            fn text<T: ToString>(value: Option<T>) -> String {
                value.map(|value| value.to_string()).unwrap_or_default()
            }
            let view = RuleView::of(&rule);
            let values = view.values().unwrap();
            prop_assert_eq!((values.id, values.priority), (view.id, view.priority));
            match (values.scope, view.ingress) {
                (ScopeValues::Egress(port), None) => prop_assert_eq!(port, view.port),
                (ScopeValues::Ingress(values), Some(view)) => {
                    let texts = (text(values.local), text(values.remote), text(values.uplink));
                    prop_assert_eq!(texts, (view.local.into(), view.remote.into(), view.uplink.into()));
                    prop_assert_eq!(Some(values.tunnel), view.tunnel);
                }
                other => prop_assert!(false, "{:?}", other),
            }
            let (values, view_match) = (values.matches, view.matches.unwrap());
            let range = |range: Option<(u16, u16)>| range.map(|(a, b)| (u32::from(a), u32::from(b)));
            let again = MatchView {
                dst_mac: &text(values.dst_mac),
                src_mac: &text(values.src_mac),
                ethertype: values.ethertype.map(u32::from),
                vlan: values.vlan.map(u32::from),
                src: &text(values.src),
                dst: &text(values.dst),
                proto: values.proto.map(u32::from),
                src_port: range(values.src_port),
                dst_port: range(values.dst_port),
                dscp: values.dscp.map(u32::from),
            };
            prop_assert_eq!(again, view_match);
            let again = match view.values().unwrap().action {
                ActionValues::Trap => ActionView::Trap,
                ActionValues::Drop => ActionView::Drop,
                ActionValues::Deliver { port, pop_vlan, push_vlan } => {
                    ActionView::Deliver { port, pop_vlan, push_vlan: push_vlan.map(u32::from) }
                }
                ActionValues::Forward(forward) => ActionView::Forward(ForwardView {
                    tunnel: Some(forward.tunnel),
                    remote: &forward.remote.to_string(),
                    source: &text(forward.source),
                    ttl: forward.ttl.map(u32::from),
                    dscp: forward.dscp.map(u32::from),
                    inner_dst_mac: &text(forward.inner_dst_mac),
                    push_vlan: forward.push_vlan.map(u32::from),
                }),
            };
            prop_assert_eq!(Some(again), view.action);
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
