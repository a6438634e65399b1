//! From a view to the values that its texts and numbers stand for: checked and parsed in one pass.
//!
//! The check is that of [`crate::rule_check`], and only the canonical spelling passes it: whoever has the values of a view
//! needs to check nothing again, and to parse nothing a second time.

use ipnet::IpNet;
use std::net::IpAddr;

use super::{ActionView, ForwardView, IngressView, MatchView, RuleView, TunnelView};
use crate::mac::MacAddr;
use crate::rule_check::Spelling;
use crate::validate;

/// What a canonical rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleValues<'a> {
    /// The user's name for it.
    pub id: &'a str,
    /// Which packets it is asked about.
    pub scope: ScopeValues<'a>,
    /// The highest wins.
    pub priority: u32,
    /// What must hold.
    pub matches: MatchValues,
    /// What is done.
    pub action: ActionValues<'a>,
}

/// Which packets a rule is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeValues<'a> {
    /// What the VF of this name sends.
    Egress(&'a str),
    /// What a tunnel brings.
    Ingress(IngressValues<'a>),
}

/// Which tunnel packets an ingress rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressValues<'a> {
    /// Type and opaque field.
    pub tunnel: TunnelView,
    /// Outer destination.
    pub local: Option<IpAddr>,
    /// Outer source.
    pub remote: Option<IpNet>,
    /// Name of the uplink.
    pub uplink: Option<&'a str>,
}

/// What must hold; `None` holds always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the proto.
pub struct MatchValues {
    pub dst_mac: Option<MacAddr>,
    pub src_mac: Option<MacAddr>,
    pub ethertype: Option<u16>,
    pub vlan: Option<u16>,
    pub src: Option<IpNet>,
    pub dst: Option<IpNet>,
    pub proto: Option<u8>,
    pub src_port: Option<(u16, u16)>,
    pub dst_port: Option<(u16, u16)>,
    pub dscp: Option<u8>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionValues<'a> {
    /// Encapsulate.
    Forward(ForwardValues),
    /// Hand to a local port.
    Deliver {
        /// Its name.
        port: &'a str,
        /// Remove the outermost tag.
        pop_vlan: bool,
        /// Push a tag.
        push_vlan: Option<u16>,
    },
    /// Hand to the trusted software path.
    Trap,
    /// Drop.
    Drop,
}

/// How to encapsulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the proto.
pub struct ForwardValues {
    pub tunnel: TunnelView,
    pub remote: IpAddr,
    pub source: Option<IpAddr>,
    pub ttl: Option<u8>,
    pub dscp: Option<u8>,
    pub inner_dst_mac: Option<MacAddr>,
    pub push_vlan: Option<u16>,
}

/// A text that is absent, or whose value is good and spelled in the one way.
fn spelled<T: Spelling, E>(text: &str, check: impl FnOnce(&str) -> Result<T, E>) -> Option<Option<T>> {
    if text.is_empty() {
        return Some(None);
    }
    let value = check(text).ok()?;
    value.is_spelled(text).then_some(Some(value))
}

/// A number that is absent, or good.
fn number<T, E>(value: Option<u32>, check: impl FnOnce(u32) -> Result<T, E>) -> Option<Option<T>> {
    value.map(check).transpose().ok()
}

fn range(range: Option<(u32, u32)>) -> Option<Option<(u16, u16)>> {
    range.map(|(first, last)| validate::l4_range(first, last)).transpose().ok()
}

/// Whether two values that may be absent are of one IP version.
fn meet(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one.is_ipv4() == other.is_ipv4())
}

fn network(net: Option<IpNet>) -> Option<IpAddr> {
    net.map(|net| net.addr())
}

impl<'a> RuleView<'a> {
    /// The values of a rule; `None` unless every field is good and in canonical spelling: unless
    /// [`crate::rule_check::canonical`] would accept the rule and leave it as it is.
    pub fn values(&self) -> Option<RuleValues<'a>> {
        let scope = match (self.port, &self.ingress) {
            ("", Some(ingress)) => ScopeValues::Ingress(ingress.values()?),
            ("", None) | (_, Some(_)) => return None,
            (port, None) => ScopeValues::Egress(validate::port_name(port).ok().map(|()| port)?),
        };
        validate::id(self.id).ok()?;
        let (matches, action) = (self.matches?.values()?, self.action?.values()?);
        Some(RuleValues { id: self.id, scope, priority: self.priority, matches, action })
    }
}

impl TunnelView {
    fn good(self) -> Option<TunnelView> {
        let TunnelView::Vxlan(vni) = self;
        validate::vni(vni).ok().map(TunnelView::Vxlan)
    }
}

impl<'a> IngressView<'a> {
    fn values(&self) -> Option<IngressValues<'a>> {
        let local = spelled(self.local, validate::host_address)?;
        let remote = spelled(self.remote, validate::prefix)?;
        let uplink = match self.uplink {
            "" => None,
            name => Some(validate::port_name(name).ok().map(|()| name)?),
        };
        let tunnel = self.tunnel?.good()?;
        meet(local, network(remote)).then_some(IngressValues { tunnel, local, remote, uplink })
    }
}

impl MatchView<'_> {
    fn values(&self) -> Option<MatchValues> {
        let values = MatchValues {
            dst_mac: spelled(self.dst_mac, validate::mac)?,
            src_mac: spelled(self.src_mac, validate::mac)?,
            ethertype: number(self.ethertype, validate::ethertype)?,
            vlan: number(self.vlan, validate::match_vlan)?,
            src: spelled(self.src, validate::prefix)?,
            dst: spelled(self.dst, validate::prefix)?,
            proto: number(self.proto, validate::protocol)?,
            src_port: range(self.src_port)?,
            dst_port: range(self.dst_port)?,
            dscp: number(self.dscp, validate::dscp)?,
        };
        meet(network(values.src), network(values.dst)).then_some(values)
    }
}

impl<'a> ActionView<'a> {
    fn values(&self) -> Option<ActionValues<'a>> {
        Some(match self {
            ActionView::Trap => ActionValues::Trap,
            ActionView::Drop => ActionValues::Drop,
            ActionView::Deliver { port, pop_vlan, push_vlan } => {
                validate::port_name(port).ok()?;
                let push_vlan = number(*push_vlan, validate::vlan)?;
                ActionValues::Deliver { port, pop_vlan: *pop_vlan, push_vlan }
            }
            ActionView::Forward(forward) => ActionValues::Forward(forward.values()?),
        })
    }
}

impl ForwardView<'_> {
    fn values(&self) -> Option<ForwardValues> {
        let values = ForwardValues {
            tunnel: self.tunnel?.good()?,
            remote: spelled(self.remote, validate::host_address)??,
            source: spelled(self.source, validate::host_address)?,
            ttl: number(self.ttl, validate::ttl)?,
            dscp: number(self.dscp, validate::dscp)?,
            inner_dst_mac: spelled(self.inner_dst_mac, validate::mac)?,
            push_vlan: number(self.push_vlan, validate::vlan)?,
        };
        meet(values.source, Some(values.remote)).then_some(values)
    }
}
