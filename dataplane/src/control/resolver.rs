//! Finds the MACs of the underlay's next hops: neighbour resolution and its ageing, for ARP and ND alike.
//!
//! A state machine driven by time and by what workers saw; it sends nothing itself but says what to ask. States and
//! times are those of RFC 4861: a MAC is believed for [`REACHABLE`] after it was last confirmed; then, if workers use
//! it, the neighbour is asked again, while its MAC stays in use until [`TRIES`] questions have gone unanswered.

use crate::action::PortId;
use crate::snapshot::{MAX_NEIGHBOURS, Neighbours};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a confirmation holds (RFC 4861, REACHABLE_TIME).
pub const REACHABLE: Duration = Duration::from_secs(30);
/// Between questions (RFC 4861, RETRANS_TIMER).
pub const RETRANSMIT: Duration = Duration::from_secs(1);
/// Questions before giving up (RFC 4861, MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT).
pub const TRIES: u32 = 3;
/// How long a slot that was given back rests: longer than packets wait for a next hop, so that none of them takes the MAC
/// of the slot's next owner.
const REST: Duration = Duration::from_secs(5);

/// "Who has this address?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The uplink to ask on.
    pub uplink: PortId,
    /// The address.
    pub address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has asked for it.
    Unknown,
    /// Asked; so many times, next at.
    Asking(u32, Instant),
    /// Confirmed at.
    Reachable(Instant),
    /// Configured: neither asked for nor aged.
    Static,
}

struct Entry {
    uplink: PortId,
    address: IpAddr,
    mac: Option<[u8; 6]>,
    state: State,
    references: usize,
}

/// No slot is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_NEIGHBOURS} next hops (reach remotes through a gateway, or use fewer of them)")]
pub struct NoSlot;

/// The next hops of a host.
pub struct Resolver {
    neighbours: Arc<Neighbours>,
    entries: Vec<Option<Entry>>,
    by_address: HashMap<(PortId, IpAddr), u32>,
    resting: VecDeque<(Instant, u32)>,
    configured: HashMap<(PortId, IpAddr), [u8; 6]>,
}

impl Resolver {
    /// Writes MACs to `neighbours`.
    pub fn new(neighbours: Arc<Neighbours>) -> Resolver {
        Resolver {
            neighbours,
            entries: Vec::new(),
            by_address: HashMap::new(),
            resting: VecDeque::new(),
            configured: HashMap::new(),
        }
    }

