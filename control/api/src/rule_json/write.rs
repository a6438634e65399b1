//! From the proto form to the JSON form: keys in one fixed order, absent fields left out, names where numbers have
//! them. What this version has no word for (an action or a tunnel of a newer daemon) is left out or `null`, so that a
//! listing shows the rest, and loading it back is an error rather than a silent change.

use serde::Serialize;

use crate::v1;
use crate::validate;

/// A rule as one line of JSON without the line's end.
pub fn rule_to_json(rule: &v1::Rule) -> String {
    to_line(&RuleOut::new(rule, None))
}

/// A rule with its counters as one line of JSON without the line's end; [`super::parse_rule`] takes it back.
pub fn status_to_json(status: &v1::RuleStatus) -> String {
    let unnamed = v1::Rule::default();
    let rule = status.rule.as_ref().unwrap_or(&unnamed);
    to_line(&RuleOut::new(rule, Some((status.packets, status.bytes))))
}

/// Serialising these structs into memory cannot fail: they have string keys and no I/O.
fn to_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Serialize)]
struct RuleOut<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    port: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<IngressOut<'a>>,
    priority: u32,
    r#match: MatchOut<'a>,
    action: Option<ActionOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

impl<'a> RuleOut<'a> {
    fn new(rule: &'a v1::Rule, counters: Option<(u64, u64)>) -> Self {
        Self {
            id: &rule.id,
            port: &rule.port,
            ingress: rule.ingress.as_ref().map(IngressOut::new),
            priority: rule.priority,
            r#match: rule.r#match.as_ref().map(MatchOut::new).unwrap_or_default(),
            action: rule.action.as_ref().and_then(|action| action.kind.as_ref()).map(ActionOut::new),
            packets: counters.map(|(packets, _)| packets),
            bytes: counters.map(|(_, bytes)| bytes),
        }
    }
}

#[derive(Serialize)]
struct TunnelOut {
    tunnel: &'static str,
    vni: u32,
}

impl TunnelOut {
    fn new(tunnel: Option<&v1::Tunnel>) -> Option<Self> {
        match tunnel?.kind.as_ref()? {
            v1::tunnel::Kind::Vxlan(vxlan) => Some(Self { tunnel: "vxlan", vni: vxlan.vni }),
        }
    }
}

#[derive(Serialize)]
struct IngressOut<'a> {
    #[serde(flatten)]
    tunnel: Option<TunnelOut>,
    #[serde(skip_serializing_if = "str::is_empty")]
    local: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    remote: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uplink: &'a str,
}

impl<'a> IngressOut<'a> {
    fn new(ingress: &'a v1::Ingress) -> Self {
        Self {
            tunnel: TunnelOut::new(ingress.tunnel.as_ref()),
            local: &ingress.local,
            remote: &ingress.remote,
            uplink: &ingress.uplink,
        }
    }
}

/// A name where the number has one.
#[derive(Serialize)]
#[serde(untagged)]
enum NameOrNumber {
    Name(&'static str),
    Number(u32),
    Text(String),
}

#[derive(Default, Serialize)]
struct MatchOut<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    dst_mac: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    src_mac: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ethertype: Option<NameOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    src: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    dst: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    proto: Option<NameOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<NameOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<NameOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dscp: Option<u32>,
}

impl<'a> MatchOut<'a> {
    fn new(fields: &'a v1::Match) -> Self {
        let range = |range: &v1::PortRange| match range {
            v1::PortRange { first, last } if first == last => NameOrNumber::Number(*first),
            v1::PortRange { first, last } => NameOrNumber::Text(format!("{first}-{last}")),
        };
        let ethertype = |number| match validate::ethertype_name(number) {
            Some(name) => NameOrNumber::Name(name),
            None => NameOrNumber::Text(format!("{number:#06x}")),
        };
        let proto =
            |number| validate::protocol_name(number).map_or(NameOrNumber::Number(number), NameOrNumber::Name);
        Self {
            dst_mac: &fields.dst_mac,
            src_mac: &fields.src_mac,
            ethertype: fields.ethertype.map(ethertype),
            vlan: fields.vlan,
            src: &fields.src,
            dst: &fields.dst,
            proto: fields.proto.map(proto),
            src_port: fields.src_port.as_ref().map(range),
            dst_port: fields.dst_port.as_ref().map(range),
            dscp: fields.dscp,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum ActionOut<'a> {
    Forward(ForwardOut<'a>),
    Deliver(DeliverOut<'a>),
    Trap,
    Drop,
}

impl<'a> ActionOut<'a> {
    fn new(kind: &'a v1::action::Kind) -> Self {
        match kind {
            v1::action::Kind::Forward(forward) => Self::Forward(ForwardOut {
                tunnel: TunnelOut::new(forward.tunnel.as_ref()),
                remote: &forward.remote,
                source: &forward.source,
                ttl: forward.ttl,
                dscp: forward.dscp,
                inner_dst_mac: &forward.inner_dst_mac,
                push_vlan: forward.push_vlan,
            }),
            v1::action::Kind::Deliver(deliver) => Self::Deliver(DeliverOut {
                port: &deliver.port,
                pop_vlan: deliver.pop_vlan,
                push_vlan: deliver.push_vlan,
            }),
            v1::action::Kind::Trap(_) => Self::Trap,
            v1::action::Kind::Drop(_) => Self::Drop,
        }
    }
}

#[derive(Serialize)]
struct ForwardOut<'a> {
    #[serde(flatten)]
    tunnel: Option<TunnelOut>,
    remote: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dscp: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    inner_dst_mac: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    push_vlan: Option<u32>,
}

#[derive(Serialize)]
struct DeliverOut<'a> {
    port: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pop_vlan: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    push_vlan: Option<u32>,
}
