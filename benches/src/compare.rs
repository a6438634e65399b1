//! `forebay bench compare`: Forebay beside every peer that is installed, in turns, on the same core, devices and packets.
//!
//! What remains of a program's cycles after those of testpmd, which only receives and sends, is what it does with packets.
//! Invariant: a peer that is not installed is named as missing, never left out without a word.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::args::ComparePlan;
use crate::daemon::{Daemon, Setup};
use crate::error::BenchError;
use crate::figures::Spread;
use crate::machine::{self, Machine};
use crate::ovs::{self, Ovs};
use crate::path::{WARM_UP, folder, interruptible, measure, subfolder};
use crate::report::Table;
use crate::scenario::Scenario;
use crate::testpmd::{self, Testpmd};

const FOREBAY: &str = "forebay";
const TESTPMD: &str = "testpmd io";
const OVS: &str = "ovs-dpdk";

/// One program's figures, a value for each run.
#[derive(Clone, Debug, Default)]
struct Peer {
    name: &'static str,
    /// Cycles of the thread that forwards, receiving and sending included.
    cycles_per_packet: Vec<f64>,
}

/// A finished comparison.
#[derive(Debug)]
struct Comparison {
    plan: ComparePlan,
    machine: Machine,
    hugepages: bool,
    peers: Vec<Peer>,
    /// Name and reason of each peer that is not there.
    missing: Vec<(&'static str, String)>,
}

/// Runs the comparison; gives what is to be written.
pub(crate) fn run(plan: &ComparePlan) -> Result<String, BenchError> {
    interruptible(async {
        let (folder, machine) = (folder()?, Machine::look());
        plan.scenario.write_packets(folder.path())?;
        let hugepages = machine::free_hugepages_mib() >= plan.scenario.memory_mib(true);
        let comparison = Comparison::new(plan.clone(), machine, hugepages);
        let comparison = comparison.measure(folder.path()).await?;
        Ok(if plan.json { comparison.to_json().to_string() } else { comparison.to_text() })
    })
}

impl Comparison {
    fn new(plan: ComparePlan, machine: Machine, hugepages: bool) -> Self {
        let peer = |name| Peer { name, ..Peer::default() };
        let mut comparison =
            Self { plan, machine, hugepages, peers: vec![peer(FOREBAY)], missing: Vec::new() };
        match testpmd::find() {
            Some(_) => comparison.peers.push(peer(TESTPMD)),
            None => comparison.missing.push((TESTPMD, testpmd::missing())),
        }
        match ovs::find() {
            Ok(_) => comparison.peers.push(peer(OVS)),
            Err(reason) => comparison.missing.push((OVS, reason)),
        }
        comparison
    }

    async fn measure(mut self, folder: &Path) -> Result<Self, BenchError> {
        for number in 0..self.plan.runs {
            for place in 0..self.peers.len() {
                let name = self.peers.get(place).map_or(FOREBAY, |peer| peer.name);
                let own = subfolder(folder, &format!("run{number}-{place}"))?;
                let cycles = self.turn(name, folder, &own).await?;
                self.peers
                    .iter_mut()
                    .skip(place)
                    .take(1)
                    .for_each(|peer| peer.cycles_per_packet.push(cycles));
            }
        }
        Ok(self)
    }

    /// One program's turn; gives its cycles per packet.
    async fn turn(&self, name: &str, folder: &Path, own: &Path) -> Result<f64, BenchError> {
        let (scenario, hugepages) = (&self.plan.scenario, self.hugepages);
        let (packets, core) = (Scenario::file(folder, 0), self.plan.core);
        match (name, testpmd::find(), ovs::find()) {
            (TESTPMD, Some(program), _) => {
                let testpmd = Testpmd { program: &program, scenario, packets: &packets, core, hugepages };
                testpmd.run(own, WARM_UP + self.plan.duration).await
            }
            (OVS, _, Ok(switch)) => {
                let (switch, packets) = (switch.as_path(), packets.as_path());
                let ovs = Ovs { switch, scenario, packets, core, hugepages, sleep_us: 0, folder: own };
                Ok(ovs.run(self.plan.duration).await?.cycles_per_packet)
            }
            _ => {
                let setup = Setup { scenario, packets: folder, cores: &[core], hugepages, idle: None };
                let daemon = Daemon::start(setup, own).await?;
                Ok(measure(scenario, self.plan.duration, &daemon).await?.worker_cycles_per_packet)
            }
        }
    }

    fn cycles(&self, peer: &Peer) -> Spread {
        Spread::of(peer.cycles_per_packet.iter().copied())
    }

    /// Median cycles per packet of testpmd.
    fn io_cycles(&self) -> Option<f64> {
        self.peers.iter().find(|peer| peer.name == TESTPMD).map(|peer| self.cycles(peer).median)
    }

