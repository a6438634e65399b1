//! The short way from the JSON form: a usual rule, read in one pass without a tree and without copies.
//!
//! Usual is: no escapes, every text in canonical spelling, `drop` and `trap` written as strings. Whatever else the text
//! holds (or whatever is wrong with it) is left to the long way in [`super::read`], which accepts the same language.

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use std::fmt;

use crate::rule_view::{ActionView, ForwardView, IngressView, MatchView, RuleView, TunnelView};
use crate::validate::{self, ValueError};

/// Reads a usual rule.
pub(super) fn read(text: &str) -> Option<RuleView<'_>> {
    let rule: Rule<'_> = serde_json::from_str(text).ok()?;
    let view = rule.view()?;
    view.is_canonical().then_some(view)
}

/// A string that has no escapes and is not empty.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<&'de str, D::Error> {
    match <&str>::deserialize(from)? {
        "" => Err(D::Error::invalid_value(Unexpected::Str(""), &"a text")),
        text => Ok(text),
    }
}

/// A number that is there: `null` is none.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    u32::deserialize(from).map(Some)
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
    u64::deserialize(from).map(|_| ())
}

/// A number, or a name of one.
enum Named<'a> {
    Number(u32),
    Name(&'a str),
}

struct NamedVisitor;

impl<'de> Visitor<'de> for NamedVisitor {
    type Value = Option<Named<'de>>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a whole number or a string")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        let number =
            u32::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))?;
        Ok(Some(Named::Number(number)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Named::Name(value)))
    }
}

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Named<'de>>, D::Error> {
    from.deserialize_any(NamedVisitor)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule<'a> {
    #[serde(borrow, deserialize_with = "text")]
    id: &'a str,
    #[serde(borrow, default, deserialize_with = "text")]
    port: &'a str,
    #[serde(borrow, default, deserialize_with = "present")]
    ingress: Option<Ingress<'a>>,
    #[serde(default)]
    priority: u32,
    #[serde(borrow, default)]
    r#match: Match<'a>,
    #[serde(borrow)]
    action: Action<'a>,
    #[serde(default, deserialize_with = "count", rename = "packets")]
    _packets: (),
    #[serde(default, deserialize_with = "count", rename = "bytes")]
    _bytes: (),
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Ingress<'de>>, D::Error> {
    Ingress::deserialize(from).map(Some)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Ingress<'a> {
    #[serde(borrow)]
    tunnel: &'a str,
    vni: u32,
    #[serde(borrow, default, deserialize_with = "text")]
    local: &'a str,
    #[serde(borrow, default, deserialize_with = "text")]
    remote: &'a str,
    #[serde(borrow, default, deserialize_with = "text")]
    uplink: &'a str,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Match<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    dst_mac: &'a str,
    #[serde(borrow, default, deserialize_with = "text")]
    src_mac: &'a str,
    #[serde(borrow, default, deserialize_with = "named")]
    ethertype: Option<Named<'a>>,
    #[serde(default, deserialize_with = "number")]
    vlan: Option<u32>,
    #[serde(borrow, default, deserialize_with = "text")]
    src: &'a str,
    #[serde(borrow, default, deserialize_with = "text")]
    dst: &'a str,
    #[serde(borrow, default, deserialize_with = "named")]
    proto: Option<Named<'a>>,
    #[serde(borrow, default, deserialize_with = "named")]
    src_port: Option<Named<'a>>,
    #[serde(borrow, default, deserialize_with = "named")]
    dst_port: Option<Named<'a>>,
    #[serde(default, deserialize_with = "number")]
    dscp: Option<u32>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action<'a> {
    #[serde(borrow)]
    Forward(Forward<'a>),
    #[serde(borrow)]
    Deliver(Deliver<'a>),
    Trap,
    Drop,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward<'a> {
    #[serde(borrow)]
    tunnel: &'a str,
    vni: u32,
    #[serde(borrow, deserialize_with = "text")]
    remote: &'a str,
    #[serde(borrow, default, deserialize_with = "text")]
    source: &'a str,
    #[serde(default, deserialize_with = "number")]
    ttl: Option<u32>,
    #[serde(default, deserialize_with = "number")]
    dscp: Option<u32>,
    #[serde(borrow, default, deserialize_with = "text")]
    inner_dst_mac: &'a str,
    #[serde(default, deserialize_with = "number")]
    push_vlan: Option<u32>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Deliver<'a> {
    #[serde(borrow, deserialize_with = "text")]
    port: &'a str,
    #[serde(default)]
    pop_vlan: bool,
    #[serde(default, deserialize_with = "number")]
    push_vlan: Option<u32>,
}

fn tunnel(name: &str, vni: u32) -> Option<TunnelView> {
    (name == "vxlan").then_some(TunnelView::Vxlan(vni))
}

/// The number of a name; `Some(None)` where there is neither.
fn value<T: Into<u32>>(
    named: Option<&Named<'_>>,
    read: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Option<Option<u32>> {
    match named {
        None => Some(None),
        Some(Named::Number(number)) => Some(Some(*number)),
        Some(Named::Name(name)) => read(name).ok().map(|number| Some(number.into())),
    }
}

fn range(named: Option<&Named<'_>>) -> Option<Option<(u32, u32)>> {
    match named {
        None => Some(None),
        Some(Named::Number(number)) => Some(Some((*number, *number))),
        Some(Named::Name(name)) => {
            let (first, last) = validate::l4_range_text(name).ok()?;
            Some(Some((first.into(), last.into())))
        }
    }
}

impl<'a> Rule<'a> {
    fn view(&self) -> Option<RuleView<'a>> {
        let ingress = match &self.ingress {
            Some(ingress) => Some(IngressView {
                tunnel: Some(tunnel(ingress.tunnel, ingress.vni)?),
                local: ingress.local,
                remote: ingress.remote,
                uplink: ingress.uplink,
            }),
            None => None,
        };
        Some(RuleView {
            id: self.id,
            port: self.port,
            ingress,
            priority: self.priority,
            matches: Some(self.r#match.view()?),
            action: Some(self.action.view()?),
        })
    }
}

impl<'a> Match<'a> {
    fn view(&self) -> Option<MatchView<'a>> {
        Some(MatchView {
            dst_mac: self.dst_mac,
            src_mac: self.src_mac,
            ethertype: value(self.ethertype.as_ref(), validate::ethertype_text)?,
            vlan: self.vlan,
            src: self.src,
            dst: self.dst,
            proto: value(self.proto.as_ref(), validate::protocol_text)?,
            src_port: range(self.src_port.as_ref())?,
            dst_port: range(self.dst_port.as_ref())?,
            dscp: self.dscp,
        })
    }
}

impl<'a> Action<'a> {
    fn view(&self) -> Option<ActionView<'a>> {
        Some(match self {
            Action::Trap => ActionView::Trap,
            Action::Drop => ActionView::Drop,
            Action::Deliver(deliver) => ActionView::Deliver {
                port: deliver.port,
                pop_vlan: deliver.pop_vlan,
                push_vlan: deliver.push_vlan,
            },
            Action::Forward(forward) => ActionView::Forward(ForwardView {
                tunnel: Some(tunnel(forward.tunnel, forward.vni)?),
                remote: forward.remote,
                source: forward.source,
                ttl: forward.ttl,
                dscp: forward.dscp,
                inner_dst_mac: forward.inner_dst_mac,
                push_vlan: forward.push_vlan,
            }),
        })
    }
}
