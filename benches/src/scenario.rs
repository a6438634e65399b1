//! What is measured: the ports, the packets and the rules of a direction, as a user would write them.

use std::path::{Path, PathBuf};

use forebay_api::v1;

use crate::error::BenchError;
use crate::feed::{self, Feed};
use crate::flows::{Flows, here, tenant, there};
use crate::pcap;

/// Names of a lane's ports: the tenant's, and the one to the underlay.
const VF: &str = "vm";
const UPLINK: &str = "uplink";
const ETHERNET_HEADER_BYTES: usize = 14;
/// The longest packet that every port takes.
const USUAL_MTU_BYTES: usize = 1500;
/// What DPDK's usual packet buffer holds.
const USUAL_BUFFER_BYTES: usize = 2048;
/// Packet buffers beside those that hold the flows: queues, bursts, rings and threads' caches take some thousands.
const SPARE_BUFFERS: u64 = 16_384;
/// Memory of a packet buffer beside the data: the room before them, DPDK's own fields, rounded up.
const BUFFER_OVERHEAD_BYTES: u64 = 512;
/// In ordinary pages a buffer begins its own: DPDK lets none cross from one into the next.
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
    /// The flows of the first lane; the others have as many, and as many rules.
    pub flows: Flows,
    /// Tenants with an uplink each: one for each core. Devices of one queue are given to the workers in turn, so that
    /// what a core receives it also sends.
    pub lanes: u8,
    /// Flows that each worker remembers.
    pub cache_entries: u32,
    /// Where the packets come from.
    pub feed: Feed,
}

impl Scenario {
    fn lane(&self, lane: u8) -> Flows {
        Flows { lane, ..self.flows }
    }

    /// The ports that receive, and those that send.
    pub(crate) fn ports(&self) -> (Vec<String>, Vec<String>) {
        let lanes = 0..self.lanes;
        let uplinks = lanes.clone().map(|lane| format!("{UPLINK}{lane}")).collect();
        let tenants =
            lanes.flat_map(|lane| (0..self.flows.ports).map(move |port| vf_name(lane, port))).collect();
        match self.direction {
            Direction::Encap => (tenants, uplinks),
            Direction::Decap => (uplinks, tenants),
        }
    }

    /// Packets of a lane's file.
    pub(crate) fn packets(&self) -> u32 {
        self.flows.sequence.packets()
    }

    /// Rules of all lanes that see packets.
    pub(crate) fn rules_hit(&self) -> u32 {
        self.flows.rules_hit() * u32::from(self.lanes)
    }

    /// Packet buffers that the devices need: those of files keep one for each packet and copy from them.
    pub(crate) fn buffers(&self) -> u64 {
        let kept = if self.feed.keeps_packets() { u64::from(self.packets()) } else { 0 };
        kept * u64::from(self.lanes) + SPARE_BUFFERS
    }