    fn to_json(&self) -> Value {
        let flows = self.plan.scenario.flows;
        let peers: Vec<Value> = self.peers.iter().map(|peer| self.peer_json(peer)).collect();
        let missing = |(name, reason): &(&str, String)| json!({"name": name, "reason": reason});
        json!({
            "benchmark": "compare",
            "flows": flows.sequence.flows,
            "rules": flows.rules,
            "size_bytes": flows.sizes.longest(),
            "core": self.plan.core,
            "seconds": self.plan.duration.as_secs_f64(),
            "runs": self.plan.runs,
            "hugepages": self.hugepages,
            "peers": peers,
            "missing": self.missing.iter().map(missing).collect::<Vec<_>>(),
            "machine": self.machine.to_json(),
        })
    }

    fn peer_json(&self, peer: &Peer) -> Value {
        let mut object = Map::new();
        object.insert("name".to_owned(), peer.name.into());
        let cycles = self.cycles(peer);
        cycles.put(&mut object, "cycles_per_packet", 2);
        let hz = self.machine.tsc_hz() as f64;
        let rate = Spread::of(peer.cycles_per_packet.iter().map(|cycles| hz / cycles));
        rate.put(&mut object, "packets_per_second", 0);
        let beyond = self.io_cycles().map(|io| crate::figures::rounded((cycles.median - io).max(0.0), 2));
        object.insert("cycles_beyond_io".to_owned(), beyond.unwrap_or_default());
        Value::Object(object)
    }

    fn to_text(&self) -> String {
        let flows = self.plan.scenario.flows;
        let mut table = Table::new(format!(
            "compare: cycles/packet of encap, {} flows, {} rules, {} bytes, core {}, {} runs of {} s, {} pages",
            flows.sequence.flows,
            flows.rules,
            flows.sizes.longest(),
            self.plan.core,
            self.plan.runs,
            self.plan.duration.as_secs_f64(),
            if self.hugepages { "huge" } else { "ordinary" },
        ));
        for peer in &self.peers {
            table.row(peer.name, self.cycles(peer), 1);
        }
        let io = self.io_cycles();
        for peer in self.peers.iter().filter(|peer| peer.name != TESTPMD) {
            if let Some(io) = io {
                let own = (self.cycles(peer).median - io).max(0.0);
                table.line(&format!("{}: {own:.1} cycles/packet beyond those of testpmd io", peer.name));
            }
        }
        for (name, reason) in &self.missing {
            table.line(&format!("no {name}: {reason}"));
        }
        table.line(&self.machine.to_text());
        table.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::feed::Feed;
    use crate::flows::Flows;
    use crate::scenario::Direction;

    fn comparison() -> Comparison {
        let flows = Flows::plain(10, 20, 64);
        let plan = ComparePlan {
            scenario: Scenario {
                direction: Direction::Encap,
                flows,
                lanes: 1,
                cache_entries: 64,
                feed: Feed::Pcap,
            },
            core: 1,
            duration: Duration::from_secs(1),
            runs: 3,
            json: true,
        };
        let peer = |name, cycles: [f64; 3]| Peer { name, cycles_per_packet: cycles.to_vec() };
        Comparison {
            plan,
            machine: Machine::look(),
            hugepages: false,
            peers: vec![peer(FOREBAY, [300.0, 290.0, 310.0]), peer(TESTPMD, [100.0; 3])],
            missing: vec![(OVS, "ovs-vswitchd is not installed".to_owned())],
        }
    }

    #[test]
    fn json_has_every_peer_and_names_those_missing() {
        let json = comparison().to_json();
        assert_eq!(json["peers"][0]["name"], "forebay");
        assert_eq!(
            (&json["peers"][0]["cycles_per_packet"], &json["peers"][0]["cycles_per_packet_max"]),
            (&json!(300.0), &json!(310.0))
        );
        assert_eq!(json["peers"][0]["cycles_beyond_io"], 200.0);
        assert_eq!(json["peers"][1]["cycles_beyond_io"], 0.0);
        assert!(json["peers"][1]["packets_per_second"].as_u64().unwrap() > 0);
        assert_eq!(json["missing"][0]["name"], "ovs-dpdk");
    }

    #[test]
    fn without_io_nothing_is_taken_off() {
        let mut comparison = comparison();
        comparison.peers.truncate(1);
        assert_eq!(comparison.to_json()["peers"][0]["cycles_beyond_io"], Value::Null);
        assert!(!comparison.to_text().contains("beyond"));
    }

    #[test]
    fn the_table_says_what_is_missing() {
        let text = comparison().to_text();
        assert!(text.contains("forebay: 200.0 cycles/packet beyond those of testpmd io"), "{text}");
        assert!(text.contains("no ovs-dpdk: ovs-vswitchd is not installed"), "{text}");
    }
}
