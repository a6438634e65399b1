//! The book of rules: every rule of the host by its id, resolved to port numbers and tunnels, and compiled into tables.
//!
//! A change is planned first ([`Book::plan`]: everything that can be wrong is found there and nothing is changed), made
//! durable by the caller, and then applied ([`Book::apply`]), which cannot fail.

use super::resolver::Resolver;
use super::routes::{Route, Routes};
use super::tunnels::{TunnelKey, Tunnels};
use crate::action::{Action, PortId};
use crate::counters::{DropReason, MAX_RULES};
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::{INGRESS_WORDS, Pattern, opaque_bits, precedence};
use crate::rules::rule::{Forward, Rule, RuleAction, Scope};
use crate::rules::table::{Table, TableRule};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

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

/// What a port is to rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A tenant's.
    Vf,
    /// To the underlay.
    Uplink,
}

/// The ports by name.
pub type PortNames = BTreeMap<String, (PortId, PortKind)>;

struct Stored {
    rule: Rule,
    action: Action,
    tunnel: Option<TunnelKey>,
}

/// The rules of a host.
#[derive(Default)]
pub struct Book {
    by_id: HashMap<Arc<str>, u32>,
    slots: Vec<Option<Stored>>,
    free: Vec<u32>,
    egress: HashMap<Arc<str>, BTreeSet<u32>>,
    ingress: BTreeSet<u32>,
    mentions: HashMap<Arc<str>, usize>,
}

/// A change that can be applied.
#[derive(Default)]
pub struct Plan {
    /// Rules that are new or different; the last of each id, with its place among the rules that were offered.
    pub put: Vec<(usize, Rule)>,
    /// Ids of rules that go.
    pub delete: Vec<Arc<str>>,
    /// Rules that stand there already.
    pub unchanged: usize,
}

/// What a change touched.
#[derive(Default)]
pub struct Touched {
    /// Ports whose egress rules changed, by name.
    pub ports: BTreeSet<Arc<str>>,
    /// The ingress rules changed.
    pub ingress: bool,
    /// Slots of rules that are new: their counters start now.
    pub slots: Vec<u32>,
    /// Slots of rules that are gone: to be given back when no worker counts there any more.
    pub freed: Vec<u32>,
    /// Tunnels that rules do not use any more: to be released when no worker looks at them.
    pub tunnels: Vec<TunnelKey>,
}

/// What ingress rules say about the outside of tunnels.
#[derive(Default)]
pub struct IngressScopes {
    /// The tunnels that some rule names.
    pub known: HashSet<u64>,
    /// Addresses that uplinks answer for, with the uplink's name where the rule gives it.
    pub locals: Vec<(Option<Arc<str>>, std::net::IpAddr)>,
}

impl IngressScopes {
    /// The addresses that this uplink answers for.
    pub fn locals_of(&self, uplink: &str) -> Vec<std::net::IpAddr> {
        let here =
            self.locals.iter().filter(|(named, _)| named.as_ref().is_none_or(|named| &**named == uplink));
        here.map(|(_, local)| *local).collect()
    }
}

/// Everything outside the book that rules refer to.
pub struct World<'a> {
    /// The ports.
    pub ports: &'a PortNames,
    /// The ways to the underlay.
    pub routes: &'a Routes,
    /// The next hops.
    pub resolver: &'a parking_lot::Mutex<Resolver>,
}

impl Book {
    /// The number of rules.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// No rules.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Some rule forwards into a tunnel.
    pub fn forwards(&self) -> bool {
        self.slots.iter().flatten().any(|stored| matches!(stored.rule.action, RuleAction::Forward(_)))
    }

