//! The tunnels that rules lead into: rules with the same outer headers share one.
//!
//! A tunnel is what a rule says of it ([`TunnelKey`]); the way to its far end is found here, and found again when uplinks
//! come or go. So a rule keeps its tunnel whatever happens to the ways, and no rule need be looked at then. A tunnel whose
//! far end no uplink reaches stands in the table with an uplink that is no port: its packets drop as `port_down`.

use super::resolver::Resolver;
use super::routes::{Route, Routes};
use crate::action::{PortId, TunnelRef};
use crate::rules::rule::{Forward, Opaque};
use crate::snapshot::{Tunnel, TunnelTable};
use crate::wire::vxlan::Template;
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What makes a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Outer source, where the rule gives it.
    pub source: Option<IpAddr>,
    /// Outer destination.
    pub remote: IpAddr,
    /// Type and opaque field.
    pub opaque: Opaque,
    /// Outer TTL.
    pub ttl: u8,
    /// Outer DSCP.
    pub dscp: u8,
}

impl From<&Forward> for TunnelKey {
    fn from(forward: &Forward) -> TunnelKey {
        let Forward { source, remote, tunnel, ttl, dscp, .. } = *forward;
        TunnelKey { source, remote, opaque: tunnel, ttl, dscp }
    }
}

/// How long what the underlay says of a path's MTU is believed: the path may take more again (RFC 1191, section 6.3).
const PATH_MTU_LIFE: Duration = Duration::from_secs(600);
/// Of a path that nothing was said about.
const ANY_MTU: u16 = u16::MAX;

/// The uplink of a tunnel that none leads to: no port has this number.
const NOWHERE: PortId = PortId(u16::MAX);
/// The next hop of such a tunnel.
const NO_HOP: u32 = u32::MAX;

struct Shared {
    key: TunnelKey,
    generation: u32,
    references: u32,
    route: Option<Route>,
    next_hop: u32,
}

/// The tunnels of a host.
pub struct Tunnels {
    resolver: Arc<parking_lot::Mutex<Resolver>>,
    by_key: HashMap<TunnelKey, u32>,
    shared: Vec<Option<Shared>>,
    entries: TunnelTable,
    free: Vec<u32>,
    generation: u32,
    /// The tunnels of each far end, by slot.
    by_remote: HashMap<IpAddr, HashSet<u32>>,
    /// By far end: what its path takes, and since when that is known.
    path_mtus: HashMap<IpAddr, (u16, Instant)>,
}

impl Tunnels {
    /// Next hops are resolved by `resolver`.
    pub fn new(resolver: Arc<parking_lot::Mutex<Resolver>>) -> Tunnels {
        Tunnels {
            resolver,
            by_key: HashMap::new(),
            shared: Vec::new(),
            entries: TunnelTable::default(),
            free: Vec::new(),
            generation: 0,
            by_remote: HashMap::new(),
            path_mtus: HashMap::new(),
        }
    }

    /// Whether a tunnel is there already.
    pub fn knows(&self, key: &TunnelKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// The tunnel of that key, with one more reference.
    pub fn acquire(&mut self, key: TunnelKey, routes: &Routes) -> TunnelRef {
        if let Some(slot) = self.by_key.get(&key)
            && let Some(Some(shared)) = self.shared.get_mut(*slot as usize)
        {
            shared.references += 1;
            return TunnelRef { slot: *slot, generation: shared.generation };
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.shared.push(None);
            (self.shared.len() - 1) as u32
        });
        let (route, next_hop) = self.lead(&key, routes);
        self.entries.set(slot, self.tunnel(&key, generation, route, next_hop));
        self.shared[slot as usize] = Some(Shared { key, generation, references: 1, route, next_hop });
        self.by_key.insert(key, slot);
        self.by_remote.entry(key.remote).or_default().insert(slot);
        TunnelRef { slot, generation }
    }

    /// The way to a tunnel's far end, and a reference to its next hop.
    fn lead(&self, key: &TunnelKey, routes: &Routes) -> (Option<Route>, u32) {
        let hop = |route: &Route| self.resolver.lock().acquire(route.uplink, route.next_hop, Instant::now());
        match routes.find(key.remote).ok().and_then(|route| Some((route, hop(&route).ok()?))) {
            Some((route, next_hop)) => (Some(route), next_hop),
            None => (None, NO_HOP),
        }
    }

