//! Whether a rule fits the host: everything that can be wrong with it is found here, before anything is changed.

use super::book::PortKind;
use super::names::{NameId, Names};
use super::record::Owner;
use super::routes::Routes;
use super::rule_error::RuleError;
use crate::rules::rule::{Rule, RuleAction, Scope};

/// What a rule refers to, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct References {
    /// Whose rule it is.
    pub owner: Owner,
    /// The port that it delivers to.
    pub deliver: Option<NameId>,
}

/// Checks a rule against the ports and ways of the host.
///
/// # Errors
/// What does not fit.
pub fn check(rule: &Rule, names: &Names, routes: &Routes) -> Result<References, RuleError> {
    let id = || rule.id.to_string();
    let owner = match &rule.scope {
        Scope::Egress(port) => Owner::Egress(check_port(rule, "port", port, PortKind::Vf, names)?),
        Scope::Ingress(ingress) => {
            let uplink = match &ingress.uplink {
                Some(uplink) => Some(check_port(rule, "ingress.uplink", uplink, PortKind::Uplink, names)?),
                None => None,
            };
            if matches!(rule.action, RuleAction::Forward(_)) {
                return Err(RuleError::IngressForward { id: id() });
            }
            Owner::Ingress(uplink)
        }
    };
    check_match(rule)?;
    let deliver = match &rule.action {
        RuleAction::Deliver { port, .. } => {
            Some(check_port(rule, "action.deliver.port", port, PortKind::Vf, names)?)
        }
        RuleAction::Forward(forward) => {
            let no_route = |why| RuleError::NoRoute { id: id(), remote: forward.remote.to_string(), why };
            routes.find(forward.remote).map_err(no_route)?;
            None
        }
        RuleAction::Trap | RuleAction::Drop => None,
    };
    Ok(References { owner, deliver })
}

/// The numbers of what a rule refers to, whether it is there or not: a rule of the state file outlives its ports.
pub fn refer(rule: &Rule, names: &mut Names) -> References {
    let owner = match &rule.scope {
        Scope::Egress(port) => Owner::Egress(names.number(port)),
        Scope::Ingress(ingress) => Owner::Ingress(ingress.uplink.as_deref().map(|name| names.number(name))),
    };
    let deliver = match &rule.action {
        RuleAction::Deliver { port, .. } => Some(names.number(port)),
        RuleAction::Forward(_) | RuleAction::Trap | RuleAction::Drop => None,
    };
    References { owner, deliver }
}

fn check_port(
    rule: &Rule,
    field: &'static str,
    port: &str,
    wanted: PortKind,
    names: &Names,
) -> Result<NameId, RuleError> {
    let word = |kind| match kind {
        PortKind::Vf => "a vf",
        PortKind::Uplink => "an uplink",
    };
    let missing = || RuleError::NoPort { id: rule.id.to_string(), field, port: port.to_owned() };
    let number = names.find(port).ok_or_else(missing)?;
    match names.port(number) {
        Some((_, kind)) if kind == wanted => Ok(number),
        Some((_, kind)) => Err(RuleError::WrongKind {
            id: rule.id.to_string(),
            field,
            port: port.to_owned(),
            is: word(kind),
            wanted: word(wanted),
        }),
        None => Err(missing()),
    }
}

/// Finds matches that contradict themselves.
fn check_match(rule: &Rule) -> Result<(), RuleError> {
    use crate::wire::ethertype::{IPV4, IPV6};
    let matches = &rule.matches;
    let family = matches.dst.or(matches.src).map(|net| if net.addr().is_ipv4() { IPV4 } else { IPV6 });
    let needs_ip = matches.proto.is_some()
        || matches.dscp.is_some()
        || matches.src_port.is_some()
        || matches.dst_port.is_some();
    let why = match (matches.ethertype, family) {
        (Some(ethertype), Some(family)) if ethertype != family => {
            "ethertype and the prefixes' IP version differ"
        }
        (Some(ethertype), None) if needs_ip && ethertype != IPV4 && ethertype != IPV6 => {
            "proto, ports and dscp belong to IP, which ethertype is not"
        }
        _ => return Ok(()),
    };
    Err(RuleError::Never { id: rule.id.to_string(), why })
}
