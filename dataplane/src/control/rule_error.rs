//! Why a rule cannot be accepted by this host, however sound it is by itself.

use crate::counters::MAX_RULES;

/// Why rules cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A port that is not there.
    #[error("rule {id:?}: {field}: there is no port {port:?} (see: forebay port list)")]
    NoPort {
        /// The rule.
        id: String,
        /// The field.
        field: &'static str,
        /// The port.
        port: String,
    },
    /// A port of the wrong kind.
    #[error("rule {id:?}: {field}: port {port:?} is {is} (name {wanted})")]
    WrongKind {
        /// The rule.
        id: String,
        /// The field.
        field: &'static str,
        /// The port.
        port: String,
        /// What it is.
        is: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// No uplink leads there.
    #[error("rule {id:?}: action.forward.remote: no uplink reaches {remote} ({why})")]
    NoRoute {
        /// The rule.
        id: String,
        /// The remote.
        remote: String,
        /// What is missing, and the remedy.
        why: &'static str,
    },
    /// An ingress rule that forwards.
    #[error("rule {id:?}: action.forward: an ingress rule cannot forward (use deliver, trap or drop)")]
    IngressForward {
        /// The rule.
        id: String,
    },
    /// A match that no packet meets.
    #[error("rule {id:?}: match: {why}: no packet can match (leave one out)")]
    Never {
        /// The rule.
        id: String,
        /// What contradicts what.
        why: &'static str,
    },
    /// Too many rules.
    #[error("{count} rules are more than the {MAX_RULES} that a host holds (delete some first)")]
    TooMany {
        /// How many there would be.
        count: usize,
    },
    /// Rules that are too long together.
    #[error("the rules of one transaction are longer than 4 GB together (load them in several)")]
    TooLong,
    /// Too many next hops.
    #[error("rule {id:?}: {source}")]
    NextHops {
        /// The rule.
        id: String,
        /// What is full.
        source: super::resolver::NoSlot,
    },
    /// No such rule.
    #[error("rule {id:?}: there is no such rule (see: forebay rule list)")]
    NoRule {
        /// The id.
        id: String,
    },
}
