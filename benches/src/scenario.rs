//! What is measured: the ports, the packets and the rules of a direction, as a user would write them.

use std::path::Path;

use forebay_api::v1;

use crate::error::BenchError;
use crate::flows::{Flows, HERE, Station, TENANT, THERE};
use crate::pcap;

/// The tenant's port.
const VF: &str = "vm1";
/// The port to the underlay.
const UPLINK: &str = "uplink0";
/// The underlay's MTU: the longest frame of a tenant, with room for any tunnel.
const UPLINK_MTU_BYTES: u16 = 1700;
/// Packet buffers beside those that hold the flows: queues, bursts, rings and threads' caches take some thousands.
const SPARE_BUFFERS: u64 = 16_384;
/// Memory of one packet buffer: 2048 bytes of data, the room before them, DPDK's own fields, rounded up.
const BUFFER_BYTES: u64 = 2560;
/// In ordinary pages each buffer has its own: DPDK lets none cross from one into the next.
const PAGE_BYTES: u64 = 4096;
/// The daemon's default is 512; less makes it start faster where there are no huge pages.
const LEAST_MEMORY_MIB: u64 = 256;

/// Which way the packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the tenant to the underlay.
    Encap,
    /// From the underlay to the tenant.
    Decap,
}

/// A benchmark's ports, packets and rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub direction: Direction,
    pub flows: Flows,
}

impl Scenario {
    /// The port that receives, and the one that sends.
    pub(crate) fn ports(&self) -> (&'static str, &'static str) {
        match self.direction {
            Direction::Encap => (VF, UPLINK),
            Direction::Decap => (UPLINK, VF),
        }
    }

    /// Packet buffers that the device needs: it keeps one for each packet of its file and copies from them.
    pub(crate) fn buffers(&self) -> u64 {
        u64::from(self.flows.count) + SPARE_BUFFERS
    }

    /// Memory that DPDK needs, MiB. Three quarters of it become packet buffers.
    pub(crate) fn memory_mib(&self, hugepages: bool) -> u64 {
        let bytes = self.buffers() * if hugepages { BUFFER_BYTES } else { PAGE_BYTES } * 4 / 3;
        bytes.div_ceil(1 << 20).max(LEAST_MEMORY_MIB)
    }

    /// Writes the packets that are received for ever.
    pub(crate) fn write_packets(&self, path: &Path) -> Result<usize, BenchError> {
        match self.direction {
            Direction::Encap => pcap::write_file(path, self.flows.egress_frames()),
            Direction::Decap => pcap::write_file(path, self.flows.ingress_frames()),
        }
    }

    /// The `[[port]]` tables of the config file. The underlay's other host is a neighbour by declaration, since nobody
    /// answers behind these devices.
    pub(crate) fn port_tables(&self, packets: &Path) -> String {
        let (source, sink) = (format!("pcap:{},infinite_rx=1", packets.display()), "null:".to_owned());
        let (vf, uplink) = match self.direction {
            Direction::Encap => (source, sink),
            Direction::Decap => (sink, source),
        };
        let neighbour = format!("{}={}", self.address(THERE), mac_text(THERE.mac));
        let own = if self.flows.ipv6 {
            format!("ipv6 = \"{}/64\"", HERE.ipv6)
        } else {
            format!("ipv4 = \"{}/24\"", HERE.ipv4)
        };
        format!(
            "[[port]]\nname = \"{UPLINK}\"\nkind = \"uplink\"\ndevice = \"{uplink}\"\nmac = \"{}\"\n{own}\n\
             mtu = {UPLINK_MTU_BYTES}\nneighbors = [\"{neighbour}\"]\n\n\
             [[port]]\nname = \"{VF}\"\nkind = \"vf\"\ndevice = \"{vf}\"\nmac = \"{}\"\nip = [\"{}\"]\n",
            mac_text(HERE.mac),
            mac_text(TENANT.mac),
            self.address(TENANT),
        )
    }

    /// The rules, each with its own network. To the underlay: a prefix of peers each. From the underlay: all that is for
    /// the tenant's MAC.
    pub(crate) fn rules(&self) -> impl Iterator<Item = v1::Rule> + use<> {
        let scenario = *self;
        (0..self.flows.rules).map(move |number| match scenario.direction {
            Direction::Encap => scenario.egress_rule(number),
            Direction::Decap => ingress_rule(number),
        })
    }

