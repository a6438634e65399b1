//! The desk at which changes are made: who holds its lock may change what the workers see.
//!
//! It holds what only changes need (tables, tunnels, ways, the last snapshot). Whoever shows ports, counters or rules does not
//! need it, and never waits for a change. A publication costs what it touches, and a copy of the list of ports.

use super::book::Book;
use super::names::NameId;
use super::ports::{PortRecord, entry, uplink_entry};
use super::routes::Routes;
use super::tables::{Applied, Tables};
use super::tunnels::Tunnels;
use crate::action::PortId;
use crate::snapshot::{DeviceEntry, MAX_DEVICES, PortEntry, PortRole, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything that a change needs.
pub struct Desk {
    /// The tunnels of the rules.
    pub tunnels: Tunnels,
    /// The rules, ready to be published.
    pub tables: Tables,
    /// The ways to the underlay.
    pub routes: Routes,
    /// The newest snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Next hops that no tunnel leads over any more: to be released when no worker looks at the tunnels that did.
    pub left_hops: Vec<u32>,
    /// The last generation that a port or the ingress rules were given: one for each publication, 0 before the first.
    /// After 2^32 publications the numbers begin again.
    pub generation: u32,
}

impl Desk {
    /// A desk without ports and rules.
    pub fn new(tunnels: Tunnels) -> Desk {
        Desk {
            tunnels,
            tables: Tables::default(),
            routes: Routes::default(),
            snapshot: Arc::default(),
            left_hops: Vec::new(),
            generation: 0,
        }
    }

    /// The next snapshot after a change of rules.
    pub fn redraw(&mut self, applied: &Applied, book: &Book) -> Arc<Snapshot> {
        self.generation = self.generation.wrapping_add(1);
        let mut next = Snapshot::clone(&self.snapshot);
        for touched in &applied.egress {
            if let Some((port, _)) = book.names.port(touched.port) {
                self.redraw_rules(&mut next, port, touched.port);
            }
        }
        if applied.known {
            next.known_tunnels = Arc::new(self.tables.scopes.known());
        }
        if applied.ingress.is_some() {
            next.ingress = Arc::new(self.tables.ingress.clone());
            next.ingress_generation = self.generation;
        }
        if applied.locals {
            for port in next.ports.iter_mut().flatten() {
                let name = book.names.find(&port.name);
                if let (PortRole::Uplink(uplink), Some(name)) = (&port.role, name) {
                    let locals = self.tables.scopes.locals_of(name);
                    let role = PortRole::Uplink(uplink_entry(uplink.ipv4, uplink.ipv6, &locals));
                    *port = Arc::new(PortEntry { role, ..PortEntry::clone(port) });
                }
            }
        }
        next.tunnels = self.tunnels.entries();
        self.snapshot = Arc::new(next);
        self.snapshot.clone()
    }

    fn redraw_rules(&self, next: &mut Snapshot, port: PortId, name: NameId) {
        let Some(Some(place)) = next.ports.get_mut(port.index()) else { return };
        if let PortRole::Vf(vf) = &place.role {
            let mut vf = vf.clone();
            vf.rules = Arc::new(self.tables.egress(name));
            vf.generation = self.generation;
            *place = Arc::new(PortEntry { role: PortRole::Vf(vf), ..PortEntry::clone(place) });
        }
    }

    /// The next snapshot after ports have come or gone: those that are there get an entry where they have none, those
    /// that are gone lose theirs. Where `everything` is set, what every rule leads to may have changed.
    pub fn redraw_ports(
        &mut self,
        ports: &BTreeMap<String, PortRecord>,
        devices: [DeviceEntry; MAX_DEVICES],
        applied: &Applied,
        everything: bool,
        book: &Book,
    ) -> Arc<Snapshot> {
        let before = self.redraw(applied, book);
        let mut next = Snapshot::clone(&before);
        let mut there = Vec::new();
        for record in ports.values() {
            let Some(name) = book.names.find(&record.config.name) else { continue };
            let index = record.id.index();
            there.resize_with(there.len().max(index + 1), || None);
            let old = next.ports.get(index).cloned().flatten();
            there[index] = match old {
                Some(old) if &*old.name == record.config.name.as_str() => Some(old),
                _ => {
                    let rules = Arc::new(self.tables.egress(name));
                    let locals = self.tables.scopes.locals_of(name);
                    if matches!(record.config.kind, crate::config::PortKind::Uplink(_)) {
                        next.ingress_generation = self.generation;
                    }
                    Some(Arc::new(entry(record, rules, self.generation, &locals)))
                }
            };
        }
        let uplinks = |ports: &[Option<Arc<PortEntry>>]| {
            ports.iter().flatten().filter(|port| matches!(port.role, PortRole::Uplink(_))).count()
        };
        if everything || uplinks(&there) != uplinks(&next.ports) {
            next.ingress_generation = self.generation;
        }
        next.ports = there;
        next.devices = devices;
        if everything {
            for port in next.ports.iter_mut().flatten() {
                if let PortRole::Vf(vf) = &port.role {
                    let vf = crate::snapshot::VfEntry { generation: self.generation, ..vf.clone() };
                    *port = Arc::new(PortEntry { role: PortRole::Vf(vf), ..PortEntry::clone(port) });
                }
            }
        }
        self.snapshot = Arc::new(next);
        self.snapshot.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, PortKind as Kind};
    use crate::control::book::{PortKind, Staged, Step};
    use crate::control::names::Mentions;
    use crate::control::ports::{PortSource, Ports};
    use crate::control::resolver::Resolver;
    use crate::control::rule_check::refer;
    use crate::counters::PortTotals;
    use crate::rules::key::Key;
    use crate::rules::rule::Rule;
    use crate::rules::rule::tests::rule;
    use crate::snapshot::Neighbours;
    use forebay_api::v1;
    use parking_lot::Mutex;
    use std::hash::BuildHasher;
    use std::sync::atomic::AtomicBool;

    /// A desk with the uplink "up" and the tenants "a" and "b", and nothing behind them.
    struct Room {
        desk: Desk,
        book: Mutex<Book>,
        ports: Ports,
    }

    fn spec(name: &str, id: u8) -> v1::PortSpec {
        let uplink = name.starts_with("up");
        v1::PortSpec {
            name: name.into(),
            kind: if uplink { v1::PortKind::Uplink } else { v1::PortKind::Vf }.into(),
            device: "null:".into(),
            ipv4: if uplink { format!("192.0.{id}.1/24") } else { String::new() },
            mac: format!("02:00:00:00:00:0{id}"),
            ip: if uplink { Vec::new() } else { vec!["10.0.0.1".into()] },
            ..v1::PortSpec::default()
        }
    }

    impl Room {
        fn new() -> Room {
            let resolver = Arc::new(Mutex::new(Resolver::new(Arc::new(Neighbours::default()))));
            let desk = Desk::new(Tunnels::new(resolver));
            let mut room = Room { desk, book: Mutex::default(), ports: Ports::default() };
            for (id, name) in (0..).zip(["up", "a", "b"]) {
                room.add(name, id);
            }
            room
        }

        fn add(&mut self, name: &str, id: u8) {
            let config = config::port_from_spec(&spec(name, id)).unwrap();
            let kind = if matches!(config.kind, Kind::Vf(_)) { PortKind::Vf } else { PortKind::Uplink };
            self.ports.insert(PortRecord {
                id: PortId(u16::from(id)),
                config,
                source: PortSource::Control,
                device: None,
                device_id: u16::from(id),
                mac: [2, 0, 0, 0, 0, id],
                up: Arc::new(AtomicBool::new(true)),
                baseline: PortTotals::default(),
                mentions: Mentions::default(),
            });
            self.book.lock().names.set_port(name, Some((PortId(u16::from(id)), kind)));
            self.desk.routes = self.ports.routes();
            let moved = self.desk.tunnels.find_ways_again(&self.desk.routes).is_some();
            self.redraw_ports(moved);
        }

        fn redraw_ports(&mut self, moved: bool) {
            let applied = Applied::default();
            let devices = self.ports.devices();
            self.desk.redraw_ports(&self.ports.by_name, devices, &applied, moved, &self.book.lock());
        }

        /// Stages rules to put and ids to delete.
        fn stage(&mut self, puts: &[Rule], deletes: &[&str]) -> (Vec<Step>, Vec<Option<usize>>) {
            let mut book = self.book.lock();
            let (mut steps, mut rules) = (Vec::new(), Vec::new());
            for id in deletes {
                steps.push(book.stage_delete(id).unwrap());
                rules.push(None);
            }
            for (index, rule) in puts.iter().enumerate() {
                let references = refer(rule, &mut book.names);
                let fingerprint = book.fingerprints().hash_one(format!("{rule:?}"));
                if let Staged::Step(step) = book.stage_put(rule, fingerprint, references).unwrap() {
                    steps.push(step);
                    rules.push(Some(index));
                }
            }
            (steps, rules)
        }

        fn change(&mut self, puts: &[Rule], deletes: &[&str]) {
            let (steps, rules) = self.stage(puts, deletes);
            let rule_of = |index: usize| rules[index].map(|rule| &puts[rule]);
            let Desk { tables, tunnels, routes, .. } = &mut self.desk;
            let mut applied = tables.apply(&steps, rule_of, &self.book, tunnels, routes);
            tables.compile(&mut applied, &steps, rule_of);
            self.desk.redraw(&applied, &self.book.lock());
            self.desk.tunnels.release(&applied.released);
            self.book.lock().settle(&steps);
        }

        /// The generations of "a", of "b" and of the ingress rules.
        fn generations(&self) -> [u32; 3] {
            let of = |id| match &self.desk.snapshot.port(PortId(id)).unwrap().role {
                PortRole::Vf(vf) => vf.generation,
                PortRole::Uplink(_) => panic!("an uplink"),
            };
            [of(1), of(2), self.desk.snapshot.ingress_generation]
        }

        /// What changed with the last change: "a", "b", the ingress rules.
        fn moved(&mut self, change: impl FnOnce(&mut Room)) -> [bool; 3] {
            let before = self.generations();
            change(self);
            let after = self.generations();
            [0, 1, 2].map(|index| {
                assert!(after[index] >= before[index], "generations only grow");
                before[index] != after[index]
            })
        }

        fn rules_of(&self, port: u16) -> usize {
            match &self.desk.snapshot.port(PortId(port)).unwrap().role {
                PortRole::Vf(vf) => vf.rules.len(),
                PortRole::Uplink(_) => self.desk.snapshot.ingress.len(),
            }
        }
    }

    fn forward(id: &str, port: &str, priority: u32) -> Rule {
        rule(&format!(
            r#"{{"id":"{id}","port":"{port}","priority":{priority},"match":{{"dst":"10.0.{priority}.0/24"}},"action":{{"forward":{{"tunnel":"vxlan","vni":{priority},"remote":"192.0.0.9"}}}}}}"#
        ))
    }

    fn ingress(id: &str, vni: u32, local: &str) -> Rule {
        rule(&format!(
            r#"{{"id":"{id}","ingress":{{"tunnel":"vxlan","vni":{vni},"local":"{local}"}},"match":{{}},"action":{{"deliver":{{"port":"a"}}}}}}"#
        ))
    }

    #[test]
    fn only_what_a_change_touches_gets_a_new_generation() {
        let mut room = Room::new();
        assert_eq!(room.moved(|room| room.change(&[forward("1", "a", 1)], &[])), [true, false, false]);
        assert_eq!(room.moved(|room| room.change(&[forward("2", "b", 2)], &[])), [false, true, false]);
        assert_eq!(
            room.moved(|room| room.change(&[ingress("3", 7, "192.0.0.7")], &[])),
            [false, false, true]
        );
        assert_eq!(room.moved(|room| room.change(&[forward("1", "a", 3)], &["2"])), [true, true, false]);
        assert_eq!(room.moved(|room| room.change(&[forward("1", "b", 3)], &[])), [true, true, false]);
        assert_eq!((room.rules_of(0), room.rules_of(1), room.rules_of(2)), (1, 0, 1));
        // The uplink of another network leaves all ways as they are.
        assert_eq!(room.moved(|room| room.add("up2", 3)), [false, false, true]);
        assert_eq!(room.moved(|room| room.add("c", 4)), [false, false, false]);
        let gone = |room: &mut Room| {
            room.ports.remove("up");
            room.desk.routes = room.ports.routes();
            let moved = room.desk.tunnels.find_ways_again(&room.desk.routes).is_some();
            room.redraw_ports(moved);
        };
        assert_eq!(room.moved(gone), [true, true, true]);
    }

    #[test]
    fn ingress_rules_make_tunnels_known_and_addresses_answered() {
        let mut room = Room::new();
        let locals = |room: &Room| match &room.desk.snapshot.port(PortId(0)).unwrap().role {
            PortRole::Uplink(uplink) => uplink.locals.len(),
            PortRole::Vf(_) => panic!("a tenant"),
        };
        room.change(
            &[ingress("1", 7, "192.0.0.7"), ingress("2", 8, "192.0.0.7"), ingress("3", 8, "2001:db8::8")],
            &[],
        );
        assert_eq!((room.desk.snapshot.known_tunnels.len(), locals(&room)), (2, 3));
        room.change(&[], &["3"]);
        assert_eq!((room.desk.snapshot.known_tunnels.len(), locals(&room)), (2, 2));
        room.change(&[], &["2"]);
        assert_eq!((room.desk.snapshot.known_tunnels.len(), locals(&room)), (1, 2));
        room.change(&[], &["1"]);
        assert_eq!((room.desk.snapshot.known_tunnels.len(), locals(&room), room.rules_of(0)), (0, 1, 0));
    }

    #[test]
    fn a_rule_that_acts_otherwise_takes_its_place() {
        let mut room = Room::new();
        let same = |id: &str, priority: u32, vni: u32| {
            rule(&format!(
                r#"{{"id":"{id}","port":"a","priority":{priority},"match":{{"dst":"10.0.0.0/8"}},"action":{{"forward":{{"tunnel":"vxlan","vni":{vni},"remote":"192.0.0.9"}}}}}}"#
            ))
        };
        let mut key = Key::ethernet(1, 2, 0x0800, 0);
        key.set_ipv4(1, 0x0a00_0101, 6, 0);
        let found = |room: &Room| {
            let slot =
                room.desk.tables.egress(room.book.lock().names.number("a")).lookup(&key.0).unwrap().slot;
            room.book.lock().records.get(slot).unwrap().id.text().to_owned()
        };
        let knows = |room: &Room, rule: &Rule| match &rule.action {
            crate::rules::rule::RuleAction::Forward(forward) => room.desk.tunnels.knows(&forward.into()),
            _ => panic!("not forward"),
        };
        room.change(&[same("1", 2, 7), same("2", 1, 8)], &[]);
        assert_eq!((found(&room), room.rules_of(1)), ("1".into(), 2));
        room.change(&[same("1", 2, 9)], &[]);
        assert_eq!((found(&room), room.rules_of(1)), ("1".into(), 2));
        assert!(knows(&room, &same("1", 2, 9)) && !knows(&room, &same("1", 2, 7)));
        // Two times in one change, and by rank alone.
        room.change(&[same("2", 5, 8), same("2", 3, 8)], &[]);
        assert_eq!((found(&room), room.rules_of(1)), ("2".into(), 2));
        room.change(&[same("2", 0, 8)], &[]);
        assert_eq!((found(&room), room.rules_of(1)), ("1".into(), 2));
        // And not where it is not stored.
        let puts = [same("2", 9, 6)];
        let (steps, rules) = room.stage(&puts, &[]);
        let rule_of = |index: usize| rules[index].map(|rule| &puts[rule]);
        let Desk { tables, tunnels, routes, .. } = &mut room.desk;
        let applied = tables.apply(&steps, rule_of, &room.book, tunnels, routes);
        tables.revert(applied, tunnels);
        room.book.lock().undo(&steps);
        assert_eq!((found(&room), knows(&room, &puts[0])), ("1".into(), false));
        room.change(&[], &["1", "2"]);
        assert_eq!(room.rules_of(1), 0);
    }

    #[test]
    fn a_big_change_of_several_ports_is_as_good_as_many_small_ones() {
        let same = |number: u32, port: &str, priority: u32| {
            rule(&format!(
                r#"{{"id":"{number}","port":"{port}","priority":{priority},"match":{{"dst":"10.{}.{}.0/24"}},"action":"drop"}}"#,
                number >> 8,
                number & 255
            ))
        };
        let port = |turn: bool| if turn { "a" } else { "b" };
        // More than are carried out at once, in turns of two ports; then half of them act or rank otherwise, some move to
        // the other port, some are put twice, and some go.
        let first: Vec<Rule> = (0..700).map(|number| same(number, port(number % 2 == 0), 1)).collect();
        let mut second: Vec<Rule> =
            (0..700).step_by(2).map(|number| same(number, port(number % 6 != 0), 2)).collect();
        second.extend((100..160).map(|number| same(number, port(number % 3 == 0), 3)));
        let gone: Vec<String> = (300..700).step_by(7).map(|number| number.to_string()).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        let (mut at_once, mut one_by_one) = (Room::new(), Room::new());
        at_once.change(&first, &[]);
        at_once.change(&second, &gone);
        first.iter().for_each(|rule| one_by_one.change(std::slice::from_ref(rule), &[]));
        gone.iter().for_each(|id| one_by_one.change(&[], &[id]));
        second.iter().for_each(|rule| one_by_one.change(std::slice::from_ref(rule), &[]));
        let found = |room: &Room, port: &str, number: u32| {
            let mut key = Key::ethernet(1, 2, 0x0800, 0);
            key.set_ipv4(1, 0x0a00_0001 | number << 8, 6, 0);
            let hit = room.desk.tables.egress(room.book.lock().names.number(port)).lookup(&key.0)?;
            let book = room.book.lock();
            let record = book.records.get(hit.slot)?;
            Some((record.id.text().to_owned(), record.priority))
        };
        assert_eq!(found(&at_once, "a", 102), Some(("102".into(), 3)));
        assert_eq!((found(&at_once, "a", 6), found(&at_once, "b", 6)), (None, Some(("6".into(), 2))));
        for number in 0..700 {
            for port in ["a", "b"] {
                assert_eq!(
                    found(&at_once, port, number),
                    found(&one_by_one, port, number),
                    "{port} {number}"
                );
            }
        }
        for port in [1, 2] {
            assert_eq!(at_once.rules_of(port), one_by_one.rules_of(port));
        }
    }

    #[test]
    fn a_change_that_is_not_stored_leaves_the_tables_as_they_were() {
        let mut room = Room::new();
        room.change(&[forward("1", "a", 1), ingress("2", 7, "192.0.0.7")], &[]);
        let puts = [forward("1", "a", 5), forward("3", "b", 3), ingress("4", 9, "192.0.0.9")];
        let (steps, rules) = room.stage(&puts, &["2"]);
        let rule_of = |index: usize| rules[index].map(|rule| &puts[rule]);
        let Desk { tables, tunnels, routes, .. } = &mut room.desk;
        let mut applied = tables.apply(&steps, rule_of, &room.book, tunnels, routes);
        tables.compile(&mut applied, &steps, rule_of);
        tables.revert(applied, tunnels);
        room.book.lock().undo(&steps);
        room.desk.redraw(&Applied::default(), &room.book.lock());
        let mut key = Key::ethernet(1, 2, 0x0800, 0);
        key.set_ipv4(1, 0x0a00_0101, 6, 0);
        let table = room.desk.tables.egress(room.book.lock().names.number("a"));
        assert!(table.lookup(&key.0).is_some());
        assert_eq!((table.len(), room.desk.tables.ingress.len()), (1, 1));
        assert_eq!(room.desk.tables.egress(room.book.lock().names.number("b")).len(), 0);
        assert_eq!(room.desk.tables.scopes.known().len(), 1);
        assert!(!room.desk.tunnels.knows(&match &puts[0].action {
            crate::rules::rule::RuleAction::Forward(forward) => forward.into(),
            _ => panic!("not forward"),
        }));
        // And the same change can be made afterwards.
        room.change(&puts, &["2"]);
        assert_eq!((room.rules_of(0), room.rules_of(1), room.rules_of(2)), (1, 1, 1));
    }
}
