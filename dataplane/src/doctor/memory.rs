//! Memory that stays where it is, and is translated cheaply.

use super::{Finding, Subject, System};

const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const BALANCING: &str = "/proc/sys/kernel/numa_balancing";

pub(super) fn examine(system: &System, _: &Subject) -> Vec<Finding> {
    let mut findings = vec![transparent(system), swap(system)];
    findings.extend(balancing(system));
    findings
}

/// Rule tables and flow caches ask for huge pages as they grow.
fn transparent(system: &System) -> Finding {
    const NAME: &str = "transparent_hugepages";
    let text = system.text(TRANSPARENT).unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    match chosen {
        Some("never") => Finding::warn(
            NAME,
            "never: a lookup in a large table waits for the translation of its address too",
            format!("echo madvise > {TRANSPARENT}"),
        ),
        Some(word) => Finding::ok(NAME, word),
        None => Finding::warn(
            NAME,
            "the kernel has none",
            "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE; large tables are slower without",
        ),
    }
}

fn swap(system: &System) -> Finding {
    const NAME: &str = "swap";
    let text = system.text("/proc/swaps").unwrap_or_default();
    let devices: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if devices.is_empty() {
        return Finding::ok(NAME, "none");
    }
    let value = format!("{}: a worker may wait for the disk to bring its tables back", devices.join(", "));
    Finding::warn(NAME, value, r"swapoff -a && sed -i '/\sswap\s/s/^/#/' /etc/fstab")
}

/// Automatic balancing unmaps pages to see who uses them: a page fault in a worker each time.
fn balancing(system: &System) -> Option<Finding> {
    const NAME: &str = "numa_balancing";
    let nodes = system.cores("/sys/devices/system/node/online").unwrap_or_default();
    let on = system.number(BALANCING)? != 0;
    Some(if on && nodes.len() > 1 {
        Finding::warn(
            NAME,
            "on: the kernel unmaps pages of workers to see who uses them",
            "echo 'kernel.numa_balancing = 0' > /etc/sysctl.d/81-forebay.conf && sysctl --system",
        )
    } else {
        Finding::ok(NAME, if on { "on, over one node" } else { "off" })
    })
}
