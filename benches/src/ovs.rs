//! A peer: Open vSwitch with DPDK, which encapsulates the same packets by the same rules between the same devices.
//!
//! It runs with a database, sockets and logs in a folder of its own, and in a network namespace of its own, which the
//! kernel removes with the process: a switch that this machine runs otherwise is not touched. A bridge has the tenant's
//! packets and a VXLAN tunnel, a second one the underlay's device; its neighbour is declared, since nobody answers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay_pipeline::cores;

use crate::child::{OwnChild, Waited};
use crate::cpu_time;
use crate::error::BenchError;
use crate::feed::{self, Feed};
use crate::flows::{here, there};
use crate::path::WARM_UP;
use crate::scenario::Scenario;

/// Where Debian keeps the switch that is built with DPDK, beside one without it that may be the one in PATH.
const SWITCHES: [&str; 2] = ["/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", "/usr/sbin/ovs-vswitchd"];
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Programs that drive it, of Open vSwitch, util-linux and iproute2.
const TOOLS: [&str; 8] =
    ["ovsdb-tool", "ovsdb-server", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "unshare", "nsenter", "ip"];
/// What one call may take: some ten milliseconds, the start of DPDK in ordinary pages some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Its own packet buffers, a quarter of a million, each in an ordinary page.
const LEAST_MEMORY_MIB: u64 = 1536;
/// Packets that pass between the two readings of counters that are compared, at most, seconds of traffic.
const READING_SECONDS: f64 = 1.0;

