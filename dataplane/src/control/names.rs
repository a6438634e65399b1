//! Port names by number: rules name ports by the million, and a number is 4 bytes.
//!
//! A number belongs to its name for as long as the host runs, whether or not the port is there: a rule may outlive its port
//! over a restart. Numbers are few, since a rule is accepted only when its ports exist.

use crate::action::PortId;
use crate::control::book::PortKind;
use hashbrown::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of a port name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameId(pub u32);

/// How many rules name a port. Written by whoever changes rules, read by whoever shows ports.
#[derive(Clone, Debug, Default)]
pub struct Mentions(Arc<AtomicUsize>);

impl Mentions {
    /// The number of rules.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

struct Name {
    text: Arc<str>,
    mentions: Mentions,
    /// The port of this name, if it is there.
    port: Option<(PortId, PortKind)>,
}

/// The port names that rules may use.
#[derive(Default)]
pub struct Names {
    by_text: HashMap<Arc<str>, NameId>,
    names: Vec<Name>,
}

impl Names {
    /// The number of a name; it gets one where it has none.
    pub fn number(&mut self, text: &str) -> NameId {
        if let Some(number) = self.by_text.get(text) {
            return *number;
        }
        let number = NameId(self.names.len() as u32);
        let text: Arc<str> = text.into();
        self.by_text.insert(text.clone(), number);
        self.names.push(Name { text, mentions: Mentions::default(), port: None });
        number
    }

    /// The number of a name that has one.
    pub fn find(&self, text: &str) -> Option<NameId> {
        self.by_text.get(text).copied()
    }

    /// The name of a number.
    pub fn text(&self, number: NameId) -> &Arc<str> {
        &self.names[number.0 as usize].text
    }

    /// The port of that name, if it is there.
    pub fn port(&self, number: NameId) -> Option<(PortId, PortKind)> {
        self.names[number.0 as usize].port
    }

    /// The port of that name has come, or gone.
    pub fn set_port(&mut self, text: &str, port: Option<(PortId, PortKind)>) -> NameId {
        let number = self.number(text);
        self.names[number.0 as usize].port = port;
        number
    }

    /// The count of the rules that name it.
    pub fn mentions(&self, number: NameId) -> &Mentions {
        &self.names[number.0 as usize].mentions
    }

    /// One more rule names it.
    pub fn mention(&self, number: NameId) {
        self.mentions(number).0.fetch_add(1, Ordering::Relaxed);
    }

    /// One rule less names it.
    pub fn forget(&self, number: NameId) {
        self.mentions(number).0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let mut names = Names::default();
        let (a, b) = (names.number("a"), names.number("b"));
        assert_eq!((names.number("a"), names.find("b"), names.find("c")), (a, Some(b), None));
        assert_eq!(names.set_port("a", Some((PortId(3), PortKind::Vf))), a);
        names.mention(a);
        assert_eq!((names.port(a), names.mentions(a).count()), (Some((PortId(3), PortKind::Vf)), 1));
        names.set_port("a", None);
        names.forget(a);
        assert_eq!((names.port(a), names.mentions(a).count(), &**names.text(a)), (None, 0, "a"));
    }
}