    /// Bytes of data that a packet buffer has to hold: the device repeats only packets that lie in one piece.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.flows.longest_outer_bytes().max(USUAL_BUFFER_BYTES)
    }

    /// Memory that DPDK needs, MiB. Three quarters of it become packet buffers.
    pub(crate) fn memory_mib(&self, hugepages: bool) -> u64 {
        let each = self.buffer_bytes() as u64 + BUFFER_OVERHEAD_BYTES;
        let each = if hugepages { each } else { each.next_multiple_of(PAGE_BYTES) };
        let bytes = self.buffers() * each * 4 / 3;
        bytes.div_ceil(1 << 20).max(LEAST_MEMORY_MIB)
    }

    /// The file of a lane's packets.
    pub(crate) fn file(folder: &Path, lane: u8) -> PathBuf {
        folder.join(format!("packets{lane}.pcap"))
    }

    /// Writes the packets that are received for ever.
    pub(crate) fn write_packets(&self, folder: &Path) -> Result<(), BenchError> {
        for lane in 0..self.lanes {
            let (path, flows) = (Self::file(folder, lane), self.lane(lane));
            match self.direction {
                Direction::Encap => pcap::write_file(&path, flows.egress_frames()),
                Direction::Decap => pcap::write_file(&path, flows.ingress_frames()),
            }?;
        }
        Ok(())
    }

    /// The device that swallows what is sent. The daemon makes its buffers as long as the longest frame of such a device.
    pub(crate) fn sink(&self, lane: u8) -> String {
        match self.buffer_bytes() {
            USUAL_BUFFER_BYTES => "null:".to_owned(),
            bytes => format!("dpdk:net_null_sink{lane},size={bytes},no-rx=1"),
        }
    }

    /// The `[[port]]` tables of the config file; uplinks first, so that the devices of a lane go to one worker. The
    /// underlay's other host is a neighbour by declaration, since nobody answers behind these devices.
    /// `packets` is where the files are, `own` the daemon's folder.
    pub(crate) fn port_tables(&self, packets: &Path, own: &Path) -> String {
        let device = |lane, direction| match (self.direction == direction, self.feed) {
            (true, feed) => feed.device(packets, own, lane),
            (false, Feed::Paced) => format!("memif:{}", feed::back_socket(own, lane).display()),
            (false, _) => self.sink(lane),
        };
        let longest_bytes = self.flows.longest_outer_bytes().max(USUAL_BUFFER_BYTES);
        let mtu = (longest_bytes - ETHERNET_HEADER_BYTES).max(USUAL_MTU_BYTES);
        let uplink = |lane| {
            let (here, there, mac) = (here(lane), there(lane), mac_text(there(lane).mac));
            let (address, gateway) = match self.flows.underlay_ipv6 {
                true => (format!("ipv6 = \"{}/64\"", here.ipv6), there.ipv6.to_string()),
                false => (format!("ipv4 = \"{}/24\"", here.ipv4), there.ipv4.to_string()),
            };
            format!(
                "[[port]]\nname = \"{UPLINK}{lane}\"\nkind = \"uplink\"\ndevice = \"{}\"\nmac = \"{}\"\n\
                 {address}\ngateway = \"{gateway}\"\nmtu = {mtu}\nneighbors = [\"{gateway}={mac}\"]\n\n",
                device(lane, Direction::Decap),
                mac_text(here.mac),
            )
        };
        let vf = |lane, port| {
            let (name, own) = (vf_name(lane, port), tenant(lane, port));
            let address = if self.flows.ipv6 { own.ipv6.to_string() } else { own.ipv4.to_string() };
            let device = match port {
                0 => device(lane, Direction::Encap),
                tag => format!("vlan:{}/{tag}", vf_name(lane, 0)),
            };
            format!(
                "[[port]]\nname = \"{name}\"\nkind = \"vf\"\ndevice = \"{device}\"\nmac = \"{}\"\n\
                 ip = [\"{address}\"]\nmtu = {mtu}\n\n",
                mac_text(own.mac),
            )
        };
        let vfs = (0..self.lanes).flat_map(|lane| (0..self.flows.ports).map(move |port| (lane, port)));
        (0..self.lanes).map(uplink).chain(vfs.map(|(lane, port)| vf(lane, port))).collect()
    }

    /// Rules of all lanes.
    pub(crate) fn rule_count(&self) -> u64 {
        u64::from(self.flows.rules) * u64::from(self.lanes)
    }

    /// The rules. To the underlay: a prefix of peers each. From the underlay: all that comes through its network for the
    /// tenant's MAC; where rules share a network, from a prefix of peers each.
    pub(crate) fn rules(&self) -> impl Iterator<Item = v1::Rule> + Send + use<> {
        let scenario = *self;
        (0..self.lanes)
            .flat_map(move |lane| (0..scenario.flows.rules).map(move |number| scenario.rule(lane, number)))
    }

    /// One rule of a lane.
    pub(crate) fn rule(&self, lane: u8, number: u32) -> v1::Rule {
        let flows = self.lane(lane);
        let id = format!("bench-{}", u64::from(lane) * u64::from(flows.rules) + u64::from(number));
        let tunnel = Some(vxlan(flows.vni(number)));
        let port = vf_name(lane, flows.port(number));
        match self.direction {
            Direction::Encap => {
                let remote = flows.remote(number);
                let remote = match flows.underlay_ipv6 {
                    true => remote.ipv6.to_string(),
                    false => remote.ipv4.to_string(),
                };
                let forward = v1::Forward { tunnel, remote, ..v1::Forward::default() };
                v1::Rule {
                    id,
                    port,
                    r#match: Some(v1::Match { dst: flows.prefix(number), ..v1::Match::default() }),
                    action: Some(v1::Action { kind: Some(v1::action::Kind::Forward(forward)) }),
                    ..v1::Rule::default()
                }
            }
            Direction::Decap => {
                let deliver = v1::Deliver { port, ..v1::Deliver::default() };
                let src = flows.tunnels.map(|_| flows.prefix(number)).unwrap_or_default();
                let dst_mac = mac_text(tenant(lane, flows.port(number)).mac);
                v1::Rule {
                    id,
                    ingress: Some(v1::Ingress { tunnel, ..v1::Ingress::default() }),
                    r#match: Some(v1::Match { dst_mac, src, ..v1::Match::default() }),
                    action: Some(v1::Action { kind: Some(v1::action::Kind::Deliver(deliver)) }),
                    ..v1::Rule::default()
                }
            }
        }
    }
}

/// The name of a port of a lane's tenants.
fn vf_name(lane: u8, port: u16) -> String {
    match port {
        0 => format!("{VF}{lane}"),
        tag => format!("{VF}{lane}-{tag}"),
    }
}

