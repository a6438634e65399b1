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