/// The switch's program, if the peer is installed; else the name of what is missing.
pub(crate) fn find() -> Result<PathBuf, String> {
    let missing = |what: &str| {
        format!(
            "{what} is not installed (on Debian: apt install openvswitch-switch-dpdk util-linux iproute2)"
        )
    };
    let switch = SWITCHES.iter().map(PathBuf::from).find(|path| path.is_file());
    let switch = switch.ok_or_else(|| missing("ovs-vswitchd"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    match TOOLS.iter().find(|tool| !installed(tool)) {
        Some(tool) => Err(missing(tool)),
        None if !Path::new(SCHEMA).is_file() => Err(missing(SCHEMA)),
        None => Ok(switch),
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OvsRun {
    /// Cycles of the thread that forwards, receiving and sending included.
    pub cycles_per_packet: f64,
    pub packets_per_second: f64,
}

/// How the switch is to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ovs<'a> {
    pub switch: &'a Path,
    /// Encapsulation over IPv4.
    pub scenario: &'a Scenario,
    pub packets: &'a Path,
    pub core: usize,
    pub hugepages: bool,
    /// The longest that its thread sleeps without packets, microseconds; 0: it polls.
    pub sleep_us: u32,
    /// An empty folder for everything that it writes.
    pub folder: &'a Path,
}

/// The running switch with its database, which ends after it.
#[derive(Debug)]
pub(crate) struct RunningOvs {
    switch: OwnChild,
    _server: OwnChild,
}

impl RunningOvs {
    /// Nanoseconds that each of its threads has run for, by name.
    pub(crate) fn cpu_time(&self) -> HashMap<String, u64> {
        cpu_time::of_threads(self.switch.id())
    }

    /// Nanoseconds that each of its threads has waited for a core, by name.
    pub(crate) fn waiting_time(&self) -> HashMap<String, u64> {
        cpu_time::waiting_of_threads(self.switch.id())
    }

    /// The name of the thread that forwards on a core.
    pub(crate) fn thread(&self, core: usize) -> Option<String> {
        let start = format!("pmd-c{core:02}/");
        self.cpu_time().into_keys().find(|name| name.starts_with(&start))
    }
}

impl Ovs<'_> {
    /// Forwards for `duration` after a warm-up.
    pub(crate) async fn run(&self, duration: Duration) -> Result<OvsRun, BenchError> {
        let running = self.start().await?;
        self.watch(&running.switch, duration).await
    }

    /// Starts it with its bridges, devices and flow entries.
    pub(crate) async fn start(&self) -> Result<RunningOvs, BenchError> {
        let database = self.folder.join("conf.db");
        self.tool("ovsdb-tool", [OsStr::new("create"), database.as_os_str(), OsStr::new(SCHEMA)]).await?;
        let mut server = Command::new("ovsdb-server");
        server.arg(&database).arg(format!("--remote=punix:{}", self.socket("db.sock")));
        let server = self.spawn(server.arg(format!("--unixctl={}", self.socket("db.ctl"))), "server.log")?;
        self.wait_for_socket("db.sock").await?;
        self.vsctl("--no-wait init".split(' ')).await?;
        let settings = self.settings();
        let words = ["--no-wait", "set", "Open_vSwitch", "."].into_iter();
        self.vsctl(words.chain(settings.iter().map(String::as_str))).await?;
        let mut switch = Command::new("unshare");
        switch.arg("--net").arg(self.switch).arg(format!("unix:{}", self.socket("db.sock")));
        let switch = self.spawn(switch.arg(format!("--unixctl={}", self.socket("ctl"))), "switch.log")?;
        self.vsctl(self.bridges().split_whitespace()).await?;
        self.check_devices(&switch).await?;
        self.address(&switch).await?;
        self.load_flows().await?;
        Ok(RunningOvs { switch, _server: server })
    }

    fn socket(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn spawn(&self, command: &mut Command, log: &str) -> Result<OwnChild, BenchError> {
        OwnChild::start(self.environment(command), &self.folder.join(log), false)
    }

    fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let names = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"];
        names.into_iter().fold(command, |command, name| command.env(name, self.folder))
    }

    /// Runs a program to its end; gives what it wrote.
    async fn tool<W: AsRef<OsStr>>(
        &self,
        program: &str,
        words: impl IntoIterator<Item = W>,
    ) -> Result<String, BenchError> {
        let mut command = Command::new(program);
        command.args(words);
        let mut child = self.spawn(&mut command, "tool.log")?;
        match child.wait_for(None, PATIENCE).await? {
            Waited::Ended(status) if status.success() => Ok(child.said()),
            Waited::Ended(status) => Err(fails(format!("{program} ended ({status})"), child.tail())),
            Waited::Said | Waited::Neither => Err(fails(format!("{program} does not end"), child.tail())),
        }
    }

    async fn vsctl<'w>(&self, words: impl Iterator<Item = &'w str>) -> Result<String, BenchError> {
        let own =
            [format!("--db=unix:{}", self.socket("db.sock")), format!("--timeout={}", PATIENCE.as_secs())];
        self.tool("ovs-vsctl", own.into_iter().chain(words.map(str::to_owned))).await
    }

    async fn appctl(&self, words: &str) -> Result<String, BenchError> {
        let target = ["-t".to_owned(), self.socket("ctl")];
        self.tool("ovs-appctl", target.into_iter().chain(words.split(' ').map(str::to_owned))).await
    }

    async fn wait_for_socket(&self, name: &str) -> Result<(), BenchError> {
        let (path, mut waited) = (self.folder.join(name), Duration::ZERO);
        let step = Duration::from_millis(20);
        while !path.exists() {
            if waited >= PATIENCE {
                return Err(fails("its database does not start".to_owned(), self.socket(name)));
            }
            tokio::time::sleep(step).await;
            waited += step;
        }
        Ok(())
    }

    /// What the switch needs to know before it starts. Its main thread gets another core where there is one.
    fn settings(&self) -> Vec<String> {
        let main = cores::available().into_iter().find(|core| *core != self.core).unwrap_or(self.core);
        let memory = self.scenario.memory_mib(self.hugepages).max(LEAST_MEMORY_MIB);
        let pages = match self.hugepages {
            true => String::new(),
            false => format!("--no-huge --no-shconf --legacy-mem -m {memory} "),
        };
        let extra =
            format!("{pages}--no-pci --no-telemetry --file-prefix=forebay-bench-ovs-{}", std::process::id());
        vec![
            "other_config:dpdk-init=true".to_owned(),
            format!("other_config:pmd-cpu-mask={:#x}", 1_u64 << (self.core % 64)),
            format!("other_config:dpdk-lcore-mask={:#x}", 1_u64 << (main % 64)),
            format!("other_config:pmd-maxsleep={}", self.sleep_us),
            // A value with spaces and commas stands in quotes.
            format!("other_config:dpdk-extra=\"{extra}\""),
        ]
    }

    /// Both bridges with their ports, in one call.
    fn bridges(&self) -> String {
        let (local, remote) = (here(0).ipv4, there(0).ipv4);
        let memif = |socket: PathBuf| format!("socket={},socket-abstract=no,role=server", socket.display());
        let (tenant, underlay) = match self.scenario.feed {
            Feed::Paced => (
                format!("net_memif0,{}", memif(feed::socket(self.folder, 0))),
                format!("net_memif1,{}", memif(feed::back_socket(self.folder, 0))),
            ),
            _ => (
                format!("net_pcap0,rx_pcap={},infinite_rx=1", self.packets.display()),
                "net_null0,no-rx=1".to_owned(),
            ),
        };
        format!(
            "add-br br0 -- set bridge br0 datapath_type=netdev fail-mode=secure \
             -- add-port br0 p0 -- set Interface p0 type=dpdk options:dpdk-devargs=\"{tenant}\" \
             -- add-port br0 vx0 -- set Interface vx0 type=vxlan options:remote_ip={remote} options:local_ip={local} \
             options:key=flow \
             -- add-br br1 -- set bridge br1 datapath_type=netdev \
             -- add-port br1 n0 -- set Interface n0 type=dpdk options:dpdk-devargs=\"{underlay}\""
        )
    }

    async fn check_devices(&self, switch: &OwnChild) -> Result<(), BenchError> {
        for device in ["p0", "n0"] {
            let error = self.vsctl(["get", "Interface", device, "error"].into_iter()).await?;
            if error.trim() != "[]" {
                return Err(fails(format!("it has no device {device}: {}", error.trim()), switch.tail()));
            }
        }
        Ok(())
    }

    /// The address of the underlay, and its neighbour.
    async fn address(&self, switch: &OwnChild) -> Result<(), BenchError> {
        let namespace = format!("--net=/proc/{}/ns/net", switch.id());
        let address = format!("{}/24", here(0).ipv4);
        let inside = [format!("addr add {address} dev br1"), "link set br1 up".to_owned()];
        for words in &inside {
            let words = [namespace.as_str(), "ip"].into_iter().chain(words.split(' '));
            self.tool("nsenter", words).await?;
        }
        let mac = there(0).mac.map(|byte| format!("{byte:02x}")).join(":");
        self.appctl(&format!("tnl/arp/set br1 {} {mac}", there(0).ipv4)).await.map(drop)
    }

    async fn load_flows(&self) -> Result<(), BenchError> {
        let path = self.folder.join("flows.txt");
        let written = std::fs::write(&path, flow_table(self.scenario));
        written.map_err(|source| BenchError::File { path: path.clone(), source })?;
        let (bridge, path) = (self.socket("br0.mgmt"), path.display().to_string());
        self.tool("ovs-ofctl", ["-O", "OpenFlow13", "add-flows", &bridge, &path]).await.map(drop)
    }

    async fn watch(&self, switch: &OwnChild, duration: Duration) -> Result<OvsRun, BenchError> {
        // What the first packets of each flow teach it is done once.
        tokio::time::sleep(WARM_UP + duration.min(Duration::from_secs(1))).await;
        let sent_before = sent(&self.appctl("dpctl/show -s").await?);
        self.appctl("dpif-netdev/pmd-stats-clear").await?;
        tokio::time::sleep(duration).await;
        let stats = self.appctl("dpif-netdev/pmd-stats-show").await?;
        let sent_after = sent(&self.appctl("dpctl/show -s").await?);
        let Some(thread) = thread_stats(&stats, self.core) else {
            return Err(fails("it tells nothing of its thread".to_owned(), switch.tail()));
        };
        let rate = thread.packets as f64 * self.tsc_hz() / thread.cycles.max(1) as f64;
        let sent = sent_after.zip(sent_before).map_or(0, |(new, old)| new.saturating_sub(old));
        let gap = (rate * READING_SECONDS) as u64;
        if sent + gap < thread.packets || sent == 0 {
            return Err(fails(
                format!("of {} packets received only {sent} were encapsulated and sent", thread.packets),
                switch.tail(),
            ));
        }
        let cycles_per_packet = thread.cycles as f64 / thread.packets as f64;
        Ok(OvsRun { cycles_per_packet, packets_per_second: rate })
    }

    fn tsc_hz(&self) -> f64 {
        forebay_pipeline::tsc::hz() as f64
    }
}

fn fails(what: String, tail: String) -> BenchError {
    BenchError::Ovs { what, tail }
}

/// The rules in the switch's words.
fn flow_table(scenario: &Scenario) -> String {
    let (mut text, flows) = (String::new(), scenario.flows);
    let (version, field) = if flows.ipv6 { ("ipv6", "ipv6_dst") } else { ("ip", "nw_dst") };
    for rule in 0..flows.rules {
        // Writing to a text cannot fail.
        let _ = writeln!(
            text,
            "priority=10,in_port=p0,{version},{field}={},actions=set_field:{}->tun_id,output:vx0",
            flows.prefix(rule),
            flows.vni(rule)
        );
    }
    text
}

/// What one forwarding thread did.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ThreadStats {
    packets: u64,
    cycles: u64,
}

