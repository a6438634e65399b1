//! From the JSON form to the proto form. One pass over the keys of each object; the values' checks are those of
//! [`crate::validate`].

use crate::json::{Entries, Node, find, find_text, parse, read_object};
use crate::rule_check;
use crate::rule_view::RuleView;
use crate::spec_error::{At, FieldError, Problem, SpecError};
use crate::v1;
use crate::validate::{self, ValueError, shown};

/// The longest rule line in bytes: some hundred times the usual rule, so that an opaque template or Geneve options
/// fit, and a file that is no rule file is refused before it is held in memory.
pub const MAX_RULE_BYTES: usize = 64 << 10;

/// The tunnels that this version can build.
const SUPPORTED_TUNNELS: &str = "vxlan";

/// The tunnels that have a name in the rule language, but are not in this version.
const OTHER_TUNNELS: [&str; 9] =
    ["vxlan-gpe", "geneve", "gre", "nvgre", "ipip", "gue", "mpls-udp", "stt", "opaque"];

const RULE_KEYS: &[&str] = &["id", "port", "ingress", "priority", "match", "action", "packets", "bytes"];
const INGRESS_KEYS: &[&str] = &["tunnel", "vni", "local", "remote", "uplink"];
const MATCH_KEYS: &[&str] =
    &["dst_mac", "src_mac", "ethertype", "vlan", "src", "dst", "proto", "src_port", "dst_port", "dscp"];
const FORWARD_KEYS: &[&str] =
    &["tunnel", "vni", "remote", "source", "ttl", "dscp", "inner_dst_mac", "push_vlan"];
const DELIVER_KEYS: &[&str] = &["port", "pop_vlan", "push_vlan"];

/// Reads one rule from its JSON form, checked and in canonical spelling ([`rule_check::canonical`]). The keys
/// `packets` and `bytes` are accepted and ignored.
///
/// # Errors
/// The text is longer than [`MAX_RULE_BYTES`], or not a JSON object, or not a rule: the error names the rule's id,
/// the field, the value and the remedy.
pub fn parse_rule(text: &str) -> Result<v1::Rule, SpecError> {
    if text.len() > MAX_RULE_BYTES {
        let error = FieldError::from(Problem::TooLong { bytes: text.len(), limit: MAX_RULE_BYTES });
        return Err(error.named("rule", None));
    }
    let entries = object(text).map_err(|error| error.named("rule", None))?;
    let mut rule = read_rule(entries).map_err(|error| {
        // The entries are consumed. Only a wrong rule is parsed twice, to name it.
        let again = object(text).unwrap_or_default();
        error.named("rule", find_text(&again, "id"))
    })?;
    rule_check::canonical(&mut rule)?;
    Ok(rule)
}

/// Reads one rule as [`parse_rule`] does, and appends it to `out` as an encoded message.
///
/// # Errors
/// As [`parse_rule`]; nothing is appended then.
pub fn encode_rule(text: &str, out: &mut Vec<u8>) -> Result<(), SpecError> {
    if text.len() <= MAX_RULE_BYTES
        && let Some(view) = super::fast::read(text)
    {
        view.encode(out);
        return Ok(());
    }
    RuleView::of(&parse_rule(text)?).encode(out);
    Ok(())
}

fn object(text: &str) -> Result<Entries<'_>, FieldError> {
    Ok(parse(text)?.object()?)
}

