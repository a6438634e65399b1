//! The tunnels that rules lead into: rules with the same outer headers share one.

use super::resolver::Resolver;
use crate::action::{PortId, TunnelRef};
use crate::rules::rule::Opaque;
use crate::snapshot::Tunnel;
use crate::wire::vxlan::Template;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// What makes a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The uplink.
    pub uplink: PortId,
    /// Outer source.
    pub source: IpAddr,
    /// Outer destination.
    pub remote: IpAddr,
    /// Type and opaque field.
    pub opaque: Opaque,
    /// Outer TTL.
    pub ttl: u8,
    /// Outer DSCP.
    pub dscp: u8,
}

struct Shared {
    slot: u32,
    generation: u32,
    references: usize,
    next_hop: u32,
}

/// The tunnels of a host.
pub struct Tunnels {
    resolver: Arc<parking_lot::Mutex<Resolver>>,
    by_key: HashMap<TunnelKey, Shared>,
    entries: Arc<Vec<Option<Arc<Tunnel>>>>,
    free: Vec<u32>,
    generation: u32,
}

impl Tunnels {
    /// Next hops are resolved by `resolver`.
    pub fn new(resolver: Arc<parking_lot::Mutex<Resolver>>) -> Tunnels {
        Tunnels { resolver, by_key: HashMap::new(), entries: Arc::default(), free: Vec::new(), generation: 0 }
    }

    /// The tunnel of that key, with one more reference; `None` where there is no slot for its next hop, or where source and
    /// remote are of different IP versions.
    pub fn acquire(&mut self, key: TunnelKey, next_hop: IpAddr, mac: [u8; 6]) -> Option<TunnelRef> {
        if let Some(shared) = self.by_key.get_mut(&key) {
            shared.references += 1;
            return Some(TunnelRef { slot: shared.slot, generation: shared.generation });
        }
        let Opaque::Vxlan(vni) = key.opaque;
        let template = Template::new(mac, key.source, key.remote, vni, key.ttl, key.dscp)?;
        let next_hop = self.resolver.lock().acquire(key.uplink, next_hop, Instant::now()).ok()?;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let entries = Arc::make_mut(&mut self.entries);
        let slot = self.free.pop().unwrap_or_else(|| {
            entries.push(None);
            (entries.len() - 1) as u32
        });
        entries[slot as usize] =
            Some(Arc::new(Tunnel { generation, template, uplink: key.uplink, next_hop }));
        self.by_key.insert(key, Shared { slot, generation, references: 1, next_hop });
        Some(TunnelRef { slot, generation })
    }

    /// Gives references back. No worker may look at the rules that held them any more.
    pub fn release(&mut self, keys: &[TunnelKey]) {
        for key in keys {
            let Some(shared) = self.by_key.get_mut(key) else { continue };
            shared.references -= 1;
            if shared.references > 0 {
                continue;
            }
            let (slot, next_hop) = (shared.slot, shared.next_hop);
            self.by_key.remove(key);
            Arc::make_mut(&mut self.entries)[slot as usize] = None;
            self.free.push(slot);
            self.resolver.lock().release(next_hop, Instant::now());
        }
    }

    /// The tunnels by slot, for a snapshot.
    pub fn entries(&self) -> Arc<Vec<Option<Arc<Tunnel>>>> {
        self.entries.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Neighbours;

    #[test]
    fn equal_tunnels_are_shared_and_slots_have_generations() {
        let resolver = Resolver::new(Arc::new(Neighbours::default()));
        let mut tunnels = Tunnels::new(Arc::new(parking_lot::Mutex::new(resolver)));
        let key = |vni| TunnelKey {
            uplink: PortId(0),
            source: IpAddr::from([192, 0, 2, 1]),
            remote: IpAddr::from([192, 0, 2, 2]),
            opaque: Opaque::Vxlan(vni),
            ttl: 64,
            dscp: 0,
        };
        let next_hop = IpAddr::from([192, 0, 2, 2]);
        let first = tunnels.acquire(key(1), next_hop, [2; 6]).unwrap();
        assert_eq!(tunnels.acquire(key(1), next_hop, [2; 6]), Some(first));
        let second = tunnels.acquire(key(2), next_hop, [2; 6]).unwrap();
        assert_ne!(first.slot, second.slot);
        tunnels.release(&[key(1)]);
        assert!(tunnels.entries()[first.slot as usize].is_some());
        tunnels.release(&[key(1)]);
        assert!(tunnels.entries()[first.slot as usize].is_none());
        let third = tunnels.acquire(key(3), next_hop, [2; 6]).unwrap();
        assert_eq!(third.slot, first.slot);
        assert_ne!(third.generation, first.generation);
        let mixed = TunnelKey { remote: "2001:db8::1".parse().unwrap(), ..key(9) };
        assert_eq!(tunnels.acquire(mixed, next_hop, [2; 6]), None);
    }
}