    /// The counters' slot of a rule.
    pub fn slot(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// Rules that name a port, wherever, and the smallest id among them.
    pub fn mentions(&self, port: &str) -> Option<(usize, Arc<str>)> {
        let count = *self.mentions.get(port)?;
        let rules = self.slots.iter().flatten().map(|stored| &stored.rule);
        let first =
            rules.filter(|rule| mentioned(rule).any(|name| &**name == port)).map(|rule| &rule.id).min()?;
        Some((count, first.clone()))
    }

    /// The number of rules that name a port.
    pub fn mention_count(&self, port: &str) -> usize {
        self.mentions.get(port).copied().unwrap_or(0)
    }

    /// Every id of the rules of a port's table, or of all rules, sorted.
    pub fn ids(&self, port: Option<&str>) -> Vec<Arc<str>> {
        let mut ids: Vec<Arc<str>> = match port {
            Some(port) => {
                let slots = self.egress.get(port).into_iter().flatten();
                slots
                    .filter_map(|slot| self.slots.get(*slot as usize)?.as_ref())
                    .map(|stored| stored.rule.id.clone())
                    .collect()
            }
            None => self.by_id.keys().cloned().collect(),
        };
        ids.sort_unstable();
        ids
    }

    /// Finds out what putting these rules would change.
    ///
    /// # Errors
    /// The first rule that cannot be accepted.
    pub fn plan_put(&self, rules: Vec<Rule>, world: &World<'_>) -> Result<Plan, RuleError> {
        let mut plan = Plan::default();
        let mut last: HashMap<Arc<str>, usize> = HashMap::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            check(rule, world)?;
            last.insert(rule.id.clone(), index);
        }
        let mut new = 0;
        for (index, rule) in rules.into_iter().enumerate() {
            if last.get(&rule.id) != Some(&index) {
                continue;
            }
            match self.by_id.get(&rule.id).and_then(|slot| self.slots.get(*slot as usize)?.as_ref()) {
                Some(stored) if stored.rule == rule => plan.unchanged += 1,
                Some(_) => plan.put.push((index, rule)),
                None => {
                    new += 1;
                    plan.put.push((index, rule));
                }
            }
        }
        let count = self.by_id.len() + new;
        if count > MAX_RULES {
            return Err(RuleError::TooMany { count });
        }
        check_next_hops(&plan.put, world)?;
        Ok(plan)
    }

    /// Finds out whether these rules can be deleted.
    ///
    /// # Errors
    /// The first id that is not there.
    pub fn plan_delete(&self, ids: &[String]) -> Result<Plan, RuleError> {
        let mut delete: Vec<Arc<str>> = Vec::with_capacity(ids.len());
        for id in ids {
            match self.by_id.get_key_value(id.as_str()) {
                Some((id, _)) => delete.push(id.clone()),
                None => return Err(RuleError::NoRule { id: id.clone() }),
            }
        }
        delete.sort_unstable();
        delete.dedup();
        Ok(Plan { delete, ..Plan::default() })
    }

    /// Makes a planned change.
    pub fn apply(&mut self, plan: Plan, world: &World<'_>, tunnels: &mut Tunnels) -> Touched {
        let mut touched = Touched::default();
        for id in plan.delete {
            self.remove(&id, &mut touched);
        }
        for (_, rule) in plan.put {
            self.remove(&rule.id.clone(), &mut touched);
            self.insert(rule, world, tunnels, &mut touched);
        }
        touched
    }

