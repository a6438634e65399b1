//! What is wrong with a rule or a port that somebody asked for: which object, which field, which value, what to do.

use std::fmt;
use std::net::IpAddr;

use crate::validate::{ValueError, shown};

/// A rule or port that cannot be accepted. Its text is one line:
/// `rule "e2": match.dst_port: "8999-8000" is not a port or a range (write 443 or "8000-8999", low end first)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// `rule` or `port`.
    pub object: &'static str,
    /// The rule's id or the port's name, where it could be read.
    pub name: Option<String>,
    /// The path of the field from the object's top, joined by dots; empty for the object itself.
    pub field: String,
    /// What is wrong there.
    pub problem: Box<Problem>,
}

impl std::error::Error for SpecError {}

impl fmt::Display for SpecError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.object)?;
        if let Some(name) = &self.name {
            write!(out, " {}", shown(name))?;
        }
        if !self.field.is_empty() {
            write!(out, ": {}", self.field)?;
        }
        write!(out, ": {}", self.problem)
    }
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each variant is documented by its message.
pub enum Problem {
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error("not JSON: {detail} at {position} (write one JSON object)")]
    Json { detail: String, position: String },
    #[error("{bytes} bytes long, longer than {limit} (split it into several rules)")]
    TooLong { bytes: usize, limit: usize },
    #[error("{value} is not {wanted}")]
    Type { value: String, wanted: &'static str },
    #[error("\"\" is empty (leave the key out where the field shall not hold)")]
    Empty,
    #[error("unknown key {key} (allowed: {allowed})")]
    UnknownKey { key: String, allowed: String },
    #[error("key {key} stands there twice (keep one)")]
    DuplicateKey { key: String },
    #[error("{key} is missing ({remedy})")]
    Missing { key: &'static str, remedy: &'static str },
    #[error(
        "port and ingress are both there (keep port for what a VF sends, ingress for what a tunnel brings)"
    )]
    PortAndIngress,
    #[error(
        "{value} is not an action (write \"drop\", \"trap\", {{\"forward\":{{...}}}} or {{\"deliver\":{{...}}}})"
    )]
    Action { value: String },
    #[error("tunnel {value} is not supported by this version (supported: {supported})")]
    UnsupportedTunnel { value: String, supported: &'static str },
    #[error("{value} is not a tunnel (write {supported})")]
    Tunnel { value: String, supported: &'static str },
    #[error(
        "{value} and {other_field} {other} are of different IP versions (write both as IPv4 or both as IPv6)"
    )]
    Family { value: String, other_field: &'static str, other: String },
    #[error("given, but the port is of kind {kind} (only a port of kind {wanted} takes it: leave it out)")]
    WrongKind { kind: &'static str, wanted: &'static str },
    #[error("more than one {family} gateway (keep one)")]
    TwoGateways { family: &'static str },
    #[error("{address} stands there twice (keep one MAC address for it)")]
    TwoNeighbors { address: IpAddr },
    #[error("{count} neighbours are more than {limit} (leave out those that answer ARP and ND)")]
    TooManyNeighbors { count: usize, limit: usize },
}

/// A problem on its way up: the path grows at its front.
#[derive(Debug)]
pub(crate) struct FieldError {
    path: String,
    problem: Problem,
}

impl<P: Into<Problem>> From<P> for FieldError {
    fn from(problem: P) -> Self {
        Self { path: String::new(), problem: problem.into() }
    }
}

impl FieldError {
    pub(crate) fn named(self, object: &'static str, name: Option<&str>) -> SpecError {
        SpecError {
            object,
            name: name.filter(|name| !name.is_empty()).map(str::to_owned),
            field: self.path,
            problem: Box::new(self.problem),
        }
    }
}

/// Says in which field a result went wrong.
pub(crate) trait At<T> {
    fn at(self, field: &str) -> Result<T, FieldError>;
}

impl<T, E: Into<FieldError>> At<T> for Result<T, E> {
    fn at(self, field: &str) -> Result<T, FieldError> {
        self.map_err(|error| {
            let mut error = error.into();
            let path = match error.path.as_str() {
                "" => field.to_owned(),
                index if index.starts_with('[') => format!("{field}{index}"),
                rest => format!("{field}.{rest}"),
            };
            error.path = path;
            error
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_object_field_value_and_remedy() {
        let error =
            Err::<(), _>(ValueError::Vni { value: "16777216".into() }).at("vni").at("forward").unwrap_err();
        assert_eq!(
            error.named("rule", Some("e1")).to_string(),
            "rule \"e1\": forward.vni: 16777216 is not a VXLAN network identifier (write a number from 0 to 16777215)"
        );
    }

    #[test]
    fn an_object_without_a_name_has_none() {
        let error = FieldError::from(Problem::PortAndIngress).named("rule", Some(""));
        assert!(error.to_string().starts_with("rule: port and ingress are both there"), "{error}");
    }
}
