//! The requests that carry rules by the million, with the rules left encoded.
//!
//! On the wire a nested message and a byte string are the same, so these types speak the proto's `repeated Rule`. Taking
//! every rule apart into a dozen strings, only to check it and put it together again, was a third of the cost of a load:
//! [`crate::rule_view`] reads the encoded form in place instead.

use bytes::Bytes;
use prost::Message;

use crate::v1::Rule;

/// A piece of a `Rules.Load` transaction.
#[derive(Clone, PartialEq, Message)]
pub struct LoadRulesRequest {
    /// The rules, each an encoded [`Rule`].
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub rules: Vec<Bytes>,
    /// Validate all, change nothing.
    #[prost(bool, tag = "2")]
    pub dry_run: bool,
}

/// A request of a `Rules.Change` stream.
#[derive(Clone, PartialEq, Message)]
pub struct ChangeRequest {
    /// Chosen by the client; replies name it.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Ids of rules to delete, which is done first.
    #[prost(string, repeated, tag = "2")]
    pub deletes: Vec<String>,
    /// Rules to put, each an encoded [`Rule`].
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub puts: Vec<Bytes>,
}

impl LoadRulesRequest {
    /// A piece with these rules.
    pub fn new<'a>(rules: impl IntoIterator<Item = &'a Rule>, dry_run: bool) -> LoadRulesRequest {
        LoadRulesRequest { rules: rules.into_iter().map(encoded).collect(), dry_run }
    }
}

impl ChangeRequest {
    /// A request that deletes `deletes` and then puts `puts`.
    pub fn new<'a>(
        sequence: u64,
        deletes: Vec<String>,
        puts: impl IntoIterator<Item = &'a Rule>,
    ) -> ChangeRequest {
        ChangeRequest { sequence, deletes, puts: puts.into_iter().map(encoded).collect() }
    }
}

fn encoded(rule: &Rule) -> Bytes {
    rule.encode_to_vec().into()
}