fn read_rule(entries: Entries<'_>) -> Result<v1::Rule, FieldError> {
    let mut rule = v1::Rule { r#match: Some(v1::Match::default()), ..Default::default() };
    read_object(entries, RULE_KEYS, |key, node| {
        match key {
            "id" => rule.id = node.text().at(key)?,
            "port" => rule.port = node.text().at(key)?,
            "ingress" => rule.ingress = Some(read_ingress(node).at(key)?),
            "priority" => rule.priority = number(&node, validate::priority).at(key)?,
            "match" => rule.r#match = Some(read_match(node).at(key)?),
            "action" => rule.action = Some(v1::Action { kind: Some(read_action(node).at(key)?) }),
            "packets" | "bytes" => {
                node.number().at(key)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(rule)
}

fn read_ingress(node: Node<'_>) -> Result<v1::Ingress, FieldError> {
    let entries = node.object()?;
    let tunnel = read_tunnel(&entries)?;
    let mut ingress = v1::Ingress { tunnel: Some(tunnel), ..Default::default() };
    read_object(entries, INGRESS_KEYS, |key, node| {
        match key {
            "tunnel" | "vni" => {}
            "local" => ingress.local = node.text().at(key)?,
            "remote" => ingress.remote = node.text().at(key)?,
            "uplink" => ingress.uplink = node.text().at(key)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(ingress)
}

/// The tunnel and its opaque field. Before the other keys: which of them are allowed depends on it.
fn read_tunnel(entries: &Entries<'_>) -> Result<v1::Tunnel, FieldError> {
    let supported = SUPPORTED_TUNNELS;
    match find(entries, "tunnel") {
        None => {
            return Err(Problem::Missing { key: "tunnel", remedy: "give the tunnel's type: vxlan" }.into());
        }
        Some(Node::Text(name)) if name == "vxlan" => {}
        Some(Node::Text(name)) if OTHER_TUNNELS.contains(&name.as_ref()) => {
            return Err(Problem::UnsupportedTunnel { value: shown(name), supported }.into());
        }
        Some(node) => return Err(Problem::Tunnel { value: node.shown(), supported }).at("tunnel"),
    }
    let vni = find(entries, "vni")
        .ok_or(Problem::Missing { key: "vni", remedy: "give the VXLAN network identifier, 0 to 16777215" })?;
    let vni = number(vni, validate::vni).at("vni")?;
    Ok(v1::Tunnel { kind: Some(v1::tunnel::Kind::Vxlan(v1::Vxlan { vni })) })
}

fn read_match(node: Node<'_>) -> Result<v1::Match, FieldError> {
    let mut fields = v1::Match::default();
    read_object(node.object()?, MATCH_KEYS, |key, node| {
        match key {
            "dst_mac" => fields.dst_mac = node.text().at(key)?,
            "src_mac" => fields.src_mac = node.text().at(key)?,
            "ethertype" => {
                let value = name_or_number(&node, validate::ethertype_text, validate::ethertype).at(key)?;
                fields.ethertype = Some(value.into());
            }
            "vlan" => fields.vlan = Some(number(&node, validate::match_vlan).at(key)?.into()),
            "src" => fields.src = node.text().at(key)?,
            "dst" => fields.dst = node.text().at(key)?,
            "proto" => {
                let value = name_or_number(&node, validate::protocol_text, validate::protocol).at(key)?;
                fields.proto = Some(value.into());
            }
            "src_port" => fields.src_port = Some(read_range(&node).at(key)?),
            "dst_port" => fields.dst_port = Some(read_range(&node).at(key)?),
            "dscp" => fields.dscp = Some(number(&node, validate::dscp).at(key)?.into()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(fields)
}

fn read_range(node: &Node<'_>) -> Result<v1::PortRange, FieldError> {
    let single = |number: u64| validate::l4_port(number).map(|port| (port, port));
    let (first, last) = name_or_number(node, validate::l4_range_text, single)?;
    Ok(v1::PortRange { first: first.into(), last: last.into() })
}

fn read_action(node: Node<'_>) -> Result<v1::action::Kind, FieldError> {
    let mut entries = match node {
        Node::Text(name) => return plain_action(&name).ok_or_else(|| unknown_action(shown(&name))),
        Node::Object(entries) => entries,
        other => return Err(unknown_action(other.shown())),
    };
    let (Some((name, fields)), true) = (entries.pop(), entries.is_empty()) else {
        return Err(unknown_action("an object without exactly one key".to_owned()));
    };
    match name.0.as_ref() {
        "forward" => Ok(v1::action::Kind::Forward(read_forward(fields).at("forward")?)),
        "deliver" => Ok(v1::action::Kind::Deliver(read_deliver(fields).at("deliver")?)),
        other => {
            let action = plain_action(other).ok_or_else(|| unknown_action(shown(other)))?;
            fields
                .object()
                .map_err(FieldError::from)
                .and_then(|entries| read_object(entries, &["none"], |_, _| Ok(false)))
                .at(other)?;
            Ok(action)
        }
    }
}

/// The actions that have no fields.
fn plain_action(name: &str) -> Option<v1::action::Kind> {
    match name {
        "drop" => Some(v1::action::Kind::Drop(v1::Drop {})),
        "trap" => Some(v1::action::Kind::Trap(v1::Trap {})),
        _ => None,
    }
}

fn unknown_action(value: String) -> FieldError {
    Problem::Action { value }.into()
}

fn read_forward(node: Node<'_>) -> Result<v1::Forward, FieldError> {
    let entries = node.object()?;
    let tunnel = read_tunnel(&entries)?;
    let mut forward = v1::Forward { tunnel: Some(tunnel), ..Default::default() };
    read_object(entries, FORWARD_KEYS, |key, node| {
        match key {
            "tunnel" | "vni" => {}
            "remote" => forward.remote = node.text().at(key)?,
            "source" => forward.source = node.text().at(key)?,
            "ttl" => forward.ttl = Some(number(&node, validate::ttl).at(key)?.into()),
            "dscp" => forward.dscp = Some(number(&node, validate::dscp).at(key)?.into()),
            "inner_dst_mac" => forward.inner_dst_mac = node.text().at(key)?,
            "push_vlan" => forward.push_vlan = Some(number(&node, validate::vlan).at(key)?.into()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(forward)
}

fn read_deliver(node: Node<'_>) -> Result<v1::Deliver, FieldError> {
    let mut deliver = v1::Deliver::default();
    read_object(node.object()?, DELIVER_KEYS, |key, node| {
        match key {
            "port" => deliver.port = node.text().at(key)?,
            "pop_vlan" => deliver.pop_vlan = node.boolean().at(key)?,
            "push_vlan" => deliver.push_vlan = Some(number(&node, validate::vlan).at(key)?.into()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(deliver)
}

fn number<T>(node: &Node<'_>, check: impl FnOnce(u64) -> Result<T, ValueError>) -> Result<T, Problem> {
    Ok(check(node.number()?)?)
}

fn name_or_number<T>(
    node: &Node<'_>,
    from_text: impl FnOnce(&str) -> Result<T, ValueError>,
    from_number: impl FnOnce(u64) -> Result<T, ValueError>,
) -> Result<T, Problem> {
    match node {
        Node::Text(text) => Ok(from_text(text)?),
        Node::Number(number) => Ok(from_number(*number)?),
        other => Err(other.wrong("a whole number or a string")),
    }
}