    fn remove(&mut self, id: &str, touched: &mut Touched) {
        let Some(slot) = self.by_id.remove(id) else { return };
        let Some(stored) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        touched.freed.push(slot);
        for name in mentioned(&stored.rule) {
            if let Some(count) = self.mentions.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.mentions.remove(name);
                }
            }
        }
        match &stored.rule.scope {
            Scope::Egress(port) => {
                if let Some(slots) = self.egress.get_mut(port) {
                    slots.remove(&slot);
                }
                touched.ports.insert(port.clone());
            }
            Scope::Ingress(_) => {
                self.ingress.remove(&slot);
                touched.ingress = true;
            }
        }
        touched.tunnels.extend(stored.tunnel);
    }

    fn insert(&mut self, rule: Rule, world: &World<'_>, tunnels: &mut Tunnels, touched: &mut Touched) {
        let (action, tunnel) = resolve(&rule, world, tunnels);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        for name in mentioned(&rule) {
            *self.mentions.entry(name.clone()).or_default() += 1;
        }
        match &rule.scope {
            Scope::Egress(port) => {
                self.egress.entry(port.clone()).or_default().insert(slot);
                touched.ports.insert(port.clone());
            }
            Scope::Ingress(_) => {
                self.ingress.insert(slot);
                touched.ingress = true;
            }
        }
        self.by_id.insert(rule.id.clone(), slot);
        touched.slots.push(slot);
        self.slots[slot as usize] = Some(Stored { rule, action, tunnel });
    }

    /// Gives the slots of deleted rules to the rules to come.
    pub fn reuse(&mut self, slots: Vec<u32>) {
        self.free.extend(slots);
    }

    /// Resolves every rule anew, after ports have come or gone.
    pub fn resolve_again(&mut self, world: &World<'_>, tunnels: &mut Tunnels) -> Touched {
        let mut touched = Touched { ingress: true, ..Touched::default() };
        for stored in self.slots.iter_mut().flatten() {
            let (action, tunnel) = resolve(&stored.rule, world, tunnels);
            stored.action = action;
            touched.tunnels.extend(std::mem::replace(&mut stored.tunnel, tunnel));
        }
        touched.ports = self.egress.keys().cloned().collect();
        touched
    }

    /// Compiles the rules of a port.
    pub fn egress_table(&self, port: &str) -> Table<KEY_WORDS> {
        let slots = self.egress.get(port).into_iter().flatten();
        Table::compile(slots.filter_map(|slot| {
            let Stored { rule, action, .. } = self.slots.get(*slot as usize)?.as_ref()?;
            Some(table_rule(rule, *action, *slot, Pattern::egress(&rule.matches)))
        }))
    }

    /// Compiles the rules of the uplinks; rules of an uplink that is not there are left out.
    pub fn ingress_table(&self, ports: &PortNames) -> Table<INGRESS_WORDS> {
        Table::compile(self.ingress.iter().filter_map(|slot| {
            let Stored { rule, action, .. } = self.slots.get(*slot as usize)?.as_ref()?;
            let Scope::Ingress(scope) = &rule.scope else { return None };
            let uplink = match &scope.uplink {
                Some(name) => Some(ports.get(&**name)?.0.0),
                None => None,
            };
            let pattern = Pattern::ingress(&rule.matches, scope.tunnel, scope.local, scope.remote, uplink);
            Some(table_rule(rule, *action, *slot, pattern))
        }))
    }

    /// The tunnels that ingress rules name, and the addresses that uplinks answer for because of them.
    pub fn ingress_scopes(&self) -> IngressScopes {
        let mut scopes = IngressScopes::default();
        for slot in &self.ingress {
            let Some(Some(Stored { rule: Rule { scope: Scope::Ingress(scope), .. }, .. })) =
                self.slots.get(*slot as usize)
            else {
                continue;
            };
            scopes.known.insert(opaque_bits(scope.tunnel));
            scopes.locals.extend(scope.local.map(|local| (scope.uplink.clone(), local)));
        }
        scopes
    }
}

fn table_rule<const W: usize>(rule: &Rule, action: Action, slot: u32, pattern: Pattern<W>) -> TableRule<W> {
    TableRule {
        pattern,
        precedence: precedence(rule.priority, &rule.matches),
        id: rule.id.clone(),
        slot,
        action,
        names_layer2: rule.matches.names_layer2(),
    }
}

/// The ports that a rule names; one that is named twice comes once.
fn mentioned(rule: &Rule) -> impl Iterator<Item = &Arc<str>> {
    let scope = match &rule.scope {
        Scope::Egress(port) => Some(port),
        Scope::Ingress(ingress) => ingress.uplink.as_ref(),
    };
    let action = match &rule.action {
        RuleAction::Deliver { port, .. } => Some(port),
        RuleAction::Forward(_) | RuleAction::Trap | RuleAction::Drop => None,
    };
    scope.into_iter().chain(action.filter(move |port| Some(*port) != scope))
}

fn check(rule: &Rule, world: &World<'_>) -> Result<(), RuleError> {
    let id = || rule.id.to_string();
    match &rule.scope {
        Scope::Egress(port) => check_port(rule, "port", port, PortKind::Vf, world)?,
        Scope::Ingress(ingress) => {
            if let Some(uplink) = &ingress.uplink {
                check_port(rule, "ingress.uplink", uplink, PortKind::Uplink, world)?;
            }
            if matches!(rule.action, RuleAction::Forward(_)) {
                return Err(RuleError::IngressForward { id: id() });
            }
        }
    }
    check_match(rule)?;
    match &rule.action {
        RuleAction::Deliver { port, .. } => {
            check_port(rule, "action.deliver.port", port, PortKind::Vf, world)
        }
        RuleAction::Forward(forward) => world
            .routes
            .find(forward.remote)
            .map(|_| ())
            .map_err(|why| RuleError::NoRoute { id: id(), remote: forward.remote.to_string(), why }),
        RuleAction::Trap | RuleAction::Drop => Ok(()),
    }
}