fn vxlan(vni: u32) -> v1::Tunnel {
    v1::Tunnel { kind: Some(v1::tunnel::Kind::Vxlan(v1::Vxlan { vni })) }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use forebay_api::rule_check;

    use super::*;
    use crate::sequence::Sizes;

    fn scenario(direction: Direction, rules: u32, ipv6: bool) -> Scenario {
        let flows = Flows { ipv6, underlay_ipv6: ipv6, ..Flows::plain(1, rules, 64) };
        Scenario { direction, flows, lanes: 1, cache_entries: 64, feed: Feed::Pcap }
    }

    #[test]
    fn rules_are_canonical_and_different() {
        for direction in [Direction::Encap, Direction::Decap] {
            for (ipv6, tunnels) in [(false, None), (true, None), (false, Some(7)), (true, Some(7))] {
                let mut scenario = scenario(direction, 500, ipv6);
                (scenario.flows.tunnels, scenario.lanes) = (tunnels, 2);
                let rules: Vec<_> = scenario.rules().collect();
                assert_eq!((rules.len(), scenario.rule_count()), (1000, 1000));
                for rule in &rules {
                    let mut canonical = rule.clone();
                    rule_check::canonical(&mut canonical).unwrap();
                    assert_eq!(&canonical, rule);
                }
                let contents: std::collections::HashSet<_> = rules
                    .iter()
                    .map(|rule| format!("{:?}", v1::Rule { id: String::new(), ..rule.clone() }))
                    .collect();
                assert_eq!(contents.len(), 1000);
            }
        }
    }

    #[test]
    fn ports_face_the_right_way() {
        let text = scenario(Direction::Encap, 1, false).port_tables(Path::new("/tmp"), Path::new("/tmp/run"));
        let (uplink, vf) = text.split_once("\n\n").unwrap();
        assert!(
            uplink.contains("device = \"null:\"") && uplink.contains("ipv4 = \"192.0.2.1/24\""),
            "{text}"
        );
        assert!(uplink.contains("neighbors = [\"192.0.2.2=02:00:00:00:00:02\"]"), "{text}");
        assert!(
            vf.contains("device = \"pcap:/tmp/packets0.pcap,infinite_rx=1\"")
                && vf.contains("ip = [\"172.16.0.1\"]")
        );
        let decap = scenario(Direction::Decap, 1, true);
        let text = decap.port_tables(Path::new("/tmp"), Path::new("/tmp/run"));
        let (uplink, vf) = text.split_once("\n\n").unwrap();
        assert!(uplink.contains("pcap:") && uplink.contains("ipv6 = \"2001:db8::1/64\""), "{text}");
        assert!(uplink.contains("2001:db8::2=02:00:00:00:00:02") && vf.contains("null:"), "{text}");
        assert_eq!(decap.ports(), (vec!["uplink0".to_owned()], vec!["vm0".to_owned()]));
    }

    #[test]
    fn each_lane_has_two_ports_and_uplinks_come_first() {
        let text = Scenario { lanes: 3, ..scenario(Direction::Encap, 1, false) }
            .port_tables(Path::new("/tmp"), Path::new("/tmp/run"));
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
        let wanted = ["uplink0", "uplink1", "uplink2", "vm0", "vm1", "vm2"].map(|name| format!("\"{name}\""));
        assert_eq!(names, wanted);
    }

    #[test]
    fn further_ports_are_behind_tags_of_the_first() {
        let mut scenario = scenario(Direction::Encap, 6, false);
        scenario.flows.ports = 3;
        let text = scenario.port_tables(Path::new("/tmp"), Path::new("/tmp/run"));
        let tables: Vec<_> = text.split("[[port]]\n").skip(1).collect();
        assert_eq!(tables.len(), 4, "{text}");
        assert!(tables[1].contains("name = \"vm0\"") && tables[1].contains("device = \"pcap:"), "{text}");
        assert!(
            tables[3].contains("name = \"vm0-2\"") && tables[3].contains("device = \"vlan:vm0/2\""),
            "{text}"
        );
        assert!(tables[3].contains("ip = [\"198.18.0.2\"]"), "{text}");
        assert_eq!(scenario.ports().0, ["vm0", "vm0-1", "vm0-2"]);
        let ports: Vec<_> = scenario.rules().map(|rule| rule.port).collect();
        assert_eq!(ports, ["vm0", "vm0-1", "vm0-2", "vm0", "vm0-1", "vm0-2"]);
    }

    #[test]
    fn long_frames_get_long_buffers_and_links() {
        let mut long = scenario(Direction::Encap, 1, false);
        long.flows.sizes = Sizes::Fixed(9000);
        assert_eq!(long.buffer_bytes(), 9050);
        let text = long.port_tables(Path::new("/tmp"), Path::new("/tmp/run"));
        assert!(text.contains("device = \"dpdk:net_null_sink0,size=9050,no-rx=1\""), "{text}");
        assert!(text.contains("mtu = 9036\n"), "{text}");
        long.flows.sequence.flows = 65_536;
        assert!(long.memory_mib(true) << 20 >= 65_536 * 9050);
    }

    #[test]
    fn memory_follows_the_packets() {
        let memory = |count, hugepages| {
            let mut scenario = scenario(Direction::Encap, 1, false);
            scenario.flows.sequence.flows = count;
            scenario.memory_mib(hugepages) << 20
        };
        assert_eq!(memory(1, false), LEAST_MEMORY_MIB << 20);
        for count in [65_536, 1 << 20] {
            let buffers = u64::from(count) + SPARE_BUFFERS;
            assert!(memory(count, true) * 3 / 4 >= buffers * 2560);
            assert!(memory(count, false) * 3 / 4 >= buffers * PAGE_BYTES);
        }
    }
}
