//! The rules of the test's host, from their JSON lines to the tables of a snapshot; a small stand-in for the control
//! side's compiler.

use crate::host::{TRUNK, UPLINK, UPLINK_MAC, VM1, VM2, VM3, VM4};
use forebay_api::rule_json::parse_rule;
use forebay_dataplane::action::{Action, PortId, TunnelRef};
use forebay_dataplane::counters::DropReason;
use forebay_dataplane::rules::key::KEY_WORDS;
use forebay_dataplane::rules::pattern::{INGRESS_WORDS, Pattern, opaque_bits, precedence};
use forebay_dataplane::rules::rule::{Forward, Opaque, Rule, RuleAction, Scope};
use forebay_dataplane::rules::table::{Table, TableRule};
use forebay_dataplane::snapshot::{Tunnel, TunnelTable};
use forebay_dataplane::wire::vxlan::Template;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The rules. Tenants A to D have the VNIs 100 to 400; 101 to 105 show single actions.
pub const RULES: &[&str] = &[
    r#"{"id":"a4","port":"vm1","match":{"dst":"10.1.0.2/32"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.2","inner_dst_mac":"02:00:00:00:01:02"}}}"#,
    r#"{"id":"a6","port":"vm1","match":{"dst":"fd00:1::2/128"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"2001:db8::2"}}}"#,
    r#"{"id":"a2","port":"vm1","match":{"dst_mac":"02:00:00:00:01:66"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.2"}}}"#,
    r#"{"id":"a2-6","port":"vm1","match":{"dst_mac":"02:00:00:00:01:67"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"2001:db8::2"}}}"#,
    r#"{"id":"a-tag","port":"vm1","match":{"dst":"10.1.0.3/32"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.3","push_vlan":9,"ttl":7,"dscp":46}}}"#,
    r#"{"id":"a-tag6","port":"vm1","match":{"dst":"fd00:1::3/128"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"2001:db8::2","push_vlan":9,"ttl":7,"dscp":46}}}"#,
    r#"{"id":"a-path","port":"vm1","match":{"dst":"10.5.0.0/16"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.2","ttl":9}}}"#,
    r#"{"id":"a-drop","port":"vm1","priority":10,"match":{"dst":"10.9.0.0/16","proto":"tcp","dst_port":"8000-8999"},"action":"drop"}"#,
    r#"{"id":"a-trap","port":"vm1","match":{"dst":"10.8.0.1/32"},"action":"trap"}"#,
    r#"{"id":"a-dead","port":"vm1","match":{"dst":"10.7.0.0/16"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.9"}}}"#,
    r#"{"id":"a-dead2","port":"vm1","match":{"dst":"10.6.0.0/16"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.8"}}}"#,
    r#"{"id":"a-vm4","port":"vm1","match":{"dst_mac":"02:00:00:00:05:01"},"action":{"deliver":{"port":"vm4"}}}"#,
    r#"{"id":"a-trunk","port":"vm1","match":{"dst_mac":"02:00:00:00:04:01"},"action":{"deliver":{"port":"trunk"}}}"#,
    r#"{"id":"a-vm3","port":"vm1","match":{"dst_mac":"02:00:00:00:03:01"},"action":{"deliver":{"port":"vm3","pop_vlan":true}}}"#,
    r#"{"id":"b","port":"vm2","match":{},"action":{"forward":{"tunnel":"vxlan","vni":200,"remote":"192.0.2.3"}}}"#,
    r#"{"id":"c","port":"vm3","match":{},"action":{"forward":{"tunnel":"vxlan","vni":300,"remote":"192.0.2.3"}}}"#,
    r#"{"id":"d","port":"trunk","match":{},"action":{"forward":{"tunnel":"vxlan","vni":400,"remote":"2001:db8::2"}}}"#,
    r#"{"id":"ia1","ingress":{"tunnel":"vxlan","vni":100},"match":{"dst_mac":"02:00:00:00:01:01"},"action":{"deliver":{"port":"vm1"}}}"#,
    r#"{"id":"ia4","ingress":{"tunnel":"vxlan","vni":100},"match":{"dst_mac":"02:00:00:00:05:01"},"action":{"deliver":{"port":"vm4"}}}"#,
    r#"{"id":"ia-pop","ingress":{"tunnel":"vxlan","vni":101},"action":{"deliver":{"port":"vm1","pop_vlan":true}}}"#,
    r#"{"id":"ia-push","ingress":{"tunnel":"vxlan","vni":102},"action":{"deliver":{"port":"vm1","push_vlan":5}}}"#,
    r#"{"id":"ia-swap","ingress":{"tunnel":"vxlan","vni":103},"action":{"deliver":{"port":"vm1","pop_vlan":true,"push_vlan":5}}}"#,
    r#"{"id":"ia-trap","ingress":{"tunnel":"vxlan","vni":104},"action":"trap"}"#,
    r#"{"id":"ia-local","ingress":{"tunnel":"vxlan","vni":105,"local":"192.0.2.77","remote":"192.0.2.2/32","uplink":"uplink0"},"action":{"deliver":{"port":"vm1"}}}"#,
    r#"{"id":"ib","ingress":{"tunnel":"vxlan","vni":200},"action":{"deliver":{"port":"vm2"}}}"#,
    r#"{"id":"ic","ingress":{"tunnel":"vxlan","vni":300},"action":{"deliver":{"port":"vm3"}}}"#,
    r#"{"id":"id","ingress":{"tunnel":"vxlan","vni":400},"action":{"deliver":{"port":"trunk"}}}"#,
];