    fn egress_rule(&self, number: u32) -> v1::Rule {
        let forward = v1::Forward {
            tunnel: Some(vxlan(number)),
            remote: self.address(THERE),
            ..v1::Forward::default()
        };
        v1::Rule {
            id: format!("bench-{number}"),
            port: VF.to_owned(),
            r#match: Some(v1::Match { dst: self.flows.prefix(number), ..v1::Match::default() }),
            action: Some(v1::Action { kind: Some(v1::action::Kind::Forward(forward)) }),
            ..v1::Rule::default()
        }
    }

    fn address(&self, station: Station) -> String {
        if self.flows.ipv6 { station.ipv6.to_string() } else { station.ipv4.to_string() }
    }
}

fn ingress_rule(number: u32) -> v1::Rule {
    let deliver = v1::Deliver { port: VF.to_owned(), ..v1::Deliver::default() };
    v1::Rule {
        id: format!("bench-{number}"),
        ingress: Some(v1::Ingress { tunnel: Some(vxlan(number)), ..v1::Ingress::default() }),
        r#match: Some(v1::Match { dst_mac: mac_text(TENANT.mac), ..v1::Match::default() }),
        action: Some(v1::Action { kind: Some(v1::action::Kind::Deliver(deliver)) }),
        ..v1::Rule::default()
    }
}

fn vxlan(number: u32) -> v1::Tunnel {
    v1::Tunnel { kind: Some(v1::tunnel::Kind::Vxlan(v1::Vxlan { vni: Flows::vni(number) })) }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use forebay_api::rule_check;

    use super::*;

    fn scenario(direction: Direction, rules: u32, ipv6: bool) -> Scenario {
        Scenario { direction, flows: Flows { count: 1, rules, frame_bytes: 64, ipv6 } }
    }

    #[test]
    fn rules_are_canonical_and_different() {
        for direction in [Direction::Encap, Direction::Decap] {
            for ipv6 in [false, true] {
                let rules: Vec<_> = scenario(direction, 1000, ipv6).rules().collect();
                assert_eq!(rules.len(), 1000);
                for rule in &rules {
                    let mut canonical = rule.clone();
                    rule_check::canonical(&mut canonical).unwrap();
                    assert_eq!(&canonical, rule);
                }
                let mut contents: Vec<_> = rules.iter().map(|rule| format!("{rule:?}")).collect();
                contents.dedup();
                assert_eq!(contents.len(), 1000);
            }
        }
    }

    #[test]
    fn ports_face_the_right_way() {
        let text = scenario(Direction::Encap, 1, false).port_tables(Path::new("/tmp/a.pcap"));
        let (uplink, vf) = text.split_once("\n\n").unwrap();
        assert!(
            uplink.contains("device = \"null:\"") && uplink.contains("ipv4 = \"192.0.2.1/24\""),
            "{text}"
        );
        assert!(uplink.contains("neighbors = [\"192.0.2.2=02:00:00:00:00:02\"]"), "{text}");
        assert!(
            vf.contains("device = \"pcap:/tmp/a.pcap,infinite_rx=1\"")
                && vf.contains("ip = [\"172.16.0.1\"]")
        );
        let decap = scenario(Direction::Decap, 1, true);
        let text = decap.port_tables(Path::new("/tmp/a.pcap"));
        let (uplink, vf) = text.split_once("\n\n").unwrap();
        assert!(uplink.contains("pcap:") && uplink.contains("ipv6 = \"2001:db8::1/64\""), "{text}");
        assert!(uplink.contains("2001:db8::2=02:00:00:00:00:02") && vf.contains("null:"), "{text}");
        assert_eq!(decap.ports(), ("uplink0", "vm1"));
    }

    #[test]
    fn memory_follows_the_flows() {
        let memory = |count, hugepages| {
            let mut scenario = scenario(Direction::Encap, 1, false);
            scenario.flows.count = count;
            scenario.memory_mib(hugepages) << 20
        };
        assert_eq!(memory(1, false), LEAST_MEMORY_MIB << 20);
        for count in [65_536, 1 << 20] {
            let buffers = u64::from(count) + SPARE_BUFFERS;
            assert!(memory(count, true) * 3 / 4 >= buffers * BUFFER_BYTES);
            assert!(memory(count, false) * 3 / 4 >= buffers * PAGE_BYTES);
        }
    }
}