/// The part of `pmd-stats-show` about the thread on a core.
fn thread_stats(text: &str, core: usize) -> Option<ThreadStats> {
    let part = text.split("pmd thread ").find(|part| {
        let title = part.lines().next().unwrap_or_default().trim_end().trim_end_matches(':');
        title.split_whitespace().skip_while(|word| *word != "core_id").nth(1) == Some(&core.to_string())
    })?;
    let number = |name: &str| {
        let line = part.lines().find_map(|line| line.trim_start().strip_prefix(name))?;
        line.trim_start().split(' ').next()?.trim().parse::<u64>().ok()
    };
    let stats = ThreadStats {
        packets: number("packets received:")?,
        cycles: number("processing cycles:")? + number("idle cycles:").unwrap_or(0),
    };
    (stats.packets > 0 && stats.cycles > 0).then_some(stats)
}

/// Packets that the underlay's device sent, of `dpctl/show -s`.
fn sent(text: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(": n0 ("));
    let line = lines.find_map(|line| line.strip_prefix("TX packets:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Flows;
    use crate::scenario::Direction;

    const STATS: &str = "pmd thread numa_id 0 core_id 1:\n  packets received: 3110336\n  packet recirculations: 0\n  \
                         idle cycles: 10 (0.00%)\n  processing cycles: 5267999490 (100.00%)\n  \
                         avg cycles per packet: 1693.71 (5267999490/3110336)\nmain thread:\n  packets received: 1\n";

    #[test]
    fn the_figures_of_the_right_thread_are_found() {
        let wanted = ThreadStats { packets: 3_110_336, cycles: 5_267_999_500 };
        assert_eq!(thread_stats(STATS, 1), Some(wanted));
        let two = format!("pmd thread numa_id 0 core_id 11:\n  packets received: 5\n{STATS}");
        assert_eq!(thread_stats(&two, 1), Some(wanted));
        assert_eq!(thread_stats(STATS, 0), None);
        assert_eq!(thread_stats("pmd thread numa_id 0 core_id 1:\n  packets received: 0\n", 1), None);
        assert_eq!(thread_stats("", 1), None);
    }

    #[test]
    fn what_the_underlay_sent_is_found() {
        let text = "netdev@ovs-netdev:\n  port 2: vxlan_sys_4789 (vxlan: packet_type=ptap)\n    TX packets:9 errors:?\n  \
                    port 3: n0 (dpdk: mtu=1500)\n    RX packets:0 errors:0\n    TX packets:3970349 errors:0 dropped:0\n  \
                    port 5: p0 (dpdk: mtu=1500)\n    TX packets:7 errors:0\n";
        assert_eq!(sent(text), Some(3_970_349));
        assert_eq!(sent("port 5: p0 (dpdk)\n    TX packets:7\n"), None);
    }

    #[test]
    fn it_gets_the_same_rules_core_and_packets() {
        let scenario = Scenario {
            direction: Direction::Encap,
            flows: Flows::plain(1000, 1000, 64),
            lanes: 1,
            cache_entries: 64,
            feed: Feed::Pcap,
        };
        let table = flow_table(&scenario);
        assert_eq!(table.lines().count(), 1000);
        assert!(table.starts_with(
            "priority=10,in_port=p0,ip,nw_dst=10.0.0.0/24,actions=set_field:1->tun_id,output:vx0\n"
        ));
        let ovs = Ovs {
            switch: Path::new("ovs-vswitchd"),
            scenario: &scenario,
            packets: Path::new("/tmp/p.pcap"),
            core: 3,
            hugepages: false,
            sleep_us: 7,
            folder: Path::new("/tmp/o"),
        };
        let settings = ovs.settings();
        assert!(settings.contains(&"other_config:pmd-cpu-mask=0x8".to_owned()), "{settings:?}");
        assert!(settings.iter().any(|setting| setting.contains("--no-huge")), "{settings:?}");
        assert!(settings.contains(&"other_config:pmd-maxsleep=7".to_owned()), "{settings:?}");
        assert!(ovs.bridges().contains("\"net_pcap0,rx_pcap=/tmp/p.pcap,infinite_rx=1\""));
        let paced = Scenario { feed: Feed::Paced, ..scenario };
        let bridges = Ovs { scenario: &paced, ..ovs }.bridges();
        for (device, socket) in [("net_memif0", "/tmp/o/memif0"), ("net_memif1", "/tmp/o/back0")] {
            let words = format!("\"{device},socket={socket},socket-abstract=no,role=server\"");
            assert!(bridges.contains(&words), "{words} is not in {bridges}");
        }
    }
}