/// The next hops, each remote being one of its own.
#[derive(Default)]
pub struct Hops(HashMap<IpAddr, u32>);

impl Hops {
    /// The slot of a remote.
    pub fn slot(&self, remote: &str) -> u32 {
        self.0[&remote.parse::<IpAddr>().unwrap()]
    }

    fn acquire(&mut self, remote: IpAddr) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(remote).or_insert(next)
    }
}

/// The compiled rules.
#[derive(Default)]
pub struct Plan {
    pub egress: HashMap<PortId, Arc<Table<KEY_WORDS>>>,
    pub ingress: Arc<Table<INGRESS_WORDS>>,
    pub tunnels: TunnelTable,
    pub known_tunnels: Arc<HashSet<u64>>,
    pub hops: Hops,
    pub slots: Vec<u32>,
    /// Of every port and of the ingress rules; no two plans have the same.
    pub generation: u32,
}

static NEXT_GENERATION: AtomicU32 = AtomicU32::new(1);

fn port(name: &str) -> PortId {
    match name {
        "uplink0" => UPLINK,
        "vm1" => VM1,
        "vm2" => VM2,
        "vm3" => VM3,
        "vm4" => VM4,
        "trunk" => TRUNK,
        other => panic!("no port {other}"),
    }
}

/// What the path of tunnels with a TTL of 9 takes; all others take anything.
pub const PATH_MTU: u16 = 1400;

fn tunnel(forward: &Forward, hops: &mut Hops) -> Tunnel {
    let source: IpAddr = if forward.remote.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap();
    let Opaque::Vxlan(vni) = forward.tunnel;
    let template = Template::new(UPLINK_MAC, source, forward.remote, vni, forward.ttl, forward.dscp).unwrap();
    Tunnel {
        generation: 1,
        template,
        uplink: UPLINK,
        next_hop: hops.acquire(forward.remote),
        path_mtu: if forward.ttl == 9 { PATH_MTU } else { u16::MAX },
    }
}

/// Compiles [`RULES`], each line changed by `change`; a line that becomes empty is left out.
pub fn tables(change: impl Fn(&str) -> &str) -> Plan {
    let mut plan = Plan { generation: NEXT_GENERATION.fetch_add(1, Ordering::Relaxed), ..Plan::default() };
    let (mut egress, mut ingress, mut tunnels) = (HashMap::<PortId, Vec<_>>::new(), Vec::new(), Vec::new());
    let mut known = HashSet::new();
    let lines = RULES.iter().map(|line| change(line)).filter(|line| !line.is_empty());
    for (slot, line) in lines.enumerate() {
        let rule = Rule::from_canonical(&parse_rule(line).unwrap()).unwrap();
        let action = match &rule.action {
            RuleAction::Forward(forward) => {
                tunnels.push(Some(tunnel(forward, &mut plan.hops)));
                let tunnel = TunnelRef { slot: tunnels.len() as u32 - 1, generation: 1 };
                let inner_dst_mac = forward.inner_dst_mac.map(|mac| mac.0);
                Action::Forward { tunnel, inner_dst_mac, push_vlan: forward.push_vlan.unwrap_or(0) }
            }
            RuleAction::Deliver { port: to, pop_vlan, push_vlan } => {
                Action::Deliver { port: port(to), pop_vlan: *pop_vlan, push_vlan: push_vlan.unwrap_or(0) }
            }
            RuleAction::Trap => Action::Trap,
            RuleAction::Drop => Action::Drop(DropReason::RuleDrop),
        };
        let (precedence, id) = (precedence(rule.priority, &rule.matches), rule.id.clone());
        let (slot, names_layer2) = (slot as u32, rule.matches.names_layer2());
        plan.slots.push(slot);
        match &rule.scope {
            Scope::Egress(name) => {
                let pattern = Pattern::egress(&rule.matches);
                let rule = TableRule { pattern, precedence, id, slot, action, names_layer2 };
                egress.entry(port(name)).or_default().push(rule);
            }
            Scope::Ingress(scope) => {
                known.insert(opaque_bits(scope.tunnel));
                let uplink = scope.uplink.as_ref().map(|name| port(name).0);
                let pattern =
                    Pattern::ingress(&rule.matches, scope.tunnel, scope.local, scope.remote, uplink);
                ingress.push(TableRule { pattern, precedence, id, slot, action, names_layer2 });
            }
        }
    }
    plan.egress = egress.into_iter().map(|(port, rules)| (port, Arc::new(Table::compile(rules)))).collect();
    plan.ingress = Arc::new(Table::compile(ingress));
    plan.tunnels = tunnels.into_iter().collect();
    plan.known_tunnels = Arc::new(known);
    plan
}