    /// The neighbours that are configured, in place of those before.
    pub fn configure(&mut self, configured: HashMap<(PortId, IpAddr), [u8; 6]>) {
        self.configured = configured;
        for (slot, entry) in self.entries.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            let mac = self.configured.get(&(entry.uplink, entry.address)).copied();
            if mac.is_some() || entry.state == State::Static {
                entry.mac = mac;
                entry.state = if mac.is_some() { State::Static } else { State::Unknown };
                self.neighbours.set(slot as u32, mac);
            }
        }
    }

    /// The slot of a next hop, with one more reference to it.
    ///
    /// # Errors
    /// Every slot is taken.
    pub fn acquire(&mut self, uplink: PortId, address: IpAddr, now: Instant) -> Result<u32, NoSlot> {
        if let Some(slot) = self.by_address.get(&(uplink, address)) {
            if let Some(Some(entry)) = self.entries.get_mut(*slot as usize) {
                entry.references += 1;
            }
            return Ok(*slot);
        }
        let slot = match self.resting.front() {
            Some((since, slot)) if now.duration_since(*since) >= REST => {
                let slot = *slot;
                self.resting.pop_front();
                slot
            }
            _ if self.entries.len() < MAX_NEIGHBOURS => {
                self.entries.push(None);
                (self.entries.len() - 1) as u32
            }
            _ => return Err(NoSlot),
        };
        let mac = self.configured.get(&(uplink, address)).copied();
        let state = if mac.is_some() { State::Static } else { State::Unknown };
        self.neighbours.set(slot, mac);
        self.entries[slot as usize] = Some(Entry { uplink, address, mac, state, references: 1 });
        self.by_address.insert((uplink, address), slot);
        Ok(slot)
    }

    /// Whether a next hop has a slot.
    pub fn knows(&self, uplink: PortId, address: IpAddr) -> bool {
        self.by_address.contains_key(&(uplink, address))
    }

    /// How many more next hops there is room for.
    pub fn room(&self, now: Instant) -> usize {
        let rested = self.resting.iter().take_while(|(since, _)| now.duration_since(*since) >= REST).count();
        MAX_NEIGHBOURS - self.entries.len() + rested
    }

    /// Gives one reference back. No worker may look at a tunnel to this slot any more when the last one goes.
    pub fn release(&mut self, slot: u32, now: Instant) {
        let Some(place) = self.entries.get_mut(slot as usize) else { return };
        let Some(entry) = place else { return };
        entry.references -= 1;
        if entry.references == 0 {
            self.by_address.remove(&(entry.uplink, entry.address));
            *place = None;
            self.neighbours.set(slot, None);
            self.resting.push_back((now, slot));
        }
    }

    /// A neighbour said that it has an address: believed where the address is a next hop (RFC 826 updates, and does not
    /// add, for packets that ask for somebody else).
    pub fn seen(&mut self, uplink: PortId, address: IpAddr, mac: [u8; 6], now: Instant) {
        let Some(slot) = self.by_address.get(&(uplink, address)) else { return };
        if let Some(Some(entry)) = self.entries.get_mut(*slot as usize)
            && entry.state != State::Static
        {
            if entry.mac != Some(mac) {
                entry.mac = Some(mac);
                self.neighbours.set(*slot, Some(mac));
            }
            entry.state = State::Reachable(now);
        }
    }

    /// Packets wait for a slot: what to ask, unless that is being asked already.
    pub fn wanted(&mut self, slot: u32, now: Instant) -> Option<Question> {
        let entry = self.entries.get_mut(slot as usize)?.as_mut()?;
        if entry.mac.is_some() || matches!(entry.state, State::Asking(..)) {
            return None;
        }
        entry.state = State::Asking(1, now + RETRANSMIT);
        Some(Question { uplink: entry.uplink, address: entry.address })
    }

    /// What time demands to be asked. To be called several times a second.
    pub fn tick(&mut self, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        for (slot, entry) in self.entries.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            let slot = slot as u32;
            match entry.state {
                State::Asking(tries, next) if next <= now && tries >= TRIES => {
                    entry.mac = None;
                    entry.state = State::Unknown;
                    self.neighbours.set(slot, None);
                }
                State::Asking(tries, next) if next <= now => {
                    entry.state = State::Asking(tries + 1, now + RETRANSMIT);
                    questions.push(Question { uplink: entry.uplink, address: entry.address });
                }
                State::Reachable(since)
                    if now.duration_since(since) >= REACHABLE && self.neighbours.take_used(slot) =>
                {
                    entry.state = State::Asking(1, now + RETRANSMIT);
                    questions.push(Question { uplink: entry.uplink, address: entry.address });
                }
                State::Unknown | State::Asking(..) | State::Reachable(_) | State::Static => {}
            }
        }
        questions
    }

    /// The MAC of a next hop as known now.
    pub fn mac(&self, slot: u32) -> Option<[u8; 6]> {
        self.entries.get(slot as usize)?.as_ref()?.mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: PortId = PortId(3);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn resolver() -> (Resolver, Arc<Neighbours>, Instant) {
        let neighbours = Arc::new(Neighbours::default());
        (Resolver::new(neighbours.clone()), neighbours, Instant::now())
    }

    #[test]
    fn a_next_hop_is_asked_for_once_and_then_known() {
        let (mut resolver, neighbours, now) = resolver();
        let slot = resolver.acquire(UPLINK, address(2), now).unwrap();
        assert_eq!(resolver.wanted(slot, now), Some(Question { uplink: UPLINK, address: address(2) }));
        assert_eq!(resolver.wanted(slot, now), None);
        resolver.seen(UPLINK, address(9), [9; 6], now);
        assert_eq!(neighbours.resolve(slot), None);
        resolver.seen(UPLINK, address(2), MAC, now);
        assert_eq!(neighbours.resolve(slot), Some(MAC));
        assert!(resolver.tick(now + RETRANSMIT).is_empty());
    }

    #[test]
    fn an_absent_next_hop_is_asked_for_three_times() {
        let (mut resolver, neighbours, now) = resolver();
        let slot = resolver.acquire(UPLINK, address(2), now).unwrap();
        let mut asked = usize::from(resolver.wanted(slot, now).is_some());
        for tenths in 1..100 {
            asked += resolver.tick(now + tenths * Duration::from_millis(100)).len();
        }
        assert_eq!((asked, neighbours.resolve(slot)), (3, None));
        assert!(
            resolver.wanted(slot, now + Duration::from_secs(10)).is_some(),
            "asked again when wanted again"
        );
    }

    #[test]
    fn a_used_next_hop_is_confirmed_and_a_silent_one_forgotten() {
        let (mut resolver, neighbours, now) = resolver();
        let slot = resolver.acquire(UPLINK, address(2), now).unwrap();
        resolver.seen(UPLINK, address(2), MAC, now);
        assert!(resolver.tick(now + REACHABLE).is_empty(), "nobody uses it");
        neighbours.resolve(slot);
        assert_eq!(resolver.tick(now + REACHABLE).len(), 1);
        assert_eq!(neighbours.resolve(slot), Some(MAC), "it stays in use while it is asked");
        let silent = now + REACHABLE;
        assert_eq!(resolver.tick(silent + RETRANSMIT).len(), 1);
        assert_eq!(resolver.tick(silent + 2 * RETRANSMIT).len(), 1);
        assert!(resolver.tick(silent + 3 * RETRANSMIT).is_empty());
        assert_eq!(neighbours.resolve(slot), None);
    }

    #[test]
    fn a_changed_mac_is_taken_over() {
        let (mut resolver, neighbours, now) = resolver();
        let slot = resolver.acquire(UPLINK, address(2), now).unwrap();
        resolver.seen(UPLINK, address(2), MAC, now);
        resolver.seen(UPLINK, address(2), [2, 0, 0, 0, 0, 8], now);
        assert_eq!(neighbours.resolve(slot), Some([2, 0, 0, 0, 0, 8]));
    }

    #[test]
    fn a_configured_neighbour_stays_what_it_is() {
        let (mut resolver, neighbours, now) = resolver();
        let before = resolver.acquire(UPLINK, address(2), now).unwrap();
        resolver.configure(HashMap::from([((UPLINK, address(2)), MAC), ((UPLINK, address(3)), MAC)]));
        let after = resolver.acquire(UPLINK, address(3), now).unwrap();
        resolver.seen(UPLINK, address(2), [2, 0, 0, 0, 0, 8], now);
        assert_eq!((neighbours.resolve(before), neighbours.resolve(after)), (Some(MAC), Some(MAC)));
        assert_eq!(resolver.wanted(before, now), None);
        assert!(resolver.tick(now + 2 * REACHABLE).is_empty());
        resolver.configure(HashMap::new());
        assert_eq!(neighbours.resolve(before), None);
        assert!(resolver.wanted(before, now).is_some());
    }

    #[test]
    fn slots_are_shared_counted_and_rested() {
        let (mut resolver, _, now) = resolver();
        let slot = resolver.acquire(UPLINK, address(2), now).unwrap();
        assert_eq!(resolver.acquire(UPLINK, address(2), now), Ok(slot));
        resolver.release(slot, now);
        assert_eq!(resolver.acquire(UPLINK, address(2), now), Ok(slot));
        resolver.release(slot, now);
        resolver.release(slot, now);
        assert_ne!(resolver.acquire(UPLINK, address(3), now), Ok(slot), "it rests");
        assert_eq!(resolver.acquire(UPLINK, address(4), now + REST), Ok(slot));
    }

    #[test]
    fn a_full_table_says_so() {
        let (mut resolver, _, now) = resolver();
        for number in 0..MAX_NEIGHBOURS as u32 {
            resolver.acquire(UPLINK, IpAddr::from(number.to_be_bytes()), now).unwrap();
        }
        assert_eq!(resolver.acquire(UPLINK, address(2), now), Err(NoSlot));
    }
}