/// Finds out whether there is a slot for each next hop that these rules add.
fn check_next_hops(rules: &[(usize, Rule)], world: &World<'_>) -> Result<(), RuleError> {
    let resolver = world.resolver.lock();
    let mut room = resolver.room(std::time::Instant::now());
    let mut new = HashSet::new();
    for (_, rule) in rules {
        let RuleAction::Forward(forward) = &rule.action else { continue };
        let Ok(route) = world.routes.find(forward.remote) else { continue };
        if resolver.knows(route.uplink, route.next_hop) || !new.insert((route.uplink, route.next_hop)) {
            continue;
        }
        room = room.checked_sub(1).ok_or_else(|| RuleError::NextHops {
            id: rule.id.to_string(),
            source: super::resolver::NoSlot,
        })?;
    }
    Ok(())
}

fn check_port(
    rule: &Rule,
    field: &'static str,
    port: &str,
    wanted: PortKind,
    world: &World<'_>,
) -> Result<(), RuleError> {
    let word = |kind| match kind {
        PortKind::Vf => "a vf",
        PortKind::Uplink => "an uplink",
    };
    match world.ports.get(port) {
        Some((_, kind)) if *kind == wanted => Ok(()),
        Some((_, kind)) => Err(RuleError::WrongKind {
            id: rule.id.to_string(),
            field,
            port: port.to_owned(),
            is: word(*kind),
            wanted: word(wanted),
        }),
        None => Err(RuleError::NoPort { id: rule.id.to_string(), field, port: port.to_owned() }),
    }
}

/// Finds matches that contradict themselves.
fn check_match(rule: &Rule) -> Result<(), RuleError> {
    use crate::wire::ethertype::{IPV4, IPV6};
    let matches = &rule.matches;
    let family = matches.dst.or(matches.src).map(|net| if net.addr().is_ipv4() { IPV4 } else { IPV6 });
    let needs_ip = matches.proto.is_some()
        || matches.dscp.is_some()
        || matches.src_port.is_some()
        || matches.dst_port.is_some();
    let why = match (matches.ethertype, family) {
        (Some(ethertype), Some(family)) if ethertype != family => {
            "ethertype and the prefixes' IP version differ"
        }
        (Some(ethertype), None) if needs_ip && ethertype != IPV4 && ethertype != IPV6 => {
            "proto, ports and dscp belong to IP, which ethertype is not"
        }
        _ => return Ok(()),
    };
    Err(RuleError::Never { id: rule.id.to_string(), why })
}

/// The action in numbers. What is not there (a port that was configured when the rule was loaded, and is not any more)
/// drops as a port that is down, until it comes back.
fn resolve(rule: &Rule, world: &World<'_>, tunnels: &mut Tunnels) -> (Action, Option<TunnelKey>) {
    match &rule.action {
        RuleAction::Trap => (Action::Trap, None),
        RuleAction::Drop => (Action::Drop(DropReason::RuleDrop), None),
        RuleAction::Deliver { port, pop_vlan, push_vlan } => match world.ports.get(&**port) {
            Some((port, PortKind::Vf)) => {
                let push_vlan = push_vlan.unwrap_or(0);
                (Action::Deliver { port: *port, pop_vlan: *pop_vlan, push_vlan }, None)
            }
            Some((_, PortKind::Uplink)) | None => (Action::Drop(DropReason::PortDown), None),
        },
        RuleAction::Forward(forward) => resolve_forward(forward, world, tunnels),
    }
}

fn resolve_forward(
    forward: &Forward,
    world: &World<'_>,
    tunnels: &mut Tunnels,
) -> (Action, Option<TunnelKey>) {
    let Ok(Route { uplink, source, next_hop, mac }) = world.routes.find(forward.remote) else {
        return (Action::Drop(DropReason::PortDown), None);
    };
    let key = TunnelKey {
        uplink,
        source: forward.source.unwrap_or(source),
        remote: forward.remote,
        opaque: forward.tunnel,
        ttl: forward.ttl,
        dscp: forward.dscp,
    };
    match tunnels.acquire(key, next_hop, mac) {
        Some(tunnel) => {
            let inner_dst_mac = forward.inner_dst_mac.map(|mac| mac.0);
            (Action::Forward { tunnel, inner_dst_mac, push_vlan: forward.push_vlan.unwrap_or(0) }, Some(key))
        }
        None => (Action::Drop(DropReason::NoNeighbor), None),
    }
}
