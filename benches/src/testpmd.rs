//! The baseline: DPDK's own `dpdk-testpmd`, forwarding the same packets between the same devices without looking at them.
//!
//! What it needs per packet is the least that receiving and sending cost on this machine; what Forebay needs beyond it is
//! Forebay's own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay_pipeline::{BATCH, cores};

use crate::child::{OwnChild, Waited};
use crate::error::BenchError;
use crate::scenario::Scenario;

const PROGRAM: &str = "dpdk-testpmd";
/// What it writes, and flushes, right before it forwards.
const STARTED: &str = "Checking link statuses...";
/// Before the figure.
const FIGURE: &str = "CPU cycles/packet=";
/// Room that DPDK keeps before the data of a packet, part of what testpmd calls the size of a buffer.
const HEADROOM_BYTES: usize = 128;
const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Where the program is, if it is installed.
pub(crate) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|program| program.is_file())
}

/// Why there is no baseline.
pub(crate) fn missing() -> String {
    format!("{PROGRAM} is not installed (on Debian: apt install dpdk-dev)")
}

/// How testpmd is to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Testpmd<'a> {
    pub program: &'a Path,
    pub scenario: &'a Scenario,
    pub packets: &'a Path,
    /// The core that forwards.
    pub core: usize,
    pub hugepages: bool,
}

impl Testpmd<'_> {
    /// Forwards for `duration`; gives the cycles per packet of the rounds that had packets.
    pub(crate) async fn run(&self, folder: &Path, duration: Duration) -> Result<f64, BenchError> {
        let mut command = Command::new(self.program);
        command.args(self.arguments());
        let mut child = OwnChild::start(&mut command, &folder.join("testpmd.log"), true)?;
        let Some(mut input) = child.take_stdin() else {
            return Err(BenchError::Testpmd { what: "it has no input".to_owned(), tail: child.tail() });
        };
        let fails = |what: &str, child: &OwnChild| {
            Err(BenchError::Testpmd { what: what.to_owned(), tail: child.tail() })
        };
        match child.wait_for(Some(STARTED), START_PATIENCE).await? {
            Waited::Said => {}
            Waited::Ended(status) => return fails(&format!("it ended ({status}) at the start"), &child),
            Waited::Neither => return fails("it did not start in time", &child),
        }
        tokio::time::sleep(duration).await;
        // It forwards until a line comes.
        let told = input.write_all(b"\n");
        told.map_err(|source| BenchError::System { what: "tell testpmd to stop", source })?;
        match child.wait_for(None, STOP_PATIENCE).await? {
            Waited::Ended(_) => {}
            Waited::Said | Waited::Neither => return fails("it did not stop in time", &child),
        }
        match cycles_per_packet(&child.said()) {
            Some(cycles) => Ok(cycles),
            None => fails("it tells no cycles per packet", &child),
        }
    }

    fn arguments(&self) -> Vec<String> {
        // Its main thread only waits; it gets another core where there is one.
        let main = cores::available().into_iter().find(|core| *core != self.core).unwrap_or(self.core);
        let memory: &[&str] = if self.hugepages { &["--in-memory"] } else { &["--no-huge", "--no-shconf"] };
        let mut words: Vec<String> = memory.iter().map(|word| (*word).to_owned()).collect();
        let more = [
            "--no-telemetry".to_owned(),
            "--no-pci".to_owned(),
            format!("--file-prefix=forebay-bench-{}", std::process::id()),
            format!("--lcores=0@{main},1@{}", self.core),
            "-m".to_owned(),
            self.scenario.memory_mib(self.hugepages).to_string(),
            format!("--vdev=net_pcap0,rx_pcap={},infinite_rx=1", self.packets.display()),
            "--vdev=net_null0,no-rx=1".to_owned(),
            "--".to_owned(),
            "--forward-mode=io".to_owned(),
            "--record-core-cycles".to_owned(),
            "--no-lsc-interrupt".to_owned(),
            // Both take as much at once.
            format!("--burst={BATCH}"),
            format!("--total-num-mbufs={}", self.scenario.buffers()),
            format!("--mbuf-size={}", self.scenario.buffer_bytes() + HEADROOM_BYTES),
        ];
        words.extend(more);
        words
    }
}

/// The figure of `CPU cycles/packet=200.21 (total cycles=…`.
fn cycles_per_packet(text: &str) -> Option<f64> {
    let number = text.split(FIGURE).nth(1)?.split_whitespace().next()?;
    number.parse().ok().filter(|cycles: &f64| cycles.is_finite() && *cycles > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Feed;
    use crate::flows::Flows;
    use crate::scenario::Direction;

    #[test]
    fn its_figure_is_found() {
        let text = "Done.\n  CPU cycles/packet=200.21 (total cycles=11732185828 / total io packets=58598464) at 2600 MHz Clock\n";
        assert_eq!(cycles_per_packet(text), Some(200.21));
        assert_eq!(cycles_per_packet("  CPU cycles/packet=nan (total"), None);
        assert_eq!(cycles_per_packet("Done.\n"), None);
    }

    #[test]
    fn it_gets_the_same_packets_and_core() {
        let flows = Flows::plain(1000, 1, 64);
        let scenario =
            Scenario { direction: Direction::Encap, flows, lanes: 1, cache_entries: 64, feed: Feed::Pcap };
        let core = cores::available()[0];
        let packets = Path::new("/tmp/p.pcap");
        let testpmd =
            Testpmd { program: Path::new("testpmd"), scenario: &scenario, packets, core, hugepages: false };
        let words = testpmd.arguments();
        assert!(words.contains(&"--vdev=net_pcap0,rx_pcap=/tmp/p.pcap,infinite_rx=1".to_owned()));
        assert!(
            words.iter().any(|word| word.starts_with("--lcores=0@") && word.ends_with(&format!(",1@{core}")))
        );
        assert!(
            words.contains(&"--no-huge".to_owned())
                && words.contains(&"--total-num-mbufs=17384".to_owned())
                && words.contains(&"--mbuf-size=2176".to_owned())
        );
    }
}