    /// Gives references back, by slot. No worker may look at the rules that held them any more.
    pub fn release(&mut self, slots: &[u32]) {
        for slot in slots {
            let Some(place) = self.shared.get_mut(*slot as usize) else { continue };
            let Some(shared) = place else { continue };
            shared.references -= 1;
            if shared.references > 0 {
                continue;
            }
            let (key, next_hop) = (shared.key, shared.next_hop);
            *place = None;
            self.by_key.remove(&key);
            if let Entry::Occupied(mut slots) = self.by_remote.entry(key.remote) {
                slots.get_mut().remove(slot);
                if slots.get().is_empty() {
                    slots.remove();
                }
            }
            self.entries.set(*slot, None);
            self.free.push(*slot);
            self.release_hops(&[next_hop]);
        }
    }

    /// Gives next hops back that [`Tunnels::find_ways_again`] has left.
    pub fn release_hops(&self, hops: &[u32]) {
        let mut resolver = self.resolver.lock();
        let now = Instant::now();
        hops.iter().filter(|hop| **hop != NO_HOP).for_each(|hop| resolver.release(*hop, now));
    }

    /// Finds the way to every tunnel's far end anew, after uplinks have come or gone. Returns the next hops that are left:
    /// to be released when no worker looks at them; `None` where every way is as it was.
    pub fn find_ways_again(&mut self, routes: &Routes) -> Option<Vec<u32>> {
        let mut left = None;
        for slot in 0..self.shared.len() {
            let Some(Some(Shared { key, route, generation, .. })) = self.shared.get(slot) else { continue };
            let (key, generation) = (*key, *generation);
            if *route == routes.find(key.remote).ok() {
                continue;
            }
            let (route, next_hop) = self.lead(&key, routes);
            self.entries.set(slot as u32, self.tunnel(&key, generation, route, next_hop));
            if let Some(Some(shared)) = self.shared.get_mut(slot) {
                left.get_or_insert_with(Vec::new).push(std::mem::replace(&mut shared.next_hop, next_hop));
                shared.route = route;
            }
        }
        left
    }

    /// Believes what the underlay says about the paths to far ends, and forgets what was said long ago. True where some
    /// tunnel's path takes more or less now.
    pub fn mind_path_mtus(&mut self, told: impl IntoIterator<Item = (IpAddr, u16)>, now: Instant) -> bool {
        let mut moved = Vec::new();
        self.path_mtus.retain(|remote, (_, since)| {
            let lives = now.saturating_duration_since(*since) < PATH_MTU_LIFE;
            if !lives {
                moved.push(*remote);
            }
            lives
        });
        for (remote, mtu) in told {
            let known = self.path_mtus.get(&remote).map_or(ANY_MTU, |(mtu, _)| *mtu);
            if mtu <= known && self.by_remote.contains_key(&remote) {
                self.path_mtus.insert(remote, (mtu, now));
                if mtu < known {
                    tracing::info!("the path to {remote} takes packets of {mtu} bytes");
                    moved.push(remote);
                }
            }
        }
        for slot in moved.iter().filter_map(|remote| self.by_remote.get(remote)).flatten() {
            if let Some(Some(Shared { key, route, generation, next_hop, .. })) =
                self.shared.get(*slot as usize)
            {
                let entry = self.tunnel(key, *generation, *route, *next_hop);
                self.entries.set(*slot, entry);
            }
        }
        !moved.is_empty()
    }

    /// What workers see; `None` where source and remote are of different IP versions, which no rule's are.
    fn tunnel(
        &self,
        key: &TunnelKey,
        generation: u32,
        route: Option<Route>,
        next_hop: u32,
    ) -> Option<Tunnel> {
        let Opaque::Vxlan(vni) = key.opaque;
        let (mac, own) = route.map_or(([0; 6], key.remote), |route| (route.mac, route.source));
        let source = key.source.unwrap_or(own);
        let template = Template::new(mac, source, key.remote, vni, key.ttl, key.dscp)?;
        let path_mtu = self.path_mtus.get(&key.remote).map_or(ANY_MTU, |(mtu, _)| *mtu);
        let uplink = route.map_or(NOWHERE, |route| route.uplink);
        Some(Tunnel { generation, template, uplink, next_hop, path_mtu })
    }

