//! Cards beside the cores that serve them: a packet that crosses to another node pays for it twice.

use super::devices::{self, PCI};
use super::{Finding, Subject, System};
use forebay_pipeline::cores;

const NODES: &str = "/sys/devices/system/node";

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    const NAME: &str = "numa_placement";
    let finding = |device: devices::OnPci| {
        let address = device.address?;
        let node = system.number(format!("{PCI}/{address}/numa_node"))?;
        // Below zero: the firmware does not say, or there is one node.
        let there = system.cores(format!("{NODES}/node{node}/cpulist")).filter(|_| node >= 0)?;
        let far: Vec<usize> = subject.cores.iter().copied().filter(|core| !there.contains(core)).collect();
        let finding = if far.is_empty() {
            Finding::ok(NAME, format!("{address} is on node {node}, as all workers are"))
        } else {
            let near = cores::format(&there);
            let value =
                format!("{address} is on node {node}, workers on cores {} are not", cores::format(&far));
            Finding::warn(NAME, value, format!("choose workers.cores from node {node}'s: {near}"))
        };
        Some(finding.of(device.port))
    };
    devices::of_config(system, subject).into_iter().filter_map(finding).collect()
}
