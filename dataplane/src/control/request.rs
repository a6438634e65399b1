//! Changes on their way to the desk: checked by themselves, parsed, and encoded as they will be stored.
//!
//! A [`Batch`] holds many requests in a few long lists: a stream of small changes then costs no allocation per request, and
//! a load of a million rules is one batch with one request.

use super::host::HostError;
use super::rule_error::RuleError;
use crate::rules::rule::{NotCanonical, Rule};
use forebay_api::rule_check;
use forebay_api::rule_view::{RuleValues, RuleView};
use forebay_api::v1;
use hashbrown::HashSet;
use prost::Message;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

/// The bytes of rules that a batch can hold: what a 32-bit offset reaches.
const MAX_ENCODED_BYTES: usize = u32::MAX as usize - forebay_api::MAX_MESSAGE_BYTES;

/// A rule that somebody wants to be in force.
pub struct Offer {
    /// The rule.
    pub rule: Rule,
    /// The hash of its encoded form.
    pub fingerprint: u64,
    begin: u32,
    length: u32,
}

/// One request of a batch: the deletions and rules up to these places, from where the request before ends.
pub struct Request {
    deletes_end: usize,
    puts_end: usize,
    /// What is wrong with it by itself, whatever the host.
    pub refusal: Option<HostError>,
}

/// Requests that travel together.
pub struct Batch {
    fingerprints: RandomState,
    /// Rules to put.
    pub puts: Vec<Offer>,
    /// Ids to delete.
    pub deletes: Vec<String>,
    /// The requests, in order.
    pub requests: Vec<Request>,
    /// Validate all, change nothing.
    pub dry_run: bool,
    encoded: Vec<u8>,
    names: SharedNames,
}

/// Port names, each allocated once.
#[derive(Default)]
struct SharedNames(HashSet<Arc<str>>);

impl SharedNames {
    fn share(&mut self, name: &str) -> Arc<str> {
        self.0.get_or_insert_with(name, |name| name.into()).clone()
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rules that were added, replaced or deleted.
    pub changed: usize,
    /// Rules that stood there already.
    pub unchanged: usize,
}

/// The answer to a request. Errors are shared: one can be that of many requests.
pub type Outcome = Result<Counts, Arc<HostError>>;

impl Batch {
    /// An empty batch; `fingerprints` are the book's.
    pub fn new(fingerprints: RandomState) -> Batch {
        Batch {
            fingerprints,
            puts: Vec::new(),
            deletes: Vec::new(),
            requests: Vec::new(),
            dry_run: false,
            encoded: Vec::new(),
            names: SharedNames::default(),
        }
    }

    /// Changes in the batch.
    pub fn len(&self) -> usize {
        self.puts.len() + self.deletes.len()
    }

    /// No requests.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.len() == 0
    }

    /// Adds a rule in its encoded form to the request that is being built.
    ///
    /// # Errors
    /// The field that is wrong, or the batch is full.
    pub fn put(&mut self, encoded: &[u8]) -> Result<(), HostError> {
        if let Some(view) = RuleView::decode(encoded)
            && let Some(values) = view.values()
        {
            return self.add(&view, &values);
        }
        let mut message =
            v1::Rule::decode(encoded).map_err(|error| HostError::Encoding(error.to_string()))?;
        rule_check::canonical(&mut message)?;
        let view = RuleView::of(&message);
        let values = view.values().ok_or_else(|| NotCanonical { id: message.id.clone() })?;
        self.add(&view, &values)
    }

    fn add(&mut self, view: &RuleView<'_>, values: &RuleValues<'_>) -> Result<(), HostError> {
        if self.encoded.len() > MAX_ENCODED_BYTES {
            return Err(HostError::Rule(RuleError::TooLong));
        }
        let rule = Rule::new(values, |name| self.names.share(name));
        let begin = self.encoded.len();
        view.encode(&mut self.encoded);
        let fingerprint = self.fingerprints.hash_one(&self.encoded[begin..]);
        let length = (self.encoded.len() - begin) as u32;
        self.puts.push(Offer { rule, fingerprint, begin: begin as u32, length });
        Ok(())
    }

    /// Ends the request that is being built; one that is wrong loses its changes.
    pub fn end_request(&mut self, refusal: Option<HostError>) {
        if refusal.is_some() {
            let (deletes, puts) =
                self.requests.last().map_or((0, 0), |last| (last.deletes_end, last.puts_end));
            self.deletes.truncate(deletes);
            self.puts.truncate(puts);
        }
        let (deletes_end, puts_end) = (self.deletes.len(), self.puts.len());
        self.requests.push(Request { deletes_end, puts_end, refusal });
    }

    /// The deletions and rules of a request.
    pub fn bounds(&self, request: usize) -> (Range<usize>, Range<usize>) {
        let end = |request: Option<usize>| {
            let request = request.and_then(|request| self.requests.get(request));
            request.map_or((0, 0), |request| (request.deletes_end, request.puts_end))
        };
        let (begin, end) = (end(request.checked_sub(1)), end(Some(request)));
        (begin.0..end.0, begin.1..end.1)
    }

    /// The encoded form of an offer.
    pub fn encoded(&self, offer: &Offer) -> &[u8] {
        let begin = offer.begin as usize;
        &self.encoded[begin..begin + offer.length as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_api::rule_json::parse_rule;

    #[test]
    fn a_request_that_is_wrong_loses_its_changes_only() {
        let mut batch = Batch::new(RandomState::new());
        let rule = |id: &str| {
            parse_rule(&format!(r#"{{"id":"{id}","port":"p","match":{{}},"action":"drop"}}"#)).unwrap()
        };
        batch.put(&rule("a").encode_to_vec()).unwrap();
        batch.end_request(None);
        batch.put(&rule("b").encode_to_vec()).unwrap();
        batch.deletes.push("x".into());
        let wrong = batch.put(&v1::Rule::default().encode_to_vec()).unwrap_err();
        batch.end_request(Some(wrong));
        batch.deletes.push("y".into());
        batch.put(&rule("c").encode_to_vec()).unwrap();
        batch.end_request(None);
        assert_eq!(batch.bounds(0), (0..0, 0..1));
        assert_eq!(batch.bounds(1), (0..0, 1..1));
        assert_eq!(batch.bounds(2), (0..1, 1..2));
        assert!(batch.requests[1].refusal.is_some());
        assert_eq!(&*batch.puts[1].rule.id, "c");
        assert_eq!(batch.encoded(&batch.puts[1]), rule("c").encode_to_vec());
        assert!(batch.put(&[0xff]).is_err());
    }

    #[test]
    fn other_spellings_become_the_one() {
        let mut batch = Batch::new(RandomState::new());
        let canonical =
            parse_rule(r#"{"id":"a","port":"p","match":{"dst":"10.0.0.1/32"},"action":"drop"}"#).unwrap();
        let mut spelled = canonical.clone();
        spelled.r#match.as_mut().unwrap().dst = "10.0.0.1".into();
        for rule in [&canonical, &spelled] {
            batch.put(&rule.encode_to_vec()).unwrap();
        }
        assert_eq!(batch.puts[0].fingerprint, batch.puts[1].fingerprint);
        assert_eq!(batch.encoded(&batch.puts[1]), canonical.encode_to_vec());
    }
}