    /// The tunnels by slot, for a snapshot.
    pub fn entries(&self) -> TunnelTable {
        self.entries.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::routes::Interface;
    use crate::snapshot::Neighbours;

    fn routes(uplinks: &[u16]) -> Routes {
        let interface = |number: &u16| Interface {
            uplink: PortId(*number),
            mac: [2, 0, 0, 0, 0, *number as u8],
            address: format!("192.0.2.{}/24", number + 1).parse().unwrap(),
            gateway: None,
        };
        Routes { interfaces: uplinks.iter().map(interface).collect() }
    }

    fn key(vni: u32) -> TunnelKey {
        let remote = IpAddr::from([192, 0, 2, 200]);
        TunnelKey { source: None, remote, opaque: Opaque::Vxlan(vni), ttl: 64, dscp: 0 }
    }

    fn tunnels() -> Tunnels {
        let resolver = Resolver::new(Arc::new(Neighbours::default()));
        Tunnels::new(Arc::new(parking_lot::Mutex::new(resolver)))
    }

    #[test]
    fn equal_tunnels_are_shared_and_slots_have_generations() {
        let (mut tunnels, routes) = (tunnels(), routes(&[0]));
        let first = tunnels.acquire(key(1), &routes);
        assert_eq!(tunnels.acquire(key(1), &routes), first);
        let second = tunnels.acquire(key(2), &routes);
        assert_ne!(first.slot, second.slot);
        tunnels.release(&[first.slot]);
        assert!(tunnels.entries().get(first.slot).is_some());
        tunnels.release(&[first.slot]);
        assert!(tunnels.entries().get(first.slot).is_none() && !tunnels.knows(&key(1)));
        let third = tunnels.acquire(key(3), &routes);
        assert_eq!(third.slot, first.slot);
        assert_ne!(third.generation, first.generation);
    }

    #[test]
    fn a_path_takes_what_the_underlay_says_for_ten_minutes() {
        let (mut tunnels, routes) = (tunnels(), routes(&[0]));
        let made = tunnels.acquire(key(1), &routes);
        let mtu = |tunnels: &Tunnels, slot| tunnels.entries().get(slot).unwrap().path_mtu;
        let (remote, now) = (key(1).remote, Instant::now());
        assert!(
            !tunnels.mind_path_mtus([(IpAddr::from([192, 0, 2, 201]), 1400)], now),
            "no tunnel goes there"
        );
        assert!(tunnels.mind_path_mtus([(remote, 1400)], now));
        assert!(!tunnels.mind_path_mtus([(remote, 1450)], now), "a larger one is no news");
        assert!(!tunnels.mind_path_mtus([(remote, 1400)], now + Duration::from_secs(100)), "said again");
        let next = tunnels.acquire(key(2), &routes);
        assert_eq!((mtu(&tunnels, made.slot), mtu(&tunnels, next.slot)), (1400, 1400));
        assert!(!tunnels.mind_path_mtus([], now + Duration::from_secs(699)));
        assert!(tunnels.mind_path_mtus([], now + Duration::from_secs(700)));
        assert_eq!((mtu(&tunnels, made.slot), mtu(&tunnels, next.slot)), (ANY_MTU, ANY_MTU));
    }

    #[test]
    fn a_tunnel_keeps_its_place_when_its_way_changes() {
        let mut tunnels = tunnels();
        let made = tunnels.acquire(key(1), &routes(&[]));
        let uplink = |tunnels: &Tunnels| tunnels.entries().get(made.slot).unwrap().uplink;
        assert_eq!(uplink(&tunnels), NOWHERE);
        assert_eq!(tunnels.find_ways_again(&routes(&[])), None);
        assert_eq!(tunnels.find_ways_again(&routes(&[3])), Some(vec![NO_HOP]));
        let before = tunnels.entries();
        assert_eq!(uplink(&tunnels), PortId(3));
        let left = tunnels.find_ways_again(&routes(&[4, 3])).unwrap();
        assert_eq!(left, [before.get(made.slot).unwrap().next_hop]);
        assert_eq!((uplink(&tunnels), before.get(made.slot).unwrap().uplink), (PortId(4), PortId(3)));
        assert_eq!(tunnels.entries().get(made.slot).unwrap().generation, made.generation);
    }
}
